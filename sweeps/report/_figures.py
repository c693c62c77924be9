"""Figures of a page: drawn with matplotlib, kept as data URIs."""

from __future__ import annotations

import base64
import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["picture"]

#: Pixels of a page for an inch of a figure.
_WIDTH = 104


def picture(drawn: Axes | Figure, caption: str, name: str = "") -> dict[str, str]:
    """Return a figure as a data URI with its caption, and close it."""
    import matplotlib.pyplot as plt

    from opbyte.sweeps.plots import styled
    from opbyte.sweeps.plots._style import figure_of

    figure = drawn if isinstance(drawn, Figure) else figure_of(drawn)
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", metadata={"Software": None})
    width = str(round(figure.get_figwidth() * _WIDTH))
    plt.close(figure)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"name": name, "caption": caption, "uri": uri, "width": width}
