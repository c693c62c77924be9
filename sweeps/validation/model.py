"""A published point as a function of every parameter behind it, evaluated for many at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.sourced import sourced
from opbyte.core.units import parse
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import resolve_mapping
from opbyte.sweeps.expressions import Expression
from opbyte.sweeps.validation.knobs import Knob
from opbyte.sweeps.validation.played import Memory, Played, played
from opbyte.sweeps.validation.published import (
    Alternative,
    Case,
    Gap,
    Point,
    Published,
    Setup,
)
from opbyte.sweeps.validation.sides import EXPRESSION, Side, asked, hardware, mapped, parameters
from opbyte.workloads.works import Work, work_from

#: Comparisons of a number beyond which three of them say which parameters matter.
MANY = 8
#: Whose mapping a knob is of.
_OURS, _THEIRS = "mapping", "baseline.mapping"


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

    @cached_property
    def common_software(self) -> frozenset[str]:
        """Return the parameters that the mappings of both sides share, which move together."""
        if self.baseline is None or self.baseline.mapping is None or self.ours.mapping is None:
            return frozenset()
        ours, theirs = sourced(self.ours.mapping), sourced(self.baseline.mapping)
        return frozenset(name for name in ours if ours[name] == theirs.get(name))

    def values(self, columns: Mapping[Knob, Array]) -> Array:
        """Return the point's value for each entry of the columns, (points,) or (1,)."""

        def of(side: str) -> dict[str, Array]:
            return {k.name: v for k, v in columns.items() if k.side == side}

        ours = self.ours.values(of("machine"), of("workload"), of(_OURS))
        if self.baseline is None:
            return ours
        both = {name: v for name, v in of("machine").items() if name in self.common}
        software = {name: v for name, v in of(_OURS).items() if name in self.common_software}
        base = self.baseline.values(
            {**of("baseline"), **both}, of("workload"), {**of(_THEIRS), **software}
        )
        if self.ratio == "gain":
            return 100.0 * (ours / base - 1.0)
        if self.ratio == "cut":
            return 100.0 * (1.0 - ours / base)
        return ours / base if self.ratio == "ours/baseline" else base / ours

    def knobs(self) -> list[Knob]:
        """Return every parameter that could matter."""
        knobs = hardware("machine", self.ours)
        if self.baseline is not None and not self.one_machine:
            theirs = hardware("baseline", self.baseline)
            knobs += [k for k in theirs if k.name not in self.common]
        return knobs + self._mapped() + asked(self.ours)

    def _mapped(self) -> list[Knob]:
        """Return the parameters of both mappings."""
        theirs = mapped(_THEIRS, self.baseline) if self.baseline is not None else []
        return mapped(_OURS, self.ours) + [k for k in theirs if k.name not in self.common_software]

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
        elif side == "baseline" and self.baseline is not None and not name.startswith("mapping."):
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
        knobs = parameters("machine", self.ours.machine)
        if self.baseline is not None and not self.one_machine:
            knobs += parameters("baseline", self.baseline.machine)
        return knobs + self._mapped() + asked(self.ours, every=True)


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
    expression = EXPRESSION.match(point.metric)
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
