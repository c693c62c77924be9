"""Score matrices that are held: attention whose kernels are not fused.

`place: {scores: {in: {gpu.gddr: 1.0}, copies: n}}`: between its kernels (product, mask, softmax,
product) attention has n matrices of queries times keys in memory, each written by one kernel and
read by the next. Without the entry scores are streamed and never leave the chip. Sources count
them: PyTorch's eager attention has three, out of the product, the mask and the softmax.
"""

from __future__ import annotations

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.price import Demand, resource_rate
from opbyte.sim.place import Placer


def held_scores(home: Placer, table: OpTable, demand: Demand) -> Array:
    """Return the bytes of score matrices that each block holds, all copies, (blocks, points).

    Whole matrices: a causal mask leaves half of one unused, but does not shrink it. Attention that
    runs at another memory holds none.

    Raises:
        ConfigError: If they are in several memories.
    """
    size = np.zeros((len(table.blocks), table.points))
    placement = home.mapping.place.get("scores")
    if placement is None:
        return size
    if len(placement.in_) > 1 or not isinstance(placement.copies, int):
        rule = "score matrices are in one memory, with a number of `copies`"
        raise ConfigError.one("", "mapping.place.scores", rule, ", ".join(placement.in_))
    tier, placed = next(iter(placement.in_)), demand.placed
    for row in (r for r, kind in enumerate(table.kinds) if kind == "score"):
        unit = placed.units[placed.unit_of[placed.op_of[row]]]
        if home.hops(tier, unit)[0].rpartition(".")[0] == tier and len(home.hops(tier, unit)) == 1:
            element = lookup(table.dtypes[row]).bits_per_element / 8.0
            whole = table["m"][row] * table["n"][row] * table["groups"][row] * element
            size[table.block_of[row]] += placement.copies * whole
    return size


def score_seconds(home: Placer, size: Array, *, ideal: bool) -> dict[str, Array]:
    """Return port seconds of writing and reading held scores, each (blocks, points)."""
    placement = home.mapping.place.get("scores")
    if placement is None:
        return {}
    tier = next(iter(placement.in_))
    port = f"{tier}.{next(iter(home.machine.memory(tier).config.ports))}"
    return {port: 2.0 * size / np.atleast_1d(resource_rate(home.machine, port, 1.0, ideal=ideal))}
