"""The points of a study: which values each point id stands for, and in which portions to run them.

A point's id is its position in the space: of a grid, the position in the order in which the file
writes its axes, the last axis fastest. Ids do not depend on workers, chunks or order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Codes", "Ids", "Line", "Space", "grid_space", "sampled_space", "table_space"]

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
    """

    path: str
    size: int
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

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
        for start in range(0, self.count, most):
            flat = np.arange(start, min(start + most, self.count), dtype=np.int64)
            if outer and inner:
                moved = np.unravel_index(flat, order)
                digits = dict(zip((*outer, *inner), moved, strict=True))
                flat = np.ravel_multi_index(
                    tuple(digits[i] for i in range(len(shape))), shape
                ).astype(np.int64)
            yield flat

    def _sorted(self, slow: frozenset[str]) -> Ids:
        assert self.table is not None
        keys = [self.table[line.path] for line in reversed(self.lines) if line.path in slow]
        if not keys:
            return np.arange(self.count, dtype=np.int64)
        return np.lexsort(keys).astype(np.int64)


def _chunks(ids: Ids, most: int) -> Iterator[Ids]:
    for start in range(0, len(ids), most):
        yield ids[start : start + most]


def grid_space(lines: tuple[Line, ...]) -> Space:
    """Return every combination of the axes' values."""
    count = 1
    for line in lines:
        count *= line.size
    return Space(lines, count)


def table_space(lines: tuple[Line, ...], table: Codes) -> Space:
    """Return points given one by one."""
    return Space(lines, len(next(iter(table.values()))), table)


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
