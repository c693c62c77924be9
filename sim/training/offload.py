"""Tensors of a training step that live in other memories: copies beside or between passes.

A mapping's `place` says where classes live; the unit computes on copies in its own memory.

    forward    weights in, activations that are kept out
    backward   weights and activations in, gradients out; with several microbatches the memory that
               holds gradients adds each to their sum (a reading and two writings)

Copies of a pass take the busiest of the ports and links on their ways, those of a full-duplex link
by direction; what is read also waits for the engines of links that keep so many bytes under way
(`opbyte.hw_models.waiting`). Copies beside a pass (`overlap: copy` or `gradients`) go layer by
layer, ahead of it or behind (`opbyte.sim.training.overlap`): the longer of the two counts, and one
layer of the other; else both. Copies in and out that share nothing are taken as one stage as long
as the longer, which leaves out one layer of the shorter. What the unit's own port gives to copies
it still has for computing: links are far slower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import Array, Number
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.waiting import first_access
from opbyte.sim.place import Placer
from opbyte.sim.training.drives import Drives, is_drive, two_ways
from opbyte.sim.training.overlap import alone, overlapped
from opbyte.sim.training.staging import CLASSES
from opbyte.sim.ways import Ways
from opbyte.workloads.training.plan import STATES

if TYPE_CHECKING:
    from opbyte.workloads.training.plan import Plan

#: Classes that may live elsewhere while the unit computes on copies.
MOVABLE = ("weight", "gradient", "activation")
#: All classes that a training step has.
HELD = (*MOVABLE, "expert.weight", "working", "buffer", "optimizer", *STATES)


@dataclass(frozen=True)
class Copied:
    """What a pass copies.

    Attributes:
        size: Bytes, (points,).
        way: `in`, to the unit, or `out`.
        crossings: How often each byte passes the port of the memory elsewhere.
    """

    tensor: str
    size: Array
    way: Literal["in", "out"]
    crossings: Number = 1.0


@dataclass(frozen=True)
class Offload:
    """Where classes live, seen from the unit that computes.

    Attributes:
        unit: Its short path.
        beside: Copies run beside the passes.
    """

    placer: Placer
    unit: str
    beside: bool
    ideal: bool

    def away(self, tensor: str) -> dict[str, float]:
        """Return the shares of a class that are in memories that the unit is not at."""
        tiers = self.placer.tiers(tensor).in_
        near = self.placer.ways.beside(self.unit)
        return {tier: share for tier, share in tiers.items() if tier not in near}

    def share(self, tensor: str) -> float:
        """Return the share of a class that is elsewhere."""
        return sum(self.away(tensor).values())

    def seconds(self, copies: Iterable[Copied]) -> Array:
        """Return the seconds of the copies of one pass, (points,)."""
        copies = tuple(copies)
        longest: Array = np.zeros(1)
        for seconds in self.loads(copies).values():
            longest = np.maximum(longest, seconds)
        latency: Any = 0.0
        for copy in copies:
            for tier in () if self.ideal else self.away(copy.tensor):
                way = self.placer.path(tier, self._home)
                latency = np.maximum(latency, first_access(self.placer.machine, way))
        return np.where(longest > 0.0, longest + latency, 0.0)

    def loads(self, copies: Iterable[Copied]) -> dict[tuple[str, bool], Array]:
        """Return the seconds that copies keep ports, links and engines busy, links by direction."""
        machine, drives = self.placer.machine, Drives(self.placer, self.ideal)
        load: dict[tuple[str, bool], Array] = {}
        for copy in copies:
            for tier, share in self.away(copy.tensor).items():
                for resource, times in self._way(tier, copy):
                    key = (resource, copy.way == "in" and two_ways(machine, resource))
                    rate = drives.rate(resource, written=copy.way == "out")
                    load[key] = load.get(key, np.zeros(1)) + copy.size * share * times / rate
                read = copy.size * share * (copy.way == "in")
                for engine, waits in drives.engine_waits(tier, self.unit, read).items():
                    load[engine, False] = load.get((engine, False), np.zeros(1)) + waits
        return load

    def joules(self, copies: Iterable[Copied]) -> Array:
        """Return the energy of the copies of one pass of one device, (points,)."""
        values, total = self.placer.machine.values, np.zeros(1)
        for copy in copies:
            for tier, share in self.away(copy.tensor).items():
                for resource, times in self._way(tier, copy):
                    energy = 8.0 * np.asarray(values.get(f"{resource}.energy", np.nan))
                    total = total + copy.size * share * times * energy
        return np.asarray(total)

    def _way(self, tier: str, copy: Copied) -> list[tuple[str, Number]]:
        """Return what each byte of a copy crosses, and how often."""
        if is_drive(self.placer.machine, tier):
            if np.any(np.not_equal(copy.crossings, 1.0)):
                raise UncoveredError(
                    f"{self.placer.machine.name}: no model adds up gradients of microbatches "
                    f"on the drive '{tier}'. place `gradient` in a memory, or use one microbatch"
                )
            return list(Drives(self.placer, self.ideal).to_memory(tier, self._home))
        first, *others = self.placer.path(tier, self._home)
        return [(first, copy.crossings), *((resource, 1.0) for resource in others)]

    def joined(self, computing: Array, copies: Array, layers: float) -> Array:
        """Return the seconds of a pass with its copies.

        Args:
            layers: Layers of the pass.
        """
        return overlapped(computing, copies, self.exposed(layers))

    def exposed(self, layers: float) -> Any:
        """Return the share of copies, or of computing, that has nothing of the other beside it."""
        return alone(layers) if self.beside else 1.0

    def passes(
        self, plan: Plan, forward: Array, backward: Array, gradient: float, many: Array
    ) -> tuple[Array, Array]:
        """Return the seconds of passes with their copies, (virtual, points).

        Args:
            forward, backward: Without, (virtual, points).
            gradient: Bytes of an element of the gradients.
            many: Microbatches, (1 or points,).
        """
        if not any(self.share(tensor) for tensor in MOVABLE):
            return forward, backward
        found: tuple[list[Array], list[Array]] = ([], [])
        for s in range(plan.virtual):
            copies = copied(plan, s, gradient, many)
            for seconds, computed, each in zip(
                found, (forward[s], backward[s]), copies, strict=True
            ):
                seconds.append(self.joined(computed, self.seconds(each), plan.layers[s]))
        first, second = (np.stack(np.broadcast_arrays(*seconds)) for seconds in found)
        return first, second

    def buffers(self, plan: Plan, element: float, gradient: float) -> Number:
        """Return the bytes of buffers for what lives elsewhere: two layers' each.

        Args:
            element, gradient: Bytes of an element of weights that are trained, and of gradients.
        """
        layer = 2.0 * plan.largest_layer
        room: Number = layer * (self.share("weight") > 0)
        room = room + 2.0 * plan.largest_kept * (self.share("activation") > 0)
        return room + layer / element * gradient * (self.share("gradient") > 0)

    @property
    def _home(self) -> str:
        port = self.placer.machine.unit_ports(self.unit)[0]
        return port.rpartition(".")[0]


def copied(
    plan: Plan, stage: int, gradient: float, many: Array
) -> tuple[tuple[Copied, ...], tuple[Copied, ...]]:
    """Return what the forward and the backward pass of a virtual stage copy.

    Args:
        gradient: Bytes of an element of the gradients.
        many: Microbatches, (1 or points,).
    """
    # With ZeRO 3 each replica reads its part of the weights and gathers the rest; from 2 on it has
    # gradients of its part alone.
    parallel = plan.parallel
    parts = parallel.dp if parallel.zero == 3 else 1
    owned = parallel.dp if parallel.zero >= 2 else 1
    sums = np.where(many > 1, 3.0, 1.0)
    weight = np.atleast_1d(plan.weights[stage] / parts)
    kept = np.atleast_1d(plan.kept[stage])
    trained = np.atleast_1d(plan.trained[stage] / owned) * gradient
    forth = (Copied("weight", weight, "in"), Copied("activation", kept, "out"))
    back = (
        Copied("weight", weight, "in"),
        Copied("activation", kept, "in"),
        Copied("gradient", trained, "out", sums),
    )
    return forth, back


def computing(machine: Machine, mapping: Mapping, unit: str) -> Mapping:
    """Return the mapping under which operators run: on copies in the unit's own memory.

    Raises:
        ConfigError: If what no training step has is elsewhere.
        UncoveredError: If experts alone are elsewhere, or what a pass works on.
    """
    near = Ways(machine).beside(unit)
    kept = {}
    for name, place in mapping.place.items():
        tiers = (*place.in_, *(spill.tier for spill in place.spill))
        away = [tier for tier in tiers if tier not in near]
        # Default mappings say of keys and values, too, that they are in the unit's own memory.
        if away and name not in (*HELD, *CLASSES):
            raise ConfigError.one(
                "", f"mapping.place.{name}", "training steps have no such tensors",
                ", ".join(away), f"leave it out, or place one of theirs: {', '.join(HELD)}",
            )  # fmt: skip
        if name == "expert.weight" and away:
            raise UncoveredError(
                f"{machine.name}: no model copies experts apart from other weights in training. "
                "place `weight` there"
            )
        if name in ("working", "buffer") and away:
            raise UncoveredError(
                f"{machine.name}: what a pass works on is in the memory of its unit, and "
                f"place.{name} has it in {', '.join(away)}. leave it out"
            )
        if not (away and name in MOVABLE):
            kept[name] = place
    return mapping.model_copy(update={"place": kept})
