"""What an issued command holds back, and when commands to all banks are possible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT,
    ALL_BANK,
    COMMAND_AT,
    COUNT,
    G_BANKS,
    P_COUNT,
    PRE,
    RD,
    REFPB,
    REFRESH,
    WR,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.state import (
    ACT_AT,
    B_REFPB,
    BESIDE_P,
    BESIDE_S,
    CAN_ACT,
    CAN_PRE,
    FAW,
    G_REFPB,
    LAST,
    LAST_ACTS,
    NOW,
    OF_BANK,
    OF_G,
    OF_P,
    OF_S,
    P_STACKS,
    Channel,
    channel,
    g_of,
    lane_of,
    p_of,
    s_of,
)  # fmt: skip

Ints = npt.NDArray[np.int64]


@part
def _hold(times: Ints, node: int, distances: Ints, scope: int, command: int, now: int) -> None:
    """Hold ACT, PRE, RD and WR back at one node."""
    # All are read before one is written, so that the compiler takes the four at once.
    act = max(times[node, ACT], now + distances[scope, command, ACT])
    pre = max(times[node, PRE], now + distances[scope, command, PRE])
    rd = max(times[node, RD], now + distances[scope, command, RD])
    wr = max(times[node, WR], now + distances[scope, command, WR])
    times[node, ACT], times[node, PRE], times[node, RD], times[node, WR] = act, pre, rd, wr


@part
def issued(c: Channel, command: int, bank: int, now: int) -> None:
    """Note that `command` went to `bank`."""
    p, s, g = p_of(c, bank), s_of(c, bank), g_of(c, bank)
    c.out[COMMAND_AT + command] += 1
    c.ranks[p, LAST + command] = now
    _hold(c.ranks, p, c.d, OF_P, command, now)
    _hold(c.groups, g, c.d, OF_G, command, now)
    _hold(c.banks, bank, c.d, OF_BANK, command, now)
    lane = lane_of(c, bank)
    c.lanes[CAN_PRE, lane] = c.banks[bank, PRE]
    c.lanes[CAN_ACT, lane] = max(c.lanes[CAN_ACT, lane], c.banks[bank, ACT])
    if c.d[OF_G, command, ACT] >= 0:
        until, size = now + c.d[OF_G, command, ACT], c.n[G_BANKS]
        first = lane & -size
        for other in range(first, first + size):
            c.lanes[CAN_ACT, other] = max(c.lanes[CAN_ACT, other], until)
    if c.n[P_COUNT] > 1:
        for other in range(c.n[P_COUNT]):
            if other != p:
                _hold(c.ranks, other, c.d, BESIDE_P, command, now)
    if c.v[P_STACKS] > 1:
        size = c.v[P_STACKS]
        for other in range(p * size, (p + 1) * size):
            _hold(c.stacks, other, c.d, OF_S if other == s else BESIDE_S, command, now)
    if c.n[REFRESH] > ALL_BANK:
        until = now + c.d[OF_G, command, REFPB]
        c.groups[g, G_REFPB] = max(c.groups[g, G_REFPB], until)
        until = now + c.d[OF_BANK, command, REFPB]
        c.banks[bank, B_REFPB] = max(c.banks[bank, B_REFPB], until)


@part
def activated(c: Channel, bank: int, now: int) -> None:
    """Note an ACT, with its window of four."""
    issued(c, ACT, bank, now)
    p = p_of(c, bank)
    at = c.ranks[p, ACT_AT]
    c.ranks[p, LAST_ACTS + at] = now
    at = (at + 1) & 3
    c.ranks[p, ACT_AT] = at
    until = c.ranks[p, LAST_ACTS + at] + c.v[FAW]
    if until > c.ranks[p, ACT]:
        c.ranks[p, ACT] = until


@apart
def issued_to_all(memory: Ints, command: int, p: int, now: int) -> None:
    """Note PREab or REFab of one rank or pseudo-channel."""
    c = channel(memory)
    c.out[COMMAND_AT + command] += 1
    c.ranks[p, LAST + command] = now
    for other in range(c.n[P_COUNT]):
        _hold(c.ranks, other, c.d, OF_P if other == p else BESIDE_P, command, now)


@apart
def possible(memory: Ints, command: int, bank: int) -> int:
    """Return the first tick from now on at which PREab, REFab or REFpb may be issued.

    A distance of window 1 counts from the last command, so that the times of the last commands of
    each rank are enough.
    """
    c = channel(memory)
    p = p_of(c, bank)
    at = c.v[NOW]
    for other in range(c.n[P_COUNT]):
        scope = OF_P if other == p else BESIDE_P
        for before in range(COUNT):
            at = max(at, c.ranks[other, LAST + before] + c.d[scope, before, command])
    if command == REFPB:
        at = max(at, c.groups[g_of(c, bank), G_REFPB], c.banks[bank, B_REFPB])
    return at
