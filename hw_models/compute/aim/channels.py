"""The channels that one pipeline stage has of a machine, and their elementary commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.aim.commands import Commands
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.device import PimDevice

#: Kind of unit whose memory follows AiM commands.
KIND = "aim"


@dataclass(frozen=True)
class Channels:
    """Channels of one stage, of floats or arrays over points.

    Attributes:
        unit: Their MAC units, which carry the `pim`, `bank` and `command_energy` blocks.
        device: One channel's organisation and command timing.
        span: Channels of the stage in one device.
        parts: Devices over which the stage splits matrices by their outputs.
        guests: Stages that share a device.
        artifact: The conventions of CENT's simulator, its defects included.
        stages: Stages in all.
    """

    unit: UnitView
    device: PimDevice
    span: float
    parts: int
    guests: int
    artifact: bool
    stages: int

    @classmethod
    def of(cls, placed: PlacedOps, unit: UnitView, dtype: str) -> Channels:
        """Return the channels of a stage.

        Args:
            unit: A unit of kind `aim`.
        Raises:
            ConfigError: If the unit lacks a block.
            UncoveredError: If it has no arithmetic for the dtype.
        """
        device = PimDevice.of(unit, dtype)
        config = unit.machine.unit(unit.path).config
        for block in ("pim", "bank", "command_energy"):
            if getattr(config, block) is None:
                raise ConfigError.one(
                    unit.machine.document.name, f"{unit.path}.{block}",
                    f"a unit of kind {KIND} needs this block", "none", "give it",
                )  # fmt: skip
        assert device is not None, "it has a `pim` block"
        artifact = placed.artifact == "cent"
        if artifact:
            device = replace(device, refresh="none")
        sets = placed.together
        return cls(unit, device, float(sets.span), sets.gathered, sets.guests, artifact, sets.sets)

    # -- organisation ----------------------------------------------------------------------

    @property
    def banks(self) -> Any:
        """Return the banks of the stage in one device."""
        return self.span * self.device.all_banks

    @property
    def elements(self) -> Any:
        """Return the elements of a column."""
        return self.device.lanes

    @property
    def row(self) -> Any:
        """Return the elements of a row."""
        return self.device.per_bank * self.device.lanes

    @property
    def whole(self) -> float:
        """Return by how much energy is counted too high: the simulator fills the last device."""
        if not self.artifact:
            return 1.0
        devices = -(-self.stages // self.guests)
        return devices * self.guests / self.stages

    def get(self, name: str) -> Any:
        """Return a value of the `bank` block."""
        return self.unit.get(f"bank.{name}")

    @property
    def recovery(self) -> Any:
        """Return the clocks from a write to precharge."""
        return self.get("cwl") + self.get("burst") + self.get("wr")

    def used(self, banks: Any) -> Any:
        """Return the channels of one device that work when so many banks of the stage have work.

        CENT's simulator lets every device work like the first, and repeats what takes few channels
        in those of the other stages.
        """
        per_channel = self.device.all_banks
        needed = np.ceil(banks / per_channel)
        if not self.artifact:
            return np.minimum(needed / self.parts, self.span)
        there = self.span * self.guests
        whole = np.maximum(there // np.maximum(needed, 1.0), 1.0) * needed
        return np.minimum(np.where(needed > there, there, whole) / self.guests, self.span)

    # -- commands to all banks of some channels --------------------------------------------

    def switch(self, times: Any, channels: Any) -> Commands:
        """Return switches between access to registers and access to banks."""
        return Commands(times * self.device.mode, counts={"TMOD": times * channels})

    def multiply(self, columns: Any, channels: Any) -> Commands:
        """Return the product of columns of two banks of each bank group into a third."""
        d = self.device
        # Before it a row of writes or products was open.
        opened = self.recovery + d.rp + self.get("rcd_multiply")
        counts = {"PREA": 1.0, "ACT16": 1.0, "EWMUL16": columns}
        return self._counted(opened + columns * self.get("column"), d.rp, counts, channels)

    def copies(self, columns: Any, channels: Any, *, elsewhere: bool) -> Commands:
        """Return copies of columns, in each bank group, from a bank over the buffer to the next.

        Args:
            elsewhere: Into another row, which has to be opened.
        """
        d = self.device
        each = 2.0 * columns * self.get("column")
        counts = {"RDCP": columns, "WRCP": columns}
        if elsewhere:
            each = each + d.rp + self.get("rcd_copy")
            counts |= {"PRE": 1.0, "ACT": 1.0}
        return self._counted(each, 0.0, counts, channels).times(d.bank_groups)

    def functions(self, results: Any, groups: Any, channels: Any) -> Commands:
        """Return the activation function of results, and its values read: one by one.

        Args:
            groups: Times that the row of the look-up table is opened for them.
        """
        d = self.device
        # A look-up of one clock in the banks, its value read from a register, and back.
        one = 2.0 * d.mode + 1.0 + d.read
        clocks = results * one + groups * (d.rtp + d.rp + self.get("rcd_function"))
        counts = {
            "PREA": groups, "ACT16": groups, "AF16": results, "RDAF16": results,
            "TMOD": 2.0 * results,
        }  # fmt: skip
        return self._counted(clocks, groups * d.rp, counts, channels)

    def _counted(self, clocks: Any, shut: Any, counts: dict[str, Any], channels: Any) -> Commands:
        every = {name: count * channels for name, count in counts.items()}
        return Commands(clocks, shut, every, 1.0)

    # -- time ------------------------------------------------------------------------------

    def seconds(self, clocks: Any) -> Any:
        """Return the seconds of clocks in the channels, with the refreshes that fall due."""
        d = self.device
        if d.refresh != "none":
            clocks = clocks * d.refi / (d.refi - d.refresh_clocks)
        return clocks / d.clock
