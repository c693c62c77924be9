"""Serve a trace by compiled pools: arrays before, what engines and requests did after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.compiled.loop import Served, groups_of, loop_limits
from opbyte.sim.serving.compiled.moves import new_link
from opbyte.sim.serving.compiled.pool import (
    REQUEST,
    ROWS,
    Asked,
    did,
    full,
    new_pool,
    roomier,
)
from opbyte.sim.serving.compiled.pools import Rules, pool_loop
from opbyte.sim.serving.compiled.queue import new_queue
from opbyte.sim.serving.compiled.state import NONE, new_state
from opbyte.sim.serving.compiled.wire import BUSY_S, DRAWN, Way
from opbyte.sim.serving.fleet.link import Wire
from opbyte.sim.serving.prices.step import Prices, check_divided, check_limits
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.stamped import compiled


@dataclass(frozen=True)
class Pooled:
    """What happened.

    Attributes:
        times: Scheduled, first token, last token, seconds, (3, requests).
        preempted: How often each request lost its blocks, (requests,).
        prefill, replica: Who read each request's prompt last, and who gave it its last token,
            (requests,).
        moved: Bytes of each request's KV cache that were sent, (requests,).
        engines: What each engine did, with its own requests alone.
        wire: The way, after all transfers.
    """

    times: Array
    preempted: npt.NDArray[np.int32]
    prefill: npt.NDArray[np.int32]
    replica: npt.NDArray[np.int32]
    moved: Array
    engines: tuple[Served, ...]
    wire: Wire


def serve_pools(
    arrival: Array,
    given: npt.NDArray[np.int64],
    produced: npt.NDArray[np.int64],
    limits: Limits,
    prices: Prices,
    wire: Wire,
    *,
    pools: tuple[int, int],
    sizes: tuple[float, float],
    least: bool,
    blocks: int,
    block_tokens: int,
    remember: bool = True,
    depth: int = 1,
    rows: int = 20_000,
    growth: Sequence[Growth] = (),
    room: int = 0,
    plain: bool = False,
) -> Pooled:
    """Serve requests by engines that read prompts and engines that answer.

    Args:
        arrival, given, produced, blocks, block_tokens, remember, growth, depth, rows, plain: As for
            `serve_compiled`; blocks and rows of each engine.
        pools: Engines that read, and that answer.
        sizes: Bytes of a block, and of the state that a sequence has whatever its length.
        least: Routers choose who has the fewest requests, not in turn.
        room: Rows of an engine that there is room for at first.
    """
    check_limits(prices, limits.max_batched_tokens, limits.max_sequences)
    check_divided(prices, needed=limits.layered)
    sequences, n = limits.max_sequences, len(arrival)
    both = []
    for count in pools:
        # As many as one step may bring fit at any time.
        own = (room or -(-n * 5 // (4 * count)) + 16) + sequences + 1
        one = new_state(own, blocks, sequences, rows, groups=groups_of(limits), growth=growth)
        both.append(new_pool(count, one, sequences, depth, prices))
    readers, decoders = both
    asked, way = Asked.of(arrival, given, produced), Way.of(wire, pools[0])
    link = new_link(0, None, block_tokens)
    rules = Rules(
        loop_limits(limits, block_tokens, remember=remember),
        new_queue("continuous", arrival, given, limits, None),
        link, prices.table, np.array(sizes), int(least),
    )  # fmt: skip
    run: Any = pool_loop if plain else compiled(pool_loop)
    while not run(readers, decoders, way, asked, rules):
        if full(readers, sequences + 1):
            readers = roomier(readers)
        if full(decoders, sequences + 1):
            decoders = roomier(decoders)
    times, preempted = asked.times, asked.preempted
    answered = did(decoders, link)
    for i, engine in enumerate(answered):
        requests = decoders.rows[i, REQUEST, : decoders.counts[i, ROWS]]
        times[2, requests] = engine.times[2]
        preempted[requests] += engine.preempted
    spent = wire.idle()
    spent.busy, spent.joules = float(way.sums[BUSY_S]), float(way.sums[DRAWN])
    replica = np.where(asked.decoder == NONE, asked.reader, asked.decoder + pools[0])
    done = (*did(readers, link), *answered)
    return Pooled(times, preempted, asked.reader, replica, asked.moved, done, spent)
