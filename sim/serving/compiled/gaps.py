"""Gaps between tokens in the compiled serving loop, counted for all requests of a step at once.

Nearly every token follows one that came out of the step before. Requests for which that does not
hold, since they lost their blocks or a budget ended before them, are noted with their last token.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.loops import part
from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.state import (
    AT_ONCE,
    COME_LATE,
    GAP_MAX,
    GAP_SUM,
    GAPS,
    LATE,
    LATE_FROM,
    LATER,
    PLANNED,
    RUNNING,
    SAMPLED,
    SINCE,
    Ints,
    State,
    Step,
)
from opbyte.sim.serving.tally import Tally, bin_of, largest


@part
def miss(s: State, r: int) -> None:
    """Note that an answer does not go on in the step that is planned."""
    if s.requests[SAMPLED, r] > 0 and s.times[SINCE, r] < 0.0:
        s.times[SINCE, r] = s.tally[PLANNED]
        s.counts[LATE] += 1


@part
def miss_behind(s: State, at: int, produced: Ints) -> None:
    """Note the same of all whom a plan did not come to, from a place among those that run on."""
    for i in range(at, s.counts[RUNNING]):
        if s.requests[SAMPLED, s.running[i]] < produced[s.running[i]]:
            miss(s, s.running[i])


@part
def catch_up(s: State, f: Step, r: int) -> None:
    """Note that an answer goes on in the step that is planned, if it did not in the one before."""
    if s.times[SINCE, r] >= 0.0:
        s.tally[LATE_FROM + f.sums[COME_LATE]] = s.times[SINCE, r]
        f.sums[COME_LATE] += 1
        s.times[SINCE, r] = -1.0
        s.counts[LATE] -= 1


@part
def catch_up_all(s: State, f: Step) -> None:
    """Note that the answer of everyone who runs goes on."""
    if s.counts[LATE]:
        for i in range(s.counts[RUNNING]):
            catch_up(s, f, s.running[i])


@part
def count_gaps(s: State, f: Step, end: float) -> None:
    """Count the gaps before the tokens of the step that is planned, which ends then."""
    tally = s.tally
    gap = end - tally[PLANNED]
    tally[PLANNED] = end
    count = f.sums[LATER] - f.sums[COME_LATE]
    if count:
        _count(tally, gap, count)
    for i in range(f.sums[COME_LATE]):
        _count(tally, end - tally[LATE_FROM + i], 1)
    tally[GAPS] += f.sums[AT_ONCE]


@part
def _count(tally: Array, gap: float, count: int) -> None:
    tally[GAPS + bin_of(gap)] += count
    tally[GAP_SUM] += gap * count
    tally[GAP_MAX] = max(tally[GAP_MAX], gap)


def tally_of(s: State) -> Tally:
    """Return what was counted."""
    used_from = LATE_FROM + len(s.running)
    waiting_from = used_from + s.blocks.shape[1]
    most = int(largest(s.tally[waiting_from:]))
    return Tally(
        s.tally[GAPS:LATE_FROM].astype(np.int64),
        float(s.tally[GAP_SUM]),
        float(s.tally[GAP_MAX]),
        s.tally[waiting_from : waiting_from + most + 1].copy(),
        s.tally[used_from:waiting_from].copy(),
    )
