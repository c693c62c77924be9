"""Routers: which of several engines a request goes to. They see load, never prices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Protocol

from opbyte.core.registry import Registry
from opbyte.sim.serving.requests import Request


class Load(Protocol):
    """What a router sees of an engine.

    Attributes:
        number: Which one it is.
    """

    number: int

    @property
    def outstanding(self) -> int:
        """Return the requests that were given to it and are not answered."""

    @property
    def free_blocks(self) -> int:
        """Return the blocks of its KV cache that nobody holds."""


class Router(ABC):
    """Decides which engine takes a request.

    Attributes:
        slack: Requests that an engine may have more than the emptiest one before a router that has
            other reasons must leave it alone.
    """

    def __init__(self, slack: int = 0) -> None:
        """Start without requests."""
        self.slack = slack

    @abstractmethod
    def choose(self, request: Request, up: Sequence[Load]) -> int:
        """Return the number of an engine.

        Args:
            request: Who arrives now; nothing of it is computed, or all of that is lost.
            up: Engines that work, by number; one at least.
        """

    def forget(self, number: int) -> None:  # noqa: B027
        """Note that an engine has failed, and will come back empty; most need not know."""


ROUTERS: Registry[type[Router]] = Registry("router")


@ROUTERS.register("round_robin")
class RoundRobin(Router):
    """Each in turn; who is away misses his turn."""

    _turn = 0

    def choose(self, request: Request, up: Sequence[Load]) -> int:
        """Return the number of an engine."""
        del request
        chosen = next((load.number for load in up if load.number >= self._turn), up[0].number)
        self._turn = chosen + 1
        return chosen


def least(up: Sequence[Load]) -> Load:
    """Return the engine with the fewest requests, of equals the first."""
    return min(up, key=lambda load: (load.outstanding, load.number))


@ROUTERS.register("least_outstanding")
class LeastOutstanding(Router):
    """The engine that has the fewest requests which are not answered, of equals the first."""

    def choose(self, request: Request, up: Sequence[Load]) -> int:
        """Return the number of an engine."""
        del request
        return least(up).number


@ROUTERS.register("prefix_affinity")
class PrefixAffinity(Router):
    """The engine that was given the longest part of the prompt before, unless it is crowded.

    The router remembers which leading blocks it sent where, and not what an engine's cache still
    holds, as routers in front of separate servers do. Of equals, and where no engine knows a block
    or the one that does has `slack` requests more than the emptiest, the emptiest is chosen.
    """

    def __init__(self, slack: int = 0) -> None:
        """Start without requests."""
        super().__init__(slack)
        self._known: dict[Hashable, set[int]] = {}

    def choose(self, request: Request, up: Sequence[Load]) -> int:
        """Return the number of an engine."""
        empty = least(up)
        best = least(self._longest(request, up))
        if best.outstanding > empty.outstanding + self.slack:
            best = empty
        for key in request.shared:
            self._known.setdefault(key, set()).add(best.number)
        return best.number

    def _longest(self, request: Request, up: Sequence[Load]) -> Sequence[Load]:
        """Return the engines that know the most leading blocks; all if none knows one."""
        best = up
        for key in request.shared:
            holders = self._known.get(key, set())
            among = [load for load in best if load.number in holders]
            if not among:
                break
            best = among
        return best

    def forget(self, number: int) -> None:
        """Note that an engine has failed, and will come back empty."""
        for holders in self._known.values():
            holders.discard(number)
