"""What issuing a command changes."""

from __future__ import annotations

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.addresses import ROW_AT
from opbyte.hw_models.memory.dram_kernel.bits import index
from opbyte.hw_models.memory.dram_kernel.choice import (
    HITS,
    OPEN,
    URGENT,
    Candidate,
    keep_first,
    urgent_command,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.queues import (
    close_all,
    close_row,
    leave,
    next_hit,
    open_row,
    renew_key,
    under_way,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT,
    ADAPTIVE,
    ALL_BANK,
    BANKS,
    BY_STACK,
    CONFLICTS,
    IN_TURN,
    MISSES,
    P_BANKS,
    P_COUNT,
    POLICY,
    PRE,
    PREAB,
    RD,
    RDA,
    READ_LATENCY,
    READS,
    REFAB,
    REFPB,
    REFRESH,
    S_BANKS,
    T_REFI,
    T_REFI_BANK,
    T_RFC_BANK,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.setup import (
    HITS as COUNT_HITS,
)
from opbyte.hw_models.memory.dram_kernel.setup import (
    OPEN as STAYS_OPEN,
)
from opbyte.hw_models.memory.dram_kernel.state import (
    ACTIVE,
    ACTIVE_AGE,
    ACTIVE_AT,
    ACTIVE_BEFORE,
    ACTIVE_HEAD,
    ACTIVE_NEXT,
    ACTIVE_QUEUE,
    ACTIVE_TAIL,
    AGE,
    CODE,
    COUNTED,
    DUE,
    FAULT,
    HEAD,
    HIT_SLOT,
    ITS_BIT,
    MOST_URGENT,
    NEXT,
    NONE,
    OTHER_SLOT,
    REFRESH_AT,
    ROWS_HOLD,
    STALE,
    TURN,
    URGENT_FROM,
    URGENT_TO,
    Channel,
    Ints,
    channel,
    p_of,
    s_of,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.timing import activated, issued, issued_to_all


@part
def issue_row(c: Channel, found: Candidate, queue: int, now: int) -> int:
    """Issue a precharge or an activation for a queued request, or a refresh; return the command."""
    bank, kind = index(found[2]), found[3]
    c.v[STALE] |= c.v[ROWS_HOLD]
    if kind == URGENT:
        return refresh(c.memory, now)
    slot = index(c.banks[bank, OTHER_SLOT + queue])
    if kind == OPEN:
        return activate(c, bank, queue, now)
    if c.queued[slot, COUNTED] == 0:
        c.queued[slot, COUNTED] = 1
        c.out[CONFLICTS] += 1
    issued(c, PRE, bank, now)
    close_row(c, bank)
    return PRE


@part
def issue_column(c: Channel, bank: int, kind: int, queue: int, now: int) -> None:
    """Read or write: the oldest hit of a bank, or the request that the bank was activated for."""
    bank = index(bank)
    if kind == HITS:
        slot = index(c.banks[bank, HIT_SLOT + queue])
        if c.queued[slot, COUNTED] == 0:
            c.out[COUNT_HITS] += 1
        age, after = c.queued[slot, AGE], c.queued[slot, NEXT]
        leave(c, bank, queue, slot)
        next_hit(c, bank, queue, after)
    else:
        _no_longer_active(c, bank)
        age, queue = c.banks[bank, ACTIVE_AGE], index(c.banks[bank, ACTIVE_QUEUE])
        if c.banks[bank, HEAD + queue] >= 0:
            next_hit(c, bank, queue, c.banks[bank, HEAD + queue])
        renew_key(c, bank, 0)
        renew_key(c, bank, 1)
    _transfer(c, bank, queue, age, now)
    c.v[STALE] = 1


@part
def _transfer(c: Channel, bank: int, queue: int, age: int, now: int) -> None:
    """Issue RD or WR, or with automatic precharge where the policy wants the row closed."""
    command = RD + queue
    shuts = False
    if c.n[POLICY] != STAYS_OPEN:
        waits = c.ranks[p_of(c, bank), ACTIVE] & c.banks[bank, ITS_BIT] != 0
        again = c.n[POLICY] == ADAPTIVE and c.banks[bank, HIT_SLOT + queue] >= 0
        shuts = not waits and not again
    if shuts:
        command += RDA - RD
    issued(c, command, bank, now)
    if shuts:
        close_row(c, bank)
    c.out[READS + queue] += 1
    if queue == 0:
        end = now + c.n[READ_LATENCY]
        under_way(c, end, end - age)


@part
def take(c: Channel, bank: int, queue: int) -> tuple[int, int]:
    """Take the request that a closed bank is activated for; return its arrival and its row."""
    slot = index(c.banks[bank, OTHER_SLOT + queue])
    if c.queued[slot, COUNTED] == 0:
        c.out[MISSES] += 1
    age, row = c.queued[slot, AGE], c.queued[slot, CODE] >> ROW_AT
    leave(c, bank, queue, slot)
    return age, row


@part
def activate(c: Channel, bank: int, queue: int, now: int) -> int:
    """Activate the row of the oldest request of a closed bank; its slot is free from now on."""
    age, row = take(c, bank, queue)
    activated(c, bank, now)
    await_access(c, bank, queue, age, now, now)
    open_row(c, bank, row)
    return ACT


@part
def await_access(c: Channel, bank: int, queue: int, age: int, acted: int, now: int) -> None:
    """Note that the request of a bank waits for which ACT was issued at tick `acted`."""
    c.ranks[p_of(c, bank), ACTIVE] |= c.banks[bank, ITS_BIT]
    c.banks[bank, ACTIVE_AGE], c.banks[bank, ACTIVE_QUEUE] = age, queue
    last = c.v[ACTIVE_TAIL]
    c.banks[bank, ACTIVE_AT], c.v[ACTIVE_TAIL] = acted, bank
    c.banks[bank, ACTIVE_NEXT], c.banks[bank, ACTIVE_BEFORE] = NONE, last
    if last >= 0:
        c.banks[last, ACTIVE_NEXT] = bank
    else:
        c.v[ACTIVE_HEAD] = bank
    keep_first(c, bank, now + 1)


@part
def _no_longer_active(c: Channel, bank: int) -> None:
    c.ranks[p_of(c, bank), ACTIVE] &= ~c.banks[bank, ITS_BIT]
    after, before = c.banks[bank, ACTIVE_NEXT], c.banks[bank, ACTIVE_BEFORE]
    if before >= 0:
        c.banks[before, ACTIVE_NEXT] = after
    else:
        c.v[ACTIVE_HEAD] = after
    if after >= 0:
        c.banks[after, ACTIVE_BEFORE] = before
    else:
        c.v[ACTIVE_TAIL] = before


@apart
def refresh(memory: Ints, now: int) -> int:
    """Issue the refresh that is due first, or its precharge; return the command."""
    c = channel(memory)
    command, bank = urgent_command(c.memory)
    p = p_of(c, bank)
    if command in (PREAB, REFAB):
        issued_to_all(c.memory, command, p, now)
        if command == PREAB:
            close_all(c.memory, p)
    else:
        issued(c, command, bank, now)
        if command == PRE:
            close_row(c, bank)
    if command in (REFAB, REFPB):
        c.v[URGENT_FROM] += 1
    return command


@apart
def fall_due(memory: Ints, now: int) -> None:
    """Queue the refreshes that fall due at tick `now`."""
    c = channel(memory)
    if c.n[REFRESH] == ALL_BANK:
        c.v[REFRESH_AT] += c.n[T_REFI]
        for p in range(c.n[P_COUNT]):
            _urge(c.memory, REFAB, p * c.n[P_BANKS])
    elif c.n[REFRESH] == IN_TURN:
        c.v[REFRESH_AT] += c.n[T_REFI_BANK]
        _urge(c.memory, REFPB, c.v[TURN])
        c.v[TURN] = (c.v[TURN] + 1) % c.n[BANKS]
    elif c.n[REFRESH] == BY_STACK:
        _due_by_stack(c.memory, now)


@apart
def _due_by_stack(memory: Ints, now: int) -> None:
    """Queue the same bank of each pseudo-channel, one per tick, a stack id after the other.

    All banks of a stack id are refreshed before its set starts anew, tRFCpb after it ended. TURN
    counts banks, DUE the pseudo-channels that have had this bank; REFRESH_AT is the next tick at
    which there is something to do, `sets[0, 2]` when the next bank falls due.
    """
    c = channel(memory)
    if c.v[DUE] == 0:
        for p in range(c.n[P_COUNT]):
            stack = s_of(c, p * c.n[P_BANKS] + c.v[TURN])
            if now < c.sets[stack, 1]:
                c.v[REFRESH_AT] = now + 1
                return
        c.sets[0, 2] = c.v[REFRESH_AT] + c.n[T_REFI_BANK]
    bank = c.v[DUE] * c.n[P_BANKS] + c.v[TURN]
    _urge(c.memory, REFPB, bank)
    stack = s_of(c, bank)
    c.sets[stack, 0] += 1
    if c.sets[stack, 0] == c.n[S_BANKS]:
        c.sets[stack, 0] = 0
        c.sets[stack, 1] = now + c.n[T_RFC_BANK]
    c.v[DUE] += 1
    if c.v[DUE] == c.n[P_COUNT]:
        c.v[DUE] = 0
        c.v[TURN] = (c.v[TURN] + 1) % c.n[P_BANKS]
        c.v[REFRESH_AT] = max(c.sets[0, 2], now + 1)
    else:
        c.v[REFRESH_AT] = now + 1


@apart
def _urge(memory: Ints, command: int, bank: int) -> None:
    c = channel(memory)
    if c.v[URGENT_TO] - c.v[URGENT_FROM] >= MOST_URGENT:
        c.v[FAULT] = 1
        return
    at = c.v[URGENT_TO] % MOST_URGENT
    c.urgent[at, 0], c.urgent[at, 1] = command, bank
    c.v[URGENT_TO] += 1
