"""Matrix engines that run one operator at a time: products padded to whole tiles."""

from __future__ import annotations

import numpy as np

from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, Rows, UnitView, arithmetic_seconds


@UNITS.register("matrix")
class TiledMatrix:
    """A matrix engine beside vector lanes.

    A product of (m, k) by (k, n) executes 2 * ceil(m/tm)*tm * ceil(n/tn)*tn * ceil(k/tk)*tk
    operations with the unit's `tile` (tm, tn, tk), the engine's smallest fragment.
    """

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return padded operations over peak times utilisation, see `UnitModel`."""
        useful = table["flops"][rows]
        tile = unit.machine.unit(unit.path).config.tile
        if ideal or tile is None:
            return arithmetic_seconds(table, rows, unit, useful, ideal=ideal)
        padded = 2.0 * table["groups"][rows]
        for size, step in zip("mnk", tile, strict=True):
            padded = padded * np.ceil(table[size][rows] / step) * step
        # Causal products do less than the full rectangle: keep the share that is useful.
        full = 2.0 * table["groups"][rows] * table["m"][rows] * table["n"][rows] * table["k"][rows]
        share = np.divide(useful, full, out=np.ones_like(full * useful), where=full > 0)
        return arithmetic_seconds(table, rows, unit, padded * np.minimum(share, 1.0), ideal=ideal)


@UNITS.register("vector")
class Vector:
    """Lanes without a matrix engine: everything runs at the vector rate."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over the vector rate, see `UnitModel`."""
        del ideal
        useful = table["flops"][rows]
        if not useful.any():
            return useful
        seconds: Array = useful / unit.vector_rate("any operator")
        return seconds
