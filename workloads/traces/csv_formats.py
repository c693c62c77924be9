"""Traces as CSV: Azure, BurstGPT, Vidur, and plain lengths.

Columns are located by the names of the header, whatever their order and case. The file is parsed
in pieces of whole lines, each as columns, so that memory stays small and a bad row has a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.workloads.traces._rules import Bools, Ints
from opbyte.workloads.traces.formats import BadRows, Columns, Head, lacking, numbered, register

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CsvFormat"]

_PIECE_BYTES = 2**23
#: Columns of names or numbers, which a file may have.
_NAMES = ("session", "adapter", "model")
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_RULES = {
    "clock": "must be a time such as 2023-11-16 18:17:03.979",
    "number": "must be a number",
}


@dataclass(frozen=True)
class CsvFormat:
    """A CSV format by the names of its columns.

    Attributes:
        name: What `--format` calls it.
        about: What writes such files.
        arrival: Names of the column of arrivals, the first present one counts; none: lengths only.
        input_tokens: The same for prompts.
        output_tokens: The same for answers.
        session: The same for conversations; optional in a file.
        adapter, model: The same for the adapter or model that answers.
        clock: Arrivals are dates with times (UTC where they do not say), not seconds.
        arrival_needed: Whether a file without arrivals has another format.
        from_first: Arrivals are counted from the first one on.
        zero_is_failure: Answers of zero tokens are requests that failed.
    """

    name: str
    about: str
    arrival: Sequence[str]
    input_tokens: Sequence[str]
    output_tokens: Sequence[str]
    session: Sequence[str] = ()
    adapter: Sequence[str] = ()
    model: Sequence[str] = ()
    clock: bool = False
    arrival_needed: bool = True
    from_first: bool = False
    zero_is_failure: bool = False

    @property
    def needs(self) -> Sequence[str]:
        """Return the columns that a file must have, by their first names."""
        times = self.arrival[:1] if self.arrival_needed else ()
        return (*times, self.input_tokens[0], self.output_tokens[0])

    def matches(self, head: Head) -> bool:
        """Return whether a header has all columns; a time that would be lost is not accepted."""
        at = self._located(head)
        found = not head.is_json and not {"input_tokens", "output_tokens"} - set(at)
        return found and ("arrival" in at or not (self.arrival_needed or _has_time(head)))

    def _located(self, head: Head) -> dict[str, int]:
        """Return the position of each of our columns that the header has."""
        positions = head.positions()
        found = {}
        for ours in ("arrival", "input_tokens", "output_tokens", *_NAMES):
            names: Sequence[str] = getattr(self, ours)
            there = [positions[n.casefold()] for n in names if n.casefold() in positions]
            if there:
                found[ours] = there[0]
        return found

    def read(self, file: IO[bytes], head: Head, bad: BadRows, block_tokens: int | None) -> Columns:
        """Return the rows; see `TraceFormat`.

        Raises:
            ConfigError: If columns are missing, or the header has one of them twice.
        """
        del block_tokens  # a CSV file has no blocks
        at = self._located(head)
        if {"input_tokens", "output_tokens"} - set(at) or (
            self.arrival_needed and "arrival" not in at
        ):
            raise lacking(head, self.name, self.needs)
        names = [name.casefold() for name in head.names]
        twice = [head.names[i] for i in at.values() if names.count(names[i]) > 1]
        if twice:
            rule = f"the header has the column {twice[0]!r} twice"
            raise ConfigError.one(f"{head.file}:{head.number}", "", rule, "", "Rename one.")
        for _ in range(head.number):
            file.readline()
        parts: dict[str, list[npt.NDArray[Any]]] = {ours: [] for ours in ("lines", *at)}
        for piece, first in _pieces(file, head.number + 1):
            for ours, values in self._parsed(piece, first, head, at, bad).items():
                parts[ours].append(values)
        whole = {ours: np.concatenate(p) if p else np.zeros(0) for ours, p in parts.items()}
        return self._columns(whole)

    def _columns(self, whole: dict[str, npt.NDArray[Any]]) -> Columns:
        columns = Columns(
            whole["lines"],
            whole.get("arrival"),
            whole["input_tokens"],
            whole["output_tokens"],
            others={n: _numbers(n, whole[n].tolist()) for n in _NAMES if n in whole},
            from_first=self.from_first,
        )
        if self.zero_is_failure:
            answered = columns.output_tokens != 0
            columns.failed = int((~answered).sum())
            columns.take(np.flatnonzero(answered))
        return columns

    def _parsed(
        self, piece: bytes, first: int, head: Head, at: dict[str, int], bad: BadRows
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of a piece of whole lines whose first is number `first`."""
        import pyarrow as pa

        table, lines = _table(piece, first, len(head.names), sorted(set(at.values())), bad)
        good = np.ones(table.num_rows, bool)
        read: dict[str, npt.NDArray[Any]] = {}
        for ours, position in at.items():
            column = table.column(str(position)).combine_chunks()
            if ours in _NAMES:
                read[ours] = column.to_numpy(zero_copy_only=False)
                continue
            kind = "clock" if ours == "arrival" and self.clock else "number"
            types = (
                (pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
                if kind == "clock"
                else (pa.float64(),)
            )
            read[ours], fits = _cast(column, types)
            for row in np.flatnonzero(~fits).tolist():
                text = column[row].as_py()
                if text or not _blank(piece, int(lines[row]) - first):
                    bad.add(int(lines[row]), head.names[position], _RULES[kind], repr(text))
            good &= fits
        return {ours: values[good] for ours, values in (read | {"lines": lines}).items()}


def _numbers(name: str, texts: list[str]) -> Ints:
    """Return the numbers of names; adapters and models that have numbers already keep them."""
    if name != "session" and all(_WHOLE.fullmatch(text.strip()) for text in texts):
        return np.array([int(text) for text in texts], np.int64)
    return numbered(texts)


def _has_time(head: Head) -> bool:
    """Return whether some column sounds like a time of arrival."""
    return any(word in name for name in head.positions() for word in ("arriv", "timestamp"))


def _pieces(file: IO[bytes], number: int) -> Iterator[tuple[bytes, int]]:
    """Yield the rest of a file in pieces of whole lines, each with the number of its first line."""
    rest = b""
    while block := file.read(_PIECE_BYTES):
        end = block.rfind(b"\n") + 1
        if not end:
            rest += block
            continue
        piece, rest = rest + block[:end], block[end:]
        yield piece, number
        number += piece.count(b"\n")
    if rest:
        yield rest, number


def _table(
    piece: bytes, first: int, width: int, wanted: list[int], bad: BadRows
) -> tuple[pa.Table, Ints]:
    """Return the wanted columns as texts, and the line of each row; note rows of another width."""
    import pyarrow as pa
    from pyarrow import csv

    if b"\r" in piece:
        # Lines end with a line feed; a carriage return elsewhere is a blank.
        piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    lines = piece.count(b"\n") + (not piece.endswith(b"\n"))
    torn: list[tuple[int, int, str]] = []

    def note(row: Any) -> str:
        torn.append((row.number, row.actual_columns, row.text))
        return "skip"

    def parsed(text: bytes, quote: str | None) -> pa.Table:
        torn.clear()
        return csv.read_csv(
            BytesIO(text),
            csv.ReadOptions(use_threads=False, column_names=[str(i) for i in range(width)]),
            csv.ParseOptions(
                quote_char=quote or False, ignore_empty_lines=False, invalid_row_handler=note
            ),
            csv.ConvertOptions(
                include_columns=[str(i) for i in wanted],
                column_types={str(i): pa.string() for i in wanted},
                strings_can_be_null=False,
            ),
        )

    try:
        table = parsed(piece, '"')
        whole = table.num_rows + len(torn) == lines
    except pa.ArrowInvalid:
        whole = False
    if not whole:
        # A quote that is not closed on its line swallows others, and what is no UTF-8 stops the
        # parser: read quotes and replacement characters as part of the cells, which spoils only
        # the cells that have them.
        table = parsed(piece.decode("utf-8", "replace").encode(), None)
    for number, cells, text in torn:
        if text.strip():
            bad.add(first + number - 1, "", f"a row must have {width} cells", str(cells))
    rows = np.arange(table.num_rows, dtype=np.int64)
    above = np.array([number - 1 - i for i, (number, *_) in enumerate(torn)], np.int64)
    return table, first + rows + np.searchsorted(above, rows, side="right")


def _blank(piece: bytes, row: int) -> bool:
    """Return whether a line of a piece is blank."""
    lines = piece.split(b"\n")
    return row < len(lines) and not lines[row].strip()


def _cast(column: pa.Array, types: Sequence[Any]) -> tuple[npt.NDArray[Any], Bools]:
    """Return texts as numbers, or as nanoseconds, and which could be read, (rows,) each.

    A column that fails as a whole is halved until the bad rows stand alone.
    """
    import pyarrow as pa
    from pyarrow import compute

    column = compute.utf8_trim_whitespace(column)
    for type_ in types:
        try:
            cast = column.cast(type_)
        except pa.ArrowInvalid:
            continue
        whole = cast if pa.types.is_floating(type_) else cast.cast(pa.int64())
        return whole.to_numpy(), np.ones(len(column), bool)
    if len(column) == 1:
        return np.zeros(1, np.int64 if len(types) > 1 else np.float64), np.zeros(1, bool)
    half = len(column) // 2
    parts = [_cast(column[:half], types), _cast(column[half:], types)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


for _format in (
    CsvFormat(
        name="azure",
        about="Azure LLM inference traces of 2023 and 2024",
        arrival=("TIMESTAMP",),
        input_tokens=("ContextTokens",),
        output_tokens=("GeneratedTokens",),
        clock=True,
        from_first=True,
    ),
    CsvFormat(
        name="burstgpt",
        about="BurstGPT, with and without sessions",
        arrival=("Timestamp",),
        input_tokens=("Request tokens",),
        output_tokens=("Response tokens",),
        session=("Session ID",),
        from_first=True,
        zero_is_failure=True,
    ),
    CsvFormat(
        name="vidur",
        about="Vidur's processed traces",
        arrival=("arrived_at",),
        input_tokens=("num_prefill_tokens",),
        output_tokens=("num_decode_tokens",),
    ),
    CsvFormat(
        name="lengths",
        about="lengths in pairs, with or without arrivals",
        arrival=("arrival_s",),
        input_tokens=("input_tokens", "input_length", "num_prefill_tokens", "prompt_tokens"),
        output_tokens=("output_tokens", "output_length", "num_decode_tokens", "completion_tokens"),
        session=("session",),
        adapter=("adapter",),
        model=("model",),
        arrival_needed=False,
    ),
):
    register(_format.name, _format)
