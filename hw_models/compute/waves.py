"""GPUs in whole waves of thread blocks: an SM that idles takes its share of bandwidth along.

The mechanism of the AttAcc simulator's GPU (ASPLOS 2024), which knows no k split, no latency of
memory and no cache beyond tiles. A product with weights is cut into tiles of the result, one block
each; a product of activations (attention) has one block for each of its groups, a head of a
sequence, and so has the softmax between two. B blocks on S sub-units fill
`B / (S * ceil(B / S))` of them, and

    seconds = max(operations / (efficiency * peak), bytes / (efficiency * port)) / filled

The tile is the one of least traffic between tiles and L2 over the square of what it fills, among
those that fit in a sub-unit's `local` memory with k-steps of 32. It need not be the fastest one:
more rows can take less time, and more sub-units more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView, is_matrix
from opbyte.hw_models.compute.matrix import TiledMatrix

#: Edges that a tile of the result may have, and the depth of a k-step.
EDGES = (8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512)
DEPTH = 32
#: Points whose tiles are compared at a time.
_POINTS = 1024


@UNITS.register("waves")
class Waves(TiledMatrix):
    """Sub-units that run thread blocks in waves.

    Without `local` memory, and inside fused operators, products take their padded operations over
    peak times efficiency.
    """

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the seconds of products, and softmax, that are operators of their own.

        Raises:
            UncoveredError: If the unit is at no port of a DRAM that has a bandwidth, or lacks a
                product's dtype.
        """
        local, home = unit.get("local"), unit.home_port()
        table, rows = placed.table, placed.single(ops)
        softmax = np.array([table.kinds[row] == "softmax" for row in rows], bool)
        rows = rows[is_matrix(table, rows) | softmax]
        if local is None or not rows.size:
            return None
        values = unit.machine.values
        pins = None if home is None else values.get(f"{home}.bandwidth")
        if home is None or pins is None:
            raise UncoveredError(
                f"{unit.machine.name}: unit '{unit.path}' prices kernels with what they stream, "
                "and is at no port of a DRAM that has a bandwidth. give it one in `at`"
            )
        rate = pins * values.get(f"{home}.efficiency", 1.0)
        units = unit.machine.unit(unit.path).config.instances
        seconds = [
            _softmax(table, int(row), unit, rate, units)
            if table.kinds[row] == "softmax"
            else _product(table, int(row), unit, local, rate, units)
            for row in rows
        ]
        return KernelPrices(placed.op_of[rows], np.stack(np.broadcast_arrays(*seconds)), home)


def _softmax(table: OpTable, row: int, unit: UnitView, rate: Any, units: int) -> Array:
    """Return the seconds of one softmax, (1 or points,): it has the blocks of its scores."""
    sources = table.edges[table.edges[:, 1] == row, 0]
    blocks = table["groups"][sources].sum(axis=0) if sources.size else table["groups"][row]
    streamed = table["out_bytes"][sources].sum(axis=0) + table["in_bytes"][row]
    streamed = streamed + table["weight"][row] + table["out_bytes"][row]
    arithmetic = table["flops"][row] / unit.vector_rate("softmax")
    seconds: Array = np.maximum(arithmetic, streamed / rate) / fill(blocks, units)
    return np.atleast_1d(seconds)


def _product(table: OpTable, row: int, unit: UnitView, local: Any, rate: Any, units: int) -> Array:
    """Return the seconds of one product, (1 or points,)."""
    m, n, k, groups, flops = (table[c][row] for c in ("m", "n", "k", "groups", "flops"))
    size = lookup(table.dtypes[row]).bytes_per_element
    weights = table["weight"][row] + table["expert"][row]
    if weights.any():
        second = weights
        filled = tile_fill(m, n, k, groups, size, local, units)
    else:
        cached = table["kv_read"][row]
        second = np.where(cached > 0, cached, groups * n * k * size)
        filled = fill(groups, units)
    full = 2.0 * m * n * k * groups
    # Context reads the scores that the mask left.
    kept = flops / np.where(full > 0, full, 1.0) if table.kinds[row] == "context" else 1.0
    streamed = groups * m * k * size * kept + second + table["out_bytes"][row]
    arithmetic = flops / (unit.peak(table.dtypes[row]) * unit.get("efficiency", 1.0))
    seconds: Array = np.maximum(arithmetic, streamed / rate) / filled
    return np.atleast_1d(seconds)


def fill(blocks: Any, units: int) -> Any:
    """Return the share of the sub-units that whole waves of so many blocks keep busy."""
    at_least_one = np.maximum(blocks, 1.0)
    return at_least_one / (np.ceil(at_least_one / units) * units)


def tile_fill(m: Any, n: Any, k: Any, groups: Any, size: float, local: Any, units: int) -> Any:
    """Return the share of the sub-units that the tiles of a product keep busy.

    Args:
        m: Rows of the result; all sizes may be arrays over points.
        n: Columns of the result.
        k: Depth.
        groups: Equal products.
        size: Bytes of an element.
        local: Bytes of a sub-unit's memory.
        units: Sub-units.
    """
    sizes = np.broadcast_arrays(*(np.atleast_1d(x).astype(float) for x in (m, n, k, groups)))
    share = np.empty(sizes[0].shape)
    for start in range(0, len(share), _POINTS):
        some = slice(start, start + _POINTS)
        m_, n_, k_, groups_ = (x[None, some] for x in sizes)
        share[some] = _best_fill(m_, n_, k_, groups_, size, local, units)
    return share if any(np.ndim(x) for x in (m, n, k, groups)) else float(share[0])


def _best_fill(
    m: Array, n: Array, k: Array, groups: Array, size: float, local: Any, units: int
) -> Array:
    """Return what `tile_fill` does; sizes are (1, points)."""
    edges = np.array(EDGES, float)[:, None]
    rows = np.minimum(np.repeat(edges, len(EDGES), axis=0), m)
    columns = np.minimum(np.tile(edges, (len(EDGES), 1)), n)
    down, across = np.ceil(m / rows), np.ceil(n / columns)
    filled = fill(down * across * groups, units)
    held = ((rows + columns) * DEPTH + rows * columns) * size
    cost = np.where(held <= local, (across * m * k + down * n * k + m * n) / filled**2, np.inf)
    best = cost.argmin(axis=0)
    points = np.arange(cost.shape[1])
    none = np.isinf(cost[best, points])
    share: Array = np.where(none, fill(groups[0], units), filled[best, points])
    return share
