"""Shares of a variance: bars for each parameter, and how a search closes in on its front."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from opbyte.core.errors import ConfigError
from opbyte.sweeps.plots._style import GREY, PALETTE, axes_for, in_style, legend_below

_HATCHES = ("", "///", "...", "xxx")


@in_style
def shares(
    table: pd.DataFrame,
    label: str,
    *,
    most: int = 10,
    errors: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw shares as groups of bars, a group for each row, the first row on top.

    Args:
        table: Rows are parameters, columns what their shares are of; both by the names to show.
        label: Words below the axis.
        most: Rows that are drawn.
        errors: Standard errors of the shares, in the same form.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If there is nothing to draw.
    """
    if table.empty:
        raise ConfigError.one("", "table", "there is no share to draw", "none")
    table = table.head(most)
    count = table.shape[1]
    ax = axes_for(ax, 4.6, 0.9 + (0.12 + 0.14 * count) * len(table))
    size = 0.8 / count
    for i, name in enumerate(table):
        places = [-row - (i - (count - 1) / 2) * size for row in range(len(table))]
        wide = None if errors is None else errors[name].head(most)
        ax.barh(
            places, table[name], size * 0.92, color=PALETTE[i % len(PALETTE)], xerr=wide,
            hatch=_HATCHES[i % len(_HATCHES)], edgecolor="white", linewidth=0.3, label=str(name),
            error_kw={"elinewidth": 0.8, "ecolor": "black"},
        )  # fmt: skip
    ax.set_yticks([-row for row in range(len(table))], [str(name) for name in table.index])
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlim(0, max(1.0, float(table.max().max())) if table.max().max() > 0.5 else None)
    ax.set_xlabel(label)
    ax.grid(visible=False, axis="y")
    legend_below(ax, ax.get_legend_handles_labels()[0])
    return ax


@in_style
def progress(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the share of the final hypervolume over points in order of evaluation.

    Args:
        frame: Columns `points` and `share`.
        ax: Where to draw; by default a new figure.
    """
    ax = axes_for(ax, 4.6, 2.5)
    ax.step(frame["points"], frame["share"], where="post", color=PALETTE[0])
    ax.axhline(1.0, color=GREY, lw=0.8, ls=(0, (4, 2)))
    if frame["points"].max() > 100:
        ax.set_xscale("log")
    ax.set_ylim(0, 1.05)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlabel("Points, in order of evaluation")
    ax.set_ylabel("Hypervolume of the final front")
    return ax
