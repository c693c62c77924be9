"""Products that a unit of the attention group takes a share of (`assist` in a mapping).

Decode attention leaves its devices idle while the rest of a layer runs. With `assist` their units
take columns of some products, of which their memory holds a copy, so that both end together. With
t the seconds of a product on its own unit and p on the assisting one, x those of its input over
the link and y of its whole output, the assisting unit gets the share 1 - s of the columns with

    s t = x + (1 - s) (p + y)        and nothing where x >= t

AttAcc (ASPLOS 2024) calls it feed-forward co-processing. Its simulator leaves out the link, and
takes nominal rates for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import Rows, UnitView
from opbyte.hw_models.price import Demand, resource_rate
from opbyte.hw_models.waiting import first_access
from opbyte.sim.place import Placer


def assisted(placer: Placer, demand: Demand) -> tuple[Demand, Any]:
    """Return the demand with the products that the mapping's `assist` shares, and what it copies.

    The latter are the bytes of weights that one assisting device holds, (1 or points,).

    Raises:
        ConfigError: If the unit belongs to another group than decode attention's, or the groups
            have different numbers of devices.
        UncoveredError: If the unit's kind prices no whole products.
    """
    assist, placed = placer.mapping.assist, demand.placed
    if assist is None:
        return demand, 0.0
    view = UnitView(placer.machine, placer.machine.unit(assist.unit).path)
    _check(placer, view)
    words = set(assist.ops)
    chosen = [
        op for op in np.unique(placed.op_of)
        if all(
            words & placed.table.labels[row] and (placed.table["weight"][row] > 0).any()
            and (placed.table["m"][row] > 0).any()
            for row in np.flatnonzero(placed.op_of == op)
        )
    ]  # fmt: skip
    ops: Rows = np.array(chosen, np.int64)
    if not ops.size:
        return demand, 0.0
    model = view.model
    prices = model.kernel_prices(placed, ops, view) if hasattr(model, "kernel_prices") else None
    if prices is None or prices.joules is None:
        raise UncoveredError(
            f"{placer.machine.name}: unit '{view.path}' has no `pim` block, so nothing says what "
            "whole products take there. give it one, or leave `assist` out"
        )
    return _shared(placer, demand, ops, prices.seconds, prices.joules, prices.home)


def with_copies(
    placer: Placer, occupancy: Mapping[str, Any], copied: Iterable[Any]
) -> dict[str, Any]:
    """Return the bytes taken in each memory with the most that any phase copies."""
    assist = placer.mapping.assist
    if assist is None:
        return dict(occupancy)
    machine = placer.machine
    tier = machine.unit_ports(machine.unit(assist.unit).path)[0].rpartition(".")[0]
    most = np.max(np.broadcast_arrays(*(np.atleast_1d(c) for c in copied)), axis=0)
    placer.holders.setdefault(tier, []).append("copies of weights")
    return {**occupancy, tier: occupancy.get(tier, 0.0) + most}


def _check(placer: Placer, view: UnitView) -> None:
    groups = placer.groups
    if not groups.attends(view.path):
        raise ConfigError.one(
            "", "mapping.assist.unit", "must belong to the group of decode attention", view.path,
            "name a unit of that group",
        )  # fmt: skip
    if groups.devices(view.path) != placer.devices:
        raise ConfigError.one(
            "", "mapping.assist", "needs as many devices of both groups",
            f"{placer.devices} and {groups.devices(view.path)}", "change tp or heads",
        )  # fmt: skip


def _shared(
    placer: Placer, demand: Demand, ops: Rows, there: Array, spent: Array, home: str
) -> tuple[Demand, Any]:
    """Return the demand whose products `ops` take `there` seconds and `spent` joules if moved."""
    placed, alone = demand.placed, demand.duration[ops]
    sent, returned = _bytes(placed, ops)
    links = placer.links_between(placer.groups.part, placer.groups.attention)
    rate = np.min([resource_rate(placer.machine, link, 1.0) for link in links], axis=0)
    before = first_access(placer.machine, links) + sent / rate
    after = there + returned / rate
    share = np.where(before < alone, (before + after) / (alone + after), 1.0)
    along = np.minimum(share * alone, alone)
    bits = 8.0 * sum(placer.machine.values.get(f"{link}.energy", np.nan) for link in links)
    moved = np.where(share < 1.0, spent + returned * bits, 0.0) * (1.0 - share)
    joules = share * demand.joules[ops] + moved + np.where(share < 1.0, sent * bits, 0.0)
    weights = placed.moved["weight"][ops]
    busy, size = demand.busy.copy(), demand.bytes.copy()
    busy[ops], size[ops] = busy[ops] * share[:, None], size[ops] * share[:, None]
    if home in placed.resources:
        size[ops, placed.resources.index(home)] += (1.0 - share) * weights
    result = replace(
        demand,
        compute=_with(demand.compute, ops, along),
        busy=busy,
        floor=_with(demand.floor, ops, 0.0),
        latency=_with(demand.latency, ops, 0.0),
        joules=_with(demand.joules, ops, joules),
        bytes=size,
    )
    copied = ((1.0 - share) * weights * placed.repeats[ops, None]).sum(axis=0)
    return result, copied


def _bytes(placed: PlacedOps, ops: Rows) -> tuple[Array, Array]:
    """Return bytes of input and output of each operator, (ops, 1 or points)."""
    table = placed.table
    rows = placed.single(ops)
    columns = np.maximum(table["n"][rows], 1.0)
    size = table["out_bytes"][rows] / (table["m"][rows] * columns * table["groups"][rows])
    return size * table["m"][rows] * table["k"][rows] * table["groups"][rows], table["out_bytes"][
        rows
    ]


def _with(values: Array, ops: Rows, new: Any) -> Array:
    changed = values.copy()
    changed[ops] = new
    return changed
