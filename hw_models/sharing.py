"""How long several ports of one memory keep its cells busy, and operators that did not run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps

if TYPE_CHECKING:
    from opbyte.hw_models.price import Demand


def with_arrays(placed: PlacedOps, crossing: Array, busy: Array, rates: Array) -> Array:
    """Return busy seconds with those of cells that several ports share.

    `exclusive`: the sum over ports of bytes / rate of the port. `sum`: the sum of bytes over the
    rate of the fastest port.

    Args:
        crossing: Bytes on each resource, (ops, resources, points).
        busy: Their busy seconds, (ops, resources, points).
        rates: Effective rate of each resource, (resources, points).
    """
    if not placed.arrays:
        return busy
    shared = busy.copy()
    for array in placed.arrays:
        ports = list(array.ports)
        if array.exclusive:
            shared[:, array.resource] = busy[:, ports].sum(axis=1)
        else:
            shared[:, array.resource] = crossing[:, ports].sum(axis=1) / rates[ports].max(axis=0)
    return shared


def chosen(demand: Demand) -> Demand:
    """Return a demand in which operators that were not chosen demand nothing."""
    runs = demand.placed.runs
    if runs is None or runs.all():
        return demand
    only = runs > 0

    def of(values: Array) -> Array:
        mask = only if values.ndim == 2 else only[:, None]
        return np.where(mask, values, 0.0)

    return replace(
        demand,
        compute=of(demand.compute),
        busy=of(demand.busy),
        floor=of(demand.floor),
        latency=of(demand.latency),
        joules=of(demand.joules),
        flops=of(demand.flops),
        bytes=of(demand.bytes),
        moved={key: of(values) for key, values in demand.moved.items()},
    )
