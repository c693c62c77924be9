"""What devices of a training job send each other beside tensor parallelism: seconds and joules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Array
from opbyte.sim.training.fabric import Fabric

if TYPE_CHECKING:
    from opbyte.workloads.train import TrainStep
    from opbyte.workloads.training.plan import Plan


@dataclass(frozen=True)
class Exchanges:
    """Sends of stages, exchanges of replicas, sums of a tied embedding.

    Attributes:
        element: Bytes of an element that is trained.
        hidden: Exchanges of replicas run beside the passes.
        taken: Share of the unit that calls take from kernels beside them.
    """

    fabric: Fabric
    work: TrainStep
    plan: Plan
    element: float
    hidden: bool
    taken: Any = 0.0

    def send(self) -> Array:
        """Return the seconds of a send of one microbatch's hidden vectors to the next stage."""
        parallel, whole = self.plan.parallel, self._hidden()
        if parallel.pp == 1:
            return np.zeros(1)
        # Each device of a tensor-parallel group sends a part, which the others then gather. Of
        # stages in several nodes the sends that cross a border set the pace of all.
        stage = parallel.tp * parallel.dp
        part = whole / parallel.tp
        seconds = self.fabric.exchange("send", part, 2, stage, span=stage * parallel.pp)
        if not parallel.sequence:
            seconds = seconds + self.fabric.exchange("all_gather", whole, parallel.tp, 1)
        return seconds

    def replicas(self, forward: Array, backward: Array) -> tuple[Array, Array, Array]:
        """Return exposed seconds of replicas: once a step, in each forward and backward pass.

        Gradients are reduced once a step, from ZeRO 2 on after each microbatch: a device has no
        room for the others' parts. With ZeRO 3 both passes gather the weights. Beside calls of E
        seconds a pass of P gets the rest of the unit, and both take max(E, P + `taken` E).

        Args:
            forward, backward: Seconds of the passes of each stage, (stages, points).
        Returns:
            Each (stages, points).
        """
        parallel = self.plan.parallel
        dp, zero, none = parallel.dp, parallel.zero, np.zeros((parallel.pp, 1))
        if dp == 1:
            return none, none, none

        def call(kind: str, bytes_of_stage: Array) -> Array:
            calls = [self.fabric.exchange(kind, s, dp, parallel.tp) for s in bytes_of_stage]
            return np.stack(np.broadcast_arrays(*calls))

        def exposed(seconds: Array, beside: Array) -> Array:
            if not self.hidden:
                return seconds
            return np.asarray(np.maximum(seconds - beside, self.taken * seconds))

        calls = {name: call(*one) for name, one in self._of_replicas().items()}
        reduction = calls["reduction"]
        if zero == 3:
            gather = calls["gather"]
            return none, exposed(gather, forward), exposed(gather + reduction, backward)
        after = calls.get("after", none)
        reduction = exposed(reduction, backward)
        return (after, none, reduction) if zero == 2 else (reduction + after, none, none)

    def _of_replicas(self) -> dict[str, tuple[str, Array]]:
        """Return kind and bytes of each stage of what replicas exchange, (stages, points).

        `reduction` of gradients, `gather` of weights before a pass, or `after` the optimizer.
        """
        plan, zero = self.plan, self.plan.parallel.zero
        trained = plan.of_stages(plan.trained)
        size = trained * lookup(self.work.gradient).bytes_per_element
        found = {"reduction": ("reduce_scatter" if zero else "all_reduce", size)}
        if zero == 3:
            found["gather"] = ("all_gather", plan.of_stages(plan.weights))
        elif zero:
            found["after"] = ("all_gather", trained * self.element)
        return found

    def joules(self, many: Array) -> Array:
        """Return the energy of a step's exchanges, of all devices, (points,).

        Args:
            many: Microbatches of a replica, (points,).
        """
        parallel = self.plan.parallel
        dp, tp, pp, fabric = parallel.dp, parallel.tp, parallel.pp, self.fabric
        #: Devices of each stage, replicas of all tensor-parallel parts.
        stages = np.arange(pp * dp * tp).reshape(pp, dp, tp)
        times = {"reduction": many if parallel.zero >= 2 else 1.0, "gather": 2.0 * many}
        total: Array = np.zeros(1)
        for name, (kind, sizes) in self._of_replicas().items():
            for size, devices in zip(sizes, stages, strict=True):
                total = total + times.get(name, 1.0) * fabric.joules(kind, size, devices.T)
        whole = self._hidden()
        for v in range(self.plan.virtual - 1 if pp > 1 else 0):
            ends = stages[v % pp], stages[(v + 1) % pp]
            pairs = np.stack([end.ravel() for end in ends], axis=1)
            total = total + 2.0 * many * fabric.joules("send", whole / tp, pairs)
            if not parallel.sequence:
                # What goes forward is gathered where it arrives, and so is what comes back.
                for end in ends:
                    total = total + many * fabric.joules("all_gather", whole, end)
        pairs = np.stack([stages[0].ravel(), stages[-1].ravel()], axis=1)
        return np.asarray(total + fabric.joules("all_reduce", self._tied(), pairs))

    def tied(self) -> Array:
        """Return the seconds in which first and last stage add up gradients of one embedding."""
        parallel = self.plan.parallel
        stage = parallel.tp * parallel.dp
        return self.fabric.exchange("all_reduce", self._tied(), 2, stage, span=stage * parallel.pp)

    def _hidden(self) -> Array:
        """Return the bytes of one microbatch's hidden vectors, (points,)."""
        work, model = self.work, self.work.model
        element = lookup(model.precision.activation).bytes_per_element
        return np.atleast_1d(work.micro_batch * work.sequence * model.hidden * element)

    def _tied(self) -> float:
        """Return the bytes of an embedding's gradients that two stages have, of each device."""
        model, parallel = self.work.model, self.plan.parallel
        if not model.tied or parallel.pp == 1 or self.work.lora is not None:
            return 0.0
        width = model.embedding_dim or model.hidden
        return model.vocab / parallel.tp * width * lookup(self.work.gradient).bytes_per_element
