"""What `opbyte explain` says about memories whose command timing is known."""

from __future__ import annotations

from typing import Any

from opbyte.hw_models.machine import Machine
from opbyte.hw_models.memory.rates import DEFAULT, MIXED, refresh_share, share
from opbyte.hw_models.technology import pins_of, standard_of

__all__ = ["shown_streams", "streams"]

#: Head of each column.
_HEADS = {
    "port": "port",
    "technology": "technology",
    "taken": "efficiency taken",
    "kernel": "DRAM kernel: reads",
    "mixed": "2 reads to 1 write",
    "refresh": "refresh alone",
}


def streams(machine: Machine) -> list[dict[str, Any]]:
    """Return what the DRAM command kernel delivers beside the efficiency that prices take.

    Returns:
        For each port at the pins: `taken` and the shares of the peak for reads, for two reads to a
        write, and what refresh leaves.
    """
    found = []
    for path, memory in machine.memories.items():
        standard, pins = standard_of(memory.config), pins_of(memory.config)
        if standard is None or pins is None:
            continue
        access = memory.config.access or DEFAULT
        reads, both = (access.model_copy(update={"read_pct": a.read_pct}) for a in (DEFAULT, MIXED))
        found.append(
            {
                "port": f"{path}.{pins}",
                "technology": standard.title,
                "taken": machine.values.get(f"{path}.{pins}.efficiency"),
                "kernel": share(standard, reads),
                "mixed": share(standard, both),
                "refresh": refresh_share(standard, access),
            }
        )
    return found


def shown_streams(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table of `streams`."""
    rows = [
        [f"{x:.3f}" if isinstance(x, float) else str(x or "none") for x in row.values()]
        for row in found
    ]
    return list(_HEADS.values()), rows
