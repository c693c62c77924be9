"""Whose turn it is on a channel, and which page operations go together in one command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.layout import (
    C_BUSY,
    C_KIND,
    C_TURN,
    C_WHO,
    CHANNEL,
    CHANNELS,
    CYCLE,
    CYCLE_BYTES,
    MAPPING_READ,
    MAPPING_WRITE,
    MOST_PLANES,
    N_BUS,
    N_COMMANDS,
    N_MULTIPLANE,
    NOW,
    O_CHANNELS,
    O_COMMANDS,
    O_PIECES,
    O_REQUESTS,
    O_TARGETS,
    O_TIMES,
    P_BYTES,
    P_DIE,
    P_NEXT,
    P_PAGE,
    P_PLANE,
    P_REQUEST,
    P_TARGET,
    PIECE,
    Q_WRITE,
    REQUEST,
    SEQ,
    SLOTS,
    T_BUSY,
    T_FIRST,
    T_MAPPING,
    T_OUT,
    T_READS,
    T_WRITE,
    T_WRITES,
    TARGET,
    WAYS,
)  # fmt: skip
from opbyte.hw_models.memory.nand_kernel.queues import append

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["COMMAND_SENT", "bus_event", "schedule", "take_turns", "transfer_ps"]

COMMAND_SENT = 0


@part
def transfer_ps(m: Ints, size: int) -> int:
    """Return the time of data on a channel."""
    return int(size // m[CYCLE_BYTES] * m[CYCLE])


@part
def bus_event(m: Ints, c: int, ps: int, kind: int, who: int) -> None:
    """Occupy a channel until its event."""
    at, slot = m[O_CHANNELS] + c * CHANNEL, m[O_TIMES] + c
    m[at + C_BUSY], m[at + C_KIND], m[at + C_WHO] = 1, kind, who
    m[SEQ] += 1
    m[slot] = m[NOW] + ps
    m[slot + m[SLOTS]] = m[SEQ]


@part
def _join(m: Ints, target: int, queue: int, planes: int) -> int:
    """Move pieces that can share the command from a queue to it; return the planes in use.

    The chosen ones are the chain that T_FIRST begins; planes are bits.
    """
    base = m[O_PIECES]
    first = m[target + T_FIRST]
    last = first
    chosen = 0
    while last >= 0:
        chosen += 1
        if m[base + last * PIECE + P_NEXT] < 0:
            break
        last = m[base + last * PIECE + P_NEXT]
    before, piece = -1, m[target + queue]
    while piece >= 0 and chosen < m[MOST_PLANES]:
        at = base + piece * PIECE
        after = m[at + P_NEXT]
        bit = 1 << m[at + P_PLANE]
        head = base + first * PIECE
        fits = first < 0 or (
            m[at + P_PAGE] == m[head + P_PAGE] and m[at + P_DIE] == m[head + P_DIE]
        )
        if fits and not planes & bit:
            if before < 0:
                m[target + queue] = after
            else:
                m[base + before * PIECE + P_NEXT] = after
            if after < 0:
                m[target + queue + 1] = before
            m[at + P_NEXT] = -1
            if first < 0:
                first = piece
                m[target + T_FIRST] = piece
            else:
                m[base + last * PIECE + P_NEXT] = piece
            last = piece
            planes |= bit
            chosen += 1
        else:
            before = piece
        piece = after
    return planes


@part
def _send(m: Ints, c: int, t: int, target: int) -> None:
    """Put the chosen command on the channel."""
    piece, planes, size = m[target + T_FIRST], 0, 0
    writes = m[target + T_WRITE]
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        planes += 1
        if writes:
            size += transfer_ps(m, m[at + P_BYTES])
        piece = m[at + P_NEXT]
    m[N_COMMANDS] += 1
    if planes > 1:
        m[N_MULTIPLANE] += 1
    ps = m[m[O_COMMANDS] + 2 * planes + writes] + size
    if writes:
        m[N_BUS] += ps
    bus_event(m, c, ps, COMMAND_SENT, t)


@part
def serve(m: Ints, c: int, t: int) -> None:
    """Give a target that is free its next command: mapping reads, then reads, then writes."""
    target = m[O_TARGETS] + t * TARGET
    if m[target + T_BUSY]:
        return
    mapping, reads = m[target + T_MAPPING] >= 0, m[target + T_READS] >= 0
    writes = m[target + T_WRITES] >= 0 and m[target + T_OUT] == 0
    if not (mapping or reads or writes):
        return
    m[target + T_BUSY], m[target + T_FIRST], m[target + T_WRITE] = 1, -1, 0
    if mapping:
        planes = _join(m, target, T_MAPPING, 0)
        _join(m, target, T_READS, planes)
    elif reads:
        _join(m, target, T_READS, 0)
    else:
        m[target + T_WRITE] = 1
        _join(m, target, T_WRITES, 0)
    _send(m, c, t, target)


@apart
def take_turns(m: Ints, c: int) -> None:
    """Look at the targets of a free channel in turn until one has a command."""
    at, ways = m[O_CHANNELS] + c * CHANNEL, m[WAYS]
    for _ in range(ways):
        serve(m, c, c * ways + m[at + C_TURN])
        m[at + C_TURN] += 1
        if m[at + C_TURN] == ways:
            m[at + C_TURN] = 0
        if m[at + C_BUSY]:
            break


@apart
def schedule(m: Ints, first: int) -> None:
    """Queue a chain of translated pieces at their targets, and let free channels look."""
    if first < 0:
        return
    piece = first
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        after = m[at + P_NEXT]
        target, request = m[O_TARGETS] + m[at + P_TARGET] * TARGET, m[at + P_REQUEST]
        if request == MAPPING_READ:
            append(m, target + T_MAPPING, piece)
        elif request == MAPPING_WRITE or m[m[O_REQUESTS] + request * REQUEST + Q_WRITE]:
            append(m, target + T_WRITES, piece)
        else:
            append(m, target + T_READS, piece)
        piece = after
    for c in range(m[CHANNELS]):
        if not m[m[O_CHANNELS] + c * CHANNEL + C_BUSY]:
            take_turns(m, c)
