"""Schedulers that order what waits: the shortest prompt first, or the longest known prefix."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque

from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers.base import SCHEDULERS, Continuous, Piece


class Ordered(Continuous):
    """Continuous batching whose waiting requests are ordered anew before each admission.

    Requests that have run before are tried first, as in `Continuous`. The others follow by the
    value of `order`, smallest first, and among equals by their row of the trace. Nobody overtakes
    the first one: where it has no room, nobody is admitted.
    """

    @abstractmethod
    def order(self, request: Request) -> float:
        """Return by what a waiting request is ordered, seconds."""

    def _admit(self, budget: int, pieces: list[Piece], ins: list[Request]) -> None:
        if budget > 0 and len(self.running) + self.coming < self.limits.max_sequences:
            self.waiting = deque(sorted(self.waiting, key=self._key))
        super()._admit(budget, pieces, ins)

    def _key(self, request: Request) -> tuple[bool, float, int]:
        if request.preempted:
            return False, 0.0, 0
        return True, self.order(request), request.index

    def known_tokens(self, request: Request) -> int:
        """Return how many tokens of a waiting prompt the cache and tiers below it hold."""
        if not request.shared:
            return 0
        found = len(self._found(request))
        return (found + len(self._below(request, found))) * self.pool.tokens


@SCHEDULERS.register("shortest")
class Shortest(Ordered):
    """The prompt with the fewest tokens left to compute is tried first; waiting makes it shorter.

    Ordered by `tokens left - aging * seconds waited`, as PrefillOnly (SOSP 2025) orders requests
    by the time that they take less a multiple of the time that they have waited. All age alike,
    so that is the order of `arrival + tokens left / aging`: a prompt of n tokens is overtaken only
    by requests that arrive within n / aging seconds after it, and none starves. What the cache
    holds of a prompt is not left to compute.
    """

    def order(self, request: Request) -> float:
        """Return arrival plus the seconds that its tokens are worth."""
        left = request.target - self.known_tokens(request)
        return request.arrival + left / self.limits.aging


@SCHEDULERS.register("prefix")
class Prefix(Ordered):
    """The prompt of which the cache holds most tokens is tried first; waiting counts as tokens.

    The longest-prefix-match order of SGLang (NeurIPS 2024, section 3), which visits a radix tree
    of prompts depth first, so that a prefix is used again before it is evicted. There it starves
    whoever matches nothing. Here a second of waiting counts as `aging` tokens: a request is
    overtaken only by those that arrive within n / aging seconds after it and match n tokens more.
    """

    def order(self, request: Request) -> float:
        """Return arrival less the seconds that its known tokens are worth."""
        return request.arrival - self.known_tokens(request) / self.limits.aging
