"""FlexGen's block schedule: batches share one load of each layer's weights.

`pipeline: {kind: zigzag, batches: n}`. All n batches pass a layer before the first one passes the
next (Sheng et al., FlexGen, ICML 2023, section 4.1). A tensor class whose placement has a `cache`
is copied from its tiers into that memory before it is used, and what is written goes back; what of
weights and keys lives beside a unit that is not at the cache, that unit uses where it is. With p
the time of a layer for one batch where everything is in its cache, and for each resource r the
seconds u_r of its use by copies and operators, a layer takes

    max(n p, max over r of u_r) + the copies of classes with `prefetch: none`, one after the other

(the maximum is the paper's equation for its six streams). Copies of weights are made once, those of
the KV cache and of activations for each batch. A storage device is reached by software: the host
path of `routes` (`opbyte.hw_models.host_path`) is a resource of its own.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import Array, Phase
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, price
from opbyte.sim.analytic import Step, block_paths, held
from opbyte.sim.block_checks import check, check_tensors
from opbyte.sim.copy_streams import STREAMS, Stream, Streams, Use, add
from opbyte.sim.head_overlap import path_durations
from opbyte.sim.kv_share import attention_operators
from opbyte.sim.metrics import add_energy
from opbyte.sim.neurons import ffn_bytes, fresh, resolved, sparse
from opbyte.sim.phases import combine, feasible
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun
from opbyte.sim.scores import held_scores, score_seconds
from opbyte.sim.swap import Swap
from opbyte.workloads.model_work import ModelWork


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a phase, one row each, for one batch.

    Attributes:
        path: Seconds where everything is in its cache, (blocks, points).
        used: Seconds by resource that operators use, each (blocks, points).
        moved: Bytes by stream of `STREAMS`, and what of it is copied by `Stream.key`, each
            (blocks, 1 or points).
        counts: How often each block runs, (blocks,).
        scores: Bytes of score matrices that are held, (blocks, 1 or points).
        rest: `path` where attention and its tensors take no time, (blocks, points).
    """

    path: Array
    used: dict[str, Array]
    moved: dict[str, Array]
    counts: Array
    scores: Array
    rest: Array


def run_zigzag(machine: Machine, work: ModelWork, mapping: Mapping, fidelity: str) -> Outcome:
    """Return the outcome of work whose batches share loads of weights.

    Raises:
        UncoveredError: For work, fidelities or parallel degrees that it does not cover.
        ConfigError: If a route names a class that is not copied.
    """
    check(machine, work, mapping, fidelity)
    ideal = fidelity == "bound"
    neurons = resolved(mapping.neurons, work.model)  # type: ignore[attr-defined]
    mapping = mapping.model_copy(update={"neurons": neurons})
    home = Placer(machine, mapping)
    reads = _Reading(machine, mapping.model_copy(update={"routes": {}}))
    phases = work.lowered(mapping.degrees)
    check_tensors(home, [p.table for p in phases])
    streams = Streams.of(home, work.model, ideal=ideal)  # type: ignore[attr-defined]
    for name, routes in mapping.routes.items():
        for route in routes:
            streams.check_crosses(name, route.via)
    tables = [sparse(p.table, mapping.neurons) for p in phases]
    demands = [price(reads.place(t), reads.machine, ideal=ideal) for t in tables]
    swap = Swap.of(home, work)
    blocks = [
        _blocks(home, p, d, streams, swap, ideal=ideal)
        for d, p in zip(demands, phases, strict=True)
    ]
    runs = [
        _run(p, d, b, streams, mapping.batches)
        for p, d, b in zip(phases, demands, blocks, strict=True)
    ]
    metrics = combine(reads, runs, work.tokens)
    joules: Any = 0.0
    for phase, one in zip(phases, blocks, strict=True):
        joules = joules + _joules(one, streams, mapping.batches) * np.atleast_1d(phase.repeats)
    metrics = add_energy(machine, metrics, joules, work.tokens)
    for name, phase_name in work.phase_metrics.items():
        metrics[name] = next(r.step.seconds for r in runs if r.name == phase_name)
    metrics |= work.summary({r.name: r.step.seconds for r in runs})
    if "flops_per_s" in work.metrics:
        metrics["flops_per_s"] = metrics["flops"] / metrics["seconds"]
    metrics |= _copies(blocks[-1], streams, mapping.batches)
    metrics |= _cache(runs[-1], phases[-1], blocks[-1], streams, mapping.batches)
    occupancy = _occupancy(home, work, phases[0], blocks, streams, swap)
    fast = machine.unit_ports(mapping.run[-1].units[0])[0].rpartition(".")[0]
    metrics["peak_fast_bytes"] = np.atleast_1d(occupancy[fast])
    return feasible(
        home, Outcome(metrics, tuple(runs), occupancy), ("copied_bytes", "peak_fast_bytes")
    )


def _copies(last: _Blocks, streams: Streams, batches: int) -> dict[str, Array]:
    """Return the metrics of copies, of one step of the last phase."""
    counts = last.counts[:, None]
    read, seconds, caring = np.zeros(1), np.zeros(1), np.zeros(1)
    swapped = np.zeros(1)
    for use in streams.uses(last.moved, batches):
        if use.name in ("weight", "neurons"):
            read = read + (counts * use.bytes).sum(axis=0)
            seconds = seconds + (counts * use.alone).sum(axis=0)
        elif use.name == "cache":
            caring = caring + (counts * use.alone).sum(axis=0)
        elif use.name == "swap_in":
            swapped = swapped + (counts * use.bytes).sum(axis=0)
    rate = np.where(seconds > 0, read / np.where(seconds > 0, seconds, 1.0), np.nan)
    return {
        "copied_bytes": read, "copy_s": seconds, "copy_rate": rate, "cache_s": caring,
        "swapped_bytes": swapped,
    }  # fmt: skip


def _cache(run: PhaseRun, phase: Phase, last: _Blocks, streams: Streams, batches: int) -> Any:
    """Return seconds and share of a step that are the KV cache's: without it, it takes the rest."""
    ours = {s.name for s in STREAMS if s.tensor == "kv"}
    moved = {n: size * (n.partition("@")[0] not in ours) for n, size in last.moved.items()}
    without = replace(last, path=last.rest, used={}, moved=moved)
    rest = _run(phase, run.demand, without, streams, batches).step.seconds
    seconds = np.maximum(run.step.seconds - rest, 0.0)
    return {"kv_s": seconds, "kv_share": seconds / run.step.seconds}


class _Reading(Placer):
    """Operators read from caches, but for what lives beside a unit that is not at the cache."""

    def read_from(self, tensor: str, unit: str) -> MappingType[str, float]:
        placement = self.tiers(tensor)
        if placement.cache is None:
            return placement.in_
        here = _read_at_home(self, tensor, unit)
        if not here:
            return {placement.cache.tier: 1.0}
        near = {tier: share for tier, share in placement.in_.items() if tier in here}
        far = sum(share for tier, share in placement.in_.items() if tier not in here)
        return {**near, placement.cache.tier: far} if far else near


def _read_at_home(placer: Placer, tensor: str, unit: str) -> set[str]:
    """Return the tiers of a class with a cache that a unit reads itself, without copies.

    What lies beside a unit elsewhere than the cache is there already. What blocks give each other
    (activations) is in the cache, wherever it rests between them.
    """
    placement, beside = placer.tiers(tensor), placer.ways.beside(unit)
    copied = tensor in {s.tensor for s in STREAMS if s.column}
    if placement.cache is None or placement.cache.tier in beside or not copied:
        return set()
    return beside & set(placement.in_)


def _blocks(
    home: Placer, phase: Phase, demand: Demand, streams: Streams, swap: Swap | None, *, ideal: bool
) -> _Blocks:
    """Return the blocks of a phase."""
    neurons = fresh(phase.table, home.mapping.neurons)
    placed = demand.placed
    table, count = placed.table, len(placed.table.blocks)

    def by_block(per_op: Array) -> Array:
        total = np.zeros((count, per_op.shape[1]))
        np.add.at(total, placed.block_of, per_op)
        return total

    used = {name: by_block(seconds) for name, seconds in held(demand, demand.duration)}
    read = {s.name: np.atleast_2d(placed.moved[s.column]) for s in STREAMS if s.column}
    moved = {name: by_block(size) for name, size in read.items()}
    for s in (s for s in STREAMS if s.column):
        for tier, ops in _copied(home, demand, s).items():
            moved[s.key(tier)] = by_block(read[s.name] * ops)
    # What a block reads of the one before it, once for all rows that read it.
    given = np.zeros((count, table["in_bytes"].shape[1]))
    np.maximum.at(given, table.block_of, table["in_bytes"])
    moved |= {s.name: given for s in STREAMS if s.tensor == "activation"}
    moved["neurons"] = neurons
    if swap is not None:
        again, written = swap.shares(phase, home.mapping.batches)
        moved |= {"swap_in": again * moved["kv_load"], "swap_out": written * moved["kv_store"]}
    path = block_paths(demand, path_durations(demand))
    scores = held_scores(home, table, demand)
    counts = np.bincount(table.order, minlength=count).astype(float)
    others = np.where(attention_operators(demand)[:, None], 0.0, path_durations(demand))
    rest = block_paths(demand, others)
    for seconds in streams.unpacking({"weight": moved["weight"]}).values():
        rest = rest + seconds
    extra = {**streams.unpacking(moved)}
    add(extra, score_seconds(home, scores, ideal=ideal))
    for seconds in extra.values():
        path = path + seconds
    add(used, extra)
    return _Blocks(path, used, moved, counts, scores, rest)


def _copied(home: Placer, demand: Demand, stream: Stream) -> dict[str, npt.NDArray[np.bool_]]:
    """Return by home the operators whose bytes of a stream are copied from or to it, (ops, 1).

    Raises:
        UncoveredError: If units unpack what they read at its home.
    """
    placed, placement = demand.placed, home.tiers(stream.tensor)
    if placement.cache is None:
        return {}
    here = [_read_at_home(home, stream.tensor, unit) for unit in placed.units]
    found = {}
    for tier in placement.in_:
        own = np.array([u >= 0 and tier in here[u] for u in placed.unit_of.tolist()])[:, None]
        if placement.format is not None and np.any(placed.moved[stream.column] * own):
            raise UncoveredError(
                f"{home.machine.name}: place.{stream.tensor}.format unpacks what is copied, and "
                f"units beside '{tier}' read it there. run its operators on a unit at "
                f"'{placement.cache.tier}', or leave `format` out"
            )
        found[tier] = ~own
    return found


def _run(phase: Phase, demand: Demand, blocks: _Blocks, streams: Streams, batches: int) -> PhaseRun:
    """Return a phase with the time of all its batches."""
    uses: list[Use] = streams.uses(blocks.moved, batches)
    used = {name: batches * seconds for name, seconds in blocks.used.items()}
    for use in uses:
        add(used, use.seconds)
    early: dict[str, Array] = {name: batches * s for name, s in blocks.used.items()}
    late: Any = 0.0
    for use in uses:
        if use.early:
            add(early, use.seconds)
        else:
            late = late + use.alone
    path = batches * blocks.path
    time = np.maximum(path, 0.0)
    for seconds in streams.by_memory(early).values():
        time = np.maximum(time, seconds)
    time = time + late
    counts = blocks.counts[:, None]
    total = (counts * time).sum(axis=0)
    if phase.name == "prefill":
        # Nothing runs while the first block's weights arrive.
        first = int(demand.placed.table.order[0])
        total = total + sum((u.alone[first] for u in uses if u.early and u.fills), np.zeros(1))
    busy = {name: (counts * s).sum(axis=0) for name, s in used.items()}
    own = (counts * path).sum(axis=0)
    repeats = float(np.ravel(phase.repeats)[0])
    row = {
        "operator": "copies",
        "seconds": float((total - own)[0]) * repeats,
        "joules": float(_joules(blocks, streams, batches)[0]) * repeats,
    }
    return PhaseRun(
        phase.name, demand, Step(total, own, busy), phase.repeats, None, batches, (row,)
    )


def _joules(blocks: _Blocks, streams: Streams, batches: int) -> Array:
    """Return the energy of all copies of one step, (points,)."""
    counts = blocks.counts[:, None]
    total = {name: (counts * size).sum(axis=0) for name, size in blocks.moved.items()}
    return streams.joules(total, batches)


def _occupancy(
    home: Placer, work: ModelWork, phase: Phase, blocks: list[_Blocks], streams: Streams,
    swap: Swap | None,
) -> dict[str, Array]:  # fmt: skip
    """Return bytes in each memory: homes, buffers of copies, and what operators work on.

    Buffers hold a block that is at work, and with prefetching the next one too.
    """
    mapping = home.mapping
    held_bytes = dict(work.footprint(mapping.degrees))
    working = held_bytes.pop("activation")
    kept: Any = 0.0
    if mapping.neurons is not None:
        network, weights = ffn_bytes(phase.table), held_bytes["weight"]
        held_bytes["ffn.weight"] = network
        held_bytes["weight"] = weights - network
        neurons = mapping.neurons
        kept = neurons.predicted * weights
        kept = kept + (neurons.kept.value * network if neurons.kept else 0.0)
    if swap is not None:
        held_bytes.pop("kv", None)
    used = home.occupancy(held_bytes)

    def put(tier: str, size: Any, what: str) -> None:
        used[tier] = used.get(tier, 0.0) + np.atleast_1d(size)
        if what not in home.holders.setdefault(tier, []):
            home.holders[tier].append(what)

    if mapping.neurons is not None:
        network_place = home.tiers("ffn.weight")
        assert network_place.cache is not None, "checked before"
        put(network_place.cache.tier, kept, "ffn.weight")
    placement = home.tiers("activation")
    nearest = placement.cache.tier if placement.cache else next(iter(placement.in_))
    put(nearest, working, "activation")
    for tier, size in _temporary(home, blocks, streams).items():
        put(tier, size, "copies")
    for tier, size in swap.occupancy.items() if swap is not None else ():
        put(tier, size, "kv")
    if any(np.any(b.scores) for b in blocks):
        for tier in home.mapping.place["scores"].in_:
            home.holders.setdefault(tier, []).append("scores")
    return used


def _temporary(home: Placer, blocks: list[_Blocks], streams: Streams) -> dict[str, Array]:
    """Return the bytes of buffers and score matrices in the phase that needs most, by memory."""
    most: dict[str, Array] = {}
    for one in blocks:
        largest = {name: np.max(size, axis=0) for name, size in one.moved.items()}
        held = streams.buffers(largest)
        placement = home.tiers("activation")
        for tier, share in placement.in_.items() if placement.cache else ():
            size = home.mapping.batches * share * largest["activation_load"]
            add(held, {tier: np.atleast_1d(size)})
        if np.any(one.scores):
            add(held, {next(iter(home.mapping.place["scores"].in_)): np.max(one.scores, axis=0)})
        for tier, size in held.items():
            most[tier] = np.maximum(most[tier], size) if tier in most else size
    return most
