"""Measured against simulated seconds, one panel for each operator and machine."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from opbyte.sweeps.plots._style import GREY, PAGE, PALETTE, in_style

_PER_ROW = 3
#: Points beyond this many hide each other and make files large; drawn is a fixed random share.
_MOST_POINTS = 4000
#: So many, or fewer, are drawn large.
_FEW_POINTS = 100


@in_style
def measured_against_simulated(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw measured against simulated time in microseconds, both axes logarithmic.

    The line is equality, the band a factor of 1.25 either way.

    Args:
        tables: Title -> frame with `measured` and `seconds`.
    """
    rows = -(-len(tables) // _PER_ROW)
    columns = min(_PER_ROW, len(tables))
    figure, grid = plt.subplots(
        rows, columns, figsize=(PAGE, 2.35 * rows), layout="constrained", squeeze=False
    )
    panels = list(grid.flat)
    for ax, (title, frame) in zip(panels, tables.items(), strict=False):
        _panel(ax, title, frame)
    for ax in panels[len(tables) :]:
        ax.set_axis_off()
    for row in grid:
        row[0].set_ylabel("Simulated (µs)")
    for ax in panels[max(0, len(tables) - columns) : len(tables)]:
        ax.set_xlabel("Measured (µs)")
    return figure


def _panel(ax: Axes, title: str, frame: pd.DataFrame) -> None:
    error = np.abs(frame["seconds"] / frame["measured"] - 1)
    text = f"{100 * error.mean():.1f} % of {len(frame):,}"
    if len(frame) > _MOST_POINTS:
        frame = frame.sample(_MOST_POINTS, random_state=0)
    x, y = 1e6 * frame["measured"].to_numpy(), 1e6 * frame["seconds"].to_numpy()
    low, high = 0.8 * min(x.min(), y.min()), 1.25 * max(x.max(), y.max())
    line = np.array([low, high])
    ax.fill_between(line, line / 1.25, line * 1.25, color=GREY, alpha=0.2, linewidth=0)
    ax.plot(line, line, color=GREY, linewidth=0.8)
    size, alpha = (2.0, 0.35) if len(frame) > _FEW_POINTS else (12.0, 0.8)
    ax.scatter(x, y, s=size, color=PALETTE[0], alpha=alpha, linewidths=0, rasterized=True)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    ax.text(0.04, 0.94, text, transform=ax.transAxes, va="top")
