"""Layered prefill in the compiled serving loop: the twin of `Layered`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.sim.serving.compiled.blocks import know, needed, take
from opbyte.sim.serving.compiled.plan import admitted, advance, room
from opbyte.sim.serving.compiled.queue import Queue, first, leave
from opbyte.sim.serving.compiled.state import (
    COMPUTED,
    GROUP,
    GROUPS,
    HELD,
    KNOWN,
    NONE,
    RUNNING,
    SAMPLED,
    WAVE,
    WAVE_TOKENS,
    Ints,
    State,
    Step,
)


@register_jitable
def plan_wave(
    s: State,
    f: Step,
    q: Queue,
    slot: int,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    budget: int,
    arrived: int,
    tried: int,
    now: float,
) -> tuple[int, int]:
    """Let prompts go on by a group of layers, beside decodes that are planned.

    Args:
        budget: What decodes and the wave under way leave of a step's tokens.
    Returns:
        What decodes, and prompts that come to their last layer, leave of a step's tokens; how many
        requests had their turn.
    """
    budget += s.counts[WAVE_TOKENS]
    if s.counts[WAVE] == 0:
        s.counts[WAVE_TOKENS] = s.counts[GROUPS] = 0
    if s.counts[GROUPS] == 0 and f.lost[slot] == 0:
        tried = begin_wave(
            s, f, q, slot, given, produced, limits, budget, arrived, tried, now
        )  # fmt: skip
    if s.counts[GROUPS] == 0:
        return budget, tried
    f.sums[3], f.sums[4] = s.counts[GROUP], s.counts[GROUPS]
    s.counts[GROUP] += 1
    last, tokens = s.counts[GROUP] == s.counts[GROUPS], s.counts[WAVE_TOKENS]
    for i in range(s.counts[RUNNING] - s.counts[WAVE], s.counts[RUNNING]):
        r = s.running[i]
        target = given[r] + s.requests[SAMPLED, r]
        computed = s.requests[COMPUTED, r]
        new = min(target - computed, tokens)
        tokens -= new
        f.new[f.sums[0]], f.past[f.sums[0]] = new, computed
        f.sums[0] += 1
        if last:
            advance(s, f, slot, r, new, target, produced[r])
            if limits[5] and (computed + new) // limits[4] > s.requests[KNOWN, r]:
                know(s, r, (computed + new) // limits[4])
            budget -= new
    if last:
        r = s.running[s.counts[RUNNING] - 1]
        # The rest of a prompt that was cut stays; it is alone.
        s.counts[WAVE] = given[r] + s.requests[SAMPLED, r] - s.requests[COMPUTED, r] > 1
        s.counts[WAVE_TOKENS] = s.counts[GROUPS] = 0
    return budget, tried


@register_jitable
def begin_wave(
    s: State,
    f: Step,
    q: Queue,
    slot: int,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    budget: int,
    arrived: int,
    tried: int,
    now: float,
) -> int:
    """Begin a wave with so many tokens at most; return how many requests had their turn."""
    size, tokens = limits[4], 0
    if s.counts[WAVE] > 0:
        r = s.running[s.counts[RUNNING] - 1]
        computed = s.requests[COMPUTED, r]
        tokens = min(given[r] + s.requests[SAMPLED, r] - computed, budget)
        if tokens == 0:
            return tried
        need = needed(s, computed + tokens, size) - s.requests[HELD, r]
        lost = room(s, produced, r, need, limits[5])
        f.lost[slot] += abs(lost)
        if lost < 0:
            return tried
        if need > 0:
            take(s, r, need)
    while tokens < budget and s.counts[RUNNING] < limits[0]:
        r = first(s, q, limits[7], arrived, tried)
        if r == NONE:
            break
        target = given[r] + s.requests[SAMPLED, r]
        new = admitted(s, r, target, given[r] + produced[r] - 1, budget - tokens, limits)
        if new == 0:
            break
        tried = leave(s, q, limits[7], given, r, tried)
        if s.times[0, r] < 0.0:
            s.times[0, r] = now
        s.counts[WAVE] += 1
        tokens += new
    if tokens > 0:
        s.counts[WAVE_TOKENS], s.counts[GROUP] = tokens, 0
        s.counts[GROUPS] = s.groups[tokens]
    return tried
