"""Unit kind `bit_serial`: an array of dot-product units whose weights come a few bits a cycle.

The array has `rows` outputs by `columns` tokens. Each unit multiplies `dot` weights by `dot`
activations in ceil(bits of a weight / bits a cycle) cycles, so that fewer bits are fewer cycles:

    cycles = groups * ceil(k / dot) * ceil(n / rows) * ceil(m / columns) * passes

Without bits a cycle a weight takes one cycle, whatever its format: the baselines of the same
papers. Weights and inputs pass buffers of their own; where neither fits, one of them is read again
for each buffer-full of the other. Source: BitMoD (Chen et al., HPCA 2025), section V, and its
simulator. docs/machines/bit-serial.md derives it and says where it was compared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from opbyte.core.dtypes import bytes_of
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import MOVED, PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView, is_matrix
from opbyte.hw_models.compute.systolic import peak_rate
from opbyte.hw_models.machine_file import Unit
from opbyte.hw_models.serial import Serial

#: Bits of everything but weights in BitMoD's simulator.
_HALF = 16.0

#: Bytes by tensor class and cause.
Bytes = dict[tuple[str, str], Any]


class Run(NamedTuple):
    """Products in the array: cycles, and bits read from both buffers, (1,) or (points,)."""

    cycles: Any
    read: Any


@UNITS.register("bit_serial")
class BitSerial:
    """An array with `array: [rows, columns]`, a `clock`, and a `serial` block."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return cycles of products, and the rest at the vector rate, see `UnitModel`."""
        seconds: list[Any] = []
        for row, product in zip(rows, is_matrix(table, rows), strict=True):
            useful = table["flops"][row]
            if not useful.any():
                seconds.append(np.zeros(1))
            elif not product:
                seconds.append(useful / unit.vector_rate(table.kinds[row]))
            elif ideal:
                _serial(unit)
                passes = _passes(stored_bits(table, row), unit)
                seconds.append(useful * passes / peak_rate(unit, table.dtypes[row]))
            else:
                seconds.append(product_run(table, row, unit).cycles / unit.get("clock"))
        return np.stack(np.broadcast_arrays(*seconds)) if seconds else np.zeros((0, 1))

    def row_joules(self, table: OpTable, row: int, unit: UnitView) -> Any:
        """Return the energy of a product's cycles and reads, None for other rows."""
        product = is_matrix(table, np.array([row]))[0]
        return _joules(product_run(table, row, unit), unit) if product else None

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the prices of products that run alone, with what they read again."""
        table = placed.table
        rows = placed.single(ops)
        if placed.artifact == "bitmod":
            _check_artifact(placed, ops, rows, unit)
        rows = rows[is_matrix(table, rows)]
        if not rows.size:
            return None
        runs, again = [], []
        for row in rows:
            if placed.artifact == "bitmod" and table.kinds[row] in ("score", "context"):
                run, moved = _artifact(placed, row, unit)
            else:
                run, moved = product_run(table, row, unit), _again(table, row, unit)
            runs.append(run)
            again.append(moved)
        causes = sorted({cause for one in again for cause in one})
        # Instances that work together as one device share its products.
        rate = unit.get("clock") * placed.spans[placed.units.index(unit.path)]
        return KernelPrices(
            placed.op_of[rows],
            _stacked(run.cycles for run in runs) / rate,
            None,
            moved={c: _stacked(one.get(c, np.zeros(1)) for one in again) for c in causes},
        )


def product_run(table: OpTable, row: int, unit: UnitView) -> Run:
    """Return how a row's products run.

    Causal products do less than the full rectangle: the share that is useful counts.

    Raises:
        UncoveredError: If the unit has no array, clock or `serial` block, or not the dtype.
    """
    peak_rate(unit, table.dtypes[row])
    m, n, k, groups = (table[c][row] for c in ("m", "n", "k", "groups"))
    full = 2.0 * groups * m * n * k
    share = np.divide(table["flops"][row], full, out=np.ones_like(full), where=full > 0)
    bits = stored_bits(table, row), 8.0 * bytes_of(table.dtypes[row], 1.0)
    run = _run(m, n, k, groups, bits, unit)
    return Run(*(each * np.minimum(share, 1.0) for each in run))


def stored_bits(table: OpTable, row: int) -> Any:
    """Return the bits of what a product multiplies its tokens by, as stored, scales included.

    Keys and values that come from no cache have the bits of the product's own arithmetic. A product
    with weights may read the cache beside them (MLA's `kv_up`): that is its input.
    """
    elements = np.maximum(table["groups"][row] * table["n"][row] * table["k"][row], 1.0)
    weights = table["weight"][row] + table["expert"][row]
    stored = np.where(weights > 0, weights, table["kv_read"][row])
    return np.where(stored > 0, 8.0 * stored / elements, 8.0 * bytes_of(table.dtypes[row], 1.0))


def _run(m: Any, n: Any, k: Any, groups: Any, bits: tuple[Any, Any], unit: UnitView) -> Run:
    """Return how `groups` products of (m, k) by (k, n) run in the array's best shape.

    A row of units shares its weights and a column its inputs.

    Args:
        bits: Of an element of weights and of inputs.
    """
    config, serial = _config(unit), _serial(unit)
    assert config.array is not None
    shapes = np.array((config.array, *serial.shapes), np.float64)
    each = [np.ceil(n / rows) * np.ceil(m / columns) for rows, columns in shapes]
    tiles = np.stack(np.broadcast_arrays(*each))
    across = shapes[np.argmin(tiles, axis=0)] * serial.dot
    steps = np.ceil(k / serial.dot)
    count = groups * tiles.min(axis=0)
    read = across[..., 0] * bits[0] + across[..., 1] * bits[1]
    rounds = np.ceil(count / config.instances)
    return Run(rounds * steps * _passes(bits[0], unit), count * steps * read)


def _passes(bits: Any, unit: UnitView) -> Any:
    """Return the cycles of one weight: its whole bits, without its share of a scale's."""
    taken = unit.get("serial.bits")
    if taken is None:
        return np.ones(1)
    # Bytes over elements may be a rounding error below the bits.
    return np.maximum(np.ceil(np.floor(bits + 1e-9) / taken), 1.0)


def _joules(run: Run, unit: UnitView) -> Any:
    """Return the energy of the whole array, busy or not, and of both buffers' reads."""
    config, serial, energy = _config(unit), _serial(unit), unit.get("serial.energy")
    if energy is None:
        return None
    assert config.array is not None
    part = unit.path.rpartition(".")[0]
    ports = unit.machine.memory(f"{part}.{serial.weights}").config.ports
    reading = unit.machine.values.get(f"{part}.{serial.weights}.{next(iter(ports))}.energy", np.nan)
    units = config.array[0] * config.array[1] * config.instances
    return run.cycles * (units * energy) + run.read * reading


def _again(table: OpTable, row: int, unit: UnitView) -> Bytes:
    """Return the bytes that a product reads again where neither operand fits in its buffer."""
    m, n, k, groups = (table[c][row] for c in ("m", "n", "k", "groups"))
    inputs = m * k * bytes_of(table.dtypes[row], 1.0)
    weights = n * k * stored_bits(table, row) / 8.0
    again_w, again_i = _refetched(weights, inputs, unit)
    classes = ("weight", "expert", "kv_read")
    # Keys and values that no cache holds are activations.
    kept = next((c for c in classes if (table[c][row] > 0).any()), "activation")
    moved: Bytes = {("activation", "re-read"): groups * again_i}
    moved[kept, "re-read"] = moved.get((kept, "re-read"), 0.0) + groups * again_w
    return moved


def _refetched(weights: Any, inputs: Any, unit: UnitView) -> tuple[Any, Any]:
    """Return the bytes of weights, or else of inputs, read again: the fewer of both."""
    part, serial = unit.path.rpartition(".")[0], _serial(unit)
    held_w, held_i = (
        unit.machine.values[f"{part}.{name}.capacity"] for name in (serial.weights, serial.inputs)
    )
    again_w = (np.ceil(inputs / held_i) - 1.0).clip(0.0) * weights
    again_i = (np.ceil(weights / held_w) - 1.0).clip(0.0) * inputs
    fewer = again_w < again_i
    return np.where(fewer, again_w, 0.0), np.where(fewer, 0.0, again_i)


def _check_artifact(placed: PlacedOps, ops: Rows, alone: Rows, unit: UnitView) -> None:
    """Refuse fused attention, of which the artifact counts nothing."""
    rows = np.setdiff1d(np.flatnonzero(np.isin(placed.op_of, ops)), alone)
    if any(placed.table.kinds[row] in ("score", "context") for row in rows):
        raise UncoveredError(
            f"{unit.machine.name}: `artifact: bitmod` counts attention as single products, and "
            f"the mapping fuses it on '{unit.path}'. give fusion: none, or leave out `artifact`"
        )


def _artifact(placed: PlacedOps, row: int, unit: UnitView) -> tuple[Run, Bytes]:
    """Return attention as BitMoD's simulator counts it.

    Its queries (`attn_qk`) are `hidden` long and meet a key for each head and token, not for each
    token of the context; its scores (`attn_v`) meet all values at once. So prefill multiplies
    `heads` times as often as attention does, and decode reads `heads` keys and one value instead of
    the context's. Queries and scores take as many passes as weights, in 16 bits.
    """
    table = placed.table
    heads = table["groups"][row] * table["heads"][row]
    tokens = table["m"][row] / table["heads"][row]
    k, value = table["k"][row], table["n"][row]
    if table.kinds[row] == "score":
        m, n, k, width = heads * tokens, tokens, heads * k, table["groups"][row] * k
    else:
        m, n, width = tokens, heads * tokens, table["groups"][row] * value
    weights, inputs, outputs = (_HALF / 8.0 * s for s in (n * k, m * width, m * n))
    total = weights + inputs + outputs + sum(_refetched(weights, inputs, unit))
    counted = sum(placed.moved[c][placed.op_of[row]] for c in MOVED if c != "internal")
    run = _run(m, n, k, 1.0, (_weight_bits(table), _HALF), unit)
    return run, {("activation", "artifact"): total - counted}


def _weight_bits(table: OpTable) -> Any:
    """Return the fewest bits in which any matrix is stored, those of activations without one."""
    matrices = is_matrix(table, np.arange(len(table))) & (table["weight"] > 0).any(axis=1)
    stored = [stored_bits(table, row) for row in np.flatnonzero(matrices).tolist()]
    return np.min(np.stack(np.broadcast_arrays(*stored)), axis=0) if stored else _HALF


def _stacked(values: Any) -> Array:
    return np.stack(np.broadcast_arrays(*values))


def _serial(unit: UnitView) -> Serial:
    serial = _config(unit).serial
    if serial is None:
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' has no `serial` block, and its cycles follow "
            "from it. give one, such as serial: {dot: 4, bits: 2, weights: wbuf, inputs: ibuf}"
        )
    return serial


def _config(unit: UnitView) -> Unit:
    config: Unit = unit.machine.unit(unit.path).config
    return config
