"""Units of kind `lut_core`: products with ternary weights by tile, area and energy from gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UNITS, Rows, UnitView, arithmetic_seconds, is_matrix
from opbyte.hw_models.compute.lut.core import Core
from opbyte.hw_models.compute.lut.cycles import Cycles, product_cycles
from opbyte.hw_models.compute.lut.structure import Structure, structure
from opbyte.hw_models.cost.primitives import Primitives
from opbyte.hw_models.lut import Lut

#: Number formats that a core's activations take: those that fit, and fp16 rounded to bf16.
HOLDS = {
    "int8": ("int8",),
    "int16": ("int16", "int8"),
    "fp16": ("fp16", "int8"),
    "bf16": ("bf16", "fp16", "int8"),
    "fp32": ("fp32", "tf32", "bf16", "fp16", "int16", "int8"),
}
_COUNTS = ("mu", "tables", "readers", "accumulators", "buffers", "out_bits", "reduce_bits")


@UNITS.register("lut_core")
class LutCore:
    """A core with a `lut` block. Products with other weights need a `peak`, vectors a `vector`."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return cycles over the clock, see `UnitModel`."""
        mine = _ternary(table, rows, unit)
        parts = [np.zeros((len(rows), 1))]
        if not mine.all():
            rest = rows[~mine]
            other = arithmetic_seconds(table, rest, unit, table["flops"][rest], ideal=ideal)
            parts.append(_placed(other, ~mine))
        if mine.any():
            made = built(unit)
            cycles = [
                _ideal(made, table, r) if ideal else _real(made, table, r).total for r in rows[mine]
            ]
            seconds = np.stack(np.broadcast_arrays(*(np.atleast_1d(c) for c in cycles)))
            parts.append(_placed(seconds / made.core.clock, mine))
        total: Array = sum(np.broadcast_arrays(*parts), np.zeros(1))
        return total

    def row_joules(self, table: OpTable, row: int, unit: UnitView) -> Any:
        """Return the energy of a row's products, J; None for rows that are not the core's own."""
        if not _ternary(table, np.array([row]), unit)[0]:
            return None
        made = built(unit)
        builds, reads = _real(made, table, row).everywhere
        return builds * made.build_energy + reads * made.read_energy

    def area_m2(self, unit: UnitView) -> Any:
        """Return the area of all of a unit's cores, m^2; None without a `lut` block."""
        if unit.machine.unit(unit.path).config.lut is None:
            return None
        made = built(unit)
        return made.area_m2 * made.core.instances


def _placed(some: Array, where: npt.NDArray[np.bool_]) -> Array:
    full = np.zeros((len(where), some.shape[1]))
    full[where] = some
    return full


def _ternary(table: OpTable, rows: Rows, unit: UnitView) -> npt.NDArray[np.bool_]:
    """Return which rows are the core's own: products with ternary weights, (rows,).

    Raises:
        UncoveredError: For a product that neither the core nor a `peak` covers.
    """
    config = unit.machine.unit(unit.path).config
    block: Lut | None = config.lut
    if block is None:
        return np.zeros(len(rows), bool)
    found = is_matrix(table, rows)
    for i, row in enumerate(rows):
        if not found[i]:
            continue
        stored = "weight-t1.25" if block.weights == "sherry" else "weight-t"
        ternary = any(label.startswith(stored) for label in table.labels[row])
        if not (ternary or (block.kind == "multiplier" and table["weight"][row].any())):
            found[i] = False
            if not config.peak and table["flops"][row].any():
                due = "weights in t1.25" if block.weights == "sherry" else "ternary weights"
                raise UncoveredError(
                    f"{unit.machine.name}: unit '{unit.path}' multiplies {due}, and "
                    f"'{table.names[row]}' has none. map it to another unit, or give this one a "
                    "`peak`"
                )
        elif table.dtypes[row] not in HOLDS[block.activation]:
            raise UncoveredError(
                f"{unit.machine.name}: unit '{unit.path}' takes activations of "
                f"{', '.join(HOLDS[block.activation])}, and '{table.names[row]}' computes in "
                f"{table.dtypes[row]}. choose another `activation`, or another `precision`"
            )
    return found


def built(unit: UnitView) -> Structure:
    """Return a unit's core at its values.

    Raises:
        UncoveredError: Without a clock or a node, or for a clock that sums do not keep up with.
    """
    part = unit.path.rpartition(".")[0]
    config, machine = unit.machine.unit(unit.path).config, unit.machine
    clock, node = unit.get("clock"), _node(unit, part)
    if clock is None or node is None:
        missing, example = ("clock", "500 MHz") if clock is None else ("node_nm", "16")
        where = f"unit '{unit.path}'" if clock is None else f"part '{part}'"
        raise UncoveredError(
            f"{machine.name}: {where} has no `{missing}`, and a core's cycles, area and energy "
            f"follow from it. give one, such as {missing}: {example}"
        )
    prefix = f"{unit.path}.lut.gates."
    values = {p[len(prefix) :]: v for p, v in machine.values.items() if p.startswith(prefix)}
    block: Lut = config.lut
    core = Core(
        block.kind,
        block.activation,
        block.scheme,
        block.weights,
        **{name: unit.get(f"lut.{name}") for name in _COUNTS},
        clock=clock,
        instances=float(config.instances),
    )
    made = structure(core, Primitives(values, node))
    slow = np.asarray(core.clock > made.max_clock * (1 + 1e-9))
    if slow.any():
        most = np.broadcast_to(made.max_clock, slow.shape)[slow].min()
        raise UncoveredError(
            f"{machine.name}: sums of '{unit.path}' are added to in a cycle, which {node:g} nm "
            f"allows up to {most / 1e9:.3g} GHz. lower the clock"
        )
    return made


def _node(unit: UnitView, part: str) -> float | None:
    words = part.split(".")
    found = unit.machine.config.parts[words[0]]
    for word in words[1:]:
        found = found.parts[word]
    return found.node_nm


def _sizes(table: OpTable, row: int) -> tuple[Array, Array, Array]:
    m, n, k, groups = (table[c][row] for c in ("m", "n", "k", "groups"))
    return m * groups, n, k


def _real(made: Structure, table: OpTable, row: int) -> Cycles:
    return product_cycles(made, *_sizes(table, row))


def _ideal(made: Structure, table: OpTable, row: int) -> Any:
    m, n, k = _sizes(table, row)
    return m * n * k / (made.core.macs_per_cycle * made.core.instances)
