"""What the compiled kernel works on: next possible times, queues as lists per bank, bit masks.

Constraints between two commands become one table of distances by scope. A scope is a rank or
pseudo-channel (P), its siblings, a stack id (S), its siblings, a bank group or a bank; what holds
for the channel holds for a P and its siblings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACT,
    BANKS,
    BINS,
    BUS,
    COUNT,
    FIRST_REFRESH,
    G_BANKS,
    HALF,
    HISTOGRAM,
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
from opbyte.hw_models.memory.standards import COMMANDS, Standard

__all__ = ["Channel", "new_channel"]

Ints = npt.NDArray[np.int64]

NEVER, FAR = -(1 << 60), 1 << 60
NONE = -1
#: Scopes of the table of distances.
OF_P, BESIDE_P, OF_S, BESIDE_S, OF_G, OF_BANK = range(6)
#: The first four columns of ranks, stacks, groups and banks are the times at which ACT, PRE, RD and
#: WR (their numbers as commands) are possible by the constraints of that scope.
TIMES = 4
#: Further columns of a P, bits by bank within it unless said: banks with an oldest hit, and with an
#: oldest other request, in the read and the write queue; open banks; banks whose activated request
#: waits; groups with hits, by queue. Then the last four ACTs and their position, and when each
#: command was last issued.
HIT, OTHER, OPENED, ACTIVE, GROUPS = 4, 6, 8, 9, 10
LAST_ACTS, ACT_AT, LAST = 12, 16, 17
P_COLUMNS = LAST + COUNT
#: Further columns of a group: bank of the oldest hit, by queue; when REFpb is possible.
BEST, G_REFPB = 4, 6
G_COLUMNS = 7
#: Further columns of a bank: open row; by queue the first and last request, the oldest hit and its
#: arrival, the oldest other request and its arrival; arrival and queue of the activated request;
#: when REFpb is possible; its P, its group, its stack, its bit and its group's bit within P, its
#: lane.
ROW, HEAD, TAIL, HIT_SLOT, HIT_AGE, OTHER_SLOT, OTHER_AGE = 4, 5, 7, 9, 11, 13, 15
ACTIVE_AGE, ACTIVE_QUEUE, B_REFPB, ITS_P, ITS_G, ITS_S = 17, 18, 19, 20, 21, 22
ITS_BIT, G_BIT, LANE = 23, 24, 25
B_COLUMNS = 26
#: Rows of the lanes: when ACT (by bank and group) and PRE are possible; -1 where the bank is open;
#: its number; by queue the key of the oldest request that needs a row command, or `NOBODY`.
CAN_ACT, CAN_PRE, IS_OPEN, NUMBER, KEY = 0, 1, 2, 3, 4
#: Lanes are a multiple of this, which is what one round of the compiled search takes.
WIDTH = 32
#: A key is one number that orders candidates: ticks ahead above, then arrival, then lane. It holds
#: what is less than 2^17 ticks ahead and has waited less than 2^32 ticks.
FURTHEST, AHEAD_AT, LONGEST_WAIT, LANE_BITS, NOBODY = (1 << 17) - 1, 44, 1 << 32, 10, 1 << 62
#: Columns of a queued request: itself, arrival, its neighbours in the list of its bank, whether its
#: row hit, miss or conflict has been counted.
CODE, AGE, NEXT, BEFORE, COUNTED = range(5)
E_COLUMNS = 5
#: Loose values: the earliest tick that has not been decided; clock of the next attempt to send, its
#: request, whether it waits for room; write mode; requests in the queues and first free slots, by
#: queue; next refresh, bank whose turn it is, pseudo-channels that had theirs; first and last
#: refresh that is due; reads under way. LPDDR5: the bank between ACT-1 and ACT-2, until when,
#: arrival, queue and row of its request; when the write clock stops; bank and queue of the access
#: that follows a CAS. HBM3: the row command of the last rising edge and the falling edge it pairs
#: with. Constants: tFAW; groups, stacks and lanes of each P; 1 where only rising edges take
#: accesses. The best activated request, whether to look for it anew, and whether row commands keep
#: accesses off their bus.
(
    NOW, SEND_AT, SENT, BLOCKED, MODE, QUEUED, _, FREE, _, REFRESH_AT, TURN, DUE,
    URGENT_FROM, URGENT_TO, RING_AT, ACTIVATING, DEADLINE, AWAIT_AGE, AWAIT_QUEUE, WCK,
    CAS_BANK, CAS_QUEUE, RISE_COMMAND, RISE_BANK, RISE_P, RISE_AT, FAULT, FAW, AWAIT_ROW,
    P_GROUPS, P_STACKS, P_LANES, ODD, FIRST_AT, FIRST_AGE, FIRST_BANK, STALE, ROWS_HOLD,
) = range(38)  # fmt: skip
V_COLUMNS = 38
#: Room for refreshes that are due, reads under way, and counters of queued write addresses.
MOST_URGENT, RING, FILTER = 4096, 1024, 1024


class Channel(NamedTuple):
    """Arrays of one channel; columns as above.

    Attributes:
        n: Numbers of the controller.
        d: Distances by scope, command before and command behind, (6, commands, commands).
        v: Loose values.
        ranks: (P, columns).
        stacks: (S, 4).
        groups: (groups, columns).
        banks: (banks, columns).
        lanes: For each bank what the search for a row command compares, a P's banks side by side
            and filled up to whole vectors; rows below, (6, P * width).
        queued: Requests by slot, the read queue's first, (slots, columns).
        urgent: Refreshes that are due: command, first bank, (MOST_URGENT, 2).
        ring: Reads under way: end and latency, (RING, 2).
        written: Counts of queued writes by hash of their address, (FILTER,).
        rows: Counts of queued requests by hash of bank and row, (2, FILTER).
        sets: Refreshes since a stack's banks were all done, when the next set may start,
            and in the first row when the next bank falls due, (S, 3).
        out: Counts and histogram.
    """

    n: Ints
    d: Ints
    v: Ints
    ranks: Ints
    stacks: Ints
    groups: Ints
    banks: Ints
    lanes: Ints
    queued: Ints
    urgent: Ints
    ring: Ints
    written: Ints
    rows: Ints
    sets: Ints
    out: Ints


def new_channel(standard: Standard, numbers: Ints) -> Channel:
    """Return an idle channel, all banks closed.

    Raises:
        UncoveredError: If the kernel has no place for a constraint or for so many banks.
    """
    n = numbers
    banks, p_banks, g_banks = int(n[BANKS]), int(n[P_BANKS]), int(n[G_BANKS])
    if p_banks > 64:
        raise UncoveredError(
            f"{standard.name}: at most 64 banks per rank or pseudo-channel are covered, "
            f"got {p_banks}"
        )
    distances, faw = _distances(standard)
    v = np.zeros(V_COLUMNS, np.int64)
    v[NOW], v[FAW], v[ACTIVATING], v[CAS_BANK] = 1, faw, NONE, NONE
    rows = [ACT, PRE, PREAB, REFAB, REFPB]
    v[ROWS_HOLD] = (distances[: BESIDE_P + 1, rows, RD : WR + 1] > NEVER).any()
    v[ODD], v[STALE] = n[BUS] == HALF, 1
    v[REFRESH_AT], v[RISE_AT], v[RISE_P] = n[FIRST_REFRESH], NONE, NONE
    ranks = np.zeros((int(n[P_COUNT]), P_COLUMNS), np.int64)
    ranks[:, :TIMES] = ranks[:, LAST_ACTS:ACT_AT] = ranks[:, LAST:] = NEVER
    groups = np.full((banks // g_banks, G_COLUMNS), NEVER, np.int64)
    groups[:, BEST : BEST + 2] = NONE
    state = np.full((banks, B_COLUMNS), NONE, np.int64)
    state[:, :TIMES] = state[:, B_REFPB : B_REFPB + 1] = NEVER
    state[:, HIT_AGE : HIT_AGE + 2] = state[:, OTHER_AGE : OTHER_AGE + 2] = FAR
    every = np.arange(banks)
    state[:, ITS_P], state[:, ITS_G] = every // p_banks, every // g_banks
    state[:, ITS_S] = every // (banks // int(n[S_COUNT]))
    state[:, ITS_BIT] = np.left_shift(np.int64(1), every % p_banks)
    state[:, G_BIT] = np.left_shift(np.int64(1), every % p_banks // g_banks)
    v[P_GROUPS], v[P_STACKS] = p_banks // g_banks, int(n[S_COUNT]) // int(n[P_COUNT])
    v[P_LANES] = -(-p_banks // WIDTH) * WIDTH
    state[:, LANE] = every // p_banks * v[P_LANES] + every % p_banks
    return Channel(
        n, distances, v, ranks,
        np.full((int(n[S_COUNT]), TIMES), NEVER, np.int64),
        groups, state, _lanes(n, state, int(v[P_LANES])), _free_slots(n, v),
        np.zeros((MOST_URGENT, 2), np.int64), np.zeros((RING, 2), np.int64),
        np.zeros(FILTER, np.int64), np.zeros((2, FILTER), np.int64),
        np.zeros((int(n[S_COUNT]), 3), np.int64),
        np.zeros(HISTOGRAM + BINS, np.int64),
    )  # fmt: skip


def _lanes(n: Ints, banks: Ints, width: int) -> Ints:
    lanes = np.zeros((6, int(n[P_COUNT]) * width), np.int64)
    lanes[CAN_ACT : CAN_PRE + 1] = NEVER
    lanes[KEY : KEY + 2] = NOBODY
    lanes[NUMBER, banks[:, LANE]] = np.arange(len(banks))
    return lanes


def _free_slots(n: Ints, v: Ints) -> Ints:
    """Chain the slots of each queue."""
    reads, slots = int(n[READ_QUEUE]), int(n[READ_QUEUE] + n[WRITE_QUEUE])
    queued = np.zeros((slots, E_COLUMNS), np.int64)
    queued[:, NEXT] = np.arange(1, slots + 1)
    queued[reads - 1, NEXT] = queued[slots - 1, NEXT] = NONE
    v[FREE], v[FREE + 1] = 0, reads
    return queued


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
