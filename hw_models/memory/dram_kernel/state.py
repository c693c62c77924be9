"""What the compiled kernel works on: next possible times, queues as lists per bank, bit masks.

Constraints between two commands become one table of distances by scope. A scope is a rank or
pseudo-channel (P), its siblings, a stack id (S), its siblings, a bank group or a bank; what holds
for the channel holds for a P and its siblings.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types
from numba.core import imputils
from numba.extending import intrinsic
from numba.np import arrayobj

from opbyte.core.loops import part
from opbyte.hw_models.memory.dram_kernel.bits import index
from opbyte.hw_models.memory.dram_kernel.setup import BINS, HISTOGRAM

__all__ = ["Channel", "channel", "channel_of", "words"]

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
#: Further columns of a group: bank of the oldest hit, by queue; when REFpb is possible.
BEST, G_REFPB = 4, 6
#: Further columns of a bank: open row; by queue the first and last request, the oldest hit and its
#: arrival, the oldest other request and its arrival; arrival and queue of the activated request;
#: when REFpb is possible; its P, its group, its stack, its bit and its group's bit within P, its
#: lane.
ROW, HEAD, TAIL, HIT_SLOT, HIT_AGE, OTHER_SLOT, OTHER_AGE = 4, 5, 7, 9, 11, 13, 15
ACTIVE_AGE, ACTIVE_QUEUE, B_REFPB, ITS_P, ITS_G, ITS_S = 17, 18, 19, 20, 21, 22
ITS_BIT, G_BIT, LANE = 23, 24, 25
#: Banks with an activated request form a list in the order of ACTs: tick of the ACT, neighbours.
ACTIVE_AT, ACTIVE_NEXT, ACTIVE_BEFORE = 26, 27, 28
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
#: Loose values: the earliest tick that has not been decided; clock of the next attempt to send, its
#: request, whether it waits for room; write mode; requests in the queues and first free slots, by
#: queue; next refresh, bank whose turn it is, pseudo-channels that had theirs; first and last
#: refresh that is due; reads under way. LPDDR5: the bank between ACT-1 and ACT-2, until when,
#: arrival, queue and row of its request; when the write clock stops; bank and queue of the access
#: that follows a CAS. HBM3: the row command of the last rising edge and the falling edge it pairs
#: with. Constants: tFAW; groups, stacks and lanes of each P; 1 where only rising edges take
#: accesses. The best activated request, whether to look for it anew, and whether row commands keep
#: accesses off their bus. First and last bank with an activated request, and the least time from an
#: ACT to its access.
(
    NOW, SEND_AT, SENT, BLOCKED, MODE, QUEUED, _, FREE, _, REFRESH_AT, TURN, DUE,
    URGENT_FROM, URGENT_TO, RING_AT, ACTIVATING, DEADLINE, AWAIT_AGE, AWAIT_QUEUE, WCK,
    CAS_BANK, CAS_QUEUE, RISE_COMMAND, RISE_BANK, RISE_P, RISE_AT, FAULT, FAW, AWAIT_ROW,
    P_GROUPS, P_STACKS, P_LANES, ODD, FIRST_AT, FIRST_AGE, FIRST_BANK, STALE, ROWS_HOLD,
    ACTIVE_HEAD, ACTIVE_TAIL, SOONEST,
) = range(41)  # fmt: skip
#: Room for refreshes that are due, reads under way, and counters of queued write addresses.
MOST_URGENT, RING, FILTER = 4096, 1024, 1024


class Channel(NamedTuple):
    """Arrays of one channel; columns as above.

    Attributes:
        memory: All of them as one block, (words,).
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
            and in the first row when the next bank falls due, (S, 4).
        out: Counts and histogram.
    """

    memory: Ints
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


#: Most banks, lanes, ranks or pseudo-channels, and queued requests.
MOST_BANKS, MOST_LANES, MOST_SLOTS = 1024, 2048, 1 << 22
#: Shape of each part. Columns are powers of two, which need no multiplication; the rows of the
#: lanes lie in different lines of the cache.
SHAPES = {
    "v": (64,),
    "n": (32,),
    "d": (6, 16, 16),
    "out": (HISTOGRAM + BINS,),
    "ranks": (MOST_LANES // WIDTH, 32),
    "stacks": (MOST_BANKS, 4),
    "groups": (MOST_BANKS, 8),
    "banks": (MOST_BANKS, 32),
    "lanes": (6, MOST_LANES + 24),
    "urgent": (MOST_URGENT, 2),
    "ring": (RING, 2),
    "written": (FILTER,),
    "rows": (2, FILTER),
    "sets": (MOST_BANKS, 4),
    "queued": (MOST_SLOTS, 8),
}


def _places() -> dict[str, int]:
    """Return where each part begins in memory, in words: on a line of the cache."""
    places, at = {}, 0
    for name, shape in SHAPES.items():
        places[name] = at
        at += -(-math.prod(shape) // 8) * 8
    return places


PLACES = _places()


def words(slots: int) -> int:
    """Return the size of a channel with so many places for requests, in words."""
    return PLACES["queued"] + slots * SHAPES["queued"][1]


def channel_of(memory: Ints) -> Channel:
    """Return the parts of the state that lies in `memory`, (words,)."""
    parts = {
        name: memory[PLACES[name] :][: math.prod(shape)].reshape(-1, *shape[1:])
        for name, shape in SHAPES.items()
    }
    return Channel(memory, **parts)


#: Numba's own modules carry no types.
_ARRAYS: Any = arrayobj
_RESULTS: Any = imputils
_TYPES: Any = types


def _channel(_typing: Any, memory: Any) -> Any:
    """Do what `channel_of` does, compiled: place and shape of each part are constants.

    Fifteen arrays of unknown shape would take all registers, and a multiplication for each element.
    """
    names = Channel._fields[1:]
    kinds = [types.Array(types.int64, len(SHAPES[name]), "C") for name in names]
    whole = _TYPES.NamedTuple([memory, *kinds], Channel)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        import llvmlite.ir as ir

        given = _ARRAYS.make_array(signature.args[0])(context, builder, arguments[0])
        word = ir.IntType(64)
        parts = [arguments[0]]
        for name, kind in zip(names, kinds, strict=True):
            shape = SHAPES[name]
            steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
            part = _ARRAYS.make_array(kind)(context, builder)
            _ARRAYS.populate_array(
                part,
                data=builder.gep(given.data, [ir.Constant(word, PLACES[name])], inbounds=True),
                shape=[ir.Constant(word, size) for size in shape],
                strides=[ir.Constant(word, 8 * step) for step in steps],
                itemsize=8, meminfo=given.meminfo, parent=given.parent,
            )  # fmt: skip
            parts.append(part._getvalue())
        result = context.make_tuple(builder, whole, parts)
        return _RESULTS.impl_ret_borrowed(context, builder, whole, result)

    return whole(memory), generate


channel: Any = intrinsic(_channel)


@part
def p_of(c: Channel, bank: int) -> int:
    """Return the rank or pseudo-channel of a bank."""
    p: int = index(c.banks[bank, ITS_P])
    return p


@part
def s_of(c: Channel, bank: int) -> int:
    """Return the stack of a bank."""
    s: int = index(c.banks[bank, ITS_S])
    return s


@part
def g_of(c: Channel, bank: int) -> int:
    """Return the group of a bank."""
    g: int = index(c.banks[bank, ITS_G])
    return g


@part
def lane_of(c: Channel, bank: int) -> int:
    """Return the lane of a bank."""
    lane: int = index(c.banks[bank, LANE])
    return lane
