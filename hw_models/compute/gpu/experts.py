"""Grouped products of experts as kernels: how picks are spread decides how many tiles there are."""

from __future__ import annotations

from functools import reduce

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import Rows
from opbyte.hw_models.compute.gpu.grouped_libraries import GROUPED_LIBRARIES
from opbyte.hw_models.compute.gpu.parameters import GpuView, stacked
from opbyte.hw_models.compute.gpu.products import NARROWEST_RESULT

#: Parameters of the block `kernel.grouped`, in the order of the compiled loop's columns.
GROUPED = ("matrix", "gather", "narrow")


def kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that are a grouped product whose spread is known, and their seconds.

    Raises:
        UncoveredError: If the unit lacks the dtype.
        ConfigError: If the generation has no library of grouped products.
    """
    block, table = view.block("grouped", GROUPED), placed.table
    rows = np.array([r for r in placed.single(ops) if int(r) in table.spreads], np.int64)
    if block is None or not rows.size:
        return rows[:0], np.zeros((0, 1))
    own = stacked(*block)
    parts = [_seconds(table, int(row), own, view) for row in rows]
    return placed.op_of[rows], np.concatenate(np.broadcast_arrays(*parts))


def _seconds(table: OpTable, row: int, own: Array, view: GpuView) -> Array:
    """Return the seconds of one row, (1, 1 or points)."""
    from opbyte.hw_models.compute.gpu.grouped import compiled

    generation, spread = view.generation, table.spreads[row]
    library = GROUPED_LIBRARIES.lookup(generation.name)
    size = lookup(table.dtypes[row]).bytes_per_element
    n, k, hit = table["n"][row], table["k"][row], table["groups"][row]
    counts = np.atleast_2d(spread.counts)
    sources = table.edges[table.edges[:, 1] == row, 0]
    given = table["in_bytes"][row] + table["side_bytes"][row]
    # Rows are gathered from the largest of its inputs.
    read = reduce(np.maximum, (table["out_bytes"][s] for s in sources), given)
    columns = (
        n,
        k,
        np.atleast_1d(np.asarray(spread.tokens, np.float64)),
        read / (k * size),
        np.array([float(len(counts))]),
        table["expert"][row] / np.maximum(hit, 1e-9),
        np.array([float(library.tuned(len(counts), spread.width))]),
    )
    sizes = np.empty((len(columns), 1, max(c.shape[0] for c in columns)))
    for i, column in enumerate(columns):
        sizes[i, 0] = column
    facts = view.facts(table.dtypes[row])
    points = max(sizes.shape[2], counts.shape[1], facts.shape[0], own.shape[0])
    seconds = np.empty((1, points))
    starts = np.array([0, len(counts)], np.int64)
    result = max(size, NARROWEST_RESULT)
    compiled()(
        seconds, sizes, np.ascontiguousarray(counts), starts, size, result, facts, own,
        library.rules(generation), library.tiles(generation),
    )  # fmt: skip
    return seconds
