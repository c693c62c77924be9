"""The `serial` block of a unit: an array of dot-product units that take weights bit by bit."""

from __future__ import annotations

from typing import Annotated

from pydantic import PositiveInt

from opbyte.core.blocks import Block
from opbyte.core.parameters import Joules, Parameter, Quantity


class Serial(Block):
    """Units that multiply a few weights by a few activations, in one cycle or bit by bit."""

    dot: PositiveInt = 1
    """Weights that a unit multiplies and adds up at a time."""
    bits: Annotated[Parameter, Quantity("count", least=1.0)] | None = None
    """Bits of each weight that a cycle takes; without it a weight takes one cycle."""
    shapes: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    """Other shapes of the same array, (outputs, tokens); each product runs in the best one."""
    weights: str
    """Memory of the same part that holds weights."""
    inputs: str
    """Memory of the same part that holds inputs."""
    energy: Joules | None = None
    """Of one unit in one cycle."""
    source: str | None = None
