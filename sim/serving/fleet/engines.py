"""Several engines under one clock: a router shares out requests, engines fail and return."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import simpy

from opbyte.core.errors import SimulationError
from opbyte.sim.serving.clock import COMES, Clock
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.fleet.routers import Router
from opbyte.sim.serving.requests import Request


class Replica:
    """A place for an engine: a failure ends the one that is there, a return starts another.

    Attributes:
        number: Which place it is.
        engines: All that were there, the last one last.
        up: Whether the last one works.
        promised: Requests that are on their way to it from another engine.
    """

    def __init__(self, number: int, start: Callable[[], Engine]) -> None:
        """Start an engine.

        Args:
            start: Returns an idle engine.
        """
        self.number, self._start = number, start
        self.engines: list[Engine] = []
        self.promised = 0
        self.come_back()

    @property
    def engine(self) -> Engine:
        """Return the engine that is there now, or was before it failed."""
        return self.engines[-1]

    @property
    def outstanding(self) -> int:
        """Return the requests that were given to it and are not answered."""
        return self.engine.outstanding + self.promised

    @property
    def free_blocks(self) -> int:
        """Return the blocks of its KV cache that nobody holds."""
        return self.engine.scheduler.pool.free

    @property
    def idle(self) -> bool:
        """Return whether no request is at it, and none keeps blocks there."""
        return not self.outstanding and self.free_blocks == self.engine.scheduler.pool.total

    def fail(self) -> list[Request]:
        """Stop; return who is not answered, in the order in which they came."""
        self.up = False
        return self.engine.stop()

    def come_back(self) -> None:
        """Start an engine, empty."""
        self.engines.append(self._start())
        self.engine.number = self.number
        self.up = True


class Group:
    """Replicas that a router chooses from."""

    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        """Start with all replicas up."""
        self.replicas, self.router = list(replicas), router
        self._up = self.replicas

    def choose(self, request: Request) -> Replica | None:
        """Return who takes a request, None where nobody works.

        Raises:
            SimulationError: If the router names none that works.
        """
        if not self._up:
            return None
        number = self.router.choose(request, self._up)
        for replica in self._up:
            if replica.number == number:
                return replica
        router = type(self.router).__name__
        raise SimulationError(f"'{router}' breaks its contract: replica {number!r} is not up")

    def changed(self, replica: Replica) -> None:
        """Note that a replica has failed or returned."""
        self._up = [one for one in self.replicas if one.up]
        if not replica.up:
            self.router.forget(replica.number)


class Fleet:
    """Equal engines that serve requests together.

    Attributes:
        replicas: All of them.
        where: Who gave, or will give, each request its last token.
        idle_failures: Failures of engines that nobody was at.
    """

    def __init__(self, env: Clock, start: Callable[[], Engine], count: int, router: Router) -> None:
        """Start idle engines.

        Args:
            start: Returns an idle engine.
        """
        self.env = env
        self.replicas = [Replica(i, start) for i in range(count)]
        self.group = Group(self.replicas, router)
        self.where: dict[Request, int] = {}
        self.idle_failures = 0
        self._answered: dict[Request, simpy.Event] = {}
        #: What waits because no replica works.
        self._held: list[Callable[[], None]] = []
        for replica in self.replicas:
            self._listen(replica)

    def submit(self, request: Request) -> None:
        """Let a request arrive now; one that can never be served is given a reason instead."""
        request.reason = self.replicas[0].engine.scheduler.refusal(request)
        if not request.reason:
            self._route(request)

    def answer(self, request: Request) -> simpy.Event:
        """Return what happens when the request has its last token."""
        event = self.env.event()
        if request.reason or request.last_token_s >= 0.0:
            event.succeed()
        else:
            self._answered[request] = event
        return event

    def fail(self, number: int, at: float, seconds: float) -> None:
        """Let a replica fail at a time, and return empty after so many seconds."""
        replica = self.replicas[number]

        def fails() -> Generator[simpy.Event, Any, None]:
            yield self.env.at(at, COMES)
            self.idle_failures += replica.idle
            lost = replica.fail()
            self._changed(replica)
            self._lost(replica, lost)
            yield self.env.at(at + seconds, COMES)
            replica.come_back()
            self._listen(replica)
            self._changed(replica)
            held, self._held = self._held, []
            for again in held:
                again()

        self.env.process(fails())

    def _route(self, request: Request) -> None:
        """Give a request to an engine."""
        replica = self.group.choose(request)
        if replica is None:
            self._held.append(partial(self._route, request))
            return
        self.where[request] = replica.number
        replica.engine.submit(request)

    def _listen(self, replica: Replica) -> None:
        """Hear of what a new engine does."""
        replica.engine.on_answer = self._done

    def _done(self, request: Request) -> None:
        if request in self._answered:
            self._answered.pop(request).succeed()

    def _changed(self, replica: Replica) -> None:
        self.group.changed(replica)

    def _lost(self, replica: Replica, lost: Sequence[Request]) -> None:
        """Send those elsewhere who were at a replica that failed."""
        del replica
        for request in lost:
            self._route(request)
