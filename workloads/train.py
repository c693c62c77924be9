"""A training step as a work: forward, backward and optimizer over a global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field

from opbyte.core.blocks import Block
from opbyte.core.config import Document, validate
from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError, WorkloadError
from opbyte.core.ops import Array, Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.layers import lower_step
from opbyte.workloads.model import Model
from opbyte.workloads.model_set import Adapter
from opbyte.workloads.model_work import ModelWork, check_context
from opbyte.workloads.spans import Segment, Step
from opbyte.workloads.training.nodes import Recipe
from opbyte.workloads.training.plan import (
    STATE,
    Plan,
    bytes_of_states,
    check_split,
    in_flight,
    plan_of,
)
from opbyte.workloads.training.tape import check_adapters
from opbyte.workloads.work import WORKS

__all__ = ["Lora", "TrainStep", "fullest", "gathered"]

RECOMPUTE = ("none", "selective", "dense", "full")
#: Types of gradients' sums, and of adapters.
SUMMED = ("fp32", "bf16", "fp16")


class Lora(Block):
    """Low-rank adapters; all other weights are frozen."""

    rank: int = Field(ge=1, le=65_536)
    """Width between the two matrices of a target."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Matrices that get one, as checkpoints name them; `all` for all of attention and network."""
    dtype: str = "bf16"
    """Storage of the adapters."""

    @property
    def adapter(self) -> Adapter:
        """Return what a model gets.

        Raises:
            ConfigError: If the dtype is unknown.
        """
        return Adapter(self.rank, self.targets, self.dtype)


@WORKS.register("train")
@dataclass(frozen=True)
class TrainStep(ModelWork):
    """One step of training with Adam in mixed precision.

    Attributes:
        model: Whole model.
        batch: Sequences of one step, over all replicas.
        sequence: Tokens of each.
        micro_batch: Sequences that a replica computes at once; their gradients add up.
        recompute: Activations that are computed again instead of kept: `none`, `selective`
            (attention between queries, keys, values and its result), `dense` (each layer but its
            attention kernel, whose result is kept) or `full` (each layer).
        dropout: Elements are dropped after softmax, before residual sums and after the embedding.
        lora: `Lora` or a mapping with its keys; without it all weights are trained.
        gradient: Type of the buffer that gradients are summed in.
        clip: Gradients are scaled to a largest norm.
        chunked_loss: Logits of a few tokens at a time are made and turned into gradients, as fused
            losses do (Liger kernels): none are kept.
        master: Narrower weights have a copy of 32 bits that the optimizer steps.
    """

    kind: ClassVar[str] = "train"
    metrics: ClassVar[tuple[str, ...]] = (
        "mfu", "mfu_causal", "hfu", "forward_s", "recompute_s", "backward_s", "communication_s",
        "bubble_s", "optimizer_s", "weight_bytes", "gradient_bytes", "optimizer_bytes",
        "activation_bytes", "fragmentation_bytes", "peak_bytes", "host_bytes", "swapped",
        "microbatches",
    )  # fmt: skip
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "sequence", "micro_batch")
    blocks: ClassVar[Mapping[str, type[BaseModel]]] = {"lora": Lora}
    words: ClassVar[Mapping[str, tuple[str, ...]]] = {"recompute": RECOMPUTE}

    model: Model
    batch: Number
    sequence: Number
    micro_batch: Number = 1.0
    recompute: str = "none"
    dropout: bool = False
    lora: Lora | None = None
    gradient: str = "fp32"
    clip: bool = True
    master: bool = True
    chunked_loss: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: If a dtype or a target of adapters is unknown.
            WorkloadError: If one makes no sense.
        """
        super().__post_init__()
        check_context(self.kind, self.model, self.sequence, "sequence")
        if self.lora is not None:
            check_adapters(self.model, self.lora.adapter)
        # Keys and values of a step are activations.
        stored = self.model.with_precision(kv=self.model.precision.activation)
        object.__setattr__(self, "model", stored)

    @classmethod
    def checked_field(cls, name: str, given: Any) -> Any:
        """Return a field as it is kept.

        Raises:
            ConfigError: If a dtype is unknown, or the mapping of adapters has a mistake.
            WorkloadError: If it makes no sense.
        """
        if name == "lora" and isinstance(given, Mapping):
            given = validate(Lora, Document(dict(given), {}, "lora"))
        if name == "lora" and not isinstance(given, Lora | None):
            raise WorkloadError(
                f"{cls.kind}: lora must be a mapping, got {given!r}. write {{rank: 16}}, or leave "
                "it out"
            )
        given = super().checked_field(name, given)
        if name == "lora" and given is not None:
            cls._check_summed("lora.dtype", given.dtype)
        if name == "gradient":
            cls._check_summed(name, given)
        return given

    @classmethod
    def _check_summed(cls, name: str, dtype: str) -> None:
        """Refuse types that small steps are lost in."""
        found = lookup(dtype)
        if found.name not in SUMMED:
            raise WorkloadError(
                f"{cls.kind}: {name} must be one of {', '.join(SUMMED)}, got {dtype!r}"
            )

    @property
    def tokens(self) -> Number:
        """Return the tokens of a step."""
        return self.batch * self.sequence

    @property
    def trained_dtype(self) -> str:
        """Return the storage of what is trained: adapters, or all weights."""
        return self.model.precision.weight if self.lora is None else self.lora.dtype

    @property
    def sequences(self) -> Number:
        """Return the sequences of a step."""
        return self.batch

    def microbatches(self, parallel: Parallel) -> Number:
        """Return the microbatches of one replica.

        Raises:
            WorkloadError: If they are no whole number, or too few for chunks of a pipeline.
        """
        many = self.batch / (parallel.dp * self.micro_batch)
        if np.any(many != np.floor(many)):
            raise WorkloadError(
                f"{self.kind}: batch = {self.batch} does not divide into replicas and microbatches "
                f"(dp = {parallel.dp}, micro_batch = {self.micro_batch}). change one of them"
            )
        if parallel.interleave > 1 and np.any(many % parallel.pp):
            raise WorkloadError(
                f"{self.kind}: chunks take turns for groups of pp = {parallel.pp} microbatches "
                f"of a replica, and there are {many}. change batch, or use interleave: 1"
            )
        return many

    def plan(self, parallel: Parallel, *, fused: bool = True) -> Plan:
        """Return what a device executes and holds.

        Args:
            fused: Scores, softmax and context are one kernel.
        Raises:
            UncoveredError: If a part of the model has no backward pass.
            WorkloadError: If the work can not be split so.
        """
        model = self.model
        check_split(model, parallel)
        tokens = self.micro_batch * self.sequence
        step = Step((Segment("prefill", self.micro_batch, self.sequence),), logits=tokens)
        virtual = replace(
            parallel, pp=parallel.pp * parallel.interleave, interleave=1, microbatches=1
        )
        table = lower_step(model, step, virtual, self.routing)
        size = lookup(self.gradient).bytes_per_element
        adapter = self.lora.adapter if self.lora is not None else None
        if self.recompute == "dense" and not fused:
            raise UncoveredError(
                f"{self.kind}: recompute: dense keeps the result of one kernel of attention, and "
                "the mapping has several. use `fusion: attention`, or recompute: selective"
            )
        recipe = Recipe(model, parallel, fused, self.dropout, adapter, size, self.chunked_loss)
        return plan_of(table, recipe, parallel, self.recompute)

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return the passes of one microbatch over all stages."""
        plan = self.plan(parallel)
        tables = {"forward": plan.forward, "recompute": plan.recompute, "backward": plan.backward}
        return tuple(Phase(name, table) for name, table in tables.items() if table is not None)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device, at the peak."""
        return fullest(self.held(self.plan(parallel)))[1]

    def held(self, plan: Plan, *, master_gradient: bool = False) -> list[dict[str, Number]]:
        """Return the bytes of each tensor class at the peak of each stage of the pipeline.

        Args:
            master_gradient: Gradients have a copy of 32 bits that the optimizer reads.
        """
        parallel, pp = plan.parallel, plan.parallel.pp
        many = self.microbatches(parallel)
        stages = []
        for s in range(pp):
            held = self._stage(plan, s, in_flight(pp, parallel.interleave, s, many))
            if master_gradient:
                held["master_gradient"] = held["momentum"]
            stages.append(held)
        return stages

    def _stage(self, plan: Plan, stage: int, chunks: Number) -> dict[str, Number]:
        parallel = plan.parallel
        own = range(stage, plan.virtual, parallel.pp)
        zero, dp = parallel.zero, parallel.dp
        weight = float(plan.weights[list(own)].sum())
        trained = float(plan.trained[list(own)].sum())
        size = lookup(self.gradient).bytes_per_element
        element = lookup(self.model.precision.weight).bytes_per_element
        if self.lora is not None:
            element = lookup(self.lora.dtype).bytes_per_element
            weight += trained * element
        states = bytes_of_states(trained, zero, dp, weight=element if self.master else STATE)
        kept = sum((plan.kept[s] for s in own), 0.0) / parallel.interleave
        return {
            "weight": weight / (dp if zero >= 3 else 1) + gathered(plan),
            "gradient": trained * size / (dp if zero >= 2 else 1),
            **states,
            "activation": kept * chunks,
            "working": plan.working,
        }


def gathered(plan: Plan) -> float:
    """Return the bytes of whole layers that a device gathers with ZeRO 3: two of them."""
    parallel = plan.parallel
    return 2.0 * plan.largest_layer if parallel.zero >= 3 and parallel.dp > 1 else 0.0


def fullest(stages: Sequence[Mapping[str, Number]]) -> tuple[Array, dict[str, Number]]:
    """Return which stage holds most at each design point, and what it holds.

    Args:
        stages: Bytes of each tensor class, the same classes in all.
    Returns:
        Index, (points,), and bytes of each class, numbers where all are.
    """
    totals = np.stack(np.broadcast_arrays(*(sum(one.values(), 0.0) for one in stages)))
    most = totals.argmax(axis=0)
    if not most.ndim:
        return np.atleast_1d(most), dict(stages[int(most)])
    held = {
        name: np.choose(most, [np.broadcast_to(one[name], most.shape) for one in stages])
        for name in stages[0]
    }
    return most, held
