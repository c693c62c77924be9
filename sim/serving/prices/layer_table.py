"""The price of an iteration in which prompts run on one group of layers, and decodes on all.

    seconds = max(path of the group with pieces and decodes + path of the rest with decodes alone,
                  the most held resource, host)

Groups are contiguous; the first one holds the embedding, the last one the LM head. Each block is
priced as in an iteration of all layers (`step_table`), so that the prices of all groups add up to
that of such an iteration.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.loops import part
from opbyte.core.ops import Array
from opbyte.sim.serving.prices.batch import Batch, decodes_of, heads_of, tokens_of
from opbyte.sim.serving.prices.layout import BUSY, JOULES, SECONDS, StepTable, forget
from opbyte.sim.serving.prices.step_table import pieces_cost, step_cost


class LayerTable(NamedTuple):
    """Arrays of one model on one machine; `layer_prices.LayerPrices` makes them.

    Attributes:
        step: The same for iterations of all layers.
        blocks: What is `fixed` there, of one run of each block, (blocks, tokens + 1, columns).
        counts: How often each block but the head runs in each group, and in the rest of the
            layers, (parts, 2, blocks).
        runs: As in `StepTable`, of each group and of the rest, (parts, 2, layers).
        first: By number of groups: which part is its first group, (most groups + 1,), -1 for none.
    """

    step: StepTable
    blocks: Array
    counts: Array
    runs: Array
    first: npt.NDArray[np.int64]


@register_jitable
def layers_cost(
    table: LayerTable,
    part: int,
    rest: int,
    batch: Batch,
    busy: Array,
) -> tuple[float, float]:
    """Return path and joules of the layers of a part, or of the others; add to `table.step.busy`.

    Args:
        rest: 1 for the others.
        busy: Traffic is added to what stands behind the resources.
    """
    step, counts, runs = table.step, table.counts[part, rest], table.runs[part, rest]
    held = step.busy
    resources = held.shape[0] - runs.shape[0]
    total = tokens_of(batch)
    tokens = int(total)
    seconds, joules = pieces_cost(step, runs, batch, total)
    for b in range(counts.shape[0]):
        if counts[b] > 0.0:
            fixed = table.blocks[b, tokens]
            seconds += counts[b] * fixed[SECONDS]
            joules += counts[b] * fixed[JOULES]
            for r in range(resources):
                held[r] += counts[b] * fixed[BUSY + r]
            for r in range(resources, busy.shape[0]):
                busy[r] += counts[b] * fixed[BUSY + r]
    return seconds, joules


@register_jitable
def _group_cost(table: LayerTable, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the same of an iteration whose pieces run on one group."""
    step, group, groups = table.step, batch.group, batch.groups
    total, heads = tokens_of(batch), heads_of(batch)
    least = batch.pieces + batch.decodes
    if total >= step.fixed.shape[0] or heads >= step.head.shape[0] or total < least:
        raise ValueError("an iteration has no token, or more tokens or sequences than its table")
    if not 0 <= group < groups < table.first.shape[0] or table.first[groups] < 0:
        raise ValueError("the table does not divide the layers into so many groups")
    part, held = table.first[groups] + group, step.busy
    resources = held.shape[0] - step.runs.shape[0]
    # Whoever gets logits: pieces only where their last layer is.
    heads = heads if group == groups - 1 else int(batch.decodes + batch.logits)
    for r in range(resources):
        held[r] = step.head[heads, BUSY + r]
    for r in range(resources, busy.shape[0]):
        busy[r] += step.head[heads, BUSY + r]
    seconds, joules = layers_cost(table, part, 0, batch, busy)
    if batch.decodes > 0.0:
        others = layers_cost(table, part, 1, decodes_of(batch), busy)
        seconds, joules = seconds + others[0], joules + others[1]
    forget(step.masks)
    seconds = max(seconds + step.head[heads, SECONDS], step.host)
    joules += step.head[heads, JOULES]
    for r in range(resources):
        seconds = max(seconds, held[r])
        busy[r] += held[r]
    return float(seconds), float(joules)


@part
def layer_cost(table: LayerTable, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the seconds of an iteration and the dynamic joules of all devices: see `step_cost`.

    Raises:
        ValueError: If the iteration is empty, has more tokens or sequences than the table, or the
            layers are not divided so.
    """
    if batch.groups == 0 or batch.pieces == 0:
        return step_cost(table.step, batch, busy)
    return _group_cost(table, batch, busy)
