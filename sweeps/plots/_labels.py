"""Text in a figure that covers neither points nor other text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from opbyte.core.ops import Array
from opbyte.sweeps.plots._style import figure_of

_DISTANCES = (5.0, 9.0, 15.0, 23.0, 33.0, 46.0, 62.0)
_DIRECTIONS = (45, 0, 90, 135, 180, 315, 270, 225)
#: From this distance on a thin line leads from the text to its point, typographic points.
_LEADER = 12.0


@dataclass(frozen=True)
class Label:
    """A text for a point, both in data coordinates."""

    x: float
    y: float
    text: str
    color: str = "black"


def place(
    ax: Axes,
    labels: Sequence[Label],
    points: Array | None = None,
    better: Array | None = None,
    taken: Sequence[Text] = (),
) -> list[Annotation]:
    """Write labels beside their points, each where it covers least.

    Args:
        ax: Axes with their final limits.
        labels: In order of importance: the first choose first.
        points: (n, 2) drawn points in data coordinates, not to be covered.
        better: (n, 2) lesser points and samples of lines, better not covered.
        taken: Texts that are already there.
    """
    if not labels:
        return []
    figure = figure_of(ax)
    figure.draw_without_rendering()
    own = np.array([(item.x, item.y) for item in labels])
    data = own if points is None else np.concatenate([own, points])
    pixels = ax.transData.transform(data)
    soft = np.zeros((0, 2)) if better is None else ax.transData.transform(better)
    boxes = [text.get_window_extent() for text in taken]
    inside = ax.get_window_extent()
    placed = []
    for item in labels:
        note = ax.annotate(
            item.text,
            (item.x, item.y),
            (0, 0),
            textcoords="offset points",
            fontsize=6.5,
            color=item.color,
            zorder=9,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )
        note.set_in_layout(False)
        best = _best(note, boxes, (pixels, soft), inside)
        boxes.append(_moved(note, best))
        placed.append(note)
        if math.hypot(*best) > _LEADER:
            ax.annotate(
                "",
                (item.x, item.y),
                best,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#666666", "shrinkB": 2},
                zorder=8,
            ).set_in_layout(False)
    return placed


def _best(
    note: Annotation, boxes: Sequence[Bbox], obstacles: tuple[Array, Array], inside: Bbox
) -> tuple[float, float]:
    """Return the offset, points, at which the text covers least; nearer ones win ties."""
    costs = []
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            offset = (
                distance * math.cos(math.radians(angle)),
                distance * math.sin(math.radians(angle)),
            )
            box = _moved(note, offset).expanded(1.04, 1.1)
            covered, crossed = (_covered(box, pixels) for pixels in obstacles)
            over = sum(_common(box, other) for other in boxes)
            outside = box.width * box.height - _common(box, inside)
            cost = 3 * over + 2 * outside + 60 * covered + 4 * crossed + 1.5 * distance
            costs.append((cost, offset))
    return min(costs, key=lambda c: c[0])[1]


def _moved(note: Annotation, offset: tuple[float, float]) -> Bbox:
    """Put the text at an offset, aligned away from its point, and return its pixels."""
    dx, dy = offset
    note.set_horizontalalignment("left" if dx > 1 else "right" if dx < -1 else "center")
    note.set_verticalalignment("bottom" if dy > 1 else "top" if dy < -1 else "center")
    note.set_position(offset)
    return note.get_window_extent()


def _covered(box: Bbox, pixels: Array) -> int:
    """Return how many points lie in the box or within a marker's size of it."""
    near = box.padded(4.0)
    inside = (pixels > (near.x0, near.y0)) & (pixels < (near.x1, near.y1))
    return int(np.count_nonzero(inside.all(axis=1)))


def _common(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share, square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0.0) * max(height, 0.0))
