"""Continuous batching as one compiled loop over arrays: the twin of `Continuous` in an `Engine`.

The same decisions in the same order, so the same times: `tests/unit/test_serving_twin.py`. Blocks
form linked lists: the queue of free ones, and from each block of a request to the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.step_prices import Prices, check_limits, step_cost
from opbyte.sim.serving.step_table import source_stamp

Ints = npt.NDArray[np.int32]

#: Rows of the state of requests.
COMPUTED, SAMPLED, HELD, LAST, KNOWN, PREEMPTED = range(6)
#: Rows of the blocks: neighbours in the queue of free ones (its ends are the entry behind the last
#: block), the block before it in its request, and which block of which request it remembers.
NEXT, BEFORE, CHAIN, OWNER, NUMBER = range(5)
#: Entries of the counters.
FREE, RUNNING, STACKED, STEPS, TOKENS, EVERY = range(6)
#: Columns of the series.
SERIES = ("end_s", "tokens", "running", "waiting", "free", "preempted")
NONE = -1
#: Most steps that are run on at once.
MOST_STEPS = 2**20


class State(NamedTuple):
    """What the loop works on.

    Attributes:
        requests: By row as above, (6, requests).
        blocks: By row as above, (5, blocks + 1).
        running: Requests that hold blocks, in the order of admission, (max_sequences,).
        stack: Preempted requests, the one that is tried first on top, (max_sequences,).
        counts: Counters, (6,).
        times: Scheduled, first token, last token, seconds, (3, requests).
        series: What every n-th step found when it ended, (6, rows).
    """

    requests: Ints
    blocks: Ints
    running: Ints
    stack: Ints
    counts: npt.NDArray[np.int64]
    times: Array
    series: Array


@register_jitable
def _unlink(s: State, block: int) -> None:
    before, after = s.blocks[BEFORE, block], s.blocks[NEXT, block]
    s.blocks[NEXT, before], s.blocks[BEFORE, after] = after, before
    s.counts[FREE] -= 1


@register_jitable
def _give(s: State, r: int, remember: int) -> None:
    """Let go of a request's blocks, the last one first; they keep what they hold if it returns."""
    end = s.blocks.shape[1] - 1
    block = s.requests[LAST, r]
    while block != NONE:
        tail = s.blocks[BEFORE, end]
        s.blocks[NEXT, tail], s.blocks[BEFORE, block] = block, tail
        s.blocks[NEXT, block], s.blocks[BEFORE, end] = end, block
        s.counts[FREE] += 1
        if not remember:
            s.blocks[OWNER, block] = NONE
        elif s.blocks[OWNER, block] == NONE and s.requests[LAST, r] == block:
            # Not full: the one before it is the last that can be found again.
            s.requests[LAST, r] = s.blocks[CHAIN, block]
        block = s.blocks[CHAIN, block]
    s.requests[HELD, r] = 0
    if not remember:
        s.requests[LAST, r], s.requests[KNOWN, r] = NONE, 0


@register_jitable
def _take(s: State, r: int, count: int) -> None:
    """Give a request blocks from the front of the queue; who remembered them forgets."""
    end = s.blocks.shape[1] - 1
    for _ in range(count):
        block = s.blocks[NEXT, end]
        _unlink(s, block)
        owner = s.blocks[OWNER, block]
        if owner != NONE:
            # The blocks of a sequence leave from its end.
            s.requests[KNOWN, owner] = s.blocks[NUMBER, block]
            s.requests[LAST, owner] = s.blocks[CHAIN, block]
            s.blocks[OWNER, block] = NONE
        s.blocks[CHAIN, block] = s.requests[LAST, r]
        s.requests[LAST, r] = block
        s.requests[HELD, r] += 1


@register_jitable
def _know(s: State, r: int, full: int) -> None:
    """Note that a request's leading blocks are full; they can be found again."""
    block = s.requests[LAST, r]
    number = s.requests[HELD, r] - 1
    while number >= s.requests[KNOWN, r]:
        if number < full:
            s.blocks[OWNER, block], s.blocks[NUMBER, block] = r, number
        block = s.blocks[CHAIN, block]
        number -= 1
    s.requests[KNOWN, r] = full


@register_jitable
def _preempt(s: State, produced: Ints, remember: int) -> int:
    """Take the blocks of the request that was admitted last; return it."""
    s.counts[RUNNING] -= 1
    victim = s.running[s.counts[RUNNING]]
    s.requests[COMPUTED, victim] = 0
    s.requests[PREEMPTED, victim] += 1
    if s.requests[SAMPLED, victim] < produced[victim]:
        _give(s, victim, remember)
        s.stack[s.counts[STACKED]] = victim
        s.counts[STACKED] += 1
    else:
        # Its last token is under way: it will not come back.
        _give(s, victim, 0)
    return int(victim)


@register_jitable
def _finish(s: State, r: int) -> None:
    """Forget a request whose last token is there."""
    if s.requests[HELD, r] == 0:
        return
    at = 0
    while s.running[at] != r:
        at += 1
    s.counts[RUNNING] -= 1
    for i in range(at, s.counts[RUNNING]):
        s.running[i] = s.running[i + 1]
    _give(s, r, 0)


class Step(NamedTuple):
    """Steps that are planned or under way, each a column of a ring, and room for the next one.

    Attributes:
        end: Seconds, (depth,).
        tokens, lost, marks: Tokens, requests that lost blocks, and entries of `marked`, (depth,).
        marked: Requests that get their first or last token from it, (depth, 2 * max_sequences).
        new, past: Pieces of prompts of the step that is planned, (max_sequences,).
        sums: Pieces, decodes and their context of the step that is planned, (3,).
    """

    end: Array
    tokens: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]
    marks: npt.NDArray[np.int64]
    marked: Ints
    new: Array
    past: Array
    sums: npt.NDArray[np.int64]


@register_jitable
def _room(s: State, produced: Ints, r: int, need: int, remember: int) -> int:
    """Give a running request blocks; return how many requests lost theirs, negative if it did."""
    lost = 0
    while need > s.counts[FREE]:
        lost += 1
        if _preempt(s, produced, remember) == r:
            return -lost
    if need > 0:
        _take(s, r, need)
    return lost


@register_jitable
def _admitted(
    s: State, r: int, target: int, whole: int, budget: int, limits: npt.NDArray[np.int64]
) -> int:
    """Give a waiting request what it starts with; return its tokens, 0 if there is no room.

    Args:
        target: Tokens that it must compute before the next one is sampled.
        whole: Tokens that it computes in all.
    """
    chunk, reserve, size, together = limits[2], limits[3], limits[4], limits[6]
    found = s.requests[KNOWN, r]
    computed = found * size
    new = min(target - computed, budget)
    if chunk == 0 and new < target - computed:
        return 0
    held = whole if together else computed + new
    most = max(held, target) if reserve else held
    if (most + size - 1) // size > s.counts[FREE]:
        return 0
    block = s.requests[LAST, r]
    for _ in range(found):
        _unlink(s, block)
        block = s.blocks[CHAIN, block]
    s.requests[HELD, r], s.requests[COMPUTED, r] = found, computed
    _take(s, r, (held + size - 1) // size - found)
    s.running[s.counts[RUNNING]] = r
    s.counts[RUNNING] += 1
    return int(new)


@register_jitable
def _note(s: State, f: Step, slot: int, r: int, new: int, target: int, produced: int) -> None:
    """Put tokens of a request into the step that is planned."""
    computed = s.requests[COMPUTED, r]
    s.requests[COMPUTED, r] = computed + new
    if new == 1:
        f.sums[1] += 1
        f.sums[2] += computed + 1
    else:
        f.new[f.sums[0]], f.past[f.sums[0]] = new, computed
        f.sums[0] += 1
    if computed + new == target:
        s.requests[SAMPLED, r] += 1
        sampled = s.requests[SAMPLED, r]
        if sampled == 1 or sampled == produced:
            f.marked[slot, f.marks[slot]] = r
            f.marks[slot] += 1


@register_jitable
def _plan_running(
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
    decodes = context = at = 0
    while budget > 0 and at < s.counts[RUNNING]:
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
                _know(s, r, (computed + 1) // size)
            decodes += 1
            context += computed + 1
            budget -= 1
            continue
        new = min(new, budget)
        lost = _room(
            s, produced, r, (computed + new + size - 1) // size - s.requests[HELD, r], remember
        )
        f.lost[slot] += abs(lost)
        if lost < 0:
            break
        _note(s, f, slot, r, new, given[r] + sampled, produced[r])
        if remember and (computed + new) // size > s.requests[KNOWN, r]:
            _know(s, r, (computed + new) // size)
        budget -= new
    f.sums[1] += decodes
    f.sums[2] += context
    return budget


@register_jitable
def _plan_waiting(
    s: State,
    f: Step,
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
    while budget > 0 and s.counts[RUNNING] < most:
        stacked = s.counts[STACKED]
        if stacked == 0 and tried >= arrived:
            break
        r = s.stack[stacked - 1] if stacked else tried
        target = given[r] + s.requests[SAMPLED, r]
        new = _admitted(s, r, target, given[r] + produced[r] - 1, budget, limits)
        if new == 0:
            break
        if stacked:
            s.counts[STACKED] -= 1
        else:
            tried += 1
            s.times[0, r] = now
        _note(s, f, slot, r, new, target, produced[r])
        if remember and s.requests[COMPUTED, r] // size > s.requests[KNOWN, r]:
            _know(s, r, s.requests[COMPUTED, r] // size)
        budget -= new
    return budget, tried


@register_jitable
def _calm_steps(s: State, given: Ints, produced: Ints, size: int) -> int:
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
            whole = (s.requests[COMPUTED, r] + steps + size - 1) // size
            need += max(0, whole - s.requests[HELD, r])
        if need <= s.counts[FREE]:
            break
        steps //= 2
    return steps


@register_jitable
def _decode_on(
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
) -> tuple[int, int]:
    """End and plan steps in which everyone who runs decodes and nobody starts or ends.

    It goes on until somebody is about to get a last token, or an arrival could be admitted.

    Returns:
        The slot of the step that ends next, and how many requests have arrived.
    """
    depth, n, size, remember = f.end.shape[0], arrival.shape[0], limits[4], limits[5]
    running, context = s.counts[RUNNING], f.sums[2]
    # Whoever waits was refused by the last plan, and the free blocks only get fewer.
    queue = s.counts[STACKED] > 0 or tried < arrived or running >= limits[0] or limits[6] > 0
    free_at = f.end[(head + depth - 1) % depth]
    for _ in range(_calm_steps(s, given, produced, size)):
        now = f.end[head]
        if arrived < n and arrival[arrived] <= now:
            if not queue:
                break
            while arrived < n and arrival[arrived] <= now:
                arrived += 1
        _record(s, f, head, arrived - tried)
        for i in range(running):
            r = s.running[i]
            computed = s.requests[COMPUTED, r]
            if computed % size == 0:
                if remember:
                    _know(s, r, computed // size)
                if s.requests[HELD, r] * size <= computed:
                    _take(s, r, 1)
            s.requests[COMPUTED, r] = computed + 1
            s.requests[SAMPLED, r] += 1
        context += running
        seconds, joules = step_cost(table, f.new, f.past, 0, float(running), float(context), busy)
        free_at = max(now, free_at) + seconds
        _weigh(s, seconds, joules, arrived - tried, drawn)
        f.end[head] = free_at
        head = (head + 1) % depth
    f.sums[2] = context
    if remember:
        for i in range(running):
            r = s.running[i]
            full = s.requests[COMPUTED, r] // size
            if full > s.requests[KNOWN, r]:
                _know(s, r, full)
    return head, arrived


@register_jitable
def _record(s: State, f: Step, slot: int, waiting: int) -> None:
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
        for i in range((rows + 1) // 2):
            s.series[:, i] = s.series[:, 2 * i]
        s.counts[EVERY] *= 2
        if steps % s.counts[EVERY]:
            return
        row = steps // s.counts[EVERY]
    s.series[0, row], s.series[1, row] = f.end[slot], f.tokens[slot]
    s.series[2, row] = s.counts[RUNNING]
    s.series[3, row] = waiting + s.counts[STACKED]
    s.series[4, row], s.series[5, row] = s.counts[FREE], f.lost[slot]


@register_jitable
def _weigh(s: State, seconds: float, joules: float, waiting: int, drawn: Array) -> None:
    """Add a planned step to the joules, and what it finds to the means."""
    drawn[0] += joules
    drawn[1] += seconds * s.counts[RUNNING]
    drawn[2] += seconds * (waiting + s.counts[STACKED])
    drawn[3] += seconds * (s.blocks.shape[1] - 1 - s.counts[FREE])


@register_jitable
def _end(s: State, f: Step, slot: int, produced: Ints, waiting: int) -> int:
    """Hand out the tokens of a step; return how many requests are done."""
    now, done = f.end[slot], 0
    for i in range(f.marks[slot]):
        r = f.marked[slot, i]
        if s.times[1, r] < 0.0:
            s.times[1, r] = now
            if produced[r] > 1:
                continue
        s.times[2, r] = now
        _finish(s, r)
        done += 1
    _record(s, f, slot, waiting)
    return done


@register_jitable
def serve_loop(
    s: State,
    f: Step,
    arrival: Array,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    table: Any,
    busy: Array,
    drawn: Array,
) -> None:
    """Serve all requests; times, series and counters are set in the state.

    Args:
        arrival: Seconds, ascending, (requests,).
        given, produced: Tokens of each prompt and of each answer, (requests,).
        limits: Sequences, tokens of a step, chunks (0 or 1), reserve (0 or 1), tokens of a block,
            remember (0 or 1), together (0 or 1).
        table: Prices, see `step_cost`.
        busy: Busy seconds of each resource, added up, (resources,).
        drawn: Joules, and requests running and waiting and blocks in use times seconds, (4,).
    """
    n, depth = arrival.shape[0], f.end.shape[0]
    head = flying = arrived = tried = done = calm = 0
    now = free_at = 0.0
    while done < n:
        while arrived < n and arrival[arrived] <= now:
            arrived += 1
        while flying < depth:
            slot = (head + flying) % depth
            f.sums[:] = 0
            f.marks[slot] = f.lost[slot] = 0
            before = s.counts[RUNNING]
            closed = limits[6] > 0 and s.counts[RUNNING] > 0
            budget = _plan_running(s, f, slot, given, produced, limits, limits[1])
            if f.lost[slot] == 0 and not closed:
                # Nobody is admitted by a step for which somebody lost blocks.
                budget, tried = _plan_waiting(
                    s, f, slot, given, produced, limits, budget, arrived, tried, now
                )
            f.tokens[slot] = limits[1] - budget
            if budget == limits[1]:
                break
            pieces, decodes, context = f.sums
            seconds, joules = step_cost(
                table, f.new, f.past, pieces, float(decodes), float(context), busy
            )
            free_at = max(now, free_at) + seconds
            _weigh(s, seconds, joules, arrived - tried, drawn)
            f.end[slot] = free_at
            flying += 1
            # Everyone who runs decodes, and nobody began, lost blocks or gets an end of his answer.
            same = pieces == 0 and f.marks[slot] == 0 and f.lost[slot] == 0
            calm = calm + 1 if same and before == s.counts[RUNNING] == decodes else 0
        if calm >= depth and flying == depth:
            head, arrived = _decode_on(
                s,
                f,
                given,
                produced,
                arrival,
                limits,
                table,
                busy,
                drawn,
                head,
                arrived,
                tried,
            )
            free_at, calm = f.end[(head + depth - 1) % depth], 0
        if flying < depth and arrived < n and (not flying or arrival[arrived] <= f.end[head]):
            # Room for another step: what arrives is planned at once.
            now = arrival[arrived]
            continue
        if not flying:
            raise RuntimeError("requests wait that no step can take")
        now = f.end[head]
        while arrived < n and arrival[arrived] <= now:
            arrived += 1
        done += _end(s, f, head, produced, arrived - tried)
        head = (head + 1) % depth
        flying -= 1


@cache
def compiled() -> Any:
    """Return `serve_loop` compiled."""
    stamp = source_stamp()

    def of_source(
        s: State,
        f: Step,
        arrival: Array,
        given: Ints,
        produced: Ints,
        limits: npt.NDArray[np.int64],
        table: Any,
        busy: Array,
        drawn: Array,
    ) -> None:
        if stamp >= 0:
            serve_loop(s, f, arrival, given, produced, limits, table, busy, drawn)

    return numba.njit(cache=True, error_model="numpy")(of_source)


@dataclass(frozen=True)
class Served:
    """What happened.

    Attributes:
        times: Scheduled, first token, last token, seconds, (3, requests).
        preempted: How often each request lost its blocks, (requests,).
        busy: Busy seconds of each resource, (resources,).
        joules: Of all steps, NaN where prices have none.
        means: Requests running and waiting and blocks in use, times seconds of steps, (3,).
        series: Columns of `SERIES`, (6, rows).
        steps, tokens: How many in all.
    """

    times: Array
    preempted: Ints
    busy: Array
    joules: float
    means: Array
    series: Array
    steps: int
    tokens: int


def serve_compiled(
    arrival: Array,
    given: npt.NDArray[np.int64],
    produced: npt.NDArray[np.int64],
    limits: Limits,
    prices: Prices,
    *,
    blocks: int,
    block_tokens: int,
    remember: bool = True,
    depth: int = 1,
    rows: int = 20_000,
    plain: bool = False,
) -> Served:
    """Serve requests by continuous batching.

    Args:
        arrival: Seconds, ascending, (requests,).
        given, produced: Tokens of each prompt and of each answer, (requests,). Each of them can
            be served, see `Scheduler.refusal`.
        blocks, block_tokens, remember: As for `BlockPool`.
        depth: Steps that are planned or under way at once.
        rows: Most rows of the series; with more steps a row stands for several.
        plain: Run the loop uncompiled.
    """
    check_limits(prices, limits.max_batched_tokens, limits.max_sequences)
    state = _state(len(arrival), blocks, limits.max_sequences, rows)
    busy, drawn = np.zeros(len(prices.resources)), np.zeros(4)
    numbers = np.array(
        [
            limits.max_sequences, limits.max_batched_tokens, limits.chunk, limits.reserve,
            block_tokens, remember, limits.together,
        ],
        np.int64,
    )  # fmt: skip
    (serve_loop if plain else compiled())(
        state, _steps(depth, limits.max_sequences), np.asarray(arrival, np.float64),
        given.astype(np.int32), produced.astype(np.int32), numbers, prices.table, busy, drawn,
    )  # fmt: skip
    steps = int(state.counts[STEPS])
    return Served(
        state.times,
        state.requests[PREEMPTED],
        busy,
        float(drawn[0]),
        drawn[1:],
        state.series[:, : -(-steps // int(state.counts[EVERY]))],
        steps,
        int(state.counts[TOKENS]),
    )


def _state(requests: int, blocks: int, sequences: int, rows: int) -> State:
    of_requests = np.zeros((6, requests), np.int32)
    of_requests[LAST] = NONE
    of_blocks = np.full((5, blocks + 1), NONE, np.int32)
    of_blocks[NEXT] = np.roll(np.arange(blocks + 1), -1)
    of_blocks[BEFORE] = np.roll(np.arange(blocks + 1), 1)
    counts = np.zeros(6, np.int64)
    counts[FREE], counts[EVERY] = blocks, 1
    return State(
        of_requests,
        of_blocks,
        np.zeros(sequences, np.int32),
        np.zeros(sequences + 1, np.int32),
        counts,
        np.full((3, requests), -1.0),
        np.zeros((len(SERIES), rows)),
    )


def _steps(depth: int, sequences: int) -> Step:
    return Step(
        end=np.zeros(depth),
        tokens=np.zeros(depth, np.int64),
        lost=np.zeros(depth, np.int64),
        marks=np.zeros(depth, np.int64),
        marked=np.zeros((depth, 2 * sequences), np.int32),
        new=np.zeros(sequences),
        past=np.zeros(sequences),
        sums=np.zeros(3, np.int64),
    )
