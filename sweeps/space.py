"""The points of a study: which values each point id stands for, and in which portions to run them.

A point's id is its position in the space: of a grid, the position in the order in which the file
writes its axes, the last axis fastest. Ids do not depend on workers, chunks or order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Codes",
    "Ids",
    "Line",
    "Space",
    "active",
    "folded",
    "grid_space",
    "sampled_space",
    "table_space",
]

Ids = npt.NDArray[np.int64]
#: Per axis: positions in its values (int64), or for a continuous axis its values (float64).
Codes = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Line:
    """One axis as the space sees it.

    Attributes:
        size: Number of values; 0 is continuous.
        low: Lower end of a continuous axis, SI.
        high: Upper end of a continuous axis, SI.
        log: Whether equal steps of a continuous axis are equal ratios.
        whole: Whether a continuous axis has whole numbers only.
        when: Paths of earlier axes, and the positions at which this axis means anything.
    """

    path: str
    size: int
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    when: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def idle(self) -> float:
        """Return the code of this axis where it means nothing."""
        return 0 if self.size else self.low

    def at(self, share: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        """Return positions or values for shares in [0, 1)."""
        if self.size:
            return np.minimum((share * self.size).astype(np.int64), self.size - 1)
        if self.log:
            low, high = np.log(self.low), np.log(self.high)
            values = np.exp(low + share * (high - low))
        else:
            values = self.low + share * (self.high - self.low)
        answer: npt.NDArray[np.float64] = np.rint(values) if self.whole else values
        return answer


@dataclass(frozen=True)
class Space:
    """All points.

    Attributes:
        lines: The axes.
        count: Number of points.
        table: Codes of every point, where the space is no grid.
    """

    lines: tuple[Line, ...]
    count: int
    table: Codes | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the number of values of each axis."""
        return tuple(line.size for line in self.lines)

    def codes(self, ids: Ids) -> Codes:
        """Return the codes of points."""
        if self.table is not None:
            return {path: column[ids] for path, column in self.table.items()}
        if not self.lines:
            return {}
        positions = np.unravel_index(ids, self.shape)
        return {
            line.path: p.astype(np.int64) for line, p in zip(self.lines, positions, strict=True)
        }

    def portions(self, slow: frozenset[str], most: int) -> Iterator[Ids]:
        """Yield all ids in portions of at most `most`.

        Points that agree in the `slow` axes stand together, so that one evaluation prices them.
        """
        if self.table is not None:
            yield from _chunks(self._sorted(slow), most)
            return
        outer = [i for i, line in enumerate(self.lines) if line.path in slow]
        inner = [i for i, line in enumerate(self.lines) if line.path not in slow]
        shape = self.shape
        order = [shape[i] for i in (*outer, *inner)]
        span = math.prod(shape)
        for start in range(0, span, most):
            flat = np.arange(start, min(start + most, span), dtype=np.int64)
            if outer and inner:
                moved = np.unravel_index(flat, order)
                digits = dict(zip((*outer, *inner), moved, strict=True))
                flat = np.ravel_multi_index(
                    tuple(digits[i] for i in range(len(shape))), shape
                ).astype(np.int64)
            codes = self.codes(flat)
            real = np.ones(len(flat), dtype=np.bool_)
            for path, used in active(self.lines, codes).items():
                real &= used | (codes[path] == 0)
            if real.any():
                yield flat[real]

    def _sorted(self, slow: frozenset[str]) -> Ids:
        assert self.table is not None
        keys = [self.table[line.path] for line in reversed(self.lines) if line.path in slow]
        if not keys:
            return np.arange(self.count, dtype=np.int64)
        return np.lexsort(keys).astype(np.int64)


def _chunks(ids: Ids, most: int) -> Iterator[Ids]:
    for start in range(0, len(ids), most):
        yield ids[start : start + most]


def active(lines: tuple[Line, ...], codes: Codes) -> dict[str, npt.NDArray[np.bool_]]:
    """Return where each conditional axis means anything, (points,), by path."""
    found: dict[str, npt.NDArray[np.bool_]] = {}
    for line in lines:
        for path, positions in line.when:
            here = np.isin(codes[path], positions)
            if path in found:
                here = here & found[path]
            found[line.path] = found[line.path] & here if line.path in found else here
    return found


def folded(lines: tuple[Line, ...], codes: Codes) -> Codes:
    """Return codes with each axis at its first value where it means nothing."""
    idle = {line.path: line.idle for line in lines}
    for path, used in active(lines, codes).items():
        codes = {**codes, path: np.where(used, codes[path], idle[path])}
    return codes


def grid_space(lines: tuple[Line, ...]) -> Space:
    """Return every combination of the axes' values; ids are positions among all combinations."""
    return Space(lines, grid_count(lines))


def grid_count(lines: tuple[Line, ...]) -> int:
    """Return the number of combinations; an axis that means nothing counts once.

    The axes that conditions name, and those that are conditional, are enumerated.
    """
    named = {path for line in lines for path, _ in line.when}
    some = tuple(line for line in lines if line.path in named or line.when)
    count = math.prod(line.size for line in lines if line not in some)
    if not some:
        return count
    parents = tuple(line for line in some if line.path in named)
    shape = tuple(line.size for line in parents)
    places = np.unravel_index(np.arange(math.prod(shape)), shape)
    codes: Codes = {p.path: c.astype(np.int64) for p, c in zip(parents, places, strict=True)}
    children = tuple(line for line in some if line.path not in named)
    for line in children:
        codes[line.path] = np.zeros(len(places[0]), dtype=np.int64)
    many = np.full(len(places[0]), count, dtype=np.int64)
    used = active(lines, codes)
    for line in some:
        if line.path in named and line.when:
            many[~used[line.path] & (codes[line.path] != 0)] = 0
        elif line.when:
            many *= np.where(used[line.path], line.size, 1)
    return int(many.sum())


def table_space(lines: tuple[Line, ...], table: Codes) -> Space:
    """Return points given one by one."""
    return Space(lines, len(next(iter(table.values()))), folded(lines, table))


def sampled_space(lines: tuple[Line, ...], points: int, seed: int, *, sobol: bool) -> Space:
    """Return independent points, or a scrambled Sobol sequence; the same for the same seed."""
    share = unit_points(len(lines), points, seed, sobol=sobol)
    return table_space(lines, {line.path: line.at(share[:, i]) for i, line in enumerate(lines)})


def unit_points(dimensions: int, points: int, seed: int, *, sobol: bool) -> npt.NDArray[np.float64]:
    """Return points in the unit cube, (points, dimensions)."""
    rng = np.random.default_rng(seed)
    if not sobol:
        return rng.random((points, dimensions))
    from scipy.stats import qmc

    power = max(points - 1, 1).bit_length()
    drawn: npt.NDArray[np.float64] = qmc.Sobol(dimensions, rng=rng).random_base2(power)[:points]
    return drawn
