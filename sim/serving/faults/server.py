"""An engine whose devices of decode attention may be lost, ready to serve traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping_file import ATTENTION
from opbyte.hw_models.machine import Machine
from opbyte.sim.groups import Groups
from opbyte.sim.serving.arrivals import ask
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.compiled.queue import FCFS, ORDERS
from opbyte.sim.serving.faults.changes import Change, changes
from opbyte.sim.serving.faults.fates import Toll
from opbyte.sim.serving.faults.readable import Survivor
from opbyte.sim.serving.faults.segments import Segments
from opbyte.sim.serving.memory import cache_degrees, token_bytes
from opbyte.sim.serving.served import EngineRun, Fates, Serving, together
from opbyte.sim.serving.server import Server
from opbyte.workloads.serve import Serve
from opbyte.workloads.traces import RequestTrace


def with_heads(mapping: SoftwareMapping, devices: int) -> SoftwareMapping:
    """Return a mapping whose decode attention is shared by so many devices."""
    split = mapping.attention
    assert split is not None, "asked only of a mapping with such a group"
    parallel = {**mapping.parallel, ATTENTION: split.model_copy(update={"heads": devices})}
    return mapping.model_copy(update={"parallel": parallel})


@dataclass(frozen=True)
class FaultServer:
    """An engine on all its devices, and what is left of it on fewer.

    Attributes:
        work: With faults.
        group: Part whose devices are lost.
        devices: How many there are.
        seed: Of losses that are drawn.
        compiled: Use the compiled loop wherever it says the same.
    """

    machine: Machine
    work: Serve
    mapping: SoftwareMapping
    group: str
    devices: int
    seed: int = 0
    compiled: bool = True
    _servers: dict[int, Server] = field(default_factory=dict)

    @classmethod
    def of(
        cls, machine: Machine, work: Serve, mapping: SoftwareMapping, *, seed: int = 0
    ) -> FaultServer:
        """Price and measure the engine on all its devices.

        Raises:
            CapacityError: If weights and one block of cache do not fit.
            ConfigError: If there is no device of a number that is lost.
            UncoveredError: If decode attention has no devices of its own, or there are several
                engines.
        """
        assert work.faults is not None
        if work.fleet.engines > 1 or work.fleet.failures:
            raise UncoveredError(
                "faults: no model of devices that are lost by one of several engines, nor beside "
                "fleet.failures. use one engine"
            )
        if mapping.attention is None:
            raise UncoveredError(
                f"faults: mapping '{mapping.name}' of {machine.name} has no devices of their own "
                "for decode attention that could be lost. use a mapping with attention_decode, or "
                "fleet.failures for whole engines"
            )
        groups = Groups.of(machine, mapping)
        devices = groups.devices(groups.attention)
        for i, loss in enumerate(work.faults.devices):
            if loss.device >= devices:
                raise ConfigError.one(
                    "", f"faults.devices[{i}].device",
                    f"decode attention has {devices} of '{groups.attention}', counted from 0",
                    loss.device, "name one of them",
                )  # fmt: skip
        server = cls(machine, work, mapping, groups.attention, devices, seed)
        server.left(devices)
        return server

    @property
    def blocks(self) -> int:
        """Return the blocks of the KV cache on all devices."""
        return self.left(self.devices).blocks

    def refused(self, trace: RequestTrace) -> dict[int, str]:
        """Return the requests that can never be served, even by all devices, and why."""
        return self.left(self.devices).refused(trace)

    def left(self, working: int) -> Server:
        """Return the engine on so many devices; without any, or any room, it has no blocks.

        A given number of blocks is that of all devices; fewer have the same bytes each.
        """
        if working not in self._servers:
            self._servers[working] = self._built(working)
        return self._servers[working]

    def _built(self, working: int) -> Server:
        if not working:
            return replace(self.left(self.devices), blocks=0)
        mapping, work = with_heads(self.mapping, working), self.work
        given = work.scheduler.kv_blocks
        if given is None or working == self.devices:
            try:
                return Server.of(self.machine, work, mapping)
            except CapacityError:
                if working == self.devices:
                    raise
                return replace(self.left(self.devices), blocks=0)
        sizes = [token_bytes(work, cache_degrees(m)) for m in (self.mapping, mapping)]
        blocks = int(given * sizes[0] / sizes[1])
        if not blocks:
            return replace(self.left(self.devices), blocks=0)
        fewer = work.scheduler.model_copy(update={"kv_blocks": blocks})
        return Server.of(self.machine, replace(work, scheduler=fewer, rate=0.0), mapping)

    def serve(self, trace: RequestTrace) -> Serving:
        """Serve a trace."""
        faults = self.work.faults
        assert faults is not None
        toll = Toll(faults, self.group, self.devices)
        events = changes(faults, self.devices, self.seed)
        by_loop = self.compiled and self.loops(trace)
        fates, runs = (self._by_loop if by_loop else self._by_plug_in)(trace, toll, events)
        fates = fates._replace(failed=frozenset(toll.failed))
        return replace(together(trace, fates, runs), losses=toll.losses)

    def loops(self, trace: RequestTrace) -> bool:
        """Return whether the compiled loop says the same: one step ahead, in order of arrival."""
        whole = self.left(self.devices)
        in_order = ORDERS.get(whole.scheduling.kind) == FCFS
        plain = whole.scheduling.depth == 1 and not whole.shares(trace)
        return whole.loops(trace) and in_order and plain

    def _by_loop(
        self, trace: RequestTrace, toll: Toll, events: Iterator[Change]
    ) -> tuple[Fates, list[EngineRun]]:
        done = Segments(self.left, trace, toll)
        runs = done.run(events)
        return done.fates, runs

    def _by_plug_in(
        self, trace: RequestTrace, toll: Toll, events: Iterator[Change]
    ) -> tuple[Fates, list[EngineRun]]:
        env = Clock()
        begin = float(trace.arrival_s.min()) if trace.client is None else 0.0
        requests = self.left(self.devices).requests(trace)
        survivor = Survivor(
            env, lambda n: self.left(n).engine(env), toll, events, begin, len(requests)
        )
        ask(survivor, requests, trace)
        env.run()
        runs = [self.left(self.devices).run_of_engine(engine) for engine in survivor.engines]
        return Fates.of(requests), runs
