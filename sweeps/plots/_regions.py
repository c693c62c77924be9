"""Maps of two axes: where claims hold, alone and together, with real things marked on them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from opbyte.core.ops import Array
from opbyte.sweeps.claims import Claim, held
from opbyte.sweeps.plots._frames import Points, frame_of
from opbyte.sweeps.plots._quantities import dress, quantity, show
from opbyte.sweeps.plots._style import GREY, MARKERS, PAGE, PALETTE, in_style, legend_below

#: Places on a side to which ratios are interpolated, so that thin bands are not missed.
FINE = 240
_HATCHES = ("////", "\\\\\\\\", "....", "++", "xx")
_TOGETHER = "#000000"


@dataclass(frozen=True)
class Mark:
    """A real thing on a map.

    Attributes:
        x, y: Where, SI; y is None where it is not known: a line at x alone.
        source: Where the values are from.
    """

    name: str
    x: float
    y: float | None
    source: str


@dataclass(frozen=True)
class Band:
    """A range of y that something has."""

    name: str
    low: float
    high: float


@in_style
def regions(
    data: Points,
    x: str,
    y: str,
    claims: Sequence[Claim],
    *,
    columns: str | None = None,
    rows: str | None = None,
    marks: Sequence[Mark] = (),
    bands: Sequence[Band] = (),
    words: Mapping[Any, str] | None = None,
) -> Figure:
    """Draw where claims hold over two axes, a panel for each value of one or two more.

    Each claim has a colour and a hatch; where all hold together is black. Between points ratios
    are interpolated, linearly in the logarithms of x and y.

    Args:
        data: Points of a grid over x and y.
        x, y: Numeric columns, positive.
        claims: Ratios and their ranges.
        columns, rows: Columns whose values make panels beside and below each other.
        marks: Real things, the same in each panel.
        bands: Ranges of y, the same in each panel.
        words: Column or (column, value) -> text of a label or title.
    Raises:
        ConfigError: If a column is missing, or several points share a place.
    """
    frame, _ = frame_of(data)
    words = words or {}
    given = [name for name in (rows, columns) if name is not None]
    found = held(frame, claims, [*given, x, y])
    across = [None] if columns is None else sorted(found[columns].unique())
    down = [None] if rows is None else sorted(found[rows].unique())
    figure, grid = plt.subplots(
        len(down), len(across), sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(max(PAGE, 1.9 * len(across)) if len(across) > 1 else 4.2, 0.9 + 2.2 * len(down)),
    )  # fmt: skip
    for i, below in enumerate(down):
        for j, beside in enumerate(across):
            part, ax = found, grid[i, j]
            for name, value in ((rows, below), (columns, beside)):
                part = part if name is None else part[part[name] == value]
            _panel(ax, part, x, y, claims)
            _marked(ax, part, x, y, marks, bands)
            if columns is not None and i == 0:
                ax.set_title(_words(words, columns, beside), fontsize=8)
            if rows is not None and j == len(across) - 1:
                ax.annotate(
                    _words(words, rows, below), (1.0, 0.5), (6, 0), "axes fraction",
                    "offset points", rotation=-90, va="center", fontsize=8,
                )  # fmt: skip
            dress(ax.xaxis, x, part[x], log=True)
            dress(ax.yaxis, y, part[y], log=True)
            _named(ax.xaxis, x, words, shown=i == len(down) - 1)
            _named(ax.yaxis, y, words, shown=j == 0)
    legend_below(grid[0, 0], _legend(claims, marks, bands))
    return figure


def _named(axis: Axis, column: str, words: Mapping[Any, str], *, shown: bool) -> None:
    """Put own words before the unit of an axis; inner panels have none."""
    text = axis.get_label_text()
    if column in words:
        text = " ".join([words[column], *re.findall(r"\([^()]*\)$", text)])
    axis.set_label_text(text if shown else "")


def _words(words: Mapping[Any, str], name: str, value: Any) -> str:
    return words.get((name, value), f"{quantity(name).label} {show(float(value), name)}")


def _panel(ax: Axes, part: pd.DataFrame, x: str, y: str, claims: Sequence[Claim]) -> None:
    """Fill where each claim holds, and where all do."""
    together: Any = np.inf
    for i, claim in enumerate(claims):
        at_x, at_y, ratio = fine(part, x, y, claim.name)
        color, inside = PALETTE[i], np.minimum(ratio - claim.low, claim.high - ratio)
        together = np.minimum(together, inside / (claim.high - claim.low))
        filled = ax.contourf(
            at_x, at_y, inside, levels=[0.0, np.inf], colors=[color], alpha=0.3, zorder=1
        )
        filled.set_hatch(_HATCHES[i])
        filled.set_edgecolor(color)
        filled.set_linewidth(0.0)
        if inside.min() < 0.0 < inside.max():
            ax.contour(at_x, at_y, inside, levels=[0.0], colors=[color], linewidths=0.9, zorder=2)
    ax.contourf(at_x, at_y, together, levels=[0.0, np.inf], colors=[_TOGETHER], zorder=3)
    ax.grid(visible=False)


def fine(part: pd.DataFrame, x: str, y: str, column: str) -> tuple[Array, Array, Array]:
    """Return x, y (both (FINE,)) and a column between points, (y, x).

    Linear in the logarithms of x and y; NaN beside points that are missing.
    """
    table = part.pivot(index=y, columns=x, values=column)
    own_x, own_y = (np.log(np.asarray(v, float)) for v in (table.columns, table.index))
    to_x, to_y = (np.linspace(v[0], v[-1], FINE) for v in (own_x, own_y))
    along = np.stack([np.interp(to_x, own_x, row) for row in table.to_numpy(float)])
    whole = np.stack([np.interp(to_y, own_y, column) for column in along.T], axis=1)
    return np.exp(to_x), np.exp(to_y), whole


def _marked(
    ax: Axes, part: pd.DataFrame, x: str, y: str, marks: Sequence[Mark], bands: Sequence[Band]
) -> None:
    """Draw marks and bands as far as they lie within the axes."""
    for band in bands:
        ax.axhspan(band.low, band.high, color=GREY, alpha=0.25, linewidth=0, zorder=0)
    for i, mark in enumerate(marks):
        if not part[x].min() <= mark.x <= part[x].max():
            continue
        ax.axvline(mark.x, color=GREY, linewidth=0.5, linestyle=(0, (1, 1.5)), zorder=4)
        if mark.y is not None and part[y].min() <= mark.y <= part[y].max():
            ax.plot(
                mark.x, mark.y, MARKERS[i % len(MARKERS)], color="white",
                markeredgecolor="black", markersize=5.5, zorder=5,
            )  # fmt: skip
    ax.set_xlim(part[x].min(), part[x].max())
    ax.set_ylim(part[y].min(), part[y].max())


def _legend(claims: Sequence[Claim], marks: Sequence[Mark], bands: Sequence[Band]) -> list[Any]:
    """Return what the legend shows."""
    handles: list[Any] = [
        Patch(
            facecolor=(*to_rgb(PALETTE[i]), 0.3), edgecolor=PALETTE[i],
            hatch=_HATCHES[i], label=claim.name,
        )
        for i, claim in enumerate(claims)
    ]  # fmt: skip
    handles.append(Patch(facecolor=_TOGETHER, label="all together"))
    handles += [Patch(facecolor=GREY, alpha=0.25, label=band.name) for band in bands]
    for i, mark in enumerate(marks):
        if mark.y is None:
            style: dict[str, Any] = {"linestyle": (0, (1, 1.5)), "color": GREY}
        else:
            style = {
                "marker": MARKERS[i % len(MARKERS)], "linestyle": "none", "color": "white",
                "markeredgecolor": "black",
            }  # fmt: skip
        handles.append(Line2D([], [], label=mark.name, **style))
    return handles
