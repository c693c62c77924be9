"""One of the two simulations behind a published number, and the parameters that it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from opbyte.core.errors import CapacityError, ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.sourced import sourced, with_values
from opbyte.hw_models.machine import Machine
from opbyte.sim.simulate import evaluate
from opbyte.sweeps.expressions import Expression
from opbyte.sweeps.validation.knobs import Knob
from opbyte.sweeps.validation.played import Memory, Played
from opbyte.workloads.works import Work

#: What a parameter moves no iteration by moves no played work by a hundredth: queues add up what
#: iterations cost, and near saturation twice as much.
MOVES = 0.005
#: By how much a parameter is changed to see what it moves.
STEP = 0.10
_COST = re.compile(r"usd|carbon|site\.")
#: A metric that is an expression over parameters and metrics.
EXPRESSION = re.compile(r"^value:\s*(.+)$")


@dataclass(frozen=True)
class Side:
    """One of the two simulations of a comparison.

    Attributes:
        played: The work, where it is played one design point after the other.
        operators: Operators whose seconds are the metric `operator_seconds`.
        key: Text of the setup, by which points of a source share what it gave.
        memory: What they share.
    """

    machine: Machine
    work: Work | None
    mapping: SoftwareMapping | None
    fidelity: str
    metric: str
    played: Played | None = None
    operators: tuple[str, ...] = ()
    key: str = ""
    memory: Memory = field(default_factory=Memory, compare=False, repr=False)

    def values(
        self,
        machine: Mapping[str, Array],
        work: Mapping[str, Array],
        software: Mapping[str, Array],
    ) -> Array:
        """Return the metric over points, (points,) or (1,).

        Args:
            machine: Other values of parameters of the machine, each (points,).
            work: Of fields of the work.
            software: Of parameters of the mapping, see `opbyte.core.sourced`.
        """
        expression = EXPRESSION.match(self.metric)
        known: dict[str, Any] = {**self.machine.values, **machine}
        if self.work is not None and self.mapping is not None:
            metrics = self._metrics(self.work, self.mapping, machine, work, software)
            if not expression:
                return self._one(self.work.kind, metrics)
            known |= {**_numbers(self.work), **work, **metrics}
        text = expression.group(1) if expression else self.metric
        return np.atleast_1d(np.asarray(Expression.parse(text)(known), float))

    def _metrics(
        self,
        own: Work,
        mapping: SoftwareMapping,
        machine: Mapping[str, Array],
        work: Mapping[str, Array],
        software: Mapping[str, Array],
    ) -> dict[str, Array]:
        if self.played is not None:
            return self.played.values(machine, work)
        columns = (*machine.items(), *work.items(), *software.items())
        changed = tuple((n, np.asarray(v).tobytes()) for n, v in columns)
        known = self.memory.evaluated
        key = self.key, self.operators, changed
        if key not in known:
            known[key] = self._by_mapping(own, mapping, machine, work, software)
        return known[key]

    def _by_mapping(
        self,
        own: Work,
        mapping: SoftwareMapping,
        machine: Mapping[str, Array],
        work: Mapping[str, Array],
        software: Mapping[str, Array],
    ) -> dict[str, Array]:
        """Return the metrics; a mapping has no arrays, so points with one mapping go together."""
        if not software:
            return self._evaluated(own, mapping, machine, work)
        columns = np.stack(np.broadcast_arrays(*software.values()))
        rows, which = np.unique(columns, axis=1, return_inverse=True)
        found: dict[str, Array] = {}
        for i, row in enumerate(rows.T):
            here = np.flatnonzero(which.ravel() == i)
            one = with_values(mapping, dict(zip(software, row.tolist(), strict=True)))
            try:
                part = self._evaluated(own, one, _at(machine, here), _at(work, here))
            except CapacityError:
                continue
            for name, value in part.items():
                found.setdefault(name, np.full(columns.shape[1], np.nan))[here] = value
        return found

    def _evaluated(
        self,
        own: Work,
        mapping: SoftwareMapping,
        machine: Mapping[str, Array],
        work: Mapping[str, Array],
    ) -> dict[str, Array]:
        # A single operator has whole sizes only.
        sizes = {name: np.rint(value) if own.alone else value for name, value in work.items()}
        varied = replace(own, **dict[str, Any](sizes)) if work else own
        hardware = self.machine.with_values(machine) if machine else self.machine
        outcome = evaluate(hardware, varied, mapping, self.fidelity)
        if not self.operators:
            return outcome.metrics
        return {**outcome.metrics, "operator_seconds": outcome.operator_seconds(self.operators)}

    def _one(self, kind: str, metrics: Mapping[str, Array]) -> Array:
        if self.metric not in metrics:
            raise ConfigError.one(
                "",
                "metric",
                f"a {kind} work has no such metric",
                self.metric,
                f"known: {', '.join(metrics)}",
            )
        return metrics[self.metric]


def _at(columns: Mapping[str, Array], here: Any) -> dict[str, Array]:
    """Return some points of columns, each (1 or points,)."""
    return {n: v if np.size(v) == 1 else np.asarray(v)[here] for n, v in columns.items()}


def parameters(side: str, machine: Machine) -> list[Knob]:
    """Return every parameter of a machine."""
    return [
        Knob(side, path, float(p.value), p.dimension, p.source or "", p.range)
        for path, p in machine.parameters.items()
    ]


def hardware(name: str, side: Side) -> list[Knob]:
    """Return the parameters of a machine that could matter.

    Each of them costs a played work a table of prices. There only those are tried whose class is
    not the best, and that move an iteration's price.
    """
    # Counts of channels, banks, tables and threads are a structure: there is no tenth of a bank.
    knobs = [
        k
        for k in parameters(name, side.machine)
        if ".organisation." not in k.name
        # Prices and carbon of energy move what has them in its name, and nothing else.
        and not (k.name.startswith("site.") and not _COST.search(side.metric))
        and not (k.dimension == "count" and (".lut." in k.name or ".cpu." in k.name))
    ]
    if side.played is None:
        return knobs
    knobs = [k for k in knobs if k.standing != "published"]
    count = len(knobs)
    columns = {}
    for i, knob in enumerate(knobs):
        columns[knob.name] = np.full(1 + 4 * count, knob.value)
        columns[knob.name][1 + 4 * i : 5 + 4 * i] = knob.steps(STEP)
    moves = side.played.moves(columns)[1:].reshape(count, 4).max(axis=1)
    return [k for k, moved in zip(knobs, moves, strict=True) if not moved <= MOVES]


def _numbers(work: Work) -> dict[str, Any]:
    """Return the numeric fields of a work, which expressions may read."""
    return {f.name: getattr(work, f.name) for f in fields(work) if f.name in work.vector_fields}


def mapped(name: str, side: Side) -> list[Knob]:
    """Return the parameters of a mapping that say where they come from; played works have none."""
    if side.mapping is None or side.played is not None:
        return []
    return [
        Knob(
            name, path, p.value, p.dimension, p.source or "", p.range, float(p.dimension == "count")
        )
        for path, p in sourced(side.mapping).items()
    ]


def asked(side: Side, *, every: bool = False) -> list[Knob]:
    """Return the numeric fields of a work that carry a source, or all of them."""
    work, played = side.work, side.played
    if work is None:
        return []
    if played is not None:
        stated = "stated with the published number", None
        sourced = {path: played.sources.get(path, stated) for path in played.numbers()}
        return [
            Knob("workload", path, value, "count", *sourced[path])
            for path, value in played.numbers().items()
            if every or path in played.sources
        ]
    return [
        Knob(
            "workload",
            f.name,
            float(getattr(work, f.name)),
            "count",
            work.sources.get(f.name, "stated with the published number"),
            work.ranges.get(f.name),
            work.least.get(f.name, 1.0),
        )
        for f in fields(work)
        if f.name in work.vector_fields and (every or f.name in work.sources)
    ]
