"""A metric against one parameter, a line for each of something else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from opbyte.sweeps.plots._frames import (
    OK,
    Points,
    column,
    direction,
    frame_of,
    in_order,
    names_of,
    numbers,
    numeric,
)
from opbyte.sweeps.plots._quantities import dress, quantity, span_of
from opbyte.sweeps.plots._style import DASHES, axes_for, figure_of, in_style, series_style, wrapped

#: Spans from which the axes are logarithmic.
_LOG_X, _LOG_Y = 10.0, 5.0
#: Markers on one line, and room for one cross as a share of the axis.
_MARKED = 24
_CROSS = 0.035


@in_style
def lines(
    data: Points,
    x: str,
    y: str,
    by: str | Sequence[str] = (),
    *,
    objectives: dict[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw y against x, one line for each combination of `by`.

    Where several rows share a line and an x, the best is drawn. A point that is infeasible is an
    x at the edge of the axes, on the side where y is worst.

    Args:
        data: Frame, result store or results.
        x: Numeric column.
        y: Metric.
        by: Up to two columns; the first gives colour and marker, the second the dashes.
        objectives: Metric -> `min` or `max`, which says what is best.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If there is no such column or no point.
    """
    frame, study = frame_of(data)
    x, y = column(frame, x), column(frame, y)
    keys = [column(frame, b) for b in ([by] if isinstance(by, str) else by)]
    sense = direction(y, objectives or study.get("objectives"))
    fine = (frame["status"] == OK).to_numpy() & np.isfinite(numbers(frame, y))
    places = numbers(frame, x)
    curves, lost = [], []
    used: dict[int, set[Any]] = {0: set(), 1: set()}
    for combination in product(*(in_order(frame[k]) for k in keys)):
        mine = np.ones(len(frame), bool)
        for key, value in zip(keys, combination, strict=True):
            mine &= (frame[key] == value).to_numpy()
        if not mine.any():
            continue
        style = _style(frame, keys, combination)
        best = frame[mine & fine].groupby(x)[y].agg(sense).sort_index()
        curves.append((best.index.to_numpy(float), best.to_numpy(float), style))
        gone = np.setdiff1d(places[mine], best.index.to_numpy(float))
        lost += [(float(g), style["color"]) for g in gone]
        for i, value in enumerate(combination[:2]):
            used[i].add(value)
    ax = axes_for(ax, width=4.6, height=2.9)
    heights = np.concatenate([np.zeros(0), *(values for _, values, _ in curves)])
    dress(ax.xaxis, x, places, log=span_of(places) > _LOG_X)
    dress(ax.yaxis, y, heights, log=span_of(heights) > _LOG_Y)
    for at, values, style in curves:
        if len(at):
            ax.plot(at, values, zorder=3, markevery=-(-len(at) // _MARKED), **style)
    handles = _handles(frame, keys, used)
    if lost:
        _edge(ax, lost, top=sense == "min")
        small = set(frame.loc[~fine, "status"]) == {"infeasible"}
        word = "does not fit" if small else "not feasible"
        handles.append(Line2D([], [], ls="", marker="x", c="#444444", ms=4.5, mew=1.2, label=word))
    if len(handles) > 1 or keys:
        figure_of(ax).legend(handles=handles, loc="outside right upper")
    return ax


def _style(frame: pd.DataFrame, keys: list[str], combination: tuple[Any, ...]) -> dict[str, Any]:
    color, marker = _look(frame, keys[0], combination[0]) if keys else series_style(0)
    dashes = 0
    for key, value in list(zip(keys, combination, strict=True))[1:]:
        dashes = in_order(frame[key]).index(value)
    return {"color": color, "marker": marker, "ls": DASHES[dashes % len(DASHES)], "ms": 3.5}


def _look(frame: pd.DataFrame, key: str, value: Any) -> tuple[Any, str]:
    """Return colour and marker of a line: names from the palette, numbers light to dark."""
    values = in_order(frame[key])
    index = values.index(value)
    color, marker = series_style(index)
    if numeric(frame, key) and len(values) > 3:
        return colormaps["viridis_r"](0.12 + 0.88 * index / (len(values) - 1)), marker
    return color, marker


def _handles(frame: pd.DataFrame, keys: list[str], used: dict[int, set[Any]]) -> list[Any]:
    handles: list[Any] = []
    for level, key in enumerate(keys[:2]):
        handles.append(Line2D([], [], ls="", label=f"{quantity(key).label}:"))
        for i, (value, text) in enumerate(names_of(frame, key).items()):
            if value not in used[level]:
                continue
            name = wrapped(text)
            if level == 0:
                color, marker = _look(frame, key, value)
                handles.append(Line2D([], [], color=color, marker=marker, ms=3.5, label=name))
            else:
                dashes = DASHES[i % len(DASHES)]
                handles.append(Line2D([], [], color="#444444", ls=dashes, label=name))
    return handles


def _edge(ax: Axes, lost: list[tuple[float, Any]], *, top: bool) -> None:
    """Draw crosses at the edge, one row for each colour: the first to get lost outermost."""
    first: dict[Any, float] = {}
    for x, color in lost:
        first[color] = min(x, first.get(color, x))
    rows = {color: i for i, color in enumerate(sorted(first, key=lambda c: first[c]))}
    wide = np.log if ax.get_xscale() == "log" else np.asarray
    room = _CROSS * float(np.ptp(wide(np.array(ax.get_xlim()))))
    last: dict[Any, float] = {}
    for x, color in sorted(set(lost), key=lambda cross: cross[0]):
        at = float(wide(x))
        if at - last.get(color, -np.inf) < room:
            continue
        last[color] = at
        inset = 0.055 * rows[color]
        ax.plot(
            x,
            1.0 - inset if top else inset,
            "x",
            color=color,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            ms=5,
            mew=1.4,
            zorder=6,
        )
    low, high = ax.get_ylim()
    room = 0.055 * (len(rows) + 1)
    if ax.get_yscale() == "log":
        stretch = (high / low) ** room
        ax.set_ylim(low if top else low / stretch, high * stretch if top else high)
    else:
        stretch = (high - low) * room
        ax.set_ylim(low if top else low - stretch, high + stretch if top else high)
