"""Rates of the kernels of a computational drive: what a clock does, times the clock."""

from __future__ import annotations

from typing import Any

from opbyte.core.dtypes import bytes_of, lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import OpTable
from opbyte.hw_models.compute.base import UnitView

#: Bytes of an element of scores and of what is multiplied.
ELEMENT = 2.0


def gemv_rate(unit: UnitView, dtype: str) -> Any:
    """Return the operations per second of all GEMVs, a multiplication and an addition being two.

    Raises:
        UncoveredError: If the numbers have more than 16 bits, or the unit no `csd` block.
    """
    if lookup(dtype).bits > 8 * ELEMENT:
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' multiplies numbers of 16 bits, got {dtype}. "
            "choose another `precision` for the work"
        )
    return 2.0 * rate(unit, "kernels", "width")


def rate(unit: UnitView, *names: str) -> Any:
    """Return the product of some fields of the block and the clock."""
    config = unit.machine.unit(unit.path).config
    if config.csd is None or config.clock is None:
        missing = "`csd` block" if config.csd is None else "clock"
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' has no {missing}, and its rates follow from "
            "it. give one"
        )
    found = unit.get("clock")
    for name in names:
        found = found * unit.get(f"csd.{name}")
    return found


def softmax_seconds(table: OpTable, row: int, unit: UnitView) -> Any:
    """Return what the softmax of a row takes."""
    scores = table["out_bytes"][row] / bytes_of(table.dtypes[row], 1.0)
    return scores / rate(unit, "kernels", "exponentials")
