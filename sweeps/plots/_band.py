"""The band of a front: where it lies in 5 to 95 % of the draws, and how far its points move."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.sweeps.front_bands import FrontBand
from opbyte.sweeps.plots._style import GREY, series_style

_ENDS = (5.0, 95.0)
_STEPS = 200
#: Points that are on the front of fewer draws get no whiskers.
_LEAST = 0.05


def draw_band(ax: Axes, band: FrontBand, x: str, y: str) -> list[Any]:
    """Draw a front's band below its points and return what the legend needs.

    Args:
        ax: With its scales set.
        band: What draws made of the front.
        x: Objective along x.
        y: Objective along y.
    Raises:
        ConfigError: If the band has other objectives.
    """
    for name in (x, y):
        if name not in band.draws:
            known = f"Known: {', '.join(band.draws)}."
            raise ConfigError.one("", "band", "it has no such objective", name, known)
    log = (ax.get_xscale() == "log", ax.get_yscale() == "log")
    grid, low, high = attained(band, x, y, log=log[0])
    here = np.isfinite(low) & np.isfinite(high)
    ax.fill_between(grid[here], low[here], high[here], step="mid", lw=0, zorder=0.5, **_shade())
    shown = np.flatnonzero(band.on_front[1:].mean(axis=0) >= _LEAST)
    centre = {n: band.draws[n][0, shown] for n in (x, y)}
    ends = {n: np.nanpercentile(band.draws[n][1:, shown], _ENDS, axis=0) for n in (x, y)}
    style: Any = {"colors": GREY, "lw": 0.7, "zorder": 4}
    ax.hlines(centre[y], *ends[x], **style)
    ax.vlines(centre[x], *ends[y], **style)
    return [
        Patch(**_shade(), label="front in 5 to 95 % of draws"),
        Line2D([], [], color=GREY, lw=0.7, label="5 to 95 % of a point"),
    ]


def _shade() -> dict[str, Any]:
    return {"fc": series_style(0)[0], "alpha": 0.18}


def attained(band: FrontBand, x: str, y: str, *, log: bool = False) -> tuple[Array, Array, Array]:
    """Return where fronts lie: x, and the 5 and 95 % of the best y in reach there, (steps,).

    At each x the best y of a draw is that of its front's points with no worse x; infinite where
    it has none.

    Args:
        band: What draws made of the front.
        x: Objective along x.
        y: Objective along y.
        log: Whether steps in x have equal ratios.
    """
    signs = {n: 1.0 if band.objectives[n] == "min" else -1.0 for n in (x, y)}
    xs, ys = band.draws[x][1:], band.draws[y][1:]
    on_front = band.on_front[1:]
    inside = xs[on_front]
    space = np.geomspace if log else np.linspace
    grid = space(inside.min(), inside.max(), _STEPS)
    # Sorted from the best x, the best y so far; grid points reach all before them.
    best = np.full((len(xs), _STEPS), np.inf)
    for i, here in enumerate(on_front):
        order = np.argsort(signs[x] * xs[i, here])
        along = (signs[x] * xs[i, here])[order]
        so_far = np.minimum.accumulate((signs[y] * ys[i, here])[order])
        at = np.searchsorted(along, signs[x] * grid, side="right") - 1
        best[i, at >= 0] = so_far[at[at >= 0]]
    low, high = np.percentile(best, _ENDS, axis=0, method="nearest")
    return grid, signs[y] * low, signs[y] * high
