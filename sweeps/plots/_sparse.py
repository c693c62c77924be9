"""What whole pages leave of sparse attention's saving, against the locality of the kept tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from opbyte.hw_models.compute.csd.layout import Layout, sparse_pages
from opbyte.sweeps.plots._style import GREY, PAGE, axes_for, in_style, series_style

_POINTS = 61


@in_style
def sparse_gain(
    tokens: float = 2048,
    keep: float = 0.125,
    channels: float = 0.125,
    *,
    pages: Sequence[float] = (1024, 4096, 16384),
    longest: float = 1024,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many times fewer bytes sparse attention reads than dense attention.

    Args:
        tokens: Tokens in the cache.
        keep: Share of the tokens with exact attention.
        channels: Share of a key's channels that the first look reads.
        pages: Sizes of pages, bytes.
        longest: Mean length of runs up to which is drawn.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If a share does not lie in (0, 1].
    """
    ax = axes_for(ax, width=PAGE, height=3.2)
    # Independent tokens have runs of this mean length.
    apart = 1.0 / (1.0 - keep) if keep < 1.0 else longest
    runs = np.geomspace(max(1.0, apart), longest, _POINTS)
    for i, page in enumerate(pages):
        colour, marker = series_style(i)
        gains = [sparse_pages(tokens, keep, channels, r, page=page).gain for r in runs]
        label = f"pages of {page / 1024:g} KiB, {Layout(page, 128, 2).tokens} tokens"
        ax.plot(runs, gains, color=colour, marker=marker, markevery=10, label=label)
    ideal = sparse_pages(tokens, keep, channels).ideal_gain
    ax.axhline(ideal, color=GREY, linewidth=0.8)
    ax.annotate(
        f"without pages: {ideal:.2f}", (apart, ideal), xytext=(0, -9), textcoords="offset points"
    )
    ax.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Mean run of neighbouring kept tokens (from independent ones on)")
    ax.set_ylabel("Bytes of dense attention / bytes read")
    ax.set_title(f"{keep:.3g} of {tokens:,.0f} tokens, {channels:.3g} of 128 channels")
    ax.legend()
    return ax
