"""Metrics: their names by kind of work, and what follows from a machine's costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.cost.area import machine_area_m2
from opbyte.hw_models.cost.carbon import machine_carbon_kg
from opbyte.hw_models.cost.energy import machine_power_w
from opbyte.hw_models.cost.money import machine_price_usd
from opbyte.hw_models.machine import Machine
from opbyte.workloads.works import WORKS

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

#: Metrics that only some mappings define.
MAPPED = (*OFFLOAD_METRICS, *CLUSTER_METRICS, *BLOCK_METRICS, *KV_METRICS)


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
