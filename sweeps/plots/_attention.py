"""What attention moves, against the memory on the chip: tiled algorithms, bounds, and mappings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from opbyte.core.errors import CapacityError
from opbyte.core.mapping_file import Einsums
from opbyte.hw_models.compute.spatial.arrays import Arrays, Shape
from opbyte.hw_models.compute.spatial.bounds import lower_bound, tiled_traffic
from opbyte.hw_models.compute.spatial.cascade import CASCADES
from opbyte.hw_models.compute.spatial.unit import plan
from opbyte.sweeps.plots._style import DASHES, GREY, MARKERS, PAGE, axes_for, in_style

#: Memories from this share of d^2 up to this share of all keys, values and sums of a head.
_FROM, _POINTS = 2.0**-8, 49


@in_style
def attention_traffic(
    tokens: float = 2**18,
    width: float = 64,
    *,
    arrays: Arrays | None = None,
    cascades: Sequence[str] = ("three-pass", "two-pass", "one-pass"),
    ax: Axes | None = None,
) -> Axes:
    """Draw the elements that one head moves against the elements that its chip holds.

    Args:
        tokens, width: Queries and keys, and their width.
        arrays: Processing elements on which cascades are mapped as well; their buffer varies.
        cascades: Those that are.
        ax: Where to draw; by default a new figure.
    """
    ax = axes_for(ax, width=PAGE, height=3.4)
    square = width * width
    memory = np.geomspace(square * _FROM, 4.0 * tokens * width, _POINTS)
    ax.plot(memory, [tiled_traffic(tokens, width, m) for m in memory], label="tiled, best of two")
    ax.plot(
        memory, [lower_bound(tokens, width, m) for m in memory], color=GREY, linestyle=DASHES[1],
        label=r"order of the lower bound, min($N^2d^2/M$, $N^2d/\sqrt{M}$)",
    )  # fmt: skip
    ax.axhline(4.0 * tokens * width, color=GREY, linewidth=0.8, label="inputs and result, 4Nd")
    ax.axvline(square, color=GREY, linewidth=0.8, linestyle=DASHES[2], label=r"$M = d^2$")
    for i, name in enumerate(cascades if arrays is not None else ()):
        assert arrays is not None
        found = [
            (m, _mapped(name, replace(arrays, buffer=m * arrays.size), tokens, width))
            for m in memory
        ]
        fits = [(m, moved) for m, moved in found if moved is not None]
        ax.plot(
            *zip(*fits, strict=True), color=f"C{i + 1}", marker=MARKERS[i + 1], markevery=4,
            linestyle="-", label=f"{name} on {arrays.rows} x {arrays.columns} PEs",
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("Memory on the chip, M (elements)")
    ax.set_ylabel("Moved (elements)")
    ax.set_title(f"One head of attention, N = {tokens:,.0f}, d = {width:g}")
    ax.legend(fontsize="x-small")
    return ax


def _mapped(name: str, arrays: Arrays, tokens: float, width: float) -> float | None:
    """Return the elements that a cascade moves on arrays, None where no tile fits."""
    tiles = "uneven" if CASCADES[name].passes == 1 else "divide"
    einsums = Einsums.model_validate({"cascade": name, "tiles": tiles})
    shape = Shape(1.0, tokens, tokens, width, width)
    try:
        return plan(einsums, arrays, shape, "the buffer").bytes / arrays.size
    except CapacityError:
        return None
