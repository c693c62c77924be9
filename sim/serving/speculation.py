"""Guesses in an engine: how many hold, which a scheduler plans with, and what guessing costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import attend, forget
from opbyte.sim.serving.prices.step import Prices, check_limits, flat_cost, masks_of
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.stamped import compiled

if TYPE_CHECKING:
    from opbyte.sim.serving.schedulers import Limits, Piece

_MASK = 2**64 - 1
#: Odd constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mixed(x: int) -> int:
    x = (x + GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * FIRST) & _MASK
    x = ((x ^ (x >> 27)) * SECOND) & _MASK
    return x ^ (x >> 31)


def drawn(seed: int, request: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments (splitmix64)."""
    return float((_mixed(_mixed(_mixed(seed & _MASK) ^ request) ^ position) >> 11) * 2.0**-53)


@dataclass(frozen=True)
class Guesses:
    """What an engine guesses beyond the next token of each request.

    A guess is drawn by seed, request and position in the answer, so that it holds or fails whatever
    else runs. A position is decided once: where a guess fails the model's own token stands, and the
    next guesses begin behind it.

    Attributes:
        widths: Guesses of each depth: ones for a chain.
        chances: For each depth, that one of its guesses holds if one did before it.
        seed: Of the draws.
    """

    widths: tuple[int, ...]
    chances: tuple[float, ...]
    seed: int = 0

    @property
    def most(self) -> int:
        """Return the guesses of one request in one step."""
        return sum(self.widths)

    def tokens(self, depth: int) -> int:
        """Return the guesses of so many depths."""
        return sum(self.widths[:depth])

    def depth(self, tokens: int) -> int:
        """Return the depths whose guesses are no more than so many tokens."""
        return sum(size <= tokens for size in accumulate(self.widths))

    def accepted(self, request: int, position: int, depth: int) -> int:
        """Return how many depths hold, one after the other.

        Args:
            request: Row of the trace.
            position: Tokens of its answer that are there.
            depth: Depths that are guessed.
        """
        for i in range(depth):
            if drawn(self.seed, request, position + i) >= self.chances[i]:
                return i
        return depth


def check_depth(depth: int) -> None:
    """Refuse steps that are planned before it is known which guesses hold.

    Raises:
        UncoveredError: If more than one step is planned or under way at once.
    """
    if depth > 1:
        raise UncoveredError(
            f"speculate: with depth {depth} a step is planned before it is known which guesses of "
            "the one before hold. set scheduler.depth to 1"
        )


def check_guessing(prices: Prices, draft: Prices | None, limits: Limits) -> None:
    """Check that prices cover the largest step that a scheduler may plan, guesses or not.

    Args:
        draft: Of the model that guesses; None without one.
    Raises:
        UncoveredError: If a step has more tokens or logits than they.
    """
    tokens, sequences = limits.max_batched_tokens, limits.max_sequences
    logits = min(tokens, sequences * (1 + limits.ahead))
    check_limits(prices, tokens, logits)
    if draft is not None:
        # What was behind is read in the first pass, beside the step's own tokens.
        check_limits(draft, tokens + sequences, logits)


class Drafter:
    """A draft model that runs before each step of the model, on the same device.

    Its first pass reads what the step's prompts read, and the last known token of who decodes;
    each later pass reads the guesses of one depth. Where all guesses held, their last one is not
    in the draft's cache yet, and is read in its next first pass.

    Attributes:
        busy: Busy seconds of each resource of the prices, (resources,).
    """

    def __init__(self, prices: Prices, guesses: Guesses) -> None:
        """Start without requests."""
        self.prices, self.guesses = prices, guesses
        self.busy = np.zeros(len(prices.resources))
        self._cost, self._masks = compiled(flat_cost), masks_of(prices)
        self._behind: set[Request] = set()
        self._new = np.zeros(prices.max_sequences)
        self._past = np.zeros(prices.max_sequences)

    def cost(self, pieces: Sequence[Piece], preempted: Sequence[Request]) -> tuple[float, float]:
        """Return the seconds and joules of a step's passes."""
        self._behind.difference_update(preempted)
        first, ahead = [], []
        for piece in pieces:
            behind = piece.request in self._behind
            self._behind.discard(piece.request)
            known = 1 if piece.depth else piece.new
            first.append((known + behind, piece.past - behind, 0))
            if piece.depth:
                ahead.append((piece.depth, piece.past + 1))
                if piece.samples > piece.depth and piece.request.left:
                    self._behind.add(piece.request)
        seconds, joules = self._pass(first)
        read = 0
        for depth, width in enumerate(self.guesses.widths[:-1], 1):
            rows = [(width, past + read, width - 1) for most, past in ahead if most > depth]
            if rows:
                more = self._pass(rows)
                seconds, joules = seconds + more[0], joules + more[1]
            read += width
        return seconds, joules

    def _pass(self, rows: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
        """Return the seconds and joules of one pass.

        Args:
            rows: Tokens, past, and positions with logits beyond one, of each sequence.
        """
        pieces = decodes = context = logits = 0
        forget(self._masks)
        for new, past, more in rows:
            if new == 1:
                decodes, context = decodes + 1, context + past + 1
                attend(self._masks, past + 1.0)
            else:
                self._new[pieces], self._past[pieces] = new, past
                pieces, logits = pieces + 1, logits + more
        batch = Batch(self._new, self._past, pieces, float(decodes), float(context), float(logits))
        seconds, joules = self._cost(self.prices.table, self.busy, *batch)
        return float(seconds), float(joules)
