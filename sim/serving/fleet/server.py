"""Several engines of one machine, ready to serve traces together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.sim.place import Placer
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.compiled.fleet import route_compiled
from opbyte.sim.serving.compiled.state import SERIES
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.fleet.engines import Fleet
from opbyte.sim.serving.fleet.link import Wire, wire_of
from opbyte.sim.serving.fleet.pools import Pools
from opbyte.sim.serving.fleet.routers import ROUTERS
from opbyte.sim.serving.fleet.spread import Ints, Spread
from opbyte.sim.serving.memory import state_bytes, token_bytes
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.server import SERIES_ROWS, Server, Serving, ask
from opbyte.sim.serving.tally import Tally
from opbyte.workloads.serve import Fleet as FleetBlock
from opbyte.workloads.serve import Serve
from opbyte.workloads.traces import RequestTrace

#: Routers whose choice depends on nothing but how many requests each engine has, as long as
#: prompts share nothing. `round_robin` does not even depend on that.
_BY_LOAD = ("least_outstanding", "prefix_affinity")


class Part(NamedTuple):
    """What one engine did.

    Attributes:
        number: Which one.
        series: Columns of `SERIES`, (6, rows).
        busy: Busy seconds of each resource.
        traffic: Bytes of each class of `TRAFFIC`.
        joules, means, steps, tokens, tally, hits: As of `Serving`.
    """

    number: int
    series: Array
    busy: Array
    traffic: Array
    joules: float
    means: Array
    steps: int
    tokens: int
    tally: Tally
    hits: dict[str, int]


def server_of(
    machine: Machine, work: Serve, mapping: SoftwareMapping, *, seed: int = 0
) -> Server | FleetServer:
    """Price and measure who serves a work: one engine, or several.

    Args:
        seed: Of what is drawn: whether guesses hold.
    Raises:
        CapacityError: If weights and one block of cache do not fit.
        ConfigError: If the machine has too few devices, or something is not known.
        UncoveredError: If no model covers the machine, mapping, model or fleet.
    """
    fleet = work.fleet
    if fleet.engines == 1 and not fleet.failures:
        ROUTERS.lookup(fleet.router)
        return Server.of(machine, work, mapping, seed=seed)
    return FleetServer.of(machine, work, mapping)


@dataclass(frozen=True)
class FleetServer:
    """Equal engines that serve traces of one model on one machine.

    Attributes:
        engine: Each of them.
        fleet: How many, and who shares out requests.
        wire: The way from pool to pool, idle, if there are pools.
        sizes: Bytes of a block, and of the state that a sequence has whatever its length, of all
            devices of an engine.
    """

    engine: Server
    fleet: FleetBlock
    wire: Wire | None = None
    sizes: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, machine: Machine, work: Serve, mapping: SoftwareMapping) -> FleetServer:
        """Price and measure the engines.

        Raises:
            CapacityError: If weights and one block of cache do not fit.
            ConfigError: If the machine has too few devices, or something is not known.
            UncoveredError: If no model covers the machine, mapping, model or fleet.
        """
        fleet, placer = work.fleet, Placer(machine, mapping)
        ROUTERS.lookup(fleet.router)
        if work.speculation is not None:
            raise UncoveredError(
                "speculate: no model of several engines that guess, nor of one that fails. use one"
            )
        if work.adapters is not None or work.models is not None:
            raise UncoveredError(
                "no router knows what adapters or models an engine has. serve them by one engine"
            )
        _check_devices(placer, fleet)
        wire = None if fleet.pools is None else wire_of(placer, fleet.engines, fleet.via)
        if wire is not None and work.scheduler.kind == "static":
            raise UncoveredError(
                "pools: a static batch is read and answered by the same engine. use another "
                "scheduler, or replicas"
            )
        if work.scheduler.preempt == "swap":
            raise UncoveredError(
                "fleets do not swap: what engines share of a host is no model's yet"
            )
        if placer.tiers("kv").spill:
            raise UncoveredError(
                "fleets do not spill: what engines share of a host is no model's yet. use one "
                "engine, or leave out `spill`"
            )
        engine = Server.of(machine, work, mapping)
        _check_shared(placer, engine.prices.resources, fleet.engines)
        of_token, of_state = (f(work, mapping.degrees) for f in (token_bytes, state_bytes))
        devices = placer.devices
        sizes = devices * of_token * work.scheduler.block_tokens, devices * of_state
        return cls(engine, fleet, wire, sizes)

    @property
    def blocks(self) -> int:
        """Return the blocks of one engine's KV cache."""
        return self.engine.blocks

    def refused(self, trace: RequestTrace) -> dict[int, str]:
        """Return the requests that can never be served, and why."""
        return self.engine.refused(trace)

    def serve(self, trace: RequestTrace) -> Serving:
        """Serve a trace."""
        fleet = self.fleet
        shared = trace.prefix is not None and self.engine.scheduling.prefix_cache
        if fleet.pools is None and not fleet.failures and self.engine.loops(trace):
            if fleet.router == "round_robin":
                return self._in_turn(trace)
            affine = shared and fleet.router == "prefix_affinity"
            if fleet.router in _BY_LOAD and not affine and self.engine.in_order:
                return self._by_load(trace)
        return self._by_plug_in(trace)

    def _in_turn(self, trace: RequestTrace) -> Serving:
        """Serve every n-th request by an engine of its own: nothing else joins them."""
        count, reasons = self.fleet.engines, self.refused(trace)
        good = _good(trace, reasons)
        times, preempted = _nothing_yet(len(trace))
        replica, parts = np.full(len(trace), -1), []
        for i in range(count):
            rows = good[i::count]
            if len(rows):
                one = self.engine.serve(trace.take(rows))
                times[:, rows], preempted[rows], replica[rows] = one.times, one.preempted, i
                busy, traffic = (np.array(list(d.values())) for d in (one.busy, one.traffic))
                counts = one.joules, one.means, one.steps, one.tokens, one.tally, one.hits
                parts.append(Part(i, one.series, busy, traffic, *counts))
        # Where all are refused nobody does anything.
        parts = parts or [self._part(0, self.engine.engine(Clock()))]
        return self._together(trace, times, trace.arrival_s, reasons, preempted, parts, (replica,))

    def _by_load(self, trace: RequestTrace) -> Serving:
        """Serve by compiled loops that advance together."""
        reasons, engine, s = self.refused(trace), self.engine, self.engine.scheduling
        good = _good(trace, reasons)
        times, preempted = _nothing_yet(len(trace))
        done = route_compiled(
            trace.arrival_s[good], trace.input_tokens[good], trace.output_tokens[good],
            engine.limits, engine.prices, engines=self.fleet.engines, blocks=self.blocks,
            block_tokens=s.block_tokens, remember=s.prefix_cache, depth=s.depth,
            rows=max(2, SERIES_ROWS // self.fleet.engines), growth=engine.growth,
        )  # fmt: skip
        replica, parts = np.full(len(trace), -1), []
        for i, one in enumerate(done.engines):
            rows = good[done.replica == i]
            times[:, rows], preempted[rows], replica[rows] = one.times, one.preempted, i
            hits = engine.hits(one.asked, one.found)
            counts = one.joules, one.means, one.steps, one.tokens, one.tally, hits
            parts.append(Part(i, one.series, one.busy, one.traffic, *counts))
        return self._together(trace, times, trace.arrival_s, reasons, preempted, parts, (replica,))

    def _by_plug_in(self, trace: RequestTrace) -> Serving:
        """Serve by readable engines under one clock."""
        env = Clock()
        fleet = self._fleet(env, len(trace))
        begin = float(trace.arrival_s.min()) if trace.client is None else 0.0
        for failure in self.fleet.failures:
            fleet.fail(failure.replica, begin + failure.at.value, failure.for_.value)
        requests = self.engine.requests(trace)
        ask(fleet, requests, trace)
        env.run()
        times = np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T
        parts = [
            self._part(replica.number, engine)
            for replica in fleet.replicas
            for engine in replica.engines
        ]
        replica = np.array([fleet.where.get(r, -1) for r in requests])
        spread: tuple[Any, ...] = (replica,)
        wire = None
        if isinstance(fleet, Pools):
            prefill = np.array([fleet.prefill.get(r, -1) for r in requests])
            spread, wire = (replica, prefill, fleet.moved), fleet.wire
        return self._together(
            trace,
            np.where(times < 0.0, np.nan, times),
            np.array([r.arrival for r in requests]),
            {r.index: r.reason for r in requests if r.reason},
            np.array([r.preempted for r in requests]),
            parts,
            spread,
            wire,
            fleet.idle_failures,
        )

    def _fleet(self, env: Clock, requests: int) -> Fleet:
        router = ROUTERS.lookup(self.fleet.router)
        slack, pools = self.fleet.slack, self.fleet.pools
        if pools is None or self.wire is None:
            return Fleet(env, lambda: self.engine.engine(env), self.fleet.engines, router(slack))
        return Pools(
            env,
            lambda: self.engine.engine(env),
            (pools.prefill, pools.decode),
            (router(slack), router(slack)),
            self.wire.idle(),
            self.sizes,
            requests,
        )

    def _together(
        self,
        trace: RequestTrace,
        times: Array,
        arrival: Array,
        reasons: dict[int, str],
        preempted: Ints,
        parts: Sequence[Part],
        spread: tuple[Any, ...],
        wire: Wire | None = None,
        idle_failures: int = 0,
    ) -> Serving:
        """Return what engines did as one: their steps in the order in which they ended.

        Args:
            spread: Replica of each request; with pools also of its prompt, and bytes moved.
        """
        series = np.concatenate([np.zeros((len(SERIES), 0)), *(p.series for p in parts)], axis=1)
        of = np.repeat([p.number for p in parts], [p.series.shape[1] for p in parts])
        order = np.argsort(series[0], kind="stable")
        names = self.engine.prices.resources
        busy = dict(zip(names, np.sum([p.busy for p in parts], axis=0).tolist(), strict=True))
        read = np.sum([p.traffic for p in parts], axis=0).tolist()
        joules = float(sum(p.joules for p in parts))
        engines, instances = self.fleet.engines, {}
        if wire is not None and self.fleet.pools is not None:
            ends = wire.instances(self.fleet.pools.prefill)
            if wire.name in busy:
                # Steps keep all ends of an engine busy at once: shares of time add up.
                busy[wire.name] += wire.busy * engines / ends
            else:
                busy[wire.name], instances[wire.name] = wire.busy, ends
            joules += wire.joules
        replica, *pooled = spread
        steps = np.zeros(self.fleet.engines, np.int64)
        np.add.at(steps, [p.number for p in parts], [p.steps for p in parts])
        between = Spread(engines, replica, of[order], steps, *pooled)
        return Serving(
            trace, times, arrival, reasons, preempted, series[:, order], busy,
            dict(zip(TRAFFIC, read, strict=True)), joules,
            np.sum([p.means for p in parts], axis=0),
            sum(p.steps for p in parts), sum(p.tokens for p in parts),
            Tally.together([p.tally for p in parts]),
            replace(between, idle_failures=idle_failures, instances=instances),
            hits={name: sum(p.hits[name] for p in parts) for name in self.engine.hits(0, 0)},
        )  # fmt: skip

    def _part(self, number: int, engine: Engine) -> Part:
        """Return what a readable engine did."""
        series = np.array([getattr(engine.series, name) for name in SERIES], float)
        steps, tokens = len(engine.series.end_s), sum(engine.series.tokens)
        hits = self.engine.hits(engine.scheduler.pool.asked, engine.scheduler.pool.hit)
        return Part(
            number, series, engine.busy, engine.traffic, engine.joules, engine.means, steps, tokens,
            engine.tally, hits,
        )  # fmt: skip


def _good(trace: RequestTrace, reasons: dict[int, str]) -> Ints:
    good = np.ones(len(trace), bool)
    good[list(reasons)] = False
    return np.flatnonzero(good)


def _nothing_yet(requests: int) -> tuple[Array, Ints]:
    return np.full((3, requests), np.nan), np.zeros(requests, np.int64)


def _check_devices(placer: Placer, fleet: FleetBlock) -> None:
    """Refuse more engines than there are devices for, as mappings are refused.

    Raises:
        ConfigError: Naming what is needed and what is there.
    """
    machine, there = placer.machine, placer.machine.counts[placer.group]
    needed = fleet.engines * placer.devices
    if needed > there:
        raise ConfigError.one(
            "",
            "fleet",
            f"{fleet.engines} engines of {placer.devices} devices need {needed} of "
            f"'{placer.group}', but {machine.name} has {there}",
            fleet.engines,
            f"lower the engines, or raise {placer.group}.count",
        )


def _check_shared(placer: Placer, resources: Sequence[str], engines: int) -> None:
    """Refuse what several engines would have to share: prices say what one has to itself.

    Raises:
        UncoveredError: Naming it.
    """
    machine, devices = placer.machine, engines * placer.devices
    links = machine.config.links
    for name in resources if engines > 1 else ():
        if name in links:
            shared = links[name].topology == "bus"
        elif name in machine.units:
            shared = machine.unit(name).count < devices
        else:
            shared = machine.memory(name.rpartition(".")[0]).count < devices
        if shared:
            raise UncoveredError(
                f"{machine.name}: {engines} engines would share '{name}', and the prices of their "
                "steps do not say so. use one engine, or a mapping that leaves it alone"
            )
