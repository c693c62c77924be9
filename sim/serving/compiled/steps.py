"""Steps of the compiled serving loop: they end, are counted, and run on while nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.loops import part
from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.blocks import finish, know, needed, take
from opbyte.sim.serving.compiled.gaps import catch_up_all, count_gaps
from opbyte.sim.serving.compiled.prefixes import sharing
from opbyte.sim.serving.compiled.queue import FCFS, RANKED
from opbyte.sim.serving.compiled.state import (
    COME_LATE,
    COMPUTED,
    EVERY,
    FREE,
    HELD,
    LATE_FROM,
    LATER,
    MOST_STEPS,
    RUNNING,
    SAMPLED,
    STACKED,
    STEPS,
    TOKENS,
    Ints,
    State,
    Step,
)
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import attend
from opbyte.sim.serving.prices.step import step_cost


@part
def calm_steps(s: State, given: Ints, produced: Ints, size: int) -> int:
    """Return how many steps from here on are one token for everyone who runs, and no one's last.

    Only while blocks are left, and none if a prompt is read token by token.
    """
    steps = MOST_STEPS
    for i in range(s.counts[RUNNING]):
        r = s.running[i]
        sampled = s.requests[SAMPLED, r]
        if sampled == 0 or given[r] + sampled - s.requests[COMPUTED, r] != 1:
            return 0
        steps = min(steps, produced[r] - sampled - 1)
    # As many as there are blocks for, in halves: fewer only end the run earlier.
    while steps > 0:
        need = 0
        for i in range(s.counts[RUNNING]):
            r = s.running[i]
            whole = needed(s, s.requests[COMPUTED, r] + steps, size)
            need += max(0, whole - s.requests[HELD, r])
        if need <= s.counts[FREE]:
            break
        steps //= 2
    return steps


@part
def decode_on(
    s: State,
    f: Step,
    given: Ints,
    produced: Ints,
    arrival: Array,
    limits: npt.NDArray[np.int64],
    table: Any,
    busy: Array,
    drawn: Array,
    head: int,
    arrived: int,
    tried: int,
    until: float,
) -> tuple[int, int]:
    """End and plan steps in which everyone who runs decodes and nobody starts or ends.

    It goes on until a time, or somebody is about to get a last token, or an arrival could be
    admitted.

    Returns:
        The slot of the step that ends next, and how many requests have arrived.
    """
    depth, n, size, remember = f.end.shape[0], arrival.shape[0], limits[4], limits[5]
    running, context, masked = s.counts[RUNNING], f.sums[2], f.masks.shape[0] > 0
    # Whoever waits was refused by the last plan, and the free blocks only get fewer.
    # Orders other than that of arrival may try an arrival before them, and fair ones ask who runs.
    queue = s.counts[STACKED] > 0 or running >= limits[0] or limits[6] > 0
    waits = not queue and tried < arrived
    queue = queue or waits if limits[7] == FCFS else queue and limits[7] == RANKED
    if waits and limits[7] == RANKED and sharing(s.prefixes):
        # What the cache forgets may change who is tried first.
        return head, arrived
    free_at = f.end[(head + depth - 1) % depth]
    f.sums[LATER], f.sums[COME_LATE] = running, 0
    for on in range(calm_steps(s, given, produced, size)):
        now = f.end[head]
        if now >= until or (not queue and arrived < n and arrival[arrived] <= now):
            break
        while arrived < n and arrival[arrived] <= now:
            arrived += 1
        record(s, f, head, arrived - tried)
        for i in range(running):
            r = s.running[i]
            computed = s.requests[COMPUTED, r]
            inside = computed % size
            if inside == 0 and needed(s, computed + 1, size) > s.requests[HELD, r]:
                take(s, r, 1)
            if remember and inside == size - 1:
                know(s, r, (computed + 1) // size)
            s.requests[COMPUTED, r] = computed + 1
            s.requests[SAMPLED, r] += 1
            if masked:
                attend(f.masks, float(computed + 1))
        context += running
        if on == 0:
            catch_up_all(s, f)
        batch = Batch(f.new, f.past, 0, float(running), float(context), 0.0, 0, 0)
        seconds, joules = step_cost(table, batch, busy)
        free_at = max(now, free_at) + seconds
        count_gaps(s, f, free_at)
        f.sums[COME_LATE] = 0
        weigh(s, seconds, joules, arrived - tried, drawn)
        f.end[head] = free_at
        head = (head + 1) % depth
    f.sums[2] = context
    return head, arrived


@part
def record(s: State, f: Step, slot: int, waiting: int) -> None:
    """Count a step that has ended, and write its row of the series if it has one.

    A series that is full keeps every second of its rows, and of those to come.
    """
    steps = s.counts[STEPS]
    s.counts[STEPS] += 1
    s.counts[TOKENS] += f.tokens[slot]
    if steps % s.counts[EVERY]:
        return
    row, rows = steps // s.counts[EVERY], s.series.shape[1]
    if row >= rows:
        for column in range(s.series.shape[0]):
            for i in range((rows + 1) // 2):
                s.series[column, i] = s.series[column, 2 * i]
        s.counts[EVERY] *= 2
        if steps % s.counts[EVERY]:
            return
        row = steps // s.counts[EVERY]
    s.series[0, row], s.series[1, row] = f.end[slot], f.tokens[slot]
    s.series[2, row] = s.counts[RUNNING]
    s.series[3, row] = waiting + s.counts[STACKED]
    s.series[4, row], s.series[5, row] = s.counts[FREE], f.lost[slot]


@part
def weigh(s: State, seconds: float, joules: float, waiting: int, drawn: Array) -> None:
    """Add a planned step to the joules, and its seconds to what it finds."""
    drawn[0] += joules
    drawn[1] += seconds * s.counts[RUNNING]
    used_from = LATE_FROM + s.running.shape[0]
    s.tally[used_from + s.blocks.shape[1] - 1 - s.counts[FREE]] += seconds
    s.tally[used_from + s.blocks.shape[1] + waiting + s.counts[STACKED]] += seconds


@part
def end_step(s: State, f: Step, slot: int, produced: Ints, waiting: int) -> int:
    """Hand out the tokens of a step; return how many requests are done."""
    now, done = f.end[slot], 0
    for i in range(f.marks[slot]):
        r = f.marked[slot, i]
        if s.times[1, r] < 0.0:
            s.times[1, r] = now
            if produced[r] > 1:
                continue
        s.times[2, r] = now
        finish(s, r)
        done += 1
    record(s, f, slot, waiting)
    return done
