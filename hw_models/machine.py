"""Machine: a tree of parts with memories, their ports, units at those ports, and links.

Every number is per instance. The tree compiles to *values*: one float (or one array over design
points) for each parameter, under a short path such as `rdu.hbm.phy.bandwidth`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    model_validator,
)

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, load_document, resolve_path, set_values, validate
from opbyte.core.dtypes import DTYPES
from opbyte.core.errors import ConfigError
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
    Parameter,
    Ratio,
    Seconds,
    Watts,
)
from opbyte.core.registry import nearest
from opbyte.hw_models.absent import absent_parts, is_inside, without_absent
from opbyte.hw_models.aim import BankCommands, CommandEnergy, Pnm
from opbyte.hw_models.cpu import Cpu
from opbyte.hw_models.csd import Csd
from opbyte.hw_models.gates import with_gates
from opbyte.hw_models.host_path import HostIo
from opbyte.hw_models.kernel import Kernel
from opbyte.hw_models.link.parameters import Collectives, Flit
from opbyte.hw_models.lut import Lut
from opbyte.hw_models.making import Making, OtherDies, Package, with_making
from opbyte.hw_models.memory.rates import Access
from opbyte.hw_models.misses import Misses
from opbyte.hw_models.pim import Pim
from opbyte.hw_models.prices import Prices, with_prices, with_table_of_prices
from opbyte.hw_models.relatives import with_relatives
from opbyte.hw_models.serial import Serial
from opbyte.hw_models.site import Site, with_site
from opbyte.hw_models.spatial import Spatial
from opbyte.hw_models.stack import Stack, Stream
from opbyte.hw_models.technology import with_rates

#: Words of the tree that a path leaves out.
STRUCTURE = frozenset({"parts", "memory", "units", "ports", "links"})
Result = TypeVar("Result")
CATALOG = Catalog("machine", Path(__file__).parent / "catalog" / "machines")


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


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


class Unit(Block):
    """Compute at one or more ports."""

    kind: str
    at: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
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
        if self.kernel is not None and (self.kind != "gpu" or self.generation is None):
            raise ValueError("`kernel` needs a unit of kind gpu with a `generation`. give one")
        if self.pim is not None and self.kind not in ("pim", "aim"):
            raise ValueError("`pim` needs a unit of kind pim or aim. change one")
        for block, kind in (
            ("bank", "aim"),
            ("command_energy", "aim"),
            ("pnm", "pnm"),
            ("spatial", "spatial_array"),
            ("serial", "bit_serial"),
            ("cpu", "cpu"),
            ("lut", "lut_core"),
            ("csd", "csd_engine"),
            ("misses", "cores"),
        ):
            if getattr(self, block) is not None and self.kind != kind:
                raise ValueError(f"`{block}` needs a unit of kind {kind}. change one")
        for name in self.peak:
            if name not in DTYPES:
                near = nearest(name, DTYPES)
                guess = f"did you mean {near!r}?" if near else f"known: {', '.join(DTYPES)}"
                raise ValueError(f"`peak` has {name!r}, which is no number format. {guess}")
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
            if dies.memory is not None and (
                dies.memory not in self.memory or self.memory[dies.memory].kind == "sram"
            ):
                raise ValueError(
                    f"`other_dies.{name}.memory` must name DRAM or flash of this part; got "
                    f"{dies.memory!r}"
                )
        return self

    @model_validator(mode="after")
    def _packed(self) -> Part:
        if self.package is None:
            return self
        if self.price is not None:
            raise ValueError("a part's `price` has its package in it. remove one of the two")
        if self.dies % self.package.tiers:
            raise ValueError(
                f"{self.dies} dies are no stacks of {self.package.tiers} tiers. change one"
            )
        beside = self.package.memory
        if beside is not None and (beside not in self.memory or self.memory[beside].kind == "sram"):
            raise ValueError(
                f"`package.memory` must name DRAM or flash of this part; got {beside!r}. Known: "
                f"{', '.join(n for n, m in self.memory.items() if m.kind != 'sram') or 'none'}"
            )
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


@dataclass(frozen=True)
class Located:
    """A memory, port, unit or link with its place in the tree.

    Attributes:
        path: Short path.
        part: Short path of the part that holds it, empty for a link.
        count: Instances in the whole machine.
    """

    path: str
    part: str
    count: int
    config: Any


@dataclass(frozen=True)
class Machine:
    """A validated machine.

    Attributes:
        document: What was written, with positions, presets resolved; parts of count 0 are in it,
            prices that memories take from the table are not.
        values: Parameter values by short path: floats, or arrays over design points.
        parameters: The same parameters with source and range.
    """

    config: MachineConfig
    document: Document
    values: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, Parameter] = field(repr=False)

    @property
    def name(self) -> str:
        """Return the machine's name."""
        return self.config.name

    @cached_property
    def points(self) -> int:
        """Return how many design points the values hold."""
        return max((len(v) for v in self.values.values() if not isinstance(v, float)), default=1)

    @cached_property
    def _remembered(self) -> dict[Hashable, Any]:
        return {}

    def remembered(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return what follows from the machine alone, made when it is first asked for.

        Args:
            key: Who asks, and what for.
        """
        if key not in self._remembered:
            self._remembered[key] = make()
        found: Result = self._remembered[key]
        return found

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return the number of instances of each part in the whole machine."""
        return {path: count for path, _, count in _walk(self.config.parts)}

    @cached_property
    def memories(self) -> dict[str, Located]:
        """Return every memory by short path."""
        return {
            f"{path}.{name}": Located(f"{path}.{name}", path, count, memory)
            for path, part, count in _walk(self.config.parts)
            for name, memory in part.memory.items()
        }

    @cached_property
    def units(self) -> dict[str, Located]:
        """Return every unit by short path."""
        return {
            f"{path}.{name}": Located(f"{path}.{name}", path, count, unit)
            for path, part, count in _walk(self.config.parts)
            for name, unit in part.units.items()
        }

    def memory(self, path: str) -> Located:
        """Return a memory; an unknown path is an error with the nearest name."""
        return self._pick(self.memories, path, "memory")

    def unit(self, path: str) -> Located:
        """Return a unit; an unknown path is an error with the nearest name."""
        return self._pick(self.units, path, "unit")

    def _pick(self, known: Mapping[str, Located], path: str, noun: str) -> Located:
        if path in known:
            return known[path]
        rule = f"machine '{self.name}' has no {noun} at this path"
        raise ConfigError.one(self.name, "", rule, path, self.remedy(path, known))

    def remedy(self, path: str, known: Iterable[str]) -> str:
        """Return what to do about a path that is none of those known: its part may be absent."""
        for part in absent_parts(self.document):
            if is_inside(path, (part,)):
                return f"{part}.count is 0. set it, or take a mapping without {part}"
        guess = nearest(path, known)
        return f"did you mean '{guess}'?" if guess else f"known: {', '.join(known)}"

    def unit_ports(self, path: str) -> tuple[str, ...]:
        """Return the short paths of the ports that a unit is at."""
        unit = self.unit(path)
        return tuple(self._port(unit.part, at, path) for at in unit.config.at)

    def _port(self, part: str, at: str, unit: str) -> str:
        for candidate in (f"{part}.{at}", at):
            memory, _, port = candidate.rpartition(".")
            if memory in self.memories and port in self.memories[memory].config.ports:
                return candidate
        known = [f"{m}.{p}" for m, x in self.memories.items() for p in x.config.ports]
        guess = nearest(f"{part}.{at}", known)
        raise ConfigError.one(
            self.document.name,
            f"{unit}.at",
            "must name a port as memory.port",
            at,
            f"did you mean '{guess}'?" if guess else f"known: {', '.join(known)}",
        )

    def replace(
        self, changes: Mapping[str, Any], places: Mapping[str, str] | None = None
    ) -> Machine:
        """Return a machine with some parameters changed.

        Args:
            changes: Short or full path -> value as it would be written in YAML.
            places: Path -> where its value stands, for errors.
        Raises:
            ConfigError: For an unknown path (with the nearest name) or a bad value.
        """
        changed = set_values(self.document, changes, transparent=STRUCTURE, places=places)
        return _build(changed)

    def path(self, dotted: str) -> str:
        """Return the short path of a parameter.

        Raises:
            ConfigError: If there is no such parameter, with the nearest name.
        """
        words = resolve_path(self.document.data, dotted, transparent=STRUCTURE)
        short = ".".join(w for w in words if w not in STRUCTURE)
        if short not in self.parameters:
            raise ConfigError.one(
                self.document.name, dotted, "must name a numeric parameter", dotted, ""
            )
        return short

    def with_values(self, changes: Mapping[str, Any]) -> Machine:
        """Return the machine with values replaced by arrays over design points (fast path)."""
        return Machine(self.config, self.document, {**self.values, **changes}, self.parameters)

    def mapping(self, name: str | None = None) -> SoftwareMapping:
        """Return a mapping of the machine by name, by default the one called `default`."""
        known = self.config.mappings
        wanted = name or "default"
        if wanted in known:
            return known[wanted]
        guess = nearest(wanted, known)
        raise ConfigError.one(
            self.document.name,
            "mapping",
            f"machine '{self.name}' has no such mapping",
            wanted,
            f"did you mean '{guess}'?" if guess else f"known: {', '.join(known) or 'none'}",
        )


def load_machine(source: str | Path | Mapping[str, Any] | Machine) -> Machine:
    """Return a machine from the catalog, a YAML file or a dict.

    Raises:
        ConfigError: With every problem of the file, or the nearest catalog name.
    """
    if isinstance(source, Machine):
        return source
    if isinstance(source, Mapping):
        return _build(Document(dict(source), {}, "machine"))
    return _build(_read(source))


def _read(source: str | Path) -> Document:
    return load_document(CATALOG.find(source), find=CATALOG.path)


def _build(document: Document) -> Machine:
    document = with_making(with_site(with_gates(with_relatives(document, _read))))
    document = with_table_of_prices(document)
    # The document stays as it was written: prices and counts that are set later count then.
    config = validate(MachineConfig, with_prices(without_absent(document)))
    parameters = dict(_collect(config, "", config.source))
    values = {path: p.value for path, p in parameters.items()}
    machine = Machine(config, document, values, parameters)
    for unit in machine.units:
        machine.unit_ports(unit)
    _check_links(machine)
    return machine


def _check_links(machine: Machine) -> None:
    known = [
        *machine.counts,
        *(f"{m}.{p}" for m, x in machine.memories.items() for p in x.config.ports),
    ]
    for name, link in machine.config.links.items():
        for end in link.ends:
            if end not in known:
                guess = nearest(end, known)
                raise ConfigError.one(
                    machine.document.where(("links", name, "ends")),
                    f"links.{name}.ends",
                    "must name parts or ports",
                    end,
                    f"did you mean '{guess}'?" if guess else f"known: {', '.join(known)}",
                )


def _walk(
    parts: Mapping[str, Part], prefix: str = "", count: int = 1
) -> Iterator[tuple[str, Part, int]]:
    for name, part in parts.items():
        path = f"{prefix}.{name}" if prefix else name
        yield path, part, count * part.count
        yield from _walk(part.parts, path, count * part.count)


def _collect(node: Any, path: str, source: str | None) -> Iterator[tuple[str, Parameter]]:
    """Yield every parameter with its short path and the source that covers it."""
    if isinstance(node, Parameter):
        yield path, node if node.source else dataclasses.replace(node, source=source)
    elif isinstance(node, BaseModel):
        # Clocks and controllers are what rates follow from: others make another machine.
        # Prices are parameters of the memories that take them.
        if isinstance(node, SoftwareMapping | Stack | Stream | Access | Prices):
            return
        own = getattr(node, "source", None) or source
        for name in type(node).model_fields:
            step = "" if name in STRUCTURE else name
            yield from _collect(getattr(node, name), _join(path, step), own)
    elif isinstance(node, dict):
        for name, child in node.items():
            if name != "mappings":
                yield from _collect(child, _join(path, str(name)), source)


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path and step else path or step
