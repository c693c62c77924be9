"""Operators that a layer leaves behind: the next one does not wait for them (`overlap: kv_write`).

Keys and values of prompts leave for the cache's own devices and are written there while the model
group runs the next layer. With n layers, a the time of a layer without them, w_j that of such an
operator, and what comes before and after it inside its layer,

    t = max( n a + what the last layer leaves, max over j of before_j + n w_j + after_j )

which a chain of stages with room between them takes when all layers are alike. No resource is busy
for longer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opbyte.hw_models.price import Demand
from opbyte.sim.analytic import Step, analytic_step, block_paths, slack

__all__ = ["behind_step"]


def behind_step(demand: Demand) -> Step:
    """Return the time of one run of a table whose blocks leave operators behind."""
    placed, duration = demand.placed, demand.duration
    behind = placed.behind
    without = block_paths(demand, np.where(behind[:, None], 0.0, duration))
    late = block_paths(demand, duration) - without
    counts = np.bincount(placed.table.order, minlength=len(placed.table.blocks))
    path = (without * counts[:, None]).sum(axis=0) + late.max(axis=0)
    before, after = slack(demand)
    chains = (before + placed.repeats[:, None] * duration + after)[behind]
    step = analytic_step(demand)
    seconds = np.maximum(path, chains.max(axis=0))
    for busy in step.busy.values():
        seconds = np.maximum(seconds, busy)
    return replace(step, seconds=seconds, path=path)
