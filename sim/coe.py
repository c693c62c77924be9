"""Composition of Experts: many models in a slow tier, the ones in use copied to a fast one.

SN40L paper, sections II and VI-C: a router reads the batch of prompts, the experts that it names
are copied to the fast tier unless they are there, and each (prompt, expert) then runs alone. The
latency of a batch is

    router + misses * switch + batch * expert run,

where `analytic` takes expectations (distinct experts of a batch; LRU hit rate of independent
references) and `event` draws the experts of many batches and lets SimPy play them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping_file import Placement
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.sim.copies import Copy, copy_of, reading
from opbyte.sim.metrics import static_watts, with_costs
from opbyte.sim.phases import combine, feasible, run_phase
from opbyte.sim.place import Placer
from opbyte.sim.residency import lru_hit_rate
from opbyte.sim.result import Outcome
from opbyte.sim.runners import RUNNERS

if TYPE_CHECKING:
    from opbyte.workloads.coe import CompositionOfExperts


#: Metrics that say how much fits, also for what does not.
CAPACITY_METRICS = ("models_in_fast", "models_max", "nodes_fast", "nodes_max", "switch_one_s")


@dataclass(frozen=True)
class Tiers:
    """Where experts live and run, for one device; sizes are floats or arrays over points.

    Attributes:
        placement: Placement of the experts' weights.
        copy: One expert on its way to where it runs.
        resident: Experts that fit in the fast tier beside router, KV cache and activations.
        models_in_fast: Models that the fast tier holds when nothing else is there.
        models_max: Models that the home tier holds.
    """

    placement: Placement
    copy: Copy
    resident: Array
    models_in_fast: Array
    models_max: Array


@RUNNERS.register("coe")
def run_coe(
    machine: Machine, work: CompositionOfExperts, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of a Composition of Experts.

    Raises:
        UncoveredError: If experts are spread over several memories, or not kept as LRU does.
    """
    placer = Placer(machine, mapping)
    parallel = mapping.degrees
    tiers = _tiers(placer, work, ideal=fidelity == "bound")
    reads = reading(placer, placer.tiers("router.weight"))
    runs = reading(placer, Placement.model_validate({"in": {tiers.copy.fast: 1.0}}))
    router = [run_phase(reads, work.router_phase(parallel), fidelity)]
    expert = [run_phase(runs, p, fidelity) for p in work.expert_phases(parallel)]
    distinct = work.distinct_experts
    misses = np.minimum(distinct, work.batch * (1.0 - _hit_rate(work, tiers)))
    hit_rate = 1.0 - misses / distinct
    router_only = combine(placer, router, work.batch)
    expert_only = combine(placer, expert, work.output)
    parts = {
        "router_s": router_only["seconds"],
        "switch_s": misses * tiers.copy.seconds,
        "expert_s": work.batch * expert_only["seconds"],
    }
    seconds = parts["router_s"] + _joined(mapping, parts)
    detail: dict[str, Any] = {}
    if fidelity == "event":
        from opbyte.sim.coe_events import play

        played = play(placer, work, router, expert, tiers, seed)
        seconds, misses = np.array([played.mean_s]), np.array([played.mean_misses])
        hit_rate = np.array([played.hit_rate])
        parts["switch_s"] = misses * tiers.copy.seconds
        detail = {"requests": played.rows, "trace_events": played.trace}
    static = static_watts(machine)
    joules = (
        router_only["joules"]
        + work.batch * expert_only["joules"]
        - static * (parts["router_s"] + parts["expert_s"])
        + misses * tiers.copy.joules
        + static * seconds
    )
    tokens = work.batch * work.output
    flops = router_only["flops"] + work.batch * expert_only["flops"]
    memory = router_only["flops"] / router_only["op_per_byte"]
    memory = memory + work.batch * expert_only["flops"] / expert_only["op_per_byte"]
    metrics = with_costs(
        machine,
        {
            "seconds": seconds,
            "joules": joules,
            "watts": joules / seconds,
            "flops": flops,
            "op_per_byte": flops / memory,
            "kernels": router_only["kernels"] + work.batch * expert_only["kernels"],
            "tokens_per_s": tokens / seconds,
            "joules_per_token": joules / tokens,
        },
    )
    metrics |= parts
    metrics |= {
        "switch_one_s": tiers.copy.seconds,
        "expert_one_s": expert_only["seconds"],
        "misses": misses,
        "hit_rate": hit_rate,
        "models_in_fast": tiers.models_in_fast,
        "models_max": tiers.models_max,
        "nodes_fast": _nodes(work.count, tiers.models_in_fast),
        "nodes_max": _nodes(work.count, tiers.models_max),
        "tpot": next(r.step.seconds for r in expert if r.name == "expert.decode"),
    }
    phases = tuple(router + [replace(r, repeats=r.repeats * work.batch) for r in expert])
    outcome = Outcome(_aligned(metrics), phases, _occupancy(placer, work, tiers), detail=detail)
    return feasible(placer, outcome, CAPACITY_METRICS)


def _nodes(count: Any, models: Array) -> Array:
    """Return the machines that hold `count` models, infinite where one holds none."""
    held = np.where(models > 0, models, np.nan)
    return np.where(models > 0, np.ceil(count / held), np.inf)


def _aligned(metrics: dict[str, Any]) -> dict[str, Array]:
    return {name: np.atleast_1d(value).astype(float) for name, value in metrics.items()}


def _joined(mapping: SoftwareMapping, parts: dict[str, Array]) -> Array:
    """Return copies and runs together: one after the other, or side by side."""
    if mapping.overlap == "copy":
        return np.maximum(parts["switch_s"], parts["expert_s"])
    return parts["switch_s"] + parts["expert_s"]


def _tiers(placer: Placer, work: CompositionOfExperts, *, ideal: bool) -> Tiers:
    machine, devices = placer.machine, placer.devices
    placement = placer.tiers("expert.weight")
    cache = placement.cache
    if cache and (cache.evict != "lru" or cache.prefetch != "none"):
        raise UncoveredError(
            f"{machine.name}: a Composition of Experts keeps the models used last (evict: lru) and "
            f"copies none early, the mapping has evict: {cache.evict}, prefetch: {cache.prefetch}"
        )
    copy = copy_of(placer, "expert.weight", work.expert_bytes(placer.mapping.degrees), ideal=ideal)
    used = np.zeros(1)
    for tensor, size in _beside_experts(placer, work).items():
        used = used + np.atleast_1d(size) * placer.tiers(tensor).in_.get(copy.fast, 0.0)
    crowd = max(1.0, devices / machine.memory(copy.fast).count)
    room = np.atleast_1d(placer.capacity(copy.fast)) / crowd
    reserve = cache.reserve if cache else None
    spare = room - used - (reserve.value if reserve else 0.0)
    home_room = np.atleast_1d(placer.capacity(copy.home)) * _instances(placer, copy.home)
    return Tiers(
        placement,
        copy,
        np.maximum(np.floor(spare / copy.bytes), 0.0),
        np.floor(room * (1.0 + 1e-12) / copy.bytes),
        np.floor(home_room * (1.0 + 1e-12) / (copy.bytes * devices)),
    )


def _hit_rate(work: CompositionOfExperts, tiers: Tiers) -> Array:
    """Return the probability that the expert of a prompt is resident, (points,).

    Prompts of a batch that name an expert again find it there. They are hits of the stream of
    prompts, and no distinct experts of the batch: misses are counted over prompts.
    """
    if tiers.copy.fast == tiers.copy.home:
        return np.ones(1)
    count, resident = np.broadcast_arrays(np.atleast_1d(work.count), tiers.resident)
    if work.choose == "uniform":
        share: Array = np.minimum(1.0, resident / count)
        return share
    cases = {(n, c) for n, c in zip(count, resident, strict=True)}
    rates = {(n, c): lru_hit_rate(work.popularity(int(n)), float(c)) for n, c in cases}
    return np.array([rates[n, c] for n, c in zip(count, resident, strict=True)])


def _instances(placer: Placer, memory: str) -> int:
    """Return how many instances of a memory the devices that run can use."""
    return min(placer.machine.memory(memory).count, placer.devices)


def _beside_experts(placer: Placer, work: CompositionOfExperts) -> dict[str, Any]:
    """Return the bytes that one device holds besides experts, by tensor class."""
    held = work.footprint(placer.mapping.degrees)
    return {tensor: size for tensor, size in held.items() if tensor != "expert.weight"}


def _occupancy(placer: Placer, work: CompositionOfExperts, tiers: Tiers) -> dict[str, Any]:
    """Return bytes in one instance of each memory: all experts at home, residents in the cache."""
    devices = placer.devices
    used = placer.occupancy(_beside_experts(placer, work))
    at_home = np.atleast_1d(work.count) * tiers.copy.bytes * devices
    at_home = at_home / _instances(placer, tiers.copy.home)
    used[tiers.copy.home] = used.get(tiers.copy.home, 0.0) + at_home
    placer.holders.setdefault(tiers.copy.home, []).append("expert.weight")
    if tiers.copy.fast != tiers.copy.home:
        cached = np.maximum(np.minimum(tiers.resident, work.count), 1.0)
        crowd = max(1.0, devices / placer.machine.memory(tiers.copy.fast).count)
        used[tiers.copy.fast] = used.get(tiers.copy.fast, 0.0) + cached * tiers.copy.bytes * crowd
        placer.holders.setdefault(tiers.copy.fast, []).append("expert.weight")
    return used
