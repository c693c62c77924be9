"""Whose turn it is on a channel, and which page operations go together in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.layout import (
    C_BUSY,
    C_KIND,
    C_READY,
    C_TURN,
    C_WHO,
    CHANNEL,
    CHANNELS,
    COLLECTS,
    COPYBACK,
    CYCLE,
    CYCLE_BYTES,
    ERASES,
    FLASH_FIRST,
    MAPPING_READS,
    MOST_PLANES,
    MOVE_READS,
    MOVE_WRITES,
    N_BUS,
    N_COMMANDS,
    N_MULTIPLANE,
    N_SUSPENSIONS,
    NOW,
    O_CHANNELS,
    O_COMMANDS,
    O_PIECES,
    O_TARGETS,
    P_BYTES,
    P_MORE,
    P_NEXT,
    P_PLANE,
    P_QUEUE,
    P_ROW,
    P_TARGET,
    PIECE,
    READS,
    RESUME,
    RINGS,
    S_OTHER,
    SUSPEND_ERASE,
    SUSPEND_PROGRAM,
    T_BIT,
    T_BUSY,
    T_C,
    T_END,
    T_FIRST,
    T_KIND,
    T_LAST,
    T_LATE,
    T_NUMBER,
    T_OLD_FIRST,
    T_OLD_KIND,
    T_OLD_LEFT,
    T_OUT,
    T_QUEUES,
    T_URGENT,
    TARGET,
    WAYS,
    WRITES,
)
from opbyte.hw_models.memory.nand_kernel.queues import append
from opbyte.hw_models.memory.nand_kernel.rings import push_sorted, stand

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["COMMAND_SENT", "bus_event", "enqueue", "idle", "mark", "schedule", "take_turns",
           "transfer_ps"]  # fmt: skip

COMMAND_SENT = 0


@part
def transfer_ps(m: Ints, size: int) -> int:
    """Return the time of data on a channel."""
    return int(size // m[CYCLE_BYTES] * m[CYCLE])


@part
def bus_event(m: Ints, c: int, ps: int, kind: int, who: int) -> None:
    """Occupy a channel until its event."""
    at = m[O_CHANNELS] + c * CHANNEL
    m[at + C_BUSY], m[at + C_KIND], m[at + C_WHO] = 1, kind, who
    stand(m, RINGS + c, m[NOW] + ps)


@part
def mark(m: Ints, t: int) -> None:
    """Note whether a channel has to look at a target: something waits, and could begin."""
    target = m[O_TARGETS] + t * TARGET
    q = target + T_QUEUES
    # The first piece of an empty queue is -1; common bits of numbers below 0 are below 0.
    reads = m[q] & m[q + 2] & m[q + 4]
    waits = reads & m[q + 6] & m[q + 8] & m[q + 10] >= 0
    if m[target + T_BUSY]:
        waits = reads >= 0 and m[target + T_END] > 0 and _suspend_ps(m, target) > 0
    at, bit = m[O_CHANNELS] + m[target + T_C] * CHANNEL + C_READY, m[target + T_BIT]
    m[at] = m[at] | bit if waits else m[at] & ~bit


@part
def _suspend_ps(m: Ints, target: int) -> int:
    """Return what it takes to suspend what the arrays do, 0 if they can not."""
    if m[target + T_OLD_FIRST] >= 0:
        return 0
    return int(m[SUSPEND_ERASE] if m[target + T_KIND] == ERASES else m[SUSPEND_PROGRAM])


@part
def _join(m: Ints, target: int, queue: int, planes: int) -> int:
    """Move pieces that can share the command from a queue to it; return the planes in use.

    The chosen ones are the chain that T_FIRST begins and T_LAST ends; planes are bits.
    """
    base, most = m[O_PIECES], m[MOST_PLANES]
    queue = target + T_QUEUES + 2 * queue
    before, piece = -1, m[queue]
    first, last = m[target + T_FIRST], m[target + T_LAST]
    chosen, bits = 0, planes
    while bits:
        bits &= bits - 1
        chosen += 1
    row = m[base + first * PIECE + P_ROW] if first >= 0 else -1
    while piece >= 0 and chosen < most:
        at = base + piece * PIECE
        after = m[at + P_NEXT]
        if (first < 0 or m[at + P_ROW] == row) and not planes & (1 << m[at + P_PLANE]):
            if before < 0:
                m[queue] = after
            else:
                m[base + before * PIECE + P_NEXT] = after
            if after < 0:
                m[queue + 1] = before
            m[at + P_NEXT] = -1
            if first < 0:
                first, row = piece, m[at + P_ROW]
            else:
                m[base + last * PIECE + P_NEXT] = piece
            last = piece
            planes |= 1 << m[at + P_PLANE]
            chosen += 1
        else:
            before = piece
        piece = after
    m[target + T_FIRST], m[target + T_LAST] = first, last
    return planes


@part
def _send(m: Ints, c: int, t: int, target: int) -> None:
    """Put the chosen command on the channel."""
    piece, planes, size = m[target + T_FIRST], 0, 0
    kind = m[target + T_KIND]
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        planes += 1
        if kind >= WRITES:
            size += transfer_ps(m, m[at + P_BYTES] + m[at + P_MORE])
        piece = m[at + P_NEXT]
    m[N_COMMANDS] += 1
    if planes > 1:
        m[N_MULTIPLANE] += 1
    commands = m[O_COMMANDS] + 3 * planes
    ps = m[commands]
    if kind >= WRITES:
        ps = size + (m[commands + 2] if kind == ERASES else m[commands + 1])
        if kind == MOVE_WRITES and m[COPYBACK]:
            ps += m[commands]
        m[N_BUS] += ps
    bus_event(m, c, ps, COMMAND_SENT, t)


@part
def _pair(first: int, second: int) -> int:
    return first * 8 + second


@apart
def _collecting_choice(m: Ints, target: int, free: bool) -> int:
    """Return the queue to serve, times 8, plus one that may join; -1 for none.

    Args:
        free: Whether page registers are free, so that programs and erasures may begin.
    """
    q = target + T_QUEUES
    reads, moves = m[q + 2 * READS] >= 0, m[q + 2 * MOVE_READS] >= 0
    writes, back = m[q + 2 * WRITES] >= 0, m[q + 2 * MOVE_WRITES] >= 0
    erases = m[q + 2 * ERASES] >= 0
    first = m[FLASH_FIRST] > 0
    if m[q + 2 * MAPPING_READS] >= 0:
        return _pair(MAPPING_READS, MOVE_READS if first and moves else READS)
    if reads and not first:
        return _pair(READS, MOVE_READS)
    if first or m[target + T_URGENT] > 0 or not writes:
        if moves:
            return _pair(MOVE_READS, READS)
        if back:
            return _pair(MOVE_WRITES, WRITES) if free else -1
        if erases:
            return _pair(ERASES, ERASES) if free else -1
    if reads:
        return _pair(READS, MOVE_READS)
    return _pair(WRITES, MOVE_WRITES) if writes and free else -1


@part
def _choice(m: Ints, target: int, free: bool) -> int:
    """Return the same where nothing is collected: mapping reads, then reads, then writes."""
    q = target + T_QUEUES
    if m[q + 2 * MAPPING_READS] >= 0:
        return _pair(MAPPING_READS, READS)
    if m[q + 2 * READS] >= 0:
        return _pair(READS, MAPPING_READS)
    return _pair(WRITES, MAPPING_READS) if m[q + 2 * WRITES] >= 0 and free else -1


@apart
def _suspend(m: Ints, target: int) -> bool:
    """Interrupt a program or an erasure for reads, if enough of it is left."""
    left, cost = m[target + T_END] - m[NOW], _suspend_ps(m, target)
    if left <= cost:
        return False
    m[target + T_OLD_FIRST], m[target + T_OLD_KIND] = m[target + T_FIRST], m[target + T_KIND]
    m[target + T_OLD_LEFT], m[target + T_LATE] = left + m[RESUME], cost
    m[target + T_NUMBER] += 1
    m[target + T_END] = 0
    m[N_SUSPENSIONS] += 1
    return True


@part
def serve(m: Ints, c: int, t: int) -> None:
    """Give a target its next command, if it may begin one."""
    target = m[O_TARGETS] + t * TARGET
    free = m[target + T_OUT] == 0
    pair = _collecting_choice(m, target, free) if m[COLLECTS] else _choice(m, target, free)
    if pair < 0:
        return
    first, second = pair >> 3, pair & 7
    if m[target + T_BUSY] and (first >= WRITES or not _suspend(m, target)):
        return
    if first >= WRITES and m[target + T_OLD_FIRST] >= 0:
        return
    m[target + T_BUSY], m[target + T_FIRST], m[target + T_LAST] = 1, -1, -1
    m[target + T_KIND] = first
    planes = _join(m, target, first, 0)
    # Pages that move within their plane keep its register, so that nothing else is programmed.
    alone = second == first or (first >= WRITES and m[COPYBACK] > 0)
    if not alone and m[target + T_QUEUES + 2 * second] >= 0:
        _join(m, target, second, planes)
    _send(m, c, t, target)
    m[m[O_CHANNELS] + c * CHANNEL + C_READY] &= ~m[target + T_BIT]


@apart
def take_turns(m: Ints, c: int) -> None:
    """Look at the targets of a free channel in turn until one has a command."""
    at, ways = m[O_CHANNELS] + c * CHANNEL, m[WAYS]
    way = m[at + C_TURN]
    ready = m[at + C_READY]
    for _ in range(ways):
        here = way
        way = way + 1 if way + 1 < ways else 0
        if ready >> here & 1:
            serve(m, c, c * ways + here)
            if m[at + C_BUSY]:
                m[at + C_TURN] = way
                break


@part
def idle(m: Ints, t: int) -> None:
    """Note that a target has ended its command; what was suspended goes on."""
    target = m[O_TARGETS] + t * TARGET
    m[target + T_BUSY] = 0
    if m[target + T_OLD_FIRST] >= 0:
        _resume(m, t)
    mark(m, t)


@apart
def _resume(m: Ints, t: int) -> None:
    target = m[O_TARGETS] + t * TARGET
    m[target + T_BUSY], m[target + T_FIRST] = 1, m[target + T_OLD_FIRST]
    m[target + T_KIND], m[target + T_OLD_FIRST] = m[target + T_OLD_KIND], -1
    m[target + T_END] = m[NOW] + m[target + T_OLD_LEFT]
    push_sorted(m, S_OTHER, m[target + T_END], m[target + T_NUMBER], t)


@part
def enqueue(m: Ints, piece: int) -> None:
    """Queue a piece at its target."""
    at = m[O_PIECES] + piece * PIECE
    t = m[at + P_TARGET]
    append(m, m[O_TARGETS] + t * TARGET + T_QUEUES + 2 * m[at + P_QUEUE], piece)
    mark(m, t)


@part
def look(m: Ints) -> None:
    """Let free channels look at targets that something waits for."""
    for c in range(m[CHANNELS]):
        at = m[O_CHANNELS] + c * CHANNEL
        if m[at + C_READY] and not m[at + C_BUSY]:
            take_turns(m, c)


@apart
def schedule(m: Ints, first: int) -> None:
    """Queue a chain of translated pieces at their targets, and let free channels look."""
    piece = first
    while piece >= 0:
        after = m[m[O_PIECES] + piece * PIECE + P_NEXT]
        enqueue(m, piece)
        piece = after
    look(m)
