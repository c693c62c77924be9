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
`master_gradient`, gradients are first copied to 32 bits. A pass takes the longer of its operations
on the unit's vector lanes and its bytes at the ports and links between unit and where each tensor
lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import first_access, resource_rate
from opbyte.sim.place import Placer
from opbyte.workloads.training.plan import STATE

#: Operations of an element: two moving averages (3 each), bias corrections (2), root, sum,
#: quotient, product with the rate, decay (2), sum.
ADAM_FLOPS = 14.0


@dataclass(frozen=True)
class Pass:
    """One pass over all trained elements of a device.

    Attributes:
        moved: Bytes of an element that are read or written, by tensor class.
        flops: Operations of an element.
    """

    name: str
    moved: Mapping[str, float]
    flops: float


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
        found.append(Pass("upcast", {"gradient": gradient, tensor: size}, 0.0))
    if scaled:
        found.append(Pass("unscale", {tensor: 2.0 * size}, 2.0))
    if clip:
        found.append(Pass("norm", {tensor: size}, 2.0))
        found.append(Pass("clip", {tensor: 2.0 * size}, 1.0))
    both = 2.0 * STATE
    states = {tensor: size, "momentum": both, "variance": both}
    if weight >= STATE or not master:
        found.append(Pass("adam", {**states, "weight": 2.0 * weight}, ADAM_FLOPS))
    elif fused:
        states |= {"master_weight": both, "weight": weight}
        found.append(Pass("adam", states, ADAM_FLOPS))
    else:
        found.append(Pass("adam", {**states, "master_weight": both}, ADAM_FLOPS))
        found.append(Pass("cast", {"master_weight": STATE, "weight": weight}, 0.0))
    found.append(Pass("zero", {"gradient": gradient}, 0.0))
    return tuple(found)


def pass_costs(
    placer: Placer, todo: tuple[Pass, ...], elements: Array, *, ideal: bool
) -> tuple[PassCost, ...]:
    """Return what passes cost on one device.

    Args:
        elements: Trained elements that it steps, (points,).
    """
    unit = optimizer_unit(placer)
    return tuple(_cost(placer, unit, one, elements, ideal=ideal) for one in todo)


def optimizer_unit(placer: Placer) -> str:
    """Return the unit that runs the optimizer: that of the first rule that fits `optimizer`."""
    return placer.unit_of(frozenset({"optimizer", "vector"}))


def _cost(placer: Placer, unit: str, one: Pass, elements: Array, *, ideal: bool) -> PassCost:
    machine = placer.machine
    view = UnitView(machine, unit)
    crossing: dict[str, float] = {}
    for tensor, size in one.moved.items():
        for resource, share in placer.route(unit, tensor).items():
            crossing[resource] = crossing.get(resource, 0.0) + size * share
    busy: Array = np.zeros(1)
    joules: Array = np.zeros(1)
    for resource, size in crossing.items():
        rate = resource_rate(machine, resource, placer.instances(resource), ideal=ideal)
        busy = np.maximum(busy, elements * size / np.atleast_1d(rate))
        energy = 8.0 * np.asarray(machine.values.get(f"{resource}.energy", np.nan))
        joules = joules + elements * size * np.atleast_1d(energy)
    if one.flops:
        crowd = max(1.0, placer.devices / machine.unit(unit).count)
        lanes = (
            elements * one.flops * crowd / (view.vector_rate("optimizer") * _cores(machine, unit))
        )
        busy = np.maximum(busy, lanes)
        joules = joules + elements * one.flops * view.get("energy.vector", np.nan)
    if not ideal:
        host = machine.unit(unit).config.kind == "cpu"
        latency = view.get(f"launch.{placer.mapping.launch}", 0.0 if host else None)
        if latency is None:
            raise UncoveredError(
                f"{machine.name}: unit '{unit}' has no launch latency called "
                f"'{placer.mapping.launch}'. give it one, or map the optimizer to another unit"
            )
        busy = busy + latency + first_access(machine, crossing)
    moved = elements * sum(one.moved.values())
    return PassCost(one.name, unit, busy, joules, moved)


def _cores(machine: Machine, unit: str) -> float:
    """Return the cores of a CPU, whose `vector` rate is one core's; 1 of other units."""
    if machine.unit(unit).config.kind != "cpu":
        return 1.0
    return float(machine.unit(unit).config.instances)
