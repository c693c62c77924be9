"""Several compiled loops that advance together: the twin of a `Fleet` whose router sees load.

Before each arrival all loops go on to its time; the request goes to the one with the fewest
requests that are not answered. The arrays of all loops are stacked, engine by engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.compiled.loop import Served, groups_of, loop_limits, serve_loop
from opbyte.sim.serving.compiled.moves import Link, new_link
from opbyte.sim.serving.compiled.queue import Queue, new_queue
from opbyte.sim.serving.compiled.several import (
    served_at,
    stacked,
    state_at,
    steps_at,
    twice,
    wider,
)
from opbyte.sim.serving.compiled.state import DONE, Ints, State, Step, new_state, new_steps
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.prices.step import Prices, check_divided, check_limits, masks_of
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.stamped import compiled


@register_jitable
def route_loop(
    s: State,
    f: Step,
    q: Queue,
    t: Link,
    arrival: Array,
    given: Ints,
    produced: Ints,
    own_arrival: Array,
    own_given: Ints,
    own_produced: Ints,
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
        s, f: Of all engines; their arrays have room for so many requests each.
        q, t: Of every engine: they order requests by arrival, and do not swap.
        arrival, given, produced: As for `serve_loop`, (requests,).
        own_arrival, own_given, own_produced: The same of each engine, filled here, (engines, room).
        busy, drawn: As for `serve_loop`, (engines, ..).
        replica: Engine of each request, filled here, (requests,).
        counts: Requests of each engine, (engines,).
    Returns:
        The first request for which an engine has no room; their number once all are served.
    """
    n = arrival.shape[0]
    engines, room = own_arrival.shape
    for r in range(first, n + 1):
        until = arrival[r] if r < n else np.inf
        best, least = -1, 0
        for i in range(engines):
            of = counts[i]
            if s.place[i, DONE] < of:
                serve_loop(
                    state_at(s, i),
                    steps_at(f, i),
                    q,
                    t,
                    own_arrival[i, :of],
                    own_given[i, :of],
                    own_produced[i, :of],
                    limits,
                    table,
                    busy[i],
                    drawn[i],
                    until,
                )
            outstanding = of - s.place[i, DONE]
            if best < 0 or outstanding < least:
                best, least = i, outstanding
        if r == n:
            break
        at = counts[best]
        if at == room:
            return r
        own_arrival[best, at] = arrival[r]
        own_given[best, at], own_produced[best, at] = given[r], produced[r]
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
    growth: Sequence[Growth] = (),
    room: int = 0,
    plain: bool = False,
) -> Routed:
    """Serve requests by several engines, each request by whoever has fewest of them.

    Args:
        arrival, given, produced, blocks, block_tokens, remember, growth, depth, rows, plain: As for
            `serve_compiled`; blocks and rows of each engine.
        room: Requests of an engine that there is room for at first.
    """
    check_limits(prices, limits.max_batched_tokens, limits.max_sequences)
    check_divided(prices, needed=limits.layered)
    n = len(arrival)
    room = room or -(-n * 5 // (4 * engines)) + 16
    groups = groups_of(limits)
    one = new_state(room, blocks, limits.max_sequences, rows, groups=groups, growth=growth)
    state = State(*stacked(one, engines))
    masks = masks_of(prices)
    steps = Step(*stacked(new_steps(depth, limits.max_sequences, masks), engines))
    # One table prices the steps of all engines, one after the other.
    steps = steps._replace(masks=masks)
    own = [np.zeros((engines, room), dtype) for dtype in (np.float64, np.int32, np.int32)]
    columns = len(prices.resources) + len(TRAFFIC)
    busy, drawn = np.zeros((engines, columns)), np.zeros((engines, 2))
    replica, counts = np.zeros(n, np.int32), np.zeros(engines, np.int64)
    wanted = np.array(arrival, np.float64), given.astype(np.int32), produced.astype(np.int32)
    queue = new_queue("continuous", arrival, given, limits, None)
    link = new_link(0, None, block_tokens)
    numbers = loop_limits(limits, block_tokens, remember=remember)
    run: Any = route_loop if plain else compiled(route_loop)
    first = 0
    while True:
        first = run(
            state,
            steps,
            queue,
            link,
            *wanted,
            *own,
            numbers,
            prices.table,
            busy,
            drawn,
            replica,
            counts,
            first,
        )
        if first == n:
            break
        state, own = wider(state), [twice(array, 0) for array in own]
    return Routed(
        replica,
        tuple(served_at(state, i, int(counts[i]), busy[i], drawn[i], link) for i in range(engines)),
    )
