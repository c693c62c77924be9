"""Copies of weights from a slow memory to a fast one: their way, time and energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Placement
from opbyte.core.ops import Array
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


@dataclass(frozen=True)
class Stretch:
    """Something that streams: seconds alone, and its share of each resource at full speed."""

    seconds: float
    shares: Mapping[str, float]


def copy_of(placer: Placer, tensor: str, size: Any, *, ideal: bool) -> Copy:
    """Return one copy of `size` bytes for each device, where a tensor class is placed and cached.

    The slowest port or link sets the rate; before the first byte passes the latency of the way.

    Raises:
        UncoveredError: If the tensors are spread over several memories.
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
    seconds = np.max(np.broadcast_arrays(*busy.values()), axis=0) if busy else np.zeros(1)
    if not ideal:
        seconds = seconds + first_access(machine, path)
    energy = sum(8.0 * machine.values.get(f"{r}.energy", np.nan) for r in path)
    joules = np.atleast_1d(size * placer.devices * energy)
    return Copy(home, fast, path, size, np.atleast_1d(seconds), joules, busy)


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
