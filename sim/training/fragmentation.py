"""What a device's allocator holds beside tensors at the most: the holes between their blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.sim.training.caching_allocator import Held, replayed
from opbyte.sim.training.pipeline import order_of
from opbyte.workloads.training.lifetimes import Lifetimes, lifetimes
from opbyte.workloads.training.plan import STATE, STATES

if TYPE_CHECKING:
    from opbyte.sim.training.offload import Offload
    from opbyte.sim.training.step import Training
    from opbyte.workloads.training.plan import Plan

__all__ = ["check_allocator", "fragmentation"]


def check_allocator(offload: Offload) -> None:
    """Refuse an allocator of a CPU, or where activations are not all in the device's own memory.

    Raises:
        UncoveredError: With what the mapping says.
    """
    home = offload.placer
    where = f"mapping '{home.mapping.name}' of {home.machine.name}"
    if home.machine.unit(offload.unit).config.kind in ("cpu", "cores"):
        raise UncoveredError(
            f"{where}: `allocator: caching` is of a device's memory, and '{offload.unit}' is a "
            "CPU. leave it out"
        )
    tiers = home.tiers("activation").in_
    if len(tiers) > 1 or tiers != home.tiers("working").in_:
        raise UncoveredError(
            f"{where}: no model has `allocator: caching` where `activation` lives in "
            f"{', '.join(tiers)}. place it in the device's own memory alone, or leave one out"
        )


def fragmentation(step: Training, plan: Plan, stage: int, held: Mapping[str, Any]) -> Array:
    """Return the bytes of the holes on a device of a stage, (points,).

    Where tensors exceed the classes, they count here: with all classes no less than the segments.

    Where segments and what else is held exceed the memory, the allocator gives back what is free
    and asks again; if that does not help, the holes are those that it would need.

    Args:
        held: Bytes of the stage's tensor classes.
    """
    (tier,) = step.home.tiers("working").in_
    room = np.atleast_1d(step.home.capacity(tier) / step.home.crowd(tier))
    near: Any = sum(np.atleast_1d(size) * _here(step, tier, n) for n, size in held.items())
    points = max(room.size, near.size, step.many.size)
    # Sizes differ between points only where the work does.
    alike = near.size == step.many.size == 1
    known: dict[int, tuple[Any, Any, Held]] = {}
    holes = np.empty(1 if alike and room.size == 1 else points)
    for p in range(holes.size):
        at = 0 if alike else p
        if at not in known:
            arrays = _lifetimes(step, plan, stage, held, tier, at).arrays()
            known[at] = (*arrays, replayed(*arrays))
        events, sizes, free = known[at]
        counted = float(near[min(p, near.size - 1)])
        limit = float(room[min(p, room.size - 1)]) - max(counted - free.asked, 0.0)
        tight = replayed(events, sizes, limit) if free.reserved > limit else free
        found = tight if tight.fits else free
        # Whole blocks of embeddings that replicas split, and their gradients, are in no class.
        holes[p] = found.holes + max(found.asked - counted, 0.0)
    return holes


def _lifetimes(
    step: Training, plan: Plan, stage: int, held: Mapping[str, Any], tier: str, point: int
) -> Lifetimes:
    parallel = plan.parallel
    many = int(step.many[min(point, step.many.size - 1)])
    # Two microbatches for each stage: from then on each does what the one before did.
    order = order_of(parallel.pp, parallel.interleave, min(many, 2 * parallel.pp), stage)
    states = [STATE * _here(step, tier, name) for name in STATES if name in held]
    shares = {name: _here(step, tier, name) for name in ("weight", "gradient")}
    return lifetimes(plan, stage, order, states, lambda name: shares.get(name, 1.0), point)


def _here(step: Training, tier: str, tensor: str) -> float:
    """Return the share of a tensor class that is in the device's own memory."""
    return float(step.home.tiers(tensor).in_.get(tier, 0.0))
