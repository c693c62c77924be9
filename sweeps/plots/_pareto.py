"""Design points, their front, its knee and the designs that one knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from opbyte.core.ops import Array
from opbyte.sweeps.console import counted
from opbyte.sweeps.front_bands import FrontBand
from opbyte.sweeps.plots._band import draw_band
from opbyte.sweeps.plots._frames import OK, Points, column, direction, frame_of, names_of, numbers
from opbyte.sweeps.plots._frames import numeric as is_numeric
from opbyte.sweeps.plots._labels import Label, place
from opbyte.sweeps.plots._quantities import dress, quantity, show, span_of
from opbyte.sweeps.plots._style import (
    GREY,
    LIGHT,
    axes_for,
    figure_of,
    in_style,
    legend_below,
    series_style,
    wrapped,
)

Mask = npt.NDArray[np.bool_]
#: Axes whose largest value is this many times their smallest are logarithmic.
LOG_FROM = 20.0
#: Points off the front beyond this many would only make files large.
_DOMINATED = 6000
#: A new figure has room for so many rows of its legend, and grows by so much for each more, inches.
_LEGEND_ROWS = 2
_LEGEND_ROW = 0.16


@in_style
def pareto(
    data: Points,
    x: str,
    y: str,
    *,
    objectives: Mapping[str, str] | None = None,
    color: str | None = None,
    label: str | None = None,
    band: FrontBand | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw design points: the front as a step line, dominated ones light, infeasible as crosses.

    Args:
        data: Frame, result store or results.
        x: Metric.
        y: Metric.
        objectives: Metric -> `min` or `max`; by default the study's, else what is usual for x
            and y. Points that no other point beats in all objectives are drawn strongly.
        color: Column that colours them: names give colours and markers, numbers a colour bar.
        label: Column with the names of known designs, empty for all other rows.
        band: What `front_band` made of the front: where it lies in 5 to 95 % of the draws, and
            whiskers at points that are on it in more than 5 %.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If there is no such column or no point.
    """
    frame, study = frame_of(data)
    x, y = column(frame, x), column(frame, y)
    objectives = dict(objectives or study.get("objectives") or {x: direction(x), y: direction(y)})
    xs, ys = numbers(frame, x), numbers(frame, y)
    here = np.isfinite(xs) & np.isfinite(ys)
    fine = here & (frame["status"] == OK).to_numpy()
    best = fine & front_mask(frame, objectives, fine)
    labels = _known(frame, label, here)
    drawn = _thinned(here, best, [i for i, _ in labels])
    fresh, ax = ax is None, axes_for(ax, width=4.6, height=3.1)
    log = (span_of(xs[here]) > LOG_FROM, span_of(ys[here]) > LOG_FROM)
    dress(ax.xaxis, x, xs[here], log=log[0])
    dress(ax.yaxis, y, ys[here], log=log[1])
    ax.margins(0.09)
    handles = _points(ax, frame, (xs, ys), (drawn, drawn & fine, best), color)
    line = np.flatnonzero(front_mask(frame, {m: direction(m, objectives) for m in (x, y)}, fine))
    line = line[np.lexsort((ys[line], xs[line]))]
    if len(line) > 1:
        side = _side(direction(x, objectives))
        ax.step(xs[line], ys[line], where=side, color="black", lw=0.9, zorder=3)
        handles.append(
            Line2D([], [], color="black", lw=0.9, label=f"front ({counted(len(line), 'point')})")
        )
    if band is not None:
        handles += draw_band(ax, band, x, y)
    peak = knee(xs[line], ys[line], log=log)
    if peak is not None and line[peak] not in [i for i, _ in labels]:
        at = int(line[peak])
        labels.append((at, f"knee: {show(float(xs[at]), x)},\n{show(float(ys[at]), y)}"))
    for at, _ in labels:
        ax.plot(xs[at], ys[at], "o", ms=8, mfc="none", mec="black", mew=0.8, zorder=6)
    rows = _legend(ax, handles, len(frame) - int(here.sum()), len(frame))
    if fresh:
        figure_of(ax).set_figheight(3.1 + _LEGEND_ROW * max(rows - _LEGEND_ROWS, 0))
    at_best, others = (np.stack([xs[m], ys[m]], axis=1) for m in (best, drawn & ~best))
    names = [Label(float(xs[i]), float(ys[i]), text) for i, text in labels]
    place(ax, names, at_best, others)
    return ax


def _thinned(here: Mask, best: Mask, kept: list[int]) -> Mask:
    """Return which points to draw: all of the front and `kept`, evenly some of very many others."""
    rest = np.flatnonzero(here & ~best)
    drawn = here & best
    drawn[rest[:: -(-len(rest) // _DOMINATED) or 1]] = True
    drawn[kept] = True
    return drawn


def front_mask(frame: pd.DataFrame, objectives: Mapping[str, str], fine: Mask) -> Mask:
    """Return which of the fine rows no other fine row beats in every objective, (rows,)."""
    from opbyte.sweeps.pareto import front

    mask = np.zeros(len(frame), bool)
    known = {m: d for m, d in objectives.items() if m in frame}
    rows = np.flatnonzero(fine)
    complete = rows[frame.iloc[rows][list(known)].notna().all(axis=1).to_numpy()]
    if len(complete):
        mask[front(frame.iloc[complete], known).index.to_numpy()] = True
    return mask


def knee(xs: Array, ys: Array, *, log: tuple[bool, bool] = (False, False)) -> int | None:
    """Return the point of a front farthest from the chord between its ends.

    Distances are taken on the axes as drawn, each scaled to [0, 1] (Das, 1999: the maximum
    bulge of the front). None below three points or where the front is straight.

    Args:
        xs: The front, sorted by x.
        ys: The same points.
        log: Which axes are logarithmic.
    """
    if len(xs) < 3:
        return None
    u, v = (np.log(a) if is_log else a for a, is_log in zip((xs, ys), log, strict=True))
    if np.ptp(u) == 0 or np.ptp(v) == 0:
        return None
    u, v = (u - u.min()) / np.ptp(u), (v - v.min()) / np.ptp(v)
    chord = np.array([u[-1] - u[0], v[-1] - v[0]])
    distance = np.abs(chord[0] * (v - v[0]) - chord[1] * (u - u[0]))
    at = int(np.argmax(distance))
    return at if distance[at] > 1e-6 else None


def _side(sense: str) -> Any:
    """Return on which side of a front's points the steps run: where a point is still in reach."""
    return "post" if sense == "min" else "pre"


def _points(
    ax: Axes,
    frame: pd.DataFrame,
    at: tuple[Array, Array],
    masks: tuple[Mask, Mask, Mask],
    color: str | None,
) -> list[Any]:
    xs, ys = at
    drawn, fine, best = masks
    handles: list[Any] = []
    broken = drawn & ~fine
    if broken.any():
        style: Any = {"marker": "x", "s": 11, "lw": 0.7, "c": GREY, "zorder": 1}
        ax.scatter(xs[broken], ys[broken], **style)
        handles.append(Line2D([], [], marker="x", ls="", c=GREY, ms=4, label="breaks a constraint"))
    dominated = fine & ~best
    if color is None:
        ax.scatter(xs[dominated], ys[dominated], s=9, c=LIGHT, lw=0, zorder=2)
        ax.scatter(xs[best], ys[best], s=20, c=series_style(0)[0], lw=0, zorder=5)
        if dominated.any():
            handles.append(Line2D([], [], marker="o", ls="", c=LIGHT, ms=3, label="dominated"))
        return handles
    color = column(frame, color)
    if is_numeric(frame, color) and frame[color].nunique() > 6:
        shade = numbers(frame, color)
        limits = {"vmin": np.nanmin(shade[fine]), "vmax": np.nanmax(shade[fine])}
        style = {"cmap": "viridis", **limits}
        ax.scatter(xs[dominated], ys[dominated], s=9, c=shade[dominated], alpha=0.25, lw=0, **style)
        drawn_best = ax.scatter(xs[best], ys[best], s=20, c=shade[best], lw=0, zorder=5, **style)
        bar = figure_of(ax).colorbar(drawn_best, ax=ax, pad=0.02)
        dress(bar.ax.yaxis, color, shade[fine], log=False)
        return handles
    for i, (value, name) in enumerate(names_of(frame, color).items()):
        mine = (frame[color] == value).to_numpy()
        shade_of, marker = series_style(i)
        style = {"marker": marker, "color": shade_of, "lw": 0}
        ax.scatter(xs[dominated & mine], ys[dominated & mine], s=10, alpha=0.3, zorder=2, **style)
        ax.scatter(xs[best & mine], ys[best & mine], s=22, zorder=5, **style)
        entry = wrapped(name)
        handles.append(Line2D([], [], ls="", marker=marker, c=shade_of, ms=4, label=entry))
    handles.insert(0, Line2D([], [], ls="", label=f"{quantity(color).label}:"))
    return handles


def _known(frame: pd.DataFrame, label: str | None, drawn: Mask) -> list[tuple[int, str]]:
    if label is None:
        return []
    names = frame[column(frame, label)]
    return [
        (int(i), str(names.iloc[i]))
        for i in np.flatnonzero(drawn & names.notna().to_numpy() & (names != "").to_numpy())
    ]


def _legend(ax: Axes, handles: list[Any], missing: int, total: int) -> int:
    """Write the legend below the axes, with a count of what could not be drawn; return its rows."""
    if missing:
        verb = "has" if missing == 1 else "have"
        text = f"{missing:,} of {counted(total, 'point')} {verb} no result"
        handles.append(Line2D([], [], ls="", marker="", label=text))
    return legend_below(ax, handles, most=3)
