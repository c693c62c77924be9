"""Fronts and hypervolume over objectives, with moocore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["costs", "feasible", "front", "front_of", "hypervolume", "nadir"]

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, npt.NDArray[Any]]


def front(frame: pd.DataFrame, objectives: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows that no other row beats in every objective, best first objective first.

    Rows that are not ok, break a constraint, or lack an objective take no part. Of rows that are
    equal in all objectives the first stays.

    Args:
        frame: One row per point, such as `Results.frame()`.
        objectives: Column -> min or max.

    Raises:
        ConfigError: For a column that the frame lacks, with the nearest name.
    """
    columns = {name: frame[name].to_numpy() for name in frame.columns}
    return frame.iloc[front_of(columns, objectives)]


def front_of(columns: Columns, objectives: Mapping[str, str]) -> npt.NDArray[np.int64]:
    """Return the positions of the front's points, best first objective first; see `front`."""
    values = costs(columns, objectives)
    candidates = np.flatnonzero(feasible(columns) & np.isfinite(values).all(axis=1))
    if not len(candidates) or not values.shape[1]:
        return np.zeros(0, dtype=np.int64)
    inside = values[candidates]
    if values.shape[1] == 1:
        chosen = candidates[[int(np.argmin(inside[:, 0]))]]
    else:
        import moocore

        chosen = candidates[moocore.is_nondominated(inside, keep_weakly=False)]
    order = np.lexsort(values[chosen].T[::-1])
    return chosen[order].astype(np.int64)


def costs(columns: Columns, objectives: Mapping[str, str]) -> Floats:
    """Return the objectives as costs to minimise, (points, objectives).

    Raises:
        ConfigError: For a column that does not exist or holds no numbers, or a direction that is
            neither min nor max.
    """
    found = []
    for name, direction in objectives.items():
        if name not in columns:
            near = nearest(name, columns)
            hint = f"Did you mean {near!r}?" if near else f"Known: {', '.join(columns)}."
            raise ConfigError.one("", "objectives", f"there is no column {name!r}", "", hint)
        if direction not in ("min", "max"):
            rule = f"the direction of {name} must be min or max"
            raise ConfigError.one("", "objectives", rule, direction)
        sign = 1.0 if direction == "min" else -1.0
        try:
            found.append(sign * np.asarray(columns[name], dtype=np.float64))
        except (TypeError, ValueError):
            raise ConfigError.one(
                "", "objectives", f"column {name!r} holds no numbers", columns[name][0]
            ) from None
    return np.stack(found, axis=1) if found else np.zeros((_rows(columns), 0))


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values()))) if columns else 0


def feasible(columns: Columns) -> npt.NDArray[np.bool_]:
    """Return which points are ok and keep the constraints, (points,)."""
    good = np.ones(_rows(columns), dtype=np.bool_)
    if "status" in columns:
        good &= np.asarray(columns["status"]) == "ok"
    if "violation" in columns:
        good &= np.asarray(columns["violation"], dtype=np.float64) == 0.0
    return good


def nadir(values: Floats) -> tuple[Floats, Floats]:
    """Return the best and the worst value of each objective over a front, as costs."""
    return values.min(axis=0), values.max(axis=0)


def hypervolume(values: Floats, reference: Floats) -> float:
    """Return the volume that points dominate up to a reference, all as costs.

    Args:
        values: (points, objectives).
        reference: (objectives,); points beyond it count nothing.
    """
    inside = values[np.all(values < reference, axis=1)]
    if not len(inside):
        return 0.0
    if values.shape[1] == 1:
        return float(reference[0] - inside.min())
    import moocore

    return float(moocore.hypervolume(inside, ref=reference))
