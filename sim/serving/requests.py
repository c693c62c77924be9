"""A request on its way through an engine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from opbyte.core.errors import UncoveredError
from opbyte.workloads.traces import PrefixBlocks, RequestTrace


@dataclass(slots=True, eq=False)
class Request:
    """State of one request.

    Attributes:
        index: Row of the trace.
        arrival: Seconds.
        input, output: Tokens of the prompt, and tokens to produce.
        shared: Keys of the prompt's leading blocks that other prompts may have too.
        computed: Tokens whose keys and values are in the cache, those under way too.
        sampled: Tokens produced, those under way too.
        blocks: Blocks that it holds.
        known: Leading blocks of those that are full.
        preempted: How often it lost them.
        below: Blocks that it has in the tier below the cache.
        fetch: Contents of its blocks that come up from tiers below the cache.
        moving: Blocks of its own are on their way down or back.
        client: Number of whoever asks: the share of a fair scheduler.
        priority: Larger is more urgent.
        adapter: Number of the adapter that answers, -1 for none.
        model: Number of the model that answers.
        reason: Why it is not served, empty where it is.
        scheduled_s, first_token_s, last_token_s: Seconds, negative before.
        token_s: When its latest token came, from whichever engine, seconds, negative before.
    """

    index: int
    arrival: float
    input: int
    output: int
    shared: tuple[Hashable, ...] = ()
    computed: int = 0
    sampled: int = 0
    blocks: list[int] = field(default_factory=list)
    known: int = 0
    preempted: int = 0
    below: int = 0
    fetch: tuple[Hashable, ...] = ()
    moving: bool = False
    client: int = 0
    priority: int = 0
    adapter: int = -1
    model: int = 0
    reason: str = ""
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0
    token_s: float = -1.0

    @property
    def target(self) -> int:
        """Return the tokens that must be computed before the next one can be sampled."""
        return self.input + self.sampled

    @property
    def left(self) -> int:
        """Return the tokens that a step could compute now; 0 once all are under way."""
        if self.sampled >= self.output:
            return 0
        return self.input + self.sampled - self.computed

    def key(self, block: int) -> Hashable:
        """Return what its block with this number holds."""
        return self.shared[block] if block < len(self.shared) else ("own", self.index, block)


def kv_blocks_inside(prefix: PrefixBlocks, block_tokens: int) -> int:
    """Return how many KV blocks a prefix block consists of.

    Raises:
        UncoveredError: If it does not.
    """
    if prefix.block_tokens % block_tokens:
        raise UncoveredError(
            f"prefix blocks of {prefix.block_tokens} tokens do not consist of KV blocks of "
            f"{block_tokens}. choose another scheduler.block_tokens"
        )
    return prefix.block_tokens // block_tokens


def requests_of(
    trace: RequestTrace, block_tokens: int, *, shared: bool, rows: Any = None
) -> list[Request]:
    """Return requests before anything happened; with the keys of blocks that prompts share."""
    chosen = range(len(trace)) if rows is None else rows
    prefix = trace.prefix if shared else None
    inside = 0 if prefix is None else kv_blocks_inside(prefix, block_tokens)
    made = []
    for i in chosen:
        adapter = -1 if trace.adapter is None else int(trace.adapter[i])
        model = 0 if trace.model is None else int(trace.model[i])
        keys: tuple[Hashable, ...] = ()
        if prefix is not None:
            full = int(trace.input_tokens[i]) // block_tokens
            # Another adapter or model computes other keys and values of the same text.
            keys = tuple(
                (int(b), j, adapter, model) for b in prefix.of(int(i)) for j in range(inside)
            )[:full]
        made.append(
            Request(
                int(i), float(trace.arrival_s[i]), int(trace.input_tokens[i]),
                int(trace.output_tokens[i]), keys, adapter=adapter, model=model,
            )
        )  # fmt: skip
    return made
