"""A machine file: the blocks of its YAML, from the machine down to a port.

Every number is per instance.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from opbyte.core.blocks import Block, Words
from opbyte.core.dtypes import DTYPES
from opbyte.core.errors import Problem
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.parameters import (
    Area,
    AreaPerByte,
    AreaPerOps,
    AreaPerRate,
    Bytes,
    BytesPerSecond,
    Dollars,
    DollarsPerByte,
    Hertz,
    JoulesPerBit,
    JoulesPerOp,
    Kilograms,
    OpsPerSecond,
    Ratio,
    Seconds,
    Watts,
)
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest
from opbyte.hw_models.aim import BankCommands, CommandEnergy, Pnm
from opbyte.hw_models.cpu import Cpu
from opbyte.hw_models.csd import Csd
from opbyte.hw_models.host_path import HostIo
from opbyte.hw_models.kernel import Kernel
from opbyte.hw_models.link.parameters import Collectives, Flit
from opbyte.hw_models.lut import Lut
from opbyte.hw_models.making import Making, OtherDies, Package
from opbyte.hw_models.memory.rates import Access
from opbyte.hw_models.misses import Misses
from opbyte.hw_models.pim import Pim
from opbyte.hw_models.prices import Prices
from opbyte.hw_models.serial import Serial
from opbyte.hw_models.site import Site
from opbyte.hw_models.spatial import Spatial
from opbyte.hw_models.stack import Stack, Stream
from opbyte.hw_models.technology import with_rates

#: Words of the tree that a path leaves out.
STRUCTURE = frozenset({"parts", "memory", "units", "ports", "links"})


class Port(Block):
    """A way into a memory."""

    bandwidth: BytesPerSecond | None = None
    """Peak rate, bytes/s. Without it the technology's command timing decides."""
    efficiency: Ratio | None = None
    """Share of the peak that a stream reaches. Without it the technology's command timing decides,
    where it is known."""
    latency: Seconds | None = None
    """First byte after the request."""
    write: BytesPerSecond | None = None
    """Of a storage device: rate of writes, where it is not that of reads."""
    command: Seconds | None = None
    """Of a storage device: time that a command takes beside its bytes, one after the other."""
    energy: JoulesPerBit | None = None
    """From the cells to the end of this port."""
    area: AreaPerRate | None = None
    """Die area of the interface per rate."""
    stream: Stream | None = None
    """Bandwidth and efficiency follow from the memory's `stack` or its technology, as far as they
    are not given."""
    derived: str | None = None
    limit: dict[str, Any] | None = None
    source: str | None = None


class Sharing(Block):
    """How the ports of one memory share it."""

    rule: Literal["sum", "exclusive", "partition"] = "sum"
    by: str | None = None
    partitions: int | None = Field(None, ge=1)


class Memory(Block):
    """One capacity behind named ports."""

    kind: Literal["sram", "dram", "flash", "cxl"] = "dram"
    technology: str | None = None
    """A memory of the catalog, whose command timing decides what is not given; any other name is
    a name only, except of kind `cxl`."""
    expander: dict[str, Any] = Field(default_factory=dict)
    """Of kind `cxl`: what differs from the device's file, as it would stand there."""
    channels: int | None = Field(None, ge=1)
    """Channels of the technology."""
    ranks: int | None = Field(None, ge=1)
    """Ranks on a channel, a power of two; by default those of the technology."""
    access: Access | None = None
    """Traffic and controller for which the technology's rates are computed."""
    capacity: Bytes
    ports: dict[str, Port] = Field(min_length=1)
    sharing: Sharing = Sharing()
    stack: Stack | None = None
    """Command timing from which rates of ports with a `stream` follow, as far as it is not the
    technology's."""
    area: AreaPerByte | None = None
    price: DollarsPerByte | None = None
    """Without one the machine's `prices` decide by technology."""
    source: str | None = None

    @model_validator(mode="after")
    def _rates(self) -> Memory:
        return with_rates(self)


#: Blocks of a unit, and the kinds of units that have them.
_KINDS = {
    "pim": ("pim", "aim"),
    "bank": ("aim",),
    "command_energy": ("aim",),
    "pnm": ("pnm",),
    "spatial": ("spatial_array",),
    "serial": ("bit_serial",),
    "cpu": ("cpu",),
    "lut": ("lut_core",),
    "csd": ("csd_engine",),
    "misses": ("cores",),
}


class Unit(Block):
    """Compute at one or more ports."""

    kind: str
    at: Words
    """Ports, as memory.port of the same part or a path from the top."""
    peak: dict[str, OpsPerSecond] = Field(default_factory=dict)
    """Matrix rate by arithmetic dtype."""
    vector: OpsPerSecond | None = None
    """Rate of everything that is not a matrix product."""
    columns: int | None = Field(None, ge=1)
    """Columns of weights that a core loads while it multiplies those before: kind `npu`."""
    vector_units: int | None = Field(None, ge=1)
    """Vector processors that this rate is the sum of; a row of a norm runs on one: kind `npu`."""
    efficiency: Ratio | None = None
    """Share of the matrix peak that a large product reaches."""
    buffer: str | None = None
    """Memory that holds tiles, as a name in the same part; default: an SRAM that the unit is at."""
    buffer_share: Ratio | None = None
    """Share of the buffer that tiles may take (double buffering, code)."""
    tile: tuple[int, int, int] | None = None
    """m, n, k to which a product is padded."""
    launch: dict[str, Seconds] = Field(default_factory=dict)
    """Latency of starting a kernel, by mode."""
    energy: dict[str, JoulesPerOp] = Field(default_factory=dict)
    """Energy per operation by dtype; `vector` for the rest."""
    area: AreaPerOps | None = None
    clock: Hertz | None = None
    instances: int = Field(1, ge=1)
    """Sub-units (SMs, PCUs, stacks) that all rates of the unit are the sum of."""
    local: Bytes | None = None
    """Memory of one sub-unit that holds its tile of a product (an SM's L1): kind `waves`."""
    macs: int | None = Field(None, ge=1)
    dtypes: tuple[str, ...] = ()
    array: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and columns of multipliers of a systolic array."""
    dataflow: Literal["os", "ws", "is"] = "ws"
    """What stays in a systolic array: outputs, weights or inputs."""
    preload: bool = False
    """A systolic array waits until what stays in its buffer has arrived."""
    generation: str | None = None
    """Whose kernels a GPU runs, such as `ampere`: needed with `kernel`."""
    kernel: Kernel | None = None
    """What a GPU's products take beside its data sheet; without it they are padded to `tile`."""
    lut: Lut | None = None
    """A core for ternary weights: kind `lut_core`."""
    pim: Pim | None = None
    """Commands of compute inside a memory: kinds `pim` and `aim`."""
    bank: BankCommands | None = None
    """Commands beside MACs: kind `aim`."""
    command_energy: CommandEnergy | None = None
    """Energy of each command: kind `aim`."""
    pnm: Pnm | None = None
    """Units of a device's controller: kind `pnm`."""
    serial: Serial | None = None
    """Dot products of weights that come bit by bit: kind `bit_serial`."""
    cpu: Cpu | None = None
    """Threads on cores, and the kernels of a library: kind `cpu`."""
    csd: Csd | None = None
    """Attention kernels behind the channels of a drive: kind `csd_engine`."""
    spatial: Spatial | None = None
    """What PEs and lanes do beside products: kind `spatial_array`."""
    misses: Misses | None = None
    """What cores wait for: caches and lines under way. Kind `cores`."""
    source: str | None = None

    @model_validator(mode="after")
    def _kernel(self) -> Unit:
        problems = Problems()
        if self.kernel is not None and (self.kind != "gpu" or self.generation is None):
            rule = "`kernel` needs a unit of kind gpu with a `generation`"
            problems.add([Problem("", "kernel", rule, "", "Give one.")])
        for block, kinds in _KINDS.items():
            if getattr(self, block) is not None and self.kind not in kinds:
                rule = f"`{block}` needs a unit of kind {' or '.join(kinds)}"
                problems.add([Problem("", block, rule, "", "Change one.")])
        for name in self.peak:
            if name not in DTYPES:
                near = nearest(name, DTYPES)
                guess = f"Did you mean {near!r}?" if near else f"Known: {', '.join(DTYPES)}."
                rule = f"`peak` has {name!r}, which is no number format"
                problems.add([Problem("", f"peak.{name}", rule, "", guess)])
        problems.tell()
        return self


class Part(Block):
    """A piece of hardware that occurs `count` times."""

    count: int = Field(1, ge=0)
    """0: the machine could have it and has not, with its links; no mapping in use may name it."""
    parts: dict[str, Part] = Field(default_factory=dict)
    memory: dict[str, Memory] = Field(default_factory=dict)
    units: dict[str, Unit] = Field(default_factory=dict)
    io: HostIo | None = None
    """Of a host: what its software takes on the way to storage devices."""
    area: Area | None = None
    """Die area that no other number explains."""
    node_nm: float | None = Field(None, gt=0)
    """Process node, for the die's price."""
    dies: int = Field(1, ge=1)
    """Equal dies that the area is spread over."""
    static_power: Watts | None = None
    power: Watts | None = None
    """Thermal design power."""
    price: Dollars | None = None
    """What one instance costs beside its memories."""
    package: Package | None = None
    """What its dies stand on; without it they are bought bare."""
    other_dies: dict[str, OtherDies] = Field(default_factory=dict)
    """Dies that hold some of its units and are not made as its own `dies` are."""
    carbon: Kilograms | None = None
    """What making one instance emits beside its memories, in place of its dies."""
    source: str | None = None

    @model_validator(mode="after")
    def _held(self) -> Part:
        ports = [f"{n}.{p}" for n, m in self.memory.items() for p in m.ports]
        known, held = [*self.units, *self.memory, *ports], set[str]()
        for name, dies in self.other_dies.items():
            for each in dies.holds:
                if each not in known or each in held:
                    why = "is held twice" if each in held else "is no unit, memory or port of it"
                    raise ValueError(f"`other_dies.{name}.holds`: {each!r} {why}. correct it")
                held.add(each)
            self._check_beside(f"other_dies.{name}.memory", dies.memory)
        return self

    def _check_beside(self, where: str, name: str | None) -> None:
        """Raise unless a memory that dies are counted by, if there is one, is no SRAM."""
        known = [n for n, m in self.memory.items() if m.kind != "sram"]
        if name is not None and name not in known:
            raise ValueError(
                f"`{where}` must name DRAM or flash of this part; got {name!r}. Known: "
                f"{', '.join(known) or 'none'}"
            )

    @model_validator(mode="after")
    def _packed(self) -> Part:
        dies = self.units or self.area or any(m.kind == "sram" for m in self.memory.values())
        for name, given in (("package", self.package), ("other_dies", self.other_dies)):
            if given and not dies:
                raise ValueError(
                    f"`{name}` is of a part with dies: with units, SRAM or an `area`. give one, or "
                    "leave it out"
                )
        if self.package is None:
            return self
        if self.price is not None:
            raise ValueError("a part's `price` has its package in it. remove one of the two")
        if self.dies % self.package.tiers:
            raise ValueError(
                f"{self.dies} dies are no stacks of {self.package.tiers} tiers. change one"
            )
        self._check_beside("package.memory", self.package.memory)
        return self

    @model_validator(mode="after")
    def _names(self) -> Part:
        names = [*self.parts, *self.memory, *self.units]
        double = sorted({n for n in names if names.count(n) > 1})
        reserved = sorted(set(names) & (STRUCTURE | set(Part.model_fields)))
        if double:
            raise ValueError(f"{double[0]!r} names two things of this part. rename one")
        if reserved:
            raise ValueError(f"{reserved[0]!r} is a word of the file format. choose another name")
        return self


class Link(Block):
    """A connection of parts or ports; the rate is per end and direction."""

    ends: tuple[str, str]
    topology: Literal["point-to-point", "all-to-all", "switch", "ring", "bus"] = "point-to-point"
    bandwidth: BytesPerSecond
    efficiency: Ratio | None = None
    latency: Seconds | None = None
    energy: JoulesPerBit | None = None
    area: AreaPerRate | None = None
    """Die area of the interface at each end, per rate; without it the parts' own area has it."""
    duplex: Literal["full", "half"] = "full"
    multicast: bool = False
    in_flight: Bytes | None = None
    """Bytes of reads that the engine at its end keeps under way (tags times request): what crosses
    it takes at least bytes * latency of the whole way / in_flight."""
    flit: Flit | None = None
    """Messages travel in whole flits; without it every byte on the wire is payload."""
    collectives: Collectives | None = None
    """A library's collectives; without it they are steps of `latency` and bytes at `efficiency`."""
    source: str | None = None

    @model_validator(mode="after")
    def _moves(self) -> Link:
        if self.in_flight is not None and self.in_flight.value <= 0.0:
            raise ValueError(
                f"`in_flight` must be above 0, got {self.in_flight}. leave it out where nothing "
                "limits the engine"
            )
        return self


class MachineConfig(Block):
    """A machine file."""

    kind: Literal["machine"] = "machine"
    name: str
    description: str = ""
    parts: dict[str, Part] = Field(min_length=1)
    links: dict[str, Link] = Field(default_factory=dict)
    mappings: dict[str, SoftwareMapping] = Field(default_factory=dict)
    price: Dollars | None = None
    """What the system costs beside its parts."""
    static_power: Watts | None = None
    """Power of everything that is no part: fans, host, network."""
    site: Site
    """Where it stands and is made; the catalog's values for those that are not given."""
    making: Making
    """What its dies and packages are made of; the catalog's values likewise."""
    prices: Prices
    """What memories without a price of their own cost; the catalog's values likewise."""
    source: str | None = None

    @model_validator(mode="after")
    def _names(self) -> MachineConfig:
        for name in self.links:
            if name in self.parts:
                raise ValueError(f"{name!r} names both a part and a link. rename one")
        return self
