"""Requests arrive at an engine or a fleet: at their times, or from clients that wait."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import simpy

from opbyte.core.ops import Array
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.requests import Request
from opbyte.workloads.traces import RequestTrace


class Asked(Protocol):
    """Whom requests arrive at: an engine, or a fleet of them."""

    env: Clock

    def submit(self, request: Request) -> None:
        """Let a request arrive now."""

    def answer(self, request: Request) -> simpy.Event:
        """Return what happens when the request has its last token."""


def ask(engine: Asked, requests: list[Request], trace: RequestTrace) -> None:
    """Let the requests of a trace arrive: at their times, or from clients that wait for answers."""
    if trace.client is None:
        feed(engine, requests)
        return
    # Whoever is free takes the next one.
    queue = iter(requests)
    for _ in range(min(trace.client.concurrency, len(trace))):
        engine.env.process(_client(engine, queue, trace.client.think_s))


def feed(engine: Asked, requests: Sequence[Request]) -> None:
    """Let requests arrive at an engine, in the order of their arrival."""
    env = engine.env

    def arrivals() -> Generator[simpy.Event, Any, None]:
        for request in requests:
            if request.arrival > env.now:
                yield env.at(request.arrival, first=True)
            engine.submit(request)

    env.process(arrivals())


def _client(
    engine: Asked, requests: Iterator[Request], think_s: Array
) -> Generator[simpy.Event, Any, None]:
    """Think, ask, and wait for the answer, as long as there are requests."""
    for request in requests:
        yield engine.env.timeout(float(think_s[request.index]))
        request.arrival = engine.env.now
        engine.submit(request)
        yield engine.answer(request)
