"""Compute inside a memory: MAC units at banks, bank groups or the buffer die.

With a `pim` block products and attention are priced as programs of DRAM commands: `products.py`
and `attention.py` map them to stages of commands, `stages.py` has their clocks in closed form,
`walk.py` issues them one by one, `energy.py` has the joules by path. Without the block rows take
their operations over the peak.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView
from opbyte.hw_models.compute.matrix import TiledMatrix
from opbyte.hw_models.compute.pim.attention import attention_clocks, head_counts
from opbyte.hw_models.compute.pim.device import PimDevice, level_of
from opbyte.hw_models.compute.pim.energy import total_joules, write_joules
from opbyte.hw_models.compute.pim.products import product
from opbyte.hw_models.compute.pim.stages import clocks
from opbyte.hw_models.compute.pim.stored import check_stored

#: Kinds of rows that one attention kernel consists of.
ATTENTION = frozenset({"score", "softmax", "context"})
#: Seconds and joules of one kernel, each (1 or points,).
_Price = tuple[Array, Array]


@UNITS.register("pim")
class ComputeInMemory(TiledMatrix):
    """Units inside a memory, priced by their commands."""

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over peak, see `UnitModel`.

        The bound leaves out a softmax that runs beside products, or whose time is a command's.

        Raises:
            UncoveredError: If the unit lacks a dtype, or banks hold something else.
        """
        block = unit.machine.unit(unit.path).config.pim
        if ideal and block is not None:
            _check_products(table, rows, unit)
        if not ideal or block is None or not (block.interleave or unit.get("vector") is None):
            return super().compute_seconds(table, rows, unit, ideal=ideal)
        others = np.array([table.kinds[row] != "softmax" for row in rows], bool)
        found = super().compute_seconds(table, rows[others], unit, ideal=True)
        seconds = np.zeros((len(rows), found.shape[1]))
        seconds[others] = found
        return seconds

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the prices of products with stored matrices and of attention.

        Raises:
            CapacityError: If a matrix does not fit in the device.
            ConfigError: If the block contradicts itself.
            UncoveredError: If the unit lacks a dtype, or an operator is a product of what no bank
                holds as the unit multiplies it, or attention in pieces, or nothing says how long
                a softmax takes.
        """
        if unit.machine.unit(unit.path).config.pim is None:
            return None
        found: list[int] = []
        prices: list[_Price] = []
        for op in ops:
            rows = np.flatnonzero(placed.op_of == op)
            kinds = {placed.table.kinds[row] for row in rows}
            if kinds & {"score", "context"} or (placed.table["m"][rows] > 0).any():
                found.append(int(op))
                prices.append(_priced(placed.table, rows, kinds, unit))
        if not found:
            return None
        home, _ = level_of(unit)
        seconds, joules = (np.stack(np.broadcast_arrays(*x)) for x in zip(*prices, strict=True))
        return KernelPrices(np.array(found), seconds, home, joules, holds=True)


def _check_products(table: OpTable, rows: Rows, unit: UnitView) -> None:
    """Refuse what no bank holds as the unit multiplies it, whose bound would be a price too."""
    for row in rows:
        if table.kinds[row] in ATTENTION - {"softmax"} or (table["m"][row] > 0).any():
            check_stored(table, int(row), _device(unit, table.dtypes[row]).name)


def _priced(table: OpTable, rows: Rows, kinds: set[str], unit: UnitView) -> _Price:
    if kinds - {"kv_append"} == ATTENTION:
        return _attention(table, rows, unit)
    if rows.size == 1 and not kinds & ATTENTION:
        return _product(table, int(rows[0]), unit)
    names = "+".join(table.names[row] for row in rows)
    raise UncoveredError(
        f"{unit.machine.name}: no model runs '{names}' in one piece on unit '{unit.path}'. fuse "
        "score, softmax and context (`fusion: attention`), and nothing else there"
    )


def _device(unit: UnitView, dtype: str) -> PimDevice:
    device = PimDevice.of(unit, dtype)
    assert device is not None, "asked only of a unit with a block"
    return device


def _attention(table: OpTable, rows: Rows, unit: UnitView) -> _Price:
    """Return the price of attention: one kernel for each of its segments, softmax and writes.

    Where heads interleave, the softmax of one runs beside the products of another.
    """
    products: Any = 0.0
    softmax = rows[[table.kinds[r] == "softmax" for r in rows]]
    operations = _plain(table["flops"][softmax].sum(axis=0))
    joules = operations * unit.get("energy.vector", np.nan)
    joules = joules + write_joules(unit, _plain(table["kv_write"][rows].sum(axis=0)))
    interleave = False
    for row in rows[[table.kinds[r] == "score" for r in rows]]:
        dtype = table.dtypes[row]
        d = _device(unit, dtype)
        _check_cache(table, rows, int(row), d.name)
        m, n, k, heads = (_plain(table[c][row]) for c in ("m", "n", "k", "groups"))
        products = products + attention_clocks(d, heads, n, k, m) / d.clock
        counts = head_counts(d, heads, n, k, m)
        joules = joules + total_joules(d, unit, counts, dtype, leave=d.transposed)
        interleave = d.interleave
    apart = _softmax_seconds(operations, unit)
    seconds = np.maximum(products, apart) if interleave else products + apart
    return np.atleast_1d(seconds), np.atleast_1d(joules)


def _check_cache(table: OpTable, rows: Rows, score: int, who: str) -> None:
    """Refuse attention whose keys or values are none that banks hold side by side."""
    end = table.names[score].removeprefix("score")
    context = next(
        int(r) for r in rows
        if table.kinds[r] == "context" and table.names[r].removeprefix("context") == end
    )  # fmt: skip
    for row in (score, context):
        check_stored(table, row, who)
    if (table["k"][score] != table["n"][context]).any():
        raise UncoveredError(
            f"{who} has no model of keys and values of different widths "
            f"({table['k'][score].max():g} and {table['n'][context].max():g}). map attention to "
            "another unit"
        )


def _softmax_seconds(operations: Any, unit: UnitView) -> Any:
    """Return the seconds of the softmax that are not a command's."""
    if unit.get("vector") is not None:
        return operations / unit.vector_rate("softmax")
    if np.any(np.asarray(unit.get("pim.timing.softmax")) <= 0):
        raise UncoveredError(
            f"{unit.machine.name}: nothing says how long a softmax takes beside unit "
            f"'{unit.path}'. give its `vector` rate, or `pim.timing.softmax`"
        )
    return 0.0


def _product(table: OpTable, row: int, unit: UnitView) -> _Price:
    dtype = table.dtypes[row]
    d = _device(unit, dtype)
    check_stored(table, row, d.name)
    program, counts = product(d, *(_plain(table[c][row]) for c in ("m", "n", "k", "groups")))
    seconds = clocks(d, program) / d.clock
    return np.atleast_1d(seconds), np.atleast_1d(total_joules(d, unit, counts, dtype))


def _plain(numbers: Array) -> Any:
    """Return one number as a float, which the closed forms take faster."""
    return float(numbers[0]) if len(numbers) == 1 else numbers
