"""What changed between two results: in the configuration, and in the metrics of equal points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.sweeps.console import Output, counted
from opbyte.sweeps.differences import Difference, differences
from opbyte.sweeps.pareto import costs, front_of, hypervolume
from opbyte.sweeps.store import open_results

__all__ = ["Comparison", "Ratio", "compared", "show_comparison"]

_MOST_DIFFERENCES = 40
_MARGIN = 0.1


@dataclass(frozen=True)
class Ratio:
    """How one metric changed over the points that both results have.

    Attributes:
        metric: Column.
        median: Median of after / before.
        low: Smallest ratio.
        high: Largest ratio.
        points: Points with a value in both.
    """

    metric: str
    median: float
    low: float
    high: float
    points: int


@dataclass(frozen=True)
class Comparison:
    """Two results side by side.

    Attributes:
        config: What differs in the configuration.
        same_code: Whether the same version of the program computed both; None if unknown.
        counts: Points of both, and how many have the same axis values.
        ratios: How the metrics changed.
        status: (status before, status after) -> points, where it changed.
        hypervolume: Of both fronts, up to the same reference; None without common objectives.
    """

    config: list[Difference]
    same_code: bool | None
    counts: tuple[int, int, int]
    ratios: list[Ratio]
    status: dict[str, int]
    hypervolume: tuple[float, float] | None


@dataclass(frozen=True)
class _Side:
    config: Mapping[str, Any]
    code: str | None
    axes: list[str]
    derived: list[str]
    objectives: dict[str, str]
    columns: Mapping[str, Any]


def compared(before: str | Path, after: str | Path) -> Comparison:
    """Return what changed between two folders of results, of studies or of experiments.

    Raises:
        ConfigError: If a folder holds no results.
    """
    a, b = _read(Path(before)), _read(Path(after))
    shared = [x for x in a.axes if x in b.axes]
    at_a, at_b = _matched(a, b, shared)
    metrics = [n for n in a.columns if n in b.columns and _is_metric(n, a, b)]
    ratios = [r for n in metrics if (r := _ratio(n, a.columns[n][at_a], b.columns[n][at_b]))]
    code = None if a.code is None or b.code is None else a.code == b.code
    counts = (_rows(a.columns), _rows(b.columns), len(at_a))
    status = _status(a.columns["status"][at_a], b.columns["status"][at_b])
    return Comparison(
        differences(a.config, b.config), code, counts, ratios, status, _hypervolumes(a, b)
    )


def _read(folder: Path) -> _Side:
    file = folder / "experiment.json"
    if not file.is_file():
        results = open_results(folder)
        meta = results.meta
        return _Side(
            meta["study"],
            meta.get("code"),
            results.axes,
            list(meta.get("derived", ())),
            results.objectives,
            results.columns(),
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        metrics = {
            n: np.array([np.nan if v is None else float(v)]) for n, v in data["metrics"].items()
        }
        columns = {"status": np.array([data["status"]], dtype=object), **metrics}
        return _Side(data["experiment"], None, [], [], {}, columns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"experiment.json can not be read ({' '.join(str(error).split())})"
        raise ConfigError.one(str(file), "", rule, "", "Run the experiment again.") from None


def _rows(columns: Mapping[str, Any]) -> int:
    return len(columns["status"]) if "status" in columns else 0


def _matched(a: _Side, b: _Side, shared: list[str]) -> tuple[Any, Any]:
    """Return positions of the points with equal values of the axes that both have."""
    where = {key: i for i, key in reversed(list(enumerate(_keys(b, shared))))}
    pairs = [(i, where[key]) for i, key in enumerate(_keys(a, shared)) if key in where]
    if not shared and len(pairs) > 1:
        pairs = []
    return np.array([i for i, _ in pairs], dtype=int), np.array([j for _, j in pairs], dtype=int)


def _keys(side: _Side, shared: list[str]) -> list[tuple[Any, ...]]:
    if not shared:
        return [()] * _rows(side.columns)
    return list(zip(*(side.columns[n].tolist() for n in shared), strict=True))


def _is_metric(name: str, a: _Side, b: _Side) -> bool:
    numbers = all(s.columns[name].dtype.kind == "f" for s in (a, b))
    skipped = {
        "point",
        "violation",
        "needed_bytes",
        "available_bytes",
        *a.axes,
        *b.axes,
        *a.derived,
        *b.derived,
    }
    return numbers and name not in skipped


def _ratio(name: str, before: Any, after: Any) -> Ratio | None:
    with np.errstate(all="ignore"):
        ratios = after / before
    known = ratios[np.isfinite(ratios)]
    if not len(known):
        return None
    return Ratio(name, float(np.median(known)), float(known.min()), float(known.max()), len(known))


def _status(before: Any, after: Any) -> dict[str, int]:
    changed: dict[str, int] = {}
    for one, two in zip(before, after, strict=True):
        if one != two:
            key = f"{one} -> {two}"
            changed[key] = changed.get(key, 0) + 1
    return changed


def _hypervolumes(a: _Side, b: _Side) -> tuple[float, float] | None:
    """Return both fronts' hypervolumes, objectives scaled to the range of both fronts together."""
    common = {n: d for n, d in a.objectives.items() if b.objectives.get(n) == d}
    if not common or any(n not in s.columns for n in common for s in (a, b)):
        return None
    fronts = [costs(s.columns, common)[front_of(s.columns, common)] for s in (a, b)]
    if not all(len(f) for f in fronts):
        return None
    both = np.concatenate(fronts)
    low, width = both.min(axis=0), np.ptp(both, axis=0)
    width[width == 0] = 1.0
    reference = np.full(len(low), 1.0 + _MARGIN)
    volumes = [hypervolume((f - low) / width, reference) for f in fronts]
    return volumes[0], volumes[1]


def show_comparison(found: Comparison, output: Output) -> None:
    """Print a comparison."""
    output.data(
        {
            "config": [d._asdict() for d in found.config],
            "same_code": found.same_code,
            "points": dict(zip(("before", "after", "common"), found.counts, strict=True)),
            "ratios": {
                r.metric: {"median": r.median, "low": r.low, "high": r.high, "points": r.points}
                for r in found.ratios
            },
            "status": found.status,
            "hypervolume": found.hypervolume,
        }
    )
    rows = [list(d) for d in found.config[:_MOST_DIFFERENCES]]
    output.table("Configuration", ["path", "A", "B"], rows, left=3)
    if len(found.config) > _MOST_DIFFERENCES:
        output.line(f"and {counted(len(found.config) - _MOST_DIFFERENCES, 'more difference')}")
    if not found.config:
        output.line("The configurations are equal.")
    if found.same_code is False:
        output.line("Two versions of the program computed these results.")
    before, after, common = found.counts
    output.line(f"points: {before:,} in A, {after:,} in B, {common:,} in both")
    rows = [
        [r.metric, f"{r.median:.4g}", f"{r.low:.4g}", f"{r.high:.4g}", f"{r.points:,}"]
        for r in found.ratios
    ]
    output.table("Metrics, B / A", ["metric", "median", "lowest", "highest", "points"], rows)
    for change, count in found.status.items():
        output.line(f"{counted(count, 'point')}: {change}")
    if found.hypervolume is not None:
        one, two = found.hypervolume
        output.line(f"hypervolume of the fronts: {one:.4g} in A, {two:.4g} in B")
