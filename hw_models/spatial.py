"""The `spatial` block of a unit: what PEs and lanes can do, in cycles and joules."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Joules, Parameter, Quantity

Cycles = Annotated[Parameter, Quantity("count", least=1.0)]


class Operations(Block):
    """Cycles of each operation on one PE or lane; what is left out can not be done."""

    mac: Cycles
    add: Cycles | None = None
    max: Cycles | None = None
    exp: Cycles | None = None
    div: Cycles | None = None
    source: str | None = None


class OperationEnergy(Block):
    """Energy of each operation on one PE or lane, registers aside."""

    mac: Joules | None = None
    add: Joules | None = None
    max: Joules | None = None
    exp: Joules | None = None
    div: Joules | None = None
    source: str | None = None


class Spatial(Block):
    """PEs of a two-dimensional array, and the lanes beside it, which have the rate `vector`."""

    array: Operations
    """Of a PE."""
    lanes: Operations
    """Of a lane."""
    pipelined: bool = False
    """Operations of one Einsum do not wait for each other: a value takes its slowest one."""
    array_energy: OperationEnergy | None = None
    lanes_energy: OperationEnergy | None = None
    registers: Joules | None = None
    """Register file accesses of one operation."""
    source: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Spatial:
        lacking = [o for o in ("add", "max", "exp", "div") if getattr(self.lanes, o) is None]
        if lacking:
            raise ValueError(
                f"lanes must do all operations, got none of {', '.join(lacking)}. give its cycles"
            )
        return self
