"""KV blocks on their way between the cache and a tier below it: one link, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from opbyte.sim.serving.clock import COMES, Clock


@dataclass(frozen=True)
class LinkPrice:
    """What a transfer of KV blocks costs.

    Attributes:
        name: Of the resource that it keeps busy.
        start_s: Seconds of each transfer, whatever its size.
        block_s: Seconds of each block on its way up, ..
        down_s: .. and down, where a memory writes at another rate than it reads; 0 for the same.
        block_j: Joules of each block, NaN where the machine does not say.
        block_bytes: Bytes of each block, of all devices.
    """

    name: str
    start_s: float
    block_s: float
    block_j: float = float("nan")
    block_bytes: float = float("nan")
    down_s: float = 0.0


class Carried(NamedTuple):
    """What a link carried.

    Attributes:
        price: Of the link.
        busy_s: Seconds in which it was busy.
        blocks: How many it carried.
    """

    price: LinkPrice
    busy_s: float
    blocks: int


class Transfers:
    """A link in time: transfers take it one after the other, in the order in which they are sent.

    Attributes:
        busy_s: Seconds in which it was busy.
        blocks: How many it carried.
    """

    def __init__(self, env: Clock, price: LinkPrice) -> None:
        """Start idle."""
        self.env, self.price = env, price
        self.busy_s, self.blocks = 0.0, 0
        self._free_at = 0.0

    def send(
        self, blocks: int, ready: float, then: Callable[[], Any], *, down: bool = False
    ) -> float:
        """Send blocks; return when they are there.

        Args:
            ready: Seconds, not before now: what is sent is complete then. Until then, and while
                it is under way, what is sent later waits.
            then: Called when they are there, before steps of the same moment end.
            down: They leave the cache.
        """
        price = self.price
        each = price.down_s or price.block_s if down else price.block_s
        seconds = price.start_s + blocks * each
        self._free_at = max(ready, self._free_at) + seconds
        self.busy_s += seconds
        self.blocks += blocks
        event = self.env.at(self._free_at, COMES)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: then())
        return self._free_at

    @property
    def carried(self) -> Carried:
        """Return what it has carried by now."""
        return Carried(self.price, self.busy_s, self.blocks)


def with_links(
    busy: dict[str, float], joules: float, carried: Sequence[Carried]
) -> tuple[dict[str, float], float]:
    """Return busy seconds and joules of steps and of links."""
    total = dict(busy)
    for price, busy_s, blocks in carried:
        total[price.name] = total.get(price.name, 0.0) + busy_s
        joules += blocks * price.block_j if blocks else 0.0
    return total, joules


def moved_bytes(carried: Sequence[Carried]) -> dict[str, float]:
    """Return the bytes that each link carried."""
    return {price.name: blocks * price.block_bytes for price, _, blocks in carried}
