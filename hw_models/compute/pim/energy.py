"""Energy of a kernel by path: activation, cell, column decoder, bank group, TSV, outside.

A MAC command reads a column of every unit, padding included; a move carries a column between the
units and the buffer die. Loads come from outside, and results leave, except that scores and weights
of attention stay where the softmax is on the buffer die (`context: lanes`):

    path               bank unit    bank-group unit    buffer unit
    cell, for a MAC       x                x                x
    column decoder      moves              x                x
    bank group, TSV     moves            moves              x
    outside         loads, results   loads, results   loads, results
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.compute.pim.products import Counts

#: Segments of the path, from the cell outwards, as the `energy` block names them.
SEGMENTS = ("cell", "column", "group", "tsv", "outside")
#: Segments between the cell and the units, by level.
_INSIDE = {"bank": 1, "bank_group": 2, "buffer": 4}


def path_joules(
    device: PimDevice, unit: UnitView, counts: Counts, dtype: str, *, leave: bool = True
) -> dict[str, Any]:
    """Return joules by path, `macs` and `activate` among them; NaN where the machine has none.

    Args:
        leave: Results leave the device.
    """
    d = device
    each = {name: 8.0 * unit.get(f"pim.energy.{name}", np.nan) for name in ("activate", *SEGMENTS)}
    read = counts.columns * d.units * d.column * counts.channels
    moves = dict(counts.moves)
    loads = moves.pop("load", 0.0) * d.column * counts.channels
    moves.pop("softmax", None)
    others = sum(moves.values(), start=0.0) * d.column * counts.channels
    left = moves.get("read", 0.0) * d.column * counts.channels if leave else 0.0
    inside = _INSIDE[d.level]
    joules = {"activate": counts.rows * d.units * d.row_bytes * counts.channels * each["activate"]}
    for i, name in enumerate(SEGMENTS):
        passing = read if i < inside else loads + (others if name != "outside" else left)
        joules[name] = passing * each[name]
    executed = 2.0 * read / d.column * d.lanes
    joules["macs"] = executed * unit.energy(dtype)
    return joules


def total_joules(
    device: PimDevice, unit: UnitView, counts: Counts, dtype: str, *, leave: bool = True
) -> Any:
    """Return the joules of a kernel, see `path_joules`."""
    return sum(path_joules(device, unit, counts, dtype, leave=leave).values(), start=0.0)


def write_joules(unit: UnitView, size: Any) -> Any:
    """Return the joules of bytes that come from outside into the cells."""
    return 8.0 * size * sum(unit.get(f"pim.energy.{name}", np.nan) for name in SEGMENTS)
