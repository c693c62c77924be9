"""Design points of a training step with an allocation policy: those placed alike run together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.result import Outcome

if TYPE_CHECKING:
    from opbyte.workloads.train import TrainStep

Decide = Callable[[Machine, "TrainStep"], SoftwareMapping]
Run = Callable[[Machine, "TrainStep", SoftwareMapping], Outcome]


def placed_alike(machine: Machine, work: TrainStep, decide: Decide, run: Run) -> Outcome:
    """Return the outcome of all points, each with the placement that its policy decides.

    Phases and tables are those of the points that are placed as the first one is.

    Args:
        decide: Returns the mapping of one point.
        run: Returns the outcome of points with one mapping.
    """
    vectors = {name: getattr(work, name) for name in work.vector_fields}
    many = max(machine.points, *(np.size(v) for v in vectors.values()))
    if many == 1:
        one, step = _some(machine, work, [0])
        return run(machine, work, decide(one, step))
    groups: dict[str, tuple[SoftwareMapping, list[int]]] = {}
    for point in range(many):
        mapping = decide(*_some(machine, work, [point]))
        groups.setdefault(repr(mapping.place), (mapping, []))[1].append(point)
    found = [(i, run(*_some(machine, work, i), mapping)) for mapping, i in groups.values()]
    whole = found[0][1]
    bad = np.zeros(many, bool)
    for points, outcome in found:
        bad[points] = False if outcome.infeasible is None else outcome.infeasible
    reasons = tuple(dict.fromkeys(text for _, outcome in found for text in outcome.reasons))
    return replace(
        whole,
        metrics={n: _joined([(i, o.metrics[n]) for i, o in found], many) for n in whole.metrics},
        occupancy={
            tier: _joined([(i, o.occupancy.get(tier, 0.0)) for i, o in found], many)
            for tier in dict.fromkeys(t for _, o in found for t in o.occupancy)
        },
        infeasible=bad if bad.any() else None,
        reasons=reasons,
    )


def _joined(parts: list[tuple[list[int], Any]], many: int) -> Any:
    whole = np.empty(many)
    for points, values in parts:
        whole[points] = values
    return whole


def _some(machine: Machine, work: TrainStep, points: list[int]) -> tuple[Machine, TrainStep]:
    """Return a machine and a work of some of their points."""
    values = {n: _of(v, points) for n, v in machine.values.items() if isinstance(v, np.ndarray)}
    fields = {n: getattr(work, n) for n in work.vector_fields}
    changed: Any = {n: _of(v, points) for n, v in fields.items() if isinstance(v, np.ndarray)}
    return machine.with_values(values), replace(work, **changed) if changed else work


def _of(value: Any, points: list[int]) -> Any:
    if value.size == 1:
        return value.item()
    return float(value[points[0]]) if len(points) == 1 else value[points]
