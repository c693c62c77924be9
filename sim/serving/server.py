"""An engine of one machine, ready to serve traces: its prices, its memory and its scheduler."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.registry import lookup_error
from opbyte.hw_models.machine import Machine
from opbyte.sim.expert_offload import reading
from opbyte.sim.place import Placer
from opbyte.sim.serving.arrivals import ask
from opbyte.sim.serving.blocks import BlockPool, Growth
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.compiled.guesses import serve_guessing
from opbyte.sim.serving.compiled.loop import Served, serve_compiled
from opbyte.sim.serving.compiled.prefixes import Prefixes, prefixes_of
from opbyte.sim.serving.compiled.queue import ORDERS
from opbyte.sim.serving.compiled.state import SERIES
from opbyte.sim.serving.contents import LowerTiers
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.experts import kept, served_experts
from opbyte.sim.serving.many.served import Many, steps_of
from opbyte.sim.serving.memory import cache_degrees, growth_of, kv_blocks
from opbyte.sim.serving.pages import TokenGroups
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.draft import draft_prices, guesses_of, most_logits
from opbyte.sim.serving.prices.layers import LayerPrices
from opbyte.sim.serving.prices.step import Prices
from opbyte.sim.serving.prices.turns import Turns, check_apart
from opbyte.sim.serving.requests import Request, requests_of
from opbyte.sim.serving.schedulers import SCHEDULERS, Limits, Scheduler
from opbyte.sim.serving.schedulers.fair import Clients
from opbyte.sim.serving.served import EngineRun, Fates, Serving, together
from opbyte.sim.serving.speculation import Drafter, Guesses, check_depth
from opbyte.sim.serving.tiers import Tier, cache_tiers, tier_below
from opbyte.sim.serving.transfers import Carried, Transfers, moved_bytes, with_links
from opbyte.workloads.serve import Scheduling, Serve
from opbyte.workloads.speculation import longest_context
from opbyte.workloads.traces import RequestTrace

#: Schedulers with a compiled twin.
COMPILED = tuple(ORDERS)
#: Rows of the time series that are kept; steps between them are left out.
SERIES_ROWS = 20_000


@dataclass(frozen=True)
class Server:
    """An engine that serves traces of one model on one machine.

    Attributes:
        blocks: Blocks of its KV cache.
        context: Most tokens of a prompt and its answer that the model allows; 0 for any.
        below: Where blocks of preempted requests go; None: they are computed again.
        tiers: Where contents are kept below the cache, the nearest first.
        growth: How the cache of a sequence grows, see `BlockPool`.
        compiled: Use the compiled loop wherever it says the same as the plug-in.
        guesses: What is guessed of each request.
        draft: The prices of the model that guesses; None where guesses cost nothing.
        many: Adapters or models, of which not all are in the fast memory.
    """

    prices: Prices
    scheduling: Scheduling
    blocks: int
    context: int = 0
    below: Tier | None = None
    tiers: tuple[Tier, ...] = ()
    growth: tuple[Growth, ...] = ()
    compiled: bool = True
    guesses: Guesses | None = None
    draft: Prices | None = None
    many: Many | None = None

    @classmethod
    def of(
        cls, machine: Machine, work: Serve, mapping: SoftwareMapping, *, seed: int = 0
    ) -> Server:
        """Price and measure an engine.

        Args:
            seed: Of what is drawn: whether guesses hold.
        Raises:
            CapacityError: If weights and one block of cache do not fit.
            ConfigError: If no scheduler has the name, or there is no memory to swap to.
            UncoveredError: If no model covers the machine, mapping or model.
        """
        scheduling = work.scheduler
        if scheduling.kind not in COMPILED and scheduling.kind not in SCHEDULERS.names():
            raise lookup_error("scheduler", scheduling.kind, {*COMPILED, *SCHEDULERS.names()})
        divides, turns = _plug_in(scheduling.kind).divides, Turns.of(machine, mapping)
        check_apart(machine, work, mapping, divides=divides)
        placer = Placer(machine, turns.mapping)
        experts = served_experts(placer, work, divides=divides)
        steps = steps_of(placer, work, divides=divides)
        beside, groups = kept(placer, experts), TokenGroups.of(steps, work)
        if groups is not None:
            beside |= groups.taken(steps, scheduling.max_sequences)
        blocks = kv_blocks(steps, work, beside, 1.0 if groups is None else groups.padded)
        many = Many.of(placer, steps, work)
        tiers = cache_tiers(placer, work)
        below = tier_below(placer, work) if scheduling.preempt == "swap" else None
        if below is not None and work.speculation is not None:
            raise UncoveredError("no model swaps the caches of two models: speculate recomputes")
        priced = mapping if turns.batches > 1 else steps.mapping
        if experts is not None:
            priced = reading(placer, experts.copy.fast).mapping
            experts = None if experts.resident else experts
        prices: Prices
        prices = whole = StepPrices.build(
            machine, work.model, priced, max_tokens=scheduling.max_batched_tokens,
            max_sequences=most_logits(work), routing=work.routing, experts=experts,
        )  # fmt: skip
        draft = draft_prices(machine, work, mapping, whole)
        if work.speculation is not None and scheduling.kv_budget is not None:
            raise UncoveredError("no model guesses within a kv_budget: leave out one of them")
        context = longest_context(work.model, work.speculation)
        guesses = guesses_of(work, seed)
        if divides:
            if below is not None or tiers:
                raise UncoveredError("layered prefill does not swap: leave out preempt and `spill`")
            if "groups" not in scheduling.model_fields_set:
                capped = scheduling.groups.capped(len(work.model.order))
                scheduling = scheduling.model_copy(update={"groups": capped})
            prices = LayerPrices.of(whole, scheduling.groups.groups)
        return cls(
            prices, scheduling, blocks, context, below, tiers,
            growth_of(work, cache_degrees(mapping)), guesses=guesses, draft=draft, many=many,
        )  # fmt: skip

    @property
    def limits(self) -> Limits:
        """Return the scheduler's limits."""
        s = self.scheduling
        return Limits(
            max_sequences=s.max_sequences, max_batched_tokens=s.max_batched_tokens, chunk=s.chunk,
            reserve=s.reserve, context=self.context, together=s.kind == "static", aging=s.aging,
            lead=s.lead, layered=s.kind == "layered", grouping=s.groups, guesses=self.guesses,
        )  # fmt: skip

    def serve(self, trace: RequestTrace) -> Serving:
        """Serve a trace."""
        fates, run = self.run(trace)
        return together(trace, fates, [run])

    def run(self, trace: RequestTrace) -> tuple[Fates, EngineRun]:
        """Return what became of the requests of a trace, and what the engine did."""
        return self._by_loop(trace) if self.loops(trace) else self._by_plug_in(trace)

    def loops(self, trace: RequestTrace) -> bool:
        """Return whether the compiled loop is used for a trace."""
        s = self.scheduling
        moves = self.tiers or (self.shares(trace) and self.below is not None)
        twin = s.kind in COMPILED if self.guesses is None else s.kind in ("continuous", "chunked")
        plain = trace.client is None and self.many is None and s.kv_budget is None
        return self.compiled and twin and plain and not moves

    def shares(self, trace: RequestTrace) -> bool:
        """Return whether several requests of a trace may hold a block."""
        return self.scheduling.prefix_cache and trace.prefix is not None

    def prefixes(self, trace: RequestTrace, rows: Any) -> Prefixes | None:
        """Return what prompts of some rows share, None where they share nothing."""
        if not self.shares(trace):
            return None
        s, served = self.scheduling, np.arange(len(trace))[rows]
        return prefixes_of(trace, served, s.block_tokens, s.max_sequences, self.limits.ahead)

    def clients(self, trace: RequestTrace, rows: Any) -> Clients | None:
        """Return who asks in some rows, None where nobody need know."""
        if self.scheduling.kind != "fair":
            return None
        clients = Clients.of(trace)
        return clients._replace(client=clients.client[rows])

    def engine(self, env: Clock) -> Engine:
        """Return an idle engine of the plug-in."""
        drafter = Drafter(self.draft, self.guesses) if self.draft and self.guesses else None
        below = Transfers(env, self.below.price) if self.below else None
        tiers = LowerTiers(env, [(t.blocks, t.price) for t in self.tiers]) if self.tiers else None
        depth, pool = self.scheduling.depth, self._pool(tiers)
        if self.many is not None:
            return self.many.engine(env, partial(self._scheduler, pool), self.prices, depth)
        return Engine(
            env, self._scheduler(pool), self.prices, depth=depth, drafter=drafter, below=below,
            contents=tiers, budget=self.scheduling.kv_budget or 0,
        )  # fmt: skip

    def requests(self, trace: RequestTrace) -> list[Request]:
        """Return requests before anything happened, as the plug-in takes them.

        Raises:
            WorkloadError: If the scheduler must know who asks, and the trace does not say.
        """
        s = self.scheduling
        made = requests_of(trace, s.block_tokens, shared=s.prefix_cache)
        if s.kind == "fair":
            clients = Clients.of(trace)
            for request, client in zip(made, clients.client.tolist(), strict=True):
                request.client, request.priority = client, -int(clients.level[client])
        return made

    def _pool(self, contents: LowerTiers | None = None) -> BlockPool:
        s = self.scheduling
        return BlockPool(
            self.blocks, s.block_tokens, remember=s.prefix_cache, contents=contents,
            below=self.below.blocks if self.below else 0, growth=self.growth,
        )  # fmt: skip

    def _scheduler(self, pool: BlockPool) -> Scheduler:
        return _plug_in(self.scheduling.kind)(self.limits, pool)

    def refused(self, trace: RequestTrace) -> dict[int, str]:
        """Return the requests that can never be served, and why."""
        s, whole = self.scheduling, trace.input_tokens + trace.output_tokens
        pool = BlockPool(0, s.block_tokens, remember=s.prefix_cache, growth=self.growth)
        # The fewest tokens that have no room.
        held, tokens = whole - 1 + self.limits.ahead, range(int(whole.max()) + self.limits.ahead)
        bad = held >= bisect_right(tokens, self.blocks, key=pool.needed)
        if not s.chunk:
            bad |= whole - 1 > s.max_batched_tokens
        if self.context:
            bad |= whole > self.context
        if _plug_in(s.kind).refusal is not Scheduler.refusal:
            # It has rules of its own.
            bad[:] = True
        rows = np.flatnonzero(bad)
        scheduler = self._scheduler(self._pool()) if len(rows) else None
        requests = requests_of(trace, s.block_tokens, rows=rows, shared=False)
        reasons = {r.index: scheduler.refusal(r) for r in requests if scheduler is not None}
        return {row: reason for row, reason in reasons.items() if reason}

    def _by_loop(self, trace: RequestTrace) -> tuple[Fates, EngineRun]:
        s, reasons = self.scheduling, self.refused(trace)
        fates = Fates.unknown(trace, reasons) if reasons else None
        good: Any = slice(None) if fates is None else fates.accepted
        rows = trace.arrival_s[good], trace.input_tokens[good], trace.output_tokens[good]
        guessed = None
        prefixes, clients = self.prefixes(trace, good), self.clients(trace, good)
        if self.guesses is None:
            done = serve_compiled(
                *rows, self.limits, self.prices, blocks=self.blocks, block_tokens=s.block_tokens,
                remember=s.prefix_cache, depth=s.depth, rows=SERIES_ROWS, order=s.kind,
                clients=clients, link=self.below.price if self.below else None,
                below=self.below.blocks if self.below else 0, growth=self.growth, prefixes=prefixes,
            )  # fmt: skip
        else:
            check_depth(s.depth)
            guessed = serve_guessing(
                *rows, self.limits, self.prices, self.draft, index=np.arange(len(trace))[good],
                blocks=self.blocks, block_tokens=s.block_tokens, remember=s.prefix_cache,
                rows=SERIES_ROWS, growth=self.growth, prefixes=prefixes,
            )  # fmt: skip
            done = guessed.served
        run = self.run_of_loop(done)
        if guessed is not None:
            busy = self._busy(done.busy, guessed.draft_busy)
            run = replace(run, busy=busy, decodes=guessed.decodes, decoded=guessed.tokens)
        if fates is None:
            # As it is: a copy would cost memory.
            return Fates(done.times, trace.arrival_s, {}, done.preempted), run
        fates.put(good, done.times, done.preempted)
        return fates, run

    def run_of_loop(self, done: Served) -> EngineRun:
        """Return what a compiled loop did."""
        carried = [Carried(self.below.price, done.moved_s, done.moved)] if self.below else []
        busy, joules = with_links(self._busy(done.busy), done.joules, carried)
        return EngineRun(
            series=done.series, busy=busy, traffic=done.traffic, joules=joules, means=done.means,
            steps=done.steps, tokens=done.tokens, tally=done.tally,
            hits=self.hits(done.asked, done.found), moved=moved_bytes(carried),
            written=self._swapped(carried),
        )  # fmt: skip

    def _busy(self, of_model: Array, of_draft: Array | None = None) -> dict[str, float]:
        """Return the busy seconds of resources that model and draft share."""
        busy = Counter(dict(zip(self.prices.resources, of_model.tolist(), strict=True)))
        if self.draft is not None and of_draft is not None:
            busy.update(dict(zip(self.draft.resources, of_draft.tolist(), strict=True)))
        return dict(busy)

    def _by_plug_in(self, trace: RequestTrace) -> tuple[Fates, EngineRun]:
        env = Clock()
        engine = self.engine(env)
        requests = self.requests(trace)
        ask(engine, requests, trace)
        env.run()
        return Fates.of(requests), self.run_of_engine(engine)

    def run_of_engine(self, engine: Engine) -> EngineRun:
        """Return what a readable engine did."""
        series, pool, contents = engine.series, engine.scheduler.pool, engine.contents
        links = [*([engine.below] if engine.below else ()), *(contents.links if contents else ())]
        carried = [link.carried for link in links]
        found = self._busy(engine.busy, engine.drafter.busy if engine.drafter else None)
        busy, joules = with_links(found, engine.joules, carried)
        copied = None
        if engine.beside is not None:
            beside, copied = engine.beside.all_busy, engine.beside.shelf.copied
            busy = {**busy, **{n: busy.get(n, 0.0) + more for n, more in beside.items()}}
            joules += copied.joules
        return EngineRun(
            series=np.array([getattr(series, name) for name in SERIES], float), busy=busy,
            traffic=engine.traffic, joules=joules, means=engine.means, steps=len(series.end_s),
            tokens=sum(series.tokens), tally=engine.tally, decodes=engine.decodes,
            decoded=engine.decoded, copied=copied, moved=moved_bytes(carried),
            written=self._spilt(contents) if contents else self._swapped(carried),
            hits=self.hits(pool.asked, pool.hit, contents.loaded if contents else ()),
        )  # fmt: skip

    def _spilt(self, contents: LowerTiers) -> dict[str, float]:
        """Return the bytes that contents took in each tier when they came."""
        tiers = zip(self.tiers, contents.written, strict=True)
        return {tier.memory: blocks * tier.price.block_bytes for tier, blocks in tiers}

    def _swapped(self, carried: Sequence[Carried]) -> dict[str, float]:
        """Return the bytes that went to the tier below: all come back, so half of what moved."""
        if self.below is None:
            return {}
        return {self.below.memory: sum(moved_bytes(carried).values()) / 2.0}

    def hits(self, asked: int, found: int, loaded: Sequence[int] = ()) -> dict[str, int]:
        """Return the tokens of admitted requests by where they were found.

        Args:
            asked: Of all.
            found: In the cache.
            loaded: Blocks of each tier.
        """
        size = self.scheduling.block_tokens
        below = {tier.memory: n * size for tier, n in zip(self.tiers, loaded, strict=bool(loaded))}
        return {"cache": found, **below, "computed": asked - found - sum(below.values())}


def _plug_in(kind: str) -> type[Scheduler]:
    """Return the readable scheduler of a kind."""
    return SCHEDULERS.lookup(kind if kind in SCHEDULERS.names() else "continuous")
