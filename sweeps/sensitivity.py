"""Which parameters decide a metric, and the band that what is not known exactly gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter
from opbyte.core.registry import nearest
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.sweeps.draws import evenly, from_range
from opbyte.sweeps.sobol import design, indices
from opbyte.workloads.works import Work, work_from

__all__ = ["band", "sensitivity", "sobol_indices"]

#: By how much a value without a range is changed, either way.
PART = 0.10

_Machine = str | Path | Mapping[str, Any] | Machine
_Mapping = str | Path | Mapping[str, Any] | SoftwareMapping | None


def sensitivity(
    machine: _Machine,
    work: Mapping[str, Any] | Work,
    metric: str,
    *,
    mapping: _Mapping = None,
    baseline: _Machine | None = None,
) -> pd.DataFrame:
    """Return what each parameter of a machine does to a metric, the strongest first.

    A parameter takes the ends of its range, one without a range 10 % less and more (counts without
    one stay). One at a time; what moves nothing is left out.

    Args:
        metric: Metric of the work, such as `tpot` or `area_m2`.
        baseline: A machine whose metric is divided by ours. Parameters that it has with the same
            value (gates of one process) move on both together.
    Returns:
        One row for each parameter: `parameter`, `low` and `high` (its values, SI), `at_low` and
        `at_high` (the metric), `span` (their distance over the metric), `source`. The metric itself
        is `frame.attrs["value"]`; `frame.attrs["metric"]` and `["ratio"]` say what it is.
    Raises:
        ConfigError: If the work has no such metric.
        OpbyteError: If the machine can not run the work.
    """
    sides = _Sides(machine, work, metric, mapping, baseline)
    ends = {path: _ends(p) for path, p in sides.ours.parameters.items()}
    varied = {path: pair for path, pair in ends.items() if pair[0] < pair[1]}
    columns = {}
    for i, (path, pair) in enumerate(varied.items()):
        column = np.full(1 + 2 * len(varied), sides.ours.parameters[path].value)
        column[1 + 2 * i : 3 + 2 * i] = pair
        columns[path] = column
    found = np.broadcast_to(sides.values(columns), 1 + 2 * len(varied))
    value, moved = float(found[0]), found[1:].reshape(-1, 2)
    frame = pd.DataFrame(
        {
            "parameter": list(varied),
            "low": [pair[0] for pair in varied.values()],
            "high": [pair[1] for pair in varied.values()],
            "at_low": moved[:, 0],
            "at_high": moved[:, 1],
            "span": np.abs(moved[:, 1] - moved[:, 0]) / abs(value),
            "source": [sides.ours.parameters[path].source or "" for path in varied],
        }
    )
    frame = frame[(frame["at_low"] != value) | (frame["at_high"] != value)]
    frame = frame.sort_values("span", ascending=False, kind="stable").reset_index(drop=True)
    frame.attrs |= {"metric": metric, "value": value, "ratio": baseline is not None}
    return frame


def band(
    machine: _Machine,
    work: Mapping[str, Any] | Work,
    metric: str,
    *,
    mapping: _Mapping = None,
    baseline: _Machine | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Array:
    """Return a metric where all parameters are drawn from their ranges at once, (samples,).

    Independent and even in the logarithm (linear where a range begins at 0); counts stay. Drawn by
    a scrambled Sobol sequence, whose percentiles settle with fewer samples than drawn at random.
    The first sample has the machine's own values; percentiles of the rest are the band.

    Args:
        baseline: As in `sensitivity`.
    """
    sides = _Sides(machine, work, metric, mapping, baseline)
    ranged = _ranged(sides.ours)
    columns = _drawn(ranged, evenly(len(ranged), samples, seed))
    for path, drawn in columns.items():
        drawn[0] = sides.ours.parameters[path].value
    return np.array(np.broadcast_to(sides.values(columns), samples))


def sobol_indices(
    machine: _Machine,
    work: Mapping[str, Any] | Work,
    metric: str,
    *,
    mapping: _Mapping = None,
    baseline: _Machine | None = None,
    samples: int = 256,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much of a metric's variance each parameter's range causes, the most first.

    Parameters are drawn as in `band`; those without a range stay. A first-order index is the share
    of the variance that a parameter causes alone, a total index the share that it has part in:
    their difference is what it does together with others. docs/studies.md has the estimators.

    Args:
        baseline: As in `sensitivity`.
        samples: Base samples, a power of two; samples (parameters + 2) points are evaluated.
    Returns:
        One row for each parameter: `parameter`, `first`, `total`, and their standard errors
        `first_error` and `total_error` by bootstrap, `source`. `frame.attrs` has `metric`, `ratio`,
        and the `mean` and `deviation` of the metric.
    Raises:
        ConfigError: If the work has no such metric, no parameter has a range, or `samples` is no
            power of two.
        UncoveredError: If a part of the ranges does not fit or has no value.
    """
    sides = _Sides(machine, work, metric, mapping, baseline)
    ranged = _ranged(sides.ours)
    if not ranged:
        rule = "no parameter of this machine has a range"
        raise ConfigError.one("", "machine", rule, sides.ours.name)
    columns = _drawn(ranged, design(len(ranged), samples, seed))
    values = np.broadcast_to(sides.values(columns), samples * (len(ranged) + 2))
    if not np.isfinite(values).all():
        rule = f"{metric} has no value in a part of the parameters' ranges"
        raise UncoveredError(f"{sides.ours.name}: {rule}, so it has no indices")
    found = indices(values, len(ranged), seed)
    frame = pd.DataFrame(
        {
            "parameter": list(ranged),
            "first": found.first,
            "total": found.total,
            "first_error": found.first_error,
            "total_error": found.total_error,
            "source": [sides.ours.parameters[path].source or "" for path in ranged],
        }
    )
    frame = frame.sort_values("total", ascending=False, kind="stable").reset_index(drop=True)
    about = {"mean": found.mean, "deviation": found.deviation, "ratio": baseline is not None}
    frame.attrs |= {"metric": metric, **about}
    return frame


def _ranged(machine: Machine) -> dict[str, tuple[float, float]]:
    """Return the ranges of those parameters that are drawn; counts are not."""
    return {
        path: p.range
        for path, p in machine.parameters.items()
        if p.range is not None and p.dimension != "count"
    }


def _drawn(ranged: Mapping[str, tuple[float, float]], parts: Array) -> dict[str, Array]:
    """Return values in the ranges for parts in [0, 1)."""
    return {p: from_range(*r, part) for (p, r), part in zip(ranged.items(), parts, strict=True)}


def _ends(p: Parameter) -> tuple[float, float]:
    if p.range is not None:
        return p.range
    if p.dimension == "count":
        return p.value, p.value
    high = min(1.0, p.value * (1 + PART)) if p.dimension == "ratio" else p.value * (1 + PART)
    return p.value * (1 - PART), high


class _Sides:
    """A machine, perhaps a baseline, and a work, as a function of the machine's parameters."""

    def __init__(
        self,
        machine: _Machine,
        work: Mapping[str, Any] | Work,
        metric: str,
        mapping: _Mapping,
        baseline: _Machine | None,
    ) -> None:
        self.ours = load_machine(machine)
        self.theirs = None if baseline is None else load_machine(baseline)
        if not isinstance(work, Work):
            work = work_from(Document(dict(work), {}, "work"))
        self.work = work
        self.metric, self.mapping = metric, mapping

    def values(self, columns: Mapping[str, Array]) -> Array:
        """Return the metric, or the baseline's over ours, (1 or points,)."""
        ours = self._one(self.ours, columns)
        if self.theirs is None:
            return ours
        own, their = self.ours.parameters, self.theirs.parameters
        both = {p: v for p, v in columns.items() if p in their and their[p].value == own[p].value}
        return self._one(self.theirs, both) / ours

    def _one(self, machine: Machine, columns: Mapping[str, Array]) -> Array:
        varied = machine.with_values(columns) if columns else machine
        mapping = resolve_mapping(machine, self.mapping, self.work.kind)
        with np.errstate(divide="ignore", invalid="ignore"):
            metrics = evaluate(varied, self.work, mapping, "analytic").metrics
        if self.metric not in metrics:
            near = nearest(self.metric, metrics)
            guess = f"did you mean {near!r}? " if near else ""
            rule = f"a {self.work.kind} work has no such metric"
            raise ConfigError.one(
                "", "metric", rule, self.metric, f"{guess}known: {', '.join(metrics)}"
            )
        return np.atleast_1d(metrics[self.metric])
