"""Contents of KV blocks in the tiers below the cache: an LRU cache in each, and the ways between.

What a step has computed is written through: every block that it filled is sent to the first tier
when the step ends, so that a block of the cache can be taken for something else at any time (as
LMCache, Mooncake's store and vLLM's offloading connector do it). What a tier has no room for goes
to the next one, least recently used first, and is gone below the last. Contents of a lower tier
come back through the tiers above it and stay in all of them, so that what the next tier still
holds is not sent there twice.

Contents are in a tier once they have come; nobody finds what is on its way. What is sent was read
into a buffer before, whose size is not counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.transfers import LinkPrice, Transfers

Keys = tuple[Hashable, ...]


class LowerTiers:
    """The tiers below one engine's KV cache, the nearest first.

    Attributes:
        links: The way from each tier to the one above it.
        rooms: Blocks that each tier holds at most.
        loaded: Blocks that requests got from each tier.
        written: Blocks that were written to each tier.
    """

    def __init__(self, env: Clock, tiers: Sequence[tuple[int, LinkPrice]]) -> None:
        """Start with empty tiers.

        Args:
            tiers: Blocks of each tier, and the way to it from the one above.
        """
        self.links = [Transfers(env, price) for _, price in tiers]
        self.rooms = [blocks for blocks, _ in tiers]
        self.loaded, self.written = [0] * len(tiers), [0] * len(tiers)
        #: Of each tier, the least recently used first; contents that were used at once the later
        #: in their sequence the earlier, since they are worth nothing without those before them.
        self._held: list[OrderedDict[Hashable, None]] = [OrderedDict() for _ in tiers]
        #: On their way down to each tier.
        self._sinking: list[set[Hashable]] = [set() for _ in tiers]

    @property
    def held(self) -> tuple[Keys, ...]:
        """Return the contents of each tier, the least recently used first."""
        return tuple(tuple(tier) for tier in self._held)

    def leading(self, keys: Iterable[Hashable]) -> Keys:
        """Return the leading contents that are in any tier, up to the first that is in none."""
        found = []
        for key in keys:
            if self._tier(key) is None:
                break
            found.append(key)
        return tuple(found)

    def save(self, keys: Sequence[Hashable], start: int) -> None:
        """Send down what a step has computed of a sequence, as far as it is not there.

        Args:
            keys: Contents of all its full blocks, in order; all of them count as used.
            start: Blocks that were full before the step.
        """
        self._use(keys)
        self._sink(0, [key for key in keys[start:] if self._tier(key) is None], keys)

    def load(self, keys: Sequence[Hashable], then: Callable[[], Any]) -> None:
        """Send contents up to the cache, those of the nearest tier first.

        Args:
            keys: Each of them in a tier.
            then: Called when all of them are there.
        """
        groups: list[list[Hashable]] = [[] for _ in self.links]
        for key in keys:
            tier = self._tier(key)
            assert tier is not None
            groups[tier].append(key)
        self._use(keys)
        left = sum(bool(group) for group in groups)

        def arrived() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                then()

        for tier, group in enumerate(groups):
            if group:
                self.loaded[tier] += len(group)
                self._rise(tier, group, arrived)

    def _tier(self, key: Hashable) -> int | None:
        """Return the nearest tier that holds a content."""
        return next((i for i, tier in enumerate(self._held) if key in tier), None)

    def _use(self, keys: Sequence[Hashable]) -> None:
        """Count contents as used, in whichever tiers they are."""
        for tier in self._held:
            for key in reversed(keys):
                if key in tier:
                    tier.move_to_end(key)

    def _rise(self, tier: int, keys: list[Hashable], then: Callable[[], Any]) -> None:
        """Send contents of a tier up, through all above it."""

        def risen() -> None:
            self._put(tier - 1, keys)
            self._rise(tier - 1, keys, then)

        self._send(tier, len(keys), then if tier == 0 else risen)

    def _sink(self, tier: int, keys: list[Hashable], used: Sequence[Hashable] = ()) -> None:
        """Send contents down to a tier, but for those that are there or on their way.

        Args:
            used: Contents of a sequence that count as used when they have come.
        """
        held, sinking = self._held[tier], self._sinking[tier]
        new = [key for key in keys if key not in held and key not in sinking]
        if new:
            sinking.update(new)
            self._send(tier, len(new), partial(self._sunk, tier, new, used), down=True)

    def _sunk(self, tier: int, keys: list[Hashable], used: Sequence[Hashable]) -> None:
        self._sinking[tier].difference_update(keys)
        self._put(tier, keys)
        self._use(used)

    def _put(self, tier: int, keys: Sequence[Hashable]) -> None:
        """Put contents into a tier; what it has no room for goes to the next one."""
        held = self._held[tier]
        for key in reversed(keys):
            self.written[tier] += key not in held
            held[key] = None
            held.move_to_end(key)
        over = max(0, len(held) - self.rooms[tier])
        pushed = [held.popitem(last=False)[0] for _ in range(over)]
        if tier + 1 < len(self._held):
            # The first that is pushed out is the last of its sequence.
            self._sink(tier + 1, pushed[::-1])

    def _send(self, tier: int, blocks: int, then: Callable[[], Any], *, down: bool = False) -> None:
        link = self.links[tier]
        link.send(blocks, link.env.now, then, down=down)
