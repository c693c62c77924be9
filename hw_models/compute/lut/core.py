"""A core for ternary weights: what it is made of and what it does in a cycle.

Every cycle a core multiplies a tile of n = tables * mu activations with n x readers weights, for
each `kind` from the same primitives:

    lut         tables of (3^mu - 1) / 2 sums; with mu = 1 an add-only core, whose table is the
                activation
    multiplier  an array of multipliers for weights in the activations' own format
    dequantise  the same behind an AND and an XOR for each bit, which unpack ternary weights
    bit_serial  a gate and an inverter for each weight and bit of the activations, a bit a cycle

Area of a lut core (Geens et al., ISPASS 2026, from the generator's text; A are primitives, b_e bits
of an entry: the activation's + mu - 1 for integers, the activation's for floating point):

    tables * (N_add A_add(b_e) + buffers E A_ff(b_e))                build and tables
    tables * readers * ((E - 1) A_mux2 b_e + A_and b_e + A_sign)     read-out, zero, sign
    readers * (tables - 1) A_add(b_r)                                reduction
    readers * (A_add(b_o) + A_ff(b_o)) + SRAM of further sums        accumulation

Integers are negated by an XOR for each bit and a carry, floating-point numbers by their sign bit.
b_r grows by a bit for each level of the tree, unless `reduce_bits` fixes it (32 in the generator);
floating point reduces in a chain. Accumulators beyond one for each reader are SRAM. Control, keys
and what brings activations are in no kind.

All fields may be arrays over design points; nothing here makes an object for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.ternary import MOST_MU
from opbyte.hw_models.compute.lut.build import Scheme, check_scheme, counts
from opbyte.hw_models.cost.primitives import Number, Price, Primitives, number

Kind = Literal["lut", "multiplier", "dequantise", "bit_serial"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ENTRIES = np.array([np.nan, *((3**mu - 1) // 2 for mu in range(1, MOST_MU + 1))])


@dataclass(frozen=True)
class Core:
    """One core, or one for each design point.

    Attributes:
        mu: Activations that share a table; 1 for kinds without tables.
        tables: Tables that are read in a cycle (L); without tables, the activations of a tile.
        readers: Weights of each table that are read in a cycle (K), and outputs of a tile.
        accumulators: Outputs whose sums are held; 0 for one for each reader.
        buffers: 1, or 2 where the next tables are built while these are read.
        out_bits: Width of the sums of integers; floating point has its own.
        reduce_bits: Width of the tree of integers; 0 where it grows as it must.
        clock: Hz.
        instances: Cores that share the outputs or the rows of a product.
    """

    kind: Kind = "lut"
    activation: str = "int8"
    scheme: Scheme = "pruned"
    mu: Any = 3
    tables: Any = 8
    readers: Any = 8
    accumulators: Any = 0
    buffers: Any = 1
    out_bits: Any = 32
    reduce_bits: Any = 0
    clock: Any = 500e6
    instances: Any = 1
    number: Number = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: If one is outside of its range, which the message gives.
        """
        if self.kind not in KINDS:
            rule = f"a core is one of {', '.join(KINDS)}"
            raise ConfigError.one("", "kind", rule, self.kind)
        object.__setattr__(self, "number", number(self.activation))
        check_scheme(self.scheme)
        if self.kind == "bit_serial" and self.number.is_float:
            rule = "a bit-serial core takes activations of int8 or int16"
            raise ConfigError.one("", "activation", rule, self.activation)
        most = MOST_MU if self.kind == "lut" else 1
        self._whole("mu", 1, most, "Kinds without tables have mu = 1." if most == 1 else "")
        self._whole("tables", 1)
        self._whole("readers", 1)
        self._whole("accumulators", 0)
        self._whole("buffers", 1, 2)
        self._whole("out_bits", self.number.bits, 128)
        self._whole("reduce_bits", 0, 128)
        self._whole("instances", 1)
        if not np.all(np.asarray(self.clock, float) > 0):
            raise ConfigError.one("", "clock", "a core's clock is above 0", self.clock)

    def _whole(self, name: str, least: int, most: float = np.inf, remedy: str = "") -> None:
        value = getattr(self, name)
        given = np.asarray(value, float)
        wrong = ~((given >= least) & (given <= most) & (given == np.floor(given)))
        if wrong.any():
            limits = f"at least {least}" if most == np.inf else f"from {least} to {most:g}"
            bad = float(given[wrong][0]) if given.ndim else value
            rule = f"{name} must be a whole number {limits}"
            raise ConfigError.one("", name, rule, bad, remedy)
        object.__setattr__(self, name, given if given.ndim else float(given))

    def points(self) -> int:
        """Return how many design points the fields hold."""
        return max(int(np.size(getattr(self, f.name))) for f in fields(self) if f.name != "number")

    def replace(self, **changes: Any) -> Core:
        """Return a core with other fields."""
        return replace(self, **changes)

    @cached_property
    def entries(self) -> Any:
        """Return the sums of a table; 1, the activation itself, without tables."""
        return _ENTRIES[np.asarray(self.mu, np.int64)]

    @cached_property
    def adders(self) -> Any:
        """Return the adders that fill one table."""
        return counts("adders", np.asarray(self.mu, np.int64), self.scheme)

    @cached_property
    def depth(self) -> Any:
        """Return the additions on the longest way through a table's network."""
        return counts("depth", np.asarray(self.mu, np.int64), self.scheme)

    @property
    def entry_bits(self) -> Any:
        """Return the bits of an entry."""
        return self.number.bits + (0.0 if self.number.is_float else self.mu - 1.0)

    @property
    def rows(self) -> Any:
        """Return the activations of a tile (n)."""
        return self.tables * self.mu

    @property
    def held(self) -> Any:
        """Return the outputs whose sums are held."""
        return np.maximum(self.accumulators, self.readers)

    @property
    def serial(self) -> float:
        """Return the cycles of a tile."""
        return float(self.number.bits) if self.kind == "bit_serial" else 1.0

    @property
    def macs_per_cycle(self) -> Any:
        """Return multiplications with weights in a cycle, of one core."""
        return self.rows * self.readers / self.serial


@dataclass(frozen=True)
class Structure:
    """What a core costs; floats or (points,).

    Attributes:
        area: Area by part, m^2, of one core.
        build_energy: Of filling all tables once, J.
        read_energy: Of one cycle of reads, J.
        build_stages, read_stages: Cycles from activations to tables, and from keys to sums.
        max_clock: Highest clock at which a sum is added to in a cycle, Hz.
    """

    core: Core
    area: dict[str, Any]
    build_energy: Any
    read_energy: Any
    build_stages: Any
    read_stages: Any
    max_clock: Any

    @property
    def area_m2(self) -> Any:
        """Return the area of one core."""
        return sum(self.area.values())

    @property
    def area_per_mac(self) -> Any:
        """Return area over multiplications with weights in a cycle, m^2."""
        return self.area_m2 / self.core.macs_per_cycle


def structure(core: Core, gates: Primitives) -> Structure:
    """Return area, energy and pipeline of a core built of primitives."""
    parts = _lut(core, gates) if core.kind == "lut" else _array(core, gates)
    accumulate, store = _accumulators(core, gates)
    width = core.number.bits if core.number.is_float else core.out_bits
    tree, tree_delay = _reduction(core, gates)
    build, table, read, build_delay, read_delay = parts
    latch = gates.register(1.0)
    period = 1.0 / core.clock
    build_stages = np.maximum(1.0, np.ceil(build_delay / (period - latch.delay) - 1e-9))
    # The accumulation is a stage of its own behind what is read and reduced.
    read_stages = np.maximum(
        1.0, np.ceil((read_delay + tree_delay) / (period - latch.delay) - 1e-9)
    )
    cuts = (build_stages - 1.0) * core.tables * core.entries * core.entry_bits
    cuts = cuts + (read_stages - 1.0) * core.readers * width
    pipeline = gates.register(cuts)
    area = {
        "build": build.area,
        "tables": table.area * core.buffers,
        "read": read.area,
        "reduce": tree.area,
        "accumulate": accumulate.area + store.area,
        "pipeline": pipeline.area,
    }
    loop = gates.add(core.number, core.out_bits).delay + latch.delay
    return Structure(
        core,
        area,
        build.energy + table.energy,
        read.energy + tree.energy + accumulate.energy + store.energy,
        build_stages,
        read_stages + 1.0,
        1.0 / loop,
    )


def _lut(core: Core, gates: Primitives) -> tuple[Price, Price, Price, Any, Any]:
    """Return build, tables, read-out of a core, and delays of the first and the last."""
    bits = core.entry_bits
    adder = gates.add(core.number, bits)
    build = adder.times(core.adders * core.tables)
    table = gates.register(core.entries * bits).times(core.tables)
    mux, zero = gates.mux(core.entries, bits), gates.gate(bits)
    sign = gates.xor(1.0 if core.number.is_float else bits)
    every = core.tables * core.readers
    read = Price(
        (mux.area + zero.area + sign.area) * every,
        (mux.energy + zero.energy + sign.energy) * every,
        0.0,
    )
    return build, table, read, core.depth * adder.delay, mux.delay + zero.delay + sign.delay


def _array(core: Core, gates: Primitives) -> tuple[Price, Price, Price, Any, Any]:
    """Return the same of the other kinds: nothing is built but a register for each activation."""
    bits, every = core.number.bits, core.tables * core.readers
    nothing = Price(0.0, 0.0, 0.0)
    held = gates.register(float(bits)).times(core.tables)
    unpack = Price(
        gates.gate(bits).area + gates.xor(bits).area,
        gates.gate(bits).energy + gates.xor(bits).energy,
        gates.gate(1.0).delay + gates.xor(1.0).delay,
    )
    product = gates.multiply(core.number)
    if core.kind == "bit_serial":
        one = Price(unpack.area / bits, unpack.energy / bits, unpack.delay)
    elif core.kind == "dequantise":
        one = Price(*(p + u for p, u in zip(product, unpack, strict=True)))
    else:
        one = product
    return nothing, held, one.times(every), 0.0, one.delay


def _reduction(core: Core, gates: Primitives) -> tuple[Price, Any]:
    """Return the adders between tables and sums, of all readers, and their delay."""
    if core.number.is_float:
        one = gates.add(core.number)
        return one.times(core.readers * (core.tables - 1.0)), one.delay * (core.tables - 1.0)
    first = {
        "lut": core.entry_bits,
        "multiplier": 2.0 * core.number.bits,
        "dequantise": 2.0 * core.number.bits,
        "bit_serial": 2.0,
    }[core.kind]
    left, width = np.asarray(core.tables, float), first
    bits: Any = 0.0
    delay: Any = 0.0
    while np.any(left > 1.0):
        pairs = np.floor(left / 2.0)
        # A sum is one bit wider than what it adds.
        width = np.where(pairs > 0, width + 1.0, width)
        own = np.where(core.reduce_bits > 0, core.reduce_bits, width)
        bits = bits + pairs * own
        delay = delay + np.where(pairs > 0, gates.adder(own).delay, 0.0)
        left = left - pairs
    return gates.adder(1.0).times(bits * core.readers), delay


def _accumulators(core: Core, gates: Primitives) -> tuple[Price, Price]:
    """Return adders and registers for each reader, and storage of further sums."""
    bits = float(core.number.bits) if core.number.is_float else core.out_bits
    add, keep = gates.add(core.number, bits), gates.register(bits)
    one = Price(add.area + keep.area, add.energy + keep.energy, add.delay)
    more = (core.held - core.readers) * bits
    array = gates.sram(np.maximum(more, 1.0))
    # Each cycle reads and writes the sums of all readers.
    moved = 2.0 * core.readers * bits * array.energy
    store = Price(np.where(more > 0, array.area, 0.0), np.where(more > 0, moved, 0.0), 0.0)
    return one.times(core.readers), store
