"""Exact runs piece by piece, and sampled ones: a prefix until it has settled stands for the rest.

A stream is cut into windows. Those behind the first one have settled when the standard error of
their mean is small and their halves agree. That it stays so is tested at other places of the
stream, each on a fresh channel. Where either test fails the stream is not sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from opbyte.hw_models.memory.dram_kernel.setup import (
    ACCEPTED,
    LATENCY,
    READS,
    T_REFI,
    T_REFI_BANK,
    TICKS,
    WRITES,
)  # fmt: skip
from opbyte.hw_models.memory.standards import Standard

if TYPE_CHECKING:
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

__all__ = ["exact", "sampled"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Piece = Callable[[int, int], Ints]

_AT_ONCE = 1 << 20
#: Requests of a window at least; refresh periods that it covers; windows behind the first that are
#: compared at least, and at most; places that are tested.
_WINDOW, _PERIODS, _FEWEST, _MOST, _PLACES = 1 << 11, 2, 4, 160, (0.31, 0.67, 0.97)
#: Largest standard error of the mean of the windows, distance of their first half from the second,
#: standard error at another place, and distance of that place. Latencies may differ more.
_ERROR, _HALVES, _ERROR_THERE, _ELSEWHERE = 0.006, 0.01, 0.012, 0.03
_MORE = np.array([1.0, 3.0])


def exact(
    standard: Standard,
    numbers: Ints,
    piece: Piece,
    count: int,
    drain: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[Floats, int, bool]:
    """Simulate all requests; return the counts, how many were simulated, whether it was drained.

    A stream of which nothing has been served when its last request is accepted is drained anyway.
    """
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    replay = Replay(standard, numbers)
    done = np.zeros(0)
    for start in range(0, count, _AT_ONCE):
        stop = min(count, start + _AT_ONCE)
        done = replay.take(piece(start, stop)).astype(float)
        if progress is not None:
            progress(stop - start)
    if drain or not done[[READS, WRITES]].any():
        return replay.drain().astype(float), count, True
    return done, count, False


def sampled(
    standard: Standard, numbers: Ints, piece: Piece, count: int
) -> tuple[Floats, int] | None:
    """Simulate until the stream has settled; None where it has not, or is too short to gain.

    The counts of the rest are those of the windows behind the first one, scaled.
    """
    replay, done, window = _first_window(standard, numbers, piece, count)
    if count < 4 * (_FEWEST + 2 * len(_PLACES)) * window:
        return None
    seen, at_once = [done], _FEWEST * window
    for start in range(int(done[ACCEPTED]), min(count - at_once, _MOST * window), at_once):
        for codes in np.split(piece(start, start + at_once), _FEWEST):
            seen.append(replay.take(codes).astype(float))
            steps = np.array([_per_request(a, b) for a, b in pairwise(seen)])
            if len(steps) >= _FEWEST and _settled(steps):
                if not _same_elsewhere(standard, numbers, piece, count, window, steps):
                    return None
                first, last = seen[0], seen[-1]
                rate = (last - first) / (last[ACCEPTED] - first[ACCEPTED])
                return last + rate * (count - last[ACCEPTED]), int(last[ACCEPTED])
    return None


def _first_window(
    standard: Standard, numbers: Ints, piece: Piece, count: int
) -> tuple[Replay, Floats, int]:
    """Return a channel behind its first window, its counts, and how many requests a window has.

    It covers whole refresh periods: one that held now one refresh more, now one less, would never
    agree with the next one.
    """
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    replay, taken, done = Replay(standard, numbers), 0, np.zeros(TICKS + 1)
    period = int(max(numbers[T_REFI], numbers[T_REFI_BANK]))
    while taken < count and (taken < _WINDOW or done[TICKS] < _PERIODS * period):
        step = min(count - taken, _WINDOW // 2)
        done = replay.take(piece(taken, taken + step)).astype(float)
        taken += step
    if period == 0 or done[TICKS] == 0:
        return replay, done, taken
    periods = max(1, round(done[TICKS] / period))
    return replay, done, max(1, round(periods * period * taken / done[TICKS]))


def _per_request(before: Floats, after: Floats) -> Floats:
    """Return ticks and latency per request of one window."""
    step = after - before
    per: Floats = step[[TICKS, LATENCY]] / step[ACCEPTED]
    return per


def _settled(steps: Floats) -> bool:
    """Return whether the mean of all windows is known well, and does not move.

    Args:
        steps: Ticks and latency per request, (windows, 2).
    """
    mean, half = steps.mean(axis=0), len(steps) // 2
    error = steps.std(axis=0, ddof=1) / math.sqrt(len(steps))
    moved = steps[:half].mean(axis=0) - steps[-half:].mean(axis=0)
    return _small(error, mean, _ERROR) and _small(moved, mean, _HALVES)


def _small(differences: Floats, values: Floats, tolerance: float) -> bool:
    return bool((np.abs(differences) <= tolerance * np.maximum(values, 1e-12) * _MORE).all())


def _same_elsewhere(
    standard: Standard, numbers: Ints, piece: Piece, count: int, window: int, steps: Floats
) -> bool:
    """Return whether other places agree: the longer ones the more the windows scatter.

    A place that does not agree gets a second look, four times as long.
    """
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    mean, spread = steps.mean(axis=0), steps.std(axis=0, ddof=1)
    times = float((spread / (_ERROR_THERE * np.maximum(mean, 1e-12) * _MORE)).max()) ** 2
    size = window * max(1, math.ceil(times))
    if 5 * len(_PLACES) * size > count:
        return False
    for place in _PLACES:
        start = int(place * (count - window - 4 * size))
        replay, middle = Replay(standard, numbers), start + window // 2
        warm = replay.take(piece(start, middle)).astype(float)
        for stop in (middle + size, middle + 4 * size):
            done = replay.take(piece(middle, stop)).astype(float)
            middle = stop
            if _small(_per_request(warm, done) - mean, mean, _ELSEWHERE):
                break
        else:
            return False
    return True
