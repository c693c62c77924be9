"""What compiled pools work on: the loops of each pool, and what becomes of requests between them.

Each request has a row at the engine that reads its prompt, and one at the engine that answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.loop import Served
from opbyte.sim.serving.compiled.moves import Link
from opbyte.sim.serving.compiled.several import served_at, stacked, stacked_state, twice, wider
from opbyte.sim.serving.compiled.state import (
    DONE,
    FLYING,
    HEAD,
    NONE,
    Ints,
    State,
    Step,
    new_steps,
)
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.prices.step import Prices, masks_of

#: Entries of `Pool.counts`: rows, and of a pool that answers those whose caches are on the way or
#: were, and those that have come.
ROWS, FETCHED, LANDED = range(3)
#: Rows of `Pool.rows`: tokens of prompt and answer, and number of the request.
GIVEN, PRODUCED, REQUEST = range(3)


class Pool(NamedTuple):
    """The engines of a pool.

    Attributes:
        state, steps: As for `serve_loop`, of all engines.
        rows: By row as above, (engines, 3, room).
        comes: When the cache of a row is there, seconds, (engines, room).
        due: When a plan is due, infinite where none is, seconds, (engines,).
        counts: Counters, (engines, 3).
        busy, drawn: As for `serve_loop`, (engines, ..).
        turn: Engine whose turn it is, (1,).
    """

    state: State
    steps: Step
    rows: Ints
    comes: Array
    due: Array
    counts: npt.NDArray[np.int64]
    busy: Array
    drawn: Array
    turn: npt.NDArray[np.int64]


class Asked(NamedTuple):
    """Requests of a trace.

    Attributes:
        arrival: Seconds, (requests,).
        given, produced: Tokens of prompt and answer, (requests,).
        times: Scheduled, first token, last token, seconds, negative before, (3, requests).
        moved: Bytes that were sent of it, (requests,).
        preempted: How often it lost its blocks, (requests,).
        reader, row: Engine that reads it, and its row there, (requests,).
        decoder: Engine that gives its last token, NONE where one that reads does, (requests,).
        place: The request that arrives next, (1,).
    """

    arrival: Array
    given: Ints
    produced: Ints
    times: Array
    moved: Array
    preempted: Ints
    reader: Ints
    row: Ints
    decoder: Ints
    place: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls, arrival: Array, given: npt.NDArray[np.int64], produced: npt.NDArray[np.int64]
    ) -> Asked:
        """Return requests before anything happened."""
        n = len(arrival)

        def none() -> Ints:
            return np.full(n, NONE, np.int32)

        return cls(
            np.array(arrival, np.float64), given.astype(np.int32), produced.astype(np.int32),
            np.full((3, n), -1.0), np.zeros(n), np.zeros(n, np.int32), none(), none(), none(),
            np.zeros(1, np.int64),
        )  # fmt: skip


def new_pool(engines: int, one: State, sequences: int, depth: int, prices: Prices) -> Pool:
    """Return idle engines.

    Args:
        one: State of one of them.
        sequences: Requests that run at once.
        depth: Steps that are planned or under way at once.
    """
    masks, room = masks_of(prices), one.times.shape[1]
    steps = Step(*stacked(new_steps(depth, sequences, masks), engines))
    columns = len(prices.resources) + len(TRAFFIC)
    return Pool(
        stacked_state(one, engines),
        # One table prices the steps of all engines, one after the other.
        steps._replace(masks=masks),
        np.zeros((engines, 3, room), np.int32),
        np.zeros((engines, room)),
        np.full(engines, np.inf),
        np.zeros((engines, 3), np.int64),
        np.zeros((engines, columns)),
        np.zeros((engines, 2)),
        np.zeros(1, np.int64),
    )


def roomier(p: Pool) -> Pool:
    """Return the same pool with room for twice the rows."""
    return p._replace(state=wider(p.state), rows=twice(p.rows, 0), comes=twice(p.comes, 0.0))


def did(p: Pool, link: Link) -> tuple[Served, ...]:
    """Return what each engine did."""
    return tuple(
        served_at(p.state, i, int(p.counts[i, ROWS]), p.busy[i], p.drawn[i], link)
        for i in range(len(p.counts))
    )


@register_jitable
def full(p: Pool, spare: int) -> bool:
    """Return whether an engine has room for fewer rows than may come at once."""
    most = 0
    for i in range(p.counts.shape[0]):
        most = max(most, p.counts[i, ROWS])
    return bool(most + spare > p.comes.shape[1])


@register_jitable
def unanswered(p: Pool) -> int:
    """Return the requests of all engines that are not answered."""
    left = 0
    for i in range(p.counts.shape[0]):
        left += p.counts[i, ROWS] - p.state.place[i, DONE]
    return left


@register_jitable
def add(p: Pool, i: int, given: int, produced: int, request: int) -> int:
    """Give an engine a request; return its row."""
    at = p.counts[i, ROWS]
    p.counts[i, ROWS] += 1
    p.rows[i, GIVEN, at], p.rows[i, PRODUCED, at], p.rows[i, REQUEST, at] = given, produced, request
    return int(at)


@register_jitable
def chosen(p: Pool, least: int) -> int:
    """Return the engine that a request goes to: whose turn it is, or who has the fewest.

    Args:
        least: By requests that are not answered (1), or in turn (0).
    """
    engines = p.counts.shape[0]
    if not least:
        i = p.turn[0] if p.turn[0] < engines else 0
        p.turn[0] = i + 1
        return int(i)
    best, fewest = 0, p.counts[0, ROWS] - p.state.place[0, DONE]
    for i in range(1, engines):
        outstanding = p.counts[i, ROWS] - p.state.place[i, DONE]
        if outstanding < fewest:
            best, fewest = i, outstanding
    return best


@register_jitable
def ends(p: Pool, i: int) -> float:
    """Return when the next step of an engine ends, seconds."""
    if p.state.place[i, FLYING] == 0:
        return np.inf
    return float(p.steps.end[i, p.state.place[i, HEAD]])


@register_jitable
def poke(p: Pool, i: int, now: float) -> None:
    """Let an engine plan a step if one may be planned, when all that happens now has happened."""
    if p.state.place[i, FLYING] < p.steps.end.shape[1] and p.due[i] == np.inf:
        p.due[i] = now


@register_jitable
def lands(p: Pool, i: int) -> float:
    """Return when the next cache comes to an engine, seconds."""
    if p.counts[i, FETCHED] == p.counts[i, LANDED]:
        return np.inf
    return float(p.comes[i, p.counts[i, LANDED]])
