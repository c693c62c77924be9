"""Attention over keys and values in the banks: a head of a sequence belongs to one channel.

Keys: `outputs` units of a channel hold a token each, `depth` of them share its head dimension.
Values (`context: lanes`) lie as they are written: a lane holds one element of the output and adds
up its tokens; sums of a rank's bank groups are added on the way out, those of ranks and depths on
the buffer die. For L tokens, head dimension h, T outputs and D depth, e elements in a column:

    MACs of score and of context    ceil(L / T) ceil(h / (D e))      each
    query                           D ceil(h / (D e))                loads
    scores                          ceil(ceil(L / T) / e) T / P      reads, P pseudo-channels
    weights                         ceil(L / (T e)) T / P            refills
    output                          ceil(h / (D e)) D R              reads, R ranks (buffer: 1 each)

One head is a chain: query, score, the last scores out, softmax, weights in, context, the output.
Where heads interleave, the softmax and the moves of one run beside the products of the other:

    score a | score b, softmax a | context a, softmax b | context b

With `context: rows` values are stored transposed and both are products as in `products.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.compute.pim.products import Counts, product, up
from opbyte.hw_models.compute.pim.stages import (
    Program,
    Stage,
    State,
    after,
    program_of,
    repeated,
    with_refresh,
)


def attention_clocks(d: PimDevice, heads: Any, tokens: Any, width: Any, queries: Any) -> Any:
    """Return the clocks of the slowest channel, refresh included.

    Args:
        d: The unit.
        heads: KV heads of all sequences, which instances and their channels share.
        tokens: Tokens of each.
        width: Head dimension.
        queries: Query heads, or query tokens, of each KV head.
    Raises:
        WorkloadError: If a size is below 1.
    """
    for name, size in (("heads", heads), ("tokens", tokens), ("head_dim", width)):
        if np.any(np.asarray(size) < 1):
            raise WorkloadError(f"{d.name}: attention needs {name} >= 1, got {np.min(size):g}")
    each = up(up(up(heads / d.instances) / d.channels) * d.fullest)
    one = head_program(d, tokens, width, queries)
    start = State()
    if not d.interleave:
        return with_refresh(d, repeated(each, start, lambda now: after(d, now, one)).time)
    pair = pair_program(d, tokens, width, queries)
    pairs, left = each // 2.0, each % 2.0
    if not np.any(pairs):
        return with_refresh(d, after(d, start, one).time)
    time = (paired := repeated(pairs, start, lambda now: after(d, now, pair))).time
    if np.any(left):
        alone = after(d, start, one).time
        odd = np.where(pairs > 0, after(d, paired, one).time, alone)
        time = np.where(left > 0, odd, time)
    return with_refresh(d, time)


def head_program(d: PimDevice, tokens: Any, width: Any, queries: Any) -> Program:
    """Return the program of one head alone in its channel."""
    if d.transposed:
        return _as_products(d, tokens, width, queries)
    h = _Head(d, tokens, width, queries)
    return program_of(
        d,
        [
            (1.0, [h.query]),
            (1.0, [h.with_moves(h.macs, {"read": h.scores - h.last_scores})]),
            (1.0, [Stage(moves={"read": h.last_scores, **h.weights})]),
            (1.0, [h.with_moves(h.macs, {"read": h.output - h.last_output})]),
            (1.0, [Stage(moves={"read": h.last_output})]),
        ],
    )


def pair_program(d: PimDevice, tokens: Any, width: Any, queries: Any) -> Program:
    """Return the program of two heads that take turns in a channel."""
    h = _Head(d, tokens, width, queries)
    load = h.query.moves
    return program_of(
        d,
        [
            (1.0, [h.query]),
            (1.0, [h.with_moves(h.macs, {"read": h.scores - h.last_scores, **load})]),
            (1.0, [h.with_moves(h.macs, {"read": h.scores, **h.weights})]),
            (
                1.0,
                [
                    h.with_moves(
                        h.macs,
                        {"read": h.last_scores + h.output - h.last_output, **h.weights},
                    )
                ],
            ),
            (1.0, [h.with_moves(h.last_context, {"read": h.output})]),
            (1.0, [Stage(moves={"read": h.last_output})]),
        ],
    )


def head_counts(d: PimDevice, heads: Any, tokens: Any, width: Any, queries: Any) -> Counts:
    """Return the commands of one head, and of how many heads."""
    return Counts.of(head_program(d, tokens, width, queries), heads)


class _Head:
    """Commands of one head, see the module."""

    def __init__(self, d: PimDevice, tokens: Any, width: Any, queries: Any) -> None:
        turns, across = up(tokens / d.outputs), up(width / (d.depth * d.lanes))
        columns = turns * across
        per_row = d.per_bank if d.pack else across
        sides = d.outputs / d.pseudo_channels
        per_row = per_row * queries if d.reuse else per_row
        self.macs = Stage(columns * queries, per_row)
        # AttAcc's trace generators give the second head's context the addresses of the first's.
        same_row = d.artifact & np.less_equal(self.macs.columns, per_row)
        self.last_context = replace(self.macs, hit=same_row)
        self.query = Stage(moves={"load": queries * d.depth * across})
        self.last_scores = sides * queries
        self.scores = up(turns / d.lanes) * self.last_scores
        self.weights = {
            "softmax": 1.0 * queries,
            "refill": queries * sides * up(tokens / (d.outputs * d.lanes)),
        }
        self.last_output = queries * (1.0 if d.level == "buffer" else d.depth * d.ranks)
        self.output = across * self.last_output

    @staticmethod
    def with_moves(stage: Stage, moves: dict[str, Any]) -> Stage:
        """Return a stage with moves beside its MACs."""
        return replace(stage, moves=moves)


def _as_products(d: PimDevice, tokens: Any, width: Any, queries: Any) -> Program:
    """Return score and context as products of one channel, values stored transposed.

    Keys of new tokens follow in other banks, and in the same row with `pack`. Values of new tokens
    follow in the row of their element, which holds none of another.
    """
    channel = replace(d, channels=1.0, instances=1.0)
    score, _ = product(channel, queries, tokens, width)
    context, _ = product(replace(channel, pack=False), queries, width, tokens)
    softmax = program_of(d, [(1.0, [Stage(moves={"softmax": 1.0 * queries})])])
    return [*score, *softmax, *context]
