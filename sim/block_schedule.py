"""FlexGen's block schedule: batches share one load of each layer's weights.

`pipeline: {kind: zigzag, batches: n}`. All n batches pass a layer before the first one passes the
next (Sheng et al., FlexGen, ICML 2023, section 4.1). A tensor class whose placement has a `cache`
is copied from its tiers into that memory before it is used, and what is written goes back. With
p the time of a layer for one batch where everything is in its cache, and for each resource r the
seconds u_r of its use by copies and operators, a layer takes

    max(n p, max over r of u_r) + the copies of classes with `prefetch: none`, one after the other

(the maximum is the paper's equation for its six streams). Copies of weights are made once, those of
the KV cache and of activations for each batch. A storage device is reached by software: the host
path of `routes` (`opbyte.hw_models.host_path`) is a resource of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping, Placement
from opbyte.core.ops import Array, OpTable, Phase
from opbyte.core.routes import Neurons
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, price
from opbyte.sim.analytic import Step, block_paths, held
from opbyte.sim.copy_streams import STREAMS, Streams, Use, add
from opbyte.sim.head_overlap import path_durations
from opbyte.sim.neurons import ffn_bytes, fresh, one_network, resolved, sparse
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun
from opbyte.sim.simulate import add_energy, combine, feasible
from opbyte.workloads.ffn import MoeFfn
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork

#: Kinds of work whose phases run layer by layer.
COVERED = ("prefill", "decode", "generate")


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a phase, one row each, for one batch.

    Attributes:
        path: Seconds where everything is in its cache, (blocks, points).
        used: Seconds by resource that operators use, each (blocks, points).
        moved: Bytes by stream of `STREAMS`, each (blocks, 1 or points).
        counts: How often each block runs, (blocks,).
    """

    path: Array
    used: dict[str, Array]
    moved: dict[str, Array]
    counts: Array


def run_zigzag(machine: Machine, work: ModelWork, mapping: Mapping, fidelity: str) -> Outcome:
    """Return the outcome of work whose batches share loads of weights.

    Raises:
        UncoveredError: For work, fidelities or parallel degrees that it does not cover.
        ConfigError: If a route names a class that is not copied.
    """
    _check(machine, work, mapping, fidelity)
    ideal = fidelity == "bound"
    neurons = resolved(mapping.neurons, work.model)  # type: ignore[attr-defined]
    mapping = mapping.model_copy(update={"neurons": neurons})
    home, reads = Placer(machine, mapping), Placer(machine, _reading(mapping))
    phases = work.lowered(mapping.degrees)
    _check_tensors(home, [p.table for p in phases])
    streams = Streams.of(home, work.model, ideal=ideal)  # type: ignore[attr-defined]
    for name, route in mapping.routes.items():
        streams.check_crosses(name, route.via)
    tables = [sparse(p.table, mapping.neurons) for p in phases]
    demands = [price(reads.place(t), reads.machine, ideal=ideal) for t in tables]
    blocks = [
        _blocks(d, streams, fresh(p.table, mapping.neurons))
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
    occupancy = _occupancy(home, work, phases[0], blocks, streams)
    fast = machine.unit_ports(mapping.run[-1].units[0])[0].rpartition(".")[0]
    metrics["peak_fast_bytes"] = np.atleast_1d(occupancy[fast])
    return feasible(
        home, Outcome(metrics, tuple(runs), occupancy), ("copied_bytes", "peak_fast_bytes")
    )


def _copies(last: _Blocks, streams: Streams, batches: int) -> dict[str, Array]:
    """Return the metrics of copies of weights that one step of the last phase makes."""
    counts = last.counts[:, None]
    read, seconds, caring = np.zeros(1), np.zeros(1), np.zeros(1)
    for use in streams.uses(last.moved, batches):
        if use.name in ("weight", "neurons"):
            read = read + (counts * use.bytes).sum(axis=0)
            seconds = seconds + (counts * use.alone).sum(axis=0)
        elif use.name == "cache":
            caring = caring + (counts * use.alone).sum(axis=0)
    rate = np.where(seconds > 0, read / np.where(seconds > 0, seconds, 1.0), np.nan)
    return {"copied_bytes": read, "copy_s": seconds, "copy_rate": rate, "cache_s": caring}


def _check(machine: Machine, work: ModelWork, mapping: Mapping, fidelity: str) -> None:
    where = f"mapping '{mapping.name or 'unnamed'}' of {machine.name}"
    if work.kind not in COVERED:
        text = f"a {work.kind} work has no zigzag blocks. they are of {', '.join(COVERED)}"
        raise UncoveredError(f"{where}: {text}")
    if fidelity == "event":
        text = "the event kernel does not play zigzag blocks. use the fidelity analytic"
        raise UncoveredError(f"{where}: {text}")
    split = mapping.default
    if split is not None and split.degrees.devices > 1:
        raise UncoveredError(f"{where}: zigzag blocks run on one device. set every degree to 1")
    if mapping.attention is not None or any(run.split for run in mapping.run):
        text = "zigzag blocks have no second group and no co-processing. name a unit in `run`"
        raise UncoveredError(f"{where}: {text}")
    wishes = {
        "host": mapping.host is not None,
        "kv_select": mapping.kv_select is not None,
        "overlap": mapping.overlap != "none",
    }
    for name in (name for name, wished in wishes.items() if wished):
        raise UncoveredError(f"{where}: zigzag blocks have no model of `{name}`. leave it out")
    _check_routes(machine, mapping)
    network = mapping.place.get("ffn.weight")
    if (mapping.neurons is None) != (network is None or network.cache is None):
        text = "`neurons` and place.ffn.weight with a `cache` belong together. give both or neither"
        raise UncoveredError(f"{where}: {text}")
    if mapping.neurons is not None and work.kind != "decode":
        text = "neurons are read token by token, by decode works"
        raise UncoveredError(f"{where}: {text}. use another mapping for a {work.kind} work")
    _check_neurons(mapping.neurons, work.model, where)  # type: ignore[attr-defined]
    for name, place in mapping.place.items():
        if place.cache is None:
            continue
        if place.cache.evict != "none" or place.cache.prefetch not in ("none", "all"):
            text = f"place.{name}.cache under zigzag has evict: none and prefetch: none or all"
            raise UncoveredError(f"{where}: {text}, every tensor is used once a pass")
        if place.cache.reserve is not None or place.cache.slots is not None or place.spill:
            text = f"place.{name} under zigzag has no `reserve`, `slots` or `spill`"
            raise UncoveredError(f"{where}: {text}. give shares of the tiers")


def _check_neurons(neurons: Neurons | None, model: Model, where: str) -> None:
    """Refuse neurons that are read in a way that zigzag blocks do not have."""
    if neurons is None:
        return
    if isinstance(one_network(model), MoeFfn):
        text = "zigzag blocks read neurons of dense networks"
        raise UncoveredError(f"{where}: {text}. give expert.weight a cache with evict: lru instead")
    if neurons.fresh is None and neurons.popularity is None:
        text = "neurons that are read need `fresh`, or `popularity` and `window`"
        raise UncoveredError(f"{where}: {text}. give one")
    for name in ("hot", "second"):
        if getattr(neurons, name) is not None:
            text = f"zigzag blocks have no model of neurons.{name}"
            raise UncoveredError(f"{where}: {text}. use evict: lru without a pipeline")
    if neurons.overlap != "none":
        text = "zigzag blocks wait for neurons (overlap: none)"
        raise UncoveredError(f"{where}: {text}. use evict: lru without a pipeline")


def _check_routes(machine: Machine, mapping: Mapping) -> None:
    """Refuse routes that no copy takes, or on which nothing is done."""
    copied = [name for name, place in mapping.place.items() if place.cache]
    links = machine.config.links
    for name, route in mapping.routes.items():
        where = f"mapping.routes.{name}"
        if name not in copied:
            raise ConfigError.one(
                "", where, "is the way of a class with a `cache`", name,
                f"classes that have one: {', '.join(copied) or 'none'}",
            )  # fmt: skip
        if route.software is None:
            text = "says what software does on the way"
            raise ConfigError.one("", where, text, name, "give `software`, or leave the route out")
        unknown = [link for link in route.via if link not in links]
        if unknown or not route.via:
            rule = f"must name links of {machine.name}"
            known = f"known: {', '.join(links)}"
            raise ConfigError.one("", f"{where}.via", rule, ", ".join(unknown), known)


def _check_tensors(home: Placer, tables: Sequence[OpTable]) -> None:
    """Refuse copies of what no stream carries: routed experts, and recurrent state."""
    of = {"expert": ("expert",), "state": ("state_read", "state_write")}
    for tensor, columns in of.items():
        moves = any(t[column].any() for t in tables for column in columns)
        if moves and home.tiers(tensor).cache is not None:
            raise UncoveredError(
                f"mapping '{home.mapping.name or 'unnamed'}' of {home.machine.name}: zigzag blocks "
                f"do not copy {tensor}s. place them where they are used, or use another mapping"
            )


def _reading(mapping: Mapping) -> Mapping:
    """Return the mapping by which operators run: from the caches."""
    place = {
        name: Placement.model_validate({"in": {p.cache.tier: 1.0}}) if p.cache else p
        for name, p in mapping.place.items()
    }
    return mapping.model_copy(update={"place": place, "routes": {}})


def _blocks(demand: Demand, streams: Streams, neurons: Array) -> _Blocks:
    """Return the blocks of a phase; `neurons` are bytes that each reads, (blocks, 1 or points)."""
    placed = demand.placed
    table, count = placed.table, len(placed.table.blocks)

    def by_block(per_op: Array) -> Array:
        total = np.zeros((count, per_op.shape[1]))
        np.add.at(total, placed.block_of, per_op)
        return total

    used = {name: by_block(seconds) for name, seconds in held(demand, demand.duration)}
    moved = {s.name: by_block(np.atleast_2d(placed.moved[s.column])) for s in STREAMS if s.column}
    # What a block reads of the one before it, once for all rows that read it.
    given = np.zeros((count, table["in_bytes"].shape[1]))
    np.maximum.at(given, table.block_of, table["in_bytes"])
    moved |= {s.name: given for s in STREAMS if s.tensor == "activation"}
    moved["neurons"] = neurons
    path = block_paths(demand, path_durations(demand))
    extra = streams.unpacking(moved)
    for seconds in extra.values():
        path = path + seconds
    add(used, extra)
    counts = np.bincount(table.order, minlength=count).astype(float)
    return _Blocks(path, used, moved, counts)


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
    home: Placer, work: ModelWork, phase: Phase, blocks: list[_Blocks], streams: Streams
) -> dict[str, Array]:
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
    largest = {
        s.name: np.max([np.max(b.moved[s.name], axis=0) for b in blocks], axis=0) for s in STREAMS
    }
    for tier, share in placement.in_.items() if placement.cache else ():
        put(tier, mapping.batches * share * largest["activation_load"], "activation")
    for tier, size in streams.buffers(largest).items():
        put(tier, size, "copies")
    return used
