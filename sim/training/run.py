"""A training step on a machine: passes of microbatches through stages, replicas, the optimizer.

    seconds = pipeline of all microbatches + exchange of gradients and weights + optimizer

Stages wait for each other before the optimizer, whose norm is of all gradients. The metrics
forward_s, recompute_s, backward_s, communication_s and bubble_s are those of the stage that has
most to do, and add up to the step with optimizer_s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, price
from opbyte.sim.analytic import Step
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome, PhaseRun
from opbyte.sim.simulate import RUNNERS, combine, feasible, static_watts, with_costs
from opbyte.sim.training.allocation import Tensor, allocated, placed
from opbyte.sim.training.exchanges import Exchanges
from opbyte.sim.training.fabric import Fabric
from opbyte.sim.training.memory import memory_over_time
from opbyte.sim.training.offload import Offload, computing
from opbyte.sim.training.optimal import StepModel, others, step_model
from opbyte.sim.training.optimizer import PassCost, Stepping, optimizer_unit, passes
from opbyte.sim.training.pipeline import Played, check_passes, play
from opbyte.sim.training.points import placed_alike
from opbyte.sim.training.streams import streams
from opbyte.workloads.train import fullest

if TYPE_CHECKING:
    from opbyte.workloads.train import TrainStep
    from opbyte.workloads.training.plan import Plan


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


@RUNNERS.register("train")
def run_train(
    machine: Machine, work: TrainStep, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of a training step.

    Raises:
        UncoveredError: For the fidelity `event`, or a mapping that training has no model of.
    """
    del seed
    _check(machine, work, mapping, fidelity)
    ideal = fidelity == "bound"

    def run(some: Machine, step: TrainStep, placed: SoftwareMapping) -> Outcome:
        return _Training(some, step, placed, ideal).outcome()

    if mapping.allocate is None:
        return run(machine, work, mapping)

    known: dict[tuple[float, ...], SoftwareMapping] = {}

    def decide(one: Machine, step: TrainStep) -> SoftwareMapping:
        # Only a policy that counts seconds sees more than sizes and rooms.
        block, counted = mapping.allocate, []
        assert block is not None, "asked only of a mapping with a policy"
        model = model_of(one, step, mapping, ideal=ideal)

        def noted(tensors: Sequence[Tensor]) -> StepModel:
            counted.append(True)
            return model(tensors)

        for tier in (block.local, block.beyond):
            one.memory(tier)
        key = tuple(float(getattr(step, name)) for name in step.vector_fields) + tuple(
            float(one.values[f"{tier}.capacity"]) for tier in (block.local, block.beyond)
        )
        if key in known:
            return known[key]
        chosen = allocated(one, step, mapping, noted)
        if not counted:
            known[key] = chosen
        return chosen

    return placed_alike(machine, work, decide, run)


def model_of(
    machine: Machine, work: TrainStep, mapping: SoftwareMapping, *, ideal: bool
) -> Callable[[Sequence[Tensor]], StepModel]:
    """Return what makes the seconds of a step as a function of where tensors live."""

    def model(tensors: Sequence[Tensor]) -> StepModel:
        assert mapping.allocate is not None, "asked only of a mapping with a policy"
        names, ends = [t.name for t in tensors], (mapping.allocate.local, mapping.allocate.beyond)
        near, far = (
            _Training(machine, work, placed(mapping, dict.fromkeys(names, share), *ends), ideal)
            for share in (1.0, 0.0)
        )
        return step_model(machine, near, far, tensors, others(names))

    return model


def _check(machine: Machine, work: TrainStep, mapping: SoftwareMapping, fidelity: str) -> None:
    if fidelity == "event":
        raise UncoveredError(
            f"{machine.name}: the event kernel plays no training step yet. use the fidelity "
            "analytic, whose pipeline is played pass by pass"
        )
    cached = [name for name, place in mapping.place.items() if place.cache]
    lacking = {
        f"a cache of {', '.join(cached)}": bool(cached),
        "a pipeline block": mapping.pipeline is not None,
        "decode attention on a group of its own": mapping.attention is not None,
        "devices that are sets": mapping.default is not None and mapping.default.together,
        "microbatches (the work's batch and micro_batch say how many)": (
            mapping.degrees.microbatches > 1
        ),
    }
    for what, wished in lacking.items():
        if wished:
            raise UncoveredError(
                f"mapping '{mapping.name}' of {machine.name}: a {work.kind} work has no model of "
                f"{what}. leave it out"
            )


class _Training:
    """One evaluation, for all design points at once."""

    def __init__(
        self, machine: Machine, work: TrainStep, mapping: SoftwareMapping, ideal: bool
    ) -> None:
        self.work, self.ideal = work, ideal
        self.parallel = mapping.degrees
        #: Where tensors live, and where operators find them: in the unit's own memory.
        self.home = Placer(machine, mapping, training=True)
        unit = self.home.unit_of(frozenset({"gemm", "dense", "train"}))
        self.placer = Placer(machine, computing(machine, mapping, unit), training=True)
        beside = mapping.overlap in ("copy", "gradients")
        self.offload = Offload(self.home, unit, beside, ideal)
        self.master_gradient = "master_gradient" in mapping.place
        fused = any({"all", "attention"} & set(words) for words in mapping.fused_labels)
        self.plan: Plan = work.plan(self.parallel, fused=fused)
        self.many = np.atleast_1d(work.microbatches(self.parallel))
        check_passes(float(self.many.max()), self.plan.virtual)
        fabric = Fabric(machine, self.placer.networks, self.placer.groups.part, ideal)
        hidden = mapping.overlap == "gradients"
        self.exchanges = Exchanges(fabric, work, self.plan, self._element, hidden)

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
        if self.ideal or self.parallel.tp == 1:
            return 0.0
        machine, link = self.placer.machine, self.placer.networks.of_collectives()
        config = machine.unit(self.offload.unit).config
        if config.kind != "gpu":
            return 0.0
        channels = machine.values.get(f"{link}.collectives.channels", 0.0)
        return channels / config.instances

    @property
    def _element(self) -> float:
        """Return the bytes of an element that is trained."""
        lora = self.work.lora
        name = lora.dtype if lora is not None else self.work.model.precision.weight
        return lookup(name).bytes_per_element

    def stepping(self) -> Stepping:
        """Return the passes of the optimizer on the device that steps most elements."""
        dtype = self.work.lora.dtype if self.work.lora else self.work.model.precision.weight
        scaled = lookup(dtype).name == "fp16"
        kind = self.home.machine.unit(optimizer_unit(self.home)).config.kind
        todo = passes(
            self._element, self.gradient, scaled=scaled, clip=self.work.clip,
            master=self.work.master, upcast=self.master_gradient, fused=kind in ("cpu", "cores"),
        )  # fmt: skip
        parts = self.parallel.dp if self.parallel.zero else 1
        most = np.atleast_1d(self.plan.of_stages(self.plan.trained).max(axis=0)) / parts
        return Stepping(self.home, todo, most, ideal=self.ideal)

    # -- time --------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        """Return metrics, phases, occupancy and what memories hold over time."""
        plan, parallel = self.plan, self.parallel
        found = self._priced()
        forward, backward = self._with_copies(found)
        once, *each = self.exchanges.replicas(plan.of_stages(forward), plan.of_stages(backward))
        # The chunks of a stage have equal shares of its exchanges.
        waits = [np.tile(e, (parallel.interleave, 1)) / parallel.interleave for e in each]
        forward, backward = forward + waits[0], backward + waits[1]
        send = self.exchanges.send()
        costs = self.stepping().costs()
        points = self._points(forward, backward, send, self.many, once, *(c.seconds for c in costs))
        pipeline, played = self._pipeline(forward, backward, send, points)
        optimizer = sum((c.seconds for c in costs), np.zeros(1))
        after = once.max(axis=0) + self.exchanges.tied()
        seconds = pipeline + after + optimizer
        parts = self._parts(found, forward, backward, pipeline, after, points)
        parts["optimizer_s"] = optimizer
        return self._finished(found, seconds, parts, costs, played)

    @property
    def gradient(self) -> float:
        """Return the bytes of an element of the gradients."""
        return lookup(self.work.gradient).bytes_per_element

    def _priced(self) -> dict[str, Passes]:
        plan = self.plan
        tables = {"forward": plan.forward, "recompute": plan.recompute, "backward": plan.backward}
        return {name: p for name, t in tables.items() if (p := self._passes(t)) is not None}

    def computed(self, found: dict[str, Passes] | None = None) -> tuple[Array, Array]:
        """Return the seconds of forward and backward passes without copies, (virtual, points)."""
        found = found or self._priced()
        forward, backward = found["forward"].seconds, found["backward"].seconds
        if "recompute" in found:
            backward = backward + found["recompute"].seconds
        return forward, backward

    def _with_copies(self, found: dict[str, Passes]) -> tuple[Array, Array]:
        """Return the seconds of forward and backward passes with copies, (virtual, points)."""
        passes = self.computed(found)
        return self.offload.passes(self.plan, *passes, self.gradient, self.many)

    @staticmethod
    def _points(*values: Array) -> int:
        return max(int(v.shape[-1]) for v in values)

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

    def _parts(
        self,
        found: dict[str, Passes],
        forward: Array,
        backward: Array,
        pipeline: Array,
        after: Array,
        points: int,
    ) -> dict[str, Array]:
        """Return the step's parts on the stage that has most to do, each (points,).

        Args:
            forward, backward: Seconds of passes, waits included, (virtual, points).
        """
        working = {
            name: np.broadcast_to(self.plan.of_stages(p.computing), (self.parallel.pp, points))
            for name, p in found.items()
        }
        total = sum(working.values(), np.zeros((self.parallel.pp, points)))
        most = total.argmax(axis=0)[None]
        parts = {
            f"{name}_s": self.many * np.take_along_axis(seconds, most, axis=0)[0]
            for name, seconds in working.items()
        }
        parts.setdefault("recompute_s", np.zeros(points))
        waiting = self._waiting(total, forward + backward, most, points)
        used = sum(parts.values(), np.zeros(points))
        parts["communication_s"] = waiting + after
        parts["bubble_s"] = np.maximum(pipeline - used - waiting, 0.0)
        return parts

    def _waiting(self, computing: Array, passes: Array, most: Any, points: int) -> Array:
        """Return what a stage waits for collectives, copies and sends of all microbatches.

        Args:
            computing: Of each stage, (stages, points).
            passes: Forward and backward with all waits but sends, (virtual, points).
        """
        parallel = self.parallel
        each = self.plan.of_stages(passes) - computing
        send, pp = self.exchanges.send(), parallel.pp
        sends = np.full((pp, 1), 2.0 * parallel.interleave if pp > 1 else 0.0)
        # The first stage ends the backward passes, the last the forward ones.
        sends[[0, -1]] -= 1.0 if pp > 1 else 0.0
        each = each + sends * send
        wide = np.broadcast_to(each, (pp, points))
        return np.asarray(self.many * np.take_along_axis(wide, most, axis=0)[0])

    # -- the answer --------------------------------------------------------------------------

    def _finished(
        self,
        found: dict[str, Passes],
        seconds: Array,
        parts: dict[str, Array],
        costs: tuple[PassCost, ...],
        played: Played,
    ) -> Outcome:
        machine, work, plan = self.placer.machine, self.work, self.plan
        runs = [
            PhaseRun(
                name, p.demand, Step(p.seconds.sum(axis=0), p.seconds.sum(axis=0), {}),
                self.many if self.many.size > 1 else float(self.many[0]),
                beside=_rows(costs) if name == "backward" else (),
            )
            for name, p in found.items()
        ]  # fmt: skip
        metrics = combine(self.placer, runs, work.tokens)
        static = static_watts(machine)
        devices = self.parallel.devices
        moved = metrics["flops"] / metrics["op_per_byte"]
        moved = moved + devices * sum((c.moved for c in costs), np.zeros(1))
        joules = metrics["joules"] - static * metrics["seconds"] + static * seconds
        joules = joules + devices * sum((c.joules for c in costs), np.zeros(1))
        metrics = with_costs(
            machine,
            {
                "seconds": seconds,
                "joules": joules,
                "watts": joules / seconds,
                "flops": metrics["flops"],
                "op_per_byte": metrics["flops"] / moved,
                "kernels": metrics["kernels"] + len(costs) * self.parallel.pp,
                "tokens_per_s": work.tokens / seconds,
                "joules_per_token": joules / work.tokens,
            },
        )
        metrics |= self._utilisation(seconds) | parts
        metrics["microbatches"] = self.many
        buffer = self.offload.buffers(plan, self._element, self.gradient)
        stages = [
            {**held, "buffer": buffer} if np.any(buffer) else held
            for held in work.held(plan, master_gradient=self.master_gradient)
        ]
        stage, held = fullest(stages)
        metrics |= _held_metrics(held)
        metrics = {n: np.atleast_1d(np.asarray(v, np.float64)) for n, v in metrics.items()}
        detail = {"memory": memory_over_time(plan, played, int(stage[0]), held, float(seconds[0]))}
        occupancy = self.home.occupancy(held)
        outcome = Outcome(metrics, tuple(runs), occupancy, detail=detail)
        return feasible(self.home, outcome, tuple(_held_metrics(held)))

    def _utilisation(self, seconds: Array) -> dict[str, Array]:
        """Return the shares of the matrix units' peak that useful and executed products take."""
        plan, parallel, machine = self.plan, self.parallel, self.placer.machine
        unit = UnitView(machine, self.placer.unit_of(frozenset({"gemm", "dense", "train"})))
        dtype = self.work.model.precision.compute("ffn")
        spans = parallel.pp * parallel.tp * parallel.dp
        peak = np.atleast_1d(unit.peak(dtype)) * spans
        many = self.many * parallel.tp * parallel.dp
        return {
            "mfu": many * plan.model_flops / (seconds * peak),
            "mfu_causal": many * plan.causal_flops / (seconds * peak),
            "hfu": many * plan.hardware_flops / (seconds * peak),
        }


def _rows(costs: tuple[PassCost, ...]) -> tuple[dict[str, Any], ...]:
    """Return the optimizer's rows of the breakdown."""
    return tuple(
        {
            "block": "optimizer", "operator": c.name, "unit": c.unit, "runs": 1.0,
            "seconds": float(c.seconds[0]), "joules": float(c.joules[0]),
        }
        for c in costs
    )  # fmt: skip


def _held_metrics(held: dict[str, Any]) -> dict[str, Array]:
    names = ("momentum", "variance", "master_weight", "master_gradient")
    states = [held.get(name, 0.0) for name in names]
    return {
        "weight_bytes": np.atleast_1d(held["weight"]),
        "gradient_bytes": np.atleast_1d(held["gradient"]),
        "optimizer_bytes": np.atleast_1d(sum(states)),
        "activation_bytes": np.atleast_1d(held["activation"] + held["working"]),
        "peak_bytes": np.atleast_1d(sum(held.values(), 0.0)),
    }


__all__ = ["Passes", "model_of", "run_train"]
