"""GPUs: matrix products by their kernels' mechanisms where the unit has a `kernel` block."""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.hw_models.compute.matrix import TiledMatrix

#: Operators that are kernels of a library of dense products.
PRODUCTS = frozenset({"gemm", "grouped_gemm"})


@UNITS.register("gpu")
class Gpu(TiledMatrix):
    """SMs with tensor cores.

    A product that is an operator of its own takes the time of its library's kernel. Inside a fused
    operator, and without a `kernel` block, products are padded to the instruction's tile.
    """

    def kernel_prices(self, table: OpTable, rows: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the seconds of the rows that are library kernels, None without a block.

        Raises:
            UncoveredError: If a product is empty along n or k, or the unit lacks its dtype.
        """
        view = GpuView.of(unit)
        if view is None:
            return None
        kinds = table.kinds
        rows = np.array([r for r in rows if kinds[r] in PRODUCTS], np.int64)
        sizes = [table[c][rows] for c in ("m", "n", "k", "groups")]
        if not sizes[0].any():
            return None
        weights = table["weight"][rows] + table["expert"][rows]
        if (sizes[1] <= 0).any() or (sizes[2] <= 0).any():
            raise UncoveredError(
                f"{unit.machine.name}: a product with n = {sizes[1].min():g} and "
                f"k = {sizes[2].min():g} at least: no kernel computes an empty product"
            )
        return KernelPrices(rows, _seconds(table, rows, sizes, weights, view), view.home)


def _seconds(
    table: OpTable, rows: Rows, sizes: list[Array], weights: Array, view: GpuView
) -> Array:
    from opbyte.hw_models.compute.gpu.kernel import compiled

    fill_seconds = compiled()
    dtypes = [table.dtypes[row] for row in rows]
    parts: list[tuple[Any, Array]] = []
    for dtype in dict.fromkeys(dtypes):
        mine = slice(None) if dtypes.count(dtype) == len(dtypes) else _rows_of(dtypes, dtype)
        size = lookup(dtype).bytes_per_element
        m, n, k, groups, given = (column[mine] for column in (*sizes, weights))
        # Products of two activations have no weights: the second matrix is of the same dtype.
        second = given if given.all() else np.where(given > 0, given, groups * n * k * size)
        columns = (m, n, k, groups, second)
        shapes = np.empty((5, len(m), max(c.shape[1] for c in columns)))
        for i, column in enumerate(columns):
            shapes[i] = column
        facts = view.facts(dtype)
        seconds = np.empty((len(m), max(shapes.shape[2], facts.shape[0])))
        generation = view.generation
        fill_seconds(seconds, shapes, size, size, facts, generation.rules, generation.tiles)
        parts.append((mine, seconds))
    if len(parts) == 1:
        return parts[0][1]
    total = np.empty((len(rows), max(part.shape[1] for _, part in parts)))
    for mine, part in parts:
        total[mine] = part
    return total


def _rows_of(dtypes: list[str], dtype: str) -> Rows:
    return np.array([i for i, name in enumerate(dtypes) if name == dtype], np.int64)
