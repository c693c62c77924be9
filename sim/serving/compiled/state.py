"""What the compiled serving loop works on: arrays of requests, blocks and steps.

Blocks form linked lists: the queue of free ones, and from each block of a request to the one before
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.compiled.prefixes import Prefixes, no_prefixes
from opbyte.sim.serving.tally import BINS

Ints = npt.NDArray[np.int32]

#: Rows of the state of requests.
COMPUTED, SAMPLED, HELD, LAST, KNOWN, PREEMPTED, AWAY, MOVING = range(8)
#: Rows of the blocks: neighbours in the queue of free ones (its ends are the entry behind the last
#: block), the block before it in its request, and which block of which request it remembers.
NEXT, BEFORE, CHAIN, OWNER, NUMBER = range(5)
#: The same where prompts share prefixes: how many hold a block, its content, and whether who is
#: tried first is to have it; and for a request its row of the tables.
HOLDERS, CONTENT, KEPT, SLOT = CHAIN, OWNER, NUMBER, LAST
#: Entries of the counters. Of layered prefill: the requests at the end of `running` whose prompts
#: are under way, their tokens, and which group of layers is next of how many, 0 before the first.
FREE, RUNNING, STACKED, STEPS, TOKENS, EVERY, BELOW, LEAVING, COMING, OWED, MOVES = range(11)
WAVE, WAVE_TOKENS, GROUP, GROUPS = range(11, 15)
#: Tokens that requests had to compute when they were admitted, and those that the cache held.
ASKED, FOUND = 15, 16
#: Counter of the requests whose answers do not go on.
LATE = 17
#: Counters of the rows of the tables that nobody uses, and of the times that the cache learned or
#: forgot a content which several requests may have.
SLOTS, CHANGES = 18, 19
#: Row of the times where a request has its last token, and until then, while its answer does not go
#: on, its latest one.
SINCE = 2
#: Entries of a step's sums: tokens of answers but first ones, how many of those come late, and
#: tokens that come together with another one of their request.
LATER, COME_LATE, AT_ONCE = range(5, 8)
#: Entries of the tally: now, when the device is free, end of the step that was planned last, sum
#: and largest of the gaps (all seconds), and where the bins of gaps begin. Behind them are the last
#: tokens of requests that come late in the step that is planned (max_sequences,), and seconds in
#: which so many blocks were in use (blocks + 1,) and requests waited (requests + 1,).
NOW, FREE_AT, PLANNED, GAP_SUM, GAP_MAX, GAPS = range(6)
LATE_FROM = GAPS + BINS
#: Entries of the place: the step that ends next and how many are under way, requests that have
#: arrived, had their turn and are done, and calm steps.
HEAD, FLYING, ARRIVED, TRIED, DONE, CALM = range(6)
#: Columns of the series.
SERIES = ("end_s", "tokens", "running", "waiting", "free", "preempted")
NONE = -1
#: Most steps that are run on at once.
MOST_STEPS = 2**20


class State(NamedTuple):
    """What the loop works on.

    Attributes:
        requests: By row as above, (8, requests).
        blocks: By row as above, (5, blocks + 1).
        running: Requests that hold blocks, in the order of admission, (max_sequences,).
        stack: Preempted requests, the one that is tried first on top, (max_sequences,).
        moves: Requests whose blocks the step that is planned sends to the tier below, and
            -1 less those whose blocks it fetches, (2 * max_sequences,).
        counts: Counters, (20,).
        times: Scheduled, first token, last token, seconds, (3, requests).
        series: What every n-th step found when it ended, (6, rows).
        place: Where the loop is, entries as above, (6,).
        groups: Groups of layers by tokens of prompts, empty where all layers run together.
        growth: Size and limit of layers whose caches grow alike, empty where all layers keep all
            tokens, (kinds, 2).
        tally: What is counted of gaps, queue and cache, entries as above.
        prefixes: What prompts share.
    """

    requests: Ints
    blocks: Ints
    running: Ints
    stack: Ints
    moves: Ints
    counts: npt.NDArray[np.int64]
    times: Array
    series: Array
    place: npt.NDArray[np.int64]
    groups: Ints
    growth: npt.NDArray[np.int64]
    tally: Array
    prefixes: Prefixes


class Step(NamedTuple):
    """Steps that are planned or under way, each a column of a ring, and room for the next one.

    Attributes:
        end: Seconds, (depth,).
        tokens, lost, marks: Tokens, requests that lost blocks, and entries of `marked`, (depth,).
        marked: Requests that get their first or last token from it, (depth, 2 * max_sequences).
        new, past: Pieces of prompts of the step that is planned, (max_sequences,).
        sums: Pieces, decodes and their context, group and groups of layers of the pieces, and
            tokens as above, of the step that is planned, (8,).
        masks: `StepTable.masks` of the prices: what its decodes attend to is counted there.
    """

    end: Array
    tokens: npt.NDArray[np.int64]
    lost: npt.NDArray[np.int64]
    marks: npt.NDArray[np.int64]
    marked: Ints
    new: Array
    past: Array
    sums: npt.NDArray[np.int64]
    masks: Array


def new_state(
    requests: int,
    blocks: int,
    sequences: int,
    rows: int,
    below: int = 0,
    groups: Ints | None = None,
    growth: Sequence[Growth] = (),
    prefixes: Prefixes | None = None,
) -> State:
    """Return the state before anything happened: all blocks are free, `below` in the next tier."""
    of_requests = np.zeros((8, requests), np.int32)
    of_requests[LAST] = NONE
    of_blocks = np.full((5, blocks + 1), NONE, np.int32)
    of_blocks[NEXT] = np.roll(np.arange(blocks + 1), -1)
    of_blocks[BEFORE] = np.roll(np.arange(blocks + 1), 1)
    counts = np.zeros(20, np.int64)
    counts[FREE], counts[EVERY], counts[BELOW] = blocks, 1, below
    if prefixes is not None:
        of_blocks[[HOLDERS, KEPT]] = 0
        counts[SLOTS] = sequences
    return State(
        of_requests,
        of_blocks,
        np.zeros(sequences, np.int32),
        np.zeros(sequences + 1, np.int32),
        np.zeros(2 * sequences, np.int32),
        counts,
        np.full((3, requests), -1.0),
        np.zeros((len(SERIES), rows)),
        np.zeros(6, np.int64),
        np.zeros(0, np.int32) if groups is None else groups,
        np.array(growth, np.int64).reshape(-1, 2),
        np.zeros(LATE_FROM + sequences + blocks + 1 + requests + 1),
        prefixes or no_prefixes(),
    )


def new_steps(depth: int, sequences: int, masks: Array) -> Step:
    """Return room for the steps of an idle engine."""
    return Step(
        end=np.zeros(depth),
        tokens=np.zeros(depth, np.int64),
        lost=np.zeros(depth, np.int64),
        marks=np.zeros(depth, np.int64),
        marked=np.zeros((depth, 2 * sequences), np.int32),
        new=np.zeros(sequences),
        past=np.zeros(sequences),
        sums=np.zeros(8, np.int64),
        masks=masks,
    )
