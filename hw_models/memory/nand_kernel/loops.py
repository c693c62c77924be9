"""The compiled loop: one flash device, event by event, over one block of whole numbers (`layout`).

The bus of a channel has one event at a time; reads of arrays take equally long, and so end in the
order in which they began, as do programs and the messages of each direction of the link. So there
is one number for each channel and one for the head of each of these rings, and the next event is
the least of a row of numbers. `twin.py` says the same in objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import SimulationError
from opbyte.core.loops import apart, bare, compiled, part
from opbyte.hw_models.memory.nand_kernel.collect import wiped, written_back
from opbyte.hw_models.memory.nand_kernel.front import (
    RING,
    TAKE,
    arrived,
    buffer_passed,
    delivered_up,
    down,
    enter,
    finished,
    flushed,
    rung,
    write,
)
from opbyte.hw_models.memory.nand_kernel.layout import (
    ANSWERS,
    C_BUSY,
    C_KIND,
    C_MAPPING,
    C_MOVES,
    C_READS,
    C_READY,
    C_WHO,
    CACHE_READ,
    CHANNEL,
    COLLECTS,
    COMMANDS_FIRST,
    COPYBACK,
    COUNTED,
    DEPTH,
    DOORBELL,
    ENTERED,
    ERASE,
    ERASES,
    ERASURE,
    FAR,
    FAULT,
    HEADS,
    MAPPING,
    MAPPING_READS,
    MERGE_READ,
    MOVE,
    MOVE_WRITES,
    N_BUS,
    N_PROGRAMS,
    N_READS,
    NOW,
    O_CHANNELS,
    O_PIECES,
    O_REQUESTS,
    O_TARGETS,
    P_BYTES,
    P_LPN,
    P_NEXT,
    P_OTHER,
    P_QUEUE,
    P_REQUEST,
    P_ROW,
    P_TARGET,
    PIECE,
    PROGRAM,
    Q_DONE,
    Q_ENTERED,
    Q_LEFT,
    R_AT,
    R_FIRST,
    READ,
    READS,
    REQUEST,
    REQUESTS,
    RINGS,
    S_BUFFER,
    S_DOWN,
    S_FIRMWARE,
    S_OTHER,
    S_PROGRAM,
    S_READ,
    S_UP,
    SLOT_BITS,
    SLOTS,
    SUSPEND_PROGRAM,
    T_C,
    T_END,
    T_FIRST,
    T_HELD,
    T_KIND,
    T_LATE,
    T_NUMBER,
    T_OUT,
    TARGET,
    TIMES,
    WRITES,
    block_of,
)
from opbyte.hw_models.memory.nand_kernel.pages import entries_arrived, merged, resume_writes
from opbyte.hw_models.memory.nand_kernel.queues import append, pop, release
from opbyte.hw_models.memory.nand_kernel.rings import drop, push, push_sorted
from opbyte.hw_models.memory.nand_kernel.setup import Counts, Job
from opbyte.hw_models.memory.nand_kernel.turns import (
    COMMAND_SENT,
    bus_event,
    enqueue,
    idle,
    mark,
    take_turns,
    transfer_ps,
)

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.blocks import Memory
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["replay"]

TRANSFERRED = COMMAND_SENT + 1


@part
def next_event(m: Ints) -> int:
    """Return the time of the next event, times a power of two, plus its ring or channel."""
    best = FAR
    for s in range(TIMES, TIMES + m[SLOTS]):
        best = min(best, m[s])
    return int(best)


@part
def start_transfer(m: Ints, c: int, piece: int) -> None:
    ps = transfer_ps(m, m[m[O_PIECES] + piece * PIECE + P_BYTES])
    m[N_BUS] += ps
    bus_event(m, c, ps, TRANSFERRED, piece)


@apart
def next_transfer(m: Ints, c: int) -> None:
    """Move the data that have waited longest, mapping pages first; before or else, commands."""
    channel = m[O_CHANNELS] + c * CHANNEL
    if m[COMMANDS_FIRST] and m[channel + C_READY]:
        take_turns(m, c)
        if m[channel + C_BUSY]:
            return
    if m[channel + C_MAPPING] >= 0:
        start_transfer(m, c, pop(m, channel + C_MAPPING))
    elif m[channel + C_READS] >= 0:
        start_transfer(m, c, pop(m, channel + C_READS))
    elif m[channel + C_MOVES] >= 0:
        start_transfer(m, c, pop(m, channel + C_MOVES))
    elif m[channel + C_READY]:
        take_turns(m, c)


@part
def data_ready(m: Ints, c: int, t: int) -> None:
    """Hand the page registers of a target to the channel."""
    channel, target = m[O_CHANNELS] + c * CHANNEL, m[O_TARGETS] + t * TARGET
    queue, kind = channel + C_READS, m[target + T_KIND]
    if kind != READS:
        queue = channel + (C_MAPPING if kind == MAPPING_READS else C_MOVES)
    piece = m[target + T_FIRST]
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
        idle(m, t)


@apart
def programmed(m: Ints, t: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
    """Tell what was programmed or erased, then free the target."""
    target = m[O_TARGETS] + t * TARGET
    piece = m[target + T_FIRST]
    m[target + T_END] = 0
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        after, request, lpn = m[at + P_NEXT], m[at + P_REQUEST], m[at + P_LPN]
        size = m[at + P_BYTES]
        release(m, piece)
        if request == ERASURE:
            resume_writes(m, wiped(m, lpn, f), f)
        else:
            m[N_PROGRAMS] += 1
            if request >= 0 and not m[ANSWERS]:
                m[m[O_REQUESTS] + request * REQUEST + Q_LEFT] -= 1
                finished(m, request)
            elif request >= 0:
                flushed(m, size, lpn, sizes, lpns, masks, f)
            elif request == MOVE:
                m[N_READS] += m[COPYBACK]
                written_back(m, lpn)
        piece = after
    idle(m, t)


@part
def array_done(m: Ints, t: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
    target = m[O_TARGETS] + t * TARGET
    c = m[target + T_C]
    if m[target + T_KIND] >= WRITES:
        programmed(m, t, sizes, lpns, masks, f)
    elif m[CACHE_READ] and m[target + T_OUT]:
        m[target + T_HELD] = 1
    else:
        data_ready(m, c, t)
    if not m[m[O_CHANNELS] + c * CHANNEL + C_BUSY]:
        next_transfer(m, c)


@apart
def long_command(m: Ints, t: int) -> None:
    """Let arrays begin what they may be interrupted in, or what takes another time."""
    target = m[O_TARGETS] + t * TARGET
    kind, ps = m[target + T_KIND], m[PROGRAM]
    if kind < WRITES:
        late, m[target + T_LATE] = m[target + T_LATE], 0
        if late:
            push_sorted(m, S_OTHER, m[NOW] + m[READ] + late, m[target + T_NUMBER], t)
        else:
            push(m, S_READ, m[NOW] + m[READ], 0, t)
        return
    copies = kind == MOVE_WRITES and m[COPYBACK]
    if kind == ERASES:
        ps = m[ERASE]
    elif copies:
        ps += m[READ]
    m[target + T_END] = m[NOW] + ps
    mark(m, t)
    if kind == ERASES or copies:
        push_sorted(m, S_OTHER, m[NOW] + ps, m[target + T_NUMBER], t)
    else:
        push(m, S_PROGRAM, m[NOW] + ps, m[target + T_NUMBER], t)


@part
def command_sent(m: Ints, c: int, t: int) -> None:
    target = m[O_TARGETS] + t * TARGET
    if m[COLLECTS] or m[SUSPEND_PROGRAM]:
        long_command(m, t)
    elif m[target + T_KIND] >= WRITES:
        push(m, S_PROGRAM, m[NOW] + m[PROGRAM], 0, t)
    else:
        push(m, S_READ, m[NOW] + m[READ], 0, t)
    m[m[O_CHANNELS] + c * CHANNEL + C_BUSY] = 0
    next_transfer(m, c)


@part
def transferred(m: Ints, c: int, piece: int, f: Memory) -> None:
    at = m[O_PIECES] + piece * PIECE
    t = m[at + P_TARGET]
    target = m[O_TARGETS] + t * TARGET
    request, lpn = m[at + P_REQUEST], m[at + P_LPN]
    if request >= 0:
        release(m, piece)
        m[m[O_REQUESTS] + request * REQUEST + Q_LEFT] -= 1
        finished(m, request)
    elif request == MAPPING:
        release(m, piece)
        entries_arrived(m, lpn, f)
    elif request == MERGE_READ:
        write = m[at + P_OTHER]
        release(m, piece)
        merged(m, write)
    else:
        m[at + P_QUEUE], m[at + P_ROW] = MOVE_WRITES, m[at + P_OTHER]
        enqueue(m, piece)
    m[target + T_OUT] -= 1
    if m[target + T_OUT] == 0:
        if m[target + T_HELD]:
            m[target + T_HELD] = 0
            data_ready(m, c, t)
        elif not m[CACHE_READ]:
            idle(m, t)
    m[m[O_CHANNELS] + c * CHANNEL + C_BUSY] = 0
    next_transfer(m, c)


@apart
def front_event(
    m: Ints, ring: int, kind: int, who: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory
) -> None:
    """Handle a message, a command of the host, or what passed the write buffer."""
    if ring == S_DOWN:
        if kind == RING:
            rung(m)
        elif kind == TAKE:
            arrived(m, who, sizes, lpns, masks, f)
        else:
            write(m, who, sizes, lpns, masks, f)
    elif ring == S_BUFFER:
        buffer_passed(m, who)
    elif ring == S_FIRMWARE:
        arrived(m, who, sizes, lpns, masks, f)
    elif ring == S_UP:
        delivered_up(m, m[NOW], kind, who)
    else:
        down(m, m[NOW], m[DOORBELL], RING, who)


@part
def _run(block: Ints, of_sizes: Ints, of_lpns: Ints, of_masks: Ints, of_flash: Memory) -> None:
    m, sizes, lpns = bare(block), bare(of_sizes), bare(of_lpns)
    masks, f = bare(of_masks), bare(of_flash)
    for _ in range(min(m[DEPTH], m[REQUESTS])):
        enter(m, 0)
    bits = m[SLOT_BITS]
    while not m[FAULT]:
        best = next_event(m)
        if best >= FAR:
            break
        m[NOW] = best >> bits
        slot = best & ((1 << bits) - 1)
        if slot >= RINGS:
            c = slot - RINGS
            at = m[O_CHANNELS] + c * CHANNEL
            m[TIMES + slot] = FAR
            if m[at + C_KIND] == COMMAND_SENT:
                command_sent(m, c, m[at + C_WHO])
            else:
                transferred(m, c, m[at + C_WHO], f)
            continue
        head = HEADS + 4 * slot
        entry = m[head + R_AT] + 4 * m[head + R_FIRST]
        kind, who = m[entry + 1], m[entry + 2]
        drop(m, slot)
        if slot > S_OTHER:
            front_event(m, slot, kind, who, sizes, lpns, masks, f)
        elif slot == S_READ or kind == m[m[O_TARGETS] + who * TARGET + T_NUMBER]:
            array_done(m, who, sizes, lpns, masks, f)


HERE = Path(__file__).parent
_FILES = tuple(
    HERE / f"{name}.py"
    for name in (
        "loops", "front", "pages", "collect", "blocks", "turns", "queues", "rings", "layout",
        "setup",
    )
)  # fmt: skip
_FAULTS = {
    1: "no block has an invalid page, so that none can be erased",
    2: "more reads interrupt programs than there is room for",
}


def replay(job: Job) -> tuple[Any, Any, Counts]:
    """Return when each request entered and was done (-1: never), picoseconds, and counts.

    Blocks of `job.memory` change.

    Raises:
        SimulationError: If a request that was sent is never answered, or no block can be erased.
    """
    m = block_of(job)
    compiled(_run, _FILES)(m, job.bytes, job.lpn, job.mask, job.memory)
    if m[FAULT]:
        raise SimulationError(_FAULTS[int(m[FAULT])])
    table = m[m[O_REQUESTS] : m[O_REQUESTS] + job.requests * REQUEST].reshape(-1, REQUEST)
    lost = int(m[ENTERED] - np.count_nonzero(table[:, Q_DONE] >= 0))
    if lost:
        raise SimulationError(f"{lost} requests to flash were never answered")
    counts = Counts(*(int(m[at]) for at in COUNTED))
    return table[:, Q_ENTERED].copy(), table[:, Q_DONE].copy(), counts
