"""Who waits in the compiled serving loop, in the order of its scheduler."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.prefixes import leading, sharing
from opbyte.sim.serving.compiled.state import (
    CHANGES,
    NONE,
    PREEMPTED,
    SAMPLED,
    STACKED,
    Ints,
    State,
)
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.schedulers.fair import INPUT, Clients

FCFS, RANKED, FAIR = range(3)
#: Scheduler -> order.
ORDERS = {
    "continuous": FCFS, "chunked": FCFS, "static": FCFS, "layered": FCFS, "prefix": RANKED,
    "shortest": RANKED, "fair": FAIR,
}  # fmt: skip
#: Entries of `Queue.counts`: requests that joined, entries of the heap, clients that wait, the
#: smallest place in line, and changes of the cache when keys were counted last.
JOINED, HEAPED, ACTIVE, FRONT, SEEN = range(5)


class Queue(NamedTuple):
    """What orders need to know; arrays of length 1 where they do not.

    Attributes:
        heap: Waiting requests that have not run, the one with the smallest key first, (requests,).
        key, arrival: Of each request, seconds, (requests,).
        tokens: Of each prompt that counts against its request, where not known, (requests,).
        aging: Tokens that a second of waiting is worth, (1,).
        client, level: As for `Clients`.
        service: Virtual counter of each client, (clients,).
        head, tail, waiting: First and last request that waits, and how many, (clients,).
        after: Who waits behind a request of the same client, (requests,).
        place: Place in line: arrivals count up from 0, who returns down from -1, (requests,).
        charged: Tokens of an answer that have been counted, (requests,).
        since: Tokens of an answer that were there when a request began to run, (requests,).
        active, where: Clients that wait, and where each stands among them, (clients,).
        last: Client of each level that left the queue last, (levels,).
        picked: Room for those who are switched out, (max_sequences,).
        counts: Counters, (5,).
    """

    heap: Ints
    key: Array
    arrival: Array
    tokens: Ints
    aging: Array
    client: Ints
    level: Ints
    service: npt.NDArray[np.int64]
    head: Ints
    tail: Ints
    waiting: Ints
    after: Ints
    place: Ints
    charged: Ints
    since: Ints
    active: Ints
    where: Ints
    last: Ints
    picked: Ints
    counts: npt.NDArray[np.int64]


#: Columns of a queue that have an entry for each request, where its order needs them.
OF_REQUESTS = (
    "heap", "key", "arrival", "tokens", "client", "after", "place", "charged", "since",
)  # fmt: skip


def order_of(kind: str, *, shared: bool) -> int:
    """Return the order of a scheduler: without shared prefixes nobody has the longest one."""
    return FCFS if kind == "prefix" and not shared else ORDERS[kind]


def new_queue(
    kind: str,
    arrival: Array,
    given: npt.NDArray[np.int64],
    limits: Limits,
    clients: Clients | None,
    *,
    shared: bool = False,
) -> Queue:
    """Return an empty queue.

    Args:
        kind: Scheduler, one of `ORDERS`.
        shared: Prompts share prefixes.
    """
    n = len(arrival)
    ordered = order_of(kind, shared=shared)
    ranked, fair = n if ordered == RANKED else 1, n if ordered == FAIR else 1
    if clients is None or fair != n:
        clients = Clients(np.zeros(fair, np.int32), np.zeros(1, np.int32))
    many = len(clients.level)

    def zeros(entries: int) -> Ints:
        return np.zeros(entries, np.int32)

    return Queue(
        heap=zeros(ranked), key=np.zeros(ranked), arrival=np.array(arrival[:ranked], np.float64),
        tokens=np.array(given[:ranked] if kind == "shortest" else zeros(ranked), np.int32),
        aging=np.array([limits.aging]),
        client=clients.client.astype(np.int32), level=clients.level.astype(np.int32),
        service=np.zeros(many, np.int64), head=zeros(many), tail=zeros(many), waiting=zeros(many),
        after=zeros(fair), place=zeros(fair), charged=zeros(fair), since=zeros(fair),
        active=zeros(many), where=zeros(many),
        last=np.full(int(clients.level.max()) + 1, NONE, np.int32),
        picked=zeros(limits.max_sequences), counts=np.zeros(5, np.int64),
    )  # fmt: skip


@register_jitable
def first(s: State, q: Queue, order: int, arrived: int, tried: int) -> int:
    """Return the waiting request that is tried next, negative if nobody waits."""
    if order == FAIR:
        return first_fair(q)
    if s.counts[STACKED]:
        return int(s.stack[s.counts[STACKED] - 1])
    if tried >= arrived:
        return NONE
    return int(q.heap[0]) if order == RANKED else tried


@register_jitable
def leave(s: State, q: Queue, order: int, given: Ints, r: int, tried: int) -> int:
    """Take the request that is first off the queue; return how many have had their turn."""
    if order == FAIR:
        leave_fair(s, q, given, r)
        return tried + 1
    if s.counts[STACKED]:
        s.counts[STACKED] -= 1
        return tried
    if order == RANKED:
        pop(q)
    return tried + 1


@register_jitable
def rank(s: State, q: Queue, given: Ints, size: int, arrived: int) -> None:
    """Let requests wait that have arrived, and order all by what the cache holds of them."""
    changes = s.counts[CHANGES]
    if changes != q.counts[SEEN]:
        q.counts[SEEN] = changes
        for i in range(q.counts[HEAPED]):
            count_key(s, q, q.heap[i], given, size)
        for i in range(q.counts[HEAPED] // 2 - 1, -1, -1):
            sink(q, q.heap[i], i)
    while q.counts[JOINED] < arrived:
        r = q.counts[JOINED]
        count_key(s, q, r, given, size)
        push(q, r)
        q.counts[JOINED] += 1


@register_jitable
def count_key(s: State, q: Queue, r: int, given: Ints, size: int) -> None:
    """Count by what a request is ordered that has not run."""
    tokens = int(q.tokens[r])
    if sharing(s.prefixes):
        tokens -= leading(s.prefixes, r, (given[r] - 1) // size) * size
    q.key[r] = q.arrival[r] + tokens / q.aging[0]


@register_jitable
def sooner(q: Queue, a: int, b: int) -> bool:
    """Return whether a request's key is smaller than another's; of equals the first to arrive."""
    return bool(q.key[a] < q.key[b] or (q.key[a] == q.key[b] and a < b))


@register_jitable
def push(q: Queue, r: int) -> None:
    """Put a request on the heap."""
    at = q.counts[HEAPED]
    q.counts[HEAPED] += 1
    while at > 0 and sooner(q, r, q.heap[(at - 1) // 2]):
        q.heap[at] = q.heap[(at - 1) // 2]
        at = (at - 1) // 2
    q.heap[at] = r


@register_jitable
def pop(q: Queue) -> None:
    """Take the first request off the heap."""
    q.counts[HEAPED] -= 1
    sink(q, q.heap[q.counts[HEAPED]], 0)


@register_jitable
def sink(q: Queue, r: int, at: int) -> None:
    """Put a request at a place of the heap, or below it if others there are sooner."""
    size = q.counts[HEAPED]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and sooner(q, q.heap[child + 1], q.heap[child]):
            child += 1
        if not sooner(q, q.heap[child], r):
            break
        q.heap[at] = q.heap[child]
        at = child
    q.heap[at] = r


@register_jitable
def first_fair(q: Queue) -> int:
    """Return the first request of the client that has been served least; negative if none waits."""
    best = NONE
    for i in range(q.counts[ACTIVE]):
        r = q.head[q.active[i]]
        if best == NONE or before(q, r, best):
            best = r
    return int(best)


@register_jitable
def before(q: Queue, a: int, b: int) -> bool:
    """Return whether a waiting request is tried before another."""
    one, other = q.client[a], q.client[b]
    if q.level[one] != q.level[other]:
        return bool(q.level[one] < q.level[other])
    if q.service[one] != q.service[other]:
        return bool(q.service[one] < q.service[other])
    return bool(q.place[a] < q.place[b])


@register_jitable
def leave_fair(s: State, q: Queue, given: Ints, r: int) -> None:
    """Take the first request of its client off the queue; its prompt counts once."""
    client = q.client[r]
    q.head[client] = q.after[r]
    q.waiting[client] -= 1
    if q.waiting[client] == 0:
        # The last of those that wait takes its place.
        q.counts[ACTIVE] -= 1
        moved = q.active[q.counts[ACTIVE]]
        q.active[q.where[client]], q.where[moved] = moved, q.where[client]
    q.last[q.level[client]] = client
    q.since[r] = s.requests[SAMPLED, r]
    if s.requests[PREEMPTED, r] == 0:
        q.service[client] += INPUT * given[r]
