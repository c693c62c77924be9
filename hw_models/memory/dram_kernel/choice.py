"""Which command can be issued first, and for the oldest request where several can.

Each search takes the best candidate so far and returns the better one: an earlier tick, or the same
tick and an older request. A candidate is (tick, age, bank, kind).
"""

from __future__ import annotations

import numba

from opbyte.core.loops import LOOP
from opbyte.hw_models.memory.dram_kernel.bits import INLINE, lowest
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT, G_BANKS, HIGH, LOW, P_BANKS, P_COUNT, PRE, PREAB, RD, REFAB, REFPB,
    ROW_HIT_FIRST,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.state import (
    ACTIVATING, ACTIVE, ACTIVE_AGE, ACTIVE_QUEUE, BEST, FAR, GROUPS, HIT, HIT_AGE, ITS_BIT, ITS_G,
    ITS_P, ITS_S, MODE, MOST_URGENT, NONE, NOW, OPENED, OTHER, OTHER_AGE, P_GROUPS, QUEUED, RISE_AT,
    RISE_BANK, RISE_COMMAND, RISE_P, ROW, URGENT_FROM, Channel,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.timing import possible

Candidate = tuple[int, int, int, int]
#: A key is one number that orders candidates: ticks until the command, then arrival and bank below.
#: It holds what is less than 2^17 ticks ahead and has waited less than 2^32 ticks.
_FURTHEST, _AHEAD_AT, _LONGEST_WAIT, _BANK_BITS, _NOBODY = (1 << 17) - 1, 44, 1 << 32, 10, 1 << 62
#: Kinds of candidates: the access of an activated request, of a hit; a precharge and an activation
#: for a queued request; a refresh that is due or its precharge.
ACCESS, HITS, CLOSE, OPEN, URGENT = range(5)


@numba.njit(**INLINE)
def next_mode(c: Channel) -> int:
    """Return whether writes drain (1) or reads go (0), with hysteresis."""
    reads, writes = c.v[QUEUED], c.v[QUEUED + 1]
    if c.v[MODE] == 0:
        return 1 if writes >= c.n[HIGH] or reads == 0 else 0
    return 0 if writes <= c.n[LOW] and reads > 0 else 1


@numba.njit(**INLINE)
def activated_first(c: Channel, odd: int, now: int) -> Candidate:
    """Return the best of the requests that have been activated; `odd` is 1 for rising edges only."""
    least = _NOBODY
    oldest = (now - _LONGEST_WAIT) << _BANK_BITS
    for p in range(c.n[P_COUNT]):
        left = c.ranks[p, ACTIVE]
        base = p * c.n[P_BANKS]
        while left != 0:
            b = base + lowest(left)
            left &= left - 1
            k = RD + c.banks[b, ACTIVE_QUEUE]
            t = max(now, c.ranks[p, k], c.stacks[c.banks[b, ITS_S], k])
            t = max(t, c.groups[c.banks[b, ITS_G], k], c.banks[b, k]) | odd
            age = c.banks[b, ACTIVE_AGE] << _BANK_BITS
            least = min(least, (min(t - now, _FURTHEST) << _AHEAD_AT) + (age | b) - oldest)
    return _candidate(least, now, oldest, ACCESS)


@numba.njit(**INLINE)
def _candidate(least: int, now: int, oldest: int, kind: int) -> Candidate:
    """Take a key apart: tick, arrival and bank as one number, so that the least is the best."""
    if least == _NOBODY:
        return FAR, FAR, NONE, kind
    key = (least & ((1 << _AHEAD_AT) - 1)) + oldest
    at, bank = now + (least >> _AHEAD_AT), key & ((1 << _BANK_BITS) - 1)
    return at, key >> _BANK_BITS, bank, kind


@numba.njit(**INLINE)
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
            b = c.groups[g, BEST + queue]
            t = max(first, c.groups[g, k], c.stacks[c.banks[b, ITS_S], k]) | odd
            if t > at:
                continue
            if c.banks[b, k] <= t:
                if t < at or c.banks[b, HIT_AGE + queue] < age:
                    at, age, bank, kind = t, c.banks[b, HIT_AGE + queue], b, HITS
            else:
                at, age, bank, kind = _hit_of_group(c, queue, odd, t, g, (at, age, bank, kind))
    return at, age, bank, kind


@numba.njit(**LOOP)
def _hit_of_group(
    c: Channel, queue: int, odd: int, first: int, g: int, best: Candidate
) -> Candidate:
    """Look at every bank: that of the oldest hit has just been activated."""
    at, age, bank, kind = best
    size = c.n[G_BANKS]
    for b in range(g * size, (g + 1) * size):
        if c.ranks[c.banks[b, ITS_P], HIT + queue] & c.banks[b, ITS_BIT]:
            t = max(first, c.banks[b, RD + queue]) | odd
            if t < at or (t == at and c.banks[b, HIT_AGE + queue] < age):
                at, age, bank, kind = t, c.banks[b, HIT_AGE + queue], b, HITS
    return at, age, bank, kind


@numba.njit(**INLINE)
def best_row(
    c: Channel, queue: int, odd: int, now: int, best: Candidate, opens: bool
) -> Candidate:
    """Return the better of `best` and the oldest ready precharge or activation of a queue."""
    until = best[0]
    shut, start = _NOBODY, _NOBODY
    oldest = (now - _LONGEST_WAIT) << _BANK_BITS
    for p in range(c.n[P_COUNT]):
        waiting, opened = c.ranks[p, OTHER + queue], c.ranks[p, OPENED]
        base = p * c.n[P_BANKS]
        left = waiting & opened & ~c.ranks[p, ACTIVE]
        first = max(now, c.ranks[p, PRE])
        while left != 0 and first <= until:
            b = base + lowest(left)
            left &= left - 1
            t = max(first, c.banks[b, PRE])
            if odd:
                t = paired(c, t, p, b)
            age = c.banks[b, OTHER_AGE + queue]
            hidden = c.n[ROW_HIT_FIRST] & (c.banks[b, HIT_AGE + queue] < age)
            key = (min(t - now, _FURTHEST) << _AHEAD_AT) + (age << _BANK_BITS | b) - oldest
            shut = min(shut, _NOBODY if hidden else key)
        left = waiting & ~opened if opens else 0
        first = max(now, c.ranks[p, ACT]) | odd
        while left != 0 and first <= until:
            b = base + lowest(left)
            left &= left - 1
            ahead = min((max(first, c.acts[b]) | odd) - now, _FURTHEST)
            age = c.banks[b, OTHER_AGE + queue] << _BANK_BITS
            start = min(start, (ahead << _AHEAD_AT) + (age | b) - oldest)
    kind = CLOSE if shut < start else OPEN
    found = _candidate(min(shut, start), now, oldest, kind)
    if found[0] < until or (found[0] == until and found[1] < best[1]):
        return found
    return best


@numba.njit(**INLINE)
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


@numba.njit(**LOOP)
def urgent_command(c: Channel) -> tuple[int, int]:
    """Return the command and the bank of the refresh that is due first, or of its precharge."""
    at = c.v[URGENT_FROM] % MOST_URGENT
    command, bank = c.urgent[at, 0], c.urgent[at, 1]
    p, being = c.banks[bank, ITS_P], c.v[ACTIVATING]
    if command == REFAB:
        if c.ranks[p, OPENED] != 0 or (being >= 0 and c.banks[being, ITS_P] == p):
            command = PREAB
    elif c.banks[bank, ROW] >= 0 or being == bank:
        command = PRE
    return command, bank


@numba.njit(**LOOP)
def urgent_first(c: Channel, odd: int) -> Candidate:
    """Return when the refresh that is due first, or its precharge, can be issued."""
    command, bank = urgent_command(c)
    p, being = c.banks[bank, ITS_P], c.v[ACTIVATING]
    if command == PRE:
        blocked = c.ranks[p, ACTIVE] & c.banks[bank, ITS_BIT] != 0 or being == bank
        t = max(c.v[NOW], c.ranks[p, PRE], c.banks[bank, PRE])
        if odd:
            t = paired(c, t, p, bank)
    else:
        blocked = being >= 0 and (c.banks[being, ITS_P] == p if command != REFPB else being == bank)
        if command == PREAB:
            blocked = blocked or c.ranks[p, ACTIVE] != 0
        t = possible(c, command, bank)
        if odd and command == PREAB:
            t = paired(c, t, p, NONE)
        elif odd:
            t |= 1
    if blocked:
        return FAR, FAR, NONE, URGENT
    return t, NONE, bank, URGENT


