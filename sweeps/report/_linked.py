"""What the linked views of a page show: points, columns, and how each is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from opbyte.sweeps.plots._frames import numbers, numeric
from opbyte.sweeps.plots._pareto import LOG_FROM
from opbyte.sweeps.plots._quantities import quantity, span_of
from opbyte.sweeps.plots._style import PALETTE
from opbyte.sweeps.report._columns import encoded, text_of

__all__ = ["LIMIT", "Linked", "linked"]

#: Points of a page; the front of more is whole, the others are thinned evenly.
LIMIT = 150_000
#: Characters of columns: a page stays below 15 MB with its figures.
BUDGET = 13_000_000
_PARALLEL = 8
_FIRST_COLUMNS = 12


@dataclass(frozen=True)
class Linked:
    """The data of the linked views.

    Attributes:
        spec: Everything but the columns' data, as plain data.
        data: The columns' data, name of the element -> base64.
        kept: Points on the page.
        total: Points of the store.
    """

    spec: dict[str, Any]
    data: dict[str, str]
    kept: int
    total: int


def linked(
    frame: pd.DataFrame,
    stored: pd.DataFrame,
    objectives: Mapping[str, str],
    axes: list[str],
    best: npt.NDArray[np.bool_],
    limit: int = LIMIT,
) -> Linked:
    """Return the data of the linked views.

    Args:
        frame: One row for each point, with the status that pages show.
        stored: The same rows as the store has them; these are what is downloaded.
        objectives: Metric -> min or max.
        axes: Columns of the axes that vary.
        best: Which points are on the front.
        limit: Most points.
    """
    total = len(stored)
    rows = _thinned(best, limit)
    found = _encoded(stored.iloc[rows])
    size = _size(found)
    if size > BUDGET:
        rows = _thinned(best, max(int(len(rows) * BUDGET / size * 0.97), 1))
        found = _encoded(stored.iloc[rows])
    shown = frame.iloc[rows]
    columns, data = [], {}
    for i, (name, column) in enumerate(found.items()):
        data[f"c{i}"] = column.pop("data")
        columns.append({**_about(shown, name), **column, "element": f"c{i}"})
    codes, texts = pd.factorize(shown["status"].astype(str))
    data["front"] = text_of(best[rows].astype(np.uint8))
    data["shown"] = text_of(codes.astype(np.uint8))
    names = [c["name"] for c in columns]
    extra = [n for n in ("speedup",) if n in names]
    drawn = [c["name"] for c in columns if c["drawn"]]
    first = list(dict.fromkeys([*axes, *objectives, *extra]))
    spec = {
        "rows": len(rows),
        "total": total,
        "columns": columns,
        "statuses": [str(t) for t in texts],
        "objectives": dict(objectives),
        "axes": axes,
        "scatter": _pair(objectives, axes, columns),
        "color": next((a for a in axes if not numeric(shown, a)), ""),
        "parallel": [n for n in dict.fromkeys([*axes, *objectives]) if n in drawn][:_PARALLEL],
        "table": [*first[:_FIRST_COLUMNS], "status"],
        "palette": list(PALETTE),
    }
    return Linked(spec, data, len(rows), total)


def script_json(spec: Mapping[str, Any]) -> str:
    """Return plain data as JSON that may stand inside a script element."""
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False)
    for sign in "<>&'\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _pair(objectives: Mapping[str, str], axes: list[str], columns: list[Any]) -> list[str]:
    """Return what the scatter shows first: two objectives, else an axis against what there is."""
    drawn = {c["name"]: c["kind"] != "words" for c in columns if c["drawn"]}
    asked = [m for m in objectives if m in drawn]
    if len(asked) < 2:
        across = sorted((a for a in axes if a in drawn), key=lambda a: not drawn[a])
        asked = [*across[:1], *asked, *across[1:], *drawn]
    return (list(dict.fromkeys(asked)) * 2)[:2]


def _about(frame: pd.DataFrame, name: str) -> dict[str, Any]:
    """Return what a page needs to write a column's values."""
    q = quantity(name)
    column = frame[name]
    is_number = numeric(frame, name)
    wide = is_number and span_of(numbers(frame, name)) > LOG_FROM
    distinct = int(column.nunique())
    return {
        "name": name,
        "label": q.label,
        "unit": q.unit,
        "scale": q.scale,
        "prefixes": q.prefixes,
        "log": bool(wide),
        # A column with one value, and the reasons of failures, are for the table only.
        "drawn": distinct > 1 and (is_number or distinct <= 40),
    }


def _encoded(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(name): encoded(frame[name]) for name in frame}


def _size(found: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(
        len(c["data"]) + len(c.get("values", "")) + sum(map(len, c.get("texts", ())))
        for c in found.values()
    )


def _thinned(best: npt.NDArray[np.bool_], limit: int) -> npt.NDArray[np.int64]:
    """Return the rows of a page, in order: the front, and evenly some of too many others."""
    if len(best) <= limit:
        return np.arange(len(best))
    front, rest = np.flatnonzero(best), np.flatnonzero(~best)
    room = max(limit - len(front), 0)
    taken = rest[np.linspace(0, len(rest) - 1, room).astype(np.int64)] if room else rest[:0]
    return np.sort(np.concatenate([front, taken]))
