"""Heads of a layer that follow each other through the units of a device (`overlap: dependency`).

A layer's operators are a chain: a norm waits for all of its input, attention for its query. Cut
into the H heads of a layer, the chain is a pipeline through the units: while the linear unit is at
the next head's tile, others are at the scores, the softmax, the sum of squares or the largest
value of this one. With t(u) the time for which the layer holds unit u,

    t = max t(u) + (sum t(u) - max t(u)) / H

so all but the first head's share of what is no linear tile is hidden, as long as it is shorter.
VitaLLM (arXiv 2604.27396) calls it dependency-aware scheduling; the formula is that of
`overlap: head`. Blocks without attention, such as the head of the model, are not cut.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.price import Demand


def dependent_durations(demand: Demand) -> Array:
    """Return what each operator adds to the longest path, (ops, points)."""
    placed, duration = demand.placed, demand.duration
    along = duration.copy()
    for block in np.unique(placed.block_of).tolist():
        ops = np.flatnonzero((placed.block_of == block) & (placed.unit_of >= 0))
        tiles = _heads(placed, block)
        if tiles is None or not ops.size:
            continue
        units = np.unique(placed.unit_of[ops])
        held = np.stack([duration[ops[placed.unit_of[ops] == u]].sum(axis=0) for u in units])
        longest = units[held.argmax(axis=0)]
        for op in ops:
            whole = longest == placed.unit_of[op]
            along[op] = duration[op] * np.where(whole, 1.0, 1.0 / tiles)
    return along


def _heads(placed: PlacedOps, block: int) -> Array | None:
    """Return the KV heads of one sequence in a block, (1 or points,); None without attention."""
    table = placed.table
    for row, kind in enumerate(table.kinds):
        if kind == "score" and placed.block_of[placed.op_of[row]] == block:
            heads: Array = np.maximum(table["groups"][row] / table["sequences"][row], 1.0)
            return heads
    return None
