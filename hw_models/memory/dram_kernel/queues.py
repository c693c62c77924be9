"""Queues as lists per bank, and what each bank knows of its own: oldest hit, oldest other request.

The scheduler never looks at requests but at these two of each bank: of the requests that need the
same command of the same bank, only the oldest can be the one that is chosen.
"""

from __future__ import annotations

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.addresses import COLUMN_AT, ROW_AT, WRITE
from opbyte.hw_models.memory.dram_kernel.bits import index, lowest
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACCEPTED,
    COALESCED,
    FORWARDED,
    G_BANKS,
    HISTOGRAM,
    LATENCY,
    LINEAR,
    P_BANKS,
    READ_QUEUE,
    ROW_HIT_FIRST,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.state import (
    ACTIVE,
    ACTIVE_QUEUE,
    AGE,
    BEFORE,
    BEST,
    CODE,
    COUNTED,
    FAR,
    FILTER,
    FREE,
    G_BIT,
    GROUPS,
    HEAD,
    HIT,
    HIT_AGE,
    HIT_SLOT,
    IS_OPEN,
    ITS_BIT,
    KEY,
    LANE_BITS,
    NEXT,
    NOBODY,
    NONE,
    OPENED,
    OTHER,
    OTHER_AGE,
    OTHER_SLOT,
    QUEUED,
    RING,
    RING_AT,
    ROW,
    SENT,
    TAIL,
    Channel,
    Ints,
    channel,
    g_of,
    lane_of,
    p_of,
)  # fmt: skip

_BANK = (1 << COLUMN_AT) - 1


@part
def place(code: int) -> int:
    """Return where the counter of a write address is."""
    return ((code >> COLUMN_AT) ^ (code >> ROW_AT) ^ (code * 37)) & (FILTER - 1)


@part
def _place_of_row(bank: int, row: int) -> int:
    """Return where the counter of requests to a row is: 0 there means that none hits."""
    return (row * 61 + bank) & (FILTER - 1)


@part
def send(c: Channel, code: int, clock: int) -> bool:
    """Try to send the request `code`; return whether it was taken.

    A read of what a queued write will write is answered from there, and a write to the same place
    is merged with it.
    """
    queue = 1 if code & WRITE else 0
    if c.v[QUEUED + 1] > 0 and c.written[place(code | WRITE)] > 0 and _is_written(c.memory, code):
        if queue:
            c.out[COALESCED] += 1
        else:
            c.out[FORWARDED] += 1
            under_way(c, clock + 1, 1)
    elif c.v[QUEUED + queue] < c.n[READ_QUEUE + queue]:
        _enqueue(c, code, queue, clock)
    else:
        return False
    c.v[SENT] += 1
    c.out[ACCEPTED] += 1
    return True


@part
def has_room(c: Channel, code: int) -> bool:
    """Return whether `send` would take the request now."""
    queue = 1 if code & WRITE else 0
    if c.v[QUEUED + queue] < c.n[READ_QUEUE + queue]:
        return True
    if c.v[QUEUED + 1] == 0 or c.written[place(code | WRITE)] == 0:
        return False
    return _is_written(c.memory, code)


@apart
def _is_written(memory: Ints, code: int) -> bool:
    c = channel(memory)
    slot = c.banks[code & _BANK, HEAD + 1]
    while slot >= 0:
        if c.queued[slot, CODE] == code | WRITE:
            return True
        slot = c.queued[slot, NEXT]
    return False


@part
def under_way(c: Channel, end: int, latency: int) -> None:
    """Note a read whose data end at `end`."""
    at = c.v[RING_AT] & (RING - 1)
    c.ring[at, 0], c.ring[at, 1] = end, latency
    c.v[RING_AT] += 1
    c.out[LATENCY] += latency
    c.out[HISTOGRAM + bin_of(latency)] += 1


@part
def bin_of(latency: int) -> int:
    """Return the bin of a latency: one per tick, then 32 per octave."""
    if latency < LINEAR:
        return latency
    octave, size = 0, LINEAR
    while latency >= 2 * size:
        size *= 2
        octave += 1
    return LINEAR + 32 * octave + (latency - size) * 32 // size


@part
def _enqueue(c: Channel, code: int, queue: int, clock: int) -> None:
    bank, slot = code & _BANK, index(c.v[FREE + queue])
    c.v[FREE + queue] = c.queued[slot, NEXT]
    c.v[QUEUED + queue] += 1
    last = c.banks[bank, TAIL + queue]
    c.queued[slot, CODE], c.queued[slot, AGE] = code, clock
    c.queued[slot, NEXT], c.queued[slot, BEFORE] = NONE, last
    c.queued[slot, COUNTED] = 0
    if last >= 0:
        c.queued[last, NEXT] = slot
    else:
        c.banks[bank, HEAD + queue] = slot
    c.banks[bank, TAIL + queue] = slot
    c.rows[queue, _place_of_row(bank, code >> ROW_AT)] += 1
    if queue:
        c.written[place(code)] += 1
    if c.banks[bank, ROW] == code >> ROW_AT:
        if c.banks[bank, HIT_SLOT + queue] < 0 and not _goes_first(c, bank, queue):
            set_hit(c, bank, queue, slot)
    elif c.banks[bank, OTHER_SLOT + queue] < 0:
        _set_other(c, bank, queue, slot)


@part
def _goes_first(c: Channel, bank: int, queue: int) -> bool:
    """Return whether an activated request of this queue waits for the bank.

    Its access is possible as soon as that of any hit of its queue to the bank, and comes first: the
    hits need no looking at before.
    """
    waits = c.ranks[p_of(c, bank), ACTIVE] & c.banks[bank, ITS_BIT] != 0
    first: bool = waits and c.banks[bank, ACTIVE_QUEUE] == queue
    return first


@part
def leave(c: Channel, bank: int, queue: int, slot: int) -> None:
    """Take a request out of its list and free its slot; the caller renews the oldest ones."""
    after, before = c.queued[slot, NEXT], c.queued[slot, BEFORE]
    if before >= 0:
        c.queued[before, NEXT] = after
    else:
        c.banks[bank, HEAD + queue] = after
    if after >= 0:
        c.queued[after, BEFORE] = before
    else:
        c.banks[bank, TAIL + queue] = before
    c.queued[slot, NEXT] = c.v[FREE + queue]
    c.v[FREE + queue] = slot
    c.v[QUEUED + queue] -= 1
    c.rows[queue, _place_of_row(bank, c.queued[slot, CODE] >> ROW_AT)] -= 1
    if queue:
        c.written[place(c.queued[slot, CODE])] -= 1


@part
def next_hit(c: Channel, bank: int, queue: int, slot: int) -> None:
    """Make the first hit from `slot` on the oldest one of the bank."""
    row = c.banks[bank, ROW]
    if c.rows[queue, _place_of_row(bank, row)] == 0:
        slot = NONE
    while slot >= 0 and c.queued[slot, CODE] >> ROW_AT != row:
        slot = c.queued[slot, NEXT]
    if slot >= 0 or c.banks[bank, HIT_SLOT + queue] >= 0:
        set_hit(c, bank, queue, slot)


@part
def set_hit(c: Channel, bank: int, queue: int, slot: int) -> None:
    """Make `slot` the oldest hit of a bank, or note that there is none."""
    p, g, bit = p_of(c, bank), g_of(c, bank), c.banks[bank, ITS_BIT]
    c.banks[bank, HIT_SLOT + queue] = slot
    best = c.groups[g, BEST + queue]
    if slot < 0:
        c.banks[bank, HIT_AGE + queue] = FAR
        c.ranks[p, HIT + queue] &= ~bit
    else:
        c.banks[bank, HIT_AGE + queue] = c.queued[slot, AGE]
        c.ranks[p, HIT + queue] |= bit
    if c.n[ROW_HIT_FIRST]:
        renew_key(c, bank, queue)
    if best == bank:
        _renew_best(c, p, g, queue)
    elif slot >= 0 and (best < 0 or _older(c, bank, best, queue)):
        c.groups[g, BEST + queue] = bank
        c.ranks[p, GROUPS + queue] |= c.banks[bank, G_BIT]


@part
def renew_key(c: Channel, bank: int, queue: int) -> None:
    """Renew the key of a bank's oldest request that needs a row command.

    There is none while an activated request waits for its access, or where an older request hits
    the open row and hits go first.
    """
    age = c.banks[bank, OTHER_AGE + queue]
    lane = lane_of(c, bank)
    busy = c.ranks[p_of(c, bank), ACTIVE] & c.banks[bank, ITS_BIT] != 0
    hidden = c.n[ROW_HIT_FIRST] != 0 and c.banks[bank, HIT_AGE + queue] < age
    none = age == FAR or busy or hidden
    c.lanes[KEY + queue, lane] = NOBODY if none else age << LANE_BITS | lane


@part
def _older(c: Channel, bank: int, than: int, queue: int) -> bool:
    older: bool = c.banks[bank, HIT_AGE + queue] < c.banks[than, HIT_AGE + queue]
    return older


@part
def _renew_best(c: Channel, p: int, g: int, queue: int) -> None:
    """Find the oldest hit of a group."""
    size = c.n[G_BANKS]
    first = g * size
    best, oldest = NONE, FAR
    for bank in range(first, first + size):
        age = c.banks[bank, HIT_AGE + queue]
        if age < oldest:
            best, oldest = bank, age
    c.groups[g, BEST + queue] = best
    if best < 0:
        c.ranks[p, GROUPS + queue] &= ~c.banks[first, G_BIT]


@part
def _set_other(c: Channel, bank: int, queue: int, slot: int) -> None:
    p, bit = p_of(c, bank), c.banks[bank, ITS_BIT]
    c.banks[bank, OTHER_SLOT + queue] = slot
    if slot < 0:
        c.banks[bank, OTHER_AGE + queue] = FAR
        c.ranks[p, OTHER + queue] &= ~bit
    else:
        c.banks[bank, OTHER_AGE + queue] = c.queued[slot, AGE]
        c.ranks[p, OTHER + queue] |= bit
    renew_key(c, bank, queue)


@part
def open_row(c: Channel, bank: int, row: int) -> None:
    """Open a row and sort the bank's requests into hits and others."""
    c.banks[bank, ROW] = row
    c.ranks[p_of(c, bank), OPENED] |= c.banks[bank, ITS_BIT]
    c.lanes[IS_OPEN, lane_of(c, bank)] = -1
    for queue in range(2):
        slot = c.banks[bank, HEAD + queue]
        later = c.rows[queue, _place_of_row(bank, row)] == 0 or _goes_first(c, bank, queue)
        hit, other = NONE, NONE
        while slot >= 0 and (other < 0 or (hit < 0 and not later)):
            if c.queued[slot, CODE] >> ROW_AT == row:
                if hit < 0:
                    hit = slot
            elif other < 0:
                other = slot
            slot = c.queued[slot, NEXT]
        if hit >= 0 and not later:
            set_hit(c, bank, queue, hit)
        _set_other(c, bank, queue, other)


@part
def close_row(c: Channel, bank: int) -> None:
    """Close the bank: no request hits, the oldest one is next."""
    c.banks[bank, ROW] = NONE
    c.ranks[p_of(c, bank), OPENED] &= ~c.banks[bank, ITS_BIT]
    c.lanes[IS_OPEN, lane_of(c, bank)] = 0
    for queue in range(2):
        if c.banks[bank, HIT_SLOT + queue] >= 0:
            set_hit(c, bank, queue, NONE)
        _set_other(c, bank, queue, c.banks[bank, HEAD + queue])


@apart
def close_all(memory: Ints, p: int) -> None:
    """Close all banks of a rank or pseudo-channel."""
    c = channel(memory)
    opened = c.ranks[p, OPENED]
    while opened != 0:
        close_row(c, p * c.n[P_BANKS] + lowest(opened))
        opened &= opened - 1
