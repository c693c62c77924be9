"""How many tokens queries see: closed forms for causal, sliding and chunked attention.

Positions count from 1. The query at position j sees min(j, W) tokens under a window W, and
((j - 1) mod C) + 1 under aligned chunks of C. Sums over ranges of j are differences of the two
cumulative sums below, so they are exact for any past, and for the mean over decode steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.ops import Number
from opbyte.workloads.numeric import floor_div, maximum, minimum


def seen_up_to(position: Number, window: int = 0, chunk: int = 0) -> Number:
    """Return the tokens that the queries at positions 1 .. `position` see, summed.

    Full: x (x + 1) / 2. Window W: with t = min(W, x), t (t + 1) / 2 + (x - t) W. Chunk C: every
    full chunk adds C (C + 1) / 2. Window and chunk together: the window inside each chunk.
    """
    if chunk and window and window < chunk:
        whole = floor_div(position, chunk)
        rest = position - whole * chunk
        return whole * seen_up_to(float(chunk), window) + seen_up_to(rest, window)
    if chunk:
        whole = floor_div(position, chunk)
        rest = position - whole * chunk
        return whole * (chunk * (chunk + 1) / 2) + rest * (rest + 1) / 2
    if window:
        full = minimum(position, float(window))
        return full * (full + 1) / 2 + (position - full) * window
    return position * (position + 1) / 2


@dataclass(frozen=True, slots=True)
class Segment:
    """Sequences of one kind in one iteration.

    Attributes:
        phase: `prefill` or `decode`.
        sequences: How many, on one device.
        new: Tokens that each sequence processes.
        past: Tokens of each sequence that the cache already holds.
        steps: The segment stands for the mean of this many successive iterations, of which each
            has `new` more tokens of past than the one before.
        source: Tokens of the encoder's output that cross attention reads.
        fills_source: The cross-attention cache is written in this iteration.
        mix: (share of the sequences, past) where pasts differ; `past` is then their mean, which is
            all that counts but for what masks let through.
        spread: Lengths are spread over the tokens of a page; `past` is their mean.
    """

    phase: str
    sequences: Number
    new: Number
    past: Number = 0.0
    steps: Number = 1.0
    source: Number = 0.0
    fills_source: bool = False
    mix: tuple[tuple[Number, Number], ...] = ()
    spread: bool = False

    @property
    def tokens(self) -> Number:
        """Return the tokens of all its sequences."""
        return self.sequences * self.new

    @property
    def _one_query(self) -> bool:
        """Return whether it is plain decoding; verifying guesses is decoding with more queries."""
        return self.phase == "decode" and not np.any(self.new > 1.0)

    def pairs(self, window: int = 0, chunk: int = 0) -> Number:
        """Return query-key pairs of one sequence, exactly those that a mask lets through."""
        both: Number = 0.0
        for part, past in self.mix or ((1.0, self.past),):
            last = past + self.new * self.steps
            both += part * (seen_up_to(last, window, chunk) - seen_up_to(past, window, chunk))
        return both / self.steps

    def reads(self, window: int = 0, chunk: int = 0) -> Number:
        """Return the distinct cached tokens that one sequence's queries read, new ones included.

        A single query reads what it sees. Several queries under a window W read the union of
        their windows, min(past + new, W - 1 + new); under chunks, all from the start of the first
        query's chunk on.
        """
        if self._one_query:
            return self.pairs(window, chunk)
        total = self.past + self.new
        if window:
            total = minimum(total, self.new + (window - 1))
        if chunk:
            from_chunk = self.past + self.new - floor_div(self.past, chunk) * chunk
            total = minimum(total, from_chunk)
        return total

    def selected(self, topk: int) -> Number:
        """Return the distinct cached tokens read when each query picks `topk` of those it sees.

        A prefill's queries may pick different tokens: at most all that exist, and at most one for
        each pair.
        """
        if self._one_query:
            return self.pairs(topk)
        return minimum(self.past + self.new, self.pairs(topk))


def held(tokens: Number, window: int, chunk: int) -> Number:
    """Return the tokens that a cache must hold of a sequence of `tokens`: windows are bounded."""
    bounds = [b for b in (window, chunk) if b]
    return minimum(tokens, float(min(bounds))) if bounds else tokens


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration: all segments share the rows of matrices, attention is theirs alone.

    Attributes:
        encoder: Segments of the encoder, which runs before the decoder; empty where none runs.
        logits: Positions whose logits are needed; None for one of each sequence.
    """

    segments: tuple[Segment, ...]
    encoder: tuple[Segment, ...] = ()
    logits: Number | None = None

    @property
    def word(self) -> str:
        """Return the phase word of rows that all segments share."""
        phases = {segment.phase for segment in self.segments}
        return phases.pop() if len(phases) == 1 else "mixed"


def tokens_of(segments: tuple[Segment, ...]) -> Number:
    """Return the tokens of all segments."""
    total: Number = segments[0].tokens
    for segment in segments[1:]:
        total = total + segment.tokens
    return total


def positive(value: Number) -> Number:
    """Return 1 where a value is above zero and 0 elsewhere, for whole values."""
    return minimum(maximum(value, 0.0), 1.0)
