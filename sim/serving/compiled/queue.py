"""Who waits in the compiled serving loop, in the order of its scheduler."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.state import NONE, PREEMPTED, SAMPLED, STACKED, Ints, State
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.schedulers.fair import INPUT, Clients

FCFS, SHORTEST, FAIR = range(3)
#: Scheduler -> order. Without shared prefixes the longest known one is that of all: none.
ORDERS = {
    "continuous": FCFS, "chunked": FCFS, "static": FCFS, "layered": FCFS, "prefix": FCFS,
    "shortest": SHORTEST, "fair": FAIR,
}  # fmt: skip
#: Entries of `Queue.counts`: requests that joined, entries of the heap, clients that wait, and the
#: smallest place in line.
JOINED, HEAPED, ACTIVE, FRONT = range(4)


class Queue(NamedTuple):
    """What orders need to know; arrays of length 1 where they do not.

    Attributes:
        heap: Ranks of waiting requests, the smallest first, (requests,).
        rank, of_rank: Place of each request in a fixed order, and back, (requests,).
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
        counts: Counters, (4,).
    """

    heap: Ints
    rank: Ints
    of_rank: Ints
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


def new_queue(
    order: str,
    arrival: Array,
    given: npt.NDArray[np.int64],
    limits: Limits,
    clients: Clients | None,
) -> Queue:
    """Return an empty queue."""
    n = len(arrival)
    ranked, fair = n if ORDERS[order] == SHORTEST else 1, n if ORDERS[order] == FAIR else 1
    of_rank = np.zeros(1, np.int32)
    if ranked == n:
        keys = np.asarray(arrival, np.float64) + np.asarray(given) / limits.aging
        of_rank = np.argsort(keys, kind="stable").astype(np.int32)
    rank = np.zeros(ranked, np.int32)
    rank[of_rank] = np.arange(ranked, dtype=np.int32)
    if clients is None or fair != n:
        clients = Clients(np.zeros(fair, np.int32), np.zeros(1, np.int32))
    many = len(clients.level)

    def zeros(entries: int) -> Ints:
        return np.zeros(entries, np.int32)

    return Queue(
        heap=zeros(ranked), rank=rank, of_rank=of_rank,
        client=clients.client.astype(np.int32), level=clients.level.astype(np.int32),
        service=np.zeros(many, np.int64), head=zeros(many), tail=zeros(many), waiting=zeros(many),
        after=zeros(fair), place=zeros(fair), charged=zeros(fair), since=zeros(fair),
        active=zeros(many), where=zeros(many),
        last=np.full(int(clients.level.max()) + 1, NONE, np.int32),
        picked=zeros(limits.max_sequences), counts=np.zeros(4, np.int64),
    )  # fmt: skip


@register_jitable
def first(s: State, q: Queue, order: int, arrived: int, tried: int) -> int:
    """Return the waiting request that is tried next, negative if nobody waits."""
    if order == FAIR:
        return first_fair(q)
    if order == SHORTEST:
        while q.counts[JOINED] < arrived:
            push(q, q.rank[q.counts[JOINED]])
            q.counts[JOINED] += 1
    if s.counts[STACKED]:
        return int(s.stack[s.counts[STACKED] - 1])
    if tried >= arrived:
        return NONE
    return int(q.of_rank[q.heap[0]]) if order == SHORTEST else tried


@register_jitable
def leave(s: State, q: Queue, order: int, given: Ints, r: int, tried: int) -> int:
    """Take the request that is first off the queue; return how many have had their turn."""
    if order == FAIR:
        leave_fair(s, q, given, r)
        return tried + 1
    if s.counts[STACKED]:
        s.counts[STACKED] -= 1
        return tried
    if order == SHORTEST:
        pop(q)
    return tried + 1


@register_jitable
def push(q: Queue, rank: int) -> None:
    """Put a rank on the heap."""
    at = q.counts[HEAPED]
    q.counts[HEAPED] += 1
    while at > 0 and rank < q.heap[(at - 1) // 2]:
        q.heap[at] = q.heap[(at - 1) // 2]
        at = (at - 1) // 2
    q.heap[at] = rank


@register_jitable
def pop(q: Queue) -> None:
    """Take the smallest rank off the heap."""
    q.counts[HEAPED] -= 1
    size = q.counts[HEAPED]
    rank, at = q.heap[size], 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and q.heap[child + 1] < q.heap[child]:
            child += 1
        if rank <= q.heap[child]:
            break
        q.heap[at] = q.heap[child]
        at = child
    q.heap[at] = rank


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
