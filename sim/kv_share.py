"""How much of a step the KV cache takes where decode attention has devices of its own.

Nothing else runs while the cache is read, written or asked in a serial mapping:

    kv_s = seconds of a step - path of a step in which attention and its transfers take no time
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.mapping_file import ATTENTION
from opbyte.core.ops import TRANSFER, Array
from opbyte.hw_models.price import Demand
from opbyte.sim.analytic import block_paths
from opbyte.sim.result import PhaseRun

__all__ = ["attention_operators", "kv_metrics"]


def attention_operators(demand: Demand) -> npt.NDArray[np.bool_]:
    """Return which operators are decode attention or its transfers, (ops,)."""
    placed, table = demand.placed, demand.placed.table
    rows = [
        kind == TRANSFER or ATTENTION in labels
        for kind, labels in zip(table.kinds, table.labels, strict=True)
    ]
    cache = np.zeros(len(placed), bool)
    cache[placed.op_of[rows]] = True
    return cache


def kv_metrics(run: PhaseRun) -> dict[str, Array]:
    """Return seconds and share of a phase's step that are the cache's, each (points,)."""
    demand, table = run.demand, run.demand.placed.table
    cache = attention_operators(demand)
    counts = np.bincount(table.order, minlength=len(table.blocks))
    rest = block_paths(demand, np.where(cache[:, None], 0.0, demand.duration))
    alone = run.microbatches * (rest * counts[:, None]).sum(axis=0)
    seconds = np.maximum(run.step.seconds - alone, 0.0)
    return {"kv_s": seconds, "kv_share": seconds / run.step.seconds}
