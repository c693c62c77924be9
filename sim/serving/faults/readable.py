"""A readable engine whose attention devices are lost and return."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import simpy

from opbyte.sim.serving.clock import CHANGES, Clock
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.faults.changes import Change
from opbyte.sim.serving.faults.fates import Toll
from opbyte.sim.serving.requests import Request


class Survivor:
    """An engine that goes on with the devices that are left: one engine after the other.

    Attributes:
        engines: All that there were, the last one is at work.
        working: Devices that it has.
        toll: What became of requests.
    """

    def __init__(
        self,
        env: Clock,
        start: Callable[[int], Engine],
        toll: Toll,
        changes: Iterator[Change],
        begin: float,
        requests: int,
    ) -> None:
        """Start with all devices.

        Args:
            start: Returns an idle engine on so many devices.
            changes: In the order of time.
            begin: When the trace starts, seconds.
            requests: How many will come.
        """
        self.env, self.toll, self._start, self._begin = env, toll, start, begin
        self.working, self.engines = toll.devices, [start(toll.devices)]
        self._open = requests
        self._awaited = 0
        self._pending: list[Change] = []
        self._held: list[Request] = []
        self._answered: dict[Request, simpy.Event] = {}
        self.engines[0].on_answer = self._done
        env.process(self._happen(changes))

    @property
    def engine(self) -> Engine:
        """Return the engine that is at work."""
        return self.engines[-1]

    def submit(self, request: Request) -> None:
        """Let a request arrive now; one that can not be served is given a reason instead."""
        if not self.working and self._awaited:
            self._held.append(request)
            return
        self.engine.submit(request)
        if request.reason:
            begun = request.scheduled_s >= 0.0
            self.toll.refuse(request.index, request.reason, self.working, begun=begun)
            self._drop(request)

    def answer(self, request: Request) -> simpy.Event:
        """Return what happens when the request has its last token, or will get none."""
        event = self.env.event()
        if request.reason or request.last_token_s >= 0.0:
            event.succeed()
        else:
            self._answered[request] = event
        return event

    def _done(self, request: Request) -> None:
        self._open -= 1
        if request in self._answered:
            self._answered.pop(request).succeed()

    def _drop(self, request: Request) -> None:
        """Let a request go that is not served."""
        request.reason = self.toll.reasons[request.index]
        self._done(request)

    def _happen(self, changes: Iterator[Change]) -> Generator[simpy.Event, Any, None]:
        """Let devices be lost and return, as long as requests are open."""
        for change in changes:
            yield self.env.at(self._begin + change.at, CHANGES)
            if not self._open:
                return
            self._pending.append(change)
            self.engine.close(self._go_on, ends=self.toll.ends([change]))

    def _go_on(self) -> None:
        """Start again with the devices that work, and without what was in the cache."""
        held = [request.index for request in self.engine.unanswered if request.blocks]
        changes, self._pending = self._pending, []
        self.toll.lose(held, changes)
        self.working, self._awaited = changes[-1].working, changes[-1].awaited
        old, self._held = [*self.engine.stop(), *self._held], []
        self.engines.append(self._start(self.working))
        self.engine.on_answer = self._done
        for request in old:
            if request.index in self.toll.reasons:
                self._drop(request)
            else:
                self.submit(request)
