"""Copies of weights from a slow memory to a fast one: their way, time and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping_file import Placement
from opbyte.core.ops import Array
from opbyte.core.routes import Route
from opbyte.hw_models.host_path import path_rate
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import resource_rate
from opbyte.hw_models.waiting import first_access
from opbyte.sim.place import Placer
from opbyte.sim.result import PhaseRun


@dataclass(frozen=True)
class Copy:
    """One copy onto each device of the group, from the experts' home to their fast tier.

    Attributes:
        home: Memory that holds everything.
        fast: Memory that units read from.
        path: Ports and links that a copy crosses; empty where both memories are one.
        bytes: Size on one device, (points,).
        seconds: Time when nothing else uses the way, (points,).
        start: Time before the first of several that are asked for together, (points,).
        joules: Energy, whole machine, (points,).
        busy: Seconds of full use of each resource of the way, each (points,).
    """

    home: str
    fast: str
    path: tuple[str, ...]
    bytes: Array
    seconds: Array
    joules: Array
    busy: Mapping[str, Array]
    start: Any = 0.0


@dataclass(frozen=True)
class Stretch:
    """Something that streams: seconds alone, and its share of each resource at full speed."""

    seconds: float
    shares: Mapping[str, float]


def copy_of(placer: Placer, tensor: str, size: Any, *, ideal: bool) -> Copy:
    """Return one copy of `size` bytes for each device, where a tensor class is placed and cached.

    The slowest port or link sets the rate; before the first byte passes the latency of the way.
    With software on the way, which keeps commands in flight, only the first copy waits for it.

    Raises:
        UncoveredError: If the tensors are spread over several memories.
        ConfigError: If a route is not theirs, or names no link of their way.
    """
    machine, placement = placer.machine, placer.tiers(tensor)
    if len(placement.in_) != 1:
        raise UncoveredError(
            f"{machine.name}: experts that are copied live in one memory, the mapping "
            f"spreads them over {', '.join(placement.in_)}"
        )
    home = next(iter(placement.in_))
    fast = placement.cache.tier if placement.cache else home
    path = tuple(_path(placer, placement, home, fast)) if fast != home else ()
    size = np.atleast_1d(size)
    busy = {
        r: size / np.atleast_1d(resource_rate(machine, r, placer.instances(r), ideal=ideal))
        for r in path
    }
    software = software_rate(placer, tensor, path)
    if software and not ideal:
        busy |= {name: size / rate for name, rate in software.items()}
    seconds = np.max(np.broadcast_arrays(*busy.values()), axis=0) if busy else np.zeros(1)
    start: Any = 0.0 if ideal else first_access(machine, path)
    if not software:
        seconds, start = seconds + start, 0.0
    energy = sum(8.0 * machine.values.get(f"{r}.energy", np.nan) for r in path)
    joules = np.atleast_1d(size * placer.devices * energy)
    return Copy(home, fast, path, size, np.atleast_1d(seconds), joules, busy, start)


def software_rate(
    placer: Placer, tensor: str, path: tuple[str, ...], neuron: float | None = None
) -> dict[str, Array]:
    """Return the rate of the software on a copy's way, by the name of its resource.

    Args:
        neuron: Bytes of one request, where requests are neurons.
    Raises:
        ConfigError: If a route is of another class, or names no link of the way.
    """
    machine, found = placer.machine, {}
    for name, routes in placer.mapping.routes.items():
        place = f"mapping.routes.{name}"
        if name != tensor:
            rule = "is the way of a class with a `cache`"
            raise ConfigError.one("", place, rule, name, f"classes that have one: {tensor}")
        for route in routes:
            links = set(path[1:-1])
            if not set(route.via) <= links or not route.via:
                rule, own = "must name links that copies cross", ", ".join(route.via)
                known = f"known: {', '.join(path[1:-1]) or 'none'}"
                raise ConfigError.one("", f"{place}.via", rule, own, known)
            if route.software is None:
                text, remedy = "says what software does on the way", "give `software`"
                raise ConfigError.one("", place, text, name, f"{remedy}, or leave the route out")
            if route.software.blocks:
                rule, remedy = "is of zigzag pipelines", "leave `blocks` out"
                raise ConfigError.one("", f"{place}.software.blocks", rule, "true", remedy)
            rates = {r: resource_rate(machine, r, placer.instances(r)) for r in links}
            found[f"software.{'+'.join(route.via)}"] = route_rate(
                machine, path, route, rates, neuron=neuron
            )
    return found


def route_rate(
    machine: Machine,
    path: Sequence[str],
    route: Route,
    rates: Mapping[str, Any],
    *,
    write: bool = False,
    neuron: float | None = None,
) -> Array:
    """Return the rate of the software of one route on a way, (points,).

    Args:
        path: Port, links and port that a copy crosses.
        rates: Rate of each of the links.
        write: Whether bytes go to the device.
        neuron: Bytes of one request, where requests are neurons.
    """
    software = route.software
    assert software is not None, "checked before"
    after = [1.0 / rates[link] for link in path[1:-1] if link not in route.via]
    beyond = np.max(np.broadcast_arrays(*after), axis=0) if after else 0.0
    port = path[0] if software.access is not None else host_port(machine)
    return path_rate(
        machine.values, host_io(machine), port, software, write=write, neuron=neuron, beyond=beyond
    )


def host_port(machine: Machine) -> str:
    """Return the short path of the first port of the host's memory, empty where it has none."""
    part = host_io(machine).removesuffix(".io")
    own = [m for m in machine.memories.values() if part and m.part == part]
    return f"{own[0].path}.{next(iter(own[0].config.ports))}" if own else ""


def host_io(machine: Machine) -> str:
    """Return the short path of the host's `io` block, empty where no part has one."""
    hosts = [path for path in machine.counts if f"{path}.io.command" in machine.values]
    return f"{hosts[0]}.io" if hosts else ""


def _path(placer: Placer, placement: Placement, home: str, fast: str) -> list[str]:
    return placer.path(home, fast, placement.cache.via if placement.cache else None)


def reading(placer: Placer, placement: Placement) -> Placer:
    """Return a placer whose units read all weights, routed experts' too, from one placement."""
    place = {**placer.mapping.place, "weight": placement, "expert.weight": placement}
    return Placer(placer.machine, placer.mapping.model_copy(update={"place": place}))


def stretch_of(runs: list[PhaseRun]) -> Stretch:
    """Return phases of one design point as one stretch with their mean use of each resource."""
    seconds = sum(float(r.step.seconds[0]) * float(np.ravel(r.repeats)[0]) for r in runs)
    busy: dict[str, float] = {}
    for r in runs:
        for name, value in r.step.busy.items():
            if name in r.demand.placed.resources:
                times = float(np.ravel(r.repeats)[0])
                busy[name] = busy.get(name, 0.0) + float(value[0]) * times
    return Stretch(seconds, {n: min(b / seconds, 1.0) for n, b in busy.items()})


def copy_stretch(copy: Copy) -> Stretch:
    """Return one copy of one design point as a stretch."""
    seconds = float(copy.seconds[0])
    return Stretch(seconds, {r: min(float(b[0]) / seconds, 1.0) for r, b in copy.busy.items()})
