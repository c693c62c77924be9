"""Discrete events with SimPy: first-come-first-served and fair-shared resources.

SimPy carries what waits: requests, copies, model switches. Operators of a step run in the compiled
kernel (`opbyte.sim.kernels.fluid`); `run_dag` does the same here, slowly and readably, for tests.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from opbyte.core.errors import SimulationError
from opbyte.core.ops import Array
from opbyte.hw_models.price import Demand
from opbyte.sim.event import stream_columns

Process = Generator[simpy.Event, Any, None]
_DONE = 1e-12
#: After SimPy's urgent and normal events (0 and 1) of the same instant.
_LAST: Any = 2


@dataclass(eq=False)
class Stream:
    """Work that flows through shared resources at once.

    Attributes:
        left: Seconds that remain at full speed.
        shares: Resource -> share of it at full speed, at most 1.
        done: Succeeds when nothing is left.
    """

    left: float
    shares: Mapping[Any, float]
    done: simpy.Event
    speed: float = 0.0


@dataclass(eq=False)
class FairShared:
    """Resources that all streams divide max-min fairly in relative speed.

    Attributes:
        busy: Resource -> seconds of full use so far.
    """

    env: simpy.Environment
    streams: list[Stream] = field(default_factory=list)
    busy: dict[Any, float] = field(default_factory=dict)
    _since: float = 0.0
    _wake: int = 0

    def stream(self, seconds: float, shares: Mapping[Any, float]) -> simpy.Event:
        """Start a stream and return the event of its end.

        Args:
            seconds: Duration when nothing else runs.
            shares: Resource -> share of it that full speed takes.
        Raises:
            SimulationError: If a share exceeds 1 or the duration is negative or not finite.
        """
        if not (np.isfinite(seconds) and seconds >= 0):
            raise SimulationError(f"a stream takes a finite time >= 0, got {seconds}")
        if any(not 0 <= s <= 1 + 1e-9 for s in shares.values()):
            raise SimulationError(f"shares of resources lie in [0, 1], got {dict(shares)}")
        self._advance()
        stream = Stream(seconds, shares, self.env.event())
        self.streams.append(stream)
        self._settle()
        return stream.done

    def _advance(self) -> None:
        elapsed = self.env.now - self._since
        self._since = self.env.now
        for stream in self.streams:
            stream.left -= elapsed * stream.speed
            for resource, share in stream.shares.items():
                used = elapsed * stream.speed * share
                self.busy[resource] = self.busy.get(resource, 0.0) + used

    def _settle(self) -> None:
        """End what is finished, divide the resources anew, and wake at the next end."""
        for stream in [s for s in self.streams if s.left <= _DONE * max(1.0, s.left)]:
            self.streams.remove(stream)
            stream.done.succeed()
        set_fair_speeds(self.streams)
        self._wake += 1
        if self.streams:
            self.env.process(self._alarm(self._wake))

    def _alarm(self, wake: int) -> Process:
        step, first = min((s.left / s.speed, i) for i, s in enumerate(self.streams))
        ending = self.streams[first]
        yield self.env.timeout(step)
        if wake == self._wake:
            self._advance()
            ending.left = 0.0
            self._settle()


def set_fair_speeds(streams: Sequence[Stream]) -> None:
    """Raise all speeds together; a stream stops at 1 or when a resource of its is used up."""
    free: dict[Any, float] = {r: 1.0 for s in streams for r in s.shares}
    rising = list(streams)
    for stream in rising:
        stream.speed = 0.0
    while rising:
        load: dict[Any, float] = {}
        for stream in rising:
            for resource, share in stream.shares.items():
                load[resource] = load.get(resource, 0.0) + share
        step = min(1.0 - s.speed for s in rising)
        step = min([step, *(max(free[r] / x, 0.0) for r, x in load.items() if x > 0)])
        for resource, share in load.items():
            free[resource] -= step * share
        for stream in rising:
            stream.speed += step
        rising = [
            s
            for s in rising
            if s.speed < 1.0 - _DONE
            and all(free[r] > _DONE for r, share in s.shares.items() if share > 0)
        ]


@dataclass(eq=False)
class Units:
    """Units that serve one operator at a time: the earliest microbatch, then who came first.

    Who is next is decided when everything else of an instant has happened, so that an operator
    which ends lets the one behind it in its own microbatch go first.
    """

    env: simpy.Environment
    taken: set[Any] = field(default_factory=set)
    waiting: list[tuple[int, int, Any, simpy.Event]] = field(default_factory=list)
    _ticket: int = 0

    def request(self, unit: Any, microbatch: int) -> simpy.Event:
        """Return the event of being granted a unit."""
        granted = self.env.event()
        self.waiting.append((microbatch, self._ticket, unit, granted))
        self._ticket += 1
        self._decide_last()
        return granted

    def release(self, unit: Any) -> None:
        """Give a unit back."""
        self.taken.remove(unit)
        self._decide_last()

    def _decide_last(self) -> None:
        decision = self.env.event()
        # Triggered at once, as `simpy.Timeout` does it, but after what is normal.
        decision._ok, decision._value = True, None
        assert decision.callbacks is not None
        decision.callbacks.append(self._decide)
        self.env.schedule(decision, priority=_LAST)

    def _decide(self, _: simpy.Event) -> None:
        for entry in sorted(self.waiting, key=lambda e: e[:2]):
            if entry[2] not in self.taken:
                self.taken.add(entry[2])
                self.waiting.remove(entry)
                entry[3].succeed()


def run_dag(demand: Demand, microbatches: int = 1) -> Array:
    """Run a demand's table with SimPy and return the end of every execution.

    The twin of `opbyte.sim.kernels.fluid.run_blocks`: same rules, same order of executions.
    """
    placed = demand.placed
    latency, work, share = stream_columns(demand)
    units_of = placed.held_unit
    env = simpy.Environment()
    fluid = FairShared(env)
    units = Units(env)
    ends: dict[tuple[int, int, int], float] = {}

    def execute(micro: int, run: int, op: int, inputs: list[simpy.Event], stage: int) -> Process:
        yield env.all_of(inputs)
        key = (stage, int(units_of[op]))
        if key[1] >= 0:
            yield units.request(key, micro)
        yield env.timeout(latency[op])
        resources = {(stage, r): s for r, s in enumerate(share[op]) if s > 0}
        yield fluid.stream(work[op], resources)
        if key[1] >= 0:
            units.release(key)
        ends[micro, run, op] = env.now

    def microbatch(micro: int) -> Process:
        for run, block in enumerate(placed.table.order):
            processes: dict[int, simpy.Process] = {}
            for op in np.flatnonzero(placed.block_of == block):
                sources = placed.edges[placed.edges[:, 1] == op, 0]
                inputs: list[simpy.Event] = [processes[int(s)] for s in sources]
                stage = int(placed.table.stage[block])
                processes[int(op)] = env.process(execute(micro, run, int(op), inputs, stage))
            yield env.all_of(list(processes.values()))

    for micro in range(microbatches):
        env.process(microbatch(micro))
    env.run()
    return np.array([ends[key] for key in sorted(ends)])
