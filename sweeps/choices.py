"""Which values of a study's axes need designs of their own, and which designs occur."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from opbyte.sweeps.axes import PlanAxis
from opbyte.sweeps.derive import Link
from opbyte.sweeps.space import Codes, Line, Space, active

__all__ = ["choices", "listed_codes", "slow_axes"]


def slow_axes(axes: tuple[PlanAxis, ...], links: tuple[Link, ...]) -> frozenset[str]:
    """Return the axes that need a design of their own for each value."""
    wanted = {a.target.key for a in axes if not a.target.numeric}
    for link in reversed(links):
        if not link.target.numeric or link.target.key in wanted:
            wanted |= {link.target.key, *link.reads.values()}
    return frozenset(a.path for a in axes if a.target.key in wanted)


def listed_codes(axes: tuple[PlanAxis, ...], points: list[dict[str, Any]]) -> Codes:
    """Return the positions of the points of a list in their axes, by path."""
    codes: Codes = {}
    for axis in axes:
        position = {repr(v): i for i, v in enumerate(axis.written or ())}
        column = [position[repr(point[axis.path])] for point in points]
        codes[axis.path] = np.array(column, dtype=np.int64)
    return codes


def choices(structure: list[PlanAxis], space: Space | None) -> Iterator[dict[str, Any]]:
    """Yield the values of structure that designs are checked with.

    Of a list of points, all that occur; of a grid, every machine with every value of each other
    axis, the rest at its first value.
    """
    written = {a.path: list(a.written or ()) for a in structure}
    if space is not None and space.table is not None:
        seen = set()
        used = active(space.lines, space.table)
        columns = [
            np.where(used[p], space.table[p], -1).tolist() if p in used else space.table[p].tolist()
            for p in written
        ]
        for row in zip(*columns, strict=True):
            if row not in seen:
                seen.add(row)
                yield {p: written[p][i] for p, i in zip(written, row, strict=True) if i >= 0}
        if not written:
            yield {}
        return
    lines = {a.path: a.line for a in structure}
    for choice in _varied(written):
        yield _possible(choice, written, lines)


def _varied(written: dict[str, list[Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    first = {p: values[0] for p, values in written.items()}
    for machine in written.get("machine", [None]):
        start = {**first, "machine": machine} if "machine" in written else first
        yield start, ""
        for path, values in written.items():
            if path != "machine":
                yield from (({**start, path: value}, path) for value in values[1:])


def _possible(
    varied: tuple[dict[str, Any], str], written: dict[str, list[Any]], lines: dict[str, Line]
) -> dict[str, Any]:
    """Return a choice in which the axis that varies means something, without those that do not."""
    choice, path = varied
    asked = [path] if path else []
    while asked:
        for parent, positions in lines[asked.pop()].when:
            if parent in choice and written[parent].index(choice[parent]) not in positions:
                choice = {**choice, parent: written[parent][positions[0]]}
            asked += [parent] if parent in lines else []
    for name, line in lines.items():
        for parent, positions in line.when:
            gone = parent in lines and parent not in choice
            if gone or (
                parent in choice and written[parent].index(choice[parent]) not in positions
            ):
                choice = {p: v for p, v in choice.items() if p != name}
    return choice
