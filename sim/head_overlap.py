"""Heads of a layer that follow each other through two groups of devices (`overlap: head`).

Where decode attention has a group of its own, the product of q, k and v, the way there, attention,
the way back and the output product of a layer are a chain. Cut into H equal parts, one for each KV
head of a device, it is a pipeline: with t(r) the time for which the chain holds a group's unit or
one direction of a link,

    t = max t(r) + (sum t(r) - max t(r)) / H

AttAcc (ASPLOS 2024) calls it head-level pipelining; its simulator has the same formula. The parts
of a product are taken to cost their share of it.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.price import Demand
from opbyte.sim.attention_block import BACK, THERE
from opbyte.sim.dependency import dependent_durations

#: Kinds of rows between the product of q, k and v and the way to the attention group.
_BEFORE = frozenset({"norm", "rotary"})


def path_durations(demand: Demand) -> Array:
    """Return what each operator adds to the longest path, (ops, points)."""
    placed, duration = demand.placed, demand.duration
    if placed.dependency:
        return dependent_durations(demand)
    if not placed.head_overlap:
        return duration
    along = duration.copy()
    for there, back in _ways(placed):
        chain = _chain(placed, there, back)
        heads = _heads(placed, chain)
        holders = [_holder(placed, op) for op in chain]
        names = sorted(set(holders))
        held = np.stack(
            [sum(duration[o] for o, h in zip(chain, holders, strict=True) if h == n) for n in names]
        )
        longest = held.argmax(axis=0)
        for op, holder in zip(chain, holders, strict=True):
            whole = longest == names.index(holder)
            along[op] = duration[op] * np.where(whole, 1.0, 1.0 / heads)
    return along


def _ways(placed: PlacedOps) -> list[tuple[int, int]]:
    """Return each block's transfers to the attention group and back.

    Prompts send keys and values there and attend where they are: nothing comes back to wait for.
    """
    labels = placed.table.labels
    first = np.searchsorted(placed.op_of, np.arange(len(placed)))
    there, back = (
        {int(placed.block_of[t.op]): t.op for t in placed.transfers if way in labels[first[t.op]]}
        for way in (THERE, BACK)
    )
    return [(there[block], back[block]) for block in there if block in back]


def _chain(placed: PlacedOps, there: int, back: int) -> list[int]:
    """Return the operators from the product of q, k and v to that of the output.

    Raises:
        UncoveredError: If the layer has no such chain.
    """
    chain = list(range(there, back + 1))
    kinds = [set() for _ in range(len(placed))]  # type: list[set[str]]
    for op, kind in zip(placed.op_of, placed.table.kinds, strict=True):
        kinds[op].add(kind)
    before = there
    while True:
        sources = placed.edges[placed.edges[:, 1] == before, 0]
        if len(sources) != 1 or not kinds[sources[0]] <= _BEFORE | {"gemm"}:
            _refuse()
        before = int(sources[0])
        chain.insert(0, before)
        if "gemm" in kinds[before]:
            break
    after = placed.edges[placed.edges[:, 0] == back, 1]
    if len(after) != 1 or kinds[after[0]] != {"gemm"}:
        _refuse()
    return [*chain, int(after[0])]


def _refuse() -> None:
    raise UncoveredError(
        "overlap: head pipelines one product of q, k and v, attention and one output product, and "
        "this model's layers are no such chain. use `overlap: none`"
    )


def _heads(placed: PlacedOps, chain: list[int]) -> Array:
    """Return the KV heads of one sequence on an attention device, (1 or points,)."""
    table = placed.table
    score = next(
        row for row, kind in enumerate(table.kinds)
        if kind == "score" and placed.op_of[row] in chain
    )  # fmt: skip
    heads: Array = np.maximum(table["groups"][score] / table["sequences"][score], 1.0)
    return heads


def _holder(placed: PlacedOps, op: int) -> str:
    unit = placed.unit_of[op]
    if unit >= 0:
        return str(placed.units[unit])
    link = next(t.links for t in placed.transfers if t.op == op)
    return str(placed.resources[link[0]])
