"""One look for every figure, and saving in the forms that papers and pages need."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = Path(__file__).resolve().parent.parent / "opbyte.mplstyle"
#: Okabe-Ito; the order of `axes.prop_cycle` in the style file.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#F0E442",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
GREY = "#8A8A8A"
LIGHT = "#C9C9C9"
#: Widths of one and two columns, inches.
COLUMN, PAGE = 3.5, 7.1
#: Letters of one line of a name in a legend, and lines of a name.
NAME, _LINES = 28, 4

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the package's style, and leave the user's own settings as they were."""
    with plt.style.context(STYLE):
        yield


def in_style(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with styled():
            return function(*args, **kwargs)

    return call


def axes_for(ax: Axes | None, width: float = COLUMN, height: float = 2.6) -> Axes:
    """Return the given axes, or those of a new figure.

    Args:
        ax: Axes, or None.
        width: Of a new figure, inches.
        height: The same.
    """
    if ax is not None:
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def figure_of(ax: Axes) -> Figure:
    """Return the figure that holds the axes."""
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def series_style(index: int) -> tuple[str, str]:
    """Return colour and marker of the index-th series; all pairs differ up to 56 series."""
    marker = (index + index // len(PALETTE)) % len(MARKERS)
    return PALETTE[index % len(PALETTE)], MARKERS[marker]


def wrapped(text: str, letters: int = NAME) -> str:
    """Return a text in lines of so many letters, no more than a few; words stay whole."""
    lines = textwrap.wrap(
        text, letters, max_lines=_LINES, placeholder=" …", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines)


def legend_below(ax: Axes, handles: Sequence[Artist], most: int = 4) -> int:
    """Write a legend below everything, in as many columns as the figure's width holds.

    Args:
        ax: Axes of the figure.
        handles: What it names.
        most: Columns at most.
    Returns:
        Its lines.
    """
    figure = figure_of(ax)
    width = figure.get_figwidth() * figure.dpi
    for columns in range(min(most, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= 0.98 * width:
            lines = [str(h.get_label()).count("\n") + 1 for h in handles]
            tall = -(-len(lines) // columns)
            return max(sum(lines[i : i + tall]) for i in range(0, len(lines), tall))
        legend.remove()
    return 0


@in_style
def save(figure: Figure | Axes, path: str | Path) -> tuple[Path, Path]:
    """Write a figure as PNG and PDF beside each other.

    Args:
        figure: Figure, or axes of it.
        path: Without suffix, or with one that is replaced.
    Returns:
        Paths of the PNG and the PDF.
    """
    drawn = figure_of(figure) if isinstance(figure, Axes) else figure
    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    if base.suffix in (".png", ".pdf", ".svg"):
        base = base.with_suffix("")
    png, pdf = base.parent / f"{base.name}.png", base.parent / f"{base.name}.pdf"
    # Without dates two runs write the same bytes.
    drawn.savefig(png, metadata={"Software": None})
    drawn.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf
