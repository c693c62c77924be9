"""How much of a metric's spread over the points of a study each axis accounts for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from opbyte.sweeps.plots._frames import OK, numbers, numeric

__all__ = ["importance"]

#: Axes with more values than this are cut into as many parts with equally many points.
_BINS = 16
_FEWEST = 8


def importance(frame: pd.DataFrame, metrics: list[str], axes: list[str]) -> pd.DataFrame:
    """Return the share of each metric's variance that each axis accounts for alone.

    Of n points in k groups of equal (or, beyond 16 values, neighbouring) values of the axis:

        share = (SS_between - (k - 1) SS_within / (n - k)) / SS_total       Kelley, 1935 (epsilon^2)

    the first-order index of the axis over the points that were evaluated, without what k group
    means of pure noise would explain. Metrics that are above 0 are taken by their logarithm.

    Args:
        frame: One row for each point, with `status`.
        metrics: Columns to explain.
        axes: Columns of the axes that vary.
    Returns:
        One row for each axis, a column for each metric, the largest on top; shares in [0, 1].
        Metrics that do not vary, or of which fewer than 8 points are known, are left out.
    """
    fine = frame[(frame["status"] == OK).to_numpy()]
    found: dict[str, dict[str, float]] = {}
    for metric in metrics:
        if metric in axes or not numeric(fine, metric):
            continue
        values = numbers(fine, metric)
        known = np.isfinite(values)
        part = fine[known]
        y = values[known]
        y = np.log(y) if len(y) and (y > 0).all() else y
        if len(y) < _FEWEST or np.ptp(y) <= 1e-12 * max(np.abs(y).max(), 1e-300):
            continue
        found[metric] = {axis: _share(y, _groups(part, axis)) for axis in axes}
    table = pd.DataFrame(found, index=axes, dtype=np.float64)
    if table.empty:
        return table
    return table.loc[table.max(axis=1).sort_values(ascending=False, kind="stable").index]


def _groups(frame: pd.DataFrame, axis: str) -> npt.NDArray[np.int64]:
    """Return the group of each row, from 0."""
    column = frame[axis]
    if numeric(frame, axis) and column.nunique() > _BINS:
        ranks = column.rank(method="average").to_numpy(np.float64) / max(len(column), 1)
        codes: Any = np.minimum((ranks * _BINS).astype(np.int64), _BINS - 1)
    else:
        codes = column.astype(object).where(column.notna(), None)
    return np.asarray(pd.factorize(codes, use_na_sentinel=False)[0], dtype=np.int64)


def _share(y: npt.NDArray[np.float64], groups: npt.NDArray[np.int64]) -> float:
    n, k = len(y), int(groups.max()) + 1
    total = float(((y - y.mean()) ** 2).sum())
    counts = np.bincount(groups, minlength=k)
    means = np.bincount(groups, y, minlength=k) / counts
    between = float((counts * (means - y.mean()) ** 2).sum())
    if k == 1 or n <= k:
        return 0.0
    noise = (k - 1) * max(total - between, 0.0) / (n - k)
    return float(np.clip((between - noise) / total, 0.0, 1.0))


def caption(table: pd.DataFrame, labels: Mapping[str, str]) -> str:
    """Return the strongest axis of each metric as a sentence."""
    parts = [
        f"{labels[metric]}: {labels[str(table[metric].idxmax())]} ({table[metric].max():.0%})"
        for metric in map(str, table)
    ]
    return "; ".join(parts) + "."
