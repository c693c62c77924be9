"""A request on its way through an engine."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


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
        reason: Why it is not served, empty where it is.
        scheduled_s, first_token_s, last_token_s: Seconds, negative before.
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
    reason: str = ""
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0

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
