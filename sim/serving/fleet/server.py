"""Several engines of one machine, ready to serve traces together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.placed import written_name
from opbyte.hw_models.machine import Machine
from opbyte.sim.place import Placer
from opbyte.sim.serving.arrivals import ask
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.compiled.fleet import route_compiled
from opbyte.sim.serving.compiled.pooled import serve_pools
from opbyte.sim.serving.compiled.queue import FCFS, order_of
from opbyte.sim.serving.faults.server import FaultServer
from opbyte.sim.serving.fleet.engines import Fleet
from opbyte.sim.serving.fleet.link import Wire, wire_of
from opbyte.sim.serving.fleet.pools import Pools
from opbyte.sim.serving.fleet.routers import ROUTERS
from opbyte.sim.serving.fleet.spread import Spread
from opbyte.sim.serving.memory import cache_degrees, state_bytes, token_bytes
from opbyte.sim.serving.served import Fates, Serving, together
from opbyte.sim.serving.server import SERIES_ROWS, Server
from opbyte.workloads.serve import Fleet as FleetBlock
from opbyte.workloads.serve import Serve
from opbyte.workloads.traces import RequestTrace

#: Routers with a compiled twin: their choice depends on how many requests each engine has, and on
#: what was sent there before. `round_robin` does not even depend on that.
_BY_LOAD = ("least_outstanding", "prefix_affinity")


def server_of(
    machine: Machine, work: Serve, mapping: SoftwareMapping, *, seed: int = 0
) -> AnyServer:
    """Price and measure who serves a work: one engine, or several.

    Args:
        seed: Of what is drawn: whether guesses hold, when devices are lost.
    Raises:
        CapacityError: If weights and one block of cache do not fit.
        ConfigError: If the machine has too few devices, or something is not known.
        UncoveredError: If no model covers the machine, mapping, model or fleet.
    """
    fleet = work.fleet
    if work.faults is not None:
        ROUTERS.lookup(fleet.router)
        return FaultServer.of(machine, work, mapping, seed=seed)
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
        degrees = cache_degrees(mapping)
        of_token, of_state = (f(work, degrees) for f in (token_bytes, state_bytes))
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
        in_turn, by_load = fleet.router == "round_robin", fleet.router in _BY_LOAD
        if fleet.failures or not (in_turn or by_load) or not self.engine.loops(trace):
            return self._by_plug_in(trace)
        if fleet.pools is None:
            return self._in_turn(trace) if in_turn else self._by_load(trace)
        queued = order_of(self.engine.scheduling.kind, shared=shared) == FCFS
        if queued and not shared:
            return self._by_pools(trace)
        return self._by_plug_in(trace)

    def _in_turn(self, trace: RequestTrace) -> Serving:
        """Serve every n-th request by an engine of its own: nothing else joins them."""
        count, fates = self.fleet.engines, Fates.unknown(trace, self.refused(trace))
        good, replica, runs = fates.accepted, np.full(len(trace), -1), []
        for i in range(count):
            rows = good[i::count]
            if len(rows):
                own, run = self.engine.run(trace.take(rows))
                fates.put(rows, own.times, own.preempted)
                replica[rows] = i
                runs.append(replace(run, replica=i))
        # Where all are refused nobody does anything.
        runs = runs or [self.engine.run_of_engine(self.engine.engine(Clock()))]
        return together(trace, fates, runs, Spread(count, replica))

    def _by_load(self, trace: RequestTrace) -> Serving:
        """Serve by compiled loops that advance together."""
        engine, s = self.engine, self.engine.scheduling
        fates = Fates.unknown(trace, self.refused(trace))
        good = fates.accepted
        done = route_compiled(
            trace.arrival_s[good], trace.input_tokens[good], trace.output_tokens[good],
            engine.limits, engine.prices, engines=self.fleet.engines, blocks=self.blocks,
            block_tokens=s.block_tokens, remember=s.prefix_cache, depth=s.depth,
            rows=max(2, SERIES_ROWS // self.fleet.engines), growth=engine.growth, order=s.kind,
            clients=engine.clients(trace, good), prefixes=engine.prefixes(trace, good),
            affine=self.fleet.router == "prefix_affinity", slack=self.fleet.slack,
        )  # fmt: skip
        replica = np.full(len(trace), -1)
        replica[good] = done.replica
        for i, one in enumerate(done.engines):
            fates.put(good[done.replica == i], one.times, one.preempted)
        runs = [replace(engine.run_of_loop(one), replica=i) for i, one in enumerate(done.engines)]
        return together(trace, fates, runs, Spread(self.fleet.engines, replica))

    def _by_pools(self, trace: RequestTrace) -> Serving:
        """Serve by compiled pools."""
        engine, s, pools = self.engine, self.engine.scheduling, self.fleet.pools
        assert pools is not None
        assert self.wire is not None
        fates = Fates.unknown(trace, self.refused(trace))
        good = fates.accepted
        done = serve_pools(
            trace.arrival_s[good], trace.input_tokens[good], trace.output_tokens[good],
            engine.limits, engine.prices, self.wire, pools=(pools.prefill, pools.decode),
            sizes=self.sizes, least=self.fleet.router in _BY_LOAD, blocks=self.blocks,
            block_tokens=s.block_tokens, remember=s.prefix_cache, depth=s.depth,
            rows=max(2, SERIES_ROWS // self.fleet.engines), growth=engine.growth,
        )  # fmt: skip
        fates.put(good, done.times, done.preempted)
        replica, prefill = np.full(len(trace), -1), np.full(len(trace), -1)
        replica[good], prefill[good] = done.replica, done.prefill
        moved = np.zeros(len(trace))
        moved[good] = done.moved
        runs = [replace(engine.run_of_loop(one), replica=i) for i, one in enumerate(done.engines)]
        spread = Spread(self.fleet.engines, replica, prefill=prefill, moved_bytes=moved)
        return self._with_wire(together(trace, fates, runs, spread), done.wire)

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
        runs = [
            replace(self.engine.run_of_engine(engine), replica=replica.number)
            for replica in fleet.replicas
            for engine in replica.engines
        ]
        replica = np.array([fleet.where.get(r, -1) for r in requests])
        spread = Spread(self.fleet.engines, replica, idle_failures=fleet.idle_failures)
        if not isinstance(fleet, Pools):
            return together(trace, Fates.of(requests), runs, spread)
        prefill = np.array([fleet.prefill.get(r, -1) for r in requests])
        spread = replace(spread, prefill=prefill, moved_bytes=fleet.moved)
        return self._with_wire(together(trace, Fates.of(requests), runs, spread), fleet.wire)

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

    def _with_wire(self, served: Serving, wire: Wire) -> Serving:
        """Return the same with what the way from pool to pool was busy for, and its joules."""
        assert served.spread is not None
        assert self.fleet.pools is not None
        ends, busy = wire.instances(self.fleet.pools.prefill), dict(served.busy)
        instances = {}
        if wire.name in busy:
            # Steps keep all ends of an engine busy at once: shares of time add up.
            busy[wire.name] += wire.busy * self.fleet.engines / ends
        else:
            busy[wire.name], instances[wire.name] = wire.busy, ends
        spread = replace(served.spread, instances=instances)
        return replace(served, busy=busy, joules=served.joules + wire.joules, spread=spread)


AnyServer = Server | FleetServer | FaultServer


def _check_devices(placer: Placer, fleet: FleetBlock) -> None:
    """Refuse more engines than there are devices for, as mappings are refused.

    Raises:
        ConfigError: Naming what is needed and what is there.
    """
    machine, groups = placer.machine, placer.groups
    for group in (g for g in (groups.part, groups.attention) if g):
        devices, there = groups.devices(group), machine.counts[group]
        needed = fleet.engines * devices
        if needed > there:
            raise ConfigError.one(
                "",
                "fleet",
                f"{fleet.engines} engines of {devices} devices need {needed} of '{group}', but "
                f"{machine.name} has {there}",
                fleet.engines,
                f"lower the engines, or raise {group}.count",
            )


def _check_shared(placer: Placer, resources: Sequence[str], engines: int) -> None:
    """Refuse what several engines would have to share: prices say what one has to itself.

    Raises:
        UncoveredError: Naming it.
    """
    machine, links = placer.machine, placer.machine.config.links
    for name in map(written_name, resources if engines > 1 else ()):
        devices = engines * placer.groups.devices(name)
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
