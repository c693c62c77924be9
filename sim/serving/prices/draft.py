"""What a server that guesses must know beforehand: its guesses, and the prices of a draft."""

from __future__ import annotations

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.layout import StepTable
from opbyte.sim.serving.speculation import Guesses
from opbyte.workloads.serve import Serve


def guesses_of(work: Serve, seed: int) -> Guesses | None:
    """Return what is guessed of each request, None for nothing.

    Args:
        seed: Of the draws.
    """
    speculation = work.speculation
    if speculation is None:
        return None
    return Guesses(speculation.widths, speculation.chances, seed)


def most_logits(work: Serve) -> int:
    """Return the most positions with logits of a step: every guess needs them."""
    scheduling, speculation = work.scheduler, work.speculation
    ahead = speculation.guesses if speculation else 0
    every = min(scheduling.max_batched_tokens, scheduling.max_sequences * (1 + ahead))
    return max(scheduling.max_sequences, every)


def draft_prices(
    machine: Machine, work: Serve, mapping: SoftwareMapping, prices: StepPrices
) -> StepPrices | None:
    """Return the prices of a draft's passes, None without one.

    Args:
        prices: Of the model.
    Raises:
        UncoveredError: If several queries of a sequence are another kernel's than a decode's, in
            one of the models.
    """
    if work.speculation is None:
        return None
    draft = None
    if work.speculation.draft is not None:
        # What was behind is read in the first pass, beside the step's own tokens.
        tokens = work.scheduler.max_batched_tokens + work.scheduler.max_sequences
        draft = StepPrices.build(
            machine, work.speculation.draft, mapping, max_tokens=tokens,
            max_sequences=most_logits(work), routing=work.routing,
        )  # fmt: skip
    tables = [p.table for p in (prices, draft) if p is not None]
    if any(not isinstance(table, StepTable) or len(table.lanes) for table in tables):
        raise UncoveredError(
            "speculate: attention of this model and mapping is priced for prompts and for single "
            "tokens, by operators of their own; no table says what verifying guesses costs. price "
            "steps as speculative_decode"
        )
    return draft
