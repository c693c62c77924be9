"""What works over one model share: routing, context limits, the iteration that reads a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number, OpTable
from opbyte.core.parallel import Parallel
from opbyte.workloads.layers import lower_step
from opbyte.workloads.model import Model
from opbyte.workloads.numeric import is_array
from opbyte.workloads.routing import Routing, routing_of
from opbyte.workloads.spans import Segment, Step
from opbyte.workloads.work import Work


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
class ModelWork(Work):
    """What works over one model have in common.

    Attributes:
        routing: How tokens choose experts.
    """

    routing: Routing = field(default_factory=Routing)

    @classmethod
    def checked_field(cls, name: str, given: Any) -> Any:
        """Return a field as it is kept; a routing may be written as in a file."""
        return routing_of(given) if name == "routing" else super().checked_field(name, given)

    def _step(self, model: Model, step: Step, parallel: Parallel) -> OpTable:
        return lower_step(model, step, parallel, self.routing)


def residual_bytes(model: Model, tokens: Number) -> Number:
    """Return the bytes of the residual stream of `tokens` tokens."""
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
