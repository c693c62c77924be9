"""Layered prefill: whole prompts, one group of layers in each step, beside all decodes."""

from __future__ import annotations

from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers.base import SCHEDULERS, Continuous, Group, Limits, Piece, Plan


@SCHEDULERS.register("layered")
class Layered(Continuous):
    """Layered prefill (arXiv:2510.08055): prompts are divided by layers instead of by tokens.

    Prompts begin together, as many as a step's tokens allow beside the decodes; where chunks are
    allowed the last one may be cut. In each step one group of layers computes them, all layers
    compute the decodes; after the last group their first tokens are there, and the next prompts
    begin with the rest of what was cut. Who decodes, and who loses blocks, is as in continuous
    batching. The authors' code (github.com/scale-snu/layered-prefill) is alike, but does not count
    decodes among a step's tokens.

    Attributes:
        wave: Requests whose prompts are under way, the last ones of `running`.
        tokens: Of the wave, 0 before its first group.
        group: Layers of the next step, None before the first.
    """

    divides = True

    def __init__(self, limits: Limits, pool: BlockPool) -> None:
        """Start without requests."""
        super().__init__(limits, pool)
        self.wave: list[Request] = []
        self.tokens = 0
        self.group: Group | None = None

    def resume(self, request: Request) -> None:
        """Let a request run that brings blocks: the wave stays behind all others."""
        self.running.insert(len(self.running) - len(self.wave), request)

    def _swapped(self, victim: Request) -> bool:
        """Return False: what a wave loses is computed again."""
        del victim
        return False

    def plan(self) -> Plan:
        """Return the next step, and note it as under way."""
        preempted: list[Request] = []
        budget = self.limits.max_batched_tokens - self.tokens
        pieces = self._decodes(budget, preempted)
        self.wave = [request for request in self.wave if request.blocks]
        if not self.wave:
            self.tokens, self.group = 0, None
        if self.group is None and not preempted:
            self._begin(budget - len(pieces), preempted)
        return Plan((*pieces, *self._advance()), tuple(preempted))

    def _decodes(self, budget: int, preempted: list[Request]) -> list[Piece]:
        """Return one token for each request that runs and is not in the wave."""
        pieces: list[Piece] = []
        at = 0
        while at < len(self.running) and len(pieces) < budget:
            request = self.running[at]
            at += 1
            if self.wave and request is self.wave[0]:
                break
            if request.left == 0:
                continue
            if self.pool.needed(request.computed + 1) > len(request.blocks):
                if not self._room(request, 1, preempted):
                    break
                request.blocks += self.pool.take(1)
            pieces.append(self._piece(request, 1))
        return pieces

    def _begin(self, budget: int, preempted: list[Request]) -> None:
        """Begin a wave with so many tokens at most."""
        for request in self.wave:
            # The rest of a prompt that was cut.
            self.tokens = min(request.left, budget)
            if self.tokens == 0:
                return
            need = self.pool.needed(request.computed + self.tokens) - len(request.blocks)
            if not self._room(request, need, preempted):
                self.wave, self.tokens = [], 0
                return
            request.blocks += self.pool.take(need)
        left = budget - self.tokens
        while self.waiting and left > 0 and len(self.running) < self.limits.max_sequences:
            request = self._first()
            new = self._start(request, left)
            if new == 0:
                break
            self.running.append(request)
            self.wave.append(request)
            self.tokens += new
            left -= new
        if self.wave:
            self.group = Group(0, self.limits.grouping.of(self.tokens))

    def _advance(self) -> list[Piece]:
        """Return the wave's pieces in its next group of layers."""
        group = self.group
        if group is None:
            return []
        both, tokens = [], self.tokens
        for request in self.wave:
            new = min(request.left, tokens)
            both.append((request, new))
            tokens -= new
        if group.number < group.groups - 1:
            self.group = Group(group.number + 1, group.groups)
            return [
                Piece(request, new, request.computed, samples=0, group=group)
                for request, new in both
            ]
        pieces = [self._piece(request, new, group=group) for request, new in both]
        self.wave = [request for request in self.wave if request.left > 1]
        self.tokens, self.group = 0, None
        return pieces
