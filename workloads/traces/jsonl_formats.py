"""Traces as lines of JSON: Mooncake's, which is our own format too, and Qwen-Bailian's."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import IO, Any, cast

import numpy as np

from opbyte.workloads.traces._rules import Ints
from opbyte.workloads.traces.blocks import PrefixBlocks
from opbyte.workloads.traces.formats import BadRows, Columns, Head, numbered, register

__all__ = ["NATIVE_BLOCK_TOKENS", "JsonlFormat"]

#: Tokens of a block where a Mooncake file does not say (FAST'25 traces).
NATIVE_BLOCK_TOKENS = 512

_COLUMNS = {
    "session_id": "session",
    "tenant": "tenant",
    "priority": "priority",
    "adapter": "adapter",
    "model": "model",
}
_LARGEST = 2**62


@dataclass
class _Rows:
    """Rows as lists, one entry for each request that could be read.

    Attributes:
        form: Optional keys of the first row; all others must have the same.
        kept: Their values, where they are no arrivals or blocks.
    """

    form: frozenset[str] | None = None
    lines: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    kept: dict[str, list[object]] = field(default_factory=dict)


@dataclass(frozen=True)
class JsonlFormat:
    """Objects with `timestamp`, `input_length`, `output_length`, `hash_ids`, one in each line.

    Attributes:
        name: What `--format` calls it.
        about: What writes such files.
        milliseconds: Whether timestamps are milliseconds; seconds otherwise.
        block_tokens: Tokens of a block where the file does not say.
        chats: Turns name the turn before them (`chat_id`, `parent_chat_id`): they make sessions.
    """

    name: str
    about: str
    milliseconds: bool
    block_tokens: int
    chats: bool = False

    @property
    def needs(self) -> Sequence[str]:
        """Return the keys that a row must have."""
        return ("chat_id", *_LENGTHS) if self.chats else _LENGTHS

    def matches(self, head: Head) -> bool:
        """Return whether the first line has the keys; only Bailian's has `chat_id`."""
        if not head.is_json:
            return False
        try:
            row = json.loads(head.line)
        except ValueError:
            # A damaged first row is told as such by the reader.
            return not self.chats
        return all(key in row for key in self.needs) and self.chats == ("chat_id" in row)

    def read(self, file: IO[bytes], head: Head, bad: BadRows, block_tokens: int | None) -> Columns:
        """Return the rows; see `TraceFormat`. Milliseconds are divided before they are rounded."""
        del head  # its line is read again with the others
        rows = _Rows()
        decode = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number).decode
        for number, raw in enumerate(file, 1):
            line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip()
            if not line:
                continue
            try:
                row = decode(line.decode())
            except (ValueError, RecursionError) as error:
                bad.add(number, "", f"must be a JSON object: {error}")
                continue
            if isinstance(row, dict):
                self._add(rows, row, number, bad)
            else:
                bad.add(number, "", "must be a JSON object", row)
        return self._columns(rows, block_tokens)

    def _wrong(self, rows: _Rows, row: dict[str, Any]) -> list[tuple[str, str, object]]:
        """Return what is wrong with a row: keys, rules and values."""
        form = row.keys() & _OPTIONAL
        wrong: list[tuple[str, str, object]] = [
            (key, "the key is missing", "") for key in self.needs if key not in row
        ]
        if rows.form is not None and form != rows.form:
            wrong += [(k, "the key is missing, rows above have it", "") for k in rows.form - form]
            wrong += [(k, "no row above has this key", "") for k in form - rows.form]
        for key in _WHOLE:
            if key in row and type(row[key]) is not int:
                wrong.append((key, "must be a whole number", row[key]))
        time = row.get("timestamp", 0)
        if type(time) is not int and not isinstance(time, Decimal):
            wrong.append(("timestamp", "must be a number", time))
        if "hash_ids" in row and not _are_ids(row["hash_ids"]):
            rule = "must be a list of whole numbers that are at least 0"
            wrong.append(("hash_ids", rule, row["hash_ids"]))
        size = row.get("block_size", 1)
        if type(size) is int and (size < 1 or size != rows.kept.get("block_size", [size])[0]):
            wrong.append(("block_size", "must be at least 1 and the same in all rows", size))
        return wrong

    def _add(self, rows: _Rows, row: dict[str, Any], line: int, bad: BadRows) -> None:
        """Append a row's numbers, or say why they are none."""
        if None in row.values():
            row = {key: value for key, value in row.items() if value is not None}
        wrong = self._wrong(rows, row)
        for problem in wrong:
            bad.add(line, *problem)
        if wrong:
            return
        ids = row.get("hash_ids", ())
        form = row.keys() & _OPTIONAL
        rows.form = frozenset(form)
        rows.lines.append(line)
        rows.arrivals.append(_seconds(row.get("timestamp", 0), milliseconds=self.milliseconds))
        rows.inputs.append(_bounded(row["input_length"]))
        rows.outputs.append(_bounded(row["output_length"]))
        rows.ids.extend(ids)
        rows.counts.append(len(ids))
        for key in form - _ELSEWHERE:
            rows.kept.setdefault(key, []).append(row[key])
        if self.chats:
            for key in _CHAT:
                rows.kept.setdefault(key, []).append(row.get(key))

    def _columns(self, rows: _Rows, block_tokens: int | None) -> Columns:
        form = rows.form or ()
        columns = Columns(
            np.array(rows.lines, np.int64),
            np.array(rows.arrivals, np.float64) if "timestamp" in form else None,
            np.array(rows.inputs, np.int64),
            np.array(rows.outputs, np.int64),
        )
        for key, ours in _COLUMNS.items():
            if key in form:
                columns.others[ours] = numbered(rows.kept[key])
        if "hash_ids" in form:
            stated = rows.kept.get("block_size", [self.block_tokens])[0]
            offsets = np.concatenate([[0], np.cumsum(rows.counts)]).astype(np.int64)
            size = block_tokens or cast("int", stated)
            columns.prefix = PrefixBlocks(np.array(rows.ids, np.int64), offsets, size)
        if self.chats and rows.lines:
            columns.others["session"] = _sessions(*(rows.kept[key] for key in _CHAT))
        return columns


_LENGTHS = ("input_length", "output_length")
_CHAT = ("chat_id", "parent_chat_id")
_WHOLE = (*_LENGTHS, "block_size", "priority")
#: Optional keys whose values do not stand in `_Rows.kept`.
_ELSEWHERE = {"timestamp", "hash_ids"}
_OPTIONAL = {*_ELSEWHERE, "block_size", *_COLUMNS}


def _are_ids(given: object) -> bool:
    """Return whether this is a list of block ids."""
    if not isinstance(given, list):
        return False
    return not given or (
        set(map(type, given)) == {int} and 0 <= min(given) <= max(given) < _LARGEST
    )


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _seconds(time: int | Decimal, *, milliseconds: bool) -> float:
    """Return seconds, rounded once; infinity for what no float holds."""
    if not isinstance(time, int):
        return float(time.scaleb(-3) if milliseconds else time)
    try:
        return time / 1000 if milliseconds else float(time)
    except OverflowError:
        return float("inf")


def _bounded(tokens: int) -> int:
    """Return tokens as an int64 holds them; the rules refuse what is near its ends."""
    return min(max(tokens, -_LARGEST), _LARGEST)


def _sessions(chats: list[object], parents: list[object]) -> Ints:
    """Return the session of each turn: its parent's where that stands above it, else a new one."""
    of_chat: dict[object, int] = {}
    found = []
    new = 0
    for chat, parent in zip(chats, parents, strict=True):
        session = of_chat.get(str(parent))
        if session is None:
            session, new = new, new + 1
        of_chat[str(chat)] = session
        found.append(session)
    return np.array(found, np.int64)


for _format in (
    JsonlFormat(
        name="mooncake",
        about="Mooncake's traces, and what opbyte writes",
        milliseconds=True,
        block_tokens=NATIVE_BLOCK_TOKENS,
    ),
    JsonlFormat(
        name="bailian",
        about="Qwen-Bailian usage traces",
        milliseconds=False,
        block_tokens=16,
        chats=True,
    ),
):
    register(_format.name, _format)
