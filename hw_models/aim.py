"""Blocks of units that follow GDDR6-AiM's commands: between banks, at the controller, energy."""

from __future__ import annotations

from typing import Annotated

from opbyte.core.blocks import Block
from opbyte.core.parameters import Count, Joules, Parameter, Quantity, Seconds, Watts

#: At least one of something.
_Several = Annotated[Parameter, Quantity("count", least=1.0)]


class BankCommands(Block):
    """Clocks of commands beside MACs: products of two banks, copies, functions, plain access."""

    column: _Several
    """From column to column of products and copies."""
    rcd_multiply: Count
    """From activation to an element-wise product."""
    rcd_function: Count
    """From activation to the look-up of an activation function."""
    rcd_copy: Count
    """From activation to a copy from the global buffer to a bank."""
    rcd_write: Count
    """From activation to a plain write."""
    cl: Count
    """From a read to its first data."""
    cwl: Count
    """From a write to its first data."""
    wr: Count
    """From the end of a write's data to precharge."""
    burst: _Several
    """Data of one access on the bus."""
    source: str | None = None


class CommandEnergy(Block):
    """Energy of commands, and power while a channel's rows are open or shut."""

    activate: Joules
    """Activation and precharge of one bank."""
    read: Joules
    """A column that leaves a bank or the units' registers."""
    write: Joules
    """A column that enters a bank or the units' registers."""
    mac: Joules
    """A MAC command in all banks of a channel."""
    bus: Joules
    """A column on the bus between channel and controller."""
    instruction: Joules
    """A request in the channel's memory controller."""
    command: Joules
    """A command on the channel's physical interface."""
    decode: Joules
    """An instruction of the device's controller."""
    open: Watts
    """A channel with open rows."""
    shut: Watts
    """A channel whose rows are shut."""
    source: str | None = None


class Pnm(Block):
    """Processing near memory: units of a device's controller, in clocks of `clock`."""

    engines: _Several
    """Units of each kind that work in a pipeline."""
    lanes: _Several
    """Elements that a unit takes at a time."""
    cores: _Several
    """Scalar cores beside them."""
    exponent: Count
    """Depth of an exponential unit."""
    root: Count
    """Root and division of a norm, on a core."""
    rotate: Count
    """Rotation of an element, on a core."""
    issue: _Several
    """Clocks for each plain access, of all channels of a device together."""
    queue: _Several
    """Plain accesses of a channel that can wait while others are issued."""
    sample: Seconds
    """The host picks the next token."""
    source: str | None = None
