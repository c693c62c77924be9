"""Pages: data of a class that lies in pieces at random places of a memory.

A stream opens a row and reads all of it. Of a page that is cut over the channels, each has a few
bursts, whose rows have to be opened first: the port takes longer by the ratio of both shares that
the DRAM command kernel finds (`opbyte.hw_models.memory.rates`). A page of p bytes that goes round C
channels with i bytes on each leaves

    min(p, i ceil(p / (i C)))

bytes that follow each other on a channel. Many pages are on their way at once.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.core.placed import MOVED, PlacedOps, written_name
from opbyte.hw_models.compute.base import KernelPrices, UnitView
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Memory
from opbyte.hw_models.memory.flash_rates import page_rate, stream_rate
from opbyte.hw_models.memory.rates import page_on_channel, share
from opbyte.hw_models.technology import flash_of, pins_of, standard_of

__all__ = ["turning_pages"]


def turning_pages(
    placed: PlacedOps, views: list[UnitView], totals: Array, kernels: dict[int, KernelPrices]
) -> Array:
    """Return the bytes that would take as long as pages take longer than streams.

    Args:
        totals: Bytes that each operator moves, (ops, MOVED, points).
    Returns:
        Bytes, (ops, resources, points).
    Raises:
        UncoveredError: Where nothing says how pages are read.
    """
    extra = np.zeros((len(placed), len(placed.resources), totals.shape[2]))
    for (u, c), page in placed.pages.items():
        ops = (placed.unit_of == u) & (totals[:, c] > 0).any(axis=1)
        if u in kernels and kernels[u].paged:
            ops[kernels[u].ops] = False
        machine, name = views[u].machine, f"{MOVED[c]} in pages of {page:g} B"
        for r in np.flatnonzero(placed.routes[u, c]) if ops.any() else ():
            resource = placed.resources[r]
            if u in kernels and kernels[u].home == resource and ops[kernels[u].ops].any():
                raise UncoveredError(
                    f"{machine.name}: {name}: kernels of unit '{views[u].path}' stream as they "
                    "were fitted or timed, however their data lie. leave out `page`"
                )
            try:
                longer = _slowdown(machine, written_name(resource), page) - 1.0
            except ValueError as error:
                raise UncoveredError(f"{machine.name}: {name}: {error}") from None
            extra[ops, r] += longer * placed.routes[u, c, r] * totals[ops, c]
    return extra


def _slowdown(machine: Machine, resource: str, page: float) -> float:
    """Return how much longer pages at random places take at a port than a stream, at least 1.

    Args:
        resource: Short path of the port.
        page: Bytes that lie together.

    Raises:
        ValueError: If the memory does not say how its channels hold a page.
    """
    tier, _, port = resource.rpartition(".")
    if tier not in machine.memories:
        return 1.0
    memory = machine.memories[tier].config
    access, standard = memory.access, standard_of(memory)
    if memory.kind == "sram" or (access is not None and pins_of(memory) != port):
        return 1.0
    if memory.kind == "flash":
        return _flash_slowdown(memory, port, page)
    if standard is None or memory.channels is None or access is None or access.interleave is None:
        raise ValueError(
            f"pages in '{tier}' need `channels`, `access.interleave` and a technology whose "
            "command timing is known"
        )
    block = page_on_channel(page, access.interleave.value, memory.channels)
    return max(1.0, share(standard, access) / share(standard, access, block))


def _flash_slowdown(memory: Memory, port: str, page: float) -> float:
    """Return how much longer page reads of flash take than a stream, at least 1."""
    device = flash_of(memory, port)
    if device is None:
        raise ValueError("pages of flash need a `technology` that is a flash device")
    return max(1.0, stream_rate(device) / page_rate(device, int(page)))
