"""Attention calls as kernels: score, softmax and context that are one operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import Rows
from opbyte.hw_models.compute.gpu.parameters import GpuView

CALL = ("score", "softmax", "context")
#: Parameters of the block `kernel.latent`, in the order of the compiled loop's columns.
LATENT = ("trip", "start", "single")

#: Seconds of calls of one arithmetic dtype, given the rows of their scores.
_Seconds = Callable[[OpTable, Rows, str], Array]


def latent_kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that attend to a latent cache, and their seconds.

    Raises:
        UncoveredError: If the unit lacks the dtype, or its generation has no such kernel.
    """
    from opbyte.hw_models.compute.gpu.latent import LATENT_KERNELS, compiled

    block = view.block("latent", LATENT)
    scores, owner = _calls(placed, ops)
    scores, owner = (x[_is_latent(placed.table, scores)] for x in (scores, owner))
    if block is None or not scores.size:
        return owner[:0], np.zeros((0, 1))
    rules = LATENT_KERNELS.lookup(view.generation.name).rules
    gap = view.unit.get(f"launch.{placed.launch}", 0.0)

    def seconds(table: OpTable, rows: Rows, dtype: str) -> Array:
        heads, kv, width = table["heads"][rows], table["n"][rows], table["k"][rows]
        groups, latent = table["groups"][rows], table["n"][rows + 2]
        sizes = _stacked(groups, heads, table["m"][rows] / heads, kv, latent, width - latent)
        cached = table["kv_read"][rows] / np.maximum(groups * kv * width, 1.0)
        facts = view.facts(dtype, view.unit.get("clock"), gap, *block)
        result = np.empty((len(rows), max(sizes.shape[2], facts.shape[0])))
        size = lookup(dtype).bytes_per_element
        compiled()(result, sizes, size, float(cached.max()), facts, rules)
        return result

    return _summed(placed.table, scores, owner, seconds)


def _calls(placed: PlacedOps, ops: Rows) -> tuple[Rows, Rows]:
    """Return the score rows of operators that consist of calls, and each one's operator."""
    kinds = placed.table.kinds
    starts = np.searchsorted(placed.op_of, np.arange(len(placed) + 1))
    scores: list[int] = []
    owner: list[int] = []
    for op in ops:
        rows = range(starts[op], starts[op + 1])
        if len(rows) % 3 == 0 and all(kinds[r] == CALL[i % 3] for i, r in enumerate(rows)):
            scores += rows[::3]
            owner += [op] * (len(rows) // 3)
    return np.array(scores, np.int64), np.array(owner, np.int64)


def _is_latent(table: OpTable, scores: Rows) -> npt.NDArray[np.bool_]:
    """Return where values are a part of the cached keys: only the score row reads the cache."""
    reads = (table["kv_read"][scores] > 0).any(axis=1)
    again = (table["kv_read"][scores + 2] > 0).any(axis=1)
    return reads & ~again if scores.size else np.zeros(0, bool)


def _stacked(*columns: Array) -> Array:
    """Return columns of (rows, 1 or points) as one array, (columns, rows, points)."""
    sizes = np.empty((len(columns), len(columns[0]), max(c.shape[1] for c in columns)))
    for i, column in enumerate(columns):
        sizes[i] = column
    return sizes


def _summed(table: OpTable, scores: Rows, owner: Rows, seconds: _Seconds) -> tuple[Rows, Array]:
    """Return each operator and the sum of its calls' seconds, (operators, 1 or points)."""
    dtypes = np.array([table.dtypes[row] for row in scores])
    parts: list[tuple[Any, Array]] = [
        (dtypes == dtype, seconds(table, scores[dtypes == dtype], str(dtype)))
        for dtype in dict.fromkeys(dtypes)
    ]
    calls = np.empty((len(scores), max(part.shape[1] for _, part in parts)))
    for mine, part in parts:
        calls[mine] = part
    ops, first = np.unique(owner, return_index=True)
    return ops, np.add.reduceat(calls, first, axis=0)
