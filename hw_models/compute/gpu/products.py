"""Dense products as kernels: which operators are some, and what the compiled loop reads of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import Rows
from opbyte.hw_models.compute.gpu.parameters import GpuView

#: Bytes of an element of a result: products of narrower operands leave as 16 bits.
NARROWEST_RESULT = 2.0
#: Label of products that are added to a sum of gradients: read and written in the epilogue.
GRADIENT = "gradient"
#: Rows that are a kernel of a library of dense products when they are an operator of their own.
PRODUCTS = frozenset({"gemm", "grouped_gemm", "score", "context"})


def kernels(placed: PlacedOps, ops: Rows, view: GpuView) -> tuple[Rows, Array]:
    """Return the operators that are one product, and their seconds, (kernels, 1 or points).

    Raises:
        UncoveredError: If a product is empty along n or k, or the unit lacks its dtype.
    """
    table = placed.table
    single = [r for r in placed.single(ops) if table.kinds[r] in PRODUCTS]
    if view.block("grouped", ()) is not None:
        single = [r for r in single if int(r) not in table.spreads]
    rows = np.array(single, np.int64)
    sizes = [table[c][rows] for c in ("m", "n", "k", "groups")]
    if not sizes[0].any():
        return rows[:0], np.zeros((0, 1))
    if (sizes[1] <= 0).any() or (sizes[2] <= 0).any():
        raise UncoveredError(
            f"{view.unit.machine.name}: a product with n = {sizes[1].min():g} and "
            f"k = {sizes[2].min():g} at least: no kernel computes an empty product"
        )
    second = table["weight"][rows] + table["expert"][rows] + table["kv_read"][rows]
    return placed.op_of[rows], _seconds(table, rows, sizes, second, view)


def _seconds(table: OpTable, rows: Rows, sizes: list[Array], given: Array, view: GpuView) -> Array:
    """Return the seconds of each row, (rows, 1 or points).

    Args:
        given: Bytes of the second matrix, 0 where it is an activation, (rows, 1 or points).
    """
    from opbyte.hw_models.compute.gpu.kernel import compiled

    fill_seconds = compiled()
    kinds = [(table.dtypes[row], _written(table, row)) for row in rows]
    parts: list[tuple[Any, Array]] = []
    for kind in dict.fromkeys(kinds):
        dtype, written = kind
        mine = slice(None) if kinds.count(kind) == len(kinds) else _rows_of(kinds, kind)
        size = lookup(dtype).bytes_per_element
        m, n, k, groups, second = (column[mine] for column in (*sizes, given))
        # Where both are activations the second matrix is of the same dtype.
        second = second if second.all() else np.where(second > 0, second, groups * n * k * size)
        columns = (m, n, k, groups, second)
        shapes = np.empty((5, len(m), max(c.shape[1] for c in columns)))
        for i, column in enumerate(columns):
            shapes[i] = column
        facts = view.facts(dtype)
        seconds = np.empty((len(m), max(shapes.shape[2], facts.shape[0])))
        generation = view.generation
        result = max(size, NARROWEST_RESULT, written)
        fill_seconds(seconds, shapes, size, result, facts, generation.rules, generation.tiles)
        parts.append((mine, seconds))
    if len(parts) == 1:
        return parts[0][1]
    total = np.empty((len(rows), max(part.shape[1] for _, part in parts)))
    for mine, part in parts:
        total[mine] = part
    return total


def _written(table: OpTable, row: np.int64) -> float:
    """Return the bytes that an element of a sum of gradients is read and written, 0 of others."""
    if GRADIENT not in table.labels[row]:
        return 0.0
    elements = table["m"][row] * table["n"][row] * table["groups"][row]
    return float(np.max(2.0 * table["out_bytes"][row] / elements))


def _rows_of(kinds: list[tuple[str, float]], kind: tuple[str, float]) -> Rows:
    return np.array([i for i, other in enumerate(kinds) if other == kind], np.int64)
