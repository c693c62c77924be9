"""One step of speculative decoding: a draft guesses tokens, the model verifies them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from pydantic import BaseModel

from opbyte.core.ops import Number, OpTable, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.footprint import footprint
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork, check_context, residual_bytes
from opbyte.workloads.phases import Decode
from opbyte.workloads.spans import Segment, Step
from opbyte.workloads.speculation import Speculation, speculation_of, together
from opbyte.workloads.work import WORKS, microbatch, replica


@WORKS.register("speculative_decode")
@dataclass(frozen=True)
class SpeculativeDecode(ModelWork):
    """One step that yields `speculate.tokens_per_step` tokens for each sequence, on average.

    The draft runs one pass for each depth; the model then reads the last token and all guesses, and
    gives logits for each. A tree's queries read the same cache as a chain's; its pairs are counted
    as a chain's too, at most guesses^2 / 2 more than its mask lets through. Left out: the choice
    among logits, and the token that a draft whose guesses all held must read besides.

    Attributes:
        batch: Sequences.
        context: Tokens that the first query attends to, itself included, as in `Decode`.
        speculate: `Speculation`, or a mapping with its keys.
    """

    kind: ClassVar[str] = "speculative_decode"
    metrics: ClassVar[tuple[str, ...]] = (
        "tokens_per_step", "tpot", "plain_tpot", "speedup_over_plain", "draft_share",
    )  # fmt: skip
    blocks: ClassVar[Mapping[str, type[BaseModel]]] = {"speculate": Speculation}
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "context")

    model: Model
    batch: Number
    context: Number
    speculate: Speculation | Mapping[str, object]

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: If `speculate` has a mistake.
            UncoveredError: If a model has recurrent layers.
            WorkloadError: If a number makes no sense, or context and guesses exceed a model's
                context.
        """
        super().__post_init__()
        speculation = speculation_of(self.kind, self.speculate, self.model)
        object.__setattr__(self, "speculate", speculation)
        for model in (self.model, speculation.draft):
            if model is not None:
                ahead = self.context + float(speculation.depth)
                check_context(self.kind, model, ahead, "context + guesses")

    @property
    def speculation(self) -> Speculation:
        """Return the block `speculate`."""
        assert isinstance(self.speculate, Speculation)
        return self.speculate

    @property
    def tokens(self) -> Number:
        """Return the tokens produced, on average."""
        return self.batch * self.speculation.tokens_per_step

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def plain(self) -> Decode:
        """Return the step without guesses."""
        return Decode(self.model, self.batch, self.context, routing=self.routing)

    def _table(
        self, model: Model, new: float, past: Number, parallel: Parallel, steps: int = 1
    ) -> OpTable:
        """Return a pass that reads `new` tokens of each sequence and gives logits for each."""
        sequences = microbatch(self.batch, parallel)
        segment = Segment("decode", sequences, new, past, float(steps))
        return self._step(model, Step((segment,), logits=sequences * new), parallel)

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return the draft's passes, those of one token together, and the verification."""
        speculation, past = self.speculation, self.context - 1.0
        phases: list[Phase] = []
        if speculation.draft is not None:
            for width, group in groupby(speculation.passes):
                # Successive passes of one token are their mean; wider ones differ in width.
                count = len(list(group))
                runs = (count,) if width == 1 else (1,) * count
                for steps in runs:
                    table = self._table(speculation.draft, float(width), past, parallel, steps)
                    name = f"draft.{len(phases)}" if phases else "draft"
                    phases.append(Phase(name, table, float(steps)))
                    past = past + float(width * steps)
        new = 1.0 + speculation.guesses
        verify = self._table(self.model, new, self.context - 1.0, parallel)
        return (*phases, Phase("verify", verify))

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class that both models hold on the fullest device."""
        *drafts, verify = self.lowered(parallel)
        speculation, batch = self.speculation, replica(self.batch, parallel)
        small = microbatch(self.batch, parallel)

        def held(model: Model, table: OpTable, cached: Number, new: int) -> dict[str, Number]:
            residual = residual_bytes(model, small * float(new))
            return footprint(model, parallel, table, cached=[(batch, cached)], residual=residual)

        guesses = speculation.guesses
        of_model = held(self.model, verify.table, self.context + float(guesses), 1 + guesses)
        if speculation.draft is None:
            return of_model
        passes = speculation.passes
        read = self.context - 1.0 + float(sum(passes))
        # The widest pass is the last one.
        return together(of_model, held(speculation.draft, drafts[-1].table, read, passes[-1]))
