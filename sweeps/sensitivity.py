"""Which parameters decide a metric, and the band that what is not known exactly gives it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats.qmc import Sobol

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter
from opbyte.core.registry import nearest
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.workloads.works import Work, work_from

__all__ = ["band", "sensitivity"]

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
    ranged = {
        path: (p.value, *p.range)
        for path, p in sides.ours.parameters.items()
        if p.range is not None and p.dimension != "count"
    }
    columns = {}
    for (path, (value, low, high)), part in zip(
        ranged.items(), _evenly(len(ranged), samples, seed), strict=True
    ):
        drawn = low * (high / low) ** part if low > 0 else low + (high - low) * part
        drawn[0] = value
        columns[path] = drawn
    return np.array(np.broadcast_to(sides.values(columns), samples))


def _evenly(count: int, samples: int, seed: int) -> Array:
    """Return values in [0, 1), (count, samples)."""
    if not count:
        return np.empty((0, samples))
    power = max(samples - 1, 1).bit_length()
    sobol = Sobol(count, rng=np.random.default_rng(seed)).random_base2(power)
    return np.ascontiguousarray(sobol[:samples].T)


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
