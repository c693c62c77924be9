"""One iteration of a server that mixes pieces of prompts and decode steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.footprint import footprint
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork, check_context, residual_bytes
from opbyte.workloads.numeric import checked, is_zero
from opbyte.workloads.spans import Segment, Step, tokens_of
from opbyte.workloads.work import WORKS, microbatch, replica


@WORKS.register("mixed")
@dataclass(frozen=True)
class Mixed(ModelWork):
    """One iteration of a server: pieces of prompts and decode steps together.

    All tokens share the rows of matrices; every piece has attention rows of its own. As vLLM does,
    every piece's last position gets logits, even where the prompt goes on.

    Attributes:
        chunks: (new tokens, past tokens) of each piece of a prompt.
        decodes: Sequences that decode.
        context: Tokens that each of those attends to, the new one included. A mean will do where
            no layer has a window or chunks: what those let through is not linear.
        contexts: (sequences, context) of decodes whose contexts differ; `decodes` and `context`
            are then their number and mean.
        spread: Contexts are spread over the tokens of a page around their mean: what reads whole
            pages of each sequence reads as many as are expected.
    """

    kind: ClassVar[str] = "mixed"
    vector_fields: ClassVar[tuple[str, ...]] = ("decodes", "context")
    least: ClassVar[Mapping[str, float]] = {"decodes": 0.0}

    model: Model
    chunks: tuple[tuple[Number, Number], ...] = ()
    decodes: Number = 0.0
    context: Number = 1.0
    contexts: tuple[tuple[Number, Number], ...] = ()
    spread: bool = False

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, the iteration is empty, a context exceeds the
                model's, or the model has an encoder.
        """
        super().__post_init__()
        model, kind = self.model, self.kind
        if model.encoder:
            raise WorkloadError(f"{kind}: {model.name} has an encoder, which reads prompts whole")
        chunks = self._pairs("chunks", "new", "past", 0.0)
        for i, (new, past) in enumerate(chunks):
            check_context(kind, model, new + past, f"chunks[{i}]: past + new")
        object.__setattr__(self, "chunks", chunks)
        if self.contexts:
            self._take_contexts()
        if not self.chunks and is_zero(self.decodes):
            raise WorkloadError(f"{kind}: give chunks, decodes, or both: the iteration is empty")
        check_context(kind, model, self.context, "context")

    def _pairs(
        self, name: str, first: str, second: str, least: float
    ) -> tuple[tuple[Number, Number], ...]:
        """Return a field of pairs of counts, the second ones at least so many.

        Raises:
            WorkloadError: If one makes no sense.
        """
        kind, found = self.kind, []
        for i, pair in enumerate(getattr(self, name)):
            try:
                one, other = pair
            except (TypeError, ValueError):
                given = f"{name}[{i}] must be ({first}, {second}), got {pair!r}"
                raise WorkloadError(f"{kind}: {given}") from None
            one = checked(kind, f"{name}[{i}].{first}", one)
            found.append((one, checked(kind, f"{name}[{i}].{second}", other, least)))
        return tuple(found)

    def _take_contexts(self) -> None:
        """Let decodes be those of `contexts`, and their context its mean.

        Raises:
            WorkloadError: If one makes no sense, or another number of decodes is given.
        """
        contexts = self._pairs("contexts", "sequences", "context", 1.0)
        decodes, context = (
            sum((n for n, _ in contexts), 0.0), sum((n * c for n, c in contexts), 0.0)
        )  # fmt: skip
        if not is_zero(self.decodes) and not is_zero(self.decodes - decodes):
            raise WorkloadError(
                f"{self.kind}: contexts are of {decodes} sequences, but decodes = {self.decodes}. "
                "Leave decodes out"
            )
        for i, (_, one) in enumerate(contexts):
            check_context(self.kind, self.model, one, f"contexts[{i}]")
        object.__setattr__(self, "contexts", contexts)
        object.__setattr__(self, "decodes", decodes)
        object.__setattr__(self, "context", context / decodes)

    @property
    def tokens(self) -> Number:
        """Return the tokens processed."""
        return sum((new for new, _ in self.chunks), self.decodes)

    @property
    def sequences(self) -> Number:
        """Return the pieces and the decoding sequences."""
        return self.decodes + len(self.chunks)

    def _iteration(self, parallel: Parallel) -> Step:
        if parallel.dp * parallel.microbatches > 1 and self.chunks:
            raise WorkloadError(
                f"{self.kind}: an iteration with chunks belongs to one replica and one microbatch, "
                f"got dp={parallel.dp}, microbatches={parallel.microbatches}. Lower one for each"
            )
        segments = [Segment("prefill", 1.0, new, past) for new, past in self.chunks]
        if not is_zero(self.decodes):
            decodes = microbatch(self.decodes, parallel)
            mix = tuple((n / self.decodes, c - 1.0) for n, c in self.contexts)
            past = self.context - 1.0
            segments.append(Segment("decode", decodes, 1.0, past, mix=mix, spread=self.spread))
        return Step(tuple(segments))

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase."""
        return (Phase("mixed", self._step(self.model, self._iteration(parallel), parallel)),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device."""
        (phase,) = self.lowered(parallel)
        model = self.model
        cached: list[tuple[Number, Number]] = [(1.0, new + past) for new, past in self.chunks]
        decodes = self.contexts or ((self.decodes, self.context),)
        cached += [(replica(n, parallel), c) for n, c in decodes]
        residual = residual_bytes(model, tokens_of(self._iteration(parallel).segments))
        return footprint(model, parallel, phase.table, cached=cached, residual=residual)
