"""What fused operators move, and how they depend on each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import BYTE_COLUMNS, Array, OpTable
from opbyte.core.placed import reduced

#: Outputs that attention consumes as they come; no unit keeps them whole.
STREAMED = frozenset({"score", "softmax"})


def op_edges(table: OpTable, op_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return what operators read of each other, and what they wait for, (edges, 2)."""
    edges = op_of[np.concatenate([table.edges, table.waits])]
    edges = edges[edges[:, 0] != edges[:, 1]]
    return np.unique(edges, axis=0) if len(edges) else edges.reshape(-1, 2)


def moved_bytes(
    table: OpTable, op_of: npt.NDArray[np.int64], count: int
) -> tuple[dict[str, Array], Array]:
    """Return the compulsory bytes of each operator by `MOVED`, and what it must keep on the chip.

    An activation that is made and used inside one operator stays on the chip (`internal`); one
    that several rows of an operator read, the block's input too, is read once.
    """
    points = table.points

    def gather(values: Array, owner: npt.NDArray[np.int64]) -> Array:
        total = np.zeros((count, values.shape[1]))
        for op, value in zip(owner, values, strict=True):
            total[op] += value
        return total

    starts = np.searchsorted(op_of, np.arange(count))

    def per_op(values: Array) -> Array:
        return reduced(values, starts)

    moved = {column: per_op(table[column]) for column in BYTE_COLUMNS}
    source, target = table.edges[:, 0], op_of[table.edges[:, 1]]
    crossing = op_of[source] != target
    pairs = np.unique(np.stack([source[crossing], target[crossing]], axis=1), axis=0)
    carried = table["out_bytes"]
    outside = np.ones(len(table), bool)
    outside[source] = False
    outside[pairs[:, 0]] = True
    kept = ~outside[:, None]
    given = reduced(table["in_bytes"], starts, np.maximum)
    given = given + per_op(table["side_bytes"])
    if len(pairs):
        given = given + gather(carried[pairs[:, 0]], pairs[:, 1])
    inner = table.edges[~crossing]
    internal = per_op(np.where(kept, carried, 0.0))
    if len(inner):
        internal = internal + gather(carried[inner[:, 0]], op_of[inner[:, 0]])
    moved["activation"] = given + per_op(np.where(kept, 0.0, carried))
    moved["internal"] = internal
    streamed = np.array([kind in STREAMED for kind in table.kinds])[:, None]
    inside = np.where(kept & ~streamed, carried, 0.0)
    live = given + reduced(inside, starts, np.maximum)
    wide = {
        c: np.broadcast_to(v, (count, points)) if v.shape[1] > 1 else v for c, v in moved.items()
    }
    return wide, live
