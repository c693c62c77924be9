"""DRAM as data: organisation, clocks and the constraints between commands, in ticks.

A *family* (DDR4, HBM3, ...) says which levels lie between channel and row, how long commands occupy
their bus, and which command must wait how long after which; a *device* gives sizes and clocks. Both
are files: `families/` here and `catalog/memories/`. A tick is a clock, or half of one where the
family has commands of half a clock.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import load_document, validate
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import Joules, JoulesPerBit, Seconds

__all__ = ["COMMANDS", "Constraint", "Standard", "is_whole", "load_standard", "memory_names"]

CATALOG = Catalog("memory", Path(__file__).parents[1] / "catalog" / "memories")
FAMILIES = Catalog("family of memories", Path(__file__).parent / "families")

#: Commands by number. ACT2 and CAS exist on LPDDR5 only, where ACT is ACT-1.
COMMANDS = ("ACT", "PRE", "RD", "WR", "RDA", "WRA", "PREab", "REFab", "REFpb", "ACT2", "CAS")
_COLUMN = ("RD", "WR", "RDA", "WRA")
#: Clocks that can not be 0, and those that the controller looks at beside the constraints.
_LASTING = {"nBL", "nBL_min", "nREFI", "nREFIpb"}
_OF_CONTROLLER = {"nBL", "nBL_min", "nREFI", "nREFIpb", "nRFCpb", "nAAD", "nCAS", "nWCKPST"}
_LINE = re.compile(
    r"(?P<level>\w+) \| (?P<after>[\w ]+) -> (?P<before>[\w ]+) \| (?P<clocks>[\w +-]+?)"
    r"(?: \| window (?P<window>\d+))?(?P<siblings> \| siblings)?"
)
Buses = Literal["single", "dual", "half-clock", "lpddr5"]


class Family(Block):
    """What all devices of one standard share."""

    kind: Literal["memory-family"]
    name: str
    description: str
    source: str
    levels: tuple[str, ...]
    """Between channel and row, the outermost first; the last is `bank`."""
    ticks_per_clock: Literal[1, 2]
    prefetch: PositiveInt
    """Transfers of a burst."""
    read_latency: str
    """From the read command to the end of its data, clocks."""
    buses: Buses
    """How commands reach the device: one bus; row and column bus; the same with row commands of
    half a clock; one bus with ACT-1, ACT-2 and CAS."""
    refresh_scope: str
    """Level of which one all-bank refresh refreshes all banks."""
    per_bank_refresh: Literal["round-robin", "by-stack-id"] | None = None
    command_clocks: dict[str, float] = Field(default_factory=dict)
    """How long a command occupies its bus, where that is not one clock."""
    constraints: tuple[str, ...]
    """`level | after -> before | clocks`, and `window n` or `siblings` behind it."""


class Energy(Block):
    """What commands cost, joules."""

    source: str
    activate: Joules
    """ACT and its precharge."""
    access_per_bit: JoulesPerBit
    """RD or WR, from the cells to the pins, per bit."""


class Device(Block):
    """One product or speed grade: a single channel."""

    kind: Literal["memory"]
    family: str
    description: str
    source: str
    organisation: dict[str, PositiveInt]
    """`channel_width` in bits; instances of each level; rows and columns of a bank."""
    clock: Seconds
    """Period of the command clock."""
    clocks: dict[str, Annotated[int, Field(ge=0)]]
    """Timings, clocks, by JEDEC name."""
    energy: Energy | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """`before` may follow `after` at the same node of `level` no sooner than `ticks`.

    Attributes:
        level: 0 is the channel, then the levels of the standard.
        after: Command that came, number.
        before: Command that waits, number.
        ticks: Least distance, ticks of the bus between the first edges of both.
        window: How many commands back the distance counts: 4 for tFAW.
        siblings: Whether it holds for the other nodes below the same parent instead.
    """

    level: int
    after: int
    before: int
    ticks: int
    window: int = 1
    siblings: bool = False


@dataclass(frozen=True)
class Standard:
    """One channel of a memory, resolved to ticks."""

    name: str
    family: str
    description: str
    source: str
    levels: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: int
    columns: int
    burst_bytes: int
    tick_s: float
    ticks_per_clock: int
    read_latency: int
    buses: Buses
    refresh_level: int
    per_bank_refresh: str | None
    constraints: tuple[Constraint, ...]
    ticks: dict[str, int] = field(hash=False)
    energy: Energy | None = None

    def __hash__(self) -> int:
        """Hash what tells memories apart; constraints are hundreds and compared only then."""
        return hash((self.name, self.sizes, self.rows, self.columns, self.tick_s))

    @property
    def ranks(self) -> int:
        """Ranks of the channel, 1 where it has none."""
        return dict(zip(self.levels, self.sizes, strict=True)).get("rank", 1)

    @property
    def title(self) -> str:
        """Name, and ranks where there are several."""
        return self.name if self.ranks == 1 else f"{self.name}, {self.ranks} ranks"

    @property
    def banks(self) -> int:
        """Banks of the channel."""
        return functools.reduce(int.__mul__, self.sizes)

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the channel."""
        return self.banks * self.rows * self.columns * self.burst_bytes

    @property
    def halves(self) -> int:
        """Pseudo-channels of the channel, 1 where it has none."""
        return self.sizes[0] if self.levels[0] == "pseudochannel" else 1

    @property
    def clocks(self) -> dict[str, int]:
        """Timings in command clocks, by JEDEC name."""
        return {name: ticks // self.ticks_per_clock for name, ticks in self.ticks.items()}

    @property
    def peak_bytes_per_s(self) -> float:
        """Rate of the data bus, all pseudo-channels together, bytes/s."""
        burst = self.ticks.get("nBL", self.ticks.get("nBL_min", 0))
        return self.halves * self.burst_bytes / (burst * self.tick_s)


def is_whole(value: object) -> bool:
    """Return whether `value` is a whole number, of Python or NumPy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def memory_names() -> list[str]:
    """Return the names of all shipped memories, sorted."""
    return CATALOG.names()


def load_standard(name_or_path: str | os.PathLike[str], **changes: int) -> Standard:
    """Read a memory from the catalog or from a file.

    Args:
        name_or_path: Catalog name, such as `hbm3-6400`, or path.
        changes: Other sizes and clocks than the file's, such as `rank=2` or `nRCD=24`. What is not
            named stays: a larger device keeps the refresh times of the file.

    Raises:
        ConfigError: If there is no such memory, or a file or a change breaks a rule.
    """
    path = CATALOG.find(name_or_path)
    document = load_document(path, find=CATALOG.path)
    device = validate(Device, document)
    family = validate(Family, load_document(FAMILIES.path(device.family)))
    return _Resolver(path.stem, str(path), family, device, changes).standard()


class _Resolver:
    """Turns a family and a device into a `Standard`."""

    def __init__(
        self, name: str, where: str, family: Family, device: Device, changed: dict[str, int]
    ) -> None:
        self.name, self.where, self.family = name, where, family
        clocks = {key: value for key, value in changed.items() if key in device.clocks}
        self.clocks = {**device.clocks, **clocks}
        self.sizes = {**device.organisation, **changed}
        for key in clocks:
            del self.sizes[key]
        self.device, self.scale = device, family.ticks_per_clock
        self._used: set[str] = set()
        self._check_sizes()
        self._check_clocks()

    def _check_sizes(self) -> None:
        known = {"channel_width", "row", "column", *self.family.levels}
        for key, value in self.sizes.items():
            if key not in known:
                rule = f"must be one of {sorted(known)}, or one of the file's clocks"
                self._refuse(f"organisation.{key}", rule, key)
            if not is_whole(value) or value < 1 or value & (value - 1):
                self._refuse(f"organisation.{key}", "must be a power of two", value)
        for key in sorted(known - self.sizes.keys()):
            self._refuse("organisation", f"{key} is missing", sorted(self.sizes))
        prefetch = self.family.prefetch
        if self.sizes["column"] < prefetch:
            rule = f"must be at least a burst of {prefetch} columns"
            self._refuse("organisation.column", rule, self.sizes["column"])
        if prefetch * self.sizes["channel_width"] % 8:
            rule = f"must make whole bytes of a burst of {prefetch} transfers"
            self._refuse("organisation.channel_width", rule, self.sizes["channel_width"])

    def _check_clocks(self) -> None:
        for key, value in self.clocks.items():
            least = 1 if key in _LASTING else 0
            if not is_whole(value) or value < least:
                rule = f"must be a whole number of clocks from {least} on"
                self._refuse(f"clocks.{key}", rule, value)
        needed = {"nREFI", *(("nREFIpb", "nRFCpb") if self.family.per_bank_refresh else ())}
        for key in sorted(needed - self.clocks.keys()):
            self._refuse("clocks", f"{key} is missing", sorted(self.clocks))

    def _refuse_unused(self) -> None:
        """Refuse clocks that nothing looks at: misspelt ones, and what is not modelled."""
        for key in sorted(self.clocks.keys() - self._used - _OF_CONTROLLER):
            rule = f"is used by nothing in {self.family.name} here"
            remedy = (
                "Check its name; refresh management, power-down and calibration are not covered."
            )
            raise ConfigError.one(self.where, f"clocks.{key}", rule, self.clocks[key], remedy)

    def standard(self) -> Standard:
        family, device = self.family, self.device
        tick_s = device.clock.value / self.scale
        constraints = (*self._occupancy(), *self._stated())
        read_latency = self._ticks(family.read_latency)
        self._refuse_unused()
        return Standard(
            name=self.name,
            family=family.name,
            description=device.description,
            source=device.source,
            levels=family.levels,
            sizes=tuple(int(self.sizes[level]) for level in family.levels),
            rows=int(self.sizes["row"]),
            columns=int(self.sizes["column"]) // family.prefetch,
            burst_bytes=family.prefetch * int(self.sizes["channel_width"]) // 8,
            tick_s=tick_s,
            ticks_per_clock=self.scale,
            read_latency=read_latency,
            buses=family.buses,
            refresh_level=self._level(family.refresh_scope),
            per_bank_refresh=family.per_bank_refresh,
            constraints=constraints,
            ticks={name: int(count) * self.scale for name, count in self.clocks.items()},
            energy=device.energy,
        )

    def _stated(self) -> list[Constraint]:
        """Return the family's constraints between the first edges of commands.

        JEDEC's clocks run between the ends of two commands: a longer one before adds what it is
        longer than a tick, a longer one behind takes it off.
        """
        found = []
        for line in self.family.constraints:
            match = _LINE.fullmatch(line)
            if match is None:
                rule = "must read `level | after -> before | clocks`"
                raise ConfigError.one(self.where, "constraints", rule, line)
            level = self._level(match["level"])
            nominal = self._ticks(match["clocks"])
            window = int(match["window"] or 1)
            for after in match["after"].split():
                for before in match["before"].split():
                    ticks = nominal + self._length(after) - self._length(before)
                    found.append(
                        Constraint(
                            level, _number(after), _number(before), ticks, window,
                            bool(match["siblings"]),
                        )
                    )  # fmt: skip
        return found

    def _occupancy(self) -> list[Constraint]:
        """Return how long a command keeps others off its bus, where that is more than a tick."""
        everything = tuple(c for c in COMMANDS if c not in ("ACT2", "CAS"))
        if self.family.buses == "lpddr5":
            everything = COMMANDS
        buses: tuple[tuple[str, ...], ...] = (everything,)
        if self.family.buses in ("dual", "half-clock"):
            buses = (tuple(c for c in everything if c not in _COLUMN), _COLUMN)
        found = []
        for bus in buses:
            for after in bus:
                ticks = self._length(after)
                if ticks > 1:
                    found += [Constraint(0, _number(after), _number(b), ticks) for b in bus]
        return found

    def _length(self, command: str) -> int:
        """Return how long `command` occupies its bus, ticks."""
        return int(self.family.command_clocks.get(command, 1) * self.scale)

    def _level(self, name: str) -> int:
        if name == "channel":
            return 0
        if name not in self.family.levels:
            self._refuse("constraints", f"must name one of {self.family.levels}", name)
        return 1 + self.family.levels.index(name)

    def _ticks(self, text: str) -> int:
        """Evaluate a sum of timings and numbers of clocks."""
        total, sign = 0, 1
        for word in text.split():
            if word in "+-":
                sign = 1 if word == "+" else -1
            elif word.isdigit():
                total += sign * int(word)
            elif word in self.clocks:
                self._used.add(word)
                total += sign * int(self.clocks[word])
            else:
                self._refuse("clocks", f"{word} is needed by `{text}`", sorted(self.clocks))
        return total * self.scale

    def _refuse(self, path: str, rule: str, value: Any) -> Any:
        raise ConfigError.one(self.where, path, rule, value)


def _number(command: str) -> int:
    return COMMANDS.index(command)
