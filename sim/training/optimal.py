"""The fastest placement of a training step's tensors, by integer programming: a bound on policies.

Each pass keeps a port or link r busy for a time that is linear in shares: with x the share of
tensor t that is local, l and b its seconds on r wholly local and wholly beyond,

    copies c >= sum over t of (x l + (1 - x) b)           for each r
    pass   T >= computing + s c,  T >= c + s computing    s = 1 / layers beside, 1 after each other
    adam   the same with lanes for computing and s = 0    for each pass of the optimizer
    step   = microbatches (T forward + T backward) + sum of T and launch of the optimizer's passes

and minimising it over whole chunks is a mixed integer linear program (HiGHS, through
`scipy.optimize.milp`). The first byte's latency of a pass is left out, microseconds that simulation
adds: the bound lies below every simulated placement of whole chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import CapacityError, SimulationError, UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.sim.training.allocation import ORDER, Problem, Tensor
from opbyte.sim.training.offload import Copied, Offload, copied
from opbyte.sim.training.optimizer import Stepping
from opbyte.sim.training.overlap import overlapped

__all__ = ["LIMIT_S", "Pass", "Solved", "StepModel", "solve"]

#: Seconds that the solver may take; its bound holds whenever it stops.
LIMIT_S = 5.0
#: Gap between bound and placement at which it stops.
GAP = 1e-4
Loads = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Pass:
    """A pass, as a function of where tensors live.

    Attributes:
        computing: Seconds beside copies.
        exposed: Share of copies, or of computing, that has nothing of the other beside it.
        times: How often in a step.
        local, beyond: Seconds of each resource by tensor, where all of it is there.
        fixed: Seconds of each resource of tensors that do not move.
        always: Seconds that are added.
    """

    computing: float
    exposed: float
    times: float
    local: Loads
    beyond: Loads
    fixed: Mapping[str, float]
    always: float = 0.0

    def rows(self, tensors: Sequence[Tensor]) -> tuple[Array, Array]:
        """Return slopes (resources, tensors) and offsets (resources,) of seconds by local share."""
        names = sorted({*self.local, *self.beyond, *self.fixed})
        slopes, offsets = np.zeros((len(names), len(tensors))), np.zeros(len(names))
        for r, name in enumerate(names):
            near, far = self.local.get(name, {}), self.beyond.get(name, {})
            for t, tensor in enumerate(tensors):
                slopes[r, t] = near.get(tensor.name, 0.0) - far.get(tensor.name, 0.0)
                offsets[r] += far.get(tensor.name, 0.0)
            offsets[r] += self.fixed.get(name, 0.0)
        return slopes, offsets


@dataclass(frozen=True)
class StepModel:
    """The seconds of a step as a function of the local shares of tensors."""

    tensors: tuple[Tensor, ...]
    passes: tuple[Pass, ...]

    def seconds(self, shares: Mapping[str, float]) -> float:
        """Return the seconds of a step, but for latencies of first bytes."""
        x = np.array([shares[tensor.name] for tensor in self.tensors])
        total = 0.0
        for one in self.passes:
            slopes, offsets = one.rows(self.tensors)
            copies = float(max(np.max(slopes @ x + offsets, initial=0.0), 0.0))
            whole = float(overlapped(one.computing, copies, one.exposed))
            total += one.times * (whole + one.always)
        return total


@dataclass(frozen=True)
class Solved:
    """The answer: chunks that stay local, the seconds of that step, and the proven bound."""

    kept: dict[str, int]
    seconds: float
    bound: float


def solve(problem: Problem) -> Solved:
    """Return the fastest placement of whole chunks, and a bound on all of them.

    Raises:
        SimulationError: If the problem has no step, or the solver finds nothing in its time.
        CapacityError: If nothing fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if problem.model is None:
        raise SimulationError("the policy 'optimal' needs a training step: simulate one")
    model, tensors = problem.model(), problem.tensors
    need, room = sum(t.size for t in tensors), problem.local.room + problem.beyond.room
    if need > room * (1.0 + 1e-9):
        names = [t.name for t in tensors]
        raise CapacityError(names, f"{problem.local.path}+{problem.beyond.path}", need, room)
    # Variables: chunks of each tensor, then copies c and time T of each pass.
    n, many = len(tensors), len(model.passes)
    cost = np.zeros(n + 2 * many)
    chunks = np.array([t.chunks for t in tensors], float)
    size = np.array([t.chunk for t in tensors])
    slack = 1.0 + 1e-9
    used = np.zeros(n + 2 * many)
    used[:n] = size
    rows: list[Array] = [used]
    least = [need - problem.beyond.room * slack]
    most = [problem.local.room * slack]
    constant = 0.0
    for p, one in enumerate(model.passes):
        copies, time = n + 2 * p, n + 2 * p + 1
        cost[time] = one.times
        constant += one.times * one.always
        for slope, offset in zip(*one.rows(tensors), strict=True):
            row = np.zeros_like(cost)
            row[copies], row[:n] = 1.0, -slope / chunks
            rows.append(row)
            least.append(offset)
            most.append(np.inf)
        for copied_share, computed_share in ((one.exposed, 1.0), (1.0, one.exposed)):
            floor = np.zeros_like(cost)
            floor[time], floor[copies] = 1.0, -copied_share
            rows.append(floor)
            least.append(computed_share * one.computing)
            most.append(np.inf)
    lower = np.zeros_like(cost)
    upper = np.concatenate([chunks, np.full(2 * many, np.inf)])
    # Bytes and seconds differ by ten orders: rooms are counted in the largest chunk.
    rows[0], least[0], most[0] = (v / size.max() for v in (rows[0], least[0], most[0]))
    found = milp(
        cost,
        integrality=np.concatenate([np.ones(n), np.zeros(2 * many)]),
        bounds=Bounds(lower, upper),
        constraints=LinearConstraint(np.stack(rows), np.array(least), np.array(most)),
        options={"time_limit": LIMIT_S, "mip_rel_gap": GAP},
    )
    if found.x is None:
        raise SimulationError(f"the policy 'optimal' found no placement: {found.message}")
    kept = {t.name: round(float(k)) for t, k in zip(tensors, found.x[:n], strict=True)}
    shares = {t.name: kept[t.name] / t.chunks for t in tensors}
    return Solved(kept, model.seconds(shares), float(found.mip_dual_bound) + constant)


def step_model(
    machine: Machine, near: Any, far: Any, tensors: Sequence[Tensor], fixed: Sequence[str]
) -> StepModel:
    """Return the seconds of a step as a function of the shares of tensors.

    Args:
        near, far: The training step (`opbyte.sim.training.step`) with all tensors local and beyond.
        fixed: Other classes, which lie where both have them.
    Raises:
        UncoveredError: If replicas exchange something, or design points differ.
    """
    if near.parallel.devices > 1 or machine.points > 1 or near.many.size > 1:
        raise UncoveredError(
            f"{machine.name}: the policies 'optimal' and 'balanced' are for one GPU and one design "
            "point. use another policy, or tp, dp and pp of 1"
        )
    names = [t.name for t in tensors]
    exposed = float(near.offload.exposed(near.plan.layers[0]))
    many = float(near.many[0])
    passes = []
    all_copies = copied(near.plan, 0, near.gradient, near.many)
    for computed, copies in zip(near.computed(), all_copies, strict=True):
        passes.append(
            Pass(
                float(computed[0, 0]), exposed, many,
                _copy_loads(near.offload, copies, names), _copy_loads(far.offload, copies, names),
                _flat(_copy_loads(near.offload, copies, fixed)),
            )
        )  # fmt: skip
    here, there = near.stepping(), far.stepping()
    for i, one in enumerate(here.todo):
        local, beyond = _step_loads(here, i, names), _step_loads(there, i, names)
        rest = _flat(_step_loads(here, i, fixed))
        launch = 0.0 if here.ideal else float(np.max(here.launch()))
        lanes = float(np.max(here.lanes(one)))
        passes.append(
            Pass(
                lanes,
                exposed=0.0,
                times=1.0,
                local=local,
                beyond=beyond,
                fixed=rest,
                always=launch,
            )
        )
    return StepModel(tuple(tensors), tuple(passes))


def _copy_loads(offload: Offload, copies: Sequence[Copied], names: Sequence[str]) -> Loads:
    found: Loads = {}
    for name in names:
        for (resource, back), seconds in offload.loads(
            c for c in copies if c.tensor == name
        ).items():
            found.setdefault(f"{resource}:{back}", {})[name] = float(seconds[0])
    return found


def _step_loads(stepping: Stepping, number: int, names: Sequence[str]) -> Loads:
    found: Loads = {}
    for name in names:
        for resource, seconds in stepping.loads(stepping.todo[number], (name,)).items():
            found.setdefault(resource, {})[name] = float(np.max(seconds))
    return found


def _flat(loads: Loads) -> dict[str, float]:
    return {resource: sum(seconds.values()) for resource, seconds in loads.items()}


def others(names: Sequence[str]) -> list[str]:
    """Return the classes that a step has beside those of so many names."""
    return [name for name in ORDER if name not in names]
