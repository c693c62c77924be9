"""Blocks on their way to the tier below and back in the compiled loop: the twin of `Transfers`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.blocks import give, know
from opbyte.sim.serving.compiled.state import (
    AWAY,
    BELOW,
    COMING,
    COMPUTED,
    LEAVING,
    MOVES,
    MOVING,
    RUNNING,
    Ints,
    State,
)
from opbyte.sim.serving.transfers import LinkPrice

#: Entries of `Link.seconds` and `Link.counts`.
START_S, BLOCK_S, FREE_AT, BUSY_S, DOWN_S = range(5)
FIRST, PENDING, CARRIED = range(3)


class Link(NamedTuple):
    """Transfers under way, a ring in the order of their ends.

    Attributes:
        ends: Seconds, (requests,): nobody has two.
        who: Whose blocks leave; -1 less whose blocks come back.
        seconds: Of a transfer, of a block that comes back, when the link is free, in which it was
            busy, of a block that leaves, (5,).
        counts: First of the ring, how many are under way, blocks carried, (3,).
        size: Tokens of a block.
    """

    ends: Array
    who: Ints
    seconds: Array
    counts: npt.NDArray[np.int64]
    size: int


def new_link(requests: int, price: LinkPrice | None, size: int) -> Link:
    """Return an idle link."""
    seconds = np.zeros(5)
    if price is not None:
        seconds[:2] = price.start_s, price.block_s
        seconds[DOWN_S] = price.down_s or price.block_s
    room = max(1, requests)
    return Link(np.zeros(room), np.zeros(room, np.int32), seconds, np.zeros(3, np.int64), size)


@register_jitable
def send(s: State, t: Link, now: float, written: float) -> None:
    """Send the blocks that a plan moves: out once the steps under way have written them."""
    for i in range(s.counts[MOVES]):
        r = s.moves[i]
        ready = max(now, written) if r >= 0 else now
        blocks = s.requests[AWAY, r if r >= 0 else -1 - r]
        each = t.seconds[DOWN_S] if r >= 0 else t.seconds[BLOCK_S]
        seconds = t.seconds[START_S] + blocks * each
        t.seconds[FREE_AT] = max(ready, t.seconds[FREE_AT]) + seconds
        t.seconds[BUSY_S] += seconds
        at = (t.counts[FIRST] + t.counts[PENDING]) % t.who.shape[0]
        t.ends[at], t.who[at] = t.seconds[FREE_AT], r
        t.counts[PENDING] += 1
        t.counts[CARRIED] += blocks
    s.counts[MOVES] = 0


@register_jitable
def arrive(s: State, t: Link, arrival: Array, arrived: int, now: float, remember: int) -> int:
    """Let happen what happens by now, before a step ends; return how many requests have arrived."""
    while arrived < arrival.shape[0] and arrival[arrived] <= now:
        arrived += 1
    if t.counts[PENDING]:
        land(s, t, now, remember)
    return arrived


@register_jitable
def soonest(t: Link, arrival: Array, arrived: int) -> float:
    """Return when the next request arrives or the next transfer ends, seconds."""
    soon = arrival[arrived] if arrived < arrival.shape[0] else np.inf
    return min(soon, t.ends[t.counts[FIRST]]) if t.counts[PENDING] else soon


@register_jitable
def land(s: State, t: Link, now: float, remember: int) -> None:
    """End the transfers that are there by now."""
    while t.counts[PENDING] and t.ends[t.counts[FIRST]] <= now:
        r = t.who[t.counts[FIRST]]
        t.counts[FIRST] = (t.counts[FIRST] + 1) % t.who.shape[0]
        t.counts[PENDING] -= 1
        if r >= 0:
            s.counts[LEAVING] -= s.requests[AWAY, r]
            give(s, r, 0)
            s.requests[MOVING, r] = 0
            continue
        r = -1 - r
        s.counts[BELOW] += s.requests[AWAY, r]
        s.requests[AWAY, r] = s.requests[MOVING, r] = 0
        s.counts[COMING] -= 1
        s.running[s.counts[RUNNING]] = r
        s.counts[RUNNING] += 1
        if remember:
            know(s, r, s.requests[COMPUTED, r] // t.size)
