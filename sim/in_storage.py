"""What attention in computational drives keeps beside the cache: tokens that fill no page yet.

New tokens wait in a drive's DRAM until a page by token is full: groups of g = page / (d e) tokens
of all layers and sequences, keys and values. A batch that has begun together fills its pages
together, so the DRAM needs room for all of them at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.hw_models.compute.csd.attention import group_tokens
from opbyte.sim.place import Placer
from opbyte.sim.result import PhaseRun

__all__ = ["WAITING", "appends", "dram_of", "held_bytes", "with_token_groups"]

#: What a `CapacityError` calls them.
WAITING = "new tokens that fill no page"


def with_token_groups(
    placer: Placer, occupancy: dict[str, Any], runs: list[PhaseRun]
) -> dict[str, Any]:
    """Return the bytes taken in one instance of each memory, held tokens included."""
    found = dict(occupancy)
    for run in runs:
        for unit in placer.mapping.units:
            memory = dram_of(placer, unit)
            if memory is None or unit not in run.demand.placed.units:
                continue
            held = held_bytes(run, unit)
            if not np.any(held > 0):
                continue
            found[memory] = np.maximum(found.get(memory, 0.0), occupancy.get(memory, 0.0) + held)
            if WAITING not in placer.holders.setdefault(memory, []):
                placer.holders[memory].append(WAITING)
    return found


def dram_of(placer: Placer, unit: str) -> str | None:
    """Return the DRAM of a drive's engine, None where there is none."""
    machine = placer.machine
    if machine.unit(unit).config.kind != "csd_engine":
        return None
    tiers = [port.rpartition(".")[0] for port in machine.unit_ports(unit)]
    return next((t for t in tiers if machine.memory(t).config.kind == "dram"), None)


def appends(run: PhaseRun, unit: str) -> list[int]:
    """Return the rows that append tokens of decodes to a cache on a unit."""
    placed = run.demand.placed
    table = placed.table
    return [
        row
        for row, kind in enumerate(table.kinds)
        if kind == "kv_append"
        and placed.unit_of[placed.op_of[row]] == placed.units.index(unit)
        and "prefill" not in table.labels[row]
    ]


def held_bytes(run: PhaseRun, unit: str) -> Array:
    """Return the bytes of a group of new tokens of all layers in one drive, (1 or points,)."""
    placed = run.demand.placed
    table = placed.table
    total: Array = np.zeros(1)
    for row in appends(run, unit):
        tokens = group_tokens(placed, unit, row)
        total = total + tokens * table["kv_write"][row] * table.repeats[row]
    return total
