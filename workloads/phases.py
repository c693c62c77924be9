"""Works over one model: prefill, one decode step, a whole generation.

A work says what ONE representative device of a group executes (`lower`) and must hold at once
(`footprint`). Fields named in `vector_fields` may hold one value for each design point: the
arithmetic is the same, and so is the table's shape.

Conventions. `context` of a decode step counts the tokens that each sequence attends to, the new
token included; `past` counts tokens whose keys and values are cached before a prefill. A replica
gets ceil(batch / dp) sequences, a microbatch ceil of that by `microbatches`. Tables hold one
microbatch; who runs them repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.footprint import footprint
from opbyte.workloads.gemm import Gemm
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork, check_context, prefill_step, residual_bytes
from opbyte.workloads.numeric import is_zero, maximum
from opbyte.workloads.spans import Segment, Step
from opbyte.workloads.work import WORKS, microbatch, replica

__all__ = ["Decode", "Gemm", "Generate", "Mixed", "Prefill"]

#: Positions of a prompt that the vocabulary may be scored for.
LOGITS = ("last", "all")


@WORKS.register("prefill")
@dataclass(frozen=True)
class Prefill(ModelWork):
    """Prompts of equal length, read in one iteration that yields each one's first token.

    Attributes:
        batch: Sequences.
        input: New tokens of each.
        past: Tokens of each that are cached already (a shared prefix, an earlier turn).
        logits: Positions that the vocabulary is scored for: the `last` of each prompt, or `all` new
            ones, as tests of a text's likelihood need.
    """

    kind: ClassVar[str] = "prefill"
    metrics: ClassVar[tuple[str, ...]] = ("ttft",)
    phase_metrics: ClassVar[Mapping[str, str]] = {"ttft": "prefill"}
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "input", "past")
    least: ClassVar[Mapping[str, float]] = {"past": 0.0}
    words: ClassVar[Mapping[str, tuple[str, ...]]] = {"logits": LOGITS}

    model: Model
    batch: Number
    input: Number
    past: Number = 0.0
    logits: str = "last"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, or prompts exceed the model's context.
        """
        super().__post_init__()
        check_context(self.kind, self.model, self.input + self.past, "past + input")
        if self.model.encoder and self.logits == "all":
            raise WorkloadError(
                f"{self.kind}: {self.model.name} has an encoder, which gives no logits: the "
                "decoder's start token does. use logits: last"
            )
        if self.model.encoder and not is_zero(self.past):
            raise WorkloadError(
                f"{self.kind}: {self.model.name} has an encoder, which reads the whole input at "
                f"once: past must be 0, got {self.past}"
            )

    @property
    def tokens(self) -> Number:
        """Return the tokens processed."""
        return self.batch * self.input

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase."""
        sequences = microbatch(self.batch, parallel)
        step = prefill_step(self.model, sequences, self.input, self.past)
        if self.logits == "all":
            step = replace(step, logits=sequences * self.input)
        table = self._step(self.model, step, parallel)
        return (Phase("prefill", table),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device."""
        (phase,) = self.lowered(parallel)
        sequences = replica(self.batch, parallel)
        cached, source = (1.0, self.input) if self.model.encoder else (self.past + self.input, 0.0)
        tokens = microbatch(self.batch, parallel) * self.input
        return footprint(
            self.model, parallel, phase.table, cached=[(sequences, cached)],
            residual=residual_bytes(self.model, tokens), source=source,
        )  # fmt: skip


@WORKS.register("decode")
@dataclass(frozen=True)
class Decode(ModelWork):
    """One step that yields one token for each sequence.

    Attributes:
        batch: Sequences, or `max`: as many as the machine's memories hold.
        context: Tokens that each attends to, the new one included: `context - 1` are cached
            before the step and `context` after it.
        input: Tokens of the encoder's input, which cross attention reads (encoder-decoder models
            only).
    """

    kind: ClassVar[str] = "decode"
    metrics: ClassVar[tuple[str, ...]] = ("tpot", "batch_max", "kv_bytes")
    fills: ClassVar[tuple[str, ...]] = ("batch",)
    phase_metrics: ClassVar[Mapping[str, str]] = {"tpot": "decode"}
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "context", "input")
    least: ClassVar[Mapping[str, float]] = {"input": 0.0}

    model: Model
    batch: Number
    context: Number
    input: Number = 0.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, the context exceeds the model's, or `input` is
                missing or has no use.
        """
        super().__post_init__()
        check_context(self.kind, self.model, self.context, "context")
        has = bool(self.model.encoder)
        if has == is_zero(self.input):
            need = (
                "has an encoder: give the tokens that it read as" if has else "has no encoder: no"
            )
            raise WorkloadError(f"{self.kind}: {self.model.name} {need} input")

    @property
    def tokens(self) -> Number:
        """Return the tokens produced."""
        return self.batch

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase."""
        sequences = microbatch(self.batch, parallel)
        segment = Segment("decode", sequences, 1.0, self.context - 1.0, source=self.input)
        table = self._step(self.model, Step((segment,)), parallel)
        return (Phase("decode", table),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device."""
        (phase,) = self.lowered(parallel)
        held = [(replica(self.batch, parallel), self.context)]
        return footprint(
            self.model, parallel, phase.table, cached=held,
            residual=residual_bytes(self.model, microbatch(self.batch, parallel)),
            source=self.input,
        )  # fmt: skip


@WORKS.register("generate")
@dataclass(frozen=True)
class Generate(ModelWork):
    """Prefill of a batch, which yields the first token, and `output - 1` decode steps.

    The decode phase is one step that stands for the mean of them all: its FLOPs and bytes times
    its repeats are exactly the sums over the steps, windows and chunks included.

    Attributes:
        batch: Sequences.
        input: Prompt tokens of each.
        output: Tokens produced for each.
    """

    kind: ClassVar[str] = "generate"
    metrics: ClassVar[tuple[str, ...]] = ("ttft", "tpot")
    phase_metrics: ClassVar[Mapping[str, str]] = {"ttft": "prefill", "tpot": "decode"}
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "input", "output")

    model: Model
    batch: Number
    input: Number
    output: Number

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, or input and output exceed the model's context.
        """
        super().__post_init__()
        longest = self.output if self.model.encoder else self.input + self.output
        check_context(self.kind, self.model, longest, "input + output")

    @property
    def tokens(self) -> Number:
        """Return the tokens produced."""
        return self.batch * self.output

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def _decode(self, sequences: Number) -> Step:
        """Return the step that stands for the mean of all decode steps."""
        model = self.model
        past, source = (1.0, self.input) if model.encoder else (self.input, 0.0)
        steps = maximum(self.output - 1.0, 1.0)
        return Step((Segment("decode", sequences, 1.0, past, steps, source=source),))

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return the prefill phase and the decode phase, which repeats `output - 1` times."""
        sequences = microbatch(self.batch, parallel)
        first = prefill_step(self.model, sequences, self.input)
        return (
            Phase("prefill", self._step(self.model, first, parallel)),
            Phase(
                "decode",
                self._step(self.model, self._decode(sequences), parallel),
                self.output - 1.0,
            ),
        )

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device, after the last step."""
        prefill, _ = self.lowered(parallel)
        model = self.model
        cached, source = (
            (self.output, self.input) if model.encoder else (self.input + self.output - 1.0, 0.0)
        )
        tokens = microbatch(self.batch, parallel) * self.input
        return footprint(
            model, parallel, prefill.table, cached=[(replica(self.batch, parallel), cached)],
            residual=residual_bytes(model, tokens), source=source,
        )  # fmt: skip
