"""A waterfall: bars that hang from the value before, one for each change."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from opbyte.core.errors import ConfigError
from opbyte.sweeps.plots._quantities import Quantity, dress_as, quantity
from opbyte.sweeps.plots._style import GREY, PAGE, PALETTE, axes_for, in_style, legend_below

_COLUMNS = ("step", "value", "change", "factor")


@in_style
def waterfall(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what each change adds to a metric or takes from it.

    Args:
        frame: What `opbyte.waterfall` returned.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If the frame is another one.
    """
    if any(name not in frame for name in _COLUMNS) or "metric" not in frame.attrs:
        rule = "a frame of `opbyte.waterfall` is due"
        raise ConfigError.one("", "frame", rule, ", ".join(map(str, frame.columns)))
    ax = axes_for(ax, PAGE, 0.9 + 0.28 * (len(frame) + 1))
    value = frame["value"].to_numpy(float)
    before = np.concatenate([[0.0], value[:-1]])
    places = np.arange(len(frame), -1, -1)
    whole, more, less = GREY, PALETTE[0], PALETTE[1]
    colors = [whole, *np.where(np.diff(value) >= 0, more, less)]
    ax.barh(places[:-1], value - before, left=before, height=0.62, color=colors, edgecolor=colors)
    ax.barh(places[-1], value[-1], height=0.62, color=whole)
    for place, at in zip(places[:-1], value, strict=True):
        ax.plot([at, at], [place - 0.31, place - 0.69], color=GREY, linewidth=0.8)
    named = quantity(str(frame.attrs["metric"]))
    if frame.attrs["ratio"]:
        named = Quantity(f"{named.label}, ours over baseline", "×")
    dress_as(ax.xaxis, named, [0.0, *value], log=False)
    ax.set_xlim(0, 1.16 * value.max())
    factors = ["", *(f"× {f:.3g}" for f in frame["factor"][1:]), ""]
    right = np.maximum([*value, value[-1]], [*before, 0.0])
    for place, at, text in zip(places, right, factors, strict=True):
        ax.annotate(text, (at, place), (4, 0), textcoords="offset points", va="center", size=7)
    ax.set_yticks(places, [*map(str, frame["step"]), "all of it"])
    ax.grid(axis="y", visible=False)
    handles = [Patch(color=more, label="gain"), Patch(color=less, label="loss")]
    legend_below(ax, handles)
    return ax
