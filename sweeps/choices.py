"""Which values of a study's axes need designs of their own, and which designs occur."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from opbyte.sweeps.axes import PlanAxis
from opbyte.sweeps.derive import Link
from opbyte.sweeps.space import Codes, Space

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
        for row in zip(*(space.table[p].tolist() for p in written), strict=True):
            if row not in seen:
                seen.add(row)
                yield {p: written[p][i] for p, i in zip(written, row, strict=True)}
        if not written:
            yield {}
        return
    first = {p: values[0] for p, values in written.items()}
    for machine in written.get("machine", [None]):
        start = {**first, "machine": machine} if "machine" in written else first
        yield start
        for path, values in written.items():
            if path != "machine":
                yield from ({**start, path: value} for value in values[1:])
