"""The next step in the compiled serving loop: who runs goes on, who waits is admitted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.loops import part
from opbyte.sim.serving.compiled.fair import begin_fair, settle
from opbyte.sim.serving.compiled.layered import plan_wave
from opbyte.sim.serving.compiled.plan import plan_running, plan_waiting
from opbyte.sim.serving.compiled.queue import FAIR, Queue
from opbyte.sim.serving.compiled.state import OWED, RUNNING, WAVE_TOKENS, Ints, State, Step
from opbyte.sim.serving.prices.layout import forget


@part
def plan_step(
    s: State,
    f: Step,
    q: Queue,
    slot: int,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    arrived: int,
    tried: int,
    now: float,
) -> int:
    """Plan a step; return how many requests have had their turn."""
    f.sums[:] = 0
    forget(f.masks)
    f.marks[slot] = f.lost[slot] = switched = 0
    if limits[7] == FAIR:
        switched, tried = begin_fair(s, q, given, produced, limits, arrived, tried)
    closed = limits[6] > 0 and s.counts[RUNNING] > 0
    budget = plan_running(s, f, slot, given, produced, limits, limits[1] - s.counts[WAVE_TOKENS])
    if limits[7] == FAIR:
        tried = settle(s, q, tried)
    if s.groups.shape[0] > 0:
        budget, tried = plan_wave(
            s, f, q, slot, given, produced, limits, budget, arrived, tried, now
        )
    elif f.lost[slot] == 0 and s.counts[OWED] == 0 and not closed:
        # Nobody is admitted by a step for which somebody lost blocks.
        budget, tried = plan_waiting(
            s, f, q, slot, given, produced, limits, budget, arrived, tried, now
        )
    f.lost[slot] += switched
    f.tokens[slot] = limits[1] - budget
    return tried
