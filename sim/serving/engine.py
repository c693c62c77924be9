"""One engine in time: requests arrive, its scheduler plans steps, each takes what it costs.

SimPy carries arrivals and steps. Up to `depth` steps are planned ahead: with two, as in vLLM's
asynchronous scheduling, a step is planned when the one before the last one ends, so that the
device never waits for the host, and a request waits for the step that is planned already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import simpy

from opbyte.core.errors import SimulationError
from opbyte.core.ops import Array
from opbyte.sim.serving.arrivals import feed
from opbyte.sim.serving.clock import ENDS, PLANS, Clock
from opbyte.sim.serving.contents import LowerTiers
from opbyte.sim.serving.many.residents import Beside
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import TRAFFIC, attend, forget
from opbyte.sim.serving.prices.step import Prices, check_divided, flat_cost, masks_of
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import Plan, Scheduler
from opbyte.sim.serving.speculation import Drafter, check_depth, check_guessing
from opbyte.sim.serving.stamped import compiled
from opbyte.sim.serving.tally import Tally
from opbyte.sim.serving.transfers import LinkPrice, Transfers


@dataclass
class Series:
    """What every step found when it ended: lists of equal length."""

    end_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)


class Step(NamedTuple):
    """A step that is planned or under way, and what it costs.

    Attributes:
        start, end: Seconds.
        tokens: That are computed to the last layer.
        held: Busy seconds of each resource, then bytes of each class of `TRAFFIC`.
        joules: Dynamic energy.
        counts: Requests running and waiting and blocks in use when it was planned.
    """

    start: float
    end: float
    plan: Plan
    tokens: int
    held: Array
    joules: float
    counts: tuple[int, int, int]


class Engine:
    """A scheduler, its memory and a device.

    Attributes:
        series: What steps found when they ended.
        busy: Busy seconds of each resource of the prices, (resources,).
        traffic: Bytes of each class of `TRAFFIC` that steps read, NaN where prices have none.
        joules: Of all steps.
        tally: Gaps between tokens, and how long how much was waiting and in use.
        decodes, decoded: Steps of requests after their first tokens, and tokens that came of them.
        on_answer: Called with a request whose last token is there, before its blocks are let go.
        on_step: Called when a step has ended, before the next one is planned.
        number: Of several engines whose steps end at once, the smallest comes first.
        stopped: It does nothing any more.
    """

    def __init__(
        self,
        env: Clock,
        scheduler: Scheduler,
        prices: Prices,
        *,
        depth: int = 1,
        drafter: Drafter | None = None,
        below: Transfers | None = None,
        beside: Beside | None = None,
        contents: LowerTiers | None = None,
        budget: int = 0,
    ) -> None:
        """Start an idle engine.

        Args:
            depth: Steps that are planned or under way at once.
            drafter: Model that guesses; None where nothing is guessed, or guesses cost nothing.
            below: The way to the tier below the cache, if the scheduler's pool has one.
            beside: What steps cost beside the model, if anything.
            contents: Tiers below the cache that the scheduler's pool looks into.
            budget: Tokens of a sequence that the cache keeps at most, 0 for all: what a step
                computes attends to no more of those before it.
        Raises:
            UncoveredError: If the prices do not cover the scheduler's limits, or guesses are
                planned upon before it is known which of them hold.
        """
        limits = scheduler.limits
        if limits.guesses:
            check_depth(depth)
        check_divided(prices, needed=scheduler.divides)
        check_guessing(prices, drafter.prices if drafter else None, limits)
        self.env, self.scheduler, self.prices, self.depth = env, scheduler, prices, depth
        self.drafter = drafter
        self.decodes = self.decoded = 0
        self.below, self.beside = below, beside
        self.contents, self.budget = contents, budget
        self.series = Series()
        self._held = np.zeros(len(prices.resources) + len(TRAFFIC))
        self.busy, self.traffic = np.split(self._held, [len(prices.resources)])
        self.joules = 0.0
        self._running_s = 0.0
        self.tally = Tally(used=np.zeros(scheduler.pool.total + 1))
        self.on_answer: Callable[[Request], None] = _ignore
        self.on_step: Callable[[], None] = _nothing
        self.number, self.stopped = 0, False
        self._cost, self._masks = compiled(flat_cost), masks_of(prices)
        self._flight: deque[Step] = deque()
        self._free_at = self._ended = 0.0
        self._left: dict[Request, int] = {}
        self._answered: dict[Request, simpy.Event] = {}
        self._due: simpy.Event | None = None
        self._closed: Callable[[], None] | None = None
        self._waits = False
        self._new = np.zeros(limits.max_sequences)
        self._past = np.zeros(limits.max_sequences)

    def answer(self, request: Request) -> simpy.Event:
        """Return what happens when the request has its last token."""
        event = self.env.event()
        if request in self._left:
            self._answered[request] = event
        else:
            event.succeed()
        return event

    def submit(self, request: Request) -> None:
        """Let a request arrive now; one that can never be served is given a reason instead."""
        request.reason = self.scheduler.refusal(request)
        if request.reason:
            return
        self._left[request] = request.output - request.sampled
        self.scheduler.add(request)
        self.poke()

    def resume(self, request: Request) -> None:
        """Let a request go on whose blocks hold what was computed elsewhere."""
        self._left[request] = request.output - request.sampled
        self.scheduler.resume(request)
        self.poke()

    @property
    def means(self) -> Array:
        """Return requests running and waiting and blocks in use, times seconds of steps, (3,)."""
        return np.array([self._running_s, *self.tally.sums])

    @property
    def planned_until(self) -> float:
        """Return when all steps have ended that are planned, seconds."""
        return self._free_at

    @property
    def outstanding(self) -> int:
        """Return the requests that have come and are not answered."""
        return len(self._left)

    @property
    def unanswered(self) -> list[Request]:
        """Return them, in the order in which they came."""
        return list(self._left)

    def close(self, then: Callable[[], None], *, ends: bool) -> None:
        """Plan no more steps, and call when nothing runs any more.

        Args:
            ends: The step under way ends first. Steps that are planned behind it are given up.
        """
        self._closed = then
        while ends and len(self._flight) > 1:
            self._free_at = self._flight.pop().start
        if not ends or not self._flight:
            then()

    def stop(self) -> list[Request]:
        """Stop for ever; return what is not answered, without blocks, in the order it came.

        Steps under way are lost, and their tokens with them; what they cost until now is counted.
        """
        self.stopped = True
        for step in self._flight:
            if step.start < self.env.now:
                self._book(step, (self.env.now - step.start) / (step.end - step.start))
        for request, left in self._left.items():
            request.preempted += bool(request.blocks)
            request.blocks = []
            request.computed = request.known = 0
            request.sampled = request.output - left
        return self.unanswered

    def poke(self) -> None:
        """Plan a step if one may be planned: there are new requests, or free blocks.

        It is planned when all that happens now has happened.
        """
        if len(self._flight) < self.depth and self._due is None:
            self._due = self.env.at(self.env.now, PLANS)
            _then(self._due, self._plan)

    def _plan(self, event: simpy.Event) -> None:
        # A step that ended at the same moment was followed by a plan.
        if event is self._due and not self.stopped and self._closed is None:
            self._fill()

    def _fill(self) -> None:
        """Plan as many steps as may be under way, and wait for the end of the first of them."""
        flight = self._flight
        while len(flight) < self.depth and self._start():
            pass
        self._due = None
        if flight and not self._waits:
            self._waits = True
            _then(self.env.at(flight[0].end, ENDS + self.number), self._ended_first)

    def _ended_first(self, event: simpy.Event) -> None:
        del event
        if not self.stopped:
            self._waits = False
            self._end(self._flight.popleft())
            if self._closed is None:
                self._fill()
            else:
                self._closed()

    def _start(self) -> bool:
        """Plan a step and put it behind those under way; return False if there is nothing to do."""
        plan = self.scheduler.plan()
        self._move(plan)
        if not plan.pieces:
            return False
        now, pieces, decodes, context, logits = self.env.now, 0, 0, 0, 0
        group, groups, read = 0, 0, 0
        masks, budget = self._masks, self.budget
        masked = len(masks) > 0
        if masked:
            forget(masks)
        for piece in plan.pieces:
            request, new, past, samples, depth, layers = piece
            if request.scheduled_s < 0.0:
                request.scheduled_s = now
            if budget:
                past = min(past, budget)
            if layers is None and new == 1:
                decodes += 1
                seen = min(past + 1, budget) if budget else past + 1
                context += seen
                if masked:
                    attend(masks, float(seen))
            else:
                self._new[pieces], self._past[pieces] = new, past
                pieces += 1
                read += piece.tokens
                if layers is not None:
                    group, groups = layers
                # All tokens of who verifies guesses need logits.
                logits += new - 1 if depth else 0
            if samples and samples < request.sampled:
                self.decodes, self.decoded = self.decodes + 1, self.decoded + samples
        held = np.zeros(len(self._held))
        batch = Batch(
            self._new, self._past, pieces, float(decodes), float(context), float(logits),
            group, groups,
        )  # fmt: skip
        seconds, joules = self._cost(self.prices.table, held, *batch)
        if self.drafter is not None:
            drafted = self.drafter.cost(plan.pieces, plan.preempted)
            seconds, joules = seconds + drafted[0], joules + drafted[1]
        start = max(now, self._free_at)
        if self.beside is not None:
            busy = held[: len(self.busy)]
            seconds, joules = self.beside.step(plan, start, seconds, joules, busy)
        self._free_at = start + seconds
        counts = (*self.scheduler.counts, self._used())
        tokens = decodes + read
        self._flight.append(Step(start, self._free_at, plan, tokens, held, joules, counts))
        return True

    def _book(self, step: Step, share: float = 1.0) -> None:
        """Count what a step cost, or the share of it that was executed."""
        self._held += share * step.held
        self.joules += share * step.joules
        seconds = share * (step.end - step.start)
        running, waiting, used = step.counts
        self._running_s += seconds * running
        self.tally.add_step(seconds, waiting, used)

    def _move(self, plan: Plan) -> None:
        """Send blocks to the tier below, once the steps under way have written them, and back."""
        if not plan.outs and not plan.ins:
            return
        if self.contents is not None:
            for request in plan.ins:
                back = partial(self._moved, request, self.scheduler.back)
                self.contents.load(request.fetch, back)
            return
        if self.below is None:
            raise SimulationError("a scheduler moves blocks to a tier below, and there is none")
        written = max(self.env.now, self._free_at)
        for request in plan.outs:
            self.below.send(
                request.below, written, partial(self._moved, request, self.scheduler.gone),
                down=True,
            )  # fmt: skip
        for request in plan.ins:
            self.below.send(
                request.below, self.env.now, partial(self._moved, request, self.scheduler.back)
            )

    def _moved(self, request: Request, note: Callable[[Request], None]) -> None:
        note(request)
        self.poke()

    def _save(self, contents: LowerTiers, plan: Plan) -> None:
        """Send the blocks that a step has filled down."""
        size = self.scheduler.pool.tokens
        for piece in plan.pieces:
            before, full = piece.past // size, (piece.past + piece.new) // size
            if full > before:
                contents.save([piece.request.key(i) for i in range(full)], before)

    def _used(self) -> int:
        return self.scheduler.pool.total - self.scheduler.pool.free

    def _end(self, step: Step) -> None:
        """Hand out the tokens of a step."""
        self._book(step)
        end, plan = step.end, step.plan
        if self.contents is not None:
            self._save(self.contents, plan)
        before, regular, at_once = self._ended, 0, 0
        self._ended = end
        left_of = self._left
        for request, _, _, samples, _, _ in plan.pieces:
            if not samples:
                continue
            if request.token_s == before:
                regular += 1
            elif request.first_token_s < 0.0:
                request.first_token_s = end
            else:
                self.tally.add_gap(end - request.token_s)
            request.token_s = end
            at_once += samples - 1
            left = left_of[request] - samples
            if left:
                left_of[request] = left
            else:
                request.last_token_s = end
                del left_of[request]
                self.on_answer(request)
                self.scheduler.finish(request)
                if request in self._answered:
                    self._answered.pop(request).succeed()
        if regular:
            self.tally.add_gap(end - before, regular)
        if at_once:
            self.tally.add_gap(0.0, at_once)
        series = self.series
        series.end_s.append(end)
        series.tokens.append(step.tokens)
        running, waiting = self.scheduler.counts
        series.running.append(running)
        series.waiting.append(waiting)
        series.free.append(self.scheduler.pool.free)
        series.preempted.append(len(plan.preempted))
        self.on_step()


def _ignore(request: Request) -> None:
    """Do nothing about an answer."""


def _nothing() -> None:
    """Do nothing after a step."""


def _then(event: simpy.Event, do: Callable[[simpy.Event], None]) -> None:
    """Call when something happens."""
    assert event.callbacks is not None
    event.callbacks.append(do)


def serve(
    requests: Sequence[Request],
    scheduler: Scheduler,
    prices: Prices,
    *,
    depth: int = 1,
    drafter: Drafter | None = None,
    link: LinkPrice | None = None,
) -> Series:
    """Let requests arrive at one engine, in the order of their arrival, and run to the end.

    Times are set in the requests.
    """
    env = Clock()
    below = Transfers(env, link) if link is not None else None
    engine = Engine(env, scheduler, prices, depth=depth, drafter=drafter, below=below)
    feed(engine, requests)
    env.run()
    return engine.series
