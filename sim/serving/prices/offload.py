"""Prices of iterations whose experts are copied from a slow memory when they are needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.sim.expert_blocks import first_expert_rows
from opbyte.sim.expert_misses import expected_misses
from opbyte.sim.expert_offload import Experts
from opbyte.sim.serving.prices.graph import Graphs, Integers
from opbyte.sim.serving.prices.layout import BUSY, SECONDS
from opbyte.sim.serving.prices.offload_table import PREFETCH, OffloadTable
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing


def offload_table(
    graphs: Graphs,
    experts: Experts,
    model: Model,
    routing: Routing,
    mapping: SoftwareMapping,
    most: tuple[int, int],
) -> tuple[OffloadTable, tuple[str, ...]]:
    """Return the table, and its resources: those of the graphs, then others that copies take.

    Args:
        graphs: Of iterations whose experts are all in the fast memory.
        experts: How they are copied, and how many are kept.
        mapping: Of the graphs.
        most: Tokens and sequences at most.
    Raises:
        UncoveredError: If operators and copies share a way, or experts run apart from attention.
    """
    copy, names = experts.copy, graphs.names
    for demand in (d for kind in graphs.kinds.all for d in kind.demands):
        for i, name in enumerate(demand.placed.resources):
            if name in copy.path[:-1] and demand.busy[:, i].any():
                raise UncoveredError(
                    f"operators and copies of experts both use '{name}', and no model shares it "
                    "between them yet. place other tensors elsewhere"
                )
    extra = tuple(name for name in copy.path if name not in names.resources)
    resources = (*names.resources, *extra)
    placed = graphs.kinds.both.demands[0].placed
    layer_of = np.full(len(names.counts), -1, np.int64)
    layer_of[list(graphs.layers)] = np.arange(len(graphs.layers))
    tokens = most[0]
    ports = slice(BUSY, BUSY + len(names.resources))
    spans = np.zeros((2, len(names.counts), max(most) + 1))
    for i, sweep in enumerate(graphs.sweeps):
        columns = [SECONDS, *range(ports.start, ports.stop)]
        longest = sweep.blocks[:, :, columns].max(axis=2)[:, : max(most) + 1]
        spans[i, :, : longest.shape[1]] = longest
    # The head is priced by sequences, with decodes alone.
    spans[1, names.head] = spans[0, names.head]
    return OffloadTable(
        graph=graphs.table,
        order=placed.table.order.astype(np.int64),
        layer_of=layer_of,
        head=names.head,
        spans=spans,
        gates=_gates(graphs),
        misses=_misses(experts, model, routing, mapping, tokens),
        copy=np.array([float(copy.seconds[0]), float(copy.joules[0])]),
        busy=np.array([float(copy.busy[r][0]) if r in copy.busy else 0.0 for r in resources]),
        prefetch=PREFETCH.index(experts.cache.prefetch),
        lasts=np.zeros(len(graphs.layers)),
        leads=np.zeros(len(graphs.layers)),
    ), resources


def _gates(graphs: Graphs) -> Integers:
    """Return `OffloadTable.gates`.

    Raises:
        UncoveredError: If a layer has experts and no attention.
    """
    gates = np.full((3, len(graphs.layers)), -1, np.int64)
    for i, (kind, nodes) in enumerate(zip(graphs.kinds.all, graphs.nodes, strict=True)):
        placed, start = kind.demands[0].placed, int(graphs.table.starts[i])
        for block, row in first_expert_rows(placed.table).items():
            if block not in graphs.layers:
                raise UncoveredError(
                    f"block '{placed.table.blocks[block]}' has experts and nothing that depends "
                    "on contexts, and no model copies experts there. use a mapping without a cache"
                )
            gates[i, graphs.layers.index(block)] = start + nodes[int(placed.op_of[row])]
    return gates


def _misses(
    experts: Experts, model: Model, routing: Routing, mapping: SoftwareMapping, most: int
) -> Array:
    """Return `OffloadTable.misses`: tokens of prompts draw anew, whatever the locality."""
    tokens = np.arange(1.0, most + 1.0)
    (phase,) = Mixed(model, decodes=tokens, context=1.0, routing=routing).lowered(mapping.degrees)
    table = phase.table
    first = first_expert_rows(table)
    rows = [first[b] for b in table.order if b in first]
    passing = np.stack(np.broadcast_arrays(*(np.atleast_1d(table.spreads[r].tokens) for r in rows)))
    distinct = np.broadcast_to(table["groups"][rows], passing.shape)
    found = np.zeros((2, most + 1, len(rows)))
    for i, how in enumerate((replace(routing, locality=0.0), routing)):
        misses, _ = expected_misses(how, experts, distinct, passing)
        found[i, 1:] = np.broadcast_to(misses, passing.shape).T
        if experts.cache.evict == "none" or routing.locality == 0.0:
            found[1] = found[0]
            break
    return found
