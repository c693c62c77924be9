"""Adapters or models in the fast memory: who is there, who is on the way, who waited for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from opbyte.core.ops import Array
from opbyte.sim.residency import LruSet
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.many.below import Below
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import Plan
from opbyte.sim.serving.transfers import Transfers


@dataclass
class Copied:
    """What became of adapters or models; counters that an engine fills.

    Attributes:
        hits: Requests that found theirs there when they asked for it; turns, of models.
        asked: Requests, or turns of models, that asked for one.
        copies: How many were copied.
        bytes: Of all devices.
        waited_s: Seconds for which requests waited for theirs, summed.
        busy_s: Seconds for which the way was busy.
        joules: Of all copies.
        switches: Turns of models, the first one too.
    """

    hits: int = 0
    asked: int = 0
    copies: int = 0
    bytes: float = 0.0
    waited_s: float = 0.0
    busy_s: float = 0.0
    joules: float = 0.0
    switches: int = 0

    @property
    def hit_rate(self) -> float:
        """Return the share of hits; 1 where nobody asked, as all that was needed was there."""
        return self.hits / self.asked if self.asked else 1.0

    @property
    def wait_s(self) -> float:
        """Return the mean seconds from asking to having it."""
        return self.waited_s / self.asked if self.asked else 0.0


class Shelf:
    """The fast memory's slots and the way to them.

    Attributes:
        held: How many need each entry now: what is needed does not leave.
        copied: What became of it all.
    """

    def __init__(self, env: Clock, below: Below, slots: int) -> None:
        """Start empty."""
        self.env, self.below = env, below
        self.way = Transfers(env, below.price)
        self.lru = LruSet(slots)
        self.held: Counter[int] = Counter()
        self.copied = Copied()
        self.until = 0.0
        self._coming: set[int] = set()

    def there(self, name: int) -> bool:
        """Return whether an entry is in the fast memory, all of it."""
        return name in self.lru.entries and name not in self._coming

    def ask(self, name: int, then: Callable[[], None], ready: float = 0.0) -> bool:
        """Have an entry copied unless it is there or coming; return False if nothing may leave.

        Args:
            then: Called when it is there.
            ready: Seconds, before which its slot is in use.
        """
        if name in self.lru.entries:
            return True
        staying = self._coming | {n for n, count in self.held.items() if count}
        if not self.lru.fetch(name, staying):
            return False
        self._coming.add(name)

        def arrived() -> None:
            self._coming.discard(name)
            then()

        self.until = self.way.send(1, max(ready, self.env.now), arrived)
        copied, price = self.copied, self.below.price
        copied.copies += 1
        copied.bytes += self.below.bytes * self.below.devices
        copied.busy_s = self.way.busy_s
        copied.joules = copied.copies * price.block_j
        return True

    def hold(self, name: int) -> None:
        """Keep an entry that has a slot until it is let go as often."""
        self.held[name] += 1
        self.lru.touch(name)

    def release(self, name: int) -> None:
        """Let go of an entry that was used until now."""
        self.held[name] -= 1
        if not self.held[name]:
            del self.held[name]
            self.lru.touch(name)


class Prices(Protocol):
    """What a step costs beside its model: adapters."""

    def cost(self, tokens: int, distinct: int) -> tuple[float, float, Mapping[str, float]]:
        """Return seconds, joules, and busy seconds by resource."""


class Beside:
    """What steps cost beside their model, and copies that slow them down.

    A copy takes its part of each port on its way, and steps get the rest: a step that keeps a port
    busy for a part u of its time advances at (1 - c) / u of its pace while a copy takes c, where
    u + c exceed 1. Copies that begin after a step was planned do not change that step any more.

    Attributes:
        busy: Busy seconds of what adapters computed, by resource.
    """

    def __init__(self, shelf: Shelf, resources: Sequence[str], prices: Prices | None) -> None:
        """Start idle.

        Args:
            resources: Names of what steps keep busy.
            prices: Of adapters; None where steps have none.
        """
        self.shelf, self.prices = shelf, prices
        self.busy: dict[str, float] = {}
        self._shares = np.array([shelf.below.shares.get(r, 0.0) for r in resources])
        self._index = {name: i for i, name in enumerate(resources)}

    @property
    def all_busy(self) -> dict[str, float]:
        """Return busy seconds by resource: of adapters, and of the way of copies."""
        name, copies = self.shelf.below.price.name, self.shelf.copied.busy_s
        return self.busy | {name: self.busy.get(name, 0.0) + copies}

    def step(
        self, plan: Plan, start: float, seconds: float, joules: float, busy: Array
    ) -> tuple[float, float]:
        """Return the seconds and joules of a step with what is beside it.

        Args:
            start: When it starts.
            seconds, joules: Of the model alone.
            busy: Busy seconds of each resource, of the model alone, (resources,).
        """
        if self.prices is not None:
            users: list[Request] = []
            tokens = 0
            for piece in plan.pieces:
                if piece.request.adapter >= 0:
                    users.append(piece.request)
                    tokens += piece.new
            if users:
                distinct = len({request.adapter for request in users})
                more, energy, held = self.prices.cost(tokens, distinct)
                seconds, joules = seconds + more, joules + energy
                busy = busy.copy()
                for name, value in held.items():
                    self.busy[name] = self.busy.get(name, 0.0) + value
                    if name in self._index:
                        busy[self._index[name]] += value
        if self.shelf.until > start:
            seconds = stretched(seconds, self.shelf.until - start, self._pace(busy / seconds))
        return seconds, joules

    def _pace(self, used: Array) -> float:
        """Return the share of its pace that a step keeps while a copy is under way."""
        shares = self._shares
        tight = (shares > 0.0) & (used + shares > 1.0)
        return float(np.min((1.0 - shares[tight]) / used[tight], initial=1.0))


def stretched(seconds: float, window: float, pace: float) -> float:
    """Return how long a step takes that advances at a lower pace at first.

    Args:
        seconds: At full pace.
        window: Seconds of the lower one.
        pace: Share of the full one.
    """
    if pace >= 1.0:
        return seconds
    if seconds <= window * pace:
        return seconds / pace
    return window + seconds - window * pace
