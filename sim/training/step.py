"""The seconds of a training step: passes of microbatches through stages, replicas, the optimizer.

    seconds = pipeline of all microbatches + exchange of gradients and weights + optimizer

Stages wait for each other before the optimizer, whose norm is of all gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, price
from opbyte.sim.place import Placer
from opbyte.sim.training.behind import check_behind, exposed
from opbyte.sim.training.exchanges import Exchanges
from opbyte.sim.training.fabric import Fabric
from opbyte.sim.training.fragmentation import check_allocator, fragmentation
from opbyte.sim.training.offload import Offload, computing, copied
from opbyte.sim.training.optimizer import PassCost, Stepping, optimizer_unit, passes
from opbyte.sim.training.pipeline import Played, check_passes, play
from opbyte.sim.training.staging import staged, with_homes
from opbyte.sim.training.streams import streams
from opbyte.sim.training.swap import share_of
from opbyte.workloads.train import fullest, gathered
from opbyte.workloads.training.plan import in_flight

if TYPE_CHECKING:
    from opbyte.workloads.train import TrainStep
    from opbyte.workloads.training.plan import Plan

__all__ = ["Passes", "Timed", "Training"]


@dataclass(frozen=True)
class Passes:
    """Seconds of one microbatch, by virtual stage, each (virtual, points).

    Attributes:
        seconds: Of a pass.
        computing: Of them, those of kernels that are no collectives.
        demand: What was priced.
    """

    seconds: Array
    computing: Array
    demand: Demand


@dataclass(frozen=True)
class Timed:
    """The seconds of a step.

    Attributes:
        plan: With the share of the tokens that is kept.
        passes: Of one microbatch, by name.
        forward, backward: Passes with copies and exchanges, (virtual, points).
        pipeline: All microbatches, (points,).
        after: Exchanges once a step, (points,).
        optimizer: What nothing hides, (points,).
        costs: The optimizer's passes, alone.
        played: The pipeline at the first point.
        points: How many.
    """

    plan: Plan
    passes: dict[str, Passes]
    forward: Array
    backward: Array
    pipeline: Array
    after: Array
    optimizer: Array
    costs: tuple[PassCost, ...]
    played: Played
    points: int

    @property
    def seconds(self) -> Array:
        """Return the seconds of the step, (points,)."""
        return np.asarray(self.pipeline + self.after + self.optimizer)


class Training:
    """One evaluation, for all design points at once."""

    def __init__(
        self, machine: Machine, work: TrainStep, mapping: SoftwareMapping, ideal: bool
    ) -> None:
        self.work, self.ideal = work, ideal
        self.parallel = mapping.degrees
        mapping = with_homes(mapping)
        #: Where tensors live, and where operators find them: in the unit's own memory.
        self.home = Placer(machine, mapping, training=True)
        unit = self.home.unit_of(frozenset({"gemm", "dense", "train"}))
        self.placer = Placer(machine, computing(machine, mapping, unit), training=True)
        self.behind = mapping.overlap == "optimizer"
        if self.behind:
            check_behind(machine.name, mapping, (optimizer_unit(self.home), unit), work.clip)
        beside = mapping.overlap in ("copy", "gradients", "optimizer")
        self.offload = Offload(self.home, unit, beside, ideal)
        if mapping.allocator is not None:
            check_allocator(self.offload)
        self.master_gradient = "master_gradient" in mapping.place
        self.plan: Plan = work.plan(self.parallel, fused=mapping.fuses_attention)
        self.many = np.atleast_1d(work.microbatches(self.parallel))
        check_passes(float(self.many.max()), self.plan.virtual)
        port = machine.unit_ports(unit)[0]
        fabric = Fabric(machine, self.placer.networks, self.placer.groups.part, port, ideal)
        hidden = mapping.overlap in ("gradients", "optimizer")
        self.exchanges = Exchanges(fabric, work, self.plan, self._element, hidden, self._taken)

    # -- prices ------------------------------------------------------------------------------

    def _passes(self, table: OpTable | None) -> Passes | None:
        if table is None:
            return None
        demand = price(self.placer.place(table), self.placer.machine, ideal=self.ideal)
        found = streams(demand, self._taken)
        seconds, computing = found.of_stages(demand, self.plan.virtual)
        return Passes(seconds, computing, demand)

    @property
    def _taken(self) -> Any:
        """Return the share of a device's SMs that a call of the library takes."""
        if self.ideal or self.parallel.tp * self.parallel.dp == 1:
            return 0.0
        machine, part = self.placer.machine, self.placer.groups.part
        config = machine.unit(self.offload.unit).config
        # Devices that are alone in their nodes have no link of their own, which would say it.
        link = next((n for n, one in machine.config.links.items() if one.ends == (part, part)), "")
        if config.kind != "gpu" or not link:
            return 0.0
        return machine.values.get(f"{link}.collectives.channels", 0.0) / config.instances

    @property
    def _element(self) -> float:
        """Return the bytes of an element that is trained."""
        return lookup(self.work.trained_dtype).bytes_per_element

    def stepping(self) -> Stepping:
        """Return the passes of the optimizer on the device that steps most elements."""
        scaled = lookup(self.work.trained_dtype).name == "fp16"
        kind = self.home.machine.unit(optimizer_unit(self.home)).config.kind
        todo = passes(
            self._element, self.gradient, scaled=scaled, clip=self.work.clip,
            master=self.work.master, upcast=self.master_gradient, fused=kind in ("cpu", "cores"),
        )  # fmt: skip
        parts = self.parallel.dp if self.parallel.zero else 1
        most = np.atleast_1d(self.plan.of_stages(self.plan.trained).max(axis=0)) / parts
        return Stepping(self.home, todo, most, ideal=self.ideal)

    # -- time --------------------------------------------------------------------------------

    def timed(self) -> Timed:
        """Return the seconds of a step and what they are made of."""
        parallel = self.parallel
        found, plan = self._swapped(self._priced())
        forward, backward = self.offload.passes(
            plan, *self.computed(found), self.gradient, self.many
        )
        alone = backward
        once, *each = self.exchanges.replicas(plan.of_stages(forward), plan.of_stages(backward))
        # The chunks of a stage have equal shares of its exchanges.
        waits = [np.tile(e, (parallel.interleave, 1)) / parallel.interleave for e in each]
        forward, backward = forward + waits[0], backward + waits[1]
        send = self.exchanges.send()
        stepping = self.stepping()
        costs = stepping.costs()
        values = (forward, backward, send, self.many, once, *(c.seconds for c in costs))
        points = max(int(v.shape[-1]) for v in values)
        pipeline, played = self._pipeline(forward, backward, send, points)
        optimizer = sum((c.seconds for c in costs), np.zeros(1))
        if self.behind:
            copies = self.offload.loads(copied(plan, 0, self.gradient, self.many)[1])
            optimizer = exposed(stepping, optimizer, alone[0], copies, plan.layers[0])
        after = once.max(axis=0) + self.exchanges.tied()
        return Timed(
            plan, found, forward, backward, pipeline, after, optimizer, costs, played, points
        )

    @property
    def gradient(self) -> float:
        """Return the bytes of an element of the gradients."""
        return lookup(self.work.gradient).bytes_per_element

    def _priced(self) -> dict[str, Passes]:
        plan = self.plan
        tables = {"forward": plan.forward, "recompute": plan.recompute, "backward": plan.backward}
        return {name: p for name, t in tables.items() if (p := self._passes(t)) is not None}

    def _swapped(self, found: dict[str, Passes]) -> tuple[dict[str, Passes], Plan]:
        """Return passes and plan where a share of the tokens is kept and not computed again."""
        wished = self.home.mapping.swap
        if wished is None:
            return found, self.plan
        share = share_of(
            wished, self.plan, self.offload, {name: p.seconds for name, p in found.items()},
            lambda plan, stage: copied(plan, stage, self.gradient, self.many),
            lambda plan: self.home.occupancy(fullest(self.held(plan))[1]),
        )  # fmt: skip
        plan = replace(self.plan, swapped=share if share.size > 1 else float(share[0]))
        again, left = found["recompute"], 1.0 - plan.swapped
        less = Passes(again.seconds * left, again.computing * left, again.demand)
        return {**found, "recompute": less}, plan

    def held(self, plan: Plan) -> list[dict[str, Any]]:
        """Return the bytes of each tensor class at the peak of each stage."""
        buffer = self.offload.buffers(plan, self._element, self.gradient)
        stages: list[dict[str, Any]] = []
        block = self.home.mapping.staging
        # Layers that are gathered lie in the buffers then, not where weights live.
        within = gathered(plan) if self.offload.share("weight") > 0.0 else 0.0
        for s, tensors in enumerate(self.work.held(plan, master_gradient=self.master_gradient)):
            held = {**tensors, "buffer": buffer} if np.any(buffer) else dict(tensors)
            held["weight"] = held["weight"] - within
            if block is not None:
                blocks = sum(plan.layers) * in_flight(self.parallel.pp, 1, s, self.many)
                held |= staged(self.home, block, plan, held, blocks)
            if self.home.mapping.allocator is not None:
                held["fragmentation"] = fragmentation(self, plan, s, held)
            stages.append(held)
        return stages

    def computed(self, found: dict[str, Passes] | None = None) -> tuple[Array, Array]:
        """Return the seconds of forward and backward passes without copies, (virtual, points)."""
        found = found or self._priced()
        forward, backward = found["forward"].seconds, found["backward"].seconds
        if "recompute" in found:
            backward = backward + found["recompute"].seconds
        return forward, backward

    def _pipeline(
        self, forward: Array, backward: Array, send: Array, points: int
    ) -> tuple[Array, Played]:
        parallel = self.parallel
        wide = [np.broadcast_to(v, (len(forward), points)) for v in (forward, backward)]
        sends, many = np.broadcast_to(send, points), np.broadcast_to(self.many, points)
        seconds = np.empty(points)
        first: Played | None = None
        for p in range(points):
            played = play(
                wide[0][:, p], wide[1][:, p], float(sends[p]), parallel.pp, parallel.interleave,
                int(many[p]),
            )  # fmt: skip
            seconds[p] = played.seconds
            first = first or played
        assert first is not None, "there is a point"
        return seconds, first
