"""Operators without matrix products as kernels: their sizes as the compiled loop reads them."""

from __future__ import annotations

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Array
from opbyte.core.placed import MOVED, PlacedOps
from opbyte.hw_models.compute.base import Rows
from opbyte.hw_models.compute.gpu.parameters import BLOCK, MACHINE, GpuView, stacked

#: Facts and parameters, in the order of the columns of `streams`.
STREAM = (*MACHINE, *BLOCK, "clock", "threads", "shared_bytes")
#: Kinds whose kernel gives each row of elements a thread block.
ROW_KINDS = frozenset({"norm", "softmax"})


def kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that are one vector row, and their seconds, (kernels, 1 or points).

    Cache writes are kernels of the attention library where the unit has one.
    """
    from opbyte.hw_models.compute.gpu.streams import STREAM_KERNELS, compiled

    table, known = placed.table, set(STREAM_KERNELS.names())
    if view.block("attention", ()) is not None:
        known.discard("kv_append")
    rows = np.array([r for r in placed.single(ops) if table.kinds[r] in known], np.int64)
    mine = placed.op_of[rows]
    if not rows.size:
        return mine, np.zeros((0, 1))
    kinds = [table.kinds[r] for r in rows]
    size = np.array([[lookup(table.dtypes[r]).bytes_per_element] for r in rows])
    by_row = np.array([[kind in ROW_KINDS] for kind in kinds])
    moved = np.sum(np.broadcast_arrays(*(placed.moved[c][mine] for c in MOVED)), axis=0)
    written = np.minimum(table["out_bytes"][rows] + table["kv_write"][rows], moved)
    columns = (
        np.where(by_row, table["groups"][rows], 0.0),
        moved - written,
        written,
        written / size,
    )
    sizes = np.stack(np.broadcast_arrays(*columns))
    named = view.named("")
    facts = stacked(*(named[name] for name in STREAM))
    rules = np.stack([STREAM_KERNELS.lookup(kind).rules for kind in kinds])
    seconds = np.empty((len(rows), max(sizes.shape[2], facts.shape[0])))
    compiled()(seconds, sizes, facts, rules)
    flops = table["flops"][rows]
    if flops.any():
        rate = np.atleast_1d(view.unit.vector_rate(kinds[0]))
        seconds = np.maximum(seconds, flops / rate)
    return mine, seconds
