"""Several models of one shape on one engine: whose turn it is, and copies of their weights.

A Composition of Experts served as its requests come: each model has a scheduler of its own, all
share the KV cache, and a step serves one of them. Weights that are not in the fast memory are
copied there before their turn begins.
"""

from __future__ import annotations

from collections.abc import Callable

from opbyte.sim.serving.many.residents import Shelf
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import Plan, Scheduler
from opbyte.workloads.residents import Models


class Turns(Scheduler):
    """Schedulers of several models, one of which plans steps at a time.

    A turn ends when nobody waits for its model, or after the quantum, if there are requests for
    others. The next model is copied from below unless it is there; the one that had no turn for
    the longest time leaves. With `ahead` the old turn goes on until the copy has come, where
    there are slots for both; otherwise the copy begins when the planned steps have ended.

    Attributes:
        current: Model that has the turn, None while nothing can run.
        wake: Called when a copy has come: a step may be planned.
        planned_until: Gives the time when all planned steps have ended.
    """

    def __init__(
        self, make: Callable[[], Scheduler], shelf: Shelf, models: Models, *, ahead: bool
    ) -> None:
        """Start without requests.

        Args:
            make: Gives a scheduler; all of them have the same pool.
            ahead: The next model is copied while another one runs.
        """
        self._rules = make()
        super().__init__(self._rules.limits, self._rules.pool)
        self._make, self.shelf, self._models = make, shelf, models
        self._ahead = ahead and shelf.lru.capacity > 1
        self._of: dict[int, Scheduler] = {}
        self._open: dict[int, dict[Request, None]] = {}
        #: Models that could plan nothing since blocks were free last.
        self._stuck: set[int] = set()
        self.current: int | None = None
        self._coming: int | None = None
        self._asked_s = self._began_s = 0.0
        self.wake: Callable[[], None] = _nothing
        self.planned_until: Callable[[], float] = _never

    @property
    def counts(self) -> tuple[int, int]:
        """Return the requests that hold blocks and that wait, of all models."""
        each = [self._of[name].counts for name in self._open]
        return sum(running for running, _ in each), sum(waiting for _, waiting in each)

    def refusal(self, request: Request) -> str:
        """Return why a request can never be served, empty where it can."""
        return self._rules.refusal(request)

    def add(self, request: Request) -> None:
        """Let a request wait for its model."""
        name = request.model
        if name not in self._of:
            self._of[name] = self._make()
        self._open.setdefault(name, {})[request] = None
        self._stuck.clear()
        self._of[name].add(request)

    def plan(self) -> Plan:
        """Return the next step of the model that has the turn."""
        self._turn()
        plan = self._step()
        while not plan.pieces and self.current is not None:
            # Others have the blocks that it needs, or all that it has is under way.
            if plan.preempted:
                self._stuck.clear()
            self._stuck.add(self.current)
            before = self.current
            self._turn()
            if self.current in (None, before):
                return plan
            plan = self._step()
        if plan.pieces:
            self._stuck.clear()
        return plan

    def finish(self, request: Request) -> None:
        """Forget a request whose last token is there."""
        self._of[request.model].finish(request)
        self._stuck.clear()
        left = self._open[request.model]
        del left[request]
        if not left:
            del self._open[request.model]

    def _step(self) -> Plan:
        return Plan() if self.current is None else self._of[self.current].plan()

    def _turn(self) -> None:
        """Give the turn to another model if it is due."""
        if self._coming is not None:
            if self.shelf.there(self._coming):
                self._begin(self._coming)
            return
        now, quantum = self.shelf.env.now, self._models.quantum.value
        if self._wants(self.current) and now - self._began_s < quantum:
            return
        others = [name for name in self._open if name != self.current and self._wants(name)]
        if others:
            self._give(self._chosen(others), now)

    def _wants(self, name: int | None) -> bool:
        """Return whether a model has something to compute, and may have the blocks for it."""
        if name is None or name not in self._open or name in self._stuck:
            return False
        of = self._of[name]
        return bool(of.waiting) or any(request.left for request in of.running)

    def _chosen(self, names: list[int]) -> int:
        """Return the model whose turn is next; of equals the smallest number."""
        if self._models.policy == "longest":
            return min(names, key=lambda n: (-len(self._open[n]), n))
        return min(names, key=lambda n: (next(iter(self._open[n])).arrival, n))

    def _give(self, name: int, now: float) -> None:
        """Let a model have the turn, at once or when it is there."""
        shelf, before = self.shelf, self.current
        self._asked_s = now
        shelf.copied.asked += 1
        if shelf.there(name):
            shelf.copied.hits += 1
            self._begin(name)
            return
        self._coming = name
        if self._ahead and before is not None:
            shelf.hold(before)
            shelf.ask(name, self._wake)
            shelf.release(before)
        else:
            self._leave()
            shelf.ask(name, self._wake, self.planned_until())

    def _begin(self, name: int) -> None:
        """Begin a model's turn."""
        shelf = self.shelf
        if self.current is not None and self.current != name:
            self._leave()
        shelf.copied.waited_s += shelf.env.now - self._asked_s
        shelf.copied.switches += 1
        shelf.lru.touch(name)
        self.current, self._coming, self._began_s = name, None, shelf.env.now

    def _leave(self) -> None:
        """End the turn; with `drop` its requests lose their blocks."""
        if self.current is None:
            return
        of = self._of[self.current]
        if self._models.kv == "drop" and of.running:
            of.drop()
            self._stuck.clear()
        self.current = None

    def _wake(self) -> None:
        self.wake()


def _nothing() -> None:
    """Do nothing about a copy."""


def _never() -> float:
    """Return a time before all others."""
    return 0.0
