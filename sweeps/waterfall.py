"""What each mechanism adds: one experiment, changed step by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opbyte.core.config import Document, load_document, validate
from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest
from opbyte.sim.simulate import simulate
from opbyte.sweeps.design import Side
from opbyte.sweeps.study import Experiment, with_kind

__all__ = ["waterfall"]

#: What a change may name as a whole; a new one forgets what was set inside the one before.
_WHOLE = ("machine", "mapping", "workload")
_BASELINE = "baseline."


def waterfall(
    experiment: str | Path | Mapping[str, Any],
    changes: Mapping[str, Mapping[str, Any]],
    metric: str,
    *,
    baseline: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return a metric after each of several changes, each made on top of those before it.

    What a change adds depends on its place in the order: of two that hide each other, the second
    adds nothing.

    Args:
        experiment: An experiment: file, or its YAML form as a dict.
        changes: Name of each step -> values by path, as in a study's axes: `machine`, `mapping`
            or `workload` as a whole, `machine.x`, `mapping.x` or `workload.x`, and `fidelity`.
        metric: Metric of the work, such as `tokens_per_s`.
        baseline: Values by path that make of the experiment what its metric is divided by. It
            follows the changes of machine, workload and fidelity, but has a mapping of its own;
            paths of `changes` that begin with `baseline.` change it alone.
    Returns:
        One row for each step, the experiment itself first: `step`, `value` (the metric, or its
        ratio), `change` (difference from the row before) and `factor` (quotient). The metric is
        `frame.attrs["metric"]`; `frame.attrs["ratio"]` says whether there is a baseline.
    Raises:
        ConfigError: For a path, a value or a metric that does not exist.
        OpbyteError: If a step can not be simulated.
    """
    document = _document(experiment)
    one = validate(Experiment, with_kind(document, "experiment"))
    side = Side(document, (), one.machine, one.workload, one.mapping, one.set)
    names = [one.name or "start", *changes]
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = dict(baseline or {})
    values = []
    for step in ({}, *changes.values()):
        _check(step, baseline)
        alone = {p.removeprefix(_BASELINE): v for p, v in step.items() if p.startswith(_BASELINE)}
        own = {p: v for p, v in step.items() if not p.startswith(_BASELINE)}
        ours, theirs = _over(own, ours), _over(alone, theirs)
        value = _value(side, one, ours, metric)
        if baseline is not None:
            shared = {p: v for p, v in ours.items() if p.partition(".")[0] != "mapping"}
            value = value / _value(side, one, _over(theirs, shared), metric)
        values.append(value)
    before = np.array([np.nan, *values[:-1]])
    found = np.array(values)
    frame = pd.DataFrame(
        {"step": names, "value": found, "change": found - before, "factor": found / before}
    )
    frame.attrs |= {"metric": metric, "ratio": baseline is not None}
    return frame


def _document(experiment: str | Path | Mapping[str, Any]) -> Document:
    if isinstance(experiment, Mapping):
        return Document({"kind": "experiment", **experiment}, {}, "experiment")
    return load_document(experiment)


def _check(step: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> None:
    """Refuse paths that begin with nothing that a change can name."""
    for path in step:
        root = path.removeprefix(_BASELINE).partition(".")[0]
        if root not in (*_WHOLE, "fidelity"):
            rule = "a path begins with machine, mapping, workload or fidelity"
            raise ConfigError.one("", "changes", rule, path, "Write for example mapping.fusion.")
        if path.startswith(_BASELINE) and baseline is None:
            raise ConfigError.one("", "changes", "there is no baseline to change", path, "give one")


def _over(step: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values by path of a step on top of others."""
    new = [f"{name}." for name in _WHOLE if name in step]
    kept = {p: v for p, v in before.items() if not any(p.startswith(start) for start in new)}
    return {**kept, **step}


def _value(side: Side, one: Experiment, choice: Mapping[str, Any], metric: str) -> float:
    fidelity = choice.get("fidelity", one.fidelity)
    design = side.build({p: v for p, v in choice.items() if p != "fidelity"})
    result = simulate(design.machine, design.work, design.mapping, fidelity, one.seed)
    if metric not in result.metrics:
        near = nearest(metric, result.metrics)
        guess = f"did you mean {near!r}? " if near else ""
        rule = f"a {design.work.kind} work has no such metric"
        known = f"{guess}known: {', '.join(result.metrics)}"
        raise ConfigError.one("", "metric", rule, metric, known)
    return float(result.metrics[metric])
