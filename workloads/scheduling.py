"""The scheduler of a serving work, as users write it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opbyte.core.errors import Problem
from opbyte.core.parameters import Bytes, Parameter
from opbyte.workloads.serve_block import ServeBlock, refuse, unused

#: Tokens of a step of the scheduler chunked.
CHUNKED_TOKENS = 512
#: Schedulers that are built in, and options -> those of them that use it.
_KINDS = ("continuous", "chunked", "static", "layered", "shortest", "prefix", "fair")
_USERS = {"lead": ("fair",), "groups": ("layered",), "aging": ("shortest", "prefix")}


class Grouping(ServeBlock):
    """Into how many groups of layers a prompt's computation is divided, by its tokens.

    The default is the published configuration of layered prefill (arXiv:2510.08055).
    """

    tokens: tuple[Annotated[int, Field(ge=1)], ...] = (512, 1024, 2048, 4096)
    """Ends of ranges of tokens, ascending, each included in its range."""
    groups: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (1, 2, 4, 8, 16)
    """Groups of each range, and of what has more tokens."""

    @model_validator(mode="after")
    def _matched(self) -> Grouping:
        if len(self.groups) != len(self.tokens) + 1:
            raise ValueError(
                f"{len(self.tokens)} ends make {len(self.tokens) + 1} ranges, but groups are given "
                f"for {len(self.groups)}. give one number for each range"
            )
        if list(self.tokens) != sorted(set(self.tokens)):
            raise ValueError("tokens must ascend. sort them, each once")
        return self

    def capped(self, layers: int) -> Grouping:
        """Return the same with no more groups than there are layers."""
        return self.model_copy(update={"groups": tuple(min(n, layers) for n in self.groups)})

    def of(self, tokens: int) -> int:
        """Return the groups of prompts that have so many tokens together."""
        return self.groups[bisect_left(self.tokens, tokens)]


def _grouping(given: Any) -> Any:
    """Read a bare number: as many groups for all prompts."""
    whole = isinstance(given, int) and not isinstance(given, bool)
    return {"tokens": (), "groups": (given,)} if whole else given


class Scheduling(ServeBlock):
    """How an engine forms its steps, and the memory that it gives to caches."""

    kind: str = "continuous"
    """Scheduler: continuous (as vLLM v1), chunked (the same with a small budget of tokens, for
    decodes that do not stall), static, layered (layered prefill), shortest, prefix or fair."""
    max_sequences: int = Field(256, ge=1, le=65_536)
    """Requests that run at once."""
    max_batched_tokens: int = Field(2048, ge=1, le=1_048_576)
    """Tokens of one step; 512 by default with chunked, as published comparisons have it
    (Sarathi-Serve, arXiv:2403.02310; layered prefill, arXiv:2510.08055)."""
    chunk: bool = True
    """Prompts may be computed in pieces."""
    reserve: bool = True
    """A request starts only where all its known tokens would fit at once."""
    block_tokens: int = Field(16, ge=1)
    """Tokens of a block of the KV cache."""
    kv_blocks: int | None = Field(None, ge=1, le=50_000_000)
    """Blocks of the KV cache; by default what the memory holds beside weights and activations."""
    memory: float = Field(0.9, gt=0.0, le=1.0)
    """Share of each memory that the engine uses: weights, activations, caches (vLLM's default)."""
    prefix_cache: bool = True
    """Freed blocks can be found again by who needs the same content."""
    windows: Literal["kept", "freed"] = "kept"
    """What lies outside the window of a layer: kept like all else, or its memory is free again
    (vLLM's hybrid cache manager)."""
    kv_budget: int | None = Field(None, ge=1)
    """Tokens of a sequence that the cache keeps at most in each layer, by whatever rule (the first
    and the latest: StreamingLLM; those that weigh most: H2O); by default all."""
    groups: Annotated[Grouping, BeforeValidator(_grouping)] = Grouping()
    """Of `layered`: groups of layers, a number or `{tokens: [512], groups: [1, 2]}`."""
    depth: int = Field(1, ge=1, le=8)
    """Steps planned or under way at once: 2 hides the scheduler behind the device (vLLM's
    asynchronous scheduling)."""
    aging: float = Field(500.0, gt=0.0, allow_inf_nan=False)
    """Tokens that a second of waiting is worth to the schedulers shortest and prefix."""
    lead: int | None = Field(None, ge=0)
    """Tokens of service by which a client must be ahead for the scheduler fair to switch its
    requests out; without it none is."""
    preempt: Literal["recompute", "swap"] = "recompute"
    """What becomes of the blocks of a preempted request: lost, or kept in the memory below."""
    swap_space: Bytes = Parameter(4 * 2.0**30, "bytes", "vLLM 0.8's default for each GPU: 4 GiB")
    """Bytes of the memory below that each device gives to them."""

    @model_validator(mode="before")
    @classmethod
    def _budget(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("kind") == "chunked":
            return {"max_batched_tokens": CHUNKED_TOKENS, **given}
        return given

    @model_validator(mode="after")
    def _used(self) -> Scheduling:
        problems = [
            unused(
                name, getattr(self, name), " and ".join(kinds), f"leave it out, or use {kinds[0]}"
            )
            for name, kinds in _USERS.items()
            if self.was_given(name) and self.kind in _KINDS and self.kind not in kinds
        ]
        if self.was_given("swap_space") and self.preempt != "swap":
            space = f"{self.swap_space.value / 2**30:g} GiB"
            problems.append(unused("swap_space", space, "preempt: swap", "add it, or leave it out"))
        if self.was_given("memory") and self.kv_blocks is not None:
            rule = "does nothing beside kv_blocks, which is the size of the cache"
            problems.append(Problem("", "memory", rule, self.memory, "give one of them"))
        if self.kind == "prefix" and not self.prefix_cache:
            rule = "must be on: the scheduler prefix orders requests by what the cache holds"
            problems.append(
                Problem(
                    "", "prefix_cache", rule, self.prefix_cache, "leave it out, or use continuous"
                )
            )
        refuse(problems)
        return self

    @model_validator(mode="after")
    def _forgetting(self) -> Scheduling:
        if self.prefix_cache and (self.windows == "freed" or self.kv_budget is not None):
            what = "kv_budget" if self.windows == "kept" else "windows: freed"
            raise ValueError(
                f"{what} forgets tokens, whose blocks nobody can find again. set prefix_cache to "
                "false too"
            )
        return self
