"""Planning a step in the compiled serving loop: the twin of `Continuous`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.loops import part
from opbyte.sim.serving.compiled.blocks import found, hold, in_use, know, needed, preempt, take
from opbyte.sim.serving.compiled.fair import count
from opbyte.sim.serving.compiled.gaps import catch_up, miss, miss_behind
from opbyte.sim.serving.compiled.queue import FAIR, RANKED, Queue, first, leave, rank
from opbyte.sim.serving.compiled.state import (
    ASKED,
    AWAY,
    COMING,
    COMPUTED,
    FOUND,
    FREE,
    HELD,
    KNOWN,
    LATE,
    LATER,
    LEAVING,
    MOVES,
    MOVING,
    NONE,
    OWED,
    RUNNING,
    SAMPLED,
    SINCE,
    WAVE,
    Ints,
    State,
    Step,
)
from opbyte.sim.serving.prices.layout import attend


@part
def room(s: State, produced: Ints, r: int, need: int, remember: int) -> int:
    """Let blocks be free or on their way out for a running request.

    Returns:
        How many requests lost theirs, negative if it did.
    """
    lost = 0
    while need > s.counts[FREE] + s.counts[LEAVING]:
        lost += 1
        if preempt(s, produced, remember) == r:
            return -lost
    return lost


@part
def admitted(
    s: State, r: int, target: int, whole: int, budget: int, limits: npt.NDArray[np.int64]
) -> int:
    """Give a waiting request what it starts with; return its tokens, 0 if there is no room.

    One whose blocks are in the tier below gets as many: they are on their way back.

    Args:
        target: Tokens that it must compute before the next one is sampled.
        whole: Tokens that it computes in all.
    """
    chunk, reserve, size, together = limits[2], limits[3], limits[4], limits[6]
    away = s.requests[AWAY, r]
    # The last token is always computed: its logits are needed.
    known = 0 if away else found(s, r, (target - 1) // size)
    computed = s.requests[COMPUTED, r] if away else known * size
    new = min(target - computed, budget)
    if chunk == 0 and new < target - computed:
        return 0
    held = whole if together else computed + new
    most = max(held, target) if reserve else held
    short = needed(s, most, size) - s.counts[FREE]
    # What was found and others hold is not among the free blocks.
    if short > 0 and (short > known or short > in_use(s, r, known)):
        return 0
    hold(s, r, known)
    if not away:
        s.counts[ASKED] += target
        s.counts[FOUND] += computed
    s.requests[COMPUTED, r] = computed
    take(s, r, needed(s, held, size) - known)
    if away:
        s.requests[MOVING, r] = 1
        s.counts[COMING] += 1
        s.moves[s.counts[MOVES]] = -1 - r
        s.counts[MOVES] += 1
        return int(new)
    s.running[s.counts[RUNNING]] = r
    s.counts[RUNNING] += 1
    return int(new)


@part
def note(s: State, f: Step, slot: int, r: int, new: int, target: int, produced: int) -> None:
    """Put tokens of a request into the step that is planned."""
    computed = s.requests[COMPUTED, r]
    if new == 1:
        f.sums[1] += 1
        f.sums[2] += computed + 1
        attend(f.masks, float(computed + 1))
    else:
        f.new[f.sums[0]], f.past[f.sums[0]] = new, computed
        f.sums[0] += 1
    advance(s, f, slot, r, new, target, produced)


@part
def advance(s: State, f: Step, slot: int, r: int, new: int, target: int, produced: int) -> None:
    """Count tokens of a request as computed, and the next one as sampled where it is."""
    computed = s.requests[COMPUTED, r]
    s.requests[COMPUTED, r] = computed + new
    if computed + new == target:
        s.requests[SAMPLED, r] += 1
        sampled = s.requests[SAMPLED, r]
        if sampled > 1:
            f.sums[LATER] += 1
            catch_up(s, f, r)
        if sampled == 1 or sampled == produced:
            f.marked[slot, f.marks[slot]] = r
            f.marks[slot] += 1


@part
def plan_running(
    s: State,
    f: Step,
    slot: int,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    budget: int,
) -> int:
    """Give running requests their next tokens, in order; return what is left of the budget."""
    size, remember = limits[4], limits[5]
    decodes = context = at = owed = 0
    masked = f.masks.shape[0] > 0
    late = s.counts[LATE]
    while budget > 0 and at < s.counts[RUNNING] - s.counts[WAVE]:
        r = s.running[at]
        at += 1
        computed, sampled = s.requests[COMPUTED, r], s.requests[SAMPLED, r]
        new = given[r] + sampled - computed
        if sampled >= produced[r]:
            continue
        if new == 1 and computed % size and sampled and sampled + 1 < produced[r]:
            # A decode step within a block, neither the first nor the last token: nearly all are.
            s.requests[COMPUTED, r], s.requests[SAMPLED, r] = computed + 1, sampled + 1
            if remember and (computed + 1) % size == 0:
                know(s, r, (computed + 1) // size)
            if late:
                if remember and s.times[SINCE, r] >= 0.0:
                    # It may have come with blocks that are not known yet.
                    know(s, r, (computed + 1) // size)
                catch_up(s, f, r)
            decodes += 1
            context += computed + 1
            if masked:
                attend(f.masks, float(computed + 1))
            budget -= 1
            continue
        new = min(new, budget)
        need = needed(s, computed + new, size) - s.requests[HELD, r]
        if need > 0:
            lost = room(s, produced, r, owed + need, remember)
            f.lost[slot] += abs(lost)
            if lost < 0:
                break
            if owed + need > s.counts[FREE]:
                # It waits for blocks that are on their way out; nobody behind it takes them.
                owed += need
                miss(s, r)
                continue
            take(s, r, need)
        note(s, f, slot, r, new, given[r] + sampled, produced[r])
        if remember and (computed + new) // size > s.requests[KNOWN, r]:
            know(s, r, (computed + new) // size)
        budget -= new
    f.sums[1] += decodes
    f.sums[2] += context
    f.sums[LATER] += decodes
    s.counts[OWED] = owed
    miss_behind(s, at, produced)
    return budget


@part
def plan_waiting(
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
    """Admit requests in order; return what is left of the budget, and how many had their turn."""
    most, size, remember = limits[0], limits[4], limits[5]
    if limits[7] == RANKED and budget > 0 and s.counts[RUNNING] + s.counts[COMING] < most:
        rank(s, q, given, size, arrived)
    while budget > 0 and s.counts[RUNNING] + s.counts[COMING] < most:
        r = first(s, q, limits[7], arrived, tried)
        if r == NONE or s.requests[MOVING, r]:
            break
        target = given[r] + s.requests[SAMPLED, r]
        new = admitted(s, r, target, given[r] + produced[r] - 1, budget, limits)
        if new == 0:
            break
        tried = leave(s, q, limits[7], given, r, tried)
        if s.requests[MOVING, r]:
            continue
        if s.times[0, r] < 0.0:
            s.times[0, r] = now
        note(s, f, slot, r, new, target, produced[r])
        if limits[7] == FAIR:
            count(s, q, r)
        if remember and s.requests[COMPUTED, r] // size > s.requests[KNOWN, r]:
            know(s, r, s.requests[COMPUTED, r] // size)
        budget -= new
    return budget, tried
