"""Decode attention on a group of devices of its own: one table out of two lowerings.

    model group      norm, qkv, rotary                         out projection, FFN
                          | q, k, v of the new token          ^
                          v                                   | attention output
    attention group       kv_append, score, softmax, context

A row of the attention group is what one of its b devices executes: the row of the same work lowered
with tp = b. All other rows are those of a model device (tp = a). Where an edge crosses the groups a
transfer is inserted. Over a layer transfers carry

    q and the output  2 e d B,   k and v  2 e d B / G

bytes for B sequences, hidden size d, e bytes an element and G query heads to a KV head (Lamina,
arXiv 2405.01814, section 4). With `q_first` the product of q, k and v is cut in two: queries leave
first, and attention over the cache runs while k and v of the new token follow. They are appended
when it has ended, and merged in the one kernel that attends, whose work is the same.

Prompts attend on the model group, where all else runs. Their keys and values are sent to the
attention group beside the rest of the layer, and of a prompt that goes on, or whose start the
cache holds, those of its past come back before it attends (`attention_block`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.mapping_file import ATTENTION
from opbyte.core.ops import OpTable, OpTableBuilder, Phase
from opbyte.sim.attention_block import Block, Sides
from opbyte.workloads.works import Work

#: Label of attention rows of prompts.
_PROMPTS = "attention_prefill"
#: Kinds of rows of attention.
_ATTENDS = frozenset({"score", "softmax", "context"})


def pooled_phases(work: Work, mapping: Mapping) -> tuple[Phase, ...]:
    """Return the phases of a work whose decode attention has a group of its own.

    Raises:
        UncoveredError: If rows outside decode attention read or write a cache, or `q_first` finds
            no product of q, k and v.
    """
    model, attention = work.lowered(mapping.degrees), work.lowered(mapping.attention_degrees)
    first = mapping.overlap == "q_first"
    devices = (mapping.degrees.tp, mapping.attention_degrees.tp)
    return tuple(
        Phase(m.name, _Join(m.table, a.table, devices, first).table(), m.repeats)
        for m, a in zip(model, attention, strict=True)
    )


def pooled_footprint(work: Work, mapping: Mapping) -> dict[str, Any]:
    """Return the bytes of each tensor class on the fullest device of the group that holds it.

    Of activations that is a model device; what an attention device receives and sends in a layer
    is thousands of times smaller than its cache and left out.
    """
    model = work.footprint(mapping.degrees)
    return {**model, "kv": work.footprint(mapping.attention_degrees)["kv"]}


def attention_rows(table: OpTable) -> tuple[set[int], set[int], set[int]]:
    """Return rows of decode attention, those of prompts, and the cache writes that feed them.

    Raises:
        UncoveredError: If another row touches the cache, or decode attention has other rows.
    """
    decodes = {r for r, labels in enumerate(table.labels) if ATTENTION in labels}
    cached = np.any(table["kv_read"] + table["kv_write"] + table["state_read"] > 0, axis=1)
    of_blocks = {
        int(table.block_of[r]) for r, kind in enumerate(table.kinds)
        if cached[r] and kind == "score" and _PROMPTS in table.labels[r]
    }  # fmt: skip
    prompts = {
        r for r, kind in enumerate(table.kinds)
        if kind in _ATTENDS and _PROMPTS in table.labels[r] and int(table.block_of[r]) in of_blocks
    }  # fmt: skip
    appends = {
        int(s) for s, t in table.edges
        if int(t) in decodes | prompts and table.kinds[s] == "kv_append"
    }  # fmt: skip
    for row, name in enumerate(table.names):
        if cached[row] and row not in decodes | prompts | appends:
            raise UncoveredError(
                f"'{name}' uses a cache, and only attention is modelled beside a group of its "
                "own. use another model, or a mapping with one group"
            )
        if row in decodes - appends and table.kinds[row] not in _ATTENDS:
            raise UncoveredError(
                f"'{name}' is no score, softmax, context or cache write: no model runs it on a "
                "group of its own. use a mapping with one group"
            )
    return decodes - appends, prompts, appends


@dataclass(slots=True)
class _Join:
    """Two lowerings of one phase becoming one table.

    Attributes:
        model, attention: Tables of one device of each group; their rows have the same names.
        devices: Devices of the model group and of the attention group.
        first: Queries are sent first.
    """

    model: OpTable
    attention: OpTable
    devices: tuple[int, int]
    first: bool
    builder: OpTableBuilder = field(default_factory=OpTableBuilder)

    def table(self) -> OpTable:
        """Return the joined table."""
        chosen = attention_rows(self.model)
        by_name = {
            (self.attention.blocks[b], name): row
            for row, (b, name) in enumerate(
                zip(self.attention.block_of, self.attention.names, strict=True)
            )
        }
        sides = Sides(self.model, self.attention, self.devices, self.first)
        for index, name in enumerate(self.model.blocks):
            with self.builder.block(name, int(self.model.stage[index])) as block:
                rows = [int(r) for r in self.model.rows_of(index)]
                decodes, prompts, appends = ([r for r in rows if r in of] for of in chosen)
                twins = {
                    r: by_name[name, self.model.names[r]] for r in (*appends, *decodes, *prompts)
                }
                Block(sides, block, rows, twins, decodes, prompts, appends).fill()
        self.builder.order.extend(int(b) for b in self.model.order)
        return self.builder.build()
