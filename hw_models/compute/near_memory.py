"""Compute at a port inside a memory: on the DRAM's banks, its bank groups, or its logic die.

A unit streams its matrix once through the port that it sits at and multiplies it by all rows of
the input, which its buffer holds: seconds are the longer of operations / peak and bytes / rate.
What the port loses to row switches and refresh is part of its rate (`opbyte.hw_models.stack`).
The peak is a multiple of the rate, the operations that multipliers do for each byte that arrives:
1 for bank-PIM and 8 for Logic-PIM in Duplex (MICRO 2024).

Several of a device's stacks divide a matrix evenly. Partial sums that stacks send each other, and
loads of the input, are small against the matrix and not counted.
"""

from __future__ import annotations

from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, Rows, UnitView, arithmetic_seconds


@UNITS.register("bank_pim")
@UNITS.register("bank_group_pim")
@UNITS.register("logic_pim")
class NearMemory:
    """Multipliers and a vector unit at a port of a DRAM."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over peak, see `UnitModel`."""
        return arithmetic_seconds(table, rows, unit, table["flops"][rows], ideal=ideal)
