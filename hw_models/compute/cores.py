"""Unit kind `cores`: a processor's cores that stream from memory, behind a last-level cache.

Arithmetic runs at the peak; what operators wait for is the `misses` block's
(`opbyte.hw_models.misses`): lines under way, and the cache in front of all tiers.
"""

from __future__ import annotations

from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, Rows, UnitView, arithmetic_seconds


@UNITS.register("cores")
class Cores:
    """Cores (`instances`) with one rate for all of them."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over rate, see `UnitModel`."""
        return arithmetic_seconds(table, rows, unit, table["flops"][rows], ideal=ideal)
