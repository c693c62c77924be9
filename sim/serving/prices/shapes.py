"""Shapes of serving iterations: what is drawn to probe prices, and what prices are linear in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.ops import Array
from opbyte.sim.serving.prices.layout import FEATURES, LANE_FEATURES, SCAN_BLOCK
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing
from opbyte.workloads.spans import Segment

#: Longest context that is drawn.
LONGEST = 32768


@dataclass(frozen=True)
class Shapes:
    """Iterations with equally many pieces of prompts.

    Attributes:
        new: New tokens of each piece, (pieces, points).
        past: Past tokens of each piece, (pieces, points).
        decodes: Sequences that decode, above 0, or none in all points, (points,).
        context: Tokens that these attend to, summed, (points,).
    """

    new: Array
    past: Array
    decodes: Array
    context: Array

    def work(self, model: Model, routing: Routing) -> Mixed:
        """Return the iterations as a work of as many design points."""
        chunks = tuple(zip(self.new, self.past, strict=True))
        if not self.decodes.any():
            return Mixed(model, chunks, routing=routing)
        return Mixed(model, chunks, self.decodes, self.context / self.decodes, routing=routing)

    def without_decodes(self) -> Shapes:
        """Return the pieces alone."""
        none = np.zeros_like(self.decodes)
        return Shapes(self.new, self.past, none, none)

    @property
    def tokens(self) -> Array:
        """Return the tokens of each iteration, (points,)."""
        total: Array = self.decodes + self.new.sum(axis=0)
        return total

    def segment(self, i: int, window: int, chunk: int) -> Array:
        """Return `LANE_FEATURES` of a piece, or of the decodes behind the last one.

        Returns:
            (LANE_FEATURES, points).
        """
        if i < len(self.new):
            count, new, past = np.ones_like(self.decodes), self.new[i], self.past[i]
            one = Segment("prefill", 1.0, new, past)
        else:
            count, new, past = self.decodes, np.ones_like(self.decodes), self.mean_past
            one = Segment("decode", 1.0, 1.0, past)
        block = np.minimum(new, SCAN_BLOCK)
        columns = (
            np.ones_like(count),
            count * one.pairs(window, chunk),
            count * one.reads(window, chunk),
            count * new,
            count * new * block,
            count * new / block,
            count * np.clip(past, 0.0, 1.0),
            self.tokens,
            np.full_like(count, float(i == 0)),
        )
        assert len(columns) == len(LANE_FEATURES)
        return np.stack(np.broadcast_arrays(*columns))

    @property
    def mean_past(self) -> Array:
        """Return the mean past of the decoding sequences, (points,)."""
        mean: Array = self.context / np.maximum(self.decodes, 1.0) - 1.0
        return np.maximum(mean, 0.0)

    def features(self, window: int, chunk: int) -> Array:
        """Return `FEATURES` under a mask, (FEATURES, points)."""
        count = len(self.new)
        decode = self.segment(count, window, chunk)
        pieces = np.zeros_like(decode)
        for i in range(count):
            pieces += self.segment(i, window, chunk)
        _, pairs, reads, _, squares, blocks, started, _, _ = pieces
        columns = (
            pairs,
            reads,
            np.full_like(pairs, float(count)),
            decode[1],
            self.decodes,
            self.tokens * (count + 1),
            squares,
            blocks,
            started,
            decode[6],
        )
        assert len(columns) == len(FEATURES)
        return np.stack(columns)

    def of_decodes(self, window: int, chunk: int) -> Array:
        """Return the same for operators of decodes alone: their mean in place of pairs."""
        found = self.features(window, chunk)
        attended = FEATURES.index("attended")
        found[FEATURES.index("pairs")] = found[attended] / np.maximum(self.decodes, 1.0)
        return found


def longest(model: Model) -> int:
    """Return the longest context that is probed."""
    return min(model.max_context or LONGEST, LONGEST)


def drawn(
    model: Model, pieces: int, count: int, tokens: int, sequences: int, seed: int, *, full: bool
) -> Shapes:
    """Return iterations; half of all sizes spread evenly, half over their logarithms.

    Args:
        pieces: Of each iteration.
        count: Iterations.
        tokens: Most tokens of an iteration, more than `pieces`.
        sequences: Most sequences of an iteration, more than `pieces`.
        full: All iterations have `tokens` tokens, whatever `sequences` is.
    """
    rng = np.random.default_rng(seed)
    top = longest(model)

    def sizes(most: Array) -> Array:
        most = np.maximum(most, 1.0) + 0.999
        by_logarithm = np.exp(rng.uniform(0.0, np.log(most)))
        return np.floor(np.where(rng.random(count) < 0.5, by_logarithm, rng.uniform(1.0, most)))

    left = np.full(count, tokens - 1.0)
    new, past = np.zeros((pieces, count)), np.zeros((pieces, count))
    for i in range(pieces):
        new[i] = sizes(np.minimum(left - (pieces - i - 1), top))
        past[i] = sizes(top - new[i] + 1.0) - 1.0
        left -= new[i]
    most = np.minimum(left, sequences - pieces - 1.0) + 1.0
    decodes = left + 1.0 if full else sizes(most)
    return Shapes(new, past, decodes, decodes * sizes(np.full(count, float(top))))


def prompts(model: Model, pieces: int, count: int, tokens: int, seed: int) -> Shapes:
    """Return iterations without decodes, all of as many tokens; every fourth without a past.

    Args:
        pieces, count, seed: As for `drawn`.
        tokens: At most the longest context.
    """
    shapes = drawn(model, pieces, count, tokens, tokens, seed, full=True)
    new, past = shapes.new.copy(), shapes.past.copy()
    new[-1] += shapes.decodes
    past = np.minimum(past, longest(model) - new)
    past[:, ::4] = 0.0
    none = np.zeros(count)
    return Shapes(new, past, none, none)
