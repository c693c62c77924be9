"""Prices of steps from measured tables: dense layers by tokens, heads by sequences, attention.

The tables are what profilers of serving engines write. Between their points prices are linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.prices.batch import Batch, heads_of, tokens_of

_AXES = 4


class GridTable(NamedTuple):
    """Arrays that the compiled loop reads.

    Attributes:
        dense: Seconds of everything but attention and head, by tokens of the step, (tokens + 1,).
        head: Seconds of what runs once for each sequence with logits, (sequences + 1,).
        axes: Points of the attention grid, each padded with its last one, (4, points).
        sizes: Points of each axis, (4,).
        attention: Seconds of all layers, by tokens of a piece, its past tokens, decodes, and
            their mean context, (pieces, past, decodes, context).
    """

    dense: Array
    head: Array
    axes: Array
    sizes: Array
    attention: Array


@register_jitable
def _between(axis: Array, size: int, value: float) -> tuple[int, float]:
    """Return the point below a value and its share of the way to the next; ends are held."""
    value = min(max(value, axis[0]), axis[size - 1])
    below = min(int(np.searchsorted(axis[:size], value, side="right")) - 1, size - 2)
    return below, float((value - axis[below]) / (axis[below + 1] - axis[below]))


@register_jitable
def attention_at(
    table: GridTable, new: float, past: float, decodes: float, context: float
) -> float:
    """Return the seconds of attention of one piece beside decodes, linear between the points."""
    a, u = _between(table.axes[0], int(table.sizes[0]), new)
    b, v = _between(table.axes[1], int(table.sizes[1]), past)
    c, w = _between(table.axes[2], int(table.sizes[2]), decodes)
    d, z = _between(table.axes[3], int(table.sizes[3]), context)
    total = 0.0
    for corner in range(2**_AXES):
        i, j, k, m = corner & 1, (corner >> 1) & 1, (corner >> 2) & 1, (corner >> 3) & 1
        share = (u if i else 1.0 - u) * (v if j else 1.0 - v)
        share *= (w if k else 1.0 - w) * (z if m else 1.0 - z)
        if share > 0.0:
            total += share * table.attention[a + i, b + j, c + k, d + m]
    return float(total)


@register_jitable
def grid_cost(table: GridTable, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the seconds of one step, and NaN for joules and traffic, which no such table has.

    Pieces of prompts add up; what decodes cost beside them is what they add to the largest piece.

    Args:
        batch: What is computed.
        busy: Of the device, added to, and traffic if it is longer than (1,).
    """
    new, past, decodes = batch.new, batch.past, batch.decodes
    total = largest = behind = 0.0
    for i in range(batch.pieces):
        total += attention_at(table, new[i], past[i], 0.0, 0.0)
        if new[i] > largest:
            largest, behind = new[i], past[i]
    if decodes > 0.0:
        total += attention_at(table, largest, behind, decodes, batch.context / decodes)
        if batch.pieces:
            total -= attention_at(table, largest, behind, 0.0, 0.0)
    total += table.dense[int(tokens_of(batch))] + table.head[heads_of(batch)]
    busy[0] += total
    busy[1:] = np.nan
    return float(total), np.nan


@dataclass(frozen=True)
class GridPrices:
    """Prices of steps from measured tables.

    Attributes:
        max_tokens, max_sequences: Of a step, as far as the tables go.
    """

    table: GridTable
    resources: tuple[str, ...] = ("device",)

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of a step that the table has."""
        return len(self.table.dense) - 1

    @property
    def max_sequences(self) -> int:
        """Return the most sequences of a step that the table has."""
        return len(self.table.head) - 1
