"""Neurons in a cache of those used last, read and computed cluster by cluster (PowerInfer-2).

The weights of networks live in a slow memory and have a cache with `evict: lru`; `popularity` says
which neurons are there (`sim/neuron_cache.py`). Of each layer (Xue et al., PowerInfer-2, arXiv
2406.06282)

- the `hot` neurons, most used, always lie in the fast memory; another unit computes all of them;
- of the cold ones a token computes those that it uses, and reads the f that the cache misses, in
  bundles; with `second` half a bundle first, and the other half where its gate was not zero.

With H, C the seconds of hot and cold products, B their bytes over the fast memory's rate, and
R = L + reads / X(request) the seconds of reads, a network takes

    overlap: none       max(H, C, B) + R
    overlap: matrix     for each matrix max(H_j, C_j, B_j, R_j + C_j / n), one after the other
    overlap: cluster    max(H, C, B, R + C / n)

n clusters are computed as they arrive, those that are there first; the last one runs alone. Bundles
arrive with the first matrix. The rest of a layer runs as it does without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opbyte.core.errors import CapacityError, UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.mapping_file import Placement, Run
from opbyte.core.ops import Array, OpTable, Phase
from opbyte.core.routes import Neurons
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, first_access, price, resource_rate
from opbyte.sim.analytic import Step, block_paths, held
from opbyte.sim.cluster_times import Reads, Times, network_ops, times
from opbyte.sim.copies import software_rate
from opbyte.sim.metrics import add_energy
from opbyte.sim.neuron_cache import missed_share
from opbyte.sim.neurons import neuron_bytes, one_network, popularity, scaled, sparse
from opbyte.sim.phases import combine, feasible
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun
from opbyte.workloads.ffn import MoeFfn
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork


@dataclass(frozen=True)
class _Use:
    """What a token does with the neurons of one layer.

    Attributes:
        tensor: Their class, as `place` names it.
        hot: Share of the networks at work that runs densely, (1,).
        cold: Share that is used beside, (1,).
        missed: Share of the layer's neurons that is read, (points,).
        asked: Share of the layer's cold neurons that is used, (1,).
        neurons: Neurons of a layer.
        held: Bytes of neurons that the fast memory holds, all layers, (points,).
    """

    tensor: str
    hot: float
    cold: float
    missed: Array
    asked: float
    neurons: int
    held: Array


def run_clusters(machine: Machine, work: ModelWork, mapping: Mapping, fidelity: str) -> Outcome:
    """Return the outcome of decode steps whose neurons are read from a slow memory.

    Raises:
        UncoveredError: For work, models or mappings that it does not cover.
        CapacityError: If what always lies in the fast memory does not fit.
    """
    neurons = _checked(machine, work, mapping, fidelity)
    ideal, model = fidelity == "bound", work.model  # type: ignore[attr-defined]
    placer = Placer(machine, mapping)
    phase = work.lowered(mapping.degrees)[0]
    use = _use(placer, work, model, neurons)
    reads = _reads(placer, model, neurons, use, ideal=ideal)
    cold = _demand(placer, _cold_table(phase.table, neurons, use), None, ideal=ideal)
    unit = neurons.hot.unit if neurons.hot else None
    hot = _demand(placer, scaled(phase.table, max(use.hot, 1e-12)), unit, ideal=ideal)
    time = times(placer, cold, hot, neurons, reads, bool(use.hot), ideal=ideal)
    run = _run(phase, cold, hot, time, reads, bool(use.hot))
    reader = _reader(placer, unit=None)
    metrics = combine(reader, [run], work.tokens)
    layers = float(time.counts.sum())
    extra = layers * reads.joules
    if use.hot:
        ops = network_ops(hot)
        each = placer.devices * hot.placed.repeats[ops, None]
        moved = metrics["flops"] / metrics["op_per_byte"]
        metrics["flops"] = metrics["flops"] + (hot.flops[ops] * each).sum(axis=0)
        read = (hot.bytes[ops].sum(axis=1) * each).sum(axis=0)
        metrics["op_per_byte"] = metrics["flops"] / (moved + read)
        extra = extra + (hot.joules[ops] * each).sum(axis=0)
    metrics = add_energy(machine, metrics, extra, work.tokens)
    metrics["tpot"] = metrics["seconds"]
    fast = placer.tiers(use.tensor).cache.tier  # type: ignore[union-attr]
    occupancy = _occupancy(placer, work, use, fast)
    seconds = layers * (reads.start + reads.seconds)
    metrics |= {
        "copied_bytes": layers * reads.bytes,
        "copy_s": seconds,
        "copy_rate": layers * reads.bytes / np.where(seconds > 0, seconds, np.nan),
        "hit_rate": 1.0 - use.missed / use.asked if use.asked else np.ones(1),
        "network_s": (time.network * time.counts[:, None]).sum(axis=0),
        "peak_fast_bytes": np.atleast_1d(occupancy[fast]),
    }
    keep = ("copied_bytes", "peak_fast_bytes")
    return feasible(placer, Outcome(metrics, (run,), occupancy), keep)


def _checked(machine: Machine, work: ModelWork, mapping: Mapping, fidelity: str) -> Neurons:
    """Return the neurons of a mapping that is covered."""
    where = f"mapping '{mapping.name or 'unnamed'}' of {machine.name}"
    neurons = mapping.neurons
    assert neurons is not None, "dispatched by them"

    def refuse(text: str) -> UncoveredError:
        return UncoveredError(f"{where}: {text}")

    if work.kind != "decode" or np.any(np.asarray(work.batch) != 1):  # type: ignore[attr-defined]
        raise refuse(
            f"neurons are read for decode works of one sequence, got {work.kind}. use another "
            "mapping for it"
        )
    if fidelity == "event":
        raise refuse("the event kernel plays no clusters of neurons. use the fidelity analytic")
    model: Model = work.model  # type: ignore[attr-defined]
    tensor = "expert.weight" if isinstance(one_network(model), MoeFfn) else "ffn.weight"
    if mapping.cached != (tensor,):
        text = f"{model.name} keeps neurons in a cache of {tensor} alone"
        raise refuse(f"{text}, got one of {', '.join(mapping.cached)}. change `place`")
    cache = mapping.place[tensor].cache
    if cache is None or cache.evict != "lru" or cache.prefetch != "none":
        raise refuse(f"place.{tensor}.cache of neurons has evict: lru and prefetch: none")
    if len(mapping.place[tensor].in_) != 1:
        raise refuse(f"place.{tensor} of neurons is one memory. give one share of 1")
    split = mapping.default
    if split is not None and split.degrees.devices > 1:
        raise refuse("clusters of neurons run on one device. set every degree to 1")
    wishes = {
        "attention groups": mapping.attention is not None,
        "host": mapping.host is not None,
        "kv_select": mapping.kv_select is not None,
        "overlap": mapping.overlap != "none",
        "pipeline": mapping.pipeline is not None,
        "co-processing (split)": any(run.split for run in mapping.run),
        "neurons.window": neurons.window is not None,
        "neurons.known_by: gate": neurons.known_by == "gate",
        "waits: expert": cache.waits == "expert",
        "slots of whole experts": cache.slots is not None,
    }
    for name in (name for name, wished in wishes.items() if wished):
        raise refuse(f"clusters of neurons have no model of {name}. leave it out")
    return neurons


def _use(placer: Placer, work: ModelWork, model: Model, neurons: Neurons) -> _Use:
    """Return what a token does with the neurons of a layer."""
    ffn, probability = one_network(model), popularity(neurons, model)
    tensor = "expert.weight" if isinstance(ffn, MoeFfn) else "ffn.weight"
    count = len(probability)
    first = round(neurons.hot.share.value * count) if neurons.hot else 0
    working = ffn.top_k / ffn.experts if isinstance(ffn, MoeFfn) else 1.0
    asked = float(probability[first:].sum()) / count
    _, networks, others = _held(placer, work, model, neurons)
    cache = placer.tiers(tensor).cache
    assert cache is not None, "checked before"
    reserve = cache.reserve.value if cache.reserve else 0.0
    space = np.atleast_1d(placer.capacity(cache.tier) - others.get(cache.tier, 0.0) - reserve)
    slots = space / networks - first / count
    if np.all(slots < 0):
        need = np.max(networks * first / count + others.get(cache.tier, 0.0) + reserve)
        names = [*placer.holders.get(cache.tier, []), f"hot neurons of {tensor}"]
        room = float(np.min(placer.capacity(cache.tier)))
        raise CapacityError(names, cache.tier, float(need), room)
    cold, of_point = count - first, np.unique(slots, return_inverse=True)
    shares = [missed_share(probability[first:], s * count / max(cold, 1)) for s in of_point[0]]
    missed = np.array(shares)[of_point[1]] * cold / count
    kept = np.minimum(first / count + np.maximum(slots, 0.0), 1.0) * networks
    placer.holders.clear()
    return _Use(tensor, first / count, asked / working, missed, asked, count, np.atleast_1d(kept))


def _held(
    placer: Placer, work: ModelWork, model: Model, neurons: Neurons
) -> tuple[dict[str, Any], float, dict[str, Any]]:
    """Return bytes by class, those of all networks, and what else lies in each memory."""
    held_bytes = dict(work.footprint(placer.mapping.degrees))
    dense = not isinstance(one_network(model), MoeFfn)
    whole = float(np.max(held_bytes["weight"])) + float(np.max(held_bytes.get("expert", 0.0)))
    if dense:
        ffn = one_network(model)
        each = model.precision.weight_bytes("ffn", ffn.matrices * model.hidden * ffn.width)
        networks = each * len(model.order)
        held_bytes["weight"] = held_bytes["weight"] - networks
    else:
        networks = float(np.max(held_bytes.pop("expert")))
    held_bytes["weight"] = held_bytes["weight"] + neurons.predicted * whole
    return held_bytes, networks, placer.occupancy(held_bytes)


def _occupancy(placer: Placer, work: ModelWork, use: _Use, fast: str) -> dict[str, Any]:
    """Return bytes in each memory: networks at home, and those that the fast memory keeps."""
    model: Model = work.model  # type: ignore[attr-defined]
    assert placer.mapping.neurons is not None
    _, networks, used = _held(placer, work, model, placer.mapping.neurons)
    home = next(iter(placer.tiers(use.tensor).in_))
    for tier, size in ((home, networks), (fast, use.held)):
        used[tier] = used.get(tier, 0.0) + np.atleast_1d(size)
        placer.holders.setdefault(tier, []).append(use.tensor)
    return used


def _reads(placer: Placer, model: Model, neurons: Neurons, use: _Use, *, ideal: bool) -> Reads:
    """Return the reads of one layer."""
    machine, placement = placer.machine, placer.tiers(use.tensor)
    assert placement.cache is not None, "checked before"
    home = next(iter(placement.in_))
    path = tuple(placer.path(home, placement.cache.tier, placement.cache.via))
    request = neuron_bytes(model, neurons)
    assert request is not None, "there are neurons"
    ffn = one_network(model)
    requests = 1.0 if neurons.bundle else float(ffn.matrices)
    if neurons.second is not None:
        requests = 1.0 + neurons.second.value
    size = use.missed * use.neurons * requests * request
    rates = {
        r: np.atleast_1d(resource_rate(machine, r, placer.instances(r), ideal=ideal)) for r in path
    }
    if not ideal:
        rates |= software_rate(placer, use.tensor, path, neuron=request)
    busy = {name: size / rate for name, rate in rates.items()}
    seconds = np.max(np.broadcast_arrays(*busy.values()), axis=0)
    start = np.where(size > 0, 0.0 if ideal else first_access(machine, path), 0.0)
    energy = sum(8.0 * machine.values.get(f"{r}.energy", np.nan) for r in path)
    return Reads(size, seconds, start, np.atleast_1d(size * energy), busy)


def _cold_table(table: OpTable, neurons: Neurons, use: _Use) -> OpTable:
    """Return the table of cold neurons in use, predictors included."""
    used = replace(neurons.used, value=max(use.cold, 1e-12))
    return sparse(table, neurons.model_copy(update={"used": used}))


def _reader(placer: Placer, unit: str | None) -> Placer:
    """Return the placer by which operators run: neurons from the cache, on one unit if named."""
    place = {
        name: Placement.model_validate({"in": {p.cache.tier: 1.0}}) if p.cache else p
        for name, p in placer.mapping.place.items()
    }
    changes: dict[str, Any] = {"place": place, "routes": {}}
    if unit is not None:
        changes["run"] = (Run(ops=("all",), unit=unit),)
    return Placer(placer.machine, placer.mapping.model_copy(update=changes))


def _demand(placer: Placer, table: OpTable, unit: str | None, *, ideal: bool) -> Demand:
    reader = _reader(placer, unit)
    return price(reader.place(table), reader.machine, ideal=ideal)


def _run(
    phase: Phase, cold: Demand, hot: Demand, time: Times, reads: Reads, any_hot: bool
) -> PhaseRun:
    """Return the phase with its reads and hot products."""
    counts = np.bincount(time.order, minlength=len(time.rest))[:, None]
    total = (counts * (time.rest + time.network)).sum(axis=0)
    layers = time.counts.sum()
    repeats = cold.placed.repeats[:, None]
    busy = {n: (s * repeats).sum(axis=0) for n, s in held(cold, cold.duration)}
    if any_hot:
        ops = network_ops(hot)
        for name, seconds in held(hot, hot.duration):
            more = (seconds[ops] * hot.placed.repeats[ops, None]).sum(axis=0)
            busy[name] = busy.get(name, 0.0) + more
    for name, one in reads.busy.items():
        busy[name] = busy.get(name, 0.0) + layers * one
    total = np.max(np.broadcast_arrays(total, *busy.values()), axis=0)
    alone = (counts * block_paths(cold, cold.duration)).sum(axis=0)
    row = {
        "operator": "reads and hot neurons beside",
        "seconds": float((total - alone)[0]),
        "joules": float(layers * reads.joules[0]),
    }
    return PhaseRun(phase.name, cold, Step(total, total, busy), phase.repeats, None, 1, (row,))
