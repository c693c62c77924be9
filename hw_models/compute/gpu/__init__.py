"""GPUs: matrix products by their kernels' mechanisms where the unit has a `kernel` block."""

from __future__ import annotations

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
        rows = np.array([r for r in rows if kinds[r] in PRODUCTS and table["m"][r].any()], np.int64)
        if not rows.size:
            return None
        sizes = [table[c][rows] for c in ("m", "n", "k", "groups")]
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
    facts = {dtype: view.facts(dtype) for dtype in {table.dtypes[r] for r in rows}}
    points = max(*(s.shape[1] for s in (*sizes, weights)), *(f.shape[0] for f in facts.values()))
    seconds = np.empty((len(rows), points))
    for i, row in enumerate(rows):
        dtype = table.dtypes[row]
        size = lookup(dtype).bytes_per_element
        columns = [s[i] for s in sizes]
        given = weights[i]
        # Products of two activations have no weights: the second matrix is of the same dtype.
        second = columns[3] * columns[1] * columns[2] * size
        columns.append(np.where(given > 0, given, second))
        if points == 1 or max(c.size for c in columns) == 1:
            shapes = np.array(columns)
        else:
            shapes = np.stack(np.broadcast_arrays(*columns))
        fill_seconds(
            seconds[i],
            np.ascontiguousarray(shapes, np.float64),
            size,
            size,
            facts[dtype],
            view.generation.rules,
            view.generation.tiles,
        )
    return seconds
