"""Demand of a table's collectives: on the link between devices, and between nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    links = dict.fromkeys(placed.collective_link[rows].tolist())
    callers = {link: _caller(placed, machine, link, rates, latencies) for link in links}
    wide = (table["payload"], table["participants"], rates, latencies)
    measured = any(caller is not None for caller in callers.values())
    points = max(machine.points if measured else 1, *(v.shape[1] for v in wide))
    shape = (len(placed), len(placed.resources), points)
    wires = Wires(np.zeros(shape), np.zeros(shape), np.zeros((len(placed), points)))
    kinds = np.array(table.kinds)
    for link, caller in callers.items():
        here = rows[placed.collective_link[rows] == link]
        for kind in dict.fromkeys(kinds[here]):
            mine = here[kinds[here] == kind]
            if caller is None:
                _add_steps(wires, placed, machine, (link, mine), kind, rates, latencies)
            else:
                _add_call(wires, placed, machine, (link, mine), kind, rates, caller, ideal=ideal)
    return wires


def _both(machine: Machine, name: str, kind: str) -> float:
    """Return how often a link carries a byte that one participant sends and another receives."""
    config = machine.config.links[name]
    half = config.duplex == "half" and config.topology != "bus" and kind != "send"
    return 2.0 if half else 1.0


def _add_steps(
    wires: Wires,
    placed: PlacedOps,
    machine: Machine,
    at: tuple[Any, Any],
    kind: str,
    rates: Array,
    latencies: Array,
) -> None:
    """Add collectives that are steps of a link's latency, and bytes."""
    (link, mine), table = at, placed.table
    ops, s, p = placed.op_of[mine], table["payload"][mine], table["participants"][mine]
    name = placed.resources[link]
    cost = collective_cost(kind, machine.config.links[name].topology, s, p)
    two_ways = _both(machine, name, kind)
    np.add.at(wires.bytes, (ops, link), cost.wire_bytes)
    np.add.at(wires.busy, (ops, link), two_ways * cost.wire_bytes / rates[link])
    np.add.at(wires.seconds, ops, cost.steps * latencies[link])


def _add_call(
    wires: Wires,
    placed: PlacedOps,
    machine: Machine,
    at: tuple[Any, Any],
    kind: str,
    rates: Array,
    caller: Caller,
    *,
    ideal: bool,
) -> None:
    """Add collectives of a library, or of kernels of the serving software."""
    (link, mine), table, network = at, placed.table, placed.network
    ops, s, p = placed.op_of[mine], table["payload"][mine], table["participants"][mine]
    if ideal:
        least, out = caller.least_bytes(kind, s, p)
        two_ways = _both(machine, placed.resources[link], kind)
        np.add.at(wires.bytes, (ops, link), least)
        np.add.at(wires.busy, (ops, link), two_ways * least / rates[link])
        if network >= 0:
            np.add.at(wires.bytes, (ops, network), out)
            np.add.at(wires.busy, (ops, network), out / rates[network])
        return
    call = caller.cost(kind, s, p)
    np.add.at(wires.bytes, (ops, link), call.wire_bytes)
    np.add.at(wires.busy, (ops, link), call.busy)
    np.add.at(wires.seconds, ops, call.seconds)
    if network >= 0:
        np.add.at(wires.bytes, (ops, network), call.net_bytes)
        np.add.at(wires.busy, (ops, network), call.net_busy)


def _caller(
    placed: PlacedOps, machine: Machine, link: int, rates: Array, latencies: Array
) -> Caller | None:
    name = placed.resources[link]
    if machine.config.links[name].collectives is None and not placed.direct:
        return None
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
