"""Works that are played in time, as a served trace: one design point after the other.

What a table of prices costs to build is paid once for each machine and engine, and used by all
points of a source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opbyte.core.config import Document
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.sim.serving.fleet.server import AnyServer, server_of
from opbyte.sim.serving.run import outcome
from opbyte.sim.simulate import evaluate
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.serve import Serve
from opbyte.workloads.works import work_from

#: Keys of a served trace's workload that its engine does not depend on.
_REQUESTS = ("trace", "rate", "slo")
#: Iterations that are probed: pieces of prompts and decodes. A prompt alone, a piece beside
#: decodes, decodes alone.
_PROBES = ((4096.0, 0.0), (480.0, 32.0), (0.0, 32.0))
_CONTEXT = 1024.0

Leaf = tuple[str, Any]


@dataclass
class Memory:
    """Engines, machines and metrics that the points of one source share.

    Attributes:
        machines: By name and changes.
        setups: Works and mappings, by the text of their setup.
        evaluated: Metrics of setups and operators, by the values that differ from the setup's own.
    """

    machines: dict[str, Machine] = field(default_factory=dict)
    setups: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[Any, dict[str, Array]] = field(default_factory=dict)
    servers: dict[str, AnyServer] = field(default_factory=dict)
    metrics: dict[str, dict[str, Array]] = field(default_factory=dict)
    moves: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Played:
    """A served trace on one machine as a function of its parameters.

    Attributes:
        machine: The hardware as it is.
        data: The workload as it stands in the file, without sources.
        sources: Dotted path of a number -> its source and range, as far as the file says.
        mapping: The mapping.
        where: What errors name.
    """

    machine: Machine
    data: Mapping[str, Any]
    sources: Mapping[str, tuple[str, tuple[float, float] | None]]
    mapping: SoftwareMapping
    where: str
    memory: Memory

    def work(self, changes: Mapping[str, float] | None = None) -> Serve:
        """Return the work, some of its numbers replaced.

        Raises:
            ConfigError: If the workload has a mistake.
        """
        built = work_from(Document(self._changed(changes or {}), {}, self.where))
        assert isinstance(built, Serve)
        return built

    def numbers(self) -> dict[str, float]:
        """Return the dotted path of each number of the workload, and its value."""
        return {
            path: float(value)
            for path, value in _leaves(self.data)
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def values(self, machine: Mapping[str, Array], work: Mapping[str, Array]) -> dict[str, Array]:
        """Return all metrics over points, each (points,)."""
        points = max([np.size(v) for v in (*machine.values(), *work.values())], default=1)
        found = []
        for i in range(points):
            changes = [
                {
                    name: float(np.broadcast_to(values, points)[i])
                    for name, values in side.items()
                }
                for side in (machine, work)
            ]  # fmt: skip
            found.append(self._one(*changes))
        return {name: np.concatenate([f[name] for f in found]) for name in found[0]}

    def _one(self, machine: dict[str, float], work: dict[str, float]) -> dict[str, Array]:
        own = {k: v for k, v in machine.items() if v != self.machine.values[k]}
        data = self._changed(work)
        engine = json.dumps(
            [self._hardware, own, {k: v for k, v in data.items() if k not in _REQUESTS}],
            sort_keys=True,
        )
        key = engine + json.dumps({k: data.get(k) for k in _REQUESTS}, sort_keys=True)
        known = self.memory
        if key not in known.metrics:
            built = self.work(work)
            hardware = self.machine.with_values(own) if own else self.machine
            if engine not in known.servers:
                known.servers[engine] = server_of(hardware, built, self.mapping)
            server = known.servers[engine]
            played = outcome(hardware, server, server.serve(built.trace), built, self.mapping)
            known.metrics[key] = dict(played.metrics)
        return known.metrics[key]

    @property
    def _hardware(self) -> str:
        return json.dumps([self.machine.document.data, repr(self.mapping)], default=str)

    def _changed(self, changes: Mapping[str, float]) -> dict[str, Any]:
        data = deepcopy(dict(self.data))
        for path, value in changes.items():
            *above, last = path.split(".")
            at = data
            for name in above:
                at = at[name]
            at[last] = round(value) if isinstance(at[last], int) else value
        return data

    def moves(self, columns: Mapping[str, Array]) -> Array:
        """Return how much each point moves an iteration's seconds at most, relative, (points,).

        Args:
            columns: Machine parameters over points, the first point as they are.
        """
        work = self.work()
        key = json.dumps([self._hardware, work.model.name, repr(work.routing), sorted(columns)])
        if key not in self.memory.moves:
            hardware = self.machine.with_values(dict(columns))
            points = max(np.size(v) for v in columns.values())
            most = np.zeros(points)
            for new, decodes in _PROBES:
                chunks = ((np.full(points, new), np.zeros(points)),) if new else ()
                step = Mixed(work.model, chunks, decodes, _CONTEXT, routing=work.routing)
                run = evaluate(hardware, step, self.mapping).phases[0]
                seconds = np.broadcast_to(run.step.seconds, points)
                most = np.maximum(most, np.abs(seconds / seconds[0] - 1.0))
            self.memory.moves[key] = most
        return self.memory.moves[key]


def played(
    machine: Machine,
    mapping: SoftwareMapping,
    workload: Mapping[str, Any],
    where: str,
    memory: Memory,
) -> Played:
    """Return a served trace; numbers of its workload may be `{value, source, range}`."""
    data, sources = deepcopy(dict(workload)), {}
    for path, leaf in list(_leaves(workload)):
        if isinstance(leaf, Mapping):
            *above, last = path.split(".")
            at: Any = data
            for name in above:
                at = at[name]
            at[last] = leaf["value"]
            ends = leaf.get("range")
            sources[path] = str(leaf.get("source", "")), tuple(ends) if ends else None
    return Played(machine, data, sources, mapping, where, memory)


def _leaves(data: Mapping[str, Any], above: str = "") -> Iterator[Leaf]:
    """Yield path and value of all that is no mapping, and of mappings that have a `value`."""
    for key, value in data.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and "value" not in value:
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value
