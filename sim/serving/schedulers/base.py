"""Schedulers: who computes how many tokens in the next step. They never ask what it costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

from opbyte.core.errors import UncoveredError
from opbyte.core.registry import Registry
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.speculation import Guesses
from opbyte.workloads.serve import Grouping


class Group(NamedTuple):
    """One of several contiguous groups of layers, which together are the model.

    Attributes:
        number: Which one, the first is 0.
        groups: How many there are.
    """

    number: int
    groups: int


class Piece(NamedTuple):
    """Tokens of one request in one step.

    Attributes:
        new: Tokens computed; one in a decode step, and the guesses that it verifies.
        past: Tokens that were in the cache.
        samples: Tokens of the request's answer that come out of it.
        depth: Most of the guesses that can hold; 0 without guesses.
        group: Layers that compute them, None for all. All pieces of a step that have a group have
            the same one.
    """

    request: Request
    new: int
    past: int
    samples: int
    depth: int = 0
    group: Group | None = None

    @property
    def tokens(self) -> int:
        """Return the tokens that are computed to the last layer."""
        group = self.group
        return self.new if group is None or group.number == group.groups - 1 else 0


#: Makes a piece of all its entries; a call of the class takes four times as long, and a step has
#: one for each request.
_piece_of: Callable[[tuple[Any, ...]], Piece] = partial(tuple.__new__, Piece)


class Plan(NamedTuple):
    """One step.

    Attributes:
        pieces: What it computes.
        preempted: Requests that lost their blocks for it.
        outs: Those of them whose blocks go to the tier below the cache.
        ins: Requests whose blocks come back from there.
    """

    pieces: tuple[Piece, ...] = ()
    preempted: tuple[Request, ...] = ()
    outs: tuple[Request, ...] = ()
    ins: tuple[Request, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine allows.

    Attributes:
        max_sequences: Requests that run at once.
        max_batched_tokens: Tokens of one step.
        chunk: Prompts may be computed in pieces.
        reserve: A request starts only where all its known tokens would fit at once.
        together: Requests start only when none runs, with the blocks of their whole answers.
        context: Most tokens of a prompt and its answer that the model allows; 0 for any.
        layered: Prompts run on one group of layers in each step.
        grouping: How many groups, by tokens of prompts.
        guesses: What is guessed beyond the next token of who decodes; None for nothing.
        aging: Tokens that a second of waiting is worth, where prompts are ordered by tokens.
        lead: Tokens of service by which a client must be ahead to be switched out; None: never.
    """

    max_sequences: int = 256
    max_batched_tokens: int = 2048
    chunk: bool = True
    reserve: bool = True
    together: bool = False
    context: int = 0
    layered: bool = False
    grouping: Grouping = field(default_factory=Grouping)
    guesses: Guesses | None = None
    aging: float = 500.0
    lead: int | None = None

    @property
    def ahead(self) -> int:
        """Return the tokens of a request that are computed at once beyond its next one."""
        return self.guesses.most if self.guesses else 0


class Scheduler(ABC):
    """Decides the next step.

    Attributes:
        divides: Whether pieces may have a group of layers.
        waiting: Requests that hold no blocks, in the order in which they will be tried.
        running: Requests that hold blocks and can compute.
        coming: Requests whose blocks are on their way back to the cache.
        speculates: Whether its decode steps verify the guesses of its limits. A class says so
            itself, it inherits nothing: who plans in another way may not.
    """

    divides: ClassVar[bool] = False
    speculates: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Take from a class what it says of guesses, and nothing from its bases."""
        super().__init_subclass__()
        cls.speculates = cls.__dict__.get("speculates", False)

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        """Start without requests.

        Raises:
            UncoveredError: If the limits have guesses and it does not speculate.
        """
        if limits.guesses and not self.speculates:
            raise UncoveredError(
                f"scheduler {type(self).__name__} plans without guesses. use continuous, or leave "
                "out speculate"
            )
        self.limits, self.pool = limits, pool
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.coming = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Return the requests that run and wait."""
        return len(self.running), len(self.waiting)

    def refusal(self, request: Request) -> str:
        """Return why a request can never be served, empty where it can."""
        limits, pool = self.limits, self.pool
        whole = request.input + request.output
        if limits.context and whole > limits.context:
            return f"its {whole} tokens exceed the model's context of {limits.context}"
        held = whole - 1 + limits.ahead
        if pool.needed(held) > pool.total:
            return f"needs {pool.needed(held)} KV blocks of {pool.total}"
        # Whoever loses his blocks computes prompt and answer again, at once.
        if not limits.chunk and whole - 1 > limits.max_batched_tokens:
            most = limits.max_batched_tokens
            return f"its {whole - 1} tokens exceed a step's {most}, without chunks"
        return ""

    def add(self, request: Request) -> None:
        """Let a request wait."""
        self.waiting.append(request)

    def resume(self, request: Request) -> None:
        """Let a request run that brings blocks, and what was computed elsewhere in them."""
        self.running.append(request)

    @abstractmethod
    def plan(self) -> Plan:
        """Return the next step, and note it as under way."""

    def finish(self, request: Request) -> None:
        """Forget a request whose last token is there."""
        if request.blocks:
            self.running.remove(request)
            self.pool.give(request.blocks)
            request.blocks = []

    def drop(self) -> None:
        """Take the blocks of all running requests, which compute them again.

        Raises:
            UncoveredError: If it does not know how.
        """
        raise UncoveredError(f"scheduler {type(self).__name__} takes no blocks back. use kv: stay")

    def gone(self, request: Request) -> None:
        """Note that a request's blocks are in the tier below: those that it held are free."""
        self.pool.left(request.blocks, len(request.shared))
        request.blocks, request.known, request.moving = [], 0, False

    def back(self, request: Request) -> None:
        """Note that a request's blocks are back: it runs again."""
        self.pool.below += request.below
        request.below, request.fetch, request.moving = 0, (), False
        self.coming -= 1
        self.running.append(request)


SCHEDULERS: Registry[type[Scheduler]] = Registry("scheduler")


@SCHEDULERS.register("continuous")
class Continuous(Scheduler):
    """Continuous batching as in vLLM v1: one budget of tokens, what runs comes first.

    Every running request, in the order of admission, gets its next token or the next piece of its
    prompt. Where blocks run out the request that was admitted last loses all of its own and waits
    first in line, to compute them again. Where none did, waiting requests are admitted in order
    until tokens, sequences or blocks run out (vllm/v1/core/sched/scheduler.py).

    Who decodes verifies as many depths of its guesses as the budget and the model's context allow.
    The blocks of guesses that fail stay with the request; its next tokens overwrite them.

    Where there is a tier below the cache, blocks go there and come back instead of being computed
    again, as vLLM v0's swapping did. They are free once they are out: whoever needs them waits for
    that, others compute on, and nobody is admitted. A request whose blocks are back runs last.

    Where tiers below keep contents, what they have of a waiting request behind what the cache has
    comes up into blocks that it is given, whatever that takes; it runs when all of it is there.
    """

    speculates = True

    def plan(self) -> Plan:
        """Return the next step, and note it as under way."""
        switched = self._switch()
        budget = self.limits.max_batched_tokens
        closed = self.limits.together and bool(self.running)
        pieces: list[Piece] = []
        lost: list[Request] = []
        ins: list[Request] = []
        size, guesses, running = self.pool.tokens, self.limits.guesses, self.running
        at = owed = 0
        while at < len(running) and budget > 0:
            request = running[at]
            at += 1
            new = request.left
            if new == 0:
                continue
            if new > budget:
                new = budget
            depth = need = 0
            if guesses:
                depth = self._depth(request, budget)
                new += guesses.tokens(depth)
            if request.computed + new > len(request.blocks) * size:
                need = self.pool.needed(request.computed + new) - len(request.blocks)
            if need > 0:
                if not self._room(request, owed + need, lost):
                    break
                if owed + need > self.pool.free:
                    # It waits for blocks that are on their way out; nobody behind it takes them.
                    owed += need
                    continue
                request.blocks += self.pool.take(need)
            pieces.append(self._piece(request, new, depth))
            budget -= new
        if not lost and not owed and not closed:
            self._admit(budget, pieces, ins)
        preempted = (*switched, *lost)
        outs = tuple(request for request in preempted if request.below)
        return Plan(tuple(pieces), preempted, outs, tuple(ins))

    def _depth(self, request: Request, budget: int) -> int:
        """Return how many depths of guesses a running request verifies in this step."""
        guesses, context = self.limits.guesses, self.limits.context
        if guesses is None or request.sampled == 0 or request.left != 1:
            return 0
        depth = guesses.depth(budget - 1)
        return min(depth, context - request.target) if context else depth

    def _switch(self) -> list[Request]:
        """Take blocks of running requests that others should have; return who lost them."""
        return []

    def _room(self, request: Request, need: int, lost: list[Request]) -> bool:
        """Let blocks be free or on their way out; return False if the request gave up its own."""
        while need > self.pool.free + self.pool.leaving:
            victim = self.running[-1]
            self._lose(victim)
            lost.append(victim)
            if victim is request:
                return False
        return True

    def _lose(self, victim: Request) -> None:
        """Take a running request's blocks: they go to the tier below, or are lost if it is full."""
        self.running.remove(victim)
        victim.preempted += 1
        if victim.sampled < victim.output:
            if self._swapped(victim):
                victim.below, victim.moving = len(victim.blocks), True
                self._return(victim)
                return
            self._return(victim)
        self.pool.give(victim.blocks)
        victim.blocks = []
        victim.computed = victim.known = 0

    def drop(self) -> None:
        """Take the blocks of all running requests, the last one's first."""
        while self.running:
            self._lose(self.running[-1])

    def _swapped(self, victim: Request) -> bool:
        """Send a request's blocks to the tier below; return whether there is room."""
        return self.pool.leave(victim.blocks)

    def _return(self, request: Request) -> None:
        """Let a request wait that has run before: it is tried first."""
        self.waiting.appendleft(request)

    def _first(self) -> Request:
        """Return the waiting request that is tried next."""
        return self.waiting[0]

    def _leave(self, request: Request) -> None:
        """Take a request off the queue."""
        self.waiting.remove(request)

    def _admit(self, budget: int, pieces: list[Piece], ins: list[Request]) -> None:
        most = self.limits.max_sequences
        while self.waiting and budget > 0 and len(self.running) + self.coming < most:
            request = self._first()
            new = self._start(request, budget)
            if new == 0:
                break
            if request.below or request.fetch:
                request.moving = True
                self.coming += 1
                ins.append(request)
                continue
            self.running.append(request)
            pieces.append(self._piece(request, new))
            budget -= new

    def _start(self, request: Request, budget: int) -> int:
        """Give a waiting request its first blocks; return its tokens, 0 if it can not start."""
        pool, limits = self.pool, self.limits
        if request.moving:
            return 0
        found = self._found(request)
        fetch = self._below(request, len(found))
        past = (len(found) + len(fetch)) * pool.tokens
        past = request.computed if request.below else past
        new = min(request.target - past, budget)
        if not limits.chunk and new < request.target - past:
            return 0
        whole = request.input + request.output - 1 + limits.ahead
        held = whole if limits.together else past + new
        most = request.target if limits.reserve else held
        # What was found and nobody holds is among the free blocks until it is held.
        if pool.needed(max(most, held)) - len(found) + pool.idle(found) > pool.free:
            return 0
        self._leave(request)
        pool.hold(found)
        request.blocks = found + pool.take(pool.needed(held) - len(found))
        if not request.below:
            pool.asked += request.target
            pool.hit += len(found) * pool.tokens
        request.computed, request.known, request.fetch = past, len(found), fetch
        return new

    def _found(self, request: Request) -> list[int]:
        """Return the blocks whose content a waiting request need not compute."""
        if not self.pool.remember or request.below:
            return []
        return self.pool.found([request.key(i) for i in range(self._most(request))])

    def _below(self, request: Request, found: int) -> tuple[Hashable, ...]:
        """Return the contents behind those that were found in the cache that tiers below hold."""
        if self.pool.contents is None:
            return ()
        return self.pool.contents.leading(map(request.key, range(found, self._most(request))))

    def _most(self, request: Request) -> int:
        """Return the leading blocks that need not be computed, wherever they are."""
        # The last token is always computed: its logits are needed.
        return (request.target - 1) // self.pool.tokens

    def _piece(
        self, request: Request, new: int, depth: int = 0, group: Group | None = None
    ) -> Piece:
        past, guesses = request.computed, self.limits.guesses if depth else None
        if guesses:
            held = guesses.accepted(request.index, request.sampled, depth)
            samples = min(held + 1, request.output - request.sampled)
            end = past + samples
        else:
            end = past + new
            samples = 1 if end == request.input + request.sampled else 0
        request.computed = end
        if end // self.pool.tokens > request.known:
            self._know(request)
        request.sampled += samples
        return _piece_of((request, new, past, samples, depth, group))

    def back(self, request: Request) -> None:
        """Note that a request's blocks are back: it runs again."""
        super().back(request)
        self._know(request)

    def _know(self, request: Request) -> None:
        """Note what a request's full blocks hold."""
        if not self.pool.remember:
            return
        full = request.computed // self.pool.tokens
        for block in range(request.known, full):
            self.pool.know(request.blocks[block], request.key(block))
        request.known = full
