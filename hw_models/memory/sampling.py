"""Exact runs piece by piece, and sampled ones: a prefix until it has settled stands for the rest.

A stream is cut into windows. It has settled when the ticks per request of the last windows agree;
that it stays so is tested at other places of the stream, each on a fresh channel. Where either test
fails the stream is not sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

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

__all__ = ["exact", "sampled"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Piece = Callable[[int, int], Ints]

_AT_ONCE = 1 << 20
#: Requests of a window at least; refresh periods that it covers; windows that must agree, and that
#: are tried at most; places that are tested; how well windows and places must agree.
_WINDOW, _PERIODS, _AGREE, _MOST, _PLACES = 1 << 11, 4, 3, 24, (0.31, 0.67, 0.97)
_TOLERANCE, _PLACE_TOLERANCE = 0.01, 0.03


def exact(
    standard: Standard, numbers: Ints, piece: Piece, count: int, drain: bool = False
) -> tuple[Floats, int, bool]:
    """Simulate all requests; return the counts, how many were simulated, whether it was drained.

    A stream of which nothing has been served when its last request is accepted is drained anyway.
    """
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    replay = Replay(standard, numbers)
    done = np.zeros(0)
    for start in range(0, count, _AT_ONCE):
        done = replay.take(piece(start, min(count, start + _AT_ONCE))).astype(float)
    if drain or not done[[READS, WRITES]].any():
        return replay.drain().astype(float), count, True
    return done, count, False


def sampled(
    standard: Standard, numbers: Ints, piece: Piece, count: int
) -> tuple[Floats, int] | None:
    """Simulate until the stream has settled; None where it has not, or is too short to gain.

    The counts of the rest are those of the windows behind the first one, scaled.
    """
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    window = _window(standard, numbers, piece, count)
    if count < 4 * (_AGREE + 1 + len(_PLACES)) * window:
        return None
    replay = Replay(standard, numbers)
    seen: list[Floats] = []
    for start in range(0, min(count, _MOST * window), window):
        seen.append(replay.take(piece(start, start + window)).astype(float))
        steps = [_per_request(a, b) for a, b in pairwise(seen)]
        if len(steps) >= _AGREE and _alike(np.array(steps[-_AGREE:]), _TOLERANCE):
            settled = np.mean(steps[-_AGREE:], axis=0)
            if not _same_elsewhere(standard, numbers, piece, count, window, settled):
                return None
            first, last = seen[-1 - _AGREE], seen[-1]
            rate = (last - first) / (last[ACCEPTED] - first[ACCEPTED])
            return last + rate * (count - last[ACCEPTED]), int(last[ACCEPTED])
    return None


def _window(standard: Standard, numbers: Ints, piece: Piece, count: int) -> int:
    """Return how many requests cover a few whole refresh periods.

    A window that held now one refresh more, now one less, would never agree with the next one.
    """
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    replay, taken, ticks = Replay(standard, numbers), 0, 0
    period = int(max(numbers[T_REFI], numbers[T_REFI_BANK]))
    while taken < count and (taken < _WINDOW or ticks < _PERIODS * period):
        step = min(count - taken, _WINDOW)
        ticks = int(replay.take(piece(taken, taken + step))[TICKS])
        taken += step
    if period == 0 or ticks == 0:
        return taken
    periods = max(1, round(ticks / period))
    return max(1, round(periods * period * taken / ticks))


def _per_request(before: Floats, after: Floats) -> Floats:
    """Return ticks and latency per request of one window."""
    step = after - before
    per: Floats = step[[TICKS, LATENCY]] / step[ACCEPTED]
    return per


def _alike(values: Floats, tolerance: float) -> bool:
    middle = values.mean(axis=0)
    far = np.abs(values - middle).max(axis=0)
    return bool((far <= tolerance * np.maximum(middle, 1e-12) * np.array([1.0, 3.0])).all())


def _same_elsewhere(
    standard: Standard, numbers: Ints, piece: Piece, count: int, window: int, settled: Floats
) -> bool:
    from opbyte.hw_models.memory.dram_kernel.replay import Replay

    for place in _PLACES:
        start = int(place * (count - 2 * window))
        replay = Replay(standard, numbers)
        warm = replay.take(piece(start, start + window // 2)).astype(float)
        done = replay.take(piece(start + window // 2, start + window + window // 2)).astype(float)
        if not _alike(np.array([settled, _per_request(warm, done)]), _PLACE_TOLERANCE):
            return False
    return True
