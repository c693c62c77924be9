"""Works over one model: prefill, one decode step, a mixed iteration, a whole generation; one GEMM.

A work says what ONE representative device of a group executes (`lower`) and must hold at once
(`footprint`). Fields named in `vector_fields` may hold one value for each design point: the
arithmetic is the same, and so is the table's shape.

Conventions. `context` of a decode step counts the tokens that each sequence attends to, the new
token included; `past` counts tokens whose keys and values are cached before a prefill. A replica
gets ceil(batch / dp) sequences, a pipeline's microbatch ceil of that by `microbatches`, and each
phase repeats once for every microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number, OpTable, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.core.registry import Registry
from opbyte.workloads.footprint import footprint
from opbyte.workloads.layers import lower_step
from opbyte.workloads.model import Model
from opbyte.workloads.numeric import ceil_div, checked, is_array, maximum, same_points
from opbyte.workloads.routing import Routing
from opbyte.workloads.spans import Segment, Step

#: Kinds of work by the name that files use.
WORKS: Registry[type] = Registry("work")


def replica(batch: Number, parallel: Parallel) -> Number:
    """Return the sequences of one data-parallel replica, rounded up."""
    return ceil_div(batch, parallel.dp)


def microbatch(batch: Number, parallel: Parallel) -> Number:
    """Return the sequences of one microbatch of one replica, rounded up."""
    return ceil_div(replica(batch, parallel), parallel.microbatches)


def check_context(kind: str, model: Model, tokens: Number, what: str) -> None:
    """Check that a sequence is no longer than the model allows; equal is allowed.

    Raises:
        WorkloadError: If it is, with both lengths.
    """
    longest = float(tokens.max()) if is_array(tokens) else float(tokens)
    if model.max_context and longest > model.max_context:
        raise WorkloadError(
            f"{kind}: {what} = {longest:g} tokens, but {model.name} allows a context of at most "
            f"{model.max_context}. Shorten it, or give the model a larger max_context"
        )


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """What works over one model have in common.

    Attributes:
        routing: How tokens choose experts.
    """

    kind: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_s", "joules_per_token")
    vector_fields: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[dict[str, float]] = {}

    routing: Routing = field(default_factory=Routing)

    def __post_init__(self) -> None:
        """Check all fields that hold counts, and bring them to float or float64 arrays.

        Raises:
            WorkloadError: If one makes no sense; the message names it.
        """
        counts = {}
        for name in self.vector_fields:
            value = checked(self.kind, name, getattr(self, name), self.least.get(name, 1.0))
            object.__setattr__(self, name, value)
            counts[name] = value
        same_points(self.kind, **counts)

    def _segments(self, sequences: Number) -> Step:
        raise NotImplementedError

    def _step(self, model: Model, step: Step, parallel: Parallel) -> OpTable:
        return lower_step(model, step, parallel, self.routing)


def _residual(model: Model, tokens: Number) -> Number:
    return tokens * (model.hidden * lookup(model.precision.activation).bytes_per_element)


def prefill_step(model: Model, sequences: Number, tokens: Number, past: Number = 0.0) -> Step:
    """Return the iteration that reads a prompt.

    A decoder processes the prompt itself. In an encoder-decoder model the encoder does, and the
    decoder runs its start token, which fills the cross-attention cache.
    """
    if model.encoder:
        start = Segment("prefill", sequences, 1.0, 0.0, source=tokens, fills_source=True)
        return Step((start,), (Segment("prefill", sequences, tokens),))
    return Step((Segment("prefill", sequences, tokens, past),))


@WORKS.register("prefill")
@dataclass(frozen=True)
class Prefill(ModelWork):
    """Prompts of equal length, read in one iteration that yields each one's first token.

    Attributes:
        batch: Sequences.
        input: New tokens of each.
        past: Tokens of each that are cached already (a shared prefix, an earlier turn).
    """

    kind: ClassVar[str] = "prefill"
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_s", "joules_per_token", "ttft")
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "input", "past")
    least: ClassVar[dict[str, float]] = {"past": 0.0}

    model: Model
    batch: Number
    input: Number
    past: Number = 0.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, or prompts exceed the model's context.
        """
        super().__post_init__()
        check_context(self.kind, self.model, self.input + self.past, "past + input")
        if self.model.encoder and not _is_zero(self.past):
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
        """Return one phase, which repeats for each microbatch."""
        sequences = microbatch(self.batch, parallel)
        step = prefill_step(self.model, sequences, self.input, self.past)
        table = self._step(self.model, step, parallel)
        return (Phase("prefill", table, float(parallel.microbatches)),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device."""
        (phase,) = self.lower(parallel)
        sequences = replica(self.batch, parallel)
        cached, source = (1.0, self.input) if self.model.encoder else (self.past + self.input, 0.0)
        tokens = microbatch(self.batch, parallel) * self.input
        return footprint(
            self.model, parallel, phase.table, sequences=sequences, tokens=cached,
            residual=_residual(self.model, tokens), source=source,
        )  # fmt: skip


def _is_zero(value: Number) -> bool:
    return not value.any() if is_array(value) else value == 0


@WORKS.register("decode")
@dataclass(frozen=True)
class Decode(ModelWork):
    """One step that yields one token for each sequence.

    Attributes:
        batch: Sequences.
        context: Tokens that each attends to, the new one included: `context - 1` are cached
            before the step and `context` after it.
        input: Tokens of the encoder's input, which cross attention reads (encoder-decoder models
            only).
    """

    kind: ClassVar[str] = "decode"
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_s", "joules_per_token", "tpot")
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "context", "input")
    least: ClassVar[dict[str, float]] = {"input": 0.0}

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
        if has == _is_zero(self.input):
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
        """Return one phase, which repeats for each microbatch."""
        sequences = microbatch(self.batch, parallel)
        segment = Segment("decode", sequences, 1.0, self.context - 1.0, source=self.input)
        table = self._step(self.model, Step((segment,)), parallel)
        return (Phase("decode", table, float(parallel.microbatches)),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device."""
        (phase,) = self.lower(parallel)
        return footprint(
            self.model, parallel, phase.table, sequences=replica(self.batch, parallel),
            tokens=self.context, residual=_residual(self.model, microbatch(self.batch, parallel)),
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
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_s", "joules_per_token", "ttft", "tpot")
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
        sequences, times = microbatch(self.batch, parallel), float(parallel.microbatches)
        first = prefill_step(self.model, sequences, self.input)
        return (
            Phase("prefill", self._step(self.model, first, parallel), times),
            Phase(
                "decode",
                self._step(self.model, self._decode(sequences), parallel),
                (self.output - 1.0) * times,
            ),
        )

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device, after the last step."""
        prefill, _ = self.lower(parallel)
        model = self.model
        cached, source = (
            (self.output, self.input) if model.encoder else (self.input + self.output - 1.0, 0.0)
        )
        tokens = microbatch(self.batch, parallel) * self.input
        return footprint(
            model, parallel, prefill.table, sequences=replica(self.batch, parallel),
            tokens=cached, residual=_residual(model, tokens), source=source,
        )  # fmt: skip


@WORKS.register("gemm")
@dataclass(frozen=True)
class Gemm:
    """`groups` products of an (m, k) by a (k, n) matrix, the second read as weights.

    Every device of a group runs the whole of it: a bare product has no parallel split.
    """

    kind: ClassVar[str] = "gemm"
    metrics: ClassVar[tuple[str, ...]] = ("flops_per_s",)
    vector_fields: ClassVar[tuple[str, ...]] = ("m", "n", "k", "groups")

    m: Number
    n: Number
    k: Number
    dtype: str = "bf16"
    groups: Number = 1.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If a size is not a whole number of at least one.
            ConfigError: If the dtype is unknown.
        """
        for name in self.vector_fields:
            object.__setattr__(self, name, checked(self.kind, name, getattr(self, name)))
        same_points(self.kind, m=self.m, n=self.n, k=self.k, groups=self.groups)
        object.__setattr__(self, "dtype", lookup(self.dtype).name)

    @property
    def tokens(self) -> Number:
        """Return the rows of the product, as the nearest thing to tokens."""
        return self.m * self.groups

    @property
    def sequences(self) -> Number:
        """Return 1: a product has no sequences."""
        return 1.0

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase with one row."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        builder = OpTableBuilder()
        with builder.block("gemm") as block:
            block.add(
                "gemm", "gemm", dtype=self.dtype, labels=("dense",), m=self.m, n=self.n, k=self.k,
                groups=self.groups, weight=self.n * self.k * self.groups * size,
                in_bytes=self.m * self.k * self.groups * size,
                out_bytes=self.m * self.n * self.groups * size,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase("gemm", builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of the weights and of both activations."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        return {
            "weight": self.n * self.k * self.groups * size,
            "activation": self.m * (self.n + self.k) * self.groups * size,
        }
