"""Arrays of several compiled loops, stacked engine by engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.loop import Served
from opbyte.sim.serving.compiled.moves import Link
from opbyte.sim.serving.compiled.prefixes import at_engine, for_engines, sharing
from opbyte.sim.serving.compiled.state import LAST, NONE, State, Step


@register_jitable
def state_at(s: State, i: int) -> State:
    """Return the state of one engine."""
    return State(
        s.requests[i],
        s.blocks[i],
        s.running[i],
        s.stack[i],
        s.moves[i],
        s.counts[i],
        s.times[i],
        s.series[i],
        s.place[i],
        s.groups[i],
        s.growth[i],
        s.tally[i],
        at_engine(s.prefixes, i),
    )


@register_jitable
def steps_at(f: Step, i: int) -> Step:
    """Return the steps of one engine."""
    return Step(
        f.end[i],
        f.tokens[i],
        f.lost[i],
        f.marks[i],
        f.marked[i],
        f.new[i],
        f.past[i],
        f.sums[i],
        f.masks,
    )


def stacked(arrays: tuple[Any, ...], engines: int) -> tuple[Any, ...]:
    """Return the arrays of one engine for so many."""
    return tuple(np.stack([array] * engines) for array in arrays)


def stacked_state(one: State, engines: int) -> State:
    """Return the state of one engine for so many."""
    everyone = for_engines(one.prefixes, engines, one.times.shape[1])
    return State._make((*stacked(one[:-1], engines), everyone))


def twice(array: Any, value: float) -> Any:
    """Return an array with twice the room along its last axis."""
    return np.concatenate([array, np.full_like(array, value)], axis=-1)


def wider(s: State) -> State:
    """Return the same state with room for twice the requests."""
    requests = twice(s.requests, 0)
    requests[:, LAST, s.requests.shape[-1] :] = NONE
    tally, prefixes = twice(s.tally, 0.0), s.prefixes
    if sharing(prefixes):
        prefixes = prefixes._replace(row=twice(prefixes.row, 0))
    return s._replace(requests=requests, times=twice(s.times, -1.0), tally=tally, prefixes=prefixes)


def served_at(state: State, i: int, count: int, busy: Array, drawn: Array, link: Link) -> Served:
    """Return what an engine did with its first requests."""
    own = state_at(state, i)
    own = own._replace(times=own.times[:, :count], requests=own.requests[:, :count])
    return Served.of(own, busy, drawn, link)
