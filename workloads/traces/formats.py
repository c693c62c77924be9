"""Formats of trace files: what a reader is, which one reads a file, and how bad rows are told."""

from __future__ import annotations

import codecs
import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from opbyte.core.catalog import missing_file
from opbyte.core.errors import ConfigError, Problem
from opbyte.core.registry import Registry, nearest
from opbyte.workloads.traces._rules import Ints
from opbyte.workloads.traces.blocks import PrefixBlocks

__all__ = ["FORMATS", "BadRows", "Columns", "Head", "TraceFormat", "detected", "opened"]

_SHOWN_ROWS = 20
_LONGEST_LINE = 2**26
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Head:
    """The beginning of a file.

    Attributes:
        file: Path of the file, as errors show it.
        line: Its first line that is not blank, without the byte order mark.
        number: The number of that line, from 1.
    """

    file: str
    line: str
    number: int

    @property
    def is_json(self) -> bool:
        """Return whether the line is a JSON object."""
        return self.line.startswith("{")

    @property
    def names(self) -> list[str]:
        """Return the line's cells, as a header of a CSV file has them; none of a JSON object."""
        if self.is_json:
            return []
        try:
            return [cell.strip() for cell in next(csv.reader([self.line]), [])]
        except csv.Error:
            return []

    def positions(self) -> dict[str, int]:
        """Return where each column stands, by its name in lower case; the first of equal names."""
        found: dict[str, int] = {}
        for position, name in enumerate(self.names):
            found.setdefault(name.casefold(), position)
        return found


@dataclass
class BadRows:
    """Collects what is wrong with the rows of one file.

    Attributes:
        file: Path of the file.
        lines: Numbers of the lines that are bad.
    """

    file: str
    lines: set[int] = field(default_factory=set)
    _found: list[tuple[int, str, str, object]] = field(default_factory=list)

    def add(self, line: int, column: str, rule: str, value: object = "") -> None:
        """Note that a line breaks a rule; `column` may be empty where the whole line is wrong."""
        self.lines.add(int(line))
        self._found.append((int(line), column, rule, value))

    def error(self, remedy: str = "") -> ConfigError:
        """Return the error that tells the first problems, and how many lines are bad in all."""
        found = sorted(self._found, key=lambda problem: problem[0])
        problems = [
            Problem(f"{self.file}:{line}", column, rule, value)
            for line, column, rule, value in found[:_SHOWN_ROWS]
        ]
        many = "1 row is" if len(self.lines) == 1 else f"{len(self.lines):,} rows are"
        rest = len(found) - len(problems)
        rule = f"and {rest:,} more; {many} bad" if rest else f"{many} bad"
        return ConfigError([*problems, Problem(self.file, "", rule, "", remedy)])


@dataclass
class Columns:
    """What a format reads from a file: the rows that it could understand.

    Attributes:
        lines: Line of each row, (rows,).
        arrival: Seconds, or nanoseconds as int64, (rows,); None where the file has none.
        input_tokens: As read, (rows,).
        output_tokens: As read, (rows,).
        prefix: Block ids, or None.
        others: session, tenant, priority, adapter, model as far as the file has them, (rows,) each.
        from_first: Whether arrivals are counted from the first one on (the file has a clock's).
        failed: Rows of requests that the traced service did not answer; they are left out.
    """

    lines: Ints
    arrival: npt.NDArray[Any] | None
    input_tokens: npt.NDArray[Any]
    output_tokens: npt.NDArray[Any]
    prefix: PrefixBlocks | None = None
    others: dict[str, Ints] = field(default_factory=dict)
    from_first: bool = False
    failed: int = 0

    def take(self, rows: Ints) -> None:
        """Keep only `rows`, in that order."""
        self.lines = self.lines[rows]
        self.arrival = None if self.arrival is None else self.arrival[rows]
        self.input_tokens = self.input_tokens[rows]
        self.output_tokens = self.output_tokens[rows]
        self.prefix = None if self.prefix is None else self.prefix.take(rows)
        self.others = {name: values[rows] for name, values in self.others.items()}


class TraceFormat(Protocol):
    """A reader of one format; register it in `FORMATS`."""

    @property
    def about(self) -> str:
        """Return what writes such files, for lists."""

    @property
    def needs(self) -> Sequence[str]:
        """Return the columns or keys without which a file can not be read."""

    def matches(self, head: Head) -> bool:
        """Return whether a file that begins so has this format."""

    def read(self, file: IO[bytes], head: Head, bad: BadRows, block_tokens: int | None) -> Columns:
        """Return the rows of a file that stands at its beginning; note bad ones in `bad`.

        Args:
            block_tokens: Tokens of a prefix block, where the file does not say.
        Raises:
            ConfigError: If the file as a whole can not be read so.
        """


#: Formats by the name that `--format` takes; detection tries them in the order of registration.
FORMATS: Registry[TraceFormat] = Registry("trace format")
_ORDER: list[str] = []


def register(name: str, entry: TraceFormat) -> None:
    """Enter a format."""
    FORMATS.register(name)(entry)
    _ORDER.append(name)


def detected(head: Head) -> TraceFormat:
    """Return the format of a file.

    Raises:
        ConfigError: If no format matches; with what the most similar one lacks.
    """
    entries = {name: FORMATS.lookup(name) for name in (*_ORDER, *FORMATS.names())}
    for entry in entries.values():
        if entry.matches(head):
            return entry
    where = f"{head.file}:{head.number}"
    given = set(head.positions())
    near = max(entries, key=lambda name: _overlap(entries[name], given))
    if not head.is_json and _overlap(entries[near], given):
        if {name.casefold() for name in entries[near].needs} - given:
            raise lacking(head, near, entries[near].needs)
        rule = f"the columns fit the format {near!r}, but one sounds like a time of arrival"
        remedy = f"Rename it to 'arrival_s', or name the format {near!r} if it is none."
        raise ConfigError.one(where, "", rule, repr(head.line), remedy)
    known = "; ".join(f"{name} ({', '.join(entry.needs)})" for name, entry in entries.items())
    raise ConfigError.one(
        where, "", "no known trace begins so", repr(head.line), f"Known by their columns: {known}."
    )


def _overlap(entry: TraceFormat, given: set[str]) -> int:
    return len({name.casefold() for name in entry.needs} & given)


def lacking(head: Head, name: str, needs: Sequence[str]) -> ConfigError:
    """Return the error for a header without columns that the format `name` needs."""
    problems = []
    for column in needs:
        if column.casefold() in head.positions():
            continue
        near = nearest(column, head.names)
        guess = f"{near!r} may be it: rename it" if near else f"The header is {head.line!r}"
        rule = f"a trace in the format {name!r} needs the column {column!r}"
        problems.append(Problem(f"{head.file}:{head.number}", "", rule, "", f"{guess}."))
    return ConfigError(problems)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, unpacked where it is gzip.

    Raises:
        ConfigError: If there is no such file, it may not be read, or is damaged.
    """
    name = str(path)
    try:
        with path.open("rb") as plain:
            if plain.read(2) == _GZIP:
                plain.seek(0)
                with gzip.open(plain) as unpacked:
                    yield cast("IO[bytes]", unpacked)
            else:
                plain.seek(0)
                yield plain
    except FileNotFoundError:
        raise missing_file(path) from None
    except IsADirectoryError:
        raise ConfigError.one(name, "", "a file is due here, this is a folder") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        rule = f"the gzip file is damaged: {error}"
        raise ConfigError.one(name, "", rule, "", "Fetch it again.") from None
    except OSError as error:
        raise ConfigError.one(name, "", f"the file can not be read: {error.strerror}") from None


def head_of(file: IO[bytes], name: str) -> Head:
    """Return a file's head; the file stands anywhere afterwards.

    Raises:
        ConfigError: If the file has no line, or is not UTF-8 text.
    """
    number = 0
    while raw := file.readline(_LONGEST_LINE):
        number += 1
        if number == 1:
            if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                rule = "the file must be UTF-8, it is UTF-16"
                raise ConfigError.one(f"{name}:1", "", rule, "", "Save it as UTF-8.")
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if raw.strip():
            try:
                line = raw.decode()
            except UnicodeDecodeError:
                line = "\0"
            if "\0" in line:
                rule = "the file must be UTF-8 text"
                raise ConfigError.one(f"{name}:{number}", "", rule, "", "Name a CSV or JSONL file.")
            return Head(name, line.replace("\r", " ").strip(), number)
    raise ConfigError.one(name, "", "the file is empty", "", "A trace has at least one request.")


def numbered(values: Sequence[object]) -> Ints:
    """Return a number for each name, counted by first appearance; whole numbers stay."""
    if all(type(value) is int and abs(value) < 2**62 for value in values):
        return np.array(values, np.int64)
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(str(value), len(codes)) for value in values], np.int64)
