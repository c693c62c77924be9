"""simulate(): one call for one point, and the array path behind it for many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opbyte.core.config import Document
from opbyte.core.errors import CapacityError, ConfigError, SimulationError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping import Split, load_mapping
from opbyte.core.ops import Array, Phase
from opbyte.core.registry import Registry
from opbyte.hw_models.cost.area import machine_area_m2
from opbyte.hw_models.cost.carbon import machine_carbon_kg
from opbyte.hw_models.cost.energy import machine_power_w
from opbyte.hw_models.cost.money import machine_price_usd
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.hw_models.price import Demand, price
from opbyte.sim.analytic import analytic_step
from opbyte.sim.assist import assisted, with_copies
from opbyte.sim.attention_group import pooled_footprint, pooled_phases
from opbyte.sim.behind import behind_step
from opbyte.sim.fill import check_turns, filled, fills, largest_batch, smallest, with_turns
from opbyte.sim.in_storage import with_token_groups
from opbyte.sim.kv_share import kv_metrics
from opbyte.sim.labels import check_labels
from opbyte.sim.neurons import check_resident, sparse
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun, Result
from opbyte.workloads.works import WORKS, Work, work_from

Fidelity = Literal["bound", "analytic", "event"]
FIDELITIES = ("bound", "analytic", "event")

#: Metrics that every kind of work has, except those that it calls `undefined`.
COMMON = (
    "seconds",
    "joules",
    "watts",
    "flops",
    "op_per_byte",
    "kernels",
    "tokens_per_s",
    "joules_per_token",
    "area_m2",
    "price_usd",
    "carbon_kg",
    "tdp_w",
    "usd_per_mtoken",
    "tco_usd_per_mtoken",
    "carbon_g_per_mtoken",
)
#: What a machine itself costs, whatever it does.
COSTS = {
    "area_m2": machine_area_m2,
    "price_usd": machine_price_usd,
    "carbon_kg": machine_carbon_kg,
    "tdp_w": machine_power_w,
}
#: Values of its site that decide what a token costs.
SITE = ("life", "busy", "overhead", "electricity", "grid")

#: Kinds of work whose routed experts a mapping may cache (`opbyte.sim.expert_offload`).
OFFLOADED = ("prefill", "decode", "generate", "mixed")
#: Metrics that this adds. `block_s` is the mean time of a layer with experts, waiting included, in
#: the last phase; `copied_bytes` go to one device; `hit_rate` is the share of the experts asked for
#: that are there; `peak_fast_bytes` is what one instance of the fast memory holds.
OFFLOAD_METRICS = ("block_s", "copied_bytes", "hit_rate", "peak_fast_bytes")

#: Metrics of work whose neurons lie in a cache: bytes that a token reads and the seconds of it, the
#: share of the neurons asked for that are there, and those of networks and of the rest alone.
CLUSTER_METRICS = (
    "copied_bytes",
    "copy_s",
    "copy_rate",
    "hit_rate",
    "network_s",
    "peak_fast_bytes",
)

#: Metrics of work under a zigzag pipeline, of the last phase: bytes of weights that are read for
#: one step, the seconds of their copies alone and the rate, the time that a cache of neurons takes
#: beside, the bytes of the KV cache that come back from where it was swapped to, and what the
#: memory of the last rule's unit holds.
BLOCK_METRICS = (
    "copied_bytes", "copy_s", "copy_rate", "cache_s", "swapped_bytes", "peak_fast_bytes",
)  # fmt: skip

#: Metrics of decode attention on a group of its own, and under a zigzag pipeline, of the last
#: phase: the share of its time, and the seconds, in which the cache is read, written, asked or
#: copied and nothing else runs.
KV_METRICS = ("kv_s", "kv_share")

Runner = Callable[[Machine, Any, SoftwareMapping, str, int], Outcome]
#: Work kinds that are more than phases one after the other have a runner of their own.
RUNNERS: Registry[Runner] = Registry("kind of work with a runner")
#: Modules whose import registers the runners that ship with opbyte; loaded when one is needed.
RUNNERS_OF = {
    "coe": "opbyte.sim.coe",
    "serve": "opbyte.sim.serving.run",
    "speculative_decode": "opbyte.sim.speculative",
    "stream": "opbyte.sim.stream",
    "train": "opbyte.sim.training.run",
}


def simulate(
    machine: str | Path | Mapping[str, Any] | Machine,
    work: Mapping[str, Any] | Work,
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
    fidelity: Fidelity = "analytic",
    seed: int = 0,
) -> Result:
    """Simulate one piece of work on one machine.

    Args:
        machine: Catalog name, YAML file, dict or Machine.
        work: A work such as `Decode(model, batch=1, context=4096)`, or its YAML form as a dict.
        mapping: Name of one of the machine's mappings, file, dict or Mapping; by default the
            machine's own for this kind of work, else its `default`.
        fidelity: bound (peaks only), analytic (effective rates) or event (with contention).
        seed: For work that draws random numbers.
    Raises:
        ConfigError: If something is unknown or contradicts itself.
        CapacityError: If a tensor does not fit where the mapping puts it.
        UncoveredError: If no model covers what is asked.
        SimulationError: If it takes for ever, because a rate is 0.
    """
    loaded = load_machine(machine)
    built = _work(work)
    chosen = resolve_mapping(loaded, mapping, built.kind)
    with np.errstate(divide="ignore", invalid="ignore"):
        outcome = evaluate(loaded, built, chosen, fidelity, seed)
    if outcome.infeasible is not None and np.any(outcome.infeasible):
        raise CapacityError(*overflow(outcome))
    points = max(map(np.size, outcome.metrics.values()))
    if points > 1:
        remedy = "give a study the values as an axis, or simulate them one by one"
        rule = "one simulation is one point, but a field or parameter holds several"
        raise ConfigError.one("", "", rule, points, remedy)
    if not np.all(np.isfinite(outcome.metrics["seconds"])):
        raise SimulationError(
            f"{built.kind} on {loaded.name} takes for ever: a rate that it needs is 0. "
            "`opbyte explain` lists the machine's rates"
        )
    return Result(outcome, loaded, built.kind, fidelity)


def _work(work: Any) -> Work:
    if isinstance(work, Work):
        return work
    if not isinstance(work, Mapping):
        remedy = "Write for example {'kind': 'decode', 'model': 'llama-3.1-8b', 'batch': 1}."
        raise ConfigError.one("", "work", "a work or a dict is due", work, remedy)
    return work_from(Document(dict(work), {}, "work"))


def evaluate(
    machine: Machine,
    work: Work,
    mapping: SoftwareMapping,
    fidelity: str = "analytic",
    seed: int = 0,
) -> Outcome:
    """Evaluate one or many design points.

    Arrays over points, in `machine.values` or in the work's fields, are evaluated together.

    Raises:
        ConfigError: For an unknown fidelity, or what `simulate` raises.
    """
    if fidelity not in FIDELITIES:
        raise ConfigError.one(
            "", "fidelity", f"must be one of {', '.join(FIDELITIES)}", fidelity, "choose one"
        )
    if why := unplayable(type(work), fidelity):
        raise UncoveredError(why)
    check_labels(mapping, work)
    mapping = mapping.on(machine.counts)
    elsewhere = _run_elsewhere(machine, work, mapping, fidelity, seed)
    if elsewhere is not None:
        return elsewhere
    if work.alone:
        mapping = mapping.model_copy(update=alone(mapping))
    mapping = with_turns(mapping, work)
    placer = Placer(machine, mapping)
    two = mapping.attention is not None

    def footprint(one: Work) -> dict[str, Any]:
        return pooled_footprint(one, mapping) if two else one.footprint(mapping.degrees)

    if fills(work):
        work = filled(placer, work, footprint(smallest(placer, work)))
    check_turns(placer, work)
    held = footprint(work)
    phases = pooled_phases(work, mapping) if two else work.lowered(mapping.degrees)
    if mapping.neurons is not None:
        check_resident(work, placer)
        phases = tuple(replace(p, table=sparse(p.table, mapping.neurons)) for p in phases)
    runs = [run_phase(placer, p, fidelity) for p in phases]
    occupancy = with_copies(placer, placer.occupancy(held), [r.copied for r in runs])
    occupancy = with_token_groups(placer, occupancy, runs)
    metrics = combine(placer, runs, work.tokens)
    if two:
        metrics |= kv_metrics(runs[-1])
    kept: tuple[str, ...] = ()
    if work.fills:
        kept = ("batch_max", "kv_bytes")
        metrics["batch_max"] = largest_batch(placer, held, work.sequences)
        metrics["kv_bytes"] = np.atleast_1d(held.get("kv", 0.0))
    for name, phase in work.phase_metrics.items():
        metrics[name] = next(r.step.seconds for r in runs if r.name == phase)
    metrics |= work.summary({r.name: r.step.seconds for r in runs})
    if "flops_per_s" in work.metrics:
        metrics["flops_per_s"] = metrics["flops"] / metrics["seconds"]
    return feasible(placer, Outcome(metrics, tuple(runs), occupancy), kept)


def alone(mapping: SoftwareMapping) -> dict[str, Any]:
    """Return what differs in a mapping where one device of the group has all to itself."""
    default = mapping.default
    sets = {"all": Split(group=default.group, together=True)} if default else {}
    together = default is not None and default.together
    parallel = sets if together else {}
    return {"parallel": parallel, "pipeline": None, "overlap": "none", "assist": None}


def _run_elsewhere(
    machine: Machine, work: Work, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome | None:
    """Return the outcome of work that has a runner of its own, or whose experts are offloaded.

    Raises:
        UncoveredError: If it has no model of the mapping's groups or caches, or of `max`.
    """
    if work.kind in RUNNERS_OF:
        import_module(RUNNERS_OF[work.kind])
    if mapping.blocks:
        check_turns(Placer(machine, mapping), work)
        zigzag = import_module("opbyte.sim.block_schedule")
        scheduled: Outcome = zigzag.run_zigzag(machine, work, mapping, fidelity)
        return scheduled
    if mapping.clusters:
        clusters = import_module("opbyte.sim.neuron_clusters")
        clustered: Outcome = clusters.run_clusters(machine, work, mapping, fidelity)
        return clustered
    cached = list(mapping.cached)
    offloads = cached == ["expert.weight"] and work.kind in OFFLOADED
    if work.kind not in RUNNERS.names() and not cached:
        return None
    apart = mapping.attention is not None and work.kind != "serve"
    if apart or fills(work):
        text = "decode attention on a group of its own" if apart else "`max`"
        raise UncoveredError(
            f"mapping '{mapping.name}' of {machine.name}: a {work.kind} work has no model of "
            f"{text} here. use another mapping, or decode and serve works whose weights all fit"
        )
    if work.kind in RUNNERS.names():
        _check_played(machine, work, mapping)
        return RUNNERS.lookup(work.kind)(machine, work, mapping, fidelity, seed)
    if offloads:
        offload = import_module("opbyte.sim.expert_offload")
        offloaded: Outcome = offload.run_offloaded(machine, work, mapping, fidelity, seed)
        return offloaded
    refuse_caches(machine, work, mapping)
    return None


def _check_played(machine: Machine, work: Work, mapping: SoftwareMapping) -> None:
    """Refuse what a mapping asks of weights that works with runners of their own do not honour.

    Raises:
        UncoveredError: If it does.
    """
    caches = [place.cache for place in mapping.place.values() if place.cache]
    # Steps of served traces are priced with the way between two groups.
    between = work.kind == "serve" and mapping.attention is not None
    wishes = {
        "neurons": mapping.neurons is not None,
        "routes": bool(mapping.routes) and not between,
        "slots of a cache": any(cache.slots is not None for cache in caches),
        "waits: expert": any(cache.waits == "expert" for cache in caches),
        "prefetch: pre_attention": any(cache.prefetch == "pre_attention" for cache in caches),
    }
    for name in (name for name, wished in wishes.items() if wished):
        raise UncoveredError(
            f"mapping '{mapping.name}' of {machine.name}: a {work.kind} work has no model of {name}"
            " here. leave it out, or use prefill and decode works"
        )


def refuse_caches(machine: Machine, work: Work, mapping: SoftwareMapping) -> None:
    """Refuse a mapping that caches a tensor, which no phase has a model of.

    Raises:
        UncoveredError: If it does.
    """
    cached = [name for name, place in mapping.place.items() if place.cache]
    if cached:
        raise UncoveredError(
            f"mapping '{mapping.name}' of {machine.name}: a {work.kind} work has no model of the "
            f"cache of {', '.join(cached)}. use another mapping; prefill, decode and generate "
            "works cache expert.weight, coe works models"
        )


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


def add_energy(
    machine: Machine, metrics: dict[str, Array], joules: Any, tokens: Any
) -> dict[str, Array]:
    """Return metrics with more energy, and the costs that follow from it."""
    total = metrics["joules"] + joules
    changed = {"joules": total, "watts": total / metrics["seconds"]}
    return with_costs(machine, {**metrics, **changed, "joules_per_token": total / tokens})


def with_costs(machine: Machine, metrics: dict[str, Array]) -> dict[str, Array]:
    """Return metrics with costs and carbon, NaN where the machine does not give them."""
    for name, cost in COSTS.items():
        metrics[name] = machine.remembered(name, partial(_cost, machine, cost))
    site = {name: machine.values[f"site.{name}"] for name in SITE}
    # A token takes a part of the machine's life, and its joules as many more of the site.
    part = 1.0 / (site["life"] * site["busy"] * metrics["tokens_per_s"])
    joules = metrics["joules_per_token"] * site["overhead"]
    metrics["usd_per_mtoken"] = 1e6 * metrics["price_usd"] * part
    energy = 1e6 * joules * site["electricity"]
    metrics["tco_usd_per_mtoken"] = metrics["usd_per_mtoken"] + energy
    grams = metrics["carbon_kg"] * part + joules * site["grid"]
    metrics["carbon_g_per_mtoken"] = 1e9 * grams
    return metrics


def _cost(machine: Machine, cost: Callable[[Machine], Any]) -> Array:
    try:
        return np.atleast_1d(cost(machine))
    except UncoveredError:
        return np.array([np.nan])


def static_watts(machine: Machine) -> Any:
    """Return the power that flows whether or not anything runs, watts."""
    return machine.remembered("static_watts", partial(_static_watts, machine))


def _static_watts(machine: Machine) -> Any:
    total = machine.values.get("static_power", 0.0)
    for part, count in machine.counts.items():
        total = total + count * machine.values.get(f"{part}.static_power", 0.0)
    return total


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
    text = tuple(f"{'+'.join(h)} does not fit in {t}" for h, t, _, _ in overflow)
    return Outcome(metrics, outcome.phases, outcome.occupancy, bad, text, detail)


def overflow(outcome: Outcome) -> tuple[list[str], str, float, float]:
    """Return what does not fit: tensors, tier, bytes needed and there, for a `CapacityError`."""
    holders, tier, needed, available = outcome.detail["overflow"][0]
    return holders, tier, float(np.max(needed)), float(np.min(available))


def resolve_mapping(
    machine: Machine,
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None,
    kind: str = "",
) -> SoftwareMapping:
    """Return the mapping to use: the machine's for this kind of work unless one is given."""
    if mapping is None:
        chosen = machine.mapping(kind if kind in machine.config.mappings else None)
    elif (
        isinstance(mapping, str) and "\n" not in mapping and not mapping.endswith((".yaml", ".yml"))
    ):
        chosen = machine.mapping(mapping)
    else:
        chosen = load_mapping(mapping)
    return chosen.on(machine.counts)


def unplayable(work: type[Work], fidelity: str) -> str:
    """Return why a kind of work has no such fidelity; empty where it has."""
    if fidelity == "bound" and work.played:
        return f"a {work.kind} work has no bound: its steps depend on the times of other steps"
    return ""


def metrics_of(kind: str, *mappings: SoftwareMapping) -> tuple[str, ...]:
    """Return the metrics that a kind of work defines, under any of some mappings.

    Raises:
        ConfigError: For an unknown kind, with the nearest name.
    """
    work = WORKS.lookup(kind)
    own = (*(name for name in COMMON if name not in work.undefined), *work.metrics)
    places = [m.place["expert.weight"] for m in mappings if "expert.weight" in m.place]
    offloads = kind in OFFLOADED and any(place.cache for place in places)
    if kind in OFFLOADED and any(m.attention or m.blocks for m in mappings):
        own = (*own, *KV_METRICS)
    if any(m.clusters for m in mappings):
        return (*own, *(name for name in CLUSTER_METRICS if name not in own))
    if any(m.blocks for m in mappings):
        own = (*own, *(name for name in BLOCK_METRICS if name not in own))
    return (*own, *OFFLOAD_METRICS) if offloads else own
