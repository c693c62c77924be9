"""Traces that are made: arrivals, lengths, prefixes that requests share, adapters or models.

kind: trace
requests: 1000
seed: 0
arrivals: {kind: gamma, rate: 4 requests/s, cv: 2}
lengths: {input: {kind: lognormal, mean: 800, cv: 1.5}, output: 128}
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from opbyte.core.blocks import Block
from opbyte.core.config import Document, validate
from opbyte.workloads.popularity import Choose, popularity
from opbyte.workloads.traces._rules import MOST_TOKENS, Floats, Ints
from opbyte.workloads.traces.arrivals import Arrivals, Clients
from opbyte.workloads.traces.blocks import PrefixBlocks
from opbyte.workloads.traces.lengths import Lengths
from opbyte.workloads.traces.trace import ClosedLoop, RequestTrace

__all__ = ["Names", "SharedPrefix", "SyntheticTrace", "retimed", "synthetic_from"]


class SharedPrefix(Block):
    """Each prompt begins with one of a few texts, such as system prompts; the rest is its own."""

    texts: int = Field(ge=1, le=10_000_000)
    """Number of different beginnings; each request draws one, all equally likely."""
    tokens: int = Field(ge=1, le=MOST_TOKENS)
    """Length of each beginning; only its whole blocks are shared."""
    block_tokens: int = Field(512, ge=1, le=MOST_TOKENS)
    """Tokens of a block."""

    def draw(self, input_tokens: Ints, random: np.random.Generator) -> PrefixBlocks:
        """Return the blocks of prompts of these lengths: ceil(length / block) each.

        Block j of beginning g has the id g * (blocks of a beginning) + j; all other blocks have
        ids of their own above those. A prompt that ends inside its beginning shares whole blocks.
        """
        size = self.block_tokens
        common = self.tokens // size
        counts = -(-input_tokens // size)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        text = np.repeat(random.integers(0, self.texts, len(counts)), counts)
        shared = inside < np.repeat(np.minimum(common, input_tokens // size), counts)
        own = self.texts * common + np.cumsum(~shared) - 1
        return PrefixBlocks(np.where(shared, text * common + inside, own), offsets, size)


class Names(Block):
    """Which of several adapters, or models, each request asks for."""

    count: int = Field(ge=1, le=10_000_000)
    """How many there are."""
    choose: Choose = "uniform"
    """All equally likely, or by a power law of their number (zipf)."""
    skew: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    """Exponent of the power law; by default Zipf's own."""

    def draw(self, requests: int, random: np.random.Generator) -> Ints:
        """Return the number of each request's, from 0, the most popular first, (requests,)."""
        chance = popularity(self.count, self.choose, self.skew)
        return random.choice(self.count, requests, p=chance)


class SyntheticTrace(Block):
    """Requests that are drawn; equal definitions draw equal requests.

    Arrivals, lengths, prefixes, adapters and models draw from streams of their own: another
    arrival process leaves the lengths as they are.
    """

    kind: Literal["trace"] = "trace"
    requests: int = Field(ge=1, le=1_000_000_000)
    """Number of requests."""
    arrivals: Arrivals
    """When they arrive: kind poisson, gamma, bursts or closed_loop."""
    lengths: Lengths
    """How long prompts and answers are."""
    prefix: SharedPrefix | None = None
    """Beginnings that prompts share; without it the trace has no block ids."""
    adapter: Names | None = None
    """Adapters of the requests."""
    model: Names | None = None
    """Models of the requests."""
    seed: int = Field(0, ge=0)
    """Seed of what is drawn."""

    def generate(self, name: str = "synthetic") -> RequestTrace:
        """Return the requests.

        Raises:
            ConfigError: If the trace of the lengths can not be read, or periods are too short.
        """
        timing, sizes, texts, adapters, models = _streams(self.seed)
        input_tokens, output_tokens = self.lengths.draw(self.requests, sizes)
        arrival_s, client = _timed(self.arrivals, self.requests, timing)
        return RequestTrace(
            arrival_s,
            input_tokens,
            output_tokens,
            prefix=self.prefix.draw(input_tokens, texts) if self.prefix else None,
            adapter=self.adapter.draw(self.requests, adapters) if self.adapter else None,
            model=self.model.draw(self.requests, models) if self.model else None,
            name=name,
            source=f"synthetic: {self.arrivals.kind}, seed {self.seed}",
            timed=client is None,
            client=client,
        )


def retimed(trace: RequestTrace, arrivals: Arrivals, seed: int = 0) -> RequestTrace:
    """Return the same requests, in the same order, with other arrivals."""
    arrival_s, client = _timed(arrivals, len(trace), _streams(seed)[0])
    source = f"{trace.source}, arrivals {arrivals.kind} with seed {seed}"
    return replace(trace, arrival_s=arrival_s, timed=client is None, client=client, source=source)


def synthetic_from(document: Document, at: tuple[str | int, ...] = ()) -> SyntheticTrace:
    """Return the definition that stands in a document; its paths begin at the document's folder.

    Raises:
        ConfigError: With every problem, its place and the nearest known word.
    """
    found = validate(SyntheticTrace, document, at)
    trace = found.lengths.trace
    if trace is None:
        return found
    beside = Path(document.name).parent / trace
    if not beside.exists():
        return found
    lengths = found.lengths.model_copy(update={"trace": str(beside)})
    return found.model_copy(update={"lengths": lengths})


def _streams(seed: int) -> list[np.random.Generator]:
    """Return the generators of arrivals, lengths, prefixes, adapters and models."""
    return [np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(5)]


def _timed(
    process: Arrivals, count: int, random: np.random.Generator
) -> tuple[Floats, ClosedLoop | None]:
    if isinstance(process, Clients):
        return np.zeros(count), process.client(count, random)
    return process.arrivals(count, random), None
