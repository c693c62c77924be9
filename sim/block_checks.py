"""What zigzag blocks refuse."""

from __future__ import annotations

from collections.abc import Sequence

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import OpTable
from opbyte.core.routes import Neurons
from opbyte.hw_models.machine import Machine
from opbyte.sim.neurons import one_network
from opbyte.sim.place import Placer
from opbyte.sim.swap import check_spill
from opbyte.workloads.ffn import MoeFfn
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork

#: Kinds of work whose phases run layer by layer.
COVERED = ("prefill", "decode", "generate")


def check(machine: Machine, work: ModelWork, mapping: Mapping, fidelity: str) -> None:
    """Refuse work, fidelities and mappings that zigzag blocks have no model of.

    Raises:
        UncoveredError: If it is one.
        ConfigError: If a route names a class that is not copied.
    """
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
    check_spill(where, mapping)
    for name, place in mapping.place.items():
        if place.cache is None:
            continue
        if place.cache.evict != "none" or place.cache.prefetch not in ("none", "all"):
            text = f"place.{name}.cache under zigzag has evict: none and prefetch: none or all"
            raise UncoveredError(f"{where}: {text}, every tensor is used once a pass")
        if place.cache.reserve is not None or place.cache.slots is not None:
            text = f"place.{name} under zigzag has no `reserve` or `slots`"
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
    copied = [name for name, place in mapping.place.items() if place.cache or place.spill]
    links = machine.config.links
    for name, routes in mapping.routes.items():
        where = f"mapping.routes.{name}"
        if name not in copied:
            raise ConfigError.one(
                "", where, "is the way of a class with a `cache` or `spill`", name,
                f"classes that have one: {', '.join(copied) or 'none'}",
            )  # fmt: skip
        for route in routes:
            if route.software is None:
                text, remedy = "says what software does on the way", "give `software`"
                raise ConfigError.one("", where, text, name, f"{remedy}, or leave the route out")
            unknown = [link for link in route.via if link not in links]
            if unknown or not route.via:
                rule = f"must name links of {machine.name}"
                known = f"known: {', '.join(links)}"
                raise ConfigError.one("", f"{where}.via", rule, ", ".join(unknown), known)


def check_tensors(home: Placer, tables: Sequence[OpTable]) -> None:
    """Refuse copies of what no stream carries: routed experts, and recurrent state."""
    of = {"expert": ("expert",), "state": ("state_read", "state_write")}
    for tensor, columns in of.items():
        moves = any(t[column].any() for t in tables for column in columns)
        if moves and home.tiers(tensor).cache is not None:
            raise UncoveredError(
                f"mapping '{home.mapping.name or 'unnamed'}' of {home.machine.name}: zigzag blocks "
                f"do not copy {tensor}s. place them where they are used, or use another mapping"
            )
