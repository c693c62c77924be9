"""Rates of the ports inside a stacked DRAM, from its command timing.

Compute may sit where banks can be read side by side: B banks of each of C pseudo-channels give one
access of a bytes every s clocks of rate f,

    bandwidth = C a f B / s

A row of n accesses is followed by a switch to the next one, w clocks from the last access of one
row to the first of the next (tRTP + tRP + tRCD). Where the other banks wait meanwhile (all of them
switch together) the switch stands in the way; where they go on it is hidden. All-bank refresh takes
tRFC of every tREFI:

    efficiency = n s / ((n - 1) s + w) * (1 - tRFC / tREFI)

JEDEC's timing parameters as in the HBM3 preset of the AttAcc simulator (ASPLOS 2024). What limits
power, such as tFAW, is part of the step where it matters: that preset gives a longer one.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opbyte.core.parameters import Bytes, Hertz, Parameter


class _Block(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


class Stack(_Block):
    """Command timing of a memory's pseudo-channels; times are in clocks."""

    clock: Hertz
    channels: int = Field(ge=1)
    """Pseudo-channels that work side by side."""
    access: Bytes
    """Bytes of one access to a bank."""
    columns: int = Field(ge=1)
    """Accesses that a row holds."""
    row_switch: int = Field(ge=1)
    """From the last access of a row to the first of the next one: tRTP + tRP + tRCD."""
    refresh: int = Field(ge=0)
    """tRFC."""
    interval: int = Field(ge=1)
    """tREFI."""
    source: str | None = None

    @model_validator(mode="after")
    def _refreshes(self) -> Stack:
        if self.refresh >= self.interval:
            raise ValueError(
                f"refresh takes {self.refresh} of every {self.interval} clocks. lower `refresh`"
            )
        return self


class Stream(_Block):
    """How a port reads the banks of a pseudo-channel."""

    banks: int = Field(ge=1)
    """Banks that give an access each step."""
    step: int = Field(ge=1)
    """Clocks from access to access: tCCD_S between bank groups, tCCD_L inside them."""
    rows: Literal["hidden", "exposed"]
    """Whether other banks go on while one switches rows."""
    source: str | None = None
    """Of the efficiency, if it is not that of the timing."""

    def rate(self, stack: Stack) -> Parameter:
        """Return the port's bandwidth."""
        each = stack.access.value * stack.clock.value * self.banks / self.step
        text = f"{self.banks} banks every {self.step} clocks"
        return Parameter(stack.channels * each, "bytes_per_s", f"{_given(stack.source)}; {text}")

    def efficiency(self, stack: Stack) -> Parameter:
        """Return the share of the bandwidth that a long stream gets."""
        useful = stack.columns * self.step
        row = useful if self.rows == "hidden" else useful - self.step + stack.row_switch
        share = useful / max(row, useful) * (1.0 - stack.refresh / stack.interval)
        text = f"{_given(self.source or stack.source)}; refresh, {self.rows} row switches"
        return Parameter(share, "ratio", text)


def _given(source: str | None) -> str:
    return source or "assumed: nobody says so"
