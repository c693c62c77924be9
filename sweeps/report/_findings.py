"""What a study found, as sentences with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from opbyte.core.ops import Array
from opbyte.sweeps.console import counted
from opbyte.sweeps.plots._frames import OK, cell, direction, in_order, numeric
from opbyte.sweeps.plots._quantities import quantity, show

#: Changes below this are not worth a sentence.
_SMALL = 1.01
_MOST_EFFECTS = 4
#: A column that is the same everywhere: what stays equal where there is one axis only.
_NOTHING = "_nothing"


def findings(frame: pd.DataFrame, study: Mapping[str, Any], axes: list[str]) -> list[str]:
    """Return the headline sentences of a study.

    Args:
        frame: One row per design point, with `status`.
        study: The study as written.
        axes: Columns of the axes that vary.
    """
    objectives = {m: d for m, d in (study.get("objectives") or {}).items() if m in frame}
    fine = frame[frame["status"] == OK]
    said = [_coverage(frame)]
    if fine.empty:
        return said
    for metric in objectives:
        said += _best(fine, metric, objectives, [a for a in axes if a != metric])
    said += _limits(frame, axes)
    for metric in [m for m in objectives if m not in axes][:2]:
        said += _effects(fine, metric, direction(metric, objectives), axes)
    return said


def setting(row: pd.Series, axes: list[str]) -> str:
    """Return a row's axis values as words: `batch size 64, fusion layer`.

    Axes that mean nothing there, whose cell is empty, are left out.
    """
    said = [a for a in axes if not pd.isna(row[a]) and row[a] != ""]
    return ", ".join(f"{_short(a)} {cell(row[a], a)}" for a in said)


def _short(column: str) -> str:
    label = quantity(column).label
    return label if len(label) > 1 and label[1].isupper() else label[:1].lower() + label[1:]


def _coverage(frame: pd.DataFrame) -> str:
    counts = frame["status"].value_counts()
    total, good = len(frame), int(counts.get(OK, 0))
    verb = "is" if 1 in (good, total) else "are"
    text = f"{good:,} of {counted(total, 'point')} {verb} feasible"
    others = [f"{int(n):,} {status}" for status, n in counts.items() if status != OK]
    if others:
        text += f"; {', '.join(others)}"
    if "reason" in frame:
        reasons = frame.loc[frame["status"] != OK, "reason"].dropna()
        reasons = reasons[reasons != ""]
        if len(reasons):
            often = reasons.value_counts()
            points = counted(int(often.iloc[0]), "point")
            text += f", most often because {str(often.index[0])[:160]} ({points})"
    return text + "."


def _best(
    fine: pd.DataFrame, metric: str, objectives: Mapping[str, str], axes: list[str]
) -> list[str]:
    """Return where a metric is best; of several points the best in the other objectives."""
    known = fine[fine[metric].notna()]
    if known.empty:
        return []
    sense, values = objectives[metric], known[metric]
    order = [metric, *(m for m in objectives if m != metric)]
    rising = [objectives[m] != "max" for m in order]
    row = known.sort_values(order, ascending=rising, kind="stable").iloc[0]
    middle = float(values.median())
    word = "Highest" if sense == "max" else "Lowest"
    text = f"{word} {_short(metric)}: {cell(row[metric], metric)}"
    where = setting(row, axes)
    text += f" at {where}" if where else ""
    if middle > 0 and len(values) > 2:
        text += f"; the median of the feasible points is {show(middle, metric)}"
    if metric != "speedup" and np.isfinite(row.get("speedup", np.nan)):
        text += f"; {cell(row['speedup'], 'speedup')} over the baseline"
    return [text + "."]


def _limits(frame: pd.DataFrame, axes: list[str]) -> list[str]:
    """Return from which value of a numeric axis on nothing is feasible, by name."""
    said: dict[str, list[str]] = {}
    names = [a for a in axes if not numeric(frame, a)][:1]
    for axis in (a for a in axes if numeric(frame, a)):
        for value in in_order(frame[names[0]]) if names else [None]:
            mine = frame if value is None else frame[frame[names[0]] == value]
            able = mine.loc[mine["status"] == OK, axis]
            tried = in_order(mine[axis])
            beyond = [v for v in tried if len(able) and v > able.max()]
            if beyond:
                last, first = show(float(able.max()), axis), show(float(beyond[0]), axis)
                limit = f"feasible up to {_short(axis)} {last}, not at {first}."
                said.setdefault(limit, []).append("all" if value is None else str(value))
    return [f"{', '.join(who)}: {limit}" for limit, who in said.items()][:_MOST_EFFECTS]


def _effects(fine: pd.DataFrame, metric: str, sense: str, axes: list[str]) -> list[str]:
    """Return what each axis does to a metric when everything else stays the same."""
    found = []
    values = fine[metric].to_numpy(float)
    known = fine[(values > 0) & np.isfinite(values)].assign(**{_NOTHING: 0})
    for axis in axes:
        others = [a for a in axes if a != axis] or [_NOTHING]
        if numeric(known, axis):
            found.append(_numeric_effect(known, axis, others, metric))
        else:
            found.append(_named_effect(known, axis, others, metric, sense))
    kept = [f for f in found if f is not None]
    return [text for _, text in sorted(kept, key=lambda f: -f[0])][:_MOST_EFFECTS]


def _numeric_effect(
    known: pd.DataFrame, axis: str, others: list[str], metric: str
) -> tuple[float, str] | None:
    ordered = known[[*others, axis, metric]].sort_values(axis, kind="stable")
    groups = ordered.groupby(others, sort=False)
    first, last = groups[[axis, metric]].first(), groups[[axis, metric]].last()
    moved = (first[axis] < last[axis]).to_numpy()
    if not moved.any():
        return None
    ratios = (last[metric] / first[metric]).to_numpy(float)[moved]
    low, high = float(first[axis][moved].min()), float(last[axis][moved].max())
    name = quantity(axis).label
    start = f"{name} from {show(low, axis)} to {show(high, axis)}, all else equal"
    size = float(np.maximum(ratios, 1 / ratios).max())
    if size < _SMALL:
        return size, f"{start}: {_short(metric)} stays within 1 %."
    return size, f"{start}: {_short(metric)} changes by a factor of {_range(ratios)}."


def _named_effect(
    known: pd.DataFrame, axis: str, others: list[str], metric: str, sense: str
) -> tuple[float, str] | None:
    best: Literal["min", "max"] = "min" if sense == "min" else "max"
    wide = known.pivot_table(index=others, columns=axis, values=metric, aggfunc=best)
    order = wide.median().sort_values(ascending=sense == "min").index
    parts, size = [], 1.0
    for other in order[1:]:
        both = wide[[order[0], other]].dropna().to_numpy(float)
        if not len(both):
            continue
        ratios = both[:, 1] / both[:, 0] if sense == "min" else both[:, 0] / both[:, 1]
        size = max(size, float(ratios.max()))
        parts.append(f"{other} by a factor of {_range(ratios)}")
    if not parts:
        return None
    if size < _SMALL:
        names = ", ".join(str(name) for name in order)
        return size, f"{quantity(axis).label} {names}: {_short(metric)} stays within 1 %."
    name = f"{quantity(axis).label} {order[0]}"
    return size, f"{name}, all else equal, beats {'; '.join(parts)} in {_short(metric)}."


def _range(ratios: Array) -> str:
    low, high, middle = float(ratios.min()), float(ratios.max()), float(np.median(ratios))
    if high / low < _SMALL:
        return f"{middle:.3g}"
    return f"{low:.3g} to {high:.3g} (median {middle:.3g})"
