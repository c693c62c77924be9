"""Host memory that a training step takes beside what lives there: pools, rounding, checks.

    pool            weights that live on drives: `layers` layers, embedding and head, each matrix in
                    a buffer of its own size or of the largest one's; states that live on drives:
                    two pieces of each class
    rounding        what blocks take more than their tensors
    overflow_check  copies of gradients that a check for overflows makes

After MemAscend (arXiv 2505.23254). Holes that blocks of unequal sizes leave are not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.mapping import Mapping
from opbyte.core.mapping_file import Placement
from opbyte.core.ops import Number
from opbyte.core.staging import Staging
from opbyte.sim.place import Placer
from opbyte.sim.training.drives import is_drive
from opbyte.workloads.training.plan import STATES

if TYPE_CHECKING:
    from opbyte.workloads.training.plan import Plan

__all__ = ["CLASSES", "staged", "with_homes"]

#: What is held beside tensors.
CLASSES = ("pool", "rounding", "overflow_check")


def with_homes(mapping: Mapping) -> Mapping:
    """Return the mapping with homes of what is held beside tensors."""
    if mapping.staging is None:
        return mapping
    home = Placement.model_validate({"in": {mapping.staging.memory: 1.0}})
    return mapping.model_copy(update={"place": {**mapping.place, **dict.fromkeys(CLASSES, home)}})


def staged(
    placer: Placer, block: Staging, plan: Plan, held: MappingType[str, Number], blocks: Number
) -> dict[str, Any]:
    """Return the bytes of `CLASSES` of one stage.

    Args:
        held: Bytes of its tensor classes.
        blocks: Blocks of activations that it holds: layers times microbatches in flight.
    """

    def there(tensor: str) -> float:
        return placer.tiers(tensor).in_.get(block.memory, 0.0)

    def on_drives(tensor: str) -> float:
        homes = placer.tiers(tensor).in_
        return sum(share for t, share in homes.items() if is_drive(placer.machine, t))

    pool: Any = _pool(block, plan) if on_drives("weight") > 0.0 else 0.0
    waste: Any = block.rounded(pool) - pool
    largest = block.chunk.value if block.chunk is not None else np.inf
    for name in ("gradient", *STATES):
        size = held.get(name, 0.0)
        here = size * there(name)
        waste = waste + block.pieces(here) - here
        if name in STATES:
            piece = np.minimum(size * on_drives(name), largest)
            pool = pool + 2.0 * piece
            waste = waste + 2.0 * (block.rounded(piece) - piece)
    if there("weight") > 0.0:
        sizes = np.array([size for size, _ in plan.matrices]) * there("weight")
        waste = waste + float((block.rounded(sizes) - sizes).sum())
    each = held["activation"] * there("activation") / np.maximum(blocks, 1.0)
    waste = waste + blocks * (block.rounded(each) - each)
    check = block.overflow_check.value * held["gradient"] * there("gradient")
    return {"pool": pool, "rounding": waste, "overflow_check": check}


def _pool(block: Staging, plan: Plan) -> float:
    """Return the bytes of the buffers for weights, all layers alike."""
    layers = max(sum(plan.layers), 1.0)
    inside = [size for size, mine in plan.matrices if mine]
    outside = [size for size, mine in plan.matrices if not mine]
    share = min(float(block.layers), layers) / layers
    if block.pool == "largest":
        return (share * len(inside) + len(outside)) * max(inside + outside)
    return share * sum(inside) + sum(outside)
