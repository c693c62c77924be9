"""What a core is made of: area, energy and pipeline of its parts from primitives.

Area of a lut core (Geens et al., ISPASS 2026, from the generator's text; A are primitives, b_e bits
of an entry: the activation's + mu - 1 for integers, the activation's for floating point):

    tables * (N_add A_add(b_e) + buffers E A_ff(b_e))                build and tables
    tables * readers * ((E - 1) A_mux2 b_e + A_and b_e + A_sign)     read-out, zero, sign
    readers * (tables - 1) A_add(b_r)                                reduction
    readers * (A_add(b_o) + A_ff(b_o)) + SRAM of further sums        accumulation

Sherry's weights (one zero in four) have E = 16, N_add = 20 and no zero to select.

Integers are negated by an XOR for each bit and a carry, floating-point numbers by their sign bit.
b_r grows by a bit for each level of the tree, unless `reduce_bits` fixes it (32 in the generator);
floating point reduces in a chain. Accumulators beyond one for each reader are SRAM. Control, keys
and what brings activations are in no kind.

A path longer than a clock is cut by registers: as wide as a table where it is filled, as wide as a
sum where it is read. What waits for its turn in a chain of adders is not held there, so that cuts
of a long chain are counted at their least. A sum is added to in one cycle, which limits the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.hw_models.compute.lut.core import Core
from opbyte.hw_models.cost.primitives import Price, Primitives


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
    mux = gates.mux(core.entries, bits)
    zero = Price(0.0, 0.0, 0.0) if core.is_sherry else gates.gate(bits)
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
