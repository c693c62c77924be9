"""Unit kind `cpu`: threads on cores with SIMD instructions, as ggml's programs use them.

Every operator is a node of a graph, run by all threads between barriers. A product first prepares
its inputs on one thread, then shares its outputs over n threads:

    t = prepare + max(weights * instructions / (n * slots * efficiency * clock), bytes / stream)
        + barriers * 2 (n - 1) * handoff

An elementwise node runs on as many threads as it has rows: on one, for one token. Kernels with
table look-ups (T-MAC, EuroSys 2025, arXiv 2407.00088) take instructions for each bit of a weight;
kernels that unpack and multiply (llama.cpp) those of their format. docs/machines/edge.md derives
it and says where it was compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import BYTE_COLUMNS, Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView, is_matrix
from opbyte.hw_models.cpu import Cpu

#: Nodes of ggml's graph for each kind of row, views and permutations included: llama.cpp b2794,
#: llm_build_llama. A product is two (prepare, compute), see `_barriers`.
NODES = {
    "norm": 2.0,
    "rotary": 5.0,
    "kv_append": 5.0,
    "score": 4.0,
    "context": 5.0,
    "activation": 2.0,
}
#: Most bits of a weight that tables are read for.
_MOST_BITS = 4


@UNITS.register("cpu")
class CpuCores:
    """Cores (`instances`) at a `clock`; `vector` is the rate of one of them."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return seconds of arithmetic, ideally of all cores in full use, see `UnitModel`."""
        if ideal:
            return _stacked([_least(table, row, unit) for row in rows.tolist()])
        return _stacked([_seconds(table, row, unit) for row in rows.tolist()])

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the prices of operators with their streams and barriers."""
        home = unit.home_port()
        if home is None:
            return None
        rows = np.flatnonzero(np.isin(placed.op_of, ops)).tolist()
        each = _stacked([_seconds(placed.table, row, unit) for row in rows])
        seconds = np.zeros((len(ops), each.shape[1]))
        np.add.at(seconds, np.searchsorted(ops, placed.op_of[rows]), each)
        return KernelPrices(ops, seconds, home, joules=_joules(placed, ops, seconds, unit, home))


def cores(unit: UnitView) -> int:
    """Return how many cores a unit has."""
    return int(unit.machine.unit(unit.path).config.instances)


def block(unit: UnitView) -> Cpu:
    """Return a unit's `cpu` block.

    Raises:
        UncoveredError: If it has none, or no clock.
    """
    config = unit.machine.unit(unit.path).config
    if config.cpu is None or config.clock is None:
        missing = "`cpu` block" if config.cpu is None else "clock"
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' has no {missing}, and a core's rate follows "
            "from it. give one"
        )
    found: Cpu = config.cpu
    return found


def threads(unit: UnitView) -> Any:
    """Return the threads.

    Raises:
        UncoveredError: If there are more of them than cores.
    """
    block(unit)
    count = np.rint(unit.get("cpu.threads"))
    if np.any(count > cores(unit)):
        raise UncoveredError(
            f"{unit.machine.name}: {float(np.max(count)):g} threads share the {cores(unit)} cores "
            f"of '{unit.path}', and threads that take turns are not modelled. give at most "
            f"{cores(unit)}"
        )
    return count


def clock(unit: UnitView) -> Any:
    """Return the clock with this many threads: straight from one to all cores."""
    count, most = threads(unit), cores(unit)
    alone = unit.get("clock")
    together = unit.get("cpu.sustained", alone)
    return alone - (alone - together) * (count - 1.0) / max(most - 1, 1)


def instructions(table: OpTable, row: int, unit: UnitView) -> Any:
    """Return the SIMD instructions of one weight (or key, or value) and token.

    Raises:
        UncoveredError: If the unit's library has no kernel for the format.
    """
    found = block(unit)
    stored = _format(table, row)
    own = unit.get(f"cpu.instructions.{stored.replace('.', '_')}")
    if own is not None:
        return own
    bits = lookup(stored).bits
    whole = np.floor(bits) if stored.startswith("q") else bits
    if found.per_bit is not None and whole == int(whole) and whole <= _MOST_BITS:
        return whole * unit.get("cpu.per_bit")
    known = ", ".join(found.instructions) or "none"
    tables = f", and tables for 1 to {_MOST_BITS} bits" if found.per_bit is not None else ""
    raise UncoveredError(
        f"{unit.machine.name}: '{unit.path}' has no kernel for {stored} of '{table.names[row]}'. "
        f"It has: {known}{tables}. choose another `precision`, or add its `instructions`"
    )


def _format(table: OpTable, row: int) -> str:
    """Return the storage format of what a product multiplies its tokens by."""
    for label in sorted(table.labels[row]):
        kind, _, name = label.partition("-")
        if kind in ("weight", "kv") and name:
            return name
    return table.dtypes[row]


def _least(table: OpTable, row: int, unit: UnitView) -> Any:
    """Return the seconds in which all cores do a row's operations without a wait."""
    flops = table["flops"][row]
    if not flops.any():
        return np.zeros(1)
    if not is_matrix(table, np.array([row]))[0]:
        return flops / (unit.vector_rate(table.kinds[row]) * cores(unit))
    starts = unit.get("cpu.slots") * unit.get("clock") * cores(unit)
    return 0.5 * flops * instructions(table, row, unit) / starts


def _seconds(table: OpTable, row: int, unit: UnitView) -> Any:
    """Return the seconds of one row, its stream and its barriers included."""
    count, rate = threads(unit), clock(unit)
    flops, groups = table["flops"][row], table["groups"][row]
    moved = sum(table[c][row] for c in BYTE_COLUMNS)
    product = bool(is_matrix(table, np.array([row]))[0]) and bool(flops.any())
    alone: Any = 0.0
    if product:
        inputs = table["m"][row] * table["k"][row] * groups * _matrices(table, row)
        alone = inputs * unit.get("cpu.prepare") / rate
        starts = unit.get("cpu.slots") * unit.get("efficiency", 1.0) * rate * count
        busy = 0.5 * flops * instructions(table, row, unit) / starts
        sharing: Any = count
    else:
        sharing = np.minimum(count, np.maximum(groups, 1.0))
        slower = rate / unit.get("clock")
        busy = flops / (unit.vector_rate(table.kinds[row]) * slower * sharing) if flops.any() else 0
    home = unit.home_port()
    drawn = unit.get("cpu.stream") * sharing
    if home is not None:
        values = unit.machine.values
        drawn = np.minimum(drawn, values[f"{home}.bandwidth"] * values.get(f"{home}.efficiency", 1))
    waits = _barriers(table, row) * 2.0 * (count - 1.0) * unit.get("cpu.handoff")
    return alone + np.maximum(busy, moved / drawn) + waits


def _matrices(table: OpTable, row: int) -> int:
    """Return how many matrices a row multiplies by: query, key and value are three nodes."""
    return max(len(table.parts.get(row, ())), 1)


def _barriers(table: OpTable, row: int) -> float:
    kind = table.kinds[row]
    return 2.0 * _matrices(table, row) if kind == "gemm" else NODES.get(kind, 1.0)


def _joules(placed: PlacedOps, ops: Rows, seconds: Array, unit: UnitView, home: str) -> Array:
    """Return the energy of cores with a thread, and of what crosses the memory's port."""
    spent = seconds * threads(unit) * unit.get("cpu.core_power", np.nan)
    bits = sum(8.0 * placed.moved[c][ops] for c in BYTE_COLUMNS)
    total: Array = spent + bits * unit.machine.values.get(f"{home}.energy", np.nan)
    return total


def _stacked(values: list[Any]) -> Array:
    if not values:
        return np.zeros((0, 1))
    return np.stack(np.broadcast_arrays(*(np.atleast_1d(v) for v in values)))
