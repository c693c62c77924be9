"""How the front of a search grew: hypervolume over points in the order of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from opbyte.sweeps.pareto import costs, feasible, hypervolume, nadir
from opbyte.sweeps.search.order import read_order
from opbyte.sweeps.store import Results

__all__ = ["order_of", "progress"]

_STEPS = 80
#: What the reference point lies beyond the worst of the front.
_BEYOND = 0.1


def order_of(results: Results, frame: pd.DataFrame) -> Any:
    """Return the positions of rows in order of evaluation; None where they have no order.

    Searches leave `order.json`; random and Sobol points are numbered as drawn. Grids are swept, not
    searched.
    """
    kind = (results.meta["study"].get("strategy") or {}).get("kind")
    if kind in ("random", "sobol"):
        return np.arange(len(frame))
    ids = read_order(results.folder)
    if ids is None or "point" not in frame or not len(frame):
        return None
    points = frame["point"].to_numpy(np.int64)
    by_id = np.argsort(points, kind="stable")
    at = np.minimum(np.searchsorted(points[by_id], ids), len(points) - 1)
    rows = by_id[at]
    return rows[points[rows] == ids]


def progress(frame: pd.DataFrame, objectives: Mapping[str, str], order: Any) -> pd.DataFrame:
    """Return the share of the final hypervolume after some numbers of points.

    Objectives are normalised by the final front; the reference lies at its worst values plus 10 %.
    An objective that is equal all over the front counts as it is.

    Args:
        frame: One row for each point, as stored.
        objectives: Metric -> min or max.
        order: Positions of the rows in order of evaluation.
    Returns:
        Columns `points` and `share`; empty where no point is feasible.
    """
    import moocore

    columns = {name: frame[name].to_numpy()[order] for name in frame.columns}
    values = costs(columns, objectives)
    good = feasible(columns) & np.isfinite(values).all(axis=1)
    if not good.any() or not values.shape[1]:
        return pd.DataFrame({"points": [], "share": []})
    fine = values[good]
    front = fine[moocore.is_nondominated(fine)] if fine.shape[1] > 1 else fine[[fine.argmin()]]
    low, high = nadir(front)
    if fine.shape[1] == 1:
        high = fine.max(axis=0)
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1e-300))
    scaled = (values - low) / span
    reference = np.full(values.shape[1], 1.0 + _BEYOND)
    whole = hypervolume(scaled[good], reference)
    counts = np.unique(np.geomspace(1, len(values), _STEPS).round().astype(np.int64))
    kept = np.zeros((0, values.shape[1]))
    shares, start = [], 0
    for count in counts.tolist():
        new = scaled[start:count][good[start:count]]
        kept, start = np.concatenate([kept, new]), count
        if kept.shape[1] > 1 and len(kept) > 1:
            kept = kept[moocore.is_nondominated(kept)]
        shares.append(hypervolume(kept, reference) / whole)
    return pd.DataFrame({"points": counts, "share": shares})
