"""Expert offloading: routed experts in a slow memory, copied to the fast one when they are needed.

A mapping asks for it: `place: {expert.weight: {in: {host.dram: 1.0}, cache: {tier: gpu.hbm, ..}}}`.
The MoE blocks of an iteration (decoder layers with a gate and experts) run one after the other.
With w_i the time from the start of block i's experts to the start of block i+1's, m_i the experts
that block i misses and c the time of one copy, an iteration lasts as long without copies, and

    prefetch: none              + m_i c                          for every block
    prefetch: pre_attention     + max(0, m_i c - a_i)            for every block, a_i from the
                                                                 router to the experts' start
    prefetch: next_block_gate   + m_1 c, max(0, m_i c - w_(i-1)) for the first, for every other
    prefetch: all               + max(0, m_i c - w_(i-1))        for every block, w of the last one
                                                                 before the first

(R. Hwang et al., Pre-gated MoE, ISCA 2024: on demand, pre-gated, and SE-MoE's prefetching; Y. Song
et al., SmallThinker, arXiv 2507.20984: the router before attention). `all` copies every expert of a
block that is not there. The link serves one block's copies at a time. `sim/expert_waits.py` has the
equations, and those of experts that run as they arrive.
`analytic` takes the expected misses of a block, `event` draws experts and plays the two streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping_file import Cache, Placement
from opbyte.core.ops import Array, Phase
from opbyte.hw_models.machine import Machine
from opbyte.sim.copies import Copy, copy_of
from opbyte.sim.expert_blocks import blocks_of
from opbyte.sim.expert_misses import expected_misses, played_misses
from opbyte.sim.expert_waits import block_waits
from opbyte.sim.metrics import add_energy
from opbyte.sim.neurons import check_resident, sparse
from opbyte.sim.phases import combine, feasible, run_phase
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun
from opbyte.workloads.ffn import MoeFfn
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork


@dataclass(frozen=True)
class Experts:
    """Routed experts on one device.

    Attributes:
        ffn: Their layer; all MoE layers of the model are alike.
        layers: MoE layers.
        cache: How they are cached.
        copy: One of them on its way.
        slots: Experts that the fast memory keeps, (points,); with `evict: none` those at work.
        working: Experts that must be there at once: those of two neighbouring blocks where the
            next one's are copied early, else of one, (points,).
    """

    ffn: MoeFfn
    layers: int
    cache: Cache
    copy: Copy
    slots: Array
    working: Array

    @property
    def resident(self) -> bool:
        """Return whether the experts run from where they live."""
        return not self.copy.path


def run_offloaded(
    machine: Machine, work: ModelWork, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of work over a model whose experts are cached in a fast memory.

    Raises:
        UncoveredError: For work, models, parallel degrees or placements that it does not cover.
        WorkloadError: If experts must be drawn, and the routing draws no tokens.
    """
    placer = Placer(machine, mapping)
    model: Model = work.model  # type: ignore[attr-defined]
    phases = work.lowered(mapping.degrees)
    held = work.footprint(mapping.degrees)
    experts = experts_of(placer, model, held, _tokens(phases), ideal=fidelity == "bound")
    reads = reading(placer, experts.copy.fast)
    played = [_phase(reads, work, experts, phase, fidelity, seed) for phase in phases]
    runs = [p.run for p in played]
    metrics = combine(reads, runs, work.tokens)
    for name, phase_name in work.phase_metrics.items():
        metrics[name] = next(r.step.seconds for r in runs if r.name == phase_name)
    copies = _total(played, [p.misses for p in played])
    wanted = _total(played, [p.wanted for p in played])
    occupancy = _occupancy(placer, work, experts)
    if not experts.resident:
        metrics = add_energy(machine, metrics, copies * experts.copy.joules, work.tokens)
    metrics |= {
        "block_s": played[-1].block_s,
        "copied_bytes": copies * experts.copy.bytes,
        "hit_rate": 1.0 - copies / wanted,
        "peak_fast_bytes": np.atleast_1d(occupancy[experts.copy.fast]),
    }
    frames = {p.run.name: p.frame for p in played if p.frame is not None}
    trace = [event for p in played for event in p.trace]
    detail = {"steps": frames, "trace_events": trace} if frames else {}
    occupancy = _reserved(placer, experts, occupancy)
    return feasible(
        placer, Outcome(metrics, tuple(runs), occupancy, detail=detail), ("peak_fast_bytes",)
    )


def offloads(mapping: SoftwareMapping) -> bool:
    """Return whether a mapping caches routed experts, and nothing else."""
    return [n for n, place in mapping.place.items() if place.cache] == ["expert.weight"]


def reading(placer: Placer, fast: str) -> Placer:
    """Return the placer by which experts run: from the fast memory."""
    there = Placement.model_validate({"in": {fast: 1.0}})
    place = {**placer.mapping.place, "expert.weight": there}
    return Placer(placer.machine, placer.mapping.model_copy(update={"place": place, "routes": {}}))


def _covered(placer: Placer, model: Model) -> MoeFfn:
    """Return the layer of experts.

    Raises:
        UncoveredError: If this model or split is not covered.
    """
    degrees = placer.mapping.degrees
    kinds = {layer.ffn for layer in model.layers if isinstance(layer.ffn, MoeFfn)}
    if len(kinds) != 1:
        raise UncoveredError(
            f"{model.name}: experts are offloaded where all layers of experts are alike, it has "
            f"{len(kinds) or 'no'} kinds of them. use a mapping without a cache of expert.weight"
        )
    if degrees.pp * degrees.ep * degrees.microbatches > 1:
        raise UncoveredError(
            f"mapping '{placer.mapping.name}': offloaded experts need pp = ep = microbatches = 1, "
            f"got {degrees.pp}, {degrees.ep}, {degrees.microbatches}. split them by tp"
        )
    if any(run.split for run in placer.mapping.run):
        raise UncoveredError(
            f"mapping '{placer.mapping.name}': experts that are copied to a fast memory are not "
            "divided between units. name one unit in each rule of `run`"
        )
    return kinds.pop()


def experts_of(
    placer: Placer, model: Model, held: Mapping[str, Any], tokens: list[Array], *, ideal: bool
) -> Experts:
    """Return the experts of a model under a mapping that caches them.

    Args:
        held: Tensor class -> bytes that one device holds, all experts included.
        tokens: Tokens that pass each kind of layer with experts, each (points,).
    Raises:
        UncoveredError: If the model or its split is not covered.
    """
    ffn = _covered(placer, model)
    run = (*model.encoder, *model.order)
    layers = sum(isinstance(model.layers[i].ffn, MoeFfn) for i in run)
    copy = copy_of(placer, "expert.weight", held["expert"] / (layers * ffn.experts), ideal=ideal)
    cache = placer.tiers("expert.weight").cache
    assert cache is not None
    most = [np.minimum(ffn.experts, np.ceil(t) * ffn.top_k) for t in tokens]
    if cache.prefetch == "all":
        most = [np.full(1, float(ffn.experts))]
    ahead = 1.0 if cache.prefetch in ("none", "pre_attention") else 2.0
    everything = float(layers * ffn.experts)
    working = np.minimum(ahead * np.max(np.broadcast_arrays(*most), axis=0), everything)
    slots = working
    if not copy.path:
        slots = np.full(1, everything)
    elif cache.evict != "none":
        others = placer.occupancy({k: v for k, v in held.items() if k != "expert"})
        crowd = crowd_of(placer, copy.fast)
        spare = np.atleast_1d(placer.capacity(copy.fast) - others.get(copy.fast, 0.0)) / crowd
        spare = spare - _reserve(cache)
        slots = np.clip(np.floor(spare / copy.bytes), working, everything)
        if cache.slots is not None:
            slots = np.clip(float(cache.slots), working, everything)
    placer.holders.clear()
    return Experts(ffn, layers, cache, copy, slots, working)


def _reserve(cache: Cache) -> float:
    """Return the bytes of the tier that the cache leaves free on each device."""
    return cache.reserve.value if cache.reserve else 0.0


def _tokens(phases: tuple[Phase, ...]) -> list[Array]:
    """Return the tokens that pass each kind of MoE block."""
    return [np.atleast_1d(s.tokens) for p in phases for s in p.table.spreads.values()]


def _occupancy(placer: Placer, work: ModelWork, experts: Experts) -> dict[str, Any]:
    """Return bytes in one instance of each memory: all experts at home, copies in the fast one."""
    copy = experts.copy
    used = placer.occupancy(work.footprint(placer.mapping.degrees))
    if copy.path:
        held = experts.slots * copy.bytes * crowd_of(placer, copy.fast)
        used[copy.fast] = used.get(copy.fast, 0.0) + held
        placer.holders.setdefault(copy.fast, []).append("expert.weight")
    return used


def _reserved(placer: Placer, experts: Experts, used: dict[str, Any]) -> dict[str, Any]:
    """Return the occupancy with what the cache leaves free, which must fit beside all else."""
    free, fast = _reserve(experts.cache), experts.copy.fast
    if not free:
        return used
    placer.holders.setdefault(fast, []).append("the cache's reserve")
    return {**used, fast: used[fast] + free * crowd_of(placer, fast)}


def crowd_of(placer: Placer, memory: str) -> float:
    """Return how many devices keep copies in one instance of a memory."""
    return max(1.0, placer.devices / placer.machine.memory(memory).count)


@dataclass(frozen=True)
class Played:
    """One phase with its copies.

    Attributes:
        misses, wanted: Experts copied and asked for in one iteration, (points,).
        block_s: Mean time of a layer with experts, (points,).
        frame: One row for each iteration that was played.
        trace: Events for a timeline.
    """

    run: PhaseRun
    misses: Array
    wanted: Array
    block_s: Array
    frame: Any = None
    trace: tuple[dict[str, Any], ...] = ()


def _phase(
    placer: Placer, work: ModelWork, experts: Experts, phase: Phase, fidelity: str, seed: int
) -> Played:
    """Return one phase: priced, and its copies beside it.

    A prompt runs once, and finds none of its experts: what an empty cache does, whatever it evicts.
    """
    if phase.name == "prefill":
        empty = experts.cache.model_copy(update={"evict": "none"})
        experts = replace(experts, cache=empty)
    routing = work.routing
    if placer.mapping.neurons is not None:
        check_resident(work, placer)
        phase = replace(phase, table=sparse(phase.table, placer.mapping.neurons))
    if getattr(work, "chunks", ()):
        # Tokens of prompts take none of the experts that the iteration before took.
        routing = replace(routing, locality=0.0)
    run = run_phase(placer, phase, fidelity)
    _check_way(run, experts.copy)
    blocks = blocks_of(run)
    frame: Any = None
    trace: list[dict[str, Any]] = []
    if fidelity == "event" and not experts.resident:
        from opbyte.sim.expert_events import play_all

        drawn = played_misses(routing, experts, blocks, seed)
        seconds, block_s, frame, trace = play_all(run, blocks, experts, drawn)
        misses, wanted = (
            np.array([np.mean([each[1:].sum(axis=1).mean() for each in x])])
            for x in zip(*drawn, strict=True)
        )
    else:
        each, asked = expected_misses(routing, experts, blocks.distinct, blocks.tokens)
        waits = block_waits(blocks, each, asked, experts.copy, experts.cache)
        seconds = blocks.seconds + waits.sum(axis=0)
        block_s = blocks.layer.mean(axis=0) + waits.mean(axis=0)
        misses, wanted = each.sum(axis=0), asked.sum(axis=0)
    alone = run.step.seconds
    busy = dict(run.step.busy)
    for name, one in experts.copy.busy.items():
        busy[name] = busy.get(name, 0.0) + misses * one
    seconds = np.max(np.broadcast_arrays(seconds, run.step.seconds, *busy.values()), axis=0)
    step = replace(run.step, seconds=seconds, path=seconds, busy=busy)
    beside = () if experts.resident else (_copies(run, experts.copy, misses, seconds - alone),)
    run = replace(run, step=step, beside=beside)
    return Played(run, misses, wanted, block_s, frame, tuple(trace))


def _copies(run: PhaseRun, copy: Copy, count: Array, waited: Array) -> dict[str, Any]:
    """Return the breakdown's row of an iteration's copies.

    Its seconds are those that the copies add, not those that operators hide.
    """
    times = float(np.ravel(run.repeats)[0])

    def total(each: Array) -> float:
        return float(np.ravel(each)[0]) * times

    moved = {f"{r}_bytes": total(count * copy.bytes) for r in copy.path}
    busy = {f"{r}_s": total(count * one) for r, one in copy.busy.items()}
    return {
        "operator": "copies of experts",
        "runs": total(count),
        "seconds": total(waited),
        "joules": total(count * copy.joules),
        **moved,
        **busy,
        "bound_by": max(copy.busy, key=lambda r: float(copy.busy[r][0])),
    }


def _check_way(run: PhaseRun, copy: Copy) -> None:
    """Refuse operators that use the link or the slow memory themselves."""
    placed = run.demand.placed
    for i, name in enumerate(placed.resources):
        if name in copy.path[:-1] and run.demand.busy[:, i].any():
            raise UncoveredError(
                f"operators and copies of experts both use '{name}', and no model shares it "
                "between them yet. place other tensors elsewhere"
            )


def _total(played: list[Played], each: list[Array]) -> Array:
    """Return a value of one iteration summed over phases and their repeats, (points,)."""
    parts = [v * np.atleast_1d(p.run.repeats) for p, v in zip(played, each, strict=True)]
    total: Array = np.sum(np.broadcast_arrays(*parts), axis=0)
    return total
