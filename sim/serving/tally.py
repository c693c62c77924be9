"""Counts that a run keeps: gaps between tokens, and how long how many requests and blocks waited.

Gaps fall into bins, 128 in each power of two: a bin is 0.4 to 0.8 % of its gaps wide. So a run of
any length needs a fixed amount of memory, and means and largest gaps are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array

#: Bins of a power of two are told apart by so many bits of a float64's fraction, of 52. The lowest
#: power of two, seconds, and how many powers there are: 1 ps to 16 million s.
_BITS, _LOWEST, _POWERS = 7, -40, 64
PARTS = 1 << _BITS
#: Bins of gaps; the first one holds those of 0 too, tokens that come together.
BINS = PARTS * _POWERS
_SHIFT = 52 - _BITS
#: Bit pattern of the lowest power of two, shifted: 1023 is the exponent of 1.
_FIRST = (1023 + _LOWEST) * PARTS


@register_jitable
def bin_of(gap: float) -> int:
    """Return the bin of a gap, seconds; what is outside of all bins is in the nearest.

    The bits of a float64 ascend with it: exponent, then fraction. So those in front are a bin.
    """
    found = (int(np.float64(gap).view(np.int64)) >> _SHIFT) - _FIRST
    return min(max(found, 0), BINS - 1)


def _lower(index: int) -> float:
    """Return the lower end of a bin, seconds."""
    power, part = divmod(index, PARTS)
    return math.ldexp(1.0 + part / PARTS, power + _LOWEST)


@dataclass
class Tally:
    """What a run counts.

    Attributes:
        gaps: Gaps between consecutive tokens of a request in each bin, (bins,).
        gap_sum, gap_max: Sum and largest of them, seconds.
        waiting: Seconds in which so many requests waited, (most + 1,).
        used: Seconds in which so many blocks were in use, (blocks + 1,).
    """

    gaps: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    gap_sum: float = 0.0
    gap_max: float = 0.0
    waiting: Array = field(default_factory=lambda: np.zeros(1))
    used: Array = field(default_factory=lambda: np.zeros(1))

    @classmethod
    def together(cls, tallies: Sequence[Tally]) -> Tally:
        """Return what several engines counted: all their gaps, and all their time."""
        waiting, used = ([getattr(t, name) for t in tallies] for name in ("waiting", "used"))
        return cls(
            np.sum([tally.gaps for tally in tallies], axis=0),
            sum(tally.gap_sum for tally in tallies),
            max(tally.gap_max for tally in tallies),
            _sum(waiting),
            _sum(used),
        )

    def add_gap(self, gap: float, count: int = 1) -> None:
        """Count tokens that came so many seconds after the ones before them."""
        self.gaps[bin_of(gap)] += count
        self.gap_sum += gap * count
        self.gap_max = max(self.gap_max, gap)

    def add_step(self, seconds: float, waiting: int, used: int) -> None:
        """Count what a step finds while it lasts."""
        if waiting >= len(self.waiting):
            self.waiting = np.append(self.waiting, np.zeros(waiting + 1))
        self.waiting[waiting] += seconds
        self.used[used] += seconds

    @property
    def sums(self) -> tuple[float, float]:
        """Return requests waiting and blocks in use, times seconds."""
        waiting, used = (float(np.arange(len(s)) @ s) for s in (self.waiting, self.used))
        return waiting, used

    @property
    def gap_mean(self) -> float:
        """Return the mean gap, seconds; NaN where there is none."""
        count = int(self.gaps.sum())
        return self.gap_sum / count if count else math.nan

    def gap_quantile(self, share: float) -> float:
        """Return the gap that a share of all does not exceed, within its bin; NaN without any."""
        count = int(self.gaps.sum())
        if not count:
            return math.nan
        upto = np.cumsum(self.gaps)
        rank = max(1, math.ceil(share * count))
        at = int(np.searchsorted(upto, rank))
        if at == 0:
            return 0.0
        inside = float(rank - (upto[at] - self.gaps[at])) / float(self.gaps[at])
        return min(_lower(at) + inside * (_lower(at + 1) - _lower(at)), self.gap_max)


def _sum(times: Sequence[Array]) -> Array:
    """Return the sum of arrays, the shorter ones with zeros behind."""
    most = max(map(len, times))
    total: Array = np.sum([np.pad(one, (0, most - len(one))) for one in times], axis=0)
    return total


def over_time(seconds: Array, share: float, whole: float) -> float:
    """Return the number that is not exceeded in a share of the time.

    Args:
        seconds: How long it was each number, (most + 1,).
        whole: Seconds in all; it is 0 in what is left of them.
    """
    upto = np.cumsum(seconds) + max(0.0, whole - float(seconds.sum()))
    return float(min(np.searchsorted(upto, share * upto[-1] * (1 - 1e-12)), len(seconds) - 1))


def largest(seconds: Array) -> float:
    """Return the largest number that there was for any time."""
    return float(np.flatnonzero(seconds).max(initial=0))
