"""Phases: one priced and timed, several combined, and what of them fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError, unfit
from opbyte.core.ops import Array, Phase
from opbyte.hw_models.price import Demand, price
from opbyte.sim.analytic import analytic_step
from opbyte.sim.assist import assisted
from opbyte.sim.behind import behind_step
from opbyte.sim.metrics import COSTS, static_watts, with_costs
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun


def run_phase(placer: Placer, phase: Phase, fidelity: str) -> PhaseRun:
    """Price and time one phase."""
    demand = price(placer.place(phase.table), placer.machine, ideal=fidelity == "bound")
    demand, copied = assisted(placer, demand)
    microbatches = placer.mapping.degrees.microbatches
    pipeline = placer.mapping.pipeline
    timeline = None
    if fidelity == "event":
        from opbyte.sim.event import event_step

        if pipeline is not None and pipeline.kind == "continuous":
            raise UncoveredError(
                f"{placer.machine.name}: the event kernel plays one step from its start to its "
                "end, and a continuous pipeline has neither. use the fidelity analytic"
            )
        if pipeline is not None and pipeline.replicas > 1:
            raise UncoveredError(
                f"{placer.machine.name}: the event kernel has no {pipeline.replicas} replicas that "
                "staggered batches visit in turn. use two batches, or the fidelity analytic"
            )
        if demand.placed.behind.any():
            raise UncoveredError(
                f"{placer.machine.name}: the event kernel starts a layer when the one before has "
                "ended. use another overlap than kv_write, or the fidelity analytic"
            )
        if demand.placed.head_overlap or demand.placed.dependency:
            raise UncoveredError(
                f"{placer.machine.name}: the event kernel does not cut operators into heads that "
                "follow each other. use `overlap: none`, or the fidelity analytic"
            )
        step, timeline = event_step(demand, microbatches)
    elif demand.placed.behind.any():
        step = behind_step(demand)
    else:
        # The artifact takes all stages for equally long: only the path of one batch counts.
        turning = 1 if placer.mapping.artifact == "cent" else microbatches
        step = analytic_step(demand, turning, placer.groups.turns if pipeline else None)
    host = placer.mapping.host
    if host is not None and fidelity != "bound":
        step = replace(step, seconds=np.maximum(step.seconds, host.value))
    return PhaseRun(phase.name, demand, step, phase.repeats, timeline, microbatches, copied=copied)


def combine(placer: Placer, runs: list[PhaseRun], tokens: Any) -> dict[str, Array]:
    """Return the common metrics of phases that run one after the other."""
    # The table holds the operators of one device of each stage and group, for one microbatch.
    many = placer.mapping.degrees.microbatches

    def everywhere(run: PhaseRun, per_op: Array) -> Array:
        return total(run.demand, per_op * run.demand.placed.copies[:, None])

    seconds = sum_over(runs, lambda r: r.step.seconds)
    dynamic = sum_over(runs, lambda r: everywhere(r, r.demand.joules)) * many
    flops = sum_over(runs, lambda r: everywhere(r, r.demand.flops)) * many
    memory = sum_over(runs, lambda r: _memory_bytes(placer, r)) * many
    # CENT's artifact counts static power inside its kernels.
    static = 0.0 if placer.mapping.artifact == "cent" else static_watts(placer.machine)
    joules = dynamic + static * seconds
    kernels = sum_over(runs, lambda r: r.demand.placed.executions.sum(axis=0) * r.microbatches)
    return with_costs(
        placer.machine,
        {
            "seconds": seconds,
            "joules": joules,
            "watts": joules / seconds,
            "flops": flops,
            "op_per_byte": flops / memory,
            "kernels": kernels,
            "tokens_per_s": tokens / seconds,
            "joules_per_token": joules / tokens,
        },
    )


def sum_over(runs: list[PhaseRun], value: Callable[[PhaseRun], Array]) -> Array:
    """Return the sum of a value over phases and their repeats, (points,)."""
    summed: Array = np.sum(
        np.broadcast_arrays(*(value(r) * np.atleast_1d(r.repeats) for r in runs)), axis=0
    )
    return summed


def total(demand: Demand, per_op: Array) -> Array:
    """Return an operator's value times its runs, summed, (points,)."""
    summed: Array = (per_op * demand.placed.repeats[:, None]).sum(axis=0)
    return summed


def _memory_bytes(placer: Placer, run: PhaseRun) -> Array:
    """Return bytes of all devices through ports of everything that is no SRAM, (points,)."""
    demand = run.demand
    moved: Array = np.zeros(1)
    for i, resource in enumerate(demand.placed.resources):
        tier = resource.rpartition(".")[0]
        if tier in placer.machine.memories and placer.machine.memory(tier).config.kind != "sram":
            moved = moved + total(demand, demand.bytes[:, i]) * demand.placed.sharers[i]
    return moved


def feasible(placer: Placer, outcome: Outcome, keep: tuple[str, ...] = ()) -> Outcome:
    """Return the outcome with the points marked that do not fit, their metrics NaN.

    Args:
        keep: Metrics that hold whether or not the work fits, besides what the machine costs.
    """
    bad: Any = np.zeros(1, bool)
    reasons = []
    for tier, size in outcome.occupancy.items():
        over = np.atleast_1d(size > placer.capacity(tier))
        if over.any():
            bad = bad | over
            reasons.append(tier)
    if not reasons:
        return outcome
    metrics = {n: np.where(bad, np.nan, v) for n, v in outcome.metrics.items()}
    for name in (*COSTS, *keep):
        metrics[name] = outcome.metrics[name]
    overflow = [
        (placer.holders.get(t, ["tensors"]), t, outcome.occupancy[t], placer.capacity(t))
        for t in reasons
    ]
    detail = {**outcome.detail, "overflow": overflow}
    text = tuple(unfit(h, t) for h, t, _, _ in overflow)
    return Outcome(metrics, outcome.phases, outcome.occupancy, bad, text, detail)


def overflow(outcome: Outcome) -> tuple[list[str], str, float, float]:
    """Return what does not fit: tensors, tier, bytes needed and there, for a `CapacityError`."""
    holders, tier, needed, available = outcome.detail["overflow"][0]
    return holders, tier, float(np.max(needed)), float(np.min(available))
