"""Unit kind `csd_engine`: decode attention behind the channels of a computational drive.

Pages of all channels pass a filter each, which drops what is not asked for. What is left feeds
kernels of a GEMV and a softmax; scores wait in the drive's DRAM, where new tokens are held, too,
until a page is full. With N heads of sequences, which follow each other through the stages,

    t = first page + max over stages of u + (sum of u - max of u) / N

    u(flash)    bytes of whole pages / rate of a stream, or of pages at random places
    u(filter)   bytes of whole pages / (channels * filter * clock)
    u(GEMV)     products / (kernels * width * clock)
    u(softmax)  scores / (kernels * exponentials * clock)
    u(argtopk)  scores of the first look / (sort * clock)
    u(DRAM)     scores, written and read, / rate

docs/machines/csd.md derives it and says what is published (InstInfer, arXiv 2409.04992).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import MOVED, PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView, is_matrix
from opbyte.hw_models.compute.csd.attention import Attention, Stages
from opbyte.hw_models.compute.csd.drive import Drive
from opbyte.hw_models.compute.csd.rates import gemv_rate, softmax_seconds


@UNITS.register("csd_engine")
class CsdEngine:
    """Kernels at a flash port (`inside`) and a DRAM, with a `clock` and a `csd` block."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return seconds of arithmetic alone, see `UnitModel`."""
        seconds: list[Any] = []
        for row, product in zip(rows, is_matrix(table, rows), strict=True):
            work = table["flops"][row]
            if not work.any():
                seconds.append(np.zeros(1))
            elif product:
                seconds.append(work / gemv_rate(unit, table.dtypes[row]))
            elif table.kinds[row] == "softmax":
                # At best it hides behind the products of other heads.
                seconds.append((0.0 if ideal else 1.0) * softmax_seconds(table, row, unit))
            else:
                seconds.append(work / unit.vector_rate(table.kinds[row]))
        return np.stack(np.broadcast_arrays(*seconds)) if seconds else np.zeros((0, 1))

    def row_joules(self, table: OpTable, row: int, unit: UnitView) -> Any:
        """Return the energy of a row's operations; the unit has one for all of them."""
        return table["flops"][row] * unit.get("energy.vector", np.nan)

    def area_m2(self, unit: UnitView) -> Any:
        """Return the area by the rate of the GEMVs."""
        return unit.get("area", np.nan) * gemv_rate(unit, "fp16")

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the prices of attention and cache writes, with what whole pages add.

        Raises:
            UncoveredError: If nothing says how pages are read or programmed, or some of the cache
                is not behind the engine's flash port.
        """
        drive = Drive.of(unit)
        table = placed.table
        known = ("score", "softmax", "context", "kv_append")
        rows = np.flatnonzero(np.isin(placed.op_of, ops)).tolist()
        mine = np.unique([placed.op_of[r] for r in rows if table.kinds[r] in known])
        if drive is None or not mine.size:
            return None
        _check_cache(placed, unit, drive)
        attention = Attention(placed, unit, drive)
        seconds, again = [], []
        for op in mine:
            stages: Stages = {}
            moved: dict[tuple[str, str], Any] = {}
            for row in (r for r in rows if placed.op_of[r] == op):
                _add(stages, attention.stages(row))
                _add(moved, attention.moved(row))
            seconds.append(attention.seconds(int(op), stages))
            again.append(moved)
        causes = sorted({cause for one in again for cause in one})
        return KernelPrices(
            mine,
            np.stack(np.broadcast_arrays(*seconds)),
            drive.port,
            moved={
                cause: np.stack(
                    np.broadcast_arrays(*(np.atleast_1d(m.get(cause, 0.0)) for m in again))
                )
                for cause in causes
            },
            paged=True,
        )


def _check_cache(placed: PlacedOps, unit: UnitView, drive: Drive) -> None:
    """Refuse a cache that the engine does not read from its own flash."""
    if drive.port not in placed.resources:
        share = 0.0
    else:
        where = (placed.units.index(unit.path), MOVED.index("kv_read"))
        share = float(placed.routes[where][placed.resources.index(drive.port)])
    if share < 1.0 - 1e-9:
        raise UncoveredError(
            f"{unit.machine.name}: '{unit.path}' reads the whole cache from '{drive.port}', and "
            f"place.kv has {share:.0%} of it there. place all of it there"
        )


def _add(total: dict[Any, Any], part: dict[Any, Any]) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value
