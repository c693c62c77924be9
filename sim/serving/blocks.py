"""Paged KV cache: blocks that requests hold, and freed ones that still know what was in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple, Protocol


class Contents(Protocol):
    """What tiers below a cache hold."""

    def leading(self, keys: Iterable[Hashable]) -> tuple[Hashable, ...]:
        """Return the leading contents that are there, up to the first that is not."""


class Growth(NamedTuple):
    """Layers whose caches grow alike.

    Attributes:
        size: Of a token's keys and values in all of them; only its share of the whole matters.
        limit: Tokens of a sequence that they keep at most, 0 for all.
    """

    size: int
    limit: int


class BlockPool:
    """Blocks of one engine's KV cache.

    Freed blocks keep their content until they are needed: they queue in the order in which they
    were freed, the last block of a sequence before its first, and are taken from the front. With
    `remember` a block that was full when it was computed can be held again by whoever needs the
    same content; as in vLLM's prefix cache, content is known by a key.

    Attributes:
        total: Blocks.
        tokens: Tokens of a block.
        remember: Whether content outlives its holder.
        below: Free blocks in the tier below, where preempted requests' blocks go; 0 without one.
        leaving: Blocks that are on their way there, and free when they are out.
        contents: What tiers below hold of what the cache has forgotten; None without any.
        asked: Tokens that requests had to compute when they were admitted, ..
        hit: .. and those of them that the cache held.
        growth: How the cache of a sequence grows; empty where all layers keep all tokens.
    """

    def __init__(
        self,
        total: int,
        tokens: int,
        *,
        remember: bool = True,
        below: int = 0,
        contents: Contents | None = None,
        growth: Sequence[Growth] = (),
    ) -> None:
        """Start with all blocks free and empty."""
        assert not (growth and remember), "blocks that lose tokens can not be found again"
        self.growth = growth
        self.asked = self.hit = 0
        self.total, self.tokens, self.remember = total, tokens, remember
        self.below, self.leaving, self.contents = below, 0, contents
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(total))
        self._holders = [0] * total
        self._key: list[Hashable | None] = [None] * total
        self._known: dict[Hashable, int] = {}

    @property
    def free(self) -> int:
        """Return the blocks that nobody holds."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Return the blocks of a sequence of so many tokens.

        A block is the memory of so many tokens in all layers. Where layers keep fewer, each takes
        its share of a block for every block of tokens that it keeps; the sum is rounded up.
        """
        if not self.growth:
            return -(-tokens // self.tokens)
        taken = whole = 0
        for size, limit in self.growth:
            kept = min(tokens, limit) if limit else tokens
            taken += size * -(-kept // self.tokens)
            whole += size
        return -(-taken // whole)

    def found(self, keys: Sequence[Hashable]) -> list[int]:
        """Return the blocks that hold the leading contents, up to the first that none holds."""
        blocks: list[int] = []
        for key in keys if self.remember else ():
            block = self._known.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def idle(self, blocks: Sequence[int]) -> int:
        """Return how many of the blocks nobody holds."""
        return sum(self._holders[block] == 0 for block in blocks)

    def alone(self, blocks: Sequence[int]) -> int:
        """Return how many of the blocks have one holder."""
        return sum(self._holders[block] == 1 for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """Hold blocks that were found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Return blocks from the front of the queue; what was in them is forgotten.

        Raises:
            IndexError: If fewer are free.
        """
        if count > len(self._free):
            raise IndexError(f"{count} blocks of {len(self._free)} free ones")
        taken = []
        for _ in range(count):
            block, _none = self._free.popitem(last=False)
            key = self._key[block]
            if key is not None:
                del self._known[key]
                self._key[block] = None
            self._holders[block] = 1
            taken.append(block)
        return taken

    def know(self, block: int, key: Hashable) -> None:
        """Note what a full block holds; content that is known elsewhere stays there."""
        if self.remember and self._key[block] is None and key not in self._known:
            self._key[block] = key
            self._known[key] = block

    def give(self, blocks: Sequence[int]) -> None:
        """Let go of a sequence's blocks, its last one first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None

    def leave(self, blocks: Sequence[int]) -> bool:
        """Let a sequence's blocks be on their way to the tier below; return False if it is full."""
        if len(blocks) > self.below:
            return False
        self.below -= len(blocks)
        self.leaving += len(blocks)
        return True

    def left(self, blocks: Sequence[int], shared: int) -> None:
        """Let go of blocks that are in the tier below.

        Args:
            shared: How many of them others may look for; what was in the others is forgotten here.
        """
        for block in blocks[shared:]:
            key = self._key[block]
            if key is not None:
                del self._known[key]
                self._key[block] = None
        self.leaving -= len(blocks)
        self.give(blocks)
