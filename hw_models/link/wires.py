"""Demand of a table's collectives: on the link between devices, and between nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.link.calls import Caller, Network
from opbyte.hw_models.link.collectives import collective_cost
from opbyte.hw_models.machine import Machine


@dataclass(frozen=True)
class Wires:
    """What collectives add to operators.

    Attributes:
        bytes: On each resource, (ops, resources, points).
        busy: Seconds that each resource is busy with them, (ops, resources, points).
        seconds: Of each operator beside its bytes, (ops, points).
    """

    bytes: Array
    busy: Array
    seconds: Array


def collective_wires(
    placed: PlacedOps, machine: Machine, rates: Array, latencies: Array, *, ideal: bool
) -> Wires:
    """Return what a table's collectives add.

    Args:
        rates: Effective rate of each resource for one device, (resources, points).
        latencies: Of each resource, (resources, points).
        ideal: Peaks only, fewest bytes: the `bound` fidelity.
    Raises:
        UncoveredError: For a collective or topology that no model covers.
    """
    table = placed.table
    rows = np.flatnonzero(placed.collective_link >= 0)
    link = int(placed.collective_link[rows[0]])
    config = machine.config.links[placed.resources[link]]
    caller = None
    if config.collectives is not None or placed.direct:
        caller = _caller(placed, machine, link, rates, latencies)
    both = 2.0 if config.duplex == "half" and config.topology != "bus" else 1.0
    wide = (table["payload"], table["participants"], rates, latencies)
    points = max(machine.points if caller else 1, *(v.shape[1] for v in wide))
    shape = (len(placed), len(placed.resources), points)
    wire, busy, seconds = np.zeros(shape), np.zeros(shape), np.zeros((len(placed), points))
    kinds = np.array(table.kinds)
    for kind in dict.fromkeys(kinds[rows]):
        mine = rows[kinds[rows] == kind]
        ops, s, p = placed.op_of[mine], table["payload"][mine], table["participants"][mine]
        two_ways = 1.0 if kind == "send" else both
        if caller is None:
            cost = collective_cost(kind, config.topology, s, p)
            np.add.at(wire, (ops, link), cost.wire_bytes)
            np.add.at(busy, (ops, link), two_ways * cost.wire_bytes / rates[link])
            np.add.at(seconds, ops, cost.steps * latencies[link])
        elif ideal:
            least, out = caller.least_bytes(kind, s, p)
            np.add.at(wire, (ops, link), least)
            np.add.at(busy, (ops, link), two_ways * least / rates[link])
            if placed.network >= 0:
                np.add.at(wire, (ops, placed.network), out)
                np.add.at(busy, (ops, placed.network), out / rates[placed.network])
        else:
            call = caller.cost(kind, s, p)
            np.add.at(wire, (ops, link), call.wire_bytes)
            np.add.at(busy, (ops, link), call.busy)
            np.add.at(seconds, ops, call.seconds)
            if placed.network >= 0:
                np.add.at(wire, (ops, placed.network), call.net_bytes)
                np.add.at(busy, (ops, placed.network), call.net_busy)
    return Wires(wire, busy, seconds)


def _caller(
    placed: PlacedOps, machine: Machine, link: int, rates: Array, latencies: Array
) -> Caller:
    name = placed.resources[link]
    network = None
    if placed.network >= 0:
        node_rate = rates[placed.network] * placed.local
        network = Network(placed.local, node_rate, latencies[placed.network])
    return Caller(
        machine.config.links[name],
        lambda word, default: machine.values.get(f"{name}.{word}", default),
        np.asarray(machine.values[f"{name}.bandwidth"] * placed.instances[link]),
        network,
        placed.direct,
    )
