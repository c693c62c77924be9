"""Tensors of a training step that live in other memories: copies beside or between passes.

A mapping's `place` says where classes live; the unit computes on copies in its own memory.

    forward    weights in, activations that are kept out
    backward   weights and activations in, gradients out; with several microbatches the memory that
               holds gradients adds each to their sum (a reading and two writings)

Copies of a pass take the busiest of the ports and links on their ways, those of a full-duplex link
by direction. Beside a pass (`overlap: copy` or `gradients`, layers ahead) the longer of the two
counts, and the copies of one layer that nothing hides; else both. What the unit's own port gives to
copies it still has for computing: links are far slower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import Array, Number
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import first_access, resource_rate
from opbyte.sim.place import Placer

if TYPE_CHECKING:
    from opbyte.workloads.training.plan import Plan

#: Classes that may live elsewhere while the unit computes on copies.
MOVABLE = ("weight", "gradient", "activation")


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
    crossings: float = 1.0


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
        near = near_memories(self.placer.machine, self.unit)
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
        """Return the seconds that copies keep ports and links busy, links by direction."""
        machine, placer = self.placer.machine, self.placer
        load: dict[tuple[str, bool], Array] = {}
        for copy in copies:
            for tier, share in self.away(copy.tensor).items():
                for i, resource in enumerate(placer.path(tier, self._home)):
                    times = copy.crossings if i == 0 else 1.0
                    key = (resource, copy.way == "in" and _two_ways(machine, resource))
                    many = placer.instances(resource)
                    rate = np.atleast_1d(resource_rate(machine, resource, many, ideal=self.ideal))
                    load[key] = load.get(key, np.zeros(1)) + copy.size * share * times / rate
        return load

    def joined(self, computing: Array, copies: Array, layers: float) -> Array:
        """Return the seconds of a pass with its copies.

        Args:
            layers: Layers of the pass.
        """
        if not self.beside:
            return np.asarray(computing + copies)
        return np.asarray(np.maximum(computing, copies) + copies / np.maximum(layers, 1.0))

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
    sums = 3.0 if np.any(many > 1) else 1.0
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


def _two_ways(machine: Machine, resource: str) -> bool:
    link = machine.config.links.get(resource)
    return link is not None and link.duplex == "full"


def near_memories(machine: Machine, unit: str) -> set[str]:
    """Return the memories of a unit's ports and of its part."""
    own = machine.unit(unit).part
    ports = {p.rpartition(".")[0] for p in machine.unit_ports(unit)}
    return ports | {path for path, memory in machine.memories.items() if memory.part == own}


def computing(machine: Machine, mapping: Mapping, unit: str) -> Mapping:
    """Return the mapping under which operators run: on copies in the unit's own memory.

    Raises:
        UncoveredError: If experts alone are elsewhere, or a class is on a storage device.
    """
    near = near_memories(machine, unit)
    kept = {}
    for name, place in mapping.place.items():
        away = [tier for tier in place.in_ if tier not in near]
        for tier in away:
            ports = machine.memory(tier).config.ports.values()
            if any(p.write is not None or p.command is not None for p in ports):
                raise UncoveredError(
                    f"{machine.name}: no model copies '{name}' from the storage device '{tier}' in "
                    "training. place it in a memory"
                )
        if name == "expert.weight" and away:
            raise UncoveredError(
                f"{machine.name}: no model copies experts apart from other weights in training. "
                "place `weight` there"
            )
        if not (away and name in MOVABLE):
            kept[name] = place
    return mapping.model_copy(update={"place": kept})
