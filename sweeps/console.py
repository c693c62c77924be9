"""What commands print: tables, JSON, notes, progress."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opbyte.core.units import format_quantity

__all__ = ["Output", "RunProgress", "counted", "plain", "shown", "table_of", "terminal"]

_LINE_EVERY_S = 5.0
_WIDTH = 100


@dataclass(frozen=True)
class Output:
    """Where a command's answer goes.

    Attributes:
        json: Print one JSON document and nothing else.
        quiet: Print errors (and the JSON that was asked for) only.
    """

    json: bool = False
    quiet: bool = False

    @property
    def silent(self) -> bool:
        """Return whether nothing is to be printed for people."""
        return self.json or self.quiet

    def note(self, text: str) -> None:
        """Print a remark for people, beside the answer."""
        if not self.silent:
            sys.stderr.write(f"{text}\n")

    def line(self, text: str = "") -> None:
        """Print a line of the answer for people."""
        if not self.silent:
            sys.stdout.write(f"{text}\n")

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
    ) -> None:
        """Print a table for people; the first `left` columns are texts."""
        if self.silent or not rows:
            return
        terminal(len(columns)).print(table_of(title, columns, rows, left))

    def data(self, data: Any) -> None:
        """Print the answer as JSON, where that was asked for."""
        if self.json:
            sys.stdout.write(json.dumps(plain(data), indent=1) + "\n")


def terminal(columns: int = 1) -> Any:
    """Return where tables of some columns are printed; wide where nobody looks."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if console.is_terminal:
        return console
    return Console(file=sys.stdout, highlight=False, width=max(_WIDTH, 40 * columns))


def table_of(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> Any:
    """Return a table for people; the first `left` columns are texts."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in row))
    return table


def plain(data: Any) -> Any:
    """Return data as JSON can hold them: NaN and infinity are null."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    if hasattr(data, "item"):
        data = data.item()
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if isinstance(data, (str, int, bool, type(None))) else str(data)


def counted(count: int, noun: str) -> str:
    """Return how many of something there are: `1 point`, `12,000 points`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shown(value: Any, dimension: str | None) -> str:
    """Return a value as text for people, with its unit."""
    if isinstance(value, str):
        return value
    number = float(value)
    if math.isnan(number):
        return "-"
    if math.isinf(number):
        return str(number)
    if dimension in (None, "count", "ratio", "factor"):
        if number == int(number) and abs(number) < 1e7:
            return f"{int(number)}"
        return f"{number:.4g}"
    return format_quantity(number, str(dimension), digits=4)


class RunProgress:
    """A bar on a terminal, now and then a line elsewhere."""

    def __init__(self, output: Output, noun: str = "point") -> None:
        """Print nothing yet; `noun` is what a run has many of."""
        self._output = output
        self._noun = noun
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._total = self._done = self._failed = 0
        self._last = self._began = time.monotonic()

    def start(self, total: int, stored: int, what: str = "") -> None:
        """A run of `total` points begins, `stored` of which exist already; `what` is done."""
        self.close()
        self._what = f" {what}" if what else ""
        self._total, self._done, self._failed = total, stored, 0
        if stored:
            verb = "is" if stored == 1 else "are"
            self._output.note(f"{stored:,} of {counted(total, self._noun)} {verb} stored already")
        if self._output.silent or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(f"{self._noun}s{self._what}", total=total, completed=stored)
        self._bar.start()

    def advance(self, rows: int, failed: int = 0) -> None:
        """Rows were evaluated, some of which failed."""
        self._done += rows
        self._failed += failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            return
        now = time.monotonic()
        if now - self._last > _LINE_EVERY_S:
            self._last = now
            failed_text = f", {self._failed:,} failed" if self._failed else ""
            spent = now - self._began
            of = counted(self._total, self._noun)
            self._output.note(f"{self._done:,} of {of}{self._what}, {spent:.0f} s{failed_text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
