"""Prefill and decode on engines of their own: KV caches go from one pool to the other.

A prompt is read by an engine of the first pool, which gives the first token and keeps the blocks.
An engine of the second pool fetches what is in them as soon as it has blocks for it, and gives all
later tokens; then the first one lets go of its own (vLLM's connectors, DistServe).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simpy

from opbyte.core.ops import Array
from opbyte.sim.serving.clock import COMES, Clock
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.fleet.engines import Fleet, Group, Replica
from opbyte.sim.serving.fleet.link import Wire
from opbyte.sim.serving.fleet.routers import Router
from opbyte.sim.serving.requests import Request


@dataclass(eq=False)
class Transfer:
    """A request between two engines.

    Attributes:
        request: Who is on the way.
        source: Number of the engine that read its prompt, and ..
        engine: .. that engine.
        held: Blocks that it keeps there.
        taken: Blocks that it has at the other end; empty while it waits for them.
        lost: One of the ends has failed.
    """

    request: Request
    source: int
    engine: Engine
    held: list[int]
    taken: list[int] = field(default_factory=list)
    lost: bool = False

    def leave(self) -> None:
        """Let go of the blocks at the source."""
        self.engine.scheduler.pool.give(self.held)
        self.engine.poke()


class Pools(Fleet):
    """Engines that read prompts, numbered first, and engines that go on from there.

    Attributes:
        prefill: Who read each request's prompt last.
        moved: Bytes of each request's KV cache that were sent, by row of the trace.
        wire: The way.
    """

    def __init__(
        self,
        env: Clock,
        start: Callable[[], Engine],
        counts: tuple[int, int],
        routers: tuple[Router, Router],
        wire: Wire,
        sizes: tuple[float, float],
        requests: int,
    ) -> None:
        """Start idle engines.

        Args:
            start: Returns an idle engine.
            counts: Engines that prefill, and that decode.
            routers: Of each pool.
            sizes: Bytes of a block, and of the state that a sequence has whatever its length.
            requests: Rows of the trace.
        """
        self._readers = counts[0]
        super().__init__(env, start, sum(counts), routers[0])
        self.group = Group(self.replicas[: counts[0]], routers[0])
        self.decoders = Group(self.replicas[counts[0] :], routers[1])
        self.wire, self._sizes = wire, sizes
        self.prefill: dict[Request, int] = {}
        self.moved: Array = np.zeros(requests)
        self._asked: dict[Request, Request] = {}
        self._queues: list[deque[Transfer]] = [deque() for _ in self.replicas]
        self._under_way: list[list[Transfer]] = [[] for _ in self.replicas]

    def _listen(self, replica: Replica) -> None:
        """Hear of what a new engine does."""
        if replica.number < self._readers:
            replica.engine.on_answer = partial(self._was_read, replica)
        else:
            replica.engine.on_answer = self._done
            replica.engine.on_step = partial(self._fetch, replica)

    def _route(self, request: Request) -> None:
        """Let a prompt, and the part of an answer that is known, be read for one more token."""
        reading = Request(
            request.index, request.arrival, request.target, 1, request.shared,
            client=request.client, priority=request.priority,
        )  # fmt: skip
        self._asked[reading] = request
        self._read(reading)

    def _read(self, reading: Request) -> None:
        replica = self.group.choose(reading)
        if replica is None:
            self._held.append(partial(self._read, reading))
            return
        request = self._asked[reading]
        self.prefill[request] = self.where[request] = replica.number
        replica.engine.submit(reading)

    def _was_read(self, replica: Replica, reading: Request) -> None:
        """Hand out the token that a prefill gives, and send the request on."""
        request, now = self._asked.pop(reading), self.env.now
        if request.first_token_s < 0.0:
            request.scheduled_s, request.first_token_s = reading.scheduled_s, now
        else:
            replica.engine.tally.add_gap(now - request.token_s)
        request.token_s = now
        request.preempted += reading.preempted
        request.sampled += 1
        if request.sampled == request.output:
            request.last_token_s = now
            self._done(request)
        elif reading.blocks:
            replica.engine.scheduler.pool.hold(reading.blocks)
            self._send(Transfer(request, replica.number, replica.engine, list(reading.blocks)))
        else:
            # Another prompt took its blocks while its token was under way.
            self._route(request)

    def _send(self, transfer: Transfer) -> None:
        """Queue at an engine that goes on from here."""
        if transfer.engine.stopped:
            # It failed while none that could go on worked.
            transfer.request.preempted += 1
            self._route(transfer.request)
            return
        target = self.decoders.choose(transfer.request)
        if target is None:
            self._held.append(partial(self._send, transfer))
            return
        target.promised += 1
        self.where[transfer.request] = target.number
        self._queues[target.number].append(transfer)
        self._fetch(target)

    def _fetch(self, target: Replica) -> None:
        """Start the transfers that an engine has blocks for; who lost its blocks there is first."""
        scheduler, queue = target.engine.scheduler, self._queues[target.number]
        pool, under_way = scheduler.pool, self._under_way[target.number]
        while queue and not scheduler.waiting:
            request = queue[0].request
            need = pool.needed(request.target)
            if need > pool.free:
                return
            if len(scheduler.running) + len(under_way) >= scheduler.limits.max_sequences:
                return
            transfer = queue.popleft()
            transfer.taken = pool.take(need)
            under_way.append(transfer)
            of_block, of_state = self._sizes
            # The next token is not computed: it has a place, and nothing to send.
            size = pool.needed(request.target - 1) * of_block + of_state
            self.moved[request.index] += size
            end = self.wire.send(self.env.now, transfer.source, target.number, size)
            arrival = self.env.at(end, COMES)
            arrival.callbacks.append(partial(self._arrive, target, transfer))

    def _arrive(self, target: Replica, transfer: Transfer, event: simpy.Event) -> None:
        """Let a request go on where its cache has come to."""
        del event
        if transfer.lost:
            return
        self._under_way[target.number].remove(transfer)
        target.promised -= 1
        transfer.leave()
        request = transfer.request
        request.blocks, request.known = transfer.taken, 0
        request.computed = request.target - 1
        target.engine.resume(request)

    def _changed(self, replica: Replica) -> None:
        (self.group if replica.number < self._readers else self.decoders).changed(replica)

    def _lost(self, replica: Replica, lost: Sequence[Request]) -> None:
        if replica.number < self._readers:
            self._lost_source(replica)
            for reading in lost:
                self._read(reading)
            return
        for request in lost:
            self._route(request)
        waiting, under_way = self._queues[replica.number], self._under_way[replica.number]
        self._queues[replica.number], self._under_way[replica.number] = deque(), []
        replica.promised = 0
        for transfer in (*under_way, *waiting):
            # What was read is still there.
            transfer.lost = True
            self._send(Transfer(transfer.request, transfer.source, transfer.engine, transfer.held))

    def _lost_source(self, replica: Replica) -> None:
        """Read those again whose cache was still at the engine that had read it."""
        for target in self.decoders.replicas:
            queue, under_way = self._queues[target.number], self._under_way[target.number]
            for transfer in (*under_way, *queue):
                if transfer.source != replica.number:
                    continue
                transfer.lost = True
                (under_way if transfer.taken else queue).remove(transfer)
                target.promised -= 1
                target.engine.scheduler.pool.give(transfer.taken)
                transfer.request.preempted += 1
                self._route(transfer.request)
            self._fetch(target)
            target.engine.poke()
