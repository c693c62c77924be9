"""What one engine has more of than fits: adapters of one model, or whole models of one shape."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.errors import WorkloadError
from opbyte.core.parameters import Bytes, Parameter, Seconds
from opbyte.workloads.model_set import Adapter
from opbyte.workloads.popularity import Choose, popularity
from opbyte.workloads.traces._rules import Ints


class Residents(Block):
    """Things of one size that live in a memory below, some of them in the fast one too."""

    count: int = Field(ge=1, le=10_000_000)
    """How many there are."""
    slots: int | None = Field(None, ge=1, le=1_000_000)
    """How many fit in the fast memory at once; the KV cache has what they leave."""
    bytes: Bytes | None = None
    """The same as bytes of each device."""
    choose: Choose = "uniform"
    """Where the trace does not say which one a request asks for: all equally likely, or zipf."""
    skew: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    """Exponent of zipf's power law."""
    seed: int = Field(0, ge=0)
    """Seed of that draw."""
    tier: str | None = None
    """Memory that holds all of them; by default the one that the mapping names, or the machine's
    mapping for a Composition of Experts, or the only one that links reach."""
    via: str | None = None
    """Link of the copies, where several lead there."""

    @model_validator(mode="after")
    def _one_size(self) -> Residents:
        if (self.slots is None) == (self.bytes is None):
            raise ValueError("give either 'slots' or 'bytes'")
        return self

    def chosen(self, given: Ints | None, requests: int, what: str, least: int) -> Ints:
        """Return the number that each request asks for: the trace's, or drawn ones, (requests,).

        Args:
            what: `adapter` or `model`.
            least: Smallest number that a trace may give.
        Raises:
            WorkloadError: If the trace asks for one that there is not.
        """
        if given is None:
            chance = popularity(self.count, self.choose, self.skew)
            return np.random.default_rng(self.seed).choice(self.count, requests, p=chance)
        bad = (given < least) | (given >= self.count)
        if bad.any():
            row = int(np.argmax(bad))
            raise WorkloadError(
                f"serve: request {row} asks for {what} {given[row]}, and there are {self.count}, "
                f"counted from 0. raise {what}s.count"
            )
        return given


class Adapters(Residents):
    """Low-rank adapters (LoRA) over the engine's model; steps mix requests of several."""

    rank: int = Field(ge=1, le=65_536)
    """Width between the two matrices of a target."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Matrices that get one, as checkpoints name them; q for q_proj, and so on."""
    dtype: str = "bf16"
    """Storage of the adapters."""
    distinct: int | None = Field(None, ge=1)
    """Most adapters whose requests are with the scheduler at once, and so in a step; by default
    as many as there are slots (vLLM's max_loras)."""
    prefetch: bool = True
    """Copies are asked for when a request arrives; otherwise when it is next in line."""
    overtake: bool = True
    """Requests whose adapter is there go past those that wait for theirs, as in vLLM."""

    @property
    def adapter(self) -> Adapter:
        """Return one of them.

        Raises:
            ConfigError: If the dtype is unknown.
        """
        short = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
        return Adapter(self.rank, tuple(short.get(t, t) for t in self.targets), self.dtype)


class Models(Residents):
    """Models of the engine's shape with weights of their own; a step serves one of them."""

    policy: Literal["oldest", "longest"] = "oldest"
    """Which one has the next turn: that of the request that came first, or of most requests."""
    quantum: Seconds = Parameter(1.0, "seconds", "assumed: about a hundred steps")
    """Seconds of a turn after which others go first, if any request waits for them."""
    kv: Literal["stay", "drop"] = "stay"
    """What becomes of caches at the end of their model's turn; `drop` computes them again."""
