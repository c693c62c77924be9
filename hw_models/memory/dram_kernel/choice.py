"""Which command can be issued first, and for the oldest request where several can.

Each search takes the best candidate so far and returns the better one: an earlier tick, or the same
tick and an older request. A candidate is (tick, age, bank, kind).
"""

from __future__ import annotations

import numpy as np

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.dram_kernel.bits import index, lowest
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT,
    BANKS,
    G_BANKS,
    HIGH,
    LOW,
    P_COUNT,
    PRE,
    PREAB,
    RD,
    REFAB,
    REFPB,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.state import (
    ACTIVATING,
    ACTIVE,
    ACTIVE_AGE,
    ACTIVE_AT,
    ACTIVE_HEAD,
    ACTIVE_NEXT,
    ACTIVE_QUEUE,
    AHEAD_AT,
    BEST,
    CAN_ACT,
    CAN_PRE,
    FAR,
    FIRST_AGE,
    FIRST_AT,
    FIRST_BANK,
    FURTHEST,
    GROUPS,
    HIT,
    HIT_AGE,
    IS_OPEN,
    ITS_BIT,
    KEY,
    LANE_BITS,
    LONGEST_WAIT,
    MODE,
    MOST_URGENT,
    NOBODY,
    NONE,
    NOW,
    NUMBER,
    ODD,
    OPENED,
    OTHER,
    OTHER_AGE,
    P_GROUPS,
    P_LANES,
    QUEUED,
    RISE_AT,
    RISE_BANK,
    RISE_COMMAND,
    RISE_P,
    ROW,
    SOONEST,
    STALE,
    URGENT_FROM,
    Channel,
    Ints,
    channel,
    g_of,
    lane_of,
    p_of,
    s_of,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.timing import possible

Candidate = tuple[int, int, int, int]
#: Kinds of candidates: the access of an activated request, of a hit; a precharge and an activation
#: for a queued request; a refresh that is due or its precharge.
ACCESS, HITS, CLOSE, OPEN, URGENT = range(5)


@part
def next_mode(c: Channel) -> int:
    """Return whether writes drain (1) or reads go (0), with hysteresis."""
    reads, writes = c.v[QUEUED], c.v[QUEUED + 1]
    if c.v[MODE] == 0:
        return 1 if writes >= c.n[HIGH] or reads == 0 else 0
    return 0 if writes <= c.n[LOW] and reads > 0 else 1


@part
def activated_first(c: Channel, now: int) -> Candidate:
    """Return the best of the requests that have been activated.

    Only accesses and activations change which one that is: it is kept in between. Those that were
    activated so late that none of them can be ready before it need no look.
    """
    if c.v[STALE] or c.v[FIRST_AT] < now:
        c.v[STALE], c.v[FIRST_AT], c.v[FIRST_AGE], c.v[FIRST_BANK] = 0, FAR, FAR, NONE
        bank = c.v[ACTIVE_HEAD]
        while bank >= 0 and c.banks[bank, ACTIVE_AT] + c.v[SOONEST] <= c.v[FIRST_AT]:
            keep_first(c, index(bank), now)
            bank = c.banks[bank, ACTIVE_NEXT]
    return c.v[FIRST_AT], c.v[FIRST_AGE], c.v[FIRST_BANK], ACCESS


@part
def keep_first(c: Channel, b: int, now: int) -> None:
    """Keep the activated request of a bank if it is better than the best one so far."""
    k = RD + index(c.banks[b, ACTIVE_QUEUE])
    t = max(now, c.ranks[p_of(c, b), k], c.stacks[s_of(c, b), k])
    t = max(t, c.groups[g_of(c, b), k], c.banks[b, k]) | c.v[ODD]
    age = c.banks[b, ACTIVE_AGE]
    if t < c.v[FIRST_AT] or (t == c.v[FIRST_AT] and age < c.v[FIRST_AGE]):
        c.v[FIRST_AT], c.v[FIRST_AGE], c.v[FIRST_BANK] = t, age, b


@part
def _candidate(least: int, now: int, oldest: int, kind: int) -> Candidate:
    """Take a key apart: tick, arrival and bank as one number, so that the least is the best."""
    if least == NOBODY:
        return FAR, FAR, NONE, kind
    key = (least & ((1 << AHEAD_AT) - 1)) + oldest
    at, bank = now + (least >> AHEAD_AT), key & ((1 << LANE_BITS) - 1)
    return at, key >> LANE_BITS, bank, kind


@part
def best_hit(c: Channel, queue: int, odd: int, now: int, best: Candidate) -> Candidate:
    """Return the better of `best` and the oldest ready hit of a queue."""
    at, age, bank, kind = best
    per_p = c.v[P_GROUPS]
    k = RD + queue
    for p in range(c.n[P_COUNT]):
        left = c.ranks[p, GROUPS + queue]
        first = max(now, c.ranks[p, k]) | odd
        if first > at:
            continue
        while left != 0:
            g = p * per_p + lowest(left)
            left &= left - 1
            b = index(c.groups[g, BEST + queue])
            t = max(first, c.groups[g, k], c.stacks[s_of(c, b), k]) | odd
            if t > at:
                continue
            if c.banks[b, k] <= t:
                if t < at or c.banks[b, HIT_AGE + queue] < age:
                    at, age, bank, kind = t, c.banks[b, HIT_AGE + queue], b, HITS
            else:
                at, age, bank, kind = _hit_of_group(
                    c.memory, queue, odd, t, g, (at, age, bank, kind)
                )
    return at, age, bank, kind


@apart
def _hit_of_group(
    memory: Ints, queue: int, odd: int, first: int, g: int, best: Candidate
) -> Candidate:
    """Look at every bank: that of the oldest hit has just been activated."""
    c = channel(memory)
    at, age, bank, kind = best
    size = c.n[G_BANKS]
    for b in range(g * size, (g + 1) * size):
        if c.ranks[p_of(c, b), HIT + queue] & c.banks[b, ITS_BIT]:
            t = max(first, c.banks[b, RD + queue]) | odd
            if t < at or (t == at and c.banks[b, HIT_AGE + queue] < age):
                at, age, bank, kind = t, c.banks[b, HIT_AGE + queue], b, HITS
    return at, age, bank, kind


@part
def best_row(c: Channel, queue: int, odd: int, now: int, best: Candidate, opens: bool) -> Candidate:
    """Return the better of `best` and the oldest ready precharge or activation of a queue.

    Under random traffic most banks wait at once: all are compared, without a branch.
    """
    least = NOBODY
    oldest = (now - LONGEST_WAIT) << LANE_BITS
    for p in range(c.n[P_COUNT]):
        waiting = c.ranks[p, OTHER + queue]
        if waiting == 0:
            continue
        shut = max(now, c.ranks[p, PRE])
        start = max(now, c.ranks[p, ACT]) | odd if opens else FAR
        closing = waiting & c.ranks[p, OPENED] & ~c.ranks[p, ACTIVE]
        if start > best[0] and (closing == 0 or shut > best[0]):
            continue
        either = shut ^ start
        first = p * c.v[P_LANES]
        for i in range(c.v[P_LANES]):
            k = np.uintp(first + i)
            opened, can = c.lanes[IS_OPEN, k], c.lanes[CAN_ACT, k]
            can ^= (can ^ c.lanes[CAN_PRE, k]) & opened
            t = max(can, start ^ (either & opened)) | (odd & ~opened)
            ahead = min(t - now, FURTHEST) << AHEAD_AT
            least = min(least, ahead + c.lanes[KEY + queue, k] - oldest)
    if least >= FURTHEST << AHEAD_AT:
        return best
    at, age, lane, _ = _candidate(least, now, oldest, OPEN)
    if at > best[0] or (at == best[0] and age >= best[1]):
        return best
    bank = index(c.lanes[NUMBER, lane])
    if c.lanes[IS_OPEN, lane] == 0:
        return at, age, bank, OPEN
    if odd and paired(c, at, p_of(c, bank), bank) != at:
        return _row_beside(c.memory, queue, now, best, opens)
    return at, age, bank, CLOSE


@apart
def _row_beside(memory: Ints, queue: int, now: int, best: Candidate, opens: bool) -> Candidate:
    """Do the same bank by bank, where the falling edge does not take every precharge."""
    c = channel(memory)
    at, age, bank, kind = best
    for b in range(c.n[BANKS]):
        p, lane = p_of(c, b), lane_of(c, b)
        other = c.banks[b, OTHER_AGE + queue]
        if c.lanes[KEY + queue, lane] == NOBODY:
            continue
        if c.banks[b, ROW] >= 0:
            t, does = paired(c, max(now, c.ranks[p, PRE], c.banks[b, PRE]), p, b), CLOSE
        elif opens:
            t, does = max(now, c.ranks[p, ACT], c.lanes[CAN_ACT, lane]) | 1, OPEN
        else:
            continue
        if t < at or (t == at and other < age):
            at, age, bank, kind = t, other, b, does
    return at, age, bank, kind


@part
def paired(c: Channel, t: int, p: int, bank: int) -> int:
    """Return when a precharge may go that is possible at `t`, next to the last rising edge's.

    The falling edge that pairs with a row command takes no precharge of the same bank, and none
    behind a command to all banks of the same pseudo-channel. `bank` is -1 for PREab.
    """
    if t != c.v[RISE_AT] or p != c.v[RISE_P]:
        return t
    if c.v[RISE_COMMAND] in (PREAB, REFAB) or bank < 0 or bank == c.v[RISE_BANK]:
        return t + 1
    return t


@apart
def urgent_command(memory: Ints) -> tuple[int, int]:
    """Return the command and the bank of the refresh that is due first, or of its precharge."""
    c = channel(memory)
    at = c.v[URGENT_FROM] % MOST_URGENT
    command, bank = c.urgent[at, 0], c.urgent[at, 1]
    p, being = p_of(c, bank), c.v[ACTIVATING]
    if command == REFAB:
        if c.ranks[p, OPENED] != 0 or (being >= 0 and p_of(c, being) == p):
            command = PREAB
    elif c.banks[bank, ROW] >= 0 or being == bank:
        command = PRE
    return command, bank


@apart
def urgent_first(memory: Ints, odd: int) -> Candidate:
    """Return when the refresh that is due first, or its precharge, can be issued."""
    c = channel(memory)
    command, bank = urgent_command(c.memory)
    p, being = p_of(c, bank), c.v[ACTIVATING]
    if command == PRE:
        blocked = c.ranks[p, ACTIVE] & c.banks[bank, ITS_BIT] != 0 or being == bank
        t = max(c.v[NOW], c.ranks[p, PRE], c.banks[bank, PRE])
        if odd:
            t = paired(c, t, p, bank)
    else:
        blocked = being >= 0 and (p_of(c, being) == p if command != REFPB else being == bank)
        if command == PREAB:
            blocked = blocked or c.ranks[p, ACTIVE] != 0
        t = possible(c.memory, command, bank)
        if odd and command == PREAB:
            t = paired(c, t, p, NONE)
        elif odd:
            t |= 1
    if blocked:
        return FAR, FAR, NONE, URGENT
    return t, NONE, bank, URGENT
