"""simulate(): one call for one point, and the array path behind it for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opbyte.core.config import Document
from opbyte.core.errors import CapacityError, ConfigError, SimulationError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping import load_mapping
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.assist import with_copies
from opbyte.sim.attention_group import pooled_footprint, pooled_phases
from opbyte.sim.fill import check_turns, filled, fills, largest_batch, smallest, with_turns
from opbyte.sim.in_storage import with_token_groups
from opbyte.sim.kv_share import kv_metrics
from opbyte.sim.labels import check_labels
from opbyte.sim.metrics import OFFLOADED
from opbyte.sim.neurons import check_resident, sparse
from opbyte.sim.phases import combine, feasible, overflow, run_phase
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, Result
from opbyte.sim.runners import RUNNERS, RUNNERS_OF, alone, refuse_caches, unplayable
from opbyte.workloads.works import Work, work_from

Fidelity = Literal["bound", "analytic", "event"]
FIDELITIES = ("bound", "analytic", "event")


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
