"""An interactive scatter of all points, where plotly is installed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from opbyte.sweeps.plots._frames import OK, numbers
from opbyte.sweeps.plots._pareto import LOG_FROM, front_mask
from opbyte.sweeps.plots._quantities import quantity, span_of
from opbyte.sweeps.plots._style import LIGHT, PALETTE
from opbyte.sweeps.report._findings import setting

#: Dominated points beyond this many are thinned out: the page must stay light.
_DOMINATED = 4000


def explore(frame: pd.DataFrame, objectives: Mapping[str, str], axes: list[str]) -> str:
    """Return the figure as HTML with its script inlined, or an empty text without plotly.

    Args:
        frame: One row per design point, with `status`.
        objectives: Metric -> `min` or `max`; the first two are drawn.
        axes: Columns that name a point.
    """
    if len(objectives) < 2:
        return ""
    try:
        import plotly.graph_objects as go
    except ImportError:
        return ""
    x, y = list(objectives)[:2]
    fine = (frame["status"] == OK).to_numpy() & np.isfinite(numbers(frame, x))
    best = front_mask(frame, objectives, fine)
    rest = np.flatnonzero(fine & ~best)
    rest = rest[:: max(1, -(-len(rest) // _DOMINATED))]
    figure = go.Figure()
    for name, rows, color, size in (
        ("dominated", rest, LIGHT, 5),
        ("front", np.flatnonzero(best), PALETTE[0], 9),
    ):
        part = frame.iloc[rows]
        figure.add_scatter(
            x=numbers(part, x) * quantity(x).scale,
            y=numbers(part, y) * quantity(y).scale,
            mode="markers",
            name=name,
            marker={"color": color, "size": size},
            text=[setting(row, axes) for _, row in part.iterrows()],
            hovertemplate=f"%{{text}}<br>%{{x:.4{_ticks(x)}}}, %{{y:.4{_ticks(y)}}}<extra></extra>",
        )
    figure.update_layout(
        template="plotly_white",
        height=460,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        legend={"orientation": "h", "y": 1.08},
        updatemenus=[],
    )
    for column, update in ((x, figure.update_xaxes), (y, figure.update_yaxes)):
        wide = span_of(numbers(frame, column)[fine]) > LOG_FROM
        # Of a logarithmic axis plotly labels 1, 2 and 5 of a decade.
        scale = {"type": "log", "dtick": "D2"} if wide else {}
        update(title=_title(column), tickformat=_ticks(column), **scale)
    config = {"displaylogo": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=True, config=config))


def _title(column: str) -> str:
    q = quantity(column)
    return f"{q.label} ({q.unit})" if q.unit else q.label


def _ticks(column: str) -> str:
    # A prefix before a unit that has one already, or is squared, would be read wrongly.
    return "~s" if quantity(column).scale == 1 else "~g"
