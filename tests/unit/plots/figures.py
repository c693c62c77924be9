"""What tests of figures share: works that are drawn, and whether texts can be read."""

import numpy as np
import pandas as pd
from matplotlib.text import Text
from matplotlib.transforms import Bbox

DECODE = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 4096}
COE = {
    "kind": "coe",
    "router": "llama-3.1-8b",
    "experts": {"model": "llama-3.1-8b", "count": 100},
    "batch": 8,
    "input": 256,
    "output": 20,
    "requests": 5,
}


def shown_texts(figure):
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9):
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def assert_readable(ax):
    """No text covers another or leaves the figure, and none is smaller than 6 points."""
    figure = ax.figure
    texts = shown_texts(figure)
    assert texts
    boxes = [text.get_window_extent().padded(-0.5) for text in texts]
    page = Bbox.from_bounds(0, 0, *(figure.get_size_inches() * figure.dpi)).padded(1.0)
    for i, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert text.get_fontsize() >= 6, text.get_text()
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, f"{text.get_text()!r} leaves the figure"
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, f"{text.get_text()!r} leaves the figure"
        for other, its in zip(texts[:i], boxes[:i], strict=True):
            assert not box.overlaps(its), f"{text.get_text()!r} covers {other.get_text()!r}"


def legend_texts(ax):
    return [t.get_text() for legend in ax.figure.legends for t in legend.get_texts()]


def points_frame():
    """Four points of a front, one dominated, one that breaks a constraint, one without result."""
    return pd.DataFrame(
        {
            "machine": ["a", "a", "b", "b", "a", "b", "b"],
            "tpot": [1e-3, 2e-3, 4e-3, 8e-3, 8e-3, 0.5e-3, np.nan],
            "joules_per_token": [8.0, 3.0, 1.0, 0.9, 5.0, 0.5, np.nan],
            "status": ["ok"] * 5 + ["infeasible"] * 2,
            "known": ["", "", "SN40L", "", "", "", ""],
        }
    )
