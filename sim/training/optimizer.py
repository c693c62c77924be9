"""The optimizer's step: passes over the tensors of each trained element.

Adam in mixed precision as Megatron-LM and DeepSpeed run it, each pass one kernel that streams what
it reads and writes; bytes of an element, g those of a gradient and w those of a weight:

    unscale   reads g, writes g        with 16-bit floats of small range (fp16): loss scaling
    norm      reads g                  with `clip`
    clip      reads g, writes g        with `clip`
    adam      reads g, 12; writes 12   gradient, momentum, variance, master weight
    cast      reads 4, writes w        master weight to weight
    zero      writes g

Weights of 32 bits are their own master: no cast. A CPU's Adam writes the weights in its own pass,
as DeepSpeed's does (ZeRO-Offload, arXiv 2101.06840, section 5). Where a mapping places
`master_gradient`, gradients are first copied to 32 bits. A pass takes the longest of its operations
on the unit's vector lanes, its bytes at the ports and links between unit and where each tensor
lives, and its bytes under way, of cores and of engines of links (`opbyte.hw_models.waiting`). What
all passes move is the working set that comes again in the next step: the cache of cores answers a
share of it.

States that live on drives (`opbyte.sim.training.drives`) pass buffers of the host's memory, read,
stepped and written side by side.

Ports whose rate depends on the mix of reads and writes have that of all passes of the step here,
whatever the machine's `access` says for other work. A rate that is given is one under `access`, and
scales as that of the technology does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Memory
from opbyte.hw_models.price import resource_rate
from opbyte.hw_models.technology import with_rates
from opbyte.hw_models.waiting import cache_hits, cache_port, first_access, line_seconds
from opbyte.sim.place import Placer
from opbyte.sim.training.drives import Drives, is_drive, two_ways
from opbyte.workloads.training.plan import STATE

#: Operations of an element: two moving averages (3 each), bias corrections (2), root, sum,
#: quotient, product with the rate, decay (2), sum.
ADAM_FLOPS = 14.0
#: After the name of a link of two directions: towards the unit.
INWARD = ":in"


@dataclass(frozen=True)
class Pass:
    """One pass over all trained elements of a device.

    Attributes:
        read, written: Bytes of an element, by tensor class.
        flops: Operations of an element.
    """

    name: str
    read: Mapping[str, float]
    written: Mapping[str, float]
    flops: float

    @property
    def moved(self) -> dict[str, float]:
        """Return the bytes of an element that are read or written, by tensor class."""
        names = dict.fromkeys((*self.read, *self.written))
        return {n: self.read.get(n, 0.0) + self.written.get(n, 0.0) for n in names}


@dataclass(frozen=True)
class PassCost:
    """What a pass costs on one device: seconds, joules and bytes, each (points,)."""

    name: str
    unit: str
    seconds: Array
    joules: Array
    moved: Array


def passes(
    weight: float,
    gradient: float,
    *,
    scaled: bool,
    clip: bool,
    master: bool = True,
    upcast: bool = False,
    fused: bool = False,
) -> tuple[Pass, ...]:
    """Return the passes of a step.

    Args:
        weight, gradient: Bytes of an element.
        scaled: The loss is scaled.
        clip: Gradients are scaled to a largest norm.
        master: Weights have a master, unless they have 32 bits themselves.
        upcast: Gradients are copied to a master gradient of 32 bits first.
        fused: The pass of Adam writes the weights too, as CPU optimizers do.
    """
    found, tensor, size = [], "gradient", gradient
    if upcast:
        tensor, size = "master_gradient", STATE
        found.append(Pass("upcast", {"gradient": gradient}, {tensor: size}, 0.0))
    own = {tensor: size}
    if scaled:
        found.append(Pass("unscale", own, own, 2.0))
    if clip:
        found.append(Pass("norm", own, {}, 2.0))
        found.append(Pass("clip", own, own, 1.0))
    states = {"momentum": STATE, "variance": STATE}
    if weight >= STATE or not master:
        states["weight"] = weight
        found.append(Pass("adam", own | states, states, ADAM_FLOPS))
    elif fused:
        states["master_weight"] = STATE
        found.append(Pass("adam", own | states, states | {"weight": weight}, ADAM_FLOPS))
    else:
        states["master_weight"] = STATE
        found.append(Pass("adam", own | states, states, ADAM_FLOPS))
        found.append(Pass("cast", {"master_weight": STATE}, {"weight": weight}, 0.0))
    found.append(Pass("zero", {}, {"gradient": gradient}, 0.0))
    return tuple(found)


def read_pct(todo: Iterable[Pass]) -> int:
    """Return the share of a step's bytes that is read, percent."""
    read = sum(sum(one.read.values()) for one in todo)
    return round(100.0 * read / sum(sum(one.moved.values()) for one in todo))


def optimizer_unit(placer: Placer) -> str:
    """Return the unit that runs the optimizer: that of the first rule that fits `optimizer`."""
    return placer.unit_of(frozenset({"optimizer", "vector"}))


class Stepping:
    """The passes of one optimizer step on one device.

    Args:
        elements: Trained elements that it steps, (points,).
    """

    def __init__(
        self, placer: Placer, todo: tuple[Pass, ...], elements: Array, *, ideal: bool
    ) -> None:
        self.placer, self.todo, self.elements, self.ideal = placer, todo, elements, ideal
        self.unit = optimizer_unit(placer)
        self.machine = _with_mix(placer.machine, todo)
        self.view = UnitView(self.machine, self.unit)
        working = elements * sum(sum(one.moved.values()) for one in todo)
        #: Share of the bytes that no cache answers.
        self.missing = 1.0 - cache_hits(self.view, working, ideal=ideal)
        #: Devices that share the unit.
        self.crowd = max(1.0, placer.devices / self.machine.unit(self.unit).count)

    def costs(self) -> tuple[PassCost, ...]:
        """Return what each pass costs."""
        return tuple(self._cost(one) for one in self.todo)

    def _cost(self, one: Pass) -> PassCost:
        busy: Array = np.zeros(1)
        for seconds in self.loads(one).values():
            busy = np.maximum(busy, seconds)
        busy = np.maximum(busy, self.lanes(one))
        crossing = self._crossing(one.moved)
        for resource, size in self._drive_crossing(one.moved).items():
            crossing[resource] = crossing.get(resource, 0.0) + size
        joules: Array = np.zeros(1)
        for resource, size in crossing.items():
            energy = 8.0 * np.asarray(self.machine.values.get(f"{resource}.energy", np.nan))
            joules = joules + self.elements * size * np.atleast_1d(energy)
        if one.flops:
            each = self.view.get("energy.vector", np.nan)
            joules = joules + self.elements * one.flops * each
        if not self.ideal:
            busy = busy + self.launch() + first_access(self.machine, crossing)
        moved = self.elements * sum(one.moved.values())
        return PassCost(one.name, self.unit, busy, joules, moved)

    def loads(self, one: Pass, tensors: Iterable[str] | None = None) -> dict[str, Array]:
        """Return the seconds that a pass keeps each port, link and engine busy, each (points,).

        `lines` is the least time in which cores with so many lines under way move the bytes.

        Args:
            tensors: Count their bytes alone; by default those of all. Sums of parts are the whole.
        """
        moved = one.moved if tensors is None else {t: one.moved.get(t, 0.0) for t in tensors}
        found: dict[str, Array] = self._drive_loads(one, moved)
        for resource, size in self._crossing(moved).items():
            many = self.placer.instances(resource)
            rate = resource_rate(self.machine, resource, many, ideal=self.ideal)
            seconds = self.elements * size / np.atleast_1d(rate)
            found[resource] = found.get(resource, np.zeros(1)) + seconds
        if self.machine.unit(self.unit).config.misses is not None and not self.ideal:
            total = self.missing * self.elements * sum(moved.values())
            waits = self.missing * self.elements * self._byte_seconds(moved)
            found["lines"] = np.asarray(line_seconds(self.view, total, waits) * self.crowd)
        ways = Drives(self.placer, self.ideal)
        for tensor in moved:
            for tier, share in self.placer.tiers(tensor).in_.items():
                read = self.missing * self.elements * one.read.get(tensor, 0.0) * share
                for engine, seconds in ways.engine_waits(tier, self.unit, read).items():
                    found[engine] = found.get(engine, np.zeros(1)) + seconds
        return found

    def lanes(self, one: Pass) -> Array:
        """Return the seconds of a pass's operations, (points,)."""
        config = self.machine.unit(self.unit).config
        # The `vector` rate of a CPU is one core's.
        cores = float(config.instances) if config.kind == "cpu" else 1.0
        rate = self.view.vector_rate("optimizer") * cores
        return np.asarray(self.elements * one.flops * self.crowd / rate)

    def launch(self) -> Any:
        """Return the seconds after which a pass starts.

        Raises:
            UncoveredError: If the unit has no such latency.
        """
        host = self.machine.unit(self.unit).config.kind == "cpu"
        how = self.placer.mapping.launch
        latency = self.view.get(f"launch.{how}", 0.0 if host else None)
        if latency is None:
            raise UncoveredError(
                f"{self.machine.name}: unit '{self.unit}' has no launch latency called '{how}'. "
                "give it one, or map the optimizer to another unit"
            )
        return latency

    def _homes(self, tensors: Iterable[str], *, drives: bool) -> list[tuple[str, str, float]]:
        """Return tensor, memory and share of what lives on drives, or of all else."""
        return [
            (tensor, tier, share)
            for tensor in tensors
            for tier, share in self.placer.tiers(tensor).in_.items()
            if is_drive(self.machine, tier) == drives
        ]

    def _crossing(self, moved: Mapping[str, float]) -> dict[str, Any]:
        """Return the bytes of an element that cross each port and link, but for those of drives."""
        found: dict[str, Any] = {}
        for tensor, tier, share in self._homes(moved, drives=False):
            for resource in self.placer.hops(tier, self.unit):
                size = moved[tensor] * share * self.missing
                found[resource] = found.get(resource, 0.0) + size
        own = cache_port(self.view)
        if own is not None and self.machine.unit(self.unit).config.misses is not None:
            found[own] = sum(moved.values())
        return found

    def _drive_crossing(self, moved: Mapping[str, float]) -> dict[str, float]:
        """Return the bytes of an element that cross ports and links on the way to drives."""
        ways, found = Drives(self.placer, self.ideal), dict[str, float]()
        for tensor, tier, share in self._homes(moved, drives=True):
            for resource, times in ways.to_unit(tier, self.unit):
                found[resource] = found.get(resource, 0.0) + moved[tensor] * share * times
        return found

    def _drive_loads(self, one: Pass, moved: Mapping[str, float]) -> dict[str, Array]:
        """Return the seconds that bytes of drives keep ports and links busy; links by direction."""
        ways, found = Drives(self.placer, self.ideal), dict[str, Array]()
        for sizes, written in ((one.read, False), (one.written, True)):
            for tensor, tier, share in self._homes(sizes, drives=True):
                if tensor not in moved:
                    continue
                for resource, times in ways.to_unit(tier, self.unit):
                    inward = not written and two_ways(self.machine, resource)
                    key = f"{resource}{INWARD}" if inward else resource
                    rate = ways.rate(resource, written=written)
                    seconds = self.elements * sizes[tensor] * share * times / rate
                    found[key] = found.get(key, np.zeros(1)) + seconds
        return found

    def _byte_seconds(self, moved: Mapping[str, float]) -> Any:
        """Return the sum over tensors of an element's bytes times the latency of their ways."""
        total: Any = 0.0
        for tensor, tier, share in self._homes(moved, drives=False):
            way = self.placer.hops(tier, self.unit)
            total = total + moved[tensor] * share * first_access(self.machine, way)
        for tensor, tier, share in self._homes(moved, drives=True):
            buffer = Drives(self.placer, self.ideal).buffer(tier)
            if buffer is not None:
                total = total + moved[tensor] * share * first_access(self.machine, [buffer])
        return total


def _with_mix(machine: Machine, todo: tuple[Pass, ...]) -> Machine:
    """Return the machine whose ports have the rates of the mix of reads and writes of a step."""
    reads = read_pct(todo)
    ratios = machine.remembered(("optimizer's mix", reads), lambda: _ratios(machine, reads))
    values: dict[str, Any] = {}
    for name, ratio in ratios.items():
        most = 1.0 if name.endswith("efficiency") else np.inf
        values[name] = np.minimum(machine.values[name] * ratio, most)
    return machine.with_values(values) if values else machine


def _ratios(machine: Machine, reads: int) -> dict[str, float]:
    """Return by what the rates of ports change where so many percent of the bytes are reads.

    It is what the technology says, so that a rate that a file, an axis or a range gives is one
    under `access.read_pct` in all of them.
    """
    found: dict[str, float] = {}
    for path, memory in machine.memories.items():
        access = memory.config.access
        if access is None or access.read_pct == reads:
            continue
        own, other = (_derived(memory.config, pct) for pct in (access.read_pct, reads))
        ratios = {f"{path}.{name}": other[name] / value for name, value in own.items()}
        found |= {name: ratio for name, ratio in ratios.items() if ratio != 1.0}
    return found


def _derived(memory: Memory, reads: int) -> dict[str, float]:
    """Return the rates of a memory's ports that follow from its technology and a mix."""
    names = ("bandwidth", "efficiency") if memory.kind == "cxl" else ("efficiency",)
    open_ = dict.fromkeys(names)
    assert memory.access is not None, "asked only of a memory with a mix"
    access = memory.access.model_copy(update={"read_pct": reads})
    ports = {n: p if p.stream else p.model_copy(update=open_) for n, p in memory.ports.items()}
    made = with_rates(memory.model_copy(update={"access": access, "ports": ports}))
    rates = {f"{n}.{field}": getattr(p, field) for n, p in made.ports.items() for field in names}
    return {name: rate.value for name, rate in rates.items() if rate is not None}
