"""The loops over events: from one command to the next, by kind of bus.

Nothing happens between two events: each round looks for the earliest tick at which a command can be
issued, a request arrives or a refresh falls due. Whether writes drain is decided on every
tick on which queued requests are looked at; between events the answer does not change.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from opbyte.core.loops import compiled, part
from opbyte.hw_models.memory.dram_kernel.bits import index
from opbyte.hw_models.memory.dram_kernel.choice import (
    ACCESS,
    CLOSE,
    HITS,
    OPEN,
    Candidate,
    activated_first,
    best_hit,
    best_row,
    next_mode,
    urgent_first,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.commands import (
    await_access,
    fall_due,
    issue_column,
    issue_row,
    take,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.queues import bin_of, close_row, has_room, open_row, send
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT,
    ACT2,
    BUS,
    CAS,
    COMMAND_AT,
    COMPLETED,
    DUAL,
    HALF,
    HISTOGRAM,
    INTERVAL,
    LATENCY,
    LPDDR,
    T_AAD,
    TICKS,
    WCK_READ,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.state import (
    ACTIVATING,
    ACTIVE_QUEUE,
    AWAIT_AGE,
    AWAIT_QUEUE,
    AWAIT_ROW,
    BLOCKED,
    CAS_BANK,
    CAS_QUEUE,
    DEADLINE,
    FAR,
    FAULT,
    ITS_P,
    MODE,
    NONE,
    NOW,
    ODD,
    REFRESH_AT,
    RING,
    RING_AT,
    RISE_AT,
    RISE_BANK,
    RISE_COMMAND,
    RISE_P,
    SEND_AT,
    SENT,
    URGENT_FROM,
    URGENT_TO,
    WCK,
    Channel,
    Ints,
    channel,
    channel_of,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.timing import activated

#: Values of FAULT: more refreshes due than there is room for; nothing can ever be issued again.
LATE, STUCK = 1, 2


def run(memory: Ints, codes: Ints, stop: int) -> None:
    """Go on until the first `stop` of `codes` have been accepted; SENT counts them."""
    loops = {DUAL: _run_dual, HALF: _run_dual, LPDDR: _run_lpddr}
    bus = int(channel_of(memory).n[BUS])
    compiled(loops.get(bus, _run_single), kernel_files())(memory, codes, stop)


@cache
def kernel_files() -> tuple[Path, ...]:
    """Return the files whose functions and constants may be compiled into a loop."""
    here = Path(__file__).parent
    return (*sorted(here.glob("*.py")), here.parent / "addresses.py", here.parent / "standards.py")


@part
def _arrive(c: Channel, codes: Ints, stop: int) -> bool:
    """Send a request if one is due by now; return whether there may be more to send."""
    if c.v[BLOCKED] != 0 or c.v[SEND_AT] >= c.v[NOW]:
        return False
    if send(c, codes[c.v[SENT]], c.v[SEND_AT]):
        c.out[TICKS] = c.v[SEND_AT]
        c.v[SEND_AT] += c.n[INTERVAL]
        if c.v[SENT] < stop and not has_room(c, codes[c.v[SENT]]):
            c.v[BLOCKED] = 1
        return True
    c.v[BLOCKED] = 1
    return False


@part
def _unblock(c: Channel, now: int) -> None:
    """A slot is free: the next attempt to send is on the next multiple of the interval."""
    if c.v[BLOCKED]:
        c.v[BLOCKED] = 0
        every = c.n[INTERVAL]
        c.v[SEND_AT] = now if every == 1 else (now + every - 1) // every * every


@part
def _before(c: Channel, at: int, mode: int, urgent: bool) -> bool:
    """Let a request arrive or a refresh fall due if that comes no later than `at`."""
    soon = c.v[REFRESH_AT]
    if c.v[BLOCKED] == 0:
        soon = min(soon, c.v[SEND_AT] + 1)
    if soon > at:
        return False
    if soon >= FAR:
        c.v[FAULT] = STUCK
        return True
    if soon > c.v[NOW] and not urgent:
        c.v[MODE] = mode
    c.v[NOW] = soon
    if c.v[REFRESH_AT] == soon:
        fall_due(c.memory, soon)
    return True


@part
def _best_on_one_bus(c: Channel, mode: int, urgent: bool, opens: bool) -> Candidate:
    """Return the next command: activated requests first, then refreshes, then the queue."""
    now = c.v[NOW]
    found = activated_first(c, now)
    if urgent:
        first = urgent_first(c.memory, 0)
        return first if first[0] < found[0] else found
    bound = (found[0] - 1, FAR, NONE, ACCESS)
    queued = best_hit(c, mode, 0, now, bound)
    queued = best_row(c, mode, 0, now, queued, opens)
    return queued if queued[2] >= 0 else found


@part
def _run_single(memory: Ints, codes: Ints, stop: int) -> None:
    c = channel(memory)
    while c.v[FAULT] == 0:
        if _arrive(c, codes, stop):
            if c.v[SENT] == stop:
                return
            continue
        urgent = c.v[URGENT_FROM] != c.v[URGENT_TO]
        mode = index(next_mode(c))
        found = _best_on_one_bus(c, mode, urgent, opens=True)
        if _before(c, found[0], mode, urgent):
            continue
        _issue_one(c, found, mode, urgent)


@part
def _issue_one(c: Channel, found: Candidate, mode: int, urgent: bool) -> None:
    at, kind = found[0], found[3]
    if (at > c.v[NOW] or kind != ACCESS) and not urgent:
        c.v[MODE] = mode
    c.v[NOW] = at
    if kind in (HITS, ACCESS):
        issue_column(c, found[2], kind, mode, at)
    else:
        issue_row(c, found, mode, at)
    if kind in (HITS, OPEN):
        _unblock(c, at)
    c.v[NOW] = at + 1


@part
def _run_dual(memory: Ints, codes: Ints, stop: int) -> None:
    c = channel(memory)
    odd = c.v[ODD]
    while c.v[FAULT] == 0:
        if _arrive(c, codes, stop):
            if c.v[SENT] == stop:
                return
            continue
        now = c.v[NOW]
        urgent = c.v[URGENT_FROM] != c.v[URGENT_TO]
        mode = index(next_mode(c))
        column = activated_first(c, now)
        if urgent:
            row = urgent_first(c.memory, odd)
        else:
            queued = best_hit(c, mode, odd, now, (column[0] - 1, FAR, NONE, ACCESS))
            if queued[2] >= 0:
                column = queued
            row = best_row(c, mode, odd, now, (column[0], FAR, NONE, CLOSE), opens=True)
        at = column[0]
        if row[2] >= 0 and row[0] < at:
            at = row[0]
        if _before(c, at, mode, urgent):
            continue
        c.v[NOW] = at
        if not urgent:
            c.v[MODE] = mode
        if column[0] == at:
            issue_column(c, column[2], column[3], mode, at)
            if column[3] == HITS:
                _unblock(c, at)
            row, mode = _row_again(c, row, column[2], mode, odd, urgent)
        if row[2] >= 0 and row[0] == at:
            _issue_on_row_bus(c, row, mode, at)
        c.v[NOW] = at + 1


@part
def _issue_on_row_bus(c: Channel, row: Candidate, mode: int, at: int) -> None:
    command = issue_row(c, row, mode, at)
    if row[3] == OPEN:
        _unblock(c, at)
    if at & c.v[ODD]:
        c.v[RISE_COMMAND], c.v[RISE_BANK] = command, row[2]
        c.v[RISE_P] = c.banks[row[2], ITS_P]
        c.v[RISE_AT] = at + (3 if command == ACT else 1)


@part
def _row_again(
    c: Channel, row: Candidate, bank: int, mode: int, odd: int, urgent: bool
) -> tuple[Candidate, int]:
    """Return the row command of this tick after a column command to `bank`, and the mode."""
    now = c.v[NOW]
    if urgent:
        return urgent_first(c.memory, odd), mode
    after = index(next_mode(c))
    c.v[MODE] = after
    if after != mode or (row[0] == now and row[2] == bank):
        row = best_row(c, after, odd, now, (now, FAR, NONE, CLOSE), opens=True)
    return row, after


@part
def _run_lpddr(memory: Ints, codes: Ints, stop: int) -> None:
    c = channel(memory)
    while c.v[FAULT] == 0:
        if _arrive(c, codes, stop):
            if c.v[SENT] == stop:
                return
            continue
        now = c.v[NOW]
        urgent = c.v[URGENT_FROM] != c.v[URGENT_TO]
        if c.v[CAS_BANK] >= 0:
            if not _before(c, now, c.v[MODE], urgent=True):
                _access_after_cas(c, now)
            continue
        mode = index(next_mode(c))
        being = c.v[ACTIVATING] >= 0
        found = _best_on_one_bus(c, mode, urgent, opens=not being)
        until = min(found[0], now) if being else found[0]
        if _before(c, until, mode, urgent):
            continue
        if being and (c.v[DEADLINE] <= now or found[0] > now):
            if c.v[DEADLINE] > now and not urgent:
                c.v[MODE] = mode
            _second_activation(c, now)
        else:
            _issue_beside_activation(c, found, mode, urgent)


@part
def _issue_beside_activation(c: Channel, found: Candidate, mode: int, urgent: bool) -> None:
    """Issue a command of LPDDR5: an access keeps the write clock running, or CAS starts it."""
    at, _, bank, kind = found
    if kind == OPEN:
        c.v[MODE] = mode
        _first_activation(c, bank, mode, at)
    elif kind not in (HITS, ACCESS):
        _issue_one(c, found, mode, urgent)
    elif at >= c.v[WCK]:
        _start_write_clock(c, found, mode, urgent)
    else:
        queue = c.banks[bank, ACTIVE_QUEUE] if kind == ACCESS else mode
        c.v[WCK] = max(c.v[WCK], at + c.n[WCK_READ + queue])
        _issue_one(c, found, mode, urgent)


@part
def _start_write_clock(c: Channel, found: Candidate, mode: int, urgent: bool) -> None:
    """Issue CAS, one tick ahead of the access, unless ACT-2 must go within that tick."""
    at, _, bank, kind = found
    if (at > c.v[NOW] or kind != ACCESS) and not urgent:
        c.v[MODE] = mode
    if c.v[ACTIVATING] >= 0 and c.v[DEADLINE] <= at + 1:
        _second_activation(c, at)
        return
    c.out[COMMAND_AT + CAS] += 1
    c.v[CAS_BANK], c.v[CAS_QUEUE] = bank, mode if kind == HITS else NONE
    c.v[NOW] = at + 1


@part
def _access_after_cas(c: Channel, now: int) -> None:
    bank, queue = c.v[CAS_BANK], c.v[CAS_QUEUE]
    c.v[CAS_BANK] = NONE
    of = c.banks[bank, ACTIVE_QUEUE] if queue < 0 else queue
    c.v[WCK] = max(c.v[WCK], now + c.n[WCK_READ + of])
    issue_column(c, bank, ACCESS if queue < 0 else HITS, queue, now)
    if queue >= 0:
        _unblock(c, now)
    c.v[NOW] = now + 1


@part
def _first_activation(c: Channel, bank: int, queue: int, now: int) -> None:
    """Issue ACT-1; ACT-2 follows when the bus is free, at the latest tAAD after it."""
    age, row = take(c, bank, queue)
    activated(c, bank, now)
    close_row(c, bank)
    c.v[ACTIVATING], c.v[DEADLINE] = bank, now + c.n[T_AAD]
    c.v[AWAIT_AGE], c.v[AWAIT_QUEUE], c.v[AWAIT_ROW] = age, queue, row
    _unblock(c, now)
    c.v[NOW] = now + 1


@part
def _second_activation(c: Channel, now: int) -> None:
    bank = c.v[ACTIVATING]
    c.out[COMMAND_AT + ACT2] += 1
    c.v[ACTIVATING] = NONE
    acted = c.v[DEADLINE] - c.n[T_AAD]
    await_access(c, bank, c.v[AWAIT_QUEUE], c.v[AWAIT_AGE], acted, now)
    open_row(c, bank, c.v[AWAIT_ROW])
    c.v[NOW] = now + 1


def settle(memory: Ints, out: Ints) -> None:
    """Take off `out`, a copy of the counts, the reads whose data are still under way."""
    compiled(_settle, kernel_files())(memory, out)


@part
def _settle(memory: Ints, out: Ints) -> None:
    """Do so. Answers leave in the order of their commands: one that waits holds those behind it."""
    c = channel(memory)
    end = c.out[TICKS]
    newest = c.v[RING_AT]
    waits = False
    open_reads = 0
    for back in range(max(0, newest - RING), newest):
        at = back & (RING - 1)
        if waits or c.ring[at, 0] > end:
            waits = True
            open_reads += 1
            out[LATENCY] -= c.ring[at, 1]
            out[HISTOGRAM + bin_of(c.ring[at, 1])] -= 1
    out[COMPLETED] = newest - open_reads
