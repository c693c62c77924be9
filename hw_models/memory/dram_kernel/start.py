"""A channel as it starts: idle, all banks closed; and its table of distances between commands."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT,
    BANKS,
    BUS,
    COUNT,
    FIRST_REFRESH,
    G_BANKS,
    HALF,
    P_BANKS,
    P_COUNT,
    PRE,
    PREAB,
    RD,
    READ_QUEUE,
    REFAB,
    REFPB,
    S_COUNT,
    WR,
    WRITE_QUEUE,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.state import (
    ACT_AT,
    ACTIVATING,
    ACTIVE_HEAD,
    ACTIVE_TAIL,
    B_REFPB,
    BESIDE_P,
    BESIDE_S,
    BEST,
    CAN_ACT,
    CAN_PRE,
    CAS_BANK,
    FAR,
    FAW,
    FREE,
    G_BIT,
    G_REFPB,
    HIT_AGE,
    ITS_BIT,
    ITS_G,
    ITS_P,
    ITS_S,
    KEY,
    LANE,
    LAST,
    LAST_ACTS,
    MOST_BANKS,
    MOST_LANES,
    NEVER,
    NEXT,
    NOBODY,
    NONE,
    NOW,
    NUMBER,
    ODD,
    OF_BANK,
    OF_G,
    OF_P,
    OF_S,
    OTHER_AGE,
    P_GROUPS,
    P_LANES,
    P_STACKS,
    REFRESH_AT,
    RISE_AT,
    RISE_P,
    ROWS_HOLD,
    SOONEST,
    STALE,
    TIMES,
    WIDTH,
    Channel,
    channel_of,
    words,
)  # fmt: skip
from opbyte.hw_models.memory.standards import COMMANDS, Standard

__all__ = ["new_channel"]

Ints = npt.NDArray[np.int64]


def new_channel(standard: Standard, numbers: Ints) -> Channel:
    """Return an idle channel, all banks closed.

    Raises:
        UncoveredError: If the kernel has no place for a constraint or for so many banks.
    """
    n = numbers
    banks, p_banks, g_banks = int(n[BANKS]), int(n[P_BANKS]), int(n[G_BANKS])
    p_count, s_count = int(n[P_COUNT]), int(n[S_COUNT])
    p_lanes = -(-p_banks // WIDTH) * WIDTH
    if p_banks > 64:
        raise UncoveredError(
            f"{standard.name}: at most 64 banks per rank or pseudo-channel are covered, "
            f"got {p_banks}"
        )
    most = min(MOST_LANES // p_lanes, MOST_BANKS // p_banks)
    if p_count > most:
        raise UncoveredError(
            f"{standard.name}: at most {most} ranks or pseudo-channels of "
            f"{p_banks} banks are covered, got {p_count}"
        )
    c = channel_of(_zeros(words(int(n[READ_QUEUE] + n[WRITE_QUEUE]))))
    c.n[: len(n)] = n
    _set_values(c, standard)
    every = np.arange(banks)
    ranks, groups, state = c.ranks[:p_count], c.groups[: banks // g_banks], c.banks[:banks]
    ranks[:, :TIMES] = ranks[:, LAST_ACTS:ACT_AT] = ranks[:, LAST : LAST + COUNT] = NEVER
    c.stacks[:s_count] = NEVER
    groups[:, :TIMES], groups[:, BEST : BEST + 2], groups[:, G_REFPB] = NEVER, NONE, NEVER
    state[:] = NONE
    state[:, :TIMES] = state[:, B_REFPB : B_REFPB + 1] = NEVER
    state[:, HIT_AGE : HIT_AGE + 2] = state[:, OTHER_AGE : OTHER_AGE + 2] = FAR
    state[:, ITS_P], state[:, ITS_G] = every // p_banks, every // g_banks
    state[:, ITS_S] = every // (banks // s_count)
    state[:, ITS_BIT] = np.left_shift(np.int64(1), every % p_banks)
    state[:, G_BIT] = np.left_shift(np.int64(1), every % p_banks // g_banks)
    state[:, LANE] = every // p_banks * p_lanes + every % p_banks
    lanes = c.lanes[:, : p_count * p_lanes]
    lanes[CAN_ACT : CAN_PRE + 1], lanes[KEY : KEY + 2] = NEVER, NOBODY
    lanes[NUMBER, state[:, LANE]] = every
    _free_slots(c)
    return c


def _zeros(size: int) -> Ints:
    """Return zeros that begin on a line of the cache."""
    memory = np.zeros(size + 8, np.int64)
    first = -memory.ctypes.data % 64 // 8
    return memory[first : first + size]


def _set_values(c: Channel, standard: Standard) -> None:
    n, v = c.n, c.v
    distances, v[FAW] = _distances(standard)
    c.d[:, :COUNT, :COUNT] = distances
    v[NOW], v[ACTIVATING], v[CAS_BANK] = 1, NONE, NONE
    rows = [ACT, PRE, PREAB, REFAB, REFPB]
    v[ROWS_HOLD] = (distances[: BESIDE_P + 1, rows, RD : WR + 1] > NEVER).any()
    v[ACTIVE_HEAD] = v[ACTIVE_TAIL] = NONE
    v[SOONEST] = distances[OF_BANK, ACT, RD : WR + 1].min()
    v[ODD], v[STALE] = n[BUS] == HALF, 1
    v[REFRESH_AT], v[RISE_AT], v[RISE_P] = n[FIRST_REFRESH], NONE, NONE
    v[P_GROUPS], v[P_STACKS] = n[P_BANKS] // n[G_BANKS], n[S_COUNT] // n[P_COUNT]
    v[P_LANES] = -(-n[P_BANKS] // WIDTH) * WIDTH


def _free_slots(c: Channel) -> None:
    """Chain the slots of each queue."""
    reads, slots = int(c.n[READ_QUEUE]), int(c.n[READ_QUEUE] + c.n[WRITE_QUEUE])
    c.queued[:, NEXT] = np.arange(1, slots + 1)
    c.queued[reads - 1, NEXT] = c.queued[slots - 1, NEXT] = NONE
    c.v[FREE], c.v[FREE + 1] = 0, reads


_SCOPES = {"rank": OF_P, "pseudochannel": OF_P, "sid": OF_S, "bankgroup": OF_G, "bank": OF_BANK}
_BESIDE = {OF_P: BESIDE_P, OF_S: BESIDE_S}


def _distances(standard: Standard) -> tuple[Ints, int]:
    """Return the table of distances, and tFAW."""
    d = np.full((6, COUNT, COUNT), NEVER, np.int64)
    faw = 0
    lonely = not {"rank", "pseudochannel"} & set(standard.levels)
    for rule in standard.constraints:
        scope = OF_P if rule.level == 0 else _SCOPES[standard.levels[rule.level - 1]]
        if rule.window != 1:
            fits = rule.after == rule.before == ACT and rule.window == 4 and scope == OF_P
            if not fits or (rule.level == 0 and not lonely):
                _uncovered(standard, "a window other than four ACTs of a rank", rule)
            faw = max(faw, rule.ticks)
            continue
        if rule.siblings and scope not in _BESIDE:
            _uncovered(standard, "siblings of bank groups or banks", rule)
        if scope != OF_P and _of_all_banks(rule, scope):
            _uncovered(standard, "commands to all banks below a rank", rule)
        scopes = [_BESIDE[scope]] if rule.siblings else [scope]
        if rule.level == 0:
            scopes = [OF_P, BESIDE_P]
        for s in scopes:
            d[s, rule.after, rule.before] = max(d[s, rule.after, rule.before], rule.ticks)
    return d, faw


def _of_all_banks(rule: Any, scope: int) -> bool:
    wide = {PREAB, REFAB}
    if scope == OF_S:
        wide |= {REFPB}
    return bool({rule.after, rule.before} & wide)


def _uncovered(standard: Standard, what: str, rule: Any) -> None:
    pair = f"{COMMANDS[rule.after]} -> {COMMANDS[rule.before]}"
    raise UncoveredError(f"{standard.name}: constraints on {what} are not covered: {pair}")
