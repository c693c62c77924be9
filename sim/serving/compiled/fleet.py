"""Several compiled loops that advance together: the twin of a `Fleet` whose router sees load.

Before each arrival all loops go on to its time; then its router sees how many requests each has not
answered. The arrays of all loops are stacked, engine by engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.compiled.loop import Served, groups_of, loop_limits, serve_loop
from opbyte.sim.serving.compiled.moves import Link, new_link
from opbyte.sim.serving.compiled.prefixes import Prefixes, at_engine, sharing
from opbyte.sim.serving.compiled.queue import (
    FAIR,
    OF_REQUESTS,
    RANKED,
    Queue,
    new_queue,
    order_of,
)
from opbyte.sim.serving.compiled.routing import Route, choose, new_route
from opbyte.sim.serving.compiled.several import (
    served_at,
    stacked,
    stacked_state,
    state_at,
    steps_at,
    twice,
    wider,
)
from opbyte.sim.serving.compiled.state import DONE, Ints, State, Step, new_state, new_steps
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.prices.step import Prices, check_divided, check_limits, masks_of
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.schedulers.fair import Clients
from opbyte.sim.serving.stamped import compiled


@register_jitable
def _queue(q: Queue, i: int) -> Queue:
    """Return the queue of one engine."""
    return Queue(
        q.heap[i],
        q.key[i],
        q.arrival[i],
        q.tokens[i],
        q.aging[i],
        q.client[i],
        q.level[i],
        q.service[i],
        q.head[i],
        q.tail[i],
        q.waiting[i],
        q.after[i],
        q.place[i],
        q.charged[i],
        q.since[i],
        q.active[i],
        q.where[i],
        q.last[i],
        q.picked[i],
        q.counts[i],
    )


class Asked(NamedTuple):
    """Requests as engines get them, (requests,), or as each has got them, (engines, room).

    Attributes:
        arrival: Seconds.
        given, produced: Tokens of each prompt and of each answer.
    """

    arrival: Array
    given: Ints
    produced: Ints


@register_jitable
def route_loop(
    s: State,
    f: Step,
    q: Queue,
    t: Link,
    route: Route,
    asked: Asked,
    own: Asked,
    ordered: Queue,
    limits: npt.NDArray[np.int64],
    table: Any,
    busy: Array,
    drawn: Array,
    replica: Ints,
    counts: npt.NDArray[np.int64],
    first: int,
) -> int:
    """Share out requests from the first one on, and serve them.

    Args:
        s, f, q: Of all engines; their arrays have room for so many requests each.
        t: Of every engine: they do not swap.
        own: Filled here.
        ordered: A queue that knows of all requests what orders need.
        busy, drawn: As for `serve_loop`, (engines, ..).
        replica: Engine of each request, filled here, (requests,).
        counts: Requests of each engine, (engines,).
    Returns:
        The first request for which an engine may have no room; their number once all are served.
    """
    n = asked.arrival.shape[0]
    engines, room = own.arrival.shape
    for r in range(first, n + 1):
        until, full = asked.arrival[r] if r < n else np.inf, False
        for i in range(engines):
            of = counts[i]
            if s.place[i, DONE] < of:
                serve_loop(
                    state_at(s, i),
                    steps_at(f, i),
                    _queue(q, i),
                    t,
                    own.arrival[i, :of],
                    own.given[i, :of],
                    own.produced[i, :of],
                    limits,
                    table,
                    busy[i],
                    drawn[i],
                    until,
                )
            route.outstanding[i] = of - s.place[i, DONE]
            full = full or of == room
        if r == n:
            break
        if full:
            return r
        best = choose(route, s.prefixes, r)
        at = counts[best]
        own.arrival[best, at] = asked.arrival[r]
        own.given[best, at], own.produced[best, at] = asked.given[r], asked.produced[r]
        if limits[7] == RANKED:
            q.arrival[best, at], q.tokens[best, at] = ordered.arrival[r], ordered.tokens[r]
        if limits[7] == FAIR:
            q.client[best, at] = ordered.client[r]
        if sharing(s.prefixes):
            at_engine(s.prefixes, best).row[at] = r
        replica[r] = best
        counts[best] += 1
    return int(n)


@dataclass(frozen=True)
class Routed:
    """What happened.

    Attributes:
        replica: Engine of each request, (requests,).
        engines: What each engine did, with its own requests alone.
    """

    replica: Ints
    engines: tuple[Served, ...]


def route_compiled(
    arrival: Array,
    given: npt.NDArray[np.int64],
    produced: npt.NDArray[np.int64],
    limits: Limits,
    prices: Prices,
    *,
    engines: int,
    blocks: int,
    block_tokens: int,
    remember: bool = True,
    depth: int = 1,
    rows: int = 20_000,
    order: str = "continuous",
    clients: Clients | None = None,
    growth: Sequence[Growth] = (),
    prefixes: Prefixes | None = None,
    affine: bool = False,
    slack: int = 0,
    room: int = 0,
    plain: bool = False,
) -> Routed:
    """Serve requests by several engines, each request by whoever has fewest of them.

    Args:
        arrival, given, produced, blocks, block_tokens, remember, growth, depth, rows, order,
            clients, prefixes, plain: As for `serve_compiled`; blocks and rows of each engine.
        affine, slack: Where prompts share prefixes they go where the longest part of them went,
            unless that engine has so many requests more than the emptiest: `PrefixAffinity`.
        room: Requests of an engine that there is room for at first.
    """
    check_limits(prices, limits.max_batched_tokens, limits.max_sequences)
    check_divided(prices, needed=limits.layered)
    n, shared = len(arrival), prefixes is not None
    room = room or -(-n * 5 // (4 * engines)) + 16
    one = new_state(
        room, blocks, limits.max_sequences, rows, groups=groups_of(limits), growth=growth,
        prefixes=prefixes,
    )  # fmt: skip
    state = stacked_state(one, engines)
    masks = masks_of(prices)
    steps = Step(*stacked(new_steps(depth, limits.max_sequences, masks), engines))
    # One table prices the steps of all engines, one after the other.
    steps = steps._replace(masks=masks)
    ordered = new_queue(order, arrival, given, limits, clients, shared=shared)
    queue = Queue(*stacked(_with_room(ordered, room), engines))
    asked = Asked(np.array(arrival, np.float64), given.astype(np.int32), produced.astype(np.int32))
    own = Asked(*(np.zeros((engines, room), column.dtype) for column in asked))
    columns = len(prices.resources) + len(TRAFFIC)
    busy, drawn = np.zeros((engines, columns)), np.zeros((engines, 2))
    replica, counts = np.zeros(n, np.int32), np.zeros(engines, np.int64)
    link = new_link(0, None, block_tokens)
    route = new_route(engines, one.prefixes, affine=affine, slack=slack)
    numbers = loop_limits(
        limits, block_tokens, remember=remember, order=order_of(order, shared=shared)
    )
    run: Any = route_loop if plain else compiled(route_loop)
    first = 0
    while True:
        first = run(
            state, steps, queue, link, route, asked, own, ordered, numbers, prices.table, busy,
            drawn, replica, counts, first,
        )  # fmt: skip
        if first == n:
            break
        state, own = wider(state), Asked(*(twice(column, 0) for column in own))
        queue = queue._replace(**{n: twice(getattr(queue, n), 0) for n in _needed(ordered)})
    return Routed(
        replica,
        tuple(served_at(state, i, int(counts[i]), busy[i], drawn[i], link) for i in range(engines)),
    )


def _needed(q: Queue) -> list[str]:
    """Return the columns of requests that a queue's order needs."""
    return [name for name in OF_REQUESTS if len(getattr(q, name)) > 1]


def _with_room(q: Queue, room: int) -> Queue:
    """Return a queue that knows nothing of its requests, with room for so many."""
    return q._replace(**{n: np.zeros(room, getattr(q, n).dtype) for n in _needed(q)})
