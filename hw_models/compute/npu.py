"""Neural processing units: a matrix unit fed by DMA in tiles of columns, beside vector processors.

A product with a weight matrix is cut into tiles of some `columns`, as many as the matrix unit is
wide. While one tile is multiplied the next is loaded, and the first one may be loaded while a
vector operator runs before (Algorithm 1 of IANUS, Seo et al., ASPLOS 2024):

    t = t(tile) + t(load) + tiles * max(t(load), t(tile)) - t(prefetch)

All cores work on columns of their own at the same time and share the memory. A row that a norm or a
softmax reduces runs on one vector processor. docs/machines/npu-pim.md says where this was compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import (
    UNITS,
    KernelPrices,
    Rows,
    UnitView,
    is_matrix,
)
from opbyte.hw_models.compute.matrix import TiledMatrix

#: Kinds of rows that reduce over a vector.
REDUCED = frozenset({"norm", "softmax"})


@UNITS.register("npu")
class Npu:
    """A matrix unit with a `tile` of (tokens, columns, depth) in each of `instances` cores."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return padded operations over the peak, rows over processors, see `UnitModel`."""
        seconds = TiledMatrix().compute_seconds(table, rows, unit, ideal=ideal)
        processors = unit.machine.unit(unit.path).config.vector_units
        if ideal or processors is None:
            return seconds
        reduced = np.array([table.kinds[r] in REDUCED for r in rows]) & ~is_matrix(table, rows)
        count = np.maximum(table["groups"][rows], 1.0)
        idle: Array = np.ceil(count / processors) * processors / count
        return np.where(reduced[:, None], seconds * idle, seconds)

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the seconds of products whose weights come from the unit's port, tile by tile."""
        config = unit.machine.unit(unit.path).config
        if config.columns is None:
            return None
        home, table = unit.home_port(), placed.table
        rows = placed.single(ops)
        weights = table["weight"][rows] + table["expert"][rows]
        mine = is_matrix(table, rows) & (weights > 0).any(axis=1)
        if home is None or home not in placed.resources or not mine.any():
            return None
        rows, weights = rows[mine], weights[mine]
        at = placed.resources.index(home)
        rate = unit.machine.values[f"{home}.bandwidth"] * unit.machine.values.get(
            f"{home}.efficiency", 1.0
        )
        groups = np.maximum(table["groups"][rows], 1.0)
        tiles = np.ceil(table["n"][rows] / (config.columns * config.instances))
        load = weights / (rate * placed.instances[at]) / (groups * tiles)
        tile = self.compute_seconds(table, rows, unit, ideal=False) / (groups * tiles)
        chosen = placed.op_of[rows]
        ahead = np.minimum(load, self._before(placed, chosen, unit))
        seconds = groups * (tile + load + tiles * np.maximum(load, tile)) - ahead
        return KernelPrices(chosen, seconds, home)

    def _before(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> Array:
        """Return the seconds of the vector operators that each operator follows, (ops, points)."""
        own = placed.units.index(unit.path)
        table = placed.table
        starts = unit.get(f"launch.{placed.launch}", 0.0)
        found: list[Any] = []
        for op in ops:
            before: Any = np.zeros(1)
            for source in placed.edges[placed.edges[:, 1] == op, 0]:
                rows = np.flatnonzero(placed.op_of == source)
                if placed.unit_of[source] == own and not is_matrix(table, rows).any():
                    one = self.compute_seconds(table, rows, unit, ideal=False).sum(axis=0)
                    before = np.maximum(before, one + starts)
            found.append(before)
        return np.stack(np.broadcast_arrays(*found))
