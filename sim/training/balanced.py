"""A placement that evens out what memories take: chunks move while the step gets shorter.

Local memory first is not fastest where bytes decide. A pass of the optimizer takes as long as the
busier of DRAM and expanders, and passes follow each other: each is shortest where both take equally
long, with R / (R + r) of its bytes local, R and r their rates. Gradients, which one pass clears
alone, and weights, which a short pass of the GPU waits for, want a share of their own. From the
published placement (`cxl_aware`) this policy takes, as long as the step gets shorter, the best of:
a chunk more of a class local, a chunk less, a chunk of one class for one of another. So it is never
slower than that placement; how far from the bound is measured (docs/training.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opbyte.core.errors import CapacityError, SimulationError
from opbyte.core.ops import Array
from opbyte.sim.training.allocation import Problem
from opbyte.sim.training.optimal import StepModel
from opbyte.sim.training.overlap import overlapped

#: A move that saves a smaller share of the step is none.
LEAST = 1e-7


class Times:
    """The seconds of a step for many placements at once.

    Args:
        model: Of the step.
    """

    def __init__(self, model: StepModel) -> None:
        rows = [one.rows(model.tensors) for one in model.passes]
        self.slopes = np.concatenate([slopes for slopes, _ in rows])
        self.offsets = np.concatenate([offsets for _, offsets in rows])
        self.starts = np.cumsum([0, *(len(offsets) for _, offsets in rows)])[:-1]
        self.passes = model.passes

    def __call__(self, shares: Array) -> Array:
        """Return seconds (placements,) of local shares (placements, tensors)."""
        busy = shares @ self.slopes.T + self.offsets
        copies = np.maximum(np.maximum.reduceat(busy, self.starts, axis=1), 0.0)
        total = np.zeros(len(shares))
        for one, copied in zip(self.passes, copies.T, strict=True):
            whole = overlapped(one.computing, copied, one.exposed)
            total += one.times * (whole + one.always)
        return total


def balance(problem: Problem, kept: Mapping[str, int]) -> dict[str, int]:
    """Return the chunks that stay local once no move of a chunk shortens the step.

    Args:
        problem: With a step.
        kept: Chunks to begin with.
    Raises:
        SimulationError: If the problem has no step.
        CapacityError: If the placement to begin with does not fit.
    """
    if problem.model is None:
        raise SimulationError("the policy 'balanced' needs a training step: simulate one")
    tensors = problem.tensors
    chunks = np.array([t.chunks for t in tensors], float)
    size = np.array([t.chunk for t in tensors])
    local, beyond = problem.local.room * (1 + 1e-9), problem.beyond.room * (1 + 1e-9)
    need, many = float(size @ chunks), len(tensors)
    unit = np.eye(many)
    swaps = [unit[i] - unit[j] for i in range(many) for j in range(many) if i != j]
    moves = np.stack([*unit, *-unit, *swaps])
    seconds = Times(problem.model())
    now = np.array([kept[t.name] for t in tensors], float)
    held = float(size @ now)
    if held > local or need - held > beyond:
        tier, taken = (problem.local, held) if held > local else (problem.beyond, need - held)
        raise CapacityError([t.name for t in tensors], tier.path, taken, tier.room)
    best = float(seconds((now / chunks)[None])[0])
    while True:
        ways = now + moves
        near = ways @ size
        fits = (near <= local) & (need - near <= beyond)
        ways = ways[fits & np.all((ways >= 0.0) & (ways <= chunks), axis=1)]
        if not len(ways):
            break
        found = seconds(ways / chunks)
        at = int(found.argmin())
        if found[at] >= best * (1.0 - LEAST):
            break
        now, best = ways[at], float(found[at])
    return {t.name: int(k) for t, k in zip(tensors, now, strict=True)}
