"""How long a network takes whose neurons are read while it runs: three kinds of overlap.

`sim/neuron_clusters.py` has the equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array, OpTable
from opbyte.core.routes import Neurons
from opbyte.hw_models.price import Demand, resource_rate
from opbyte.sim.analytic import block_paths
from opbyte.sim.neurons import network
from opbyte.sim.place import Placer


@dataclass(frozen=True)
class Reads:
    """The reads of one layer: bytes, seconds, J, and busy seconds by resource, (points,) each."""

    bytes: Array
    seconds: Array
    start: Array
    joules: Array
    busy: dict[str, Array]


def network_ops(demand: Demand) -> Any:
    """Return the operators that are products of networks, in the order in which they run."""
    rows = np.flatnonzero(network(demand.placed.table))
    return np.unique(demand.placed.op_of[rows])


@dataclass(frozen=True)
class Times:
    """Seconds of each block, (blocks, points), and how often it runs, (blocks,)."""

    rest: Array
    network: Array
    counts: Array
    order: npt.NDArray[np.int64]


def times(
    placer: Placer,
    cold: Demand,
    hot: Demand,
    neurons: Neurons,
    reads: Reads,
    any_hot: bool,
    *,
    ideal: bool,
) -> Times:
    """Return the time of each block."""
    ops = network_ops(cold)
    blocks = len(cold.placed.table.blocks)
    counts = np.bincount(cold.placed.table.order, minlength=blocks).astype(float)
    seconds = cold.duration
    late = reads.start + reads.seconds
    points = max(seconds.shape[1], late.shape[0])
    paths = np.broadcast_to(block_paths(cold, seconds), (blocks, points)).copy()
    own = np.zeros((blocks, points))
    np.add.at(own, cold.placed.block_of[ops], seconds[ops])
    cells = _cell_seconds(placer, cold, hot, any_hot, ideal=ideal)
    found, has = np.zeros((blocks, points)), np.zeros(blocks, bool)
    for block in np.unique(cold.placed.block_of[ops]):
        mine = ops[cold.placed.block_of[ops] == block]
        has[block] = True
        busy = np.maximum(seconds[mine], cells[mine])
        if any_hot:
            busy = np.maximum(busy, hot.duration[mine])
        if neurons.overlap == "none":
            found[block] = busy.sum(axis=0) + late
        elif neurons.overlap == "cluster":
            total = [seconds[mine].sum(axis=0), cells[mine].sum(axis=0)]
            if any_hot:
                total.append(hot.duration[mine].sum(axis=0))
            last = np.where(late > 0, late + total[0] / neurons.clusters, 0.0)
            found[block] = np.max(np.broadcast_arrays(*total, last), axis=0)
        else:
            found[block] = _matrices(cold.placed.table, cold, mine, busy, seconds, neurons, reads)
    counts_of = np.where(has, counts, 0.0)
    return Times(paths - own, found, counts_of, cold.placed.table.order)


def _matrices(
    table: OpTable,
    cold: Demand,
    ops: Any,
    busy: Array,
    seconds: Array,
    neurons: Neurons,
    reads: Reads,
) -> Array:
    """Return the time of a network whose matrices wait for each other."""
    total: Any = 0.0
    columns = ("weight", "expert")
    share = np.array(
        [sum(float(table[c][cold.placed.op_of == op].sum()) for c in columns) for op in ops]
    )
    share = share / share.sum()
    if neurons.bundle:
        share = np.eye(len(ops))[0]
    for i in range(len(ops)):
        late = np.where(share[i] > 0, reads.start + share[i] * reads.seconds, 0.0)
        last = np.where(late > 0, late + seconds[ops[i]] / neurons.clusters, 0.0)
        total = total + np.maximum(busy[i], last)
    return np.asarray(total)


def _cell_seconds(
    placer: Placer, cold: Demand, hot: Demand, any_hot: bool, *, ideal: bool
) -> Array:
    """Return the seconds of products in memories that both units read, (ops, points).

    Bytes through all ports over the rate of the fastest one, as ports that share cells take.
    """
    machine = placer.machine
    total: Any = np.zeros((len(cold.placed), 1))
    for demand in (cold, hot) if any_hot else (cold,):
        for i, name in enumerate(demand.placed.resources):
            tier = name.rpartition(".")[0]
            if tier in machine.memories:
                ports = [f"{tier}.{port}" for port in machine.memory(tier).config.ports]
                rates = [
                    resource_rate(machine, port, placer.instances(port), ideal=ideal)
                    for port in ports
                ]
                fastest = np.max(np.broadcast_arrays(*map(np.atleast_1d, rates)), axis=0)
                total = total + demand.bytes[:, i] / fastest
    return np.asarray(total)
