"""Where the seconds of a training step go: on the stage that has most to do.

forward_s, recompute_s, backward_s, communication_s (waits for collectives, copies and sends),
bubble_s and optimizer_s add up to the step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.sim.training.step import Timed, Training

__all__ = ["parts_of"]


def parts_of(step: Training, timed: Timed) -> dict[str, Array]:
    """Return the step's parts, each (points,)."""
    stages = (step.parallel.pp, timed.points)
    working = {
        name: np.broadcast_to(timed.plan.of_stages(p.computing), stages)
        for name, p in timed.passes.items()
    }
    total = sum(working.values(), np.zeros(stages))
    most = total.argmax(axis=0)[None]
    parts = {
        f"{name}_s": step.many * np.take_along_axis(seconds, most, axis=0)[0]
        for name, seconds in working.items()
    }
    parts.setdefault("recompute_s", np.zeros(timed.points))
    waiting = _waiting(step, timed, most)
    used = sum(parts.values(), np.zeros(timed.points))
    parts["communication_s"] = waiting + timed.after
    parts["bubble_s"] = np.maximum(timed.pipeline - used - waiting, 0.0)
    parts["optimizer_s"] = timed.optimizer
    return parts


def _waiting(step: Training, timed: Timed, most: Any) -> Array:
    """Return what a stage waits for collectives, copies and sends of all microbatches.

    Args:
        most: The stage that has most to do, (1, points).
    """
    pp, send = step.parallel.pp, step.exchanges.send()
    # Pass by pass, added as the passes were: sums in another order round to waits below 0.
    computing = {name: p.computing for name, p in timed.passes.items()}
    back = computing["backward"]
    if "recompute" in computing:
        back = back + computing["recompute"]
    waits = (timed.forward - computing["forward"]) + (timed.backward - back)
    each = timed.plan.of_stages(waits)
    sends = np.full((pp, 1), 2.0 * step.parallel.interleave if pp > 1 else 0.0)
    # The first stage ends the backward passes, the last the forward ones.
    sends[[0, -1]] -= 1.0 if pp > 1 else 0.0
    wide = np.broadcast_to(each + sends * send, (pp, timed.points))
    return np.asarray(step.many * np.take_along_axis(wide, most, axis=0)[0])
