"""A published point as a function of every parameter behind it, evaluated for many at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.units import format_quantity, parse
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.sweeps.expressions import Expression
from opbyte.sweeps.validation.played import Memory, Played, played
from opbyte.sweeps.validation.published import (
    Alternative,
    Case,
    Gap,
    Point,
    Published,
    Setup,
)
from opbyte.workloads.works import Work, work_from

#: What a parameter moves no iteration by moves no played work by a hundredth: queues add up what
#: iterations cost, and near saturation twice as much.
MOVES = 0.005
#: By how much a parameter is changed to see what it moves.
STEP = 0.10
#: Comparisons of a number beyond which three of them say which parameters matter.
MANY = 8
_COST = re.compile(r"usd|carbon|site\.")
_EXPRESSION = re.compile(r"^value:\s*(.+)$")


@dataclass(frozen=True)
class Knob:
    """One parameter behind a point.

    Attributes:
        side: `machine` or `baseline` (hardware), or `workload`.
        name: Short path, or field of the work.
        least: Smallest value that makes sense.
    """

    side: str
    name: str
    value: float
    dimension: str
    source: str
    range: tuple[float, float] | None = None
    least: float = 0.0

    def scaled(self, factor: float) -> float:
        """Return the value times a factor, but no less than makes sense."""
        return max(self.value * factor, self.least)

    def steps(self, part: float) -> tuple[float, float, float, float]:
        """Return the values a part above and below, and those that an assumption may have, too.

        A value of 0 has no part: only its range says whether it matters.
        """
        assumed = self.standing == "assumed" or self.value == 0.0
        ends = self.range if assumed and self.range is not None else (self.value, self.value)
        return self.scaled(1.0 + part), self.scaled(1.0 - part), *ends

    @property
    def path(self) -> str:
        """Return side and name."""
        return f"{self.side}.{self.name}"

    @property
    def standing(self) -> str:
        """Return published, assumed or calibrated."""
        return standing_of(self.source)

    def show(self, value: float) -> str:
        """Return a value with its unit."""
        return format_quantity(value, self.dimension, digits=3)


def standing_of(source: str) -> str:
    """Return published, assumed or calibrated, by how a source begins."""
    word = source.strip().lower()
    if word.startswith("calibrated"):
        return "calibrated"
    if word.startswith(("assumed", "recalled")) or not word:
        return "assumed"
    return "published"


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

    def values(self, machine: Mapping[str, Array], work: Mapping[str, Array]) -> Array:
        """Return the metric over points, (points,) or (1,)."""
        expression = _EXPRESSION.match(self.metric)
        known: dict[str, Any] = {**self.machine.values, **machine}
        if self.work is not None and self.mapping is not None:
            metrics = self._metrics(self.work, self.mapping, machine, work)
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
    ) -> dict[str, Array]:
        if self.played is not None:
            return self.played.values(machine, work)
        changed = tuple((n, np.asarray(v).tobytes()) for n, v in (*machine.items(), *work.items()))
        known = self.memory.evaluated
        key = self.key, self.operators, changed
        if key not in known:
            known[key] = self._evaluated(own, mapping, machine, work)
        return known[key]

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


@dataclass(frozen=True)
class Comparison:
    """A point: one simulation, or the ratio of two."""

    ours: Side
    baseline: Side | None
    ratio: str = "baseline/ours"

    @property
    def played(self) -> bool:
        """Return whether each value costs a simulation of its own."""
        return self.ours.played is not None

    @property
    def one_machine(self) -> bool:
        """Return whether both sides are the same hardware, whose parameters then move together."""
        return (
            self.baseline is not None
            and self.baseline.machine.document.data == self.ours.machine.document.data
        )

    @cached_property
    def common(self) -> frozenset[str]:
        """Return the parameters that both sides share: gates of one process move together."""
        if self.baseline is None:
            return frozenset()
        ours, theirs = self.ours.machine.parameters, self.baseline.machine.parameters
        same = (name for name in ours if ".gates." in name and ours[name] == theirs.get(name))
        return frozenset(ours if self.one_machine else same)

    def values(self, columns: Mapping[Knob, Array]) -> Array:
        """Return the point's value for each entry of the columns, (points,) or (1,)."""

        def of(side: str) -> dict[str, Array]:
            return {k.name: v for k, v in columns.items() if k.side == side}

        ours = self.ours.values(of("machine"), of("workload"))
        if self.baseline is None:
            return ours
        both = {name: v for name, v in of("machine").items() if name in self.common}
        base = self.baseline.values({**of("baseline"), **both}, of("workload"))
        if self.ratio == "gain":
            return 100.0 * (ours / base - 1.0)
        if self.ratio == "cut":
            return 100.0 * (1.0 - ours / base)
        return ours / base if self.ratio == "ours/baseline" else base / ours

    def knobs(self) -> list[Knob]:
        """Return every parameter that could matter."""
        knobs = _hardware("machine", self.ours)
        if self.baseline is not None and not self.one_machine:
            theirs = _hardware("baseline", self.baseline)
            knobs += [k for k in theirs if k.name not in self.common]
        return knobs + _software(self.ours)

    def knob(self, gap: Gap) -> Knob:
        """Return the parameter that stands for a missing input, with the gap's range.

        Raises:
            ConfigError: If there is no such parameter.
        """
        assert gap.parameter is not None
        side, _, name = gap.parameter.partition(".")
        known = {k.path: k for k in self.every_knob()}
        if side == "machine":
            name = self.ours.machine.path(name)
        elif side == "baseline" and self.baseline is not None:
            name = self.baseline.machine.path(name)
        path = f"{side}.{name}"
        if path not in known:
            raise ConfigError.one(
                "", "gap.parameter", "no such parameter", gap.parameter, "name one with its side"
            )
        knob = known[path]
        if gap.range is None:
            return knob
        low, high = (parse(x, knob.dimension) for x in gap.range)
        return replace(knob, range=(low, high))

    def every_knob(self) -> list[Knob]:
        """Return every parameter, whether it could matter or not."""
        knobs = _parameters("machine", self.ours.machine)
        if self.baseline is not None and not self.one_machine:
            knobs += _parameters("baseline", self.baseline.machine)
        return knobs + _software(self.ours, every=True)


@dataclass(frozen=True)
class Summary:
    """A point that sums up several comparisons.

    Attributes:
        reduce: How their values become one: mean, geomean or max.
    """

    parts: tuple[Comparison, ...]
    reduce: str = "mean"

    def values(self, columns: Mapping[Knob, Array]) -> Array:
        """Return the point's value for each entry of the columns, (points,) or (1,)."""
        # Parameters of one name may have other values in other parts: they are knobs of their own.
        own = [{k.path: k.value for k in part.every_knob()} for part in self.parts]
        values = [
            part.values({k: v for k, v in columns.items() if mine.get(k.path) == k.value})
            for part, mine in zip(self.parts, own, strict=True)
        ]
        each = np.stack(np.broadcast_arrays(*values))
        if self.reduce == "geomean":
            return np.asarray(np.exp(np.log(each).mean(axis=0)))
        if self.reduce == "max":
            # Of those that fit.
            return np.asarray(np.fmax.reduce(each, axis=0))
        return np.asarray(each.mean(axis=0))

    def knobs(self) -> list[Knob]:
        """Return every parameter that could matter."""
        return list(dict.fromkeys(knob for part in self.parts for knob in part.knobs()))

    def sample(self) -> Summary:
        """Return the first, the middle and the last of many comparisons: what matters in them."""
        parts = self.parts
        if len(parts) <= MANY:
            return self
        return Summary((parts[0], parts[len(parts) // 2], parts[-1]), self.reduce)

    @property
    def played(self) -> bool:
        """Return whether each value costs simulations of its own."""
        return any(part.played for part in self.parts)

    def knob(self, gap: Gap) -> Knob:
        """Return the parameter of the first part that stands for a missing input."""
        return self.parts[0].knob(gap)


def _parameters(side: str, machine: Machine) -> list[Knob]:
    return [
        Knob(side, path, float(p.value), p.dimension, p.source or "", p.range)
        for path, p in machine.parameters.items()
    ]


def _hardware(name: str, side: Side) -> list[Knob]:
    """Return the parameters of a machine that could matter.

    Each of them costs a played work a table of prices. There only those are tried whose class is
    not the best, and that move an iteration's price.
    """
    # Counts of channels, banks, tables and threads are a structure: there is no tenth of a bank.
    knobs = [
        k
        for k in _parameters(name, side.machine)
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


def _software(side: Side, *, every: bool = False) -> list[Knob]:
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


def comparison(
    published: Published, document: Document, point: Point, memory: Memory | None = None
) -> Comparison | Summary:
    """Return a point as a function of its parameters.

    Args:
        memory: What points of one source share.
    Raises:
        OpbyteError: If machine, mapping or work do not exist or do not fit together.
    """
    memory = memory or Memory()
    cases = point.mean
    for name, values in point.over.items():
        cases = tuple(Case(experiment=Setup(workload={name: value})) for value in values)
    if not cases:
        return _comparison(published, document, point, memory)
    parts = []
    for case in cases:
        own = {"experiment": case.experiment.over(point.experiment)}
        if case.baseline is not None:
            own["baseline"] = case.baseline.over(point.baseline or Setup())
        parts.append(_comparison(published, document, point.model_copy(update=own), memory))
    return Summary(tuple(parts), point.reduce)


def otherwise(point: Point, alternative: Alternative) -> Point:
    """Return a point whose own machines have an alternative in the place of what they have."""
    change = Setup(set=alternative.set)
    cases = tuple(
        case.model_copy(update={"experiment": change.over(case.experiment)}) for case in point.mean
    )
    own = change.over(point.experiment)
    return point.model_copy(update={"experiment": own, "mean": cases})


def _comparison(
    published: Published, document: Document, point: Point, memory: Memory
) -> Comparison:
    ours = point.experiment.over(published.experiment)
    baseline = None
    if point.baseline is not None:
        baseline = _side(document, point, point.baseline.over(ours), memory)
    return Comparison(_side(document, point, ours, memory), baseline, point.ratio)


def _side(document: Document, point: Point, setup: Setup, memory: Memory) -> Side:
    if setup.machine is None:
        raise ConfigError.one(
            document.name, f"points.{point.id}", "names no machine", "", "add one"
        )
    fidelity = setup.fidelity or "analytic"
    machine = _machine(setup, memory)
    expression = _EXPRESSION.match(point.metric)
    if expression and set(Expression.parse(expression.group(1)).names) <= set(machine.values):
        return Side(machine, None, None, fidelity, point.metric)
    key = setup.model_dump_json()
    if key not in memory.setups:
        memory.setups[key] = _built(document, point, setup, machine, memory)
    work, mapping, one = memory.setups[key]
    return Side(machine, work, mapping, fidelity, point.metric, one, point.operators, key, memory)


def _machine(setup: Setup, memory: Memory) -> Machine:
    """Return the machine of a setup, which others of the same parameters share."""
    assert setup.machine is not None
    key = json.dumps([setup.machine, setup.set], sort_keys=True, default=str)
    if key not in memory.machines:
        machine = load_machine(setup.machine)
        memory.machines[key] = machine.replace(setup.set) if setup.set else machine
    return memory.machines[key]


def _built(
    document: Document, point: Point, setup: Setup, machine: Machine, memory: Memory
) -> tuple[Work, SoftwareMapping, Played | None]:
    """Return the work of a setup and its mapping, and the work as it is played, if it is."""
    if not setup.workload:
        raise ConfigError.one(
            document.name, f"points.{point.id}", "names no workload", "", "add one"
        )
    where = f"{document.name}: {point.id}: workload"
    if setup.workload.get("kind") == "serve":
        mapping = resolve_mapping(machine, setup.mapping, "serve")
        one = played(machine, mapping, setup.workload, where, memory)
        return one.work(), mapping, one
    work = work_from(Document(setup.workload, {}, where))
    return work, resolve_mapping(machine, setup.mapping, work.kind), None
