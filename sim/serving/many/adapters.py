"""Adapters of an engine: requests wait until theirs is in the fast memory, and what steps cost.

S-LoRA (arXiv 2311.03285) keeps all adapters in the host's memory and copies those that requests
wait for while steps run; vLLM keeps as many as `max_loras` and lets no step have more.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.sim.phases import run_phase, total
from opbyte.sim.place import Placer
from opbyte.sim.serving.many.residents import Shelf
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import Plan, Scheduler
from opbyte.workloads.adapter_step import adapter_phase
from opbyte.workloads.model import Model
from opbyte.workloads.model_set import Adapter


class Gate(Scheduler):
    """A scheduler behind a gate that opens to a request when its adapter is there.

    Adapters of requests that are past the gate and not answered stay; of the others the one that
    was used longest ago leaves when another comes. Any scheduler can be behind the gate: it never
    hears of adapters.

    Attributes:
        inner: The scheduler behind.
        waiting: Requests at the gate, in the order in which they came.
        wake: Called when a copy has come: a step may be planned.
    """

    def __init__(
        self, inner: Scheduler, shelf: Shelf, *, distinct: int, prefetch: bool, overtake: bool
    ) -> None:
        """Start without requests.

        Args:
            distinct: Most adapters of requests past the gate.
            prefetch: Copies are asked for at once, not when a request is next in line.
            overtake: Requests whose adapter is there pass those that wait for theirs.
        """
        super().__init__(inner.limits, inner.pool)
        self.inner, self.shelf = inner, shelf
        self.running = inner.running
        self.distinct, self.prefetch, self.overtake = distinct, prefetch, overtake
        self.wake: Callable[[], None] = _nothing
        self._fresh: deque[Request] = deque()
        self._asked: dict[Request, float] = {}
        self._promised: set[Request] = set()
        self._active: Counter[int] = Counter()
        self._moved = False

    @property
    def counts(self) -> tuple[int, int]:
        """Return the requests that run and wait, at the gate and behind it."""
        running, waiting = self.inner.counts
        return running, waiting + len(self.waiting) + len(self._fresh)

    def refusal(self, request: Request) -> str:
        """Return why a request can never be served, empty where it can."""
        return self.inner.refusal(request)

    def add(self, request: Request) -> None:
        """Let a request come to the gate."""
        if request.adapter < 0:
            self.inner.add(request)
            return
        self._fresh.append(request)

    def plan(self) -> Plan:
        """Open the gate, and return the next step of the scheduler behind it."""
        if self._moved or not self.prefetch:
            # Those who could not pass may now.
            before, self.waiting = self.waiting, deque()
            self._open(before)
        self._open(self._fresh)
        self._moved = False
        return self.inner.plan()

    def finish(self, request: Request) -> None:
        """Forget a request whose last token is there."""
        self.inner.finish(request)
        if request.adapter < 0:
            return
        self.shelf.release(request.adapter)
        self._active[request.adapter] -= 1
        if not self._active[request.adapter]:
            del self._active[request.adapter]
            self._moved = True

    def _open(self, line: deque[Request]) -> None:
        """Let pass who may, and ask for copies for the others, in the order in which they came."""
        seats = self._seats(len(line))
        while line and seats > 0:
            request = line.popleft()
            seats -= 1
            self._ask(request)
            if (self.overtake or not self.waiting) and self._may_pass(request.adapter):
                self._pass(request)
            else:
                self.waiting.append(request)
        self.waiting.extend(line)
        line.clear()

    def _seats(self, line: int) -> int:
        """Return how many requests are looked at: without prefetch those that are next in line."""
        if self.prefetch:
            return line
        running, waiting = self.inner.counts
        return self.limits.max_sequences - running - waiting - len(self.waiting)

    def _ask(self, request: Request) -> None:
        """Ask for a request's adapter; once it has a slot it stays for the request."""
        shelf, name = self.shelf, request.adapter
        if request not in self._asked:
            self._asked[request] = shelf.env.now
            shelf.copied.asked += 1
            shelf.copied.hits += shelf.there(name)
        # Nobody takes a slot from those in front who may not be passed.
        turn = self.overtake or not self.waiting or self.waiting[-1] in self._promised
        if turn and request not in self._promised and shelf.ask(name, self._arrived):
            shelf.hold(name)
            self._promised.add(request)

    def _may_pass(self, name: int) -> bool:
        room = name in self._active or len(self._active) < self.distinct
        return room and self.shelf.there(name)

    def _pass(self, request: Request) -> None:
        self.shelf.copied.waited_s += self.shelf.env.now - self._asked.pop(request)
        self._promised.discard(request)
        self._active[request.adapter] += 1
        self.inner.add(request)

    def _arrived(self) -> None:
        self._moved = True
        self.wake()


def _nothing() -> None:
    """Do nothing about a copy."""


class AdapterPrices:
    """What adapters cost in a step, priced by the machine's own models of grouped products.

    Tokens are spread evenly over the step's adapters, whose products follow those of the model.
    """

    def __init__(self, placer: Placer, model: Model, adapter: Adapter, most: int) -> None:
        """Price nothing yet.

        Args:
            placer: Of the mapping by which steps run.
            most: Tokens of the largest step.
        """
        mapping = placer.mapping.model_copy(update={"host": None})
        self._placer = Placer(placer.machine, mapping)
        self._model, self._adapter, self._most = model, adapter, most
        self._known: dict[int, tuple[Array, Array, dict[str, Array]]] = {}

    def cost(self, tokens: int, distinct: int) -> tuple[float, float, Mapping[str, float]]:
        """Return seconds, joules of all devices, and busy seconds of each resource.

        Args:
            tokens: Of requests with an adapter.
            distinct: Adapters of those.
        """
        if distinct not in self._known:
            self._known[distinct] = self._priced(distinct)
        seconds, joules, busy = self._known[distinct]
        at = tokens - distinct
        return float(seconds[at]), float(joules[at]), {n: float(b[at]) for n, b in busy.items()}

    def _priced(self, distinct: int) -> tuple[Array, Array, dict[str, Array]]:
        """Price every number of tokens beside so many adapters."""
        placer, degrees = self._placer, self._placer.mapping.degrees
        tokens = np.arange(distinct, max(self._most, distinct) + 1, dtype=np.float64)
        phase = adapter_phase(self._model, self._adapter, tokens, float(distinct), degrees)
        with np.errstate(divide="ignore", invalid="ignore"):
            run = run_phase(placer, phase, "analytic")
        if not np.isfinite(run.step.seconds).all():
            raise UncoveredError(
                f"{placer.machine.name}: adapters take for ever: a rate that they need is 0"
            )

        def wide(values: Array) -> Array:
            return np.broadcast_to(values, tokens.shape)

        joules = total(run.demand, run.demand.joules) * degrees.tp
        busy = {name: wide(values) for name, values in run.step.busy.items()}
        return wide(run.step.seconds), wide(joules), busy
