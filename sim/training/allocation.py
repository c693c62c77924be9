"""Policies that place the tensors of a training step in DRAM and in memory behind CXL.

A policy sees tensors, cut into equal chunks, and two tiers; it says how many chunks of each tensor
stay local, the rest is striped over all instances of the tier beyond (pages go round). What tensors
take is priced by the machinery of all mappings.

    local_only         all local
    naive_interleave   pages of every tensor go round the local memory and n expanders, 1 / (1 + n)
                       each, until one is full (Linux's round robin)
    cxl_aware          tensors in the order in which they wait for latency: whole where it fits; the
                       first that does not goes round all memories until one is full; what follows
                       lies beyond (arXiv 2507.03305 and its artifact's allocator)
    balanced           from `cxl_aware` chunks move while the step gets shorter, until memories take
                       equally long (`opbyte.sim.training.balanced`)
    optimal            least seconds by integer programming (`opbyte.sim.training.optimal`)

`POLICIES` takes others: `@POLICIES.register("name")` over a function of a `Problem`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import CapacityError, SimulationError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping_file import Placement
from opbyte.core.registry import Registry
from opbyte.hw_models.machine import Machine
from opbyte.sim.place import Placer
from opbyte.sim.training.offload import Offload

if TYPE_CHECKING:
    from opbyte.sim.training.optimal import StepModel
    from opbyte.workloads.train import TrainStep
    from opbyte.workloads.training.plan import Plan

__all__ = ["ORDER", "POLICIES", "Policy", "Problem", "Tensor", "Tier", "allocated", "decided"]

#: Classes by how much they wait for latency: the CPU's Adam touches the first four, the GPU's copy
#: engine the others (arXiv 2507.03305, artifact, usage_tutorial.md).
ORDER = (
    "momentum", "variance", "master_gradient", "master_weight", "weight", "activation", "gradient",
)  # fmt: skip
#: Classes in the order in which a program makes them; assumed.
MADE = (
    "weight", "gradient", "master_weight", "master_gradient", "momentum", "variance", "activation",
)  # fmt: skip
PAGE = "4 KiB"


@dataclass(frozen=True)
class Tensor:
    """A tensor class: `chunks` equal ones of `size` bytes together."""

    name: str
    size: float
    chunks: int

    @property
    def chunk(self) -> float:
        """Return the bytes of a chunk."""
        return self.size / self.chunks

    def whole(self, room: float) -> int:
        """Return the chunks that fit in so many bytes."""
        room = min(max(room, 0.0), self.size)
        return min(self.chunks, int(room / self.chunk * (1.0 + 1e-12)))


@dataclass(frozen=True)
class Tier:
    """A memory: all instances, as far as one device may take them.

    Attributes:
        room: Bytes of all instances.
    """

    path: str
    room: float
    instances: int = 1


@dataclass(frozen=True)
class Problem:
    """What a policy decides on.

    Attributes:
        tensors: In the order of `ORDER`.
        model: Makes the seconds of a step as a function of shares; None without a step.
    """

    tensors: tuple[Tensor, ...]
    local: Tier
    beyond: Tier
    model: Callable[[], StepModel] | None = None


#: Returns the chunks that stay local, by tensor.
Policy = Callable[[Problem], Mapping[str, int]]
POLICIES: Registry[Policy] = Registry("allocation policy")


@POLICIES.register("local_only")
def local_only(problem: Problem) -> dict[str, int]:
    """Keep everything local."""
    return {tensor.name: tensor.chunks for tensor in problem.tensors}


@POLICIES.register("naive_interleave")
def naive_interleave(problem: Problem) -> dict[str, int]:
    """Let pages of all tensors go round all memories, until one is full."""
    made = sorted(problem.tensors, key=lambda t: MADE.index(t.name))
    room, beyond, kept = problem.local.room, problem.beyond.room, {}
    for tensor in made:
        share = tensor.size / (1 + problem.beyond.instances)
        kept[tensor.name] = _shared(tensor, share, room, beyond)
        room -= kept[tensor.name] * tensor.chunk
        beyond -= (tensor.chunks - kept[tensor.name]) * tensor.chunk
    return kept


def _shared(tensor: Tensor, share: float, room: float, beyond: float) -> int:
    """Return the chunks that stay local of a tensor of which `share` bytes should.

    Once the memory beyond is full, pages go on in the local one.

    Args:
        room, beyond: Bytes that are left there.
    """
    kept = tensor.whole(min(room, share))
    over = min(tensor.size - kept * tensor.chunk - beyond, tensor.size)
    more = int(np.ceil(over / tensor.chunk - 1e-9)) if over > 0.0 else 0
    return max(kept, min(kept + more, tensor.whole(room)))


@POLICIES.register("cxl_aware")
def cxl_aware(problem: Problem) -> dict[str, int]:
    """Keep what waits for latency local, spill greedily, stripe the rest."""
    room, beyond, kept = problem.local.room, problem.beyond.room, {}
    for tensor in problem.tensors:
        share = tensor.size if tensor.size <= room else tensor.size / (1 + problem.beyond.instances)
        kept[tensor.name] = _shared(tensor, share, room, beyond)
        room -= kept[tensor.name] * tensor.chunk
        beyond -= (tensor.chunks - kept[tensor.name]) * tensor.chunk
    return kept


@POLICIES.register("balanced")
def balanced(problem: Problem) -> dict[str, int]:
    """Even out what memories take, from the published placement.

    Raises:
        SimulationError: If there is no step whose seconds could be counted.
        CapacityError: If the published placement does not fit.
    """
    from opbyte.sim.training.balanced import balance

    return balance(problem, cxl_aware(problem))


@POLICIES.register("optimal")
def optimal(problem: Problem) -> dict[str, int]:
    """Take the least seconds.

    Raises:
        SimulationError: If there is no step whose seconds could be counted.
        CapacityError: If nothing fits.
    """
    from opbyte.sim.training.optimal import solve

    return solve(problem).kept


def decided(policy: str, problem: Problem) -> dict[str, float]:
    """Return the share of each tensor that a policy keeps local.

    Raises:
        ConfigError: If no policy has that name.
        CapacityError: If its tensors do not fit.
        SimulationError: If it leaves a tensor out, or keeps chunks that are not there.
    """
    kept = POLICIES.lookup(policy)(problem)
    for tensor in problem.tensors:
        if not 0 <= kept.get(tensor.name, -1) <= tensor.chunks:
            raise SimulationError(
                f"allocation policy '{policy}': '{tensor.name}' has {tensor.chunks} chunks, and "
                f"{kept.get(tensor.name)} shall stay local. return a number of 0 to {tensor.chunks}"
            )
    sizes = {t.name: kept[t.name] * t.chunk for t in problem.tensors}
    rest = {t.name: t.size - sizes[t.name] for t in problem.tensors}
    for tier, held in ((problem.local, sizes), (problem.beyond, rest)):
        if sum(held.values()) > tier.room * (1.0 + 1e-9):
            names = [name for name, size in held.items() if size > 0.0]
            raise CapacityError(names, tier.path, sum(held.values()), tier.room)
    return {t.name: kept[t.name] / t.chunks for t in problem.tensors}


def cut(sizes: Mapping[str, float], chunk: float) -> tuple[Tensor, ...]:
    """Return tensors in chunks of at most so many bytes, in the order of `ORDER`."""
    ordered = sorted(sizes.items(), key=lambda one: ORDER.index(one[0]))
    return tuple(Tensor(n, x, max(1, int(np.ceil(x / chunk)))) for n, x in ordered if x > 0.0)


def placed(
    mapping: SoftwareMapping, shares: Mapping[str, float], local: str, beyond: str
) -> SoftwareMapping:
    """Return the mapping with tensors placed, and without its policy.

    Args:
        shares: Local share of each tensor.
    """
    place = dict(mapping.place)
    for name, share in shares.items():
        tiers = {t: s for t, s in ((local, share), (beyond, 1.0 - share)) if s > 0.0}
        place[name] = Placement.model_validate({"in": tiers, "interleave": PAGE})
    return mapping.model_copy(update={"place": place, "allocate": None})


def problem_of(
    machine: Machine,
    work: TrainStep,
    mapping: SoftwareMapping,
    model: Callable[[Sequence[Tensor]], StepModel] | None = None,
) -> Problem:
    """Return what the policy of a mapping decides on.

    Raises:
        ConfigError: If the machine lacks a memory of the block, or a budget is of another one.
        UncoveredError: If design points differ in sizes, or stages of a pipeline in what they hold.
    """
    block = mapping.allocate
    assert block is not None, "asked only of a mapping with a policy"
    if mapping.degrees.pp > 1:
        raise UncoveredError(
            f"{machine.name}: stages of a pipeline hold different tensors, and a policy places one "
            "device's. use pp: 1, or `place`"
        )
    plan = work.plan(mapping.degrees, fused=mapping.fuses_attention)
    master = "optimizer" not in mapping.place and lookup(work.gradient).bytes_per_element < 4.0
    master = master or "master_gradient" in mapping.place
    (held,) = work.held(plan, master_gradient=master)
    todo = {n: x for n, x in held.items() if n in ORDER and n not in mapping.place}
    if "optimizer" in mapping.place:
        todo = {n: x for n, x in todo.items() if n in ("weight", "gradient", "activation")}
    tensors = cut({n: _one(machine, x, n) for n, x in todo.items()}, block.chunk.value)
    paths = block.local, block.beyond
    placer = Placer(machine, placed(mapping, {}, *paths), training=True)
    rest: dict[str, Any] = {n: x for n, x in held.items() if n not in todo}
    rest |= _buffers(placer, work, plan, placed(mapping, dict.fromkeys(todo, 0.0), *paths))
    tiers = []
    for path in paths:
        count, devices = machine.memory(path).count, placer.groups.devices(path)
        if f"{path}.".startswith(f"{placer.group}."):
            # Memories of devices that take no part are out of reach.
            count = count * devices // machine.counts[placer.group]
        room = _one(machine, placer.capacity(path), f"{path}.capacity") * count
        if path in block.budget:
            room = min(room, block.budget[path].value)
        for name, size in rest.items():
            share = placer.tiers(name).in_.get(path, 0.0)
            room -= _one(machine, size, name) * share * devices
        tiers.append(Tier(path, max(0.0, room) / devices, count))
    make = None if model is None else lambda: model(tensors)
    return Problem(tensors, tiers[0], tiers[1], make)


def _buffers(
    placer: Placer, work: TrainStep, plan: Plan, beyond: SoftwareMapping
) -> dict[str, Any]:
    """Return the buffers for copies of one device, of the most that may lie beyond."""
    unit = placer.unit_of(frozenset({"gemm", "dense", "train"}))
    far = Offload(Placer(placer.machine, beyond, training=True), unit, beside=False, ideal=False)
    sizes = (lookup(dtype).bytes_per_element for dtype in (work.trained_dtype, work.gradient))
    return {"buffer": far.buffers(plan, *sizes)}


def allocated(
    machine: Machine,
    work: TrainStep,
    mapping: SoftwareMapping,
    model: Callable[[Sequence[Tensor]], StepModel] | None = None,
) -> SoftwareMapping:
    """Return the mapping with tensors placed as its policy says.

    Args:
        model: Makes the seconds of a step of tensors as a function of their shares.
    Raises:
        ConfigError: For an unknown policy or memory.
        CapacityError: If tensors do not fit.
        UncoveredError: If design points differ.
    """
    block = mapping.allocate
    assert block is not None, "asked only of a mapping with a policy"
    problem = problem_of(machine, work, mapping, model)
    return placed(mapping, decided(block.policy, problem), block.local, block.beyond)


def _one(machine: Machine, value: Any, name: str) -> float:
    found = np.unique(np.asarray(value, float))
    if len(found) > 1:
        raise UncoveredError(
            f"{machine.name}: a policy places tensors for one design point at a time, and "
            f"'{name}' differs between points. simulate them one by one"
        )
    return float(found[0])
