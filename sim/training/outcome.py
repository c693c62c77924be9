"""The answer to a training step: metrics, phases, and what memories hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.sim.analytic import Step
from opbyte.sim.metrics import static_watts, with_costs
from opbyte.sim.phases import combine, feasible
from opbyte.sim.result import Outcome, PhaseRun
from opbyte.sim.training.drives import is_drive
from opbyte.sim.training.memory import memory_over_time
from opbyte.sim.training.offload import copied
from opbyte.sim.training.optimizer import PassCost
from opbyte.sim.training.parts import parts_of
from opbyte.sim.training.step import Timed, Training
from opbyte.workloads.train import fullest
from opbyte.workloads.training.plan import STATES

__all__ = ["outcome_of"]


def outcome_of(step: Training, timed: Timed) -> Outcome:
    """Return metrics, phases, occupancy and what memories hold over time."""
    plan, seconds = timed.plan, timed.seconds
    runs = _runs(step, timed)
    metrics = _totals(step, timed, runs) | _utilisation(step, timed) | parts_of(step, timed)
    metrics["microbatches"] = step.many
    stage, held = fullest(step.held(plan))
    metrics |= _held_metrics(held)
    metrics["host_bytes"] = _host_bytes(step, held)
    metrics["swapped"] = np.atleast_1d(np.asarray(plan.swapped, np.float64))
    metrics = {n: np.atleast_1d(np.asarray(v, np.float64)) for n, v in metrics.items()}
    over_time = memory_over_time(plan, timed.played, int(stage[0]), held, float(seconds[0]))
    homes = {name: dict(step.home.tiers(name).in_) for name in held}
    detail = {"memory": over_time, "homes": homes}
    outcome = Outcome(metrics, runs, step.home.occupancy(held), detail=detail)
    return feasible(step.home, outcome, (*_held_metrics(held), "host_bytes"))


def _runs(step: Training, timed: Timed) -> tuple[PhaseRun, ...]:
    many = step.many if step.many.size > 1 else float(step.many[0])
    times = {"recompute": many * (1.0 - timed.plan.swapped)}
    return tuple(
        PhaseRun(
            name, p.demand, Step(p.seconds.sum(axis=0), p.seconds.sum(axis=0), {}),
            times.get(name, many),
            beside=_rows(timed.costs) if name == "backward" else (),
        )
        for name, p in timed.passes.items()
    )  # fmt: skip


def _totals(step: Training, timed: Timed, runs: tuple[PhaseRun, ...]) -> dict[str, Any]:
    """Return seconds, energy, operations and rates of the whole job, and what they cost.

    Energy is that of operators, the optimizer, copies and exchanges of devices.
    """
    machine, work, costs, seconds = step.placer.machine, step.work, timed.costs, timed.seconds
    metrics = combine(step.placer, list(runs), work.tokens)
    static = static_watts(machine)
    devices = step.parallel.devices
    moved = metrics["flops"] / metrics["op_per_byte"]
    moved = moved + devices * sum((c.moved for c in costs), np.zeros(1))
    joules = metrics["joules"] - static * metrics["seconds"] + static * seconds
    joules = joules + devices * sum((c.joules for c in costs), np.zeros(1)) + _copying(step, timed)
    joules = joules + step.exchanges.joules(step.many)
    return with_costs(
        machine,
        {
            "seconds": seconds,
            "joules": joules,
            "watts": joules / seconds,
            "flops": metrics["flops"],
            "op_per_byte": metrics["flops"] / moved,
            "kernels": metrics["kernels"] + len(costs) * step.parallel.pp,
            "tokens_per_s": work.tokens / seconds,
            "joules_per_token": joules / work.tokens,
        },
    )


def _copying(step: Training, timed: Timed) -> Array:
    """Return the energy of the copies of all passes on all devices, (points,)."""
    plan, spans = timed.plan, step.parallel.tp * step.parallel.dp
    passes = (one for s in range(plan.virtual) for one in copied(plan, s, step.gradient, step.many))
    each = sum((step.offload.joules(one) for one in passes), np.zeros(1))
    return np.asarray(step.many * spans * each)


def _host_bytes(step: Training, held: dict[str, Any]) -> Array:
    """Return what a device holds in memories of other parts, drives left out, (points,)."""
    machine, near = step.home.machine, step.home.ways.beside(step.offload.unit)
    total: Any = np.zeros(1)
    for name, size in held.items():
        for tier, share in step.home.tiers(name).in_.items():
            if tier not in near and not is_drive(machine, tier):
                total = total + np.atleast_1d(size) * share
    return np.asarray(total)


def _utilisation(step: Training, timed: Timed) -> dict[str, Array]:
    """Return the shares of the matrix units' peak that useful and executed products take."""
    plan, parallel, seconds = timed.plan, step.parallel, timed.seconds
    unit = UnitView(step.placer.machine, step.placer.unit_of(frozenset({"gemm", "dense", "train"})))
    dtype = step.work.model.precision.compute("ffn")
    spans = parallel.pp * parallel.tp * parallel.dp
    peak = np.atleast_1d(unit.peak(dtype)) * spans
    many = step.many * parallel.tp * parallel.dp
    return {
        "mfu": many * plan.model_flops / (seconds * peak),
        "mfu_causal": many * plan.causal_flops / (seconds * peak),
        "hfu": many * plan.hardware_flops / (seconds * peak),
    }


def _rows(costs: tuple[PassCost, ...]) -> tuple[dict[str, Any], ...]:
    """Return the optimizer's rows of the breakdown."""
    return tuple(
        {
            "block": "optimizer", "operator": c.name, "unit": c.unit, "runs": 1.0,
            "seconds": float(c.seconds[0]), "joules": float(c.joules[0]),
        }
        for c in costs
    )  # fmt: skip


def _held_metrics(held: dict[str, Any]) -> dict[str, Array]:
    states = [held.get(name, 0.0) for name in STATES]
    return {
        "weight_bytes": np.atleast_1d(held["weight"]),
        "gradient_bytes": np.atleast_1d(held["gradient"]),
        "optimizer_bytes": np.atleast_1d(sum(states)),
        "activation_bytes": np.atleast_1d(held["activation"] + held["working"]),
        "fragmentation_bytes": np.atleast_1d(held.get("fragmentation", 0.0)),
        "peak_bytes": np.atleast_1d(sum(held.values(), 0.0)),
    }
