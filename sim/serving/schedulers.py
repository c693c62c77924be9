"""Schedulers: who computes how many tokens in the next step. They never ask what it costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from opbyte.core.registry import Registry
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.requests import Request


class Piece(NamedTuple):
    """Tokens of one request in one step.

    Attributes:
        new: Tokens computed; one in a decode step.
        past: Tokens that were in the cache.
        samples: The request's next token comes out of it.
    """

    request: Request
    new: int
    past: int
    samples: bool


@dataclass(frozen=True)
class Plan:
    """One step.

    Attributes:
        pieces: What it computes.
        preempted: Requests that lost their blocks for it.
    """

    pieces: tuple[Piece, ...] = ()
    preempted: tuple[Request, ...] = ()


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
    """

    max_sequences: int = 256
    max_batched_tokens: int = 2048
    chunk: bool = True
    reserve: bool = True
    together: bool = False
    context: int = 0


class Scheduler(ABC):
    """Decides the next step.

    Attributes:
        waiting: Requests that hold no blocks, in the order in which they will be tried.
        running: Requests that hold blocks.
    """

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        """Start without requests."""
        self.limits, self.pool = limits, pool
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def refusal(self, request: Request) -> str:
        """Return why a request can never be served, empty where it can."""
        limits, pool = self.limits, self.pool
        whole = request.input + request.output
        if limits.context and whole > limits.context:
            return f"its {whole} tokens exceed the model's context of {limits.context}"
        if pool.needed(whole - 1) > pool.total:
            return f"needs {pool.needed(whole - 1)} KV blocks of {pool.total}"
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


SCHEDULERS: Registry[type[Scheduler]] = Registry("scheduler")


@SCHEDULERS.register("continuous")
class Continuous(Scheduler):
    """Continuous batching as in vLLM v1: one budget of tokens, what runs comes first.

    Every running request, in the order of admission, gets its next token or the next piece of its
    prompt. Where blocks run out the request that was admitted last loses all of its own and waits
    first in line, to compute them again. Where none did, waiting requests are admitted in order
    until tokens, sequences or blocks run out (vllm/v1/core/sched/scheduler.py).
    """

    def plan(self) -> Plan:
        """Return the next step, and note it as under way."""
        budget = self.limits.max_batched_tokens
        closed = self.limits.together and bool(self.running)
        pieces: list[Piece] = []
        preempted: list[Request] = []
        size = self.pool.tokens
        at = 0
        while at < len(self.running) and budget > 0:
            request = self.running[at]
            at += 1
            new = min(request.left, budget)
            if new == 0:
                continue
            short = request.computed + new > len(request.blocks) * size
            if short and not self._room(request, new, preempted):
                break
            pieces.append(self._piece(request, new))
            budget -= new
        if not preempted and not closed:
            self._admit(budget, pieces)
        return Plan(tuple(pieces), tuple(preempted))

    def _room(self, request: Request, new: int, preempted: list[Request]) -> bool:
        """Give a request the blocks of its next tokens; return False if it had to give up."""
        pool = self.pool
        need = pool.needed(request.computed + new) - len(request.blocks)
        while need > pool.free:
            victim = self.running.pop()
            pool.give(victim.blocks)
            victim.blocks = []
            victim.computed = victim.known = 0
            victim.preempted += 1
            if victim.sampled < victim.output:
                self.waiting.appendleft(victim)
            preempted.append(victim)
            if victim is request:
                return False
        request.blocks += pool.take(need)
        return True

    def _admit(self, budget: int, pieces: list[Piece]) -> None:
        pool, limits = self.pool, self.limits
        while self.waiting and budget > 0 and len(self.running) < limits.max_sequences:
            request = self.waiting[0]
            found = self._found(request)
            past = len(found) * pool.tokens
            new = min(request.target - past, budget)
            if not limits.chunk and new < request.target - past:
                break
            held = request.input + request.output - 1 if limits.together else past + new
            most = request.target if limits.reserve else held
            # What was found and nobody holds is among the free blocks until it is held.
            if pool.needed(max(most, held)) - len(found) + pool.idle(found) > pool.free:
                break
            self.waiting.popleft()
            pool.hold(found)
            request.blocks = found + pool.take(pool.needed(held) - len(found))
            request.computed, request.known = past, len(found)
            self.running.append(request)
            pieces.append(self._piece(request, new))
            budget -= new

    def _found(self, request: Request) -> list[int]:
        """Return the blocks whose content a waiting request need not compute."""
        if not self.pool.remember:
            return []
        # The last token is always computed: its logits are needed.
        most = (request.target - 1) // self.pool.tokens
        return self.pool.found([request.key(i) for i in range(most)])

    def _piece(self, request: Request, new: int) -> Piece:
        past = request.computed
        end = request.computed = past + new
        if end // self.pool.tokens > request.known:
            self._know(request)
        samples = end == request.input + request.sampled
        request.sampled += samples
        return Piece(request, new, past, samples)

    def _know(self, request: Request) -> None:
        """Note what a request's full blocks hold."""
        full = request.computed // self.pool.tokens
        for block in range(request.known, full):
            self.pool.know(request.blocks[block], request.key(block))
        request.known = full
