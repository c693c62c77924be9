"""The compiled loop: one flash device, event by event, over one block of whole numbers (`layout`).

The bus of a channel has one event at a time; reads of arrays take equally long, and so end in the
order in which they began, as do programs and the messages of each direction of the link. So there
is one slot for each channel and one for the head of each of these rings, and the next event is the
least of a row of numbers. `twin.py` says the same in objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import SimulationError
from opbyte.core.loops import apart, compiled, part
from opbyte.hw_models.memory.nand_kernel.front import (
    arrived,
    buffer_passed,
    delivered_down,
    delivered_up,
    enter,
    finished,
    flushed,
    ring_in,
)
from opbyte.hw_models.memory.nand_kernel.layout import (
    C_BUSY,
    C_KIND,
    C_MAPPING,
    C_READS,
    C_WHO,
    CACHE_READ,
    CHANNEL,
    CHANNELS,
    COMMANDS_FIRST,
    COUNTED,
    DEPTH,
    ENTERED,
    FAR,
    MAPPING_READ,
    N_BUS,
    N_PROGRAMS,
    N_READS,
    NOW,
    O_CHANNELS,
    O_PIECES,
    O_REQUESTS,
    O_RINGS,
    O_TARGETS,
    O_TIMES,
    P_BYTES,
    P_LPN,
    P_NEXT,
    P_REQUEST,
    P_TARGET,
    PIECE,
    PROGRAM,
    Q_DONE,
    Q_ENTERED,
    Q_LEFT,
    R_AT,
    R_FIRST,
    READ,
    REQUEST,
    REQUESTS,
    S_BUFFER,
    S_CORE,
    S_DOWN,
    S_PROGRAM,
    S_READ,
    S_UP,
    SLOTS,
    T_BUSY,
    T_FIRST,
    T_HELD,
    T_OUT,
    T_WRITE,
    TARGET,
    WAYS,
    block_of,
)  # fmt: skip
from opbyte.hw_models.memory.nand_kernel.pages import entries_arrived
from opbyte.hw_models.memory.nand_kernel.queues import append, pop, release
from opbyte.hw_models.memory.nand_kernel.rings import drop, push, show
from opbyte.hw_models.memory.nand_kernel.setup import Counts, Job
from opbyte.hw_models.memory.nand_kernel.turns import (
    COMMAND_SENT,
    bus_event,
    take_turns,
    transfer_ps,
)

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["replay"]

TRANSFERRED = COMMAND_SENT + 1


@part
def next_slot(m: Ints) -> int:
    """Return the slot of the next event, -1 if there is none."""
    at, slots = m[O_TIMES], m[SLOTS]
    best, order, found = FAR, FAR, -1
    for s in range(slots):
        time = m[at + s]
        if time < best or (time == best and m[at + slots + s] < order):
            best, order, found = time, m[at + slots + s], s
    return found if best < FAR else -1


@part
def start_transfer(m: Ints, c: int, piece: int) -> None:
    ps = transfer_ps(m, m[m[O_PIECES] + piece * PIECE + P_BYTES])
    m[N_BUS] += ps
    bus_event(m, c, ps, TRANSFERRED, piece)


@part
def next_transfer(m: Ints, c: int) -> None:
    """Move the data that have waited longest, mapping pages first; before or else, commands."""
    channel = m[O_CHANNELS] + c * CHANNEL
    if m[COMMANDS_FIRST]:
        take_turns(m, c)
        if m[channel + C_BUSY]:
            return
    if m[channel + C_MAPPING] >= 0:
        start_transfer(m, c, pop(m, channel + C_MAPPING))
    elif m[channel + C_READS] >= 0:
        start_transfer(m, c, pop(m, channel + C_READS))
    elif not m[COMMANDS_FIRST]:
        take_turns(m, c)


@part
def data_ready(m: Ints, c: int, target: int) -> None:
    """Hand the page registers of a target to the channel."""
    channel, first = m[O_CHANNELS] + c * CHANNEL, m[target + T_FIRST]
    head = m[m[O_PIECES] + first * PIECE + P_REQUEST] == MAPPING_READ
    queue = channel + (C_MAPPING if head else C_READS)
    piece = first
    while piece >= 0:
        after = m[m[O_PIECES] + piece * PIECE + P_NEXT]
        m[target + T_OUT] += 1
        m[N_READS] += 1
        if m[channel + C_BUSY] or m[COMMANDS_FIRST]:
            append(m, queue, piece)
        else:
            start_transfer(m, c, piece)
        piece = after
    if m[CACHE_READ]:
        m[target + T_BUSY] = 0


@part
def programmed(m: Ints, target: int, sizes: Ints, lpns: Ints) -> None:
    piece = m[target + T_FIRST]
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        after = m[at + P_NEXT]
        m[N_PROGRAMS] += 1
        if m[at + P_REQUEST] >= 0:
            size, lpn = m[at + P_BYTES], m[at + P_LPN]
            release(m, piece)
            flushed(m, size, lpn, sizes, lpns)
        else:
            release(m, piece)
        piece = after
    m[target + T_BUSY] = 0


@part
def array_done(m: Ints, t: int, sizes: Ints, lpns: Ints) -> None:
    target, c = m[O_TARGETS] + t * TARGET, t // m[WAYS]
    if m[target + T_WRITE]:
        programmed(m, target, sizes, lpns)
    elif m[CACHE_READ] and m[target + T_OUT]:
        m[target + T_HELD] = 1
    else:
        data_ready(m, c, target)
    if not m[m[O_CHANNELS] + c * CHANNEL + C_BUSY]:
        next_transfer(m, c)


@part
def command_sent(m: Ints, c: int, t: int) -> None:
    target = m[O_TARGETS] + t * TARGET
    if m[target + T_WRITE]:
        push(m, S_PROGRAM, m[NOW] + m[PROGRAM], 0, t)
    else:
        push(m, S_READ, m[NOW] + m[READ], 0, t)
    m[m[O_CHANNELS] + c * CHANNEL + C_BUSY] = 0
    next_transfer(m, c)


@part
def transferred(m: Ints, c: int, piece: int) -> None:
    at = m[O_PIECES] + piece * PIECE
    target = m[O_TARGETS] + m[at + P_TARGET] * TARGET
    request, lpn = m[at + P_REQUEST], m[at + P_LPN]
    release(m, piece)
    if request == MAPPING_READ:
        entries_arrived(m, lpn)
    else:
        m[m[O_REQUESTS] + request * REQUEST + Q_LEFT] -= 1
        finished(m, request)
    m[target + T_OUT] -= 1
    if m[target + T_OUT] == 0:
        if m[target + T_HELD]:
            m[target + T_HELD] = 0
            data_ready(m, c, target)
        elif not m[CACHE_READ]:
            m[target + T_BUSY] = 0
    m[m[O_CHANNELS] + c * CHANNEL + C_BUSY] = 0
    next_transfer(m, c)


@apart
def front_event(m: Ints, slot: int, kind: int, who: int, sizes: Ints, lpns: Ints) -> None:
    """Handle a message, a command of the host, or what passed the write buffer."""
    if slot == S_UP:
        delivered_up(m, kind, who)
    elif slot == S_DOWN:
        delivered_down(m, kind, who, sizes, lpns)
    elif slot == S_BUFFER:
        buffer_passed(m, who)
    elif slot == S_CORE:
        ring_in(m, who)
    else:
        arrived(m, who, sizes, lpns)
    if slot in (S_UP, S_DOWN, S_BUFFER):
        show(m, slot)


@part
def _run(m: Ints, sizes: Ints, lpns: Ints) -> None:
    for _ in range(min(m[DEPTH], m[REQUESTS])):
        enter(m)
    channels = m[CHANNELS]
    while True:
        slot = next_slot(m)
        if slot < 0:
            break
        m[NOW] = m[m[O_TIMES] + slot]
        if slot < channels:
            at = m[O_CHANNELS] + slot * CHANNEL
            m[m[O_TIMES] + slot] = FAR
            if m[at + C_KIND] == COMMAND_SENT:
                command_sent(m, slot, m[at + C_WHO])
            else:
                transferred(m, slot, m[at + C_WHO])
            continue
        ring = slot - channels
        head = m[O_RINGS] + 4 * ring
        entry = m[head + R_AT] + 4 * m[head + R_FIRST]
        kind, who = m[entry + 2], m[entry + 3]
        drop(m, ring)
        if ring in (S_READ, S_PROGRAM):
            array_done(m, who, sizes, lpns)
        else:
            front_event(m, ring, kind, who, sizes, lpns)


HERE = Path(__file__).parent
_FILES = tuple(
    HERE / f"{name}.py"
    for name in ("loops", "front", "pages", "turns", "queues", "rings", "layout", "setup")
)


def replay(job: Job) -> tuple[Any, Any, Counts]:
    """Return when each request entered and was done (-1: never), picoseconds, and counts.

    Raises:
        SimulationError: If a request that was sent is never answered.
    """
    m = block_of(job)
    compiled(_run, _FILES)(m, job.bytes, job.lpn)
    table = m[m[O_REQUESTS] : m[O_REQUESTS] + job.requests * REQUEST].reshape(-1, REQUEST)
    lost = int(m[ENTERED] - np.count_nonzero(table[:, Q_DONE] >= 0))
    if lost:
        raise SimulationError(f"{lost} requests to flash were never answered")
    counts = Counts(*(int(m[at]) for at in COUNTED))
    return table[:, Q_ENTERED].copy(), table[:, Q_DONE].copy(), counts
