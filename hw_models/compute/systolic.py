"""Systolic arrays: weights, outputs or inputs stay in the multipliers, the rest moves past them.

Two effects, each a function of its own. `array_cycles` counts fill, drain and edge tiles of an
array whose operands are always there (SCALE-Sim v3, Raj et al., ISPASS 2025). `memory_waits`
counts what tiles wait for when they come through an SRAM of finite size and rate.
docs/machines/systolic.md derives both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.dtypes import bytes_of
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, Rows, UnitView, arithmetic, is_matrix
from opbyte.hw_models.machine_file import Unit


def _parts(size: Any, step: int) -> Any:
    """Return ceil(size / step): an exact int for an int, else floats."""
    return -(-size // step)


def folds(m: Any, n: Any, k: Any, array: tuple[int, int], dataflow: str) -> Any:
    """Return how many tiles of the array a product of (m, k) by (k, n) takes."""
    rows, columns = array
    if dataflow == "os":
        return _parts(m, rows) * _parts(n, columns)
    return _parts(k, rows) * _parts(n if dataflow == "ws" else m, columns)


def fold_cycles(
    m: Any, n: Any, k: Any, array: tuple[int, int], dataflow: str, *, skew: bool = True
) -> Any:
    """Return the cycles of one tile of the array; they do not depend on how full it is.

    os: multiplier (r, c) adds term t in cycle r + c + t, so the last one ends after
    k + rows + columns - 2 cycles. ws: `rows` cycles shift the weights in, then input i meets
    weight (r, c) in cycle i + r + c, so a tile takes rows + (m + rows + columns - 2); `is` swaps
    m and n. Tiles do not overlap. Source: demand matrices of SCALE-Sim v3.

    Args:
        skew: Without it operands reach every multiplier at once, and the next stationary tile is
            shifted in beside the running one: k cycles, or max(moving, rows).
    """
    rows, columns = array
    if dataflow == "os":
        return k + (rows + columns - 2 if skew else 0)
    moving = m if dataflow == "ws" else n
    if skew:
        return moving + (2 * rows + columns - 2)
    return max(moving, rows) if isinstance(moving, int) else np.maximum(moving, rows)


def array_cycles(
    m: Any, n: Any, k: Any, array: tuple[int, int], dataflow: str, *, skew: bool = True
) -> Any:
    """Return the cycles of a product with operands always there: exact int for int sizes.

    SCALE-Sim prints the index of the last cycle counted from zero, one less than this.
    """
    one = fold_cycles(m, n, k, array, dataflow, skew=skew)
    return folds(m, n, k, array, dataflow) * one


@dataclass(frozen=True)
class Supply:
    """What feeds an array's tiles; rates in bytes per cycle or in bytes/s.

    Attributes:
        capacity: Bytes of the buffer, for all operands.
        feed: Rate of the memory behind it, reads and writes together.
        fill: Rate at which the buffer takes tiles in.
        read: Rate at which the buffer gives operands to the array.
        preload: The array waits until what stays in the buffer has arrived.
    """

    capacity: Any
    feed: Any = np.inf
    fill: Any = np.inf
    read: Any = np.inf
    preload: bool = False


@dataclass(frozen=True)
class Waits:
    """What memory adds to one product, in the supply's unit of time: cycles or seconds.

    Attributes:
        stream: Time of all bytes between memory and buffer; it overlaps with the array.
        exposed: Time before the array may start.
        edge: Least time of one cycle, in which the buffer reads what enters at the edges.
    """

    stream: Any
    exposed: Any
    edge: Any

    def total(self, cycles: Any, cycle: Any = 1.0) -> Any:
        """Return the time of a product.

        Args:
            cycles: What the array takes with operands always there.
            cycle: Time of one cycle.
        """
        return np.maximum(cycles * np.maximum(cycle, self.edge) + self.exposed, self.stream)


def memory_waits(
    m: Any, n: Any, k: Any, array: tuple[int, int], dataflow: str, size: float, supply: Supply
) -> Waits:
    """Return what tiles wait for.

    One operand stays in the buffer in stripes as large as fit beside two strips of the other one
    and the stripe's outputs; the other one streams by once for each stripe. The operand whose
    stay moves fewer bytes stays. A strip is as wide as the array and k long. Where no stripe fits,
    each tile reads both of its strips.

    Args:
        m, n, k: Sizes; floats or arrays that broadcast.
        size: Bytes of an element of inputs, weights and outputs.
    """
    rows, columns = array
    across = (rows, columns) if dataflow != "is" else (columns, rows)
    inputs, weights, outputs = m * k * size, n * k * size, m * n * size
    by_input = inputs + weights * _passes(m, n, k, across, size, supply.capacity)
    by_weight = weights + inputs * _passes(n, m, k, across[::-1], size, supply.capacity)
    loads = np.minimum(by_input, by_weight)
    stream = np.maximum((loads + outputs) / supply.feed, loads / supply.fill)
    if supply.preload:
        first = np.where(by_input <= by_weight, inputs, weights)
        fits = inputs + weights + outputs <= supply.capacity
        held = {"os": np.where(fits, inputs + weights, first), "ws": inputs, "is": weights}
        before = held[dataflow]
    else:
        depth = np.minimum(k, max(array))
        before = (np.minimum(m, across[0]) + np.minimum(n, across[1])) * depth * size
    exposed = before / np.minimum(supply.feed, supply.fill)
    return Waits(stream, exposed, _edge_bytes(array, dataflow, size) / supply.read)


def _passes(
    stays: Any, streams: Any, k: Any, across: tuple[int, int], size: float, capacity: Any
) -> Any:
    """Return how often one operand streams by while the other stays, stripe by stripe."""
    stays, streams, k = np.maximum(stays, 1.0), np.maximum(streams, 1.0), np.maximum(k, 1.0)
    high, wide = np.minimum(stays, across[0]), np.minimum(streams, across[1])
    strips = np.ceil(stays / across[0])
    fit = np.floor((capacity / size - 2.0 * wide * k) / (high * (k + wide)))
    return np.ceil(strips / np.clip(fit, 1.0, strips))


def _edge_bytes(array: tuple[int, int], dataflow: str, size: float) -> float:
    """Return the bytes that enter the array in a cycle.

    os moves both operands past its edges; ws and is shift one in, then move the other one.
    Partial sums stay in accumulators of their own.
    """
    return (sum(array) if dataflow == "os" else max(array)) * size


@UNITS.register("systolic")
class Systolic:
    """An array of multipliers with `array: [rows, columns]`, a `dataflow` and a `clock`."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return cycles with fill, drain, edge tiles and memory stalls, see `UnitModel`."""
        matrix = is_matrix(table, rows)
        seconds = []
        for row, is_product in zip(rows, matrix, strict=True):
            useful = table["flops"][row]
            if not useful.any():
                seconds.append(np.zeros(1))
            elif not is_product:
                seconds.append(useful / unit.vector_rate(table.kinds[row]))
            elif ideal:
                seconds.append(useful / peak_rate(unit, table.dtypes[row]))
            else:
                seconds.append(_product_seconds(table, row, unit))
        return np.stack(np.broadcast_arrays(*seconds)) if seconds else np.zeros((0, 1))


def peak_rate(unit: UnitView, dtype: str) -> Any:
    """Return the matrix rate, operations/s: `peak`, or 2 * rows * columns * clock * instances.

    A unit of a bit-serial array multiplies `serial.dot` pairs at a time.

    Raises:
        UncoveredError: Without array or clock, or for a dtype that neither `peak` nor `dtypes` has.
    """
    config = _config(unit)
    if config.peak:
        return unit.peak(dtype)
    if not any(name in config.dtypes for name in arithmetic(dtype)):
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' has no arithmetic for {dtype}. It has: "
            f"{', '.join(config.dtypes) or 'no dtype'}. give `dtypes` or `peak`, or choose "
            "another `precision` for the work"
        )
    assert config.array is not None
    dot = 1 if config.serial is None else config.serial.dot
    return 2.0 * config.array[0] * config.array[1] * dot * unit.get("clock") * config.instances


def _config(unit: UnitView) -> Unit:
    config: Unit = unit.machine.unit(unit.path).config
    for name, example in (("array", "[128, 128]"), ("clock", "1 GHz")):
        if getattr(config, name) is None:
            raise UncoveredError(
                f"{unit.machine.name}: unit '{unit.path}' has no `{name}`, and a systolic array's "
                f"cycles follow from it. give one, such as {name}: {example}"
            )
    return config


def _product_seconds(table: OpTable, row: int, unit: UnitView) -> Array:
    """Return the seconds of a row's products, (1,) or (points,)."""
    config = _config(unit)
    assert config.array is not None
    m, n, k, groups = (table[c][row] for c in ("m", "n", "k", "groups"))
    rate = peak_rate(unit, table.dtypes[row]) * unit.get("efficiency", 1.0)
    # A dtype with half the rate takes two clocks for what is one cycle here.
    cycle_s = 2.0 * config.array[0] * config.array[1] * config.instances / rate
    rounds = np.ceil(groups * folds(m, n, k, config.array, config.dataflow) / config.instances)
    cycles = rounds * fold_cycles(m, n, k, config.array, config.dataflow)
    # Causal products do less than the full rectangle: keep the share that is useful.
    full = 2.0 * groups * m * n * k
    useful = table["flops"][row]
    share = np.divide(useful, full, out=np.ones_like(full * useful), where=full > 0)
    cycles = cycles * np.minimum(share, 1.0)
    supply = _supply(unit, config)
    seconds: Array = cycles * cycle_s
    if supply is not None:
        size = bytes_of(table.dtypes[row], 1.0)
        one = memory_waits(m, n, k, config.array, config.dataflow, size, supply)
        all_of_them = Waits(groups * one.stream, groups * one.exposed, one.edge)
        seconds = all_of_them.total(cycles, cycle_s)
    return np.where(useful > 0, seconds, 0.0)


def _supply(unit: UnitView, config: Unit) -> Supply | None:
    """Return what feeds the tiles, bytes/s, or None for a unit without a buffer.

    The buffer's port `fill` takes tiles in and its fastest other port feeds the arrays. A unit at
    its buffer's own port has no memory behind it here.
    """
    capacity = unit.buffer_bytes()
    if capacity is None:
        return None
    machine, count = unit.machine, unit.machine.unit(unit.path).count
    port = machine.unit_ports(unit.path)[0]
    own = port.rpartition(".")[0]
    buffer = f"{unit.path.rpartition('.')[0]}.{config.buffer}" if config.buffer else own

    def rate(memory: str, name: str) -> Any:
        value = machine.values.get(f"{memory}.{name}.bandwidth", np.inf)
        share = machine.values.get(f"{memory}.{name}.efficiency", 1.0)
        return value * share * machine.memories[memory].count / count

    ports = machine.memories[buffer].config.ports
    reads = [rate(buffer, name) for name in ports if name != "fill"]
    read = np.inf if not reads else np.max(np.stack(np.broadcast_arrays(*reads)), axis=0)
    fill = rate(buffer, "fill") if "fill" in ports else np.inf
    feed = rate(own, port.rpartition(".")[2]) if own != buffer else np.inf
    return Supply(capacity, feed, fill, read / config.instances, config.preload)
