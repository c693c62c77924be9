"""What one step computes, as prices take it."""

from __future__ import annotations

from typing import NamedTuple

from numba.extending import register_jitable

from opbyte.core.ops import Array


class Batch(NamedTuple):
    """Pieces of prompts, and sequences that decode.

    Compiled code has no defaults: there every field is given.

    Attributes:
        new: Tokens of each piece of a prompt, (at least `pieces`,).
        past: Tokens that the cache already holds of each piece's sequence, the same shape.
        pieces: Pieces of prompts.
        decodes: Sequences that decode, each one token.
        context: Tokens that these attend to, summed, the new ones included. Under windows and
            chunks their mean counts, unless `attend` said before what each attends to.
        logits: Positions whose logits are needed, beyond one of each piece and decode.
        group: Which group of layers the pieces run on, the first one is 0; decodes run on all.
            Only prices that are divided know groups, others have all layers in every step.
        groups: How many groups there are, 0 for all layers together.
    """

    new: Array
    past: Array
    pieces: int
    decodes: float
    context: float
    logits: float = 0.0
    group: int = 0
    groups: int = 0


@register_jitable
def tokens_of(batch: Batch) -> float:
    """Return the tokens that are computed."""
    total = batch.decodes
    for i in range(batch.pieces):
        total += batch.new[i]
    return total


@register_jitable
def heads_of(batch: Batch) -> int:
    """Return the positions whose logits are needed."""
    return batch.pieces + int(batch.decodes + batch.logits)


@register_jitable
def decodes_of(batch: Batch) -> Batch:
    """Return the same without pieces of prompts."""
    return Batch(batch.new, batch.past, 0, batch.decodes, batch.context, 0.0, 0, 0)
