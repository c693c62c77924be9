"""The price of an iteration whose experts wait for copies from a slow memory.

    seconds = max(iteration without copies, sum of blocks + waits of layers with experts,
                  what steps and copies keep busy)

A block takes the longer of its path and its busiest resource. How many experts a layer misses is
expected of the iteration's tokens (`expert_misses`); when its copies start, and how much of them
other operators hide, is that of `expert_offload`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.prices.batch import Batch, heads_of, tokens_of
from opbyte.sim.serving.prices.graph_table import (
    WITHOUT_DECODES,
    WITHOUT_PROMPTS,
    GraphTable,
    batch_cost,
    kind_of,
    start_of,
)
from opbyte.sim.serving.prices.layout import forget

#: When copies start, by its number.
PREFETCH = ("none", "next_block_gate", "all")
ON_DEMAND, NEXT_GATE, EVERYTHING = range(3)


class OffloadTable(NamedTuple):
    """Arrays of one model on one machine; `offload.offload_table` makes them.

    Attributes:
        graph: The iteration without copies, one batch.
        order: Block of each run, as they run, (runs,).
        layer_of: Layer of the graph that a block is, -1 for none, (blocks,).
        head: Which block is the LM head.
        spans: Seconds of the blocks that are no layer of the graph, by tokens, of the head by
            sequences, (2, blocks, tokens or sequences + 1).
        gates: Node of each layer's first experts in each graph, -1 without experts, (3, layers).
        misses: Experts that each layer with experts misses, where prompts are read and where not,
            (2, tokens + 1, layers with experts).
        copy: Seconds and joules of one copy, (2,).
        busy: Seconds that one copy keeps each resource busy: those of the graph, then others,
            (resources,).
        prefetch: When copies start.
        lasts, leads: Scratch, seconds of each layer and of what leads to its experts, (layers,).
    """

    graph: GraphTable
    order: npt.NDArray[np.int64]
    layer_of: npt.NDArray[np.int64]
    head: int
    spans: Array
    gates: npt.NDArray[np.int64]
    misses: Array
    copy: Array
    busy: Array
    prefetch: int
    lasts: Array
    leads: Array


@register_jitable
def _waits(
    table: OffloadTable, alone: int, gates: npt.NDArray[np.int64], misses: Array, tokens: int,
    heads: int,
) -> tuple[float, float]:  # fmt: skip
    """Return the seconds of all blocks, and how long layers with experts wait for copies."""
    now = waits = begun = first = before = 0.0
    count, copy = 0, table.copy[0]
    for run in range(table.order.shape[0]):
        block = table.order[run]
        layer = table.layer_of[block]
        if layer >= 0 and gates[layer] >= 0:
            start, serial = now + table.leads[layer], misses[count] * copy
            if table.prefetch == ON_DEMAND:
                waits += serial
            elif count > 0:
                waits += max(0.0, serial - (start - begun))
            else:
                first, before = serial, start
            begun, count = start, count + 1
        if layer >= 0:
            now += table.lasts[layer]
        else:
            now += table.spans[alone, block, heads if block == table.head else tokens]
    if table.prefetch == NEXT_GATE:
        waits += first
    elif table.prefetch == EVERYTHING:
        # The first one's copies start in the iteration before, when the last one's experts do.
        waits += max(0.0, first - (now - begun + before))
    return now, waits


@register_jitable
def offload_cost(table: OffloadTable, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the seconds of an iteration and the dynamic joules of all devices: see `step_cost`.

    Raises:
        ValueError: If the iteration is empty, or has more tokens or sequences than the table.
    """
    graph, every = table.graph, table.busy.shape[0]
    held = graph.busy
    held[:] = 0.0
    seconds, joules = batch_cost(graph, batch, batch.decodes, busy[every:])
    forget(graph.masks)
    tokens, kind = int(tokens_of(batch)), kind_of(batch)
    alone = 1 if kind == WITHOUT_DECODES else 0
    gates, misses = table.gates[kind], table.misses[1 if kind == WITHOUT_PROMPTS else 0, tokens]
    for b in range(graph.runs.shape[0]):
        table.lasts[b] = graph.layers[b]
        for r in range(held.shape[0]):
            used = graph.used[b, r] + graph.held[alone, b, tokens, r]
            table.lasts[b] = max(table.lasts[b], used)
        table.leads[b] = start_of(graph, gates[b]) if gates[b] >= 0 else 0.0
    played, waits = _waits(table, alone, gates, misses, tokens, heads_of(batch))
    seconds = max(seconds, graph.host, played + waits)
    copies = misses.sum()
    for r in range(every):
        used = copies * table.busy[r]
        if r < held.shape[0]:
            used += held[r]
        seconds = max(seconds, used)
        busy[r] += used
    return float(seconds), float(joules + copies * table.copy[1])
