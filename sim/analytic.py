"""Time without contention: the longer of the longest dependency path and the busiest resource."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.hw_models.price import Demand
from opbyte.sim.head_overlap import path_durations


@dataclass(frozen=True)
class Step:
    """Time of one run of a table.

    Attributes:
        seconds: Time from start to end, (points,).
        path: Longest dependency path, (points,).
        busy: Busy seconds of each resource and unit, by short path, each (points,); a unit is
            held for the whole duration of an operator. Of the busiest pipeline stage.
    """

    seconds: Array
    path: Array
    busy: dict[str, Array]


def analytic_step(
    demand: Demand, microbatches: int = 1, turns: Callable[[str], float] | None = None
) -> Step:
    """Return the time of one run of the demand's table.

    The time is the largest of the longest path of one microbatch and, for each resource, what must
    pass before its first use, its busy seconds for all microbatches, and what must pass after its
    last use. With one microbatch the outer two terms are left out, and with staggered batches,
    which follow each other without end: while one leaves the last layer the next is in the first.

    Args:
        demand: Priced operators of one microbatch.
        microbatches: How many of them pass through the pipeline stages, or take turns.
        turns: Of staggered batches: how many instances of a resource or unit they share.
    """
    placed = demand.placed
    duration = demand.duration
    blocks = with_cells(demand, block_paths(demand, path_durations(demand)))
    order, stages = placed.table.order, placed.table.stage
    counts = np.bincount(order, minlength=len(placed.table.blocks))
    path: Array = (blocks * counts[:, None]).sum(axis=0)
    stage_of_op = stages[placed.block_of]
    repeats = placed.repeats[:, None]
    ops_of = [np.flatnonzero(stage_of_op == s) for s in range(int(stages.max(initial=0)) + 1)]
    busy: dict[str, Array] = {}
    limit = path
    for name, seconds in held(demand, duration):
        for ops in ops_of:
            mine = seconds[ops]
            total = microbatches * (mine * repeats[ops]).sum(axis=0)
            total = total / turns(name) if turns else total
            busy[name] = np.maximum(busy[name], total) if name in busy else total
            if microbatches > 1 and not turns and mine.any():
                total = total + _around(demand, blocks, ops, mine)
            limit = np.maximum(limit, total)
    return Step(limit, path, busy)


def with_cells(demand: Demand, blocks: Array) -> Array:
    """Return the least time of each block: its path, or what ports that share cells take."""
    placed = demand.placed
    for array in placed.arrays:
        total = np.zeros_like(blocks)
        np.add.at(total, placed.block_of, demand.busy[:, array.resource])
        blocks = np.maximum(blocks, total)
    return blocks


def held(demand: Demand, duration: Array) -> list[tuple[str, Array]]:
    """Return each resource and unit with the seconds that each operator holds it."""
    placed = demand.placed
    seconds = [(r, demand.busy[:, i]) for i, r in enumerate(placed.resources)]
    duration = duration if demand.free is None else duration - demand.free
    for i, unit in enumerate(placed.units):
        seconds.append((unit, np.where((placed.unit_of == i)[:, None], duration, 0.0)))
    return seconds


def _around(demand: Demand, blocks: Array, ops: npt.NDArray[np.int64], seconds: Array) -> Array:
    """Return the least time before the first and after the last use of a resource, (points,).

    Args:
        blocks: Longest path of each block, (blocks, points).
        ops: Operators of one stage.
        seconds: Use by each of them, (ops, points).
    """
    placed = demand.placed
    before, after = slack(demand)
    runs = blocks[placed.table.order]
    earlier = np.cumsum(runs, axis=0) - runs
    later = np.cumsum(runs[::-1], axis=0)[::-1] - runs
    head = np.full(seconds.shape[1], np.inf)
    tail = np.full(seconds.shape[1], np.inf)
    for op in ops[seconds.any(axis=1)]:
        at = np.flatnonzero(placed.table.order == placed.block_of[op])
        if at.size:
            head = np.minimum(head, earlier[at[0]] + before[op])
            tail = np.minimum(tail, later[at[-1]] + after[op])
    around: Array = head + tail
    return around


def slack(demand: Demand) -> tuple[Array, Array]:
    """Return the longest path before and after each operator inside its block, (ops, points)."""
    placed, duration = demand.placed, demand.duration
    before, after = np.zeros_like(duration), np.zeros_like(duration)
    forward = placed.edges[np.argsort(placed.edges[:, 1], kind="stable")]
    for source, target in forward:
        np.maximum(before[target], before[source] + duration[source], out=before[target])
    for source, target in placed.edges[np.argsort(-placed.edges[:, 0], kind="stable")]:
        np.maximum(after[source], after[target] + duration[target], out=after[source])
    return before, after


def block_paths(demand: Demand, duration: Array) -> Array:
    """Return the longest path through each block, (blocks, points).

    Args:
        duration: Seconds of each operator, (ops, points).
    """
    placed = demand.placed
    finish = duration.copy()
    for source, target in placed.edges[np.argsort(placed.edges[:, 1], kind="stable")]:
        np.maximum(finish[target], finish[source] + duration[target], out=finish[target])
    blocks = np.zeros((len(placed.table.blocks), duration.shape[1]))
    np.maximum.at(blocks, placed.block_of, finish)
    return blocks
