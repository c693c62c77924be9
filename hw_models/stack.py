"""Rates of the ports inside a stacked DRAM, from its command timing.

Compute may sit where banks can be read side by side: B banks of each of C pseudo-channels give one
access of a bytes every s clocks of rate f,

    bandwidth = C a f B / s

A row of n accesses is followed by a switch to the next one, w clocks from the last access of one
row to the first of the next (tRTP + tRP + tRCD). Where the other banks wait meanwhile (all of them
switch together) the switch stands in the way; where they go on it is hidden. All-bank refresh takes
tRFC of every tREFI:

    efficiency = n s / ((n - 1) s + w) * (1 - tRFC / tREFI)

All of them are the timing of the memory's technology, unless the `stack` gives others. One command
opens the rows of all banks that a port reads (`activate: together`), or they open one by one, four
within tFAW (`limited`), which makes w longer. Where power limits reads too, the step is longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Bytes, Hertz, Parameter

if TYPE_CHECKING:
    from opbyte.hw_models.memory.standards import Standard


class Stack(Block):
    """Command timing of a memory's pseudo-channels; times are in clocks.

    What is not given is the technology's.
    """

    clock: Hertz | None = None
    channels: int | None = Field(None, ge=1)
    """Pseudo-channels that work side by side."""
    access: Bytes | None = None
    """Bytes of one access to a bank."""
    columns: int | None = Field(None, ge=1)
    """Accesses that a row holds."""
    row_switch: int | None = Field(None, ge=1)
    """From the last access of a row to the first of the next one: tRTP + tRP + tRCD."""
    refresh: int | None = Field(None, ge=0)
    """tRFC."""
    interval: int | None = Field(None, ge=1)
    """tREFI."""
    source: str | None = None

    @model_validator(mode="after")
    def _refreshes(self) -> Stack:
        if self.refresh is not None and self.interval is not None:
            _refreshes_in_time(self.refresh, self.interval)
        return self

    def speed(self, standard: Standard) -> float:
        """Return the command clock over the technology's."""
        own = 1.0 / (standard.tick_s * standard.ticks_per_clock)
        return 1.0 if self.clock is None else self.clock.value / own

    def completed(self, standard: Standard | None, channels: int | None) -> Clocks:
        """Return all clocks: those given, and the technology's for the others.

        Args:
            standard: The technology's timing, None where none is known.
            channels: Channels of the technology.
        Raises:
            ValueError: If one is missing, or refresh takes all of the time.
        """
        own = {} if standard is None else _of_technology(standard, channels)
        names = [f for f in Stack.model_fields if f != "source"]
        given = {n: v for n in names if (v := getattr(self, n)) is not None}
        numbers = {n: float(getattr(v, "value", v)) for n, v in given.items()}
        missing = [n for n in names if n not in numbers and n not in own]
        if missing:
            raise ValueError(
                f"a `stack` needs {', '.join(missing)}. give them, or `technology` and `channels`"
            )
        source = self.source or (standard.source if standard is not None else None)
        clocks = Clocks(
            **{**own, **numbers}, source=source, ticks=standard.clocks if standard else {}
        )
        _refreshes_in_time(clocks.refresh, clocks.interval)
        return clocks


def _refreshes_in_time(refresh: float, interval: float) -> None:
    if refresh >= interval:
        raise ValueError(f"refresh takes {refresh:g} of every {interval:g} clocks. lower `refresh`")


def _of_technology(standard: Standard, channels: int | None) -> dict[str, float]:
    """Return a technology's clocks, JEDEC's names in parentheses at `Stack`."""
    t = standard.clocks
    row_switch = [t.get("nRTP", t.get("nRTPL")), t.get("nRP"), t.get("nRCDRD", t.get("nRCD"))]
    found: dict[str, float | None] = {
        "clock": 1.0 / (standard.tick_s * standard.ticks_per_clock),
        "channels": None if channels is None else channels * standard.halves,
        "access": standard.burst_bytes,
        "columns": standard.columns,
        "row_switch": None if None in row_switch else sum(x or 0 for x in row_switch),
        "refresh": t.get("nRFC"),
        "interval": t.get("nREFI"),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Clocks:
    """A stack's command timing, complete: see `Stack`.

    Attributes:
        ticks: The technology's timings in clocks, by JEDEC name.
    """

    clock: float
    channels: float
    access: float
    columns: float
    row_switch: float
    refresh: float
    interval: float
    source: str | None
    ticks: Mapping[str, int]


class Stream(Block):
    """How a port reads the banks of a pseudo-channel."""

    banks: int = Field(ge=1)
    """Banks that give an access each step."""
    step: Annotated[int, Field(ge=1)] | Literal["nCCDS", "nCCDL"]
    """Clocks from access to access, or the technology's: nCCDS between bank groups, nCCDL inside
    them."""
    rows: Literal["hidden", "exposed"]
    """Whether other banks go on while one switches rows."""
    activate: Literal["together", "limited"] = "together"
    """One command opens the rows of all banks, or tRRD and tFAW of the technology limit them."""
    source: str | None = None
    """Of the efficiency, if it is not that of the timing."""

    def rate(self, stack: Clocks) -> Parameter:
        """Return the port's bandwidth."""
        step = self._step(stack)
        each = stack.access * stack.clock * self.banks / step
        text = f"{self.banks} banks every {step} clocks"
        return Parameter(stack.channels * each, "bytes_per_s", f"{_given(stack.source)}; {text}")

    def efficiency(self, stack: Clocks) -> Parameter:
        """Return the share of the bandwidth that a long stream gets."""
        step = self._step(stack)
        useful = stack.columns * step
        switch = stack.row_switch + self._activations(stack)
        row = useful if self.rows == "hidden" else useful - step + switch
        share = useful / max(row, useful) * (1.0 - stack.refresh / stack.interval)
        text = f"{_given(self.source or stack.source)}; refresh, {self.rows} row switches"
        return Parameter(share, "ratio", text)

    def _step(self, stack: Clocks) -> int:
        return self.step if isinstance(self.step, int) else _tick(stack, self.step)

    def _activations(self, stack: Clocks) -> int:
        """Return the clocks from the first to the last activation of the port's banks.

        Four within tFAW, each tRRD_S after the one before.
        """
        if self.activate == "together":
            return 0
        rounds, rest = divmod(self.banks - 1, 4)
        return rounds * _tick(stack, "nFAW") + rest * _tick(stack, "nRRDS")


def _tick(stack: Clocks, name: str) -> int:
    if name not in stack.ticks:
        raise ValueError(f"a `stream` asks for {name} of the technology, whose timing is not known")
    return stack.ticks[name]


def _given(source: str | None) -> str:
    return source or "assumed: nobody says so"
