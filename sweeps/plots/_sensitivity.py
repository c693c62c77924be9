"""Bars of what decides a metric: one for each parameter, the strongest on top."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from opbyte.core.errors import ConfigError
from opbyte.sweeps.plots._quantities import Quantity, dress_as, quantity
from opbyte.sweeps.plots._style import GREY, PALETTE, axes_for, in_style, legend_below

_COLUMNS = ("parameter", "at_low", "at_high", "span")
#: Words of a path that tell parameters of one unit apart.
_WORDS = 3
#: What moves a metric by less, over its whole range, is not drawn.
_LEAST = 1e-3


@in_style
def sensitivity(frame: pd.DataFrame, most: int = 10, *, ax: Axes | None = None) -> Axes:
    """Draw how far the ends of each parameter's range move a metric.

    Args:
        frame: What `opbyte.sensitivity` returned.
        most: Parameters that are drawn.
        ax: Axes to draw in.
    Raises:
        ConfigError: If the frame is another one, or no parameter moves the metric.
    """
    if any(name not in frame for name in _COLUMNS) or "value" not in frame.attrs:
        rule = "a frame of `opbyte.sensitivity` is due"
        raise ConfigError.one("", "frame", rule, ", ".join(map(str, frame.columns)))
    shown = frame[frame["span"] > _LEAST].head(most).iloc[::-1]
    if shown.empty:
        raise ConfigError.one("", "frame", "no parameter moves the metric")
    value = float(frame.attrs["value"])
    ax = axes_for(ax, height=0.9 + 0.24 * len(shown))
    places = list(range(len(shown)))
    ends = {"at_low": "low end of the range", "at_high": "high end of the range"}
    for (column, _), color in zip(ends.items(), PALETTE, strict=False):
        ax.barh(places, shown[column] - value, left=value, height=0.62, color=color)
    ax.axvline(value, color=GREY, linewidth=0.8)
    ax.set_yticks(places, [".".join(p.split(".")[-_WORDS:]) for p in shown["parameter"]])
    named = quantity(str(frame.attrs["metric"]))
    if frame.attrs["ratio"]:
        named = Quantity(f"{named.label}, baseline over ours", "×")
    dress_as(ax.xaxis, named, [*shown["at_low"], *shown["at_high"], value], log=False)
    colors = zip(ends.values(), PALETTE, strict=False)
    legend_below(ax, [Patch(color=color, label=label) for label, color in colors])
    return ax
