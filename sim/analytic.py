"""Time without contention: the longer of the longest dependency path and the busiest resource."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.ops import Array
from opbyte.hw_models.price import Demand


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


def analytic_step(demand: Demand, microbatches: int = 1) -> Step:
    """Return the time of one run of the demand's table.

    A pipeline of stages with times t_s that M identical microbatches pass takes
    sum(t_s) + (M - 1) * max(t_s), the longest path through the grid of stages and microbatches.

    Args:
        demand: Priced operators of one microbatch.
        microbatches: How many of them pass.
    """
    placed = demand.placed
    duration = demand.duration
    block_seconds = block_paths(demand, duration)
    counts = np.bincount(placed.table.order, minlength=len(placed.table.blocks))
    stages = placed.table.stage
    last = int(stages.max(initial=0)) + 1
    stage_seconds = np.stack(
        [(block_seconds * (counts * (stages == s))[:, None]).sum(axis=0) for s in range(last)]
    )
    path = stage_seconds.sum(axis=0) + (microbatches - 1) * stage_seconds.max(axis=0)
    repeats = placed.repeats
    stage_of_op = stages[placed.block_of]
    busy: dict[str, Array] = {}
    held = [(r, demand.busy[:, i]) for i, r in enumerate(placed.resources)]
    held += [
        (u, np.where((placed.unit_of == i)[:, None], duration, 0.0))
        for i, u in enumerate(placed.units)
    ]
    for name, seconds in held:
        per_stage = [
            (seconds * (repeats * (stage_of_op == s))[:, None]).sum(axis=0) for s in range(last)
        ]
        busy[name] = microbatches * np.max(per_stage, axis=0)
    seconds = np.maximum(path, np.max(list(busy.values()), axis=0)) if busy else path
    return Step(seconds, path, busy)


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
