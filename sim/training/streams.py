"""Kernels of a device on two streams, as frameworks issue them: one computes, one communicates.

Each stream takes its operators in program order; an operator starts when its stream is free and
what it reads has ended. So an all-gather or reduce-scatter hides behind the products that do not
wait for it, and nothing else does. A block starts when the one before it is complete.

A library's call holds SMs (`channels`). Kernels beside it lack them: of c hidden seconds they lose
the share of the SMs that is taken, and run on for as long afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.hw_models.price import Demand


@dataclass(frozen=True)
class Streams:
    """Seconds of each block of a table, (blocks, points).

    Attributes:
        seconds: From its start to its end.
        computing: Of them, those in which the first stream works.
    """

    seconds: Array
    computing: Array

    def of_stages(self, demand: Demand, stages: int) -> tuple[Array, Array]:
        """Return seconds and computing seconds of each stage, (stages, points)."""
        table = demand.placed.table
        runs = np.bincount(table.order, minlength=len(table.blocks)).astype(np.float64)[:, None]
        both = []
        for values in (self.seconds, self.computing):
            total = np.zeros((stages, values.shape[1]))
            np.add.at(total, table.stage, values * runs)
            both.append(total)
        return both[0], both[1]


def streams(demand: Demand, taken: Any = 0.0) -> Streams:
    """Return what two streams take for each block of a priced table.

    Args:
        taken: Share of the unit that calls take from kernels beside them.
    """
    placed, duration = demand.placed, demand.duration
    points = duration.shape[1]
    blocks = len(placed.table.blocks)
    seconds, computing = np.zeros((blocks, points)), np.zeros((blocks, points))
    sources: dict[int, list[int]] = {}
    for source, target in placed.edges.tolist():
        sources.setdefault(target, []).append(source)
    ends = np.zeros_like(duration)
    calls = np.zeros((blocks, points))
    free: dict[tuple[int, bool], Array] = {}
    for op in range(len(placed)):
        block, apart = int(placed.block_of[op]), bool(placed.unit_of[op] < 0)
        start = free.get((block, apart), np.zeros(points))
        for source in sources.get(op, ()):
            start = np.maximum(start, ends[source])
        ends[op] = start + duration[op]
        free[block, apart] = ends[op]
        seconds[block] = np.maximum(seconds[block], ends[op])
        (calls if apart else computing)[block] += duration[op]
    lost = np.maximum(computing + calls - seconds, 0.0) * taken
    return Streams(seconds + lost, computing + lost)
