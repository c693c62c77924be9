"""Fair service of clients: who has been served least is tried first, and may switch others out."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import WorkloadError
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers.base import SCHEDULERS, Continuous, Group, Limits, Piece
from opbyte.workloads.traces import RequestTrace


class Clients(NamedTuple):
    """Who asks.

    Attributes:
        client: Number of the client of each request, from 0, (requests,).
        level: 0 for the most urgent priority of clients, 1 for the next, (clients,).
    """

    client: npt.NDArray[np.int32]
    level: npt.NDArray[np.int32]

    @classmethod
    def of(cls, trace: RequestTrace) -> Clients:
        """Return the clients of a trace: tenants, else sessions, of one priority each.

        Raises:
            WorkloadError: If the trace has neither.
        """
        who = trace.tenant if trace.tenant is not None else trace.session
        if who is None:
            raise WorkloadError(
                f"trace {trace.name!r} does not say who asks, and a fair scheduler must know. "
                "give it a column `tenant` or `session`"
            )
        priority = np.zeros(len(trace), np.int64) if trace.priority is None else trace.priority
        pairs, client = np.unique(np.stack([who, -priority]), axis=1, return_inverse=True)
        level = np.unique(pairs[1], return_inverse=True)[1]
        return cls(client.ravel().astype(np.int32), level.astype(np.int32))


#: What a token of a prompt and one of an answer count as service (VTC, section 5.1).
INPUT, OUTPUT = 1, 2


@SCHEDULERS.register("fair")
class Fair(Continuous):
    """Continuous batching by virtual token counters, with priorities and context switching.

    VTC (Sheng et al., OSDI 2024, algorithm 2). Each client has a counter of its service: a prompt
    counts when it is first admitted, each token of an answer counts twice when it is computed, and
    what is computed again after a preemption does not count. The client with the smallest counter
    is tried first, its own requests in order. A client that was idle gains nothing by it: when a
    request arrives and none of its client waits, the counter is lifted to the smallest of those
    that wait, or to that of the client that left the queue last. So the service of two clients
    that always have requests waiting differs by 2 * max(longest prompt, 2 * tokens of the cache)
    at most.

    Priorities are strict: a larger one is always tried first. Requests of one client with
    different priorities are as of several clients; counters are lifted within a priority.

    Context switching (as FastSwitch, 2024, switches whenever priorities change): with `lead`, a
    running request makes room for the one that is tried first if its priority is lower, or if its
    client's counter is ahead by more than `lead`; nobody, if that would not make room enough.
    Whoever runs gets one token at least before it is switched out, so that all come to an end.
    """

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        """Start without clients."""
        super().__init__(limits, pool)
        self.service: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()
        self._priority: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._since: dict[Request, int] = {}
        #: Whose prompt counts already.
        self._charged: set[Request] = set()

    def add(self, request: Request) -> None:
        """Let a request wait; a client that comes back starts where others are."""
        client, priority = request.client, request.priority
        self._priority[client] = priority
        if not self._waiting[client]:
            others = [
                self.service[c]
                for c, count in self._waiting.items()
                if count and self._priority[c] == priority
            ]
            floor = min(others) if others else self.service[self._last.get(priority, client)]
            self.service[client] = max(self.service[client], floor)
        self._waiting[client] += 1
        super().add(request)

    def _first(self) -> Request:
        # The first of equals is who is nearest to the front.
        return min(self.waiting, key=lambda r: (-r.priority, self.service[r.client]))

    def _return(self, request: Request) -> None:
        super()._return(request)
        self._waiting[request.client] += 1

    def _leave(self, request: Request) -> None:
        super()._leave(request)
        self._waiting[request.client] -= 1
        self._last[request.priority] = request.client
        self._since[request] = request.sampled
        if request not in self._charged:
            self._charged.add(request)
            self.service[request.client] += INPUT * request.input

    def _piece(
        self, request: Request, new: int, depth: int = 0, group: Group | None = None
    ) -> Piece:
        piece = super()._piece(request, new, depth, group)
        self.service[request.client] += OUTPUT * piece.samples
        return piece

    def _switch(self) -> list[Request]:
        """Switch out running requests for the one that is tried first."""
        if self.limits.lead is None or not self.waiting:
            return []
        first, pool = self._first(), self.pool
        if first.moving:
            return []
        found = self._found(first)
        kept = set(found)
        need = pool.needed(first.target) - len(found) + pool.idle(found)
        slots = self.limits.max_sequences - len(self.running) - self.coming
        room = pool.free + pool.leaving
        # Who goes first: the lowest priority, then the largest counter, then who runs shortest.
        ahead = [r for r in reversed(self.running) if self._ahead(r, first)]
        ahead.sort(key=lambda r: (r.priority, -self.service[r.client]))
        victims: list[Request] = []
        while ahead and (slots < 1 or room < need):
            victims.append(ahead.pop(0))
            slots += 1
            # What was found there is not computed: it does not make room.
            room += pool.alone([b for b in victims[-1].blocks if b not in kept])
        if slots < 1 or room < need:
            return []
        for victim in victims:
            self._lose(victim)
        return victims

    def _ahead(self, running: Request, first: Request) -> bool:
        if not self._since[running] < running.sampled < running.output:
            return False
        lead = self.service[running.client] - self.service[first.client]
        assert self.limits.lead is not None
        if running.priority != first.priority:
            return running.priority < first.priority
        return lead > self.limits.lead

    def resume(self, request: Request) -> None:
        """Let a request run that brings blocks, and what was computed elsewhere in them."""
        super().resume(request)
        self._charged.add(request)
        self._since[request] = request.sampled

    def finish(self, request: Request) -> None:
        """Forget a request whose last token is there."""
        super().finish(request)
        self._since.pop(request, None)
        self._charged.discard(request)
