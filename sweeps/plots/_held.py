"""What the fullest device of a training step holds, by tensor class, from pass to pass."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from opbyte.core.errors import ConfigError
from opbyte.sim.result import Result
from opbyte.sweeps.plots._style import GREY, PALETTE, axes_for, in_style, legend_below

#: From the bottom up.
_CLASSES = {
    "weight": "weights",
    "gradient": "gradients",
    "momentum": "momenta",
    "variance": "variances",
    "master_weight": "master weights",
    "master_gradient": "master gradients",
    "buffer": "buffers of copies",
    "pool": "pools on the host",
    "rounding": "rounding on the host",
    "overflow_check": "check for overflows",
    "working": "largest layer and row",
    "activation": "activations kept",
    "fragmentation": "fragmentation",
}
#: Areas are not black. Beyond seven classes colours come again with hatches.
_COLOURS = tuple(colour for colour in PALETTE if colour != "#000000")
_HATCHES = ("", "///")
_GB = 1e9
_WIDTH = 5.2


@in_style
def held(result: Result, memory: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the bytes of each tensor class over a training step, at the first design point.

    While a pass runs its activations count whole: those that a forward pass makes, and those that a
    backward pass gives back.

    Args:
        result: Of a training step.
        memory: Whose bytes; by default that of the working set, such as `gpu.hbm`.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If the result is of other work, or nothing is in the memory.
    """
    homes = result.outcome.detail.get("homes")
    if homes is None:
        work, remedy = result.work, "Draw its occupancy."
        raise ConfigError.one("", "result", "only training steps hold this over time", work, remedy)
    frame = result.memory
    memory = next(iter(homes["working"])) if memory is None else memory
    shown = [n for n in _CLASSES if homes.get(n, {}).get(memory, 0.0) > 0.0 and frame[n].any()]
    if not shown:
        known = ", ".join(sorted({tier for tiers in homes.values() for tier in tiers}))
        raise ConfigError.one("", "memory", f"the step holds nothing there. Known: {known}", memory)
    ax = axes_for(ax, _WIDTH, 3.2)
    edges = np.concatenate([[0.0], frame["seconds"]])
    below = np.zeros(len(frame))
    for i, name in enumerate(shown):
        column = "activation_peak" if name == "activation" else name
        above = below + frame[column].to_numpy() * homes[name][memory] / _GB
        ax.stairs(
            above, edges, baseline=below, fill=True, facecolor=_COLOURS[i % len(_COLOURS)],
            hatch=_HATCHES[i // len(_COLOURS)], edgecolor="white", linewidth=0.0,
            label=_CLASSES[name],
        )  # fmt: skip
        below = above
    capacity = float(np.ravel(result.hardware.values[f"{memory}.capacity"])[0]) / _GB
    ax.axhline(capacity, color=GREY, ls="--", lw=1.0)
    ax.annotate(
        f"capacity of {memory}: {capacity:.4g} GB", (edges[-1], capacity), (-2, 3), ha="right",
        textcoords="offset points", fontsize=6.5,
    )  # fmt: skip
    ax.set(xlabel="Time in the step (s)", ylabel="Held by the fullest device (GB)")
    ax.set_xlim(0.0, edges[-1])
    ax.set_ylim(0.0, 1.15 * max(capacity, below.max()))
    legend_below(ax, ax.get_legend_handles_labels()[0][::-1], most=3)
    return ax
