"""Continuous batching as one compiled loop over arrays: the twin of `Continuous` in an `Engine`.

The same decisions in the same order, so the same times: `tests/unit/test_serving_twin.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.loops import part
from opbyte.core.ops import Array
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.compiled.gaps import count_gaps, tally_of
from opbyte.sim.serving.compiled.moves import (
    BUSY_S,
    CARRIED,
    PENDING,
    Link,
    arrive,
    new_link,
    send,
    soonest,
)
from opbyte.sim.serving.compiled.next_step import plan_step
from opbyte.sim.serving.compiled.prefixes import Prefixes
from opbyte.sim.serving.compiled.queue import FAIR, FCFS, Queue, new_queue, order_of
from opbyte.sim.serving.compiled.state import (
    ASKED,
    EVERY,
    FOUND,
    FREE_AT,
    MOVES,
    NOW,
    PREEMPTED,
    RUNNING,
    STEPS,
    TOKENS,
    Ints,
    State,
    Step,
    new_state,
    new_steps,
)
from opbyte.sim.serving.compiled.steps import decode_on, end_step, weigh
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.prices.step import Prices, check_divided, check_limits, masks_of, step_cost
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.schedulers.fair import Clients
from opbyte.sim.serving.stamped import compiled
from opbyte.sim.serving.tally import Tally
from opbyte.sim.serving.transfers import LinkPrice


@part
def fill(
    s: State,
    f: Step,
    q: Queue,
    t: Link,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    table: Any,
    busy: Array,
    drawn: Array,
    arrived: int,
    tried: int,
    now: float,
    free_at: float,
    head: int,
    flying: int,
    calm: int,
) -> tuple[int, int, int, float]:
    """Plan as many steps as may be under way.

    Args:
        arrived, tried, head, flying, calm: As in `State.place`.
        free_at: When the steps under way have ended, seconds.
    Returns:
        Requests that had their turn, steps under way, calm steps, and when all have ended.
    """
    depth = f.end.shape[0]
    while flying < depth:
        slot = (head + flying) % depth
        before = s.counts[RUNNING]
        tried = plan_step(s, f, q, slot, given, produced, limits, arrived, tried, now)
        if s.counts[MOVES]:
            send(s, t, now, free_at)
        pieces, decodes, context = f.sums[0], f.sums[1], f.sums[2]
        if pieces + decodes == 0:
            break
        batch = Batch(
            f.new, f.past, pieces, float(decodes), float(context), 0.0, f.sums[3], f.sums[4]
        )
        seconds, joules = step_cost(table, batch, busy)
        free_at = max(now, free_at) + seconds
        count_gaps(s, f, free_at)
        weigh(s, seconds, joules, arrived - tried, drawn)
        f.end[slot] = free_at
        flying += 1
        # Everyone who runs decodes, and nobody began, lost blocks or gets an end of his answer.
        same = pieces + f.marks[slot] + f.lost[slot] + t.counts[PENDING] == 0
        calm = calm + 1 if same and before == s.counts[RUNNING] == decodes else 0
    return tried, flying, calm, free_at


@register_jitable
def serve_loop(
    s: State,
    f: Step,
    q: Queue,
    t: Link,
    arrival: Array,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    table: Any,
    busy: Array,
    drawn: Array,
    until: float,
) -> None:
    """Go on to serve requests; times, series and counters are set in the state.

    More requests may arrive, behind the others, before it goes on again.

    Args:
        arrival: Seconds, ascending, (requests,).
        given, produced: Tokens of each prompt and of each answer, (requests,).
        limits: Sequences, tokens of a step, chunks (0 or 1), reserve (0 or 1), tokens of a block,
            remember (0 or 1), together (0 or 1), order of the queue, lead (negative for none).
        table: Prices, see `step_cost`.
        busy: Busy seconds of each resource, added up, and bytes, (resources + TRAFFIC,).
        drawn: Joules, and requests running times seconds, (2,).
        until: Seconds; what happens then or later is left for another call.
    """
    n, depth, order, remember = arrival.shape[0], f.end.shape[0], limits[7], limits[5]
    head, flying, arrived, tried, done, calm = s.place
    now, free_at = s.tally[NOW], s.tally[FREE_AT]
    while done < n:
        soon = soonest(t, arrival, arrived)
        if flying < depth and soon < (f.end[head] if flying else np.inf):
            # Room for another step: with what arrives, or comes back, one is planned at once.
            if soon >= until:
                break
            now = soon
            arrived = arrive(s, t, arrival, arrived, now, remember)
        elif not flying:
            raise RuntimeError("requests wait that no step can take")
        else:
            if f.end[head] >= until:
                break
            now = f.end[head]
            arrived = arrive(s, t, arrival, arrived, now, remember)
            done += end_step(s, f, head, produced, arrived - tried)
            head = (head + 1) % depth
            flying -= 1
        tried, flying, calm, free_at = fill(
            s, f, q, t, given, produced, limits, table, busy, drawn, arrived, tried, now, free_at,
            head, flying, calm,
        )  # fmt: skip
        if calm >= depth and flying == depth and (order != FAIR or tried == arrived):
            head, arrived = decode_on(
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
                until,
            )
            free_at, calm = f.end[(head + depth - 1) % depth], 0
    s.place[:] = head, flying, arrived, tried, done, calm
    s.tally[NOW], s.tally[FREE_AT] = now, free_at


@dataclass(frozen=True)
class Served:
    """What happened.

    Attributes:
        times: Scheduled, first token, last token, seconds, (3, requests).
        preempted: How often each request lost its blocks, (requests,).
        busy: Busy seconds of each resource, (resources,).
        traffic: Bytes of each class of `TRAFFIC` that steps read, NaN where prices have none.
        joules: Of all steps, NaN where prices have none.
        means: Requests running and waiting and blocks in use, times seconds of steps, (3,).
        series: Columns of `SERIES`, (6, rows).
        steps, tokens: How many in all.
        asked, found: Tokens that requests had to compute when they were admitted, and those of
            them that the cache held.
        moved_s: Seconds in which the link to the tier below was busy.
        moved: Blocks that it carried.
        tally: Gaps between tokens, and how long how much was waiting and in use.
    """

    times: Array
    preempted: Ints
    busy: Array
    traffic: Array
    joules: float
    means: Array
    series: Array
    steps: int
    tokens: int
    asked: int
    found: int
    moved_s: float
    moved: int
    tally: Tally

    @classmethod
    def of(cls, state: State, busy: Array, drawn: Array, link: Link) -> Served:
        """Return what a loop that has ended leaves behind."""
        steps, tally = int(state.counts[STEPS]), tally_of(state)
        return cls(
            state.times,
            state.requests[PREEMPTED].copy(),
            busy[: -len(TRAFFIC)],
            busy[-len(TRAFFIC) :],
            float(drawn[0]),
            np.array([drawn[1], *tally.sums]),
            state.series[:, : -(-steps // int(state.counts[EVERY]))],
            steps,
            int(state.counts[TOKENS]),
            int(state.counts[ASKED]),
            int(state.counts[FOUND]),
            float(link.seconds[BUSY_S]),
            int(link.counts[CARRIED]),
            tally,
        )


def loop_limits(
    limits: Limits, block_tokens: int, *, remember: bool, order: int = FCFS
) -> npt.NDArray[np.int64]:
    """Return the limits as `serve_loop` reads them."""
    return np.array(
        [
            limits.max_sequences, limits.max_batched_tokens, limits.chunk, limits.reserve,
            block_tokens, remember, limits.together, order,
            -1 if limits.lead is None else limits.lead,
        ],
        np.int64,
    )  # fmt: skip


def groups_of(limits: Limits) -> Ints:
    """Return the groups of layers of each number of tokens, empty where there are none."""
    tokens = range(limits.max_batched_tokens + 1 if limits.layered else 0)
    return np.array([limits.grouping.of(t) for t in tokens], np.int32)


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
    order: str = "continuous",
    clients: Clients | None = None,
    link: LinkPrice | None = None,
    below: int = 0,
    growth: Sequence[Growth] = (),
    prefixes: Prefixes | None = None,
    plain: bool = False,
) -> Served:
    """Serve requests by continuous batching.

    Args:
        arrival: Seconds, ascending, (requests,).
        given, produced: Tokens of each prompt and of each answer, (requests,). Each of them can
            be served, see `Scheduler.refusal`.
        blocks, block_tokens, remember, growth: As for `BlockPool`.
        depth: Steps that are planned or under way at once.
        rows: Most rows of the series; with more steps a row stands for several.
        order: Scheduler, one of `ORDERS`.
        clients: Who asks, for a fair order; by default one client asks for all.
        link, below: The way to the tier below, and its blocks; preempted requests go there.
        prefixes: What prompts share, where they do: then nothing moves to the tier below.
        plain: Run the loop uncompiled.
    """
    check_limits(prices, limits.max_batched_tokens, limits.max_sequences)
    check_divided(prices, needed=limits.layered)
    below = below if link is not None else 0
    state = new_state(
        len(arrival), blocks, limits.max_sequences, rows, below, groups_of(limits), growth, prefixes
    )
    queue = new_queue(order, arrival, given, limits, clients, shared=prefixes is not None)
    moving = new_link(len(arrival) if below else 0, link, block_tokens)
    busy, drawn = np.zeros(len(prices.resources) + len(TRAFFIC)), np.zeros(2)
    ordered = order_of(order, shared=prefixes is not None)
    numbers = loop_limits(limits, block_tokens, remember=remember, order=ordered)
    (serve_loop if plain else compiled(serve_loop))(
        state, new_steps(depth, limits.max_sequences, masks_of(prices)), queue, moving,
        np.array(arrival, np.float64),
        given.astype(np.int32), produced.astype(np.int32), numbers, prices.table, busy, drawn,
        np.inf,
    )  # fmt: skip
    return Served.of(state, busy, drawn, moving)
