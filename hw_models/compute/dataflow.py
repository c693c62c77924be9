"""Spatial dataflow: operators of a fused kernel share the fabric and stream into each other.

Stages get processing units in proportion to their operations, so a fused kernel takes the sum of
its operations over the rate of the units in use (SN40L, MICRO 2024, section III). Collectives and
weight streams of one kernel overlap, since the SRAM holds what arrives early.
"""

from __future__ import annotations

from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, Rows, UnitView, arithmetic_seconds


@UNITS.register("dataflow")
class Dataflow:
    """A reconfigurable dataflow unit."""

    pipelines = True

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over peak times utilisation, see `UnitModel`."""
        return arithmetic_seconds(table, rows, unit, table["flops"][rows], ideal=ideal)
