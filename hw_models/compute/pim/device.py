"""What the models of compute in memory read of a machine, as floats or columns over points."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.compute.base import UnitView, arithmetic
from opbyte.hw_models.pim import Pim

#: Ports at which units stand inside a memory, from the cell outwards.
LEVELS = ("bank", "bank_group", "buffer")
#: Timing that models read as the machine gives it.
_PLAIN = ("rp", "rtp", "ras", "rc", "load", "read", "bias", "softmax", "mode", "refi", "rfc")


@dataclass(frozen=True)
class PimDevice:
    """One unit of kind `pim` for elements of one dtype.

    Numbers are floats or arrays over points, times are in clocks.

    Attributes:
        home: Short path of the unit's port.
        level: Where the units are, one of `LEVELS`.
        size: Bytes of an element.
        instances: Stacks or chips that work side by side.
        units: Units of a channel.
        depth: Units that share the depth of one output.
        open_rows: Rows that a unit holds open at a time: banks that it works through in turn.
        lanes: Elements of a column, which one MAC command multiplies in one unit.
        fullest: Work of the fullest channel over the mean, in attention.
        step: Clocks from MAC to MAC.
        rcd: Clocks from the activation of the first bank to a MAC in all of them.
        per_bank: Column accesses of a row.
    """

    name: str
    home: str
    level: str
    size: float
    clock: Any
    instances: Any
    channels: Any
    pseudo_channels: Any
    ranks: Any
    bank_groups: Any
    banks: Any
    rows: Any
    per_bank: Any
    column: Any
    units: Any
    depth: Any
    open_rows: Any
    lanes: Any
    step: Any
    results: Any
    buffer: Any
    fullest: Any
    rcd: Any
    rp: Any
    rtp: Any
    ras: Any
    rc: Any
    load: Any
    read: Any
    refill: Any
    bias: Any
    softmax: Any
    mode: Any
    refi: Any
    rfc: Any
    overlap: bool
    late: bool
    interleave: bool
    pack: bool
    reuse: bool
    refresh: str
    transposed: bool
    by_tile: bool
    artifact: bool

    @classmethod
    def of(cls, unit: UnitView, dtype: str) -> PimDevice | None:
        """Return the device, None where the unit has no `pim` block.

        Raises:
            ConfigError: If the unit is at no port of `LEVELS`, has no clock, or contradicts itself.
            UncoveredError: If the unit has no arithmetic for the dtype as it is stored, or has
                elements that do not fill a column.
        """
        block = unit.machine.unit(unit.path).config.pim
        if block is None:
            return None
        peak = unit.peak(dtype)
        size = _element(unit, dtype)
        home, level = level_of(unit)
        device = cls(
            name=f"{unit.machine.name}: unit '{unit.path}'",
            home=home,
            level=level,
            size=size,
            clock=_clock(unit),
            instances=float(unit.machine.unit(unit.path).config.instances),
            overlap=block.moves == "overlap",
            late=block.precharge == "late",
            interleave=block.interleave,
            pack=block.pack,
            reuse=block.reuse == "row",
            refresh=block.refresh,
            transposed=block.context == "rows",
            by_tile=block.finish == "tile",
            artifact=block.artifact == "attacc",
            fullest=unit.get("pim.fullest"),
            **_organisation(unit, level, size),
            **_timing(unit, block, level, size),
        )
        _check_refresh(unit, device)
        # No faster than its arithmetic, and than the port that feeds it, are said to be.
        limits = [device.peak_ops() / peak]
        rate = unit.machine.values.get(f"{home}.bandwidth")
        if rate is not None:
            limits.append(device.peak_bytes_per_s() / rate)
        slower = [float(x) if np.ndim(x) == 0 else np.asarray(x) for x in limits]
        if any(np.any(x > 1.0 + 1e-6) for x in slower):
            step = device.step * np.maximum.reduce(np.broadcast_arrays(1.0, *slower))
            device = replace(device, step=float(step) if np.ndim(step) == 0 else step)
        return device

    @property
    def outputs(self) -> Any:
        """Return the outputs that a channel computes at a time."""
        return self.units / self.depth

    @property
    def row_bytes(self) -> Any:
        """Return the bytes of a row of one bank."""
        return self.per_bank * self.column

    @property
    def refresh_clocks(self) -> Any:
        """Return what one refresh delays MACs.

        Where all banks work at once it waits for the next row switch, whose precharge and
        activation it needs too (JEDEC lets refreshes wait). Units that go from bank to bank never
        pause: they lose their rows, precharge, refresh, and open them again.
        """
        # AttAcc's simulator precharges at once and refreshes a clock later, without tRTP and tRP.
        missing = self.rp - 1.0 if self.artifact else 0.0
        if self.level == "bank":
            return self.rfc - missing
        read = 0.0 if self.artifact else self.rtp
        return read + self.rp + self.rfc + self.rcd - missing

    @property
    def all_banks(self) -> Any:
        """Return the banks of a channel."""
        return self.pseudo_channels * self.ranks * self.bank_groups * self.banks

    @property
    def capacity(self) -> Any:
        """Return the bytes of all instances."""
        return self.instances * self.channels * self.all_banks * self.rows * self.row_bytes

    def peak_bytes_per_s(self) -> Any:
        """Return the rate at which units read their banks while a row is open, bytes/s."""
        per_clock = self.channels * self.units * self.column / self.step
        return self.instances * per_clock * self.clock

    def peak_ops(self) -> Any:
        """Return the operations of MAC commands while a row is open, operations/s."""
        per_clock = self.channels * self.units * self.lanes / self.step
        return 2.0 * self.instances * per_clock * self.clock

    def at(self, point: int) -> PimDevice:
        """Return the device of one design point, all numbers floats."""
        one: dict[str, Any] = {
            f.name: float(value[point if len(value) > 1 else 0])
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return replace(self, **one)


def _element(unit: UnitView, dtype: str) -> float:
    """Return the bytes of an element, which the unit multiplies as it is stored."""
    size = lookup(dtype).bytes_per_element
    used = next(x for x in arithmetic(dtype) if unit.get(f"peak.{x}") is not None)
    if lookup(used).bytes_per_element != size:
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' multiplies {used} as banks hold it, and "
            f"unpacks no {dtype}. choose another `precision` for the work"
        )
    return size


def _check_refresh(unit: UnitView, device: PimDevice) -> None:
    """Raise ConfigError where refresh, with its row opened again, leaves no time for work."""
    lost = device.rtp + device.rp + device.rfc + device.rcd
    if device.refresh != "none" and np.any(np.asarray(lost >= device.refi)):
        raise ConfigError.one(
            unit.machine.document.name,
            f"{unit.path}.pim.timing.refi",
            f"must be longer than a refresh, which takes up to {float(np.max(lost)):g} clocks with "
            "its row (rtp + rp + rfc + rcd)",
            float(np.min(device.refi)),
            "raise it, or lower `rfc`",
        )


def level_of(unit: UnitView) -> tuple[str, str]:
    """Return the port and level of a unit with a `pim` block.

    Raises:
        ConfigError: If it is at no port of `LEVELS`, or at several.
    """
    block = unit.machine.unit(unit.path).config.pim
    assert block is not None, "asked only of a unit with a block"
    ports = unit.machine.unit_ports(unit.path)
    names = {port: block.level or port.rpartition(".")[2] for port in ports}
    known = [port for port, level in names.items() if level in LEVELS]
    if len(known) != 1:
        raise ConfigError.one(
            unit.machine.document.name,
            f"{unit.path}.at",
            f"a unit with a `pim` block is at one port, called {', '.join(LEVELS)}",
            ", ".join(ports),
            "name the port so, or give `pim.level`",
        )
    return known[0], names[known[0]]


def _clock(unit: UnitView) -> Any:
    clock = unit.get("clock")
    if clock is None or np.any(np.asarray(clock) <= 0):
        raise ConfigError.one(
            unit.machine.document.name,
            f"{unit.path}.clock",
            "a unit with a `pim` block needs the clock of its commands",
            "none" if clock is None else 0,
            "give `clock`",
        )
    return clock


def _organisation(unit: UnitView, level: str, size: float) -> dict[str, Any]:
    def get(name: str) -> Any:
        return unit.get(f"pim.organisation.{name}")

    column, groups, banks = get("column"), get("bank_groups"), get("banks")
    elements = column / size
    if np.any(elements < 1):
        raise UncoveredError(
            f"{unit.machine.name}: an element of {size:g} bytes is wider than a column of unit "
            f"'{unit.path}'. choose another `precision`"
        )
    sides = get("pseudo_channels") * get("ranks")
    units, behind = {
        "bank": (sides * groups * banks / get("banks_per_unit"), 1.0),
        "bank_group": (sides * groups, banks),
        "buffer": (get("pseudo_channels"), get("ranks") * groups * banks),
    }[level]
    depth = get("depth")
    # Where one number of a machine is varied by a few percent nothing divides any more.
    whole = (np.asarray(units) % 1.0 == 0) & (np.asarray(depth) % 1.0 == 0)
    if np.any(whole & (np.asarray(units) % depth != 0)):
        raise ConfigError.one(
            unit.machine.document.name,
            f"{unit.path}.pim.organisation.depth",
            f"must divide the {float(np.max(units)):g} units of a channel",
            float(np.max(depth)),
            "choose a divisor",
        )
    plain = ("channels", "pseudo_channels", "ranks", "bank_groups", "banks", "rows")
    return {
        **{name: get(name) for name in (*plain, "column", "depth", "results", "buffer")},
        "per_bank": get("columns"),
        "units": units,
        "open_rows": behind,
        "lanes": elements,
    }


def _timing(unit: UnitView, block: Pim, level: str, size: float) -> dict[str, Any]:
    def get(name: str) -> Any:
        return unit.get(f"pim.timing.{name}")

    step = get("mac")
    if block.power_limited:
        if get("mac_limited") is None:
            raise ConfigError.one(
                unit.machine.document.name,
                f"{unit.path}.pim.power_limited",
                "needs `timing.mac_limited`",
                "true",
                "give it, or leave `power_limited` out",
            )
        step = np.maximum(step, get("mac_limited"))
    lanes = unit.get("pim.organisation.lanes")
    if lanes is not None:
        step = step * np.ceil(unit.get("pim.organisation.column") / size / lanes)
    rcd, at_once = get("rcd"), get("activates")
    if at_once is not None and level == "bank":
        banks = unit.get("pim.organisation.bank_groups") * unit.get("pim.organisation.banks")
        rcd = rcd + (np.ceil(banks / at_once) - 1.0) * get("faw")
    refill = get("refill")
    return {
        "step": step,
        "rcd": rcd,
        "refill": get("load") if refill is None else refill,
        **{name: get(name) for name in _PLAIN},
    }
