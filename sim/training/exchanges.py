"""What devices of a training job send each other beside tensor parallelism, in seconds."""

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
        parallel, model = self.plan.parallel, self.work.model
        if parallel.pp == 1:
            return np.zeros(1)
        element = lookup(model.precision.activation).bytes_per_element
        whole = np.atleast_1d(self.work.micro_batch * self.work.sequence * model.hidden * element)
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
        trained = self.plan.of_stages(self.plan.trained)
        size = trained * lookup(self.work.gradient).bytes_per_element
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

        reduction = call("reduce_scatter" if zero else "all_reduce", size)
        if zero == 3:
            gather = call("all_gather", self.plan.of_stages(self.plan.weights))
            return none, exposed(gather, forward), exposed(gather + reduction, backward)
        after = call("all_gather", trained * self.element) if zero else none
        reduction = exposed(reduction, backward)
        return (after, none, reduction) if zero == 2 else (reduction + after, none, none)

    def tied(self) -> Array:
        """Return the seconds in which first and last stage add up gradients of one embedding."""
        model, parallel = self.work.model, self.plan.parallel
        if not model.tied or parallel.pp == 1 or self.work.lora is not None:
            return np.zeros(1)
        width = model.embedding_dim or model.hidden
        size = model.vocab / parallel.tp * width * lookup(self.work.gradient).bytes_per_element
        stage = parallel.tp * parallel.dp
        return self.fabric.exchange("all_reduce", size, 2, stage, span=stage * parallel.pp)
