"""Fair service of clients in the compiled serving loop: the twin of `Fair`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.sim.serving.compiled.blocks import drop, found, freed, in_use, lose, needed
from opbyte.sim.serving.compiled.prefixes import sharing
from opbyte.sim.serving.compiled.queue import ACTIVE, FRONT, JOINED, Queue, first_fair
from opbyte.sim.serving.compiled.shared import keep
from opbyte.sim.serving.compiled.state import (
    AWAY,
    COMING,
    FREE,
    LEAVING,
    MOVING,
    NONE,
    RUNNING,
    SAMPLED,
    STACKED,
    Ints,
    State,
)
from opbyte.sim.serving.schedulers.fair import OUTPUT


@register_jitable
def begin_fair(
    s: State,
    q: Queue,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    arrived: int,
    tried: int,
) -> tuple[int, int]:
    """Begin a plan; return how many were switched out, and how many have had their turn."""
    charge(s, q)
    while q.counts[JOINED] < arrived:
        join(q, q.counts[JOINED])
        q.counts[JOINED] += 1
    if limits[8] < 0 or q.counts[ACTIVE] == 0:
        return 0, tried
    switched = switch(s, q, given, produced, limits)
    return switched, settle(s, q, tried)


@register_jitable
def settle(s: State, q: Queue, tried: int) -> int:
    """Count the tokens of those who run, and let those wait who lost their blocks.

    Returns:
        How many requests have had their turn, and do not wait again.
    """
    charge(s, q)
    for i in range(s.counts[STACKED]):
        r = s.stack[i]
        client = q.client[r]
        q.counts[FRONT] -= 1
        q.place[r] = q.counts[FRONT]
        wait(q, client)
        q.after[r] = q.head[client] if q.waiting[client] > 1 else NONE
        q.head[client] = r
        if q.waiting[client] == 1:
            q.tail[client] = r
        tried -= 1
    s.counts[STACKED] = 0
    return tried


@register_jitable
def charge(s: State, q: Queue) -> None:
    """Count the tokens that those who run got since they were counted last."""
    for i in range(s.counts[RUNNING]):
        count(s, q, s.running[i])


@register_jitable
def count(s: State, q: Queue, r: int) -> None:
    """Count the tokens of an answer that were not counted before."""
    q.service[q.client[r]] += OUTPUT * (s.requests[SAMPLED, r] - q.charged[r])
    q.charged[r] = s.requests[SAMPLED, r]


@register_jitable
def wait(q: Queue, client: int) -> None:
    """Count a request that waits."""
    if q.waiting[client] == 0:
        q.active[q.counts[ACTIVE]], q.where[client] = client, q.counts[ACTIVE]
        q.counts[ACTIVE] += 1
    q.waiting[client] += 1


@register_jitable
def join(q: Queue, r: int) -> None:
    """Let a request wait that arrives; a client that comes back starts where others are."""
    client = q.client[r]
    level = q.level[client]
    if q.waiting[client] == 0:
        floor, found = q.service[client], False
        for i in range(q.counts[ACTIVE]):
            other = q.active[i]
            if q.level[other] == level and (not found or q.service[other] < floor):
                floor, found = q.service[other], True
        if not found and q.last[level] != NONE:
            floor = q.service[q.last[level]]
        q.service[client] = max(q.service[client], floor)
    wait(q, client)
    q.place[r], q.after[r] = r, NONE
    if q.waiting[client] == 1:
        q.head[client] = r
    else:
        q.after[q.tail[client]] = r
    q.tail[client] = r


@register_jitable
def switch(s: State, q: Queue, given: Ints, produced: Ints, limits: npt.NDArray[np.int64]) -> int:
    """Switch out running requests for the one that is tried first; return how many."""
    first = first_fair(q)
    if s.requests[MOVING, first]:
        return 0
    size, target = limits[4], given[first] + s.requests[SAMPLED, first]
    known = 0 if s.requests[AWAY, first] else found(s, first, (target - 1) // size)
    need = needed(s, target, size) - in_use(s, first, known)
    slots = limits[0] - s.counts[RUNNING] - s.counts[COMING]
    room = s.counts[FREE] + s.counts[LEAVING]
    # What was found is not computed: that others let go of it does not make room.
    if sharing(s.prefixes):
        keep(s, first, known, 1)
    picked = victim = 0
    while victim != NONE and (slots < 1 or room < need):
        victim = farthest(s, q, produced, limits[8], first, picked)
        if victim != NONE:
            q.picked[picked] = victim
            picked += 1
            slots += 1
            room += freed(s, victim)
    if sharing(s.prefixes):
        keep(s, first, known, 0)
    if victim == NONE:
        return 0
    for i in range(picked):
        drop(s, q.picked[i])
        lose(s, q.picked[i], produced, limits[5])
    return picked


@register_jitable
def farthest(s: State, q: Queue, produced: Ints, lead: int, first: int, picked: int) -> int:
    """Return the running request whose client is farthest ahead, negative if none is so far."""
    mine, best = q.client[first], NONE
    for i in range(s.counts[RUNNING] - 1, -1, -1):
        r = s.running[i]
        client = q.client[r]
        ahead = q.level[client] > q.level[mine] or (
            q.level[client] == q.level[mine] and q.service[client] - q.service[mine] > lead
        )
        if not ahead or not q.since[r] < s.requests[SAMPLED, r] < produced[r]:
            continue
        for j in range(picked):
            if q.picked[j] == r:
                ahead = False
        if not ahead:
            continue
        if best != NONE:
            other = q.client[best]
            if q.level[client] < q.level[other]:
                continue
            if q.level[client] == q.level[other] and q.service[client] <= q.service[other]:
                continue
        best = r
    return int(best)
