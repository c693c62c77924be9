"""What ran when: units and resources as rows, operators as bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from opbyte.core.errors import SimulationError
from opbyte.sim.result import PhaseRun, Result
from opbyte.sweeps.console import counted
from opbyte.sweeps.plots._quantities import dress
from opbyte.sweeps.plots._style import (
    GREY,
    PAGE,
    PALETTE,
    axes_for,
    in_style,
    legend_below,
)

#: Bars that a figure of two columns still shows.
_BARS = 240
_NAMES = 7


@dataclass(frozen=True)
class Bar:
    """One stretch on one row; `share` of the row's resource that it uses."""

    row: str
    name: str
    start: float
    end: float
    share: float = 1.0


@in_style
def timeline(
    result: Result, *, window: tuple[float, float] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw executions over time, and how much of each port and link they use.

    A bar's height is the share of the unit, port or link that it holds.

    Args:
        result: Of fidelity `event`.
        window: Seconds from and to; by default as much from the start as is readable.
        ax: Where to draw; by default a new figure.
    Raises:
        SimulationError: If the result has no timeline.
    """
    bars = _bars(result)
    if not bars:
        raise SimulationError(
            f"fidelity '{result.fidelity}' records no timeline. simulate with fidelity 'event'"
        )
    end = max(b.end for b in bars)
    start, stop = window or (0.0, _readable(bars))
    shown = [b for b in bars if b.end > start and b.start < stop]
    rows = list(dict.fromkeys(b.row for b in bars))
    weight: dict[str, float] = {}
    for b in shown:
        weight[b.name] = weight.get(b.name, 0.0) + (b.end - b.start)
    names = sorted(weight, key=lambda n: -weight[n])
    color = {n: PALETTE[i] if i < _NAMES else GREY for i, n in enumerate(names)}
    ax = axes_for(ax, PAGE, 0.95 + 0.3 * len(rows))
    for i, row in enumerate(reversed(rows)):
        mine = [b for b in shown if b.row == row]
        if mine:
            ax.bar(
                [b.start for b in mine],
                [0.78 * max(b.share, 0.02) for b in mine],
                [b.end - b.start for b in mine],
                bottom=i - 0.39,
                align="edge",
                color=[color[b.name] for b in mine],
                edgecolor="white",
                lw=0.15,
            )
    dress(ax.xaxis, "seconds", [start, min(stop, end)], log=False)
    ax.set_xlim(start, min(stop, end))
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_yticks(range(len(rows)), rows[::-1])
    ax.grid(visible=False, axis="y")
    if stop < end:
        ax.set_title(f"First {stop / end:.1%} of the run" if start == 0 else "Part of the run")
    handles = [Patch(color=color[n], label=n) for n in names[:_NAMES]]
    if len(names) > _NAMES:
        handles.append(Patch(color=GREY, label=counted(len(names) - _NAMES, "other")))
    legend_below(ax, handles)
    return ax


def _bars(result: Result) -> list[Bar]:
    events: list[dict[str, Any]] = result.outcome.detail.get("trace_events", [])
    if events:
        return [
            Bar(e["tid"], e["name"].split(" ")[0], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
            for e in events
            if e["ph"] == "X"
        ]
    bars: list[Bar] = []
    offset = 0.0
    for phase in result.outcome.phases:
        bars += _of_phase(phase, offset)
        offset += float(np.ravel(phase.step.seconds)[0])
    return bars


def _of_phase(phase: PhaseRun, offset: float) -> list[Bar]:
    if phase.timeline is None:
        return []
    run, placed = phase.timeline, phase.demand.placed
    busy = phase.demand.busy[:, :, 0]
    bars = []
    for op, start, end in zip(run.op, offset + run.start, offset + run.end, strict=True):
        if placed.runs is not None and not placed.runs[op].any():
            continue
        name = f"{placed.table.blocks[placed.block_of[op]]}: {placed.names[op]}"
        name = name if ".." in name else placed.names[op]
        unit = placed.units[placed.unit_of[op]] if placed.unit_of[op] >= 0 else "collectives"
        bars.append(Bar(unit, name, float(start), float(end)))
        for r, resource in enumerate(placed.resources):
            if busy[op, r] > 0:
                share = min(1.0, float(busy[op, r] / max(end - start, 1e-30)))
                bars.append(Bar(resource, name, float(start), float(end), share))
    return bars


def _readable(bars: list[Bar]) -> float:
    ends = sorted(b.end for b in bars)
    return ends[min(_BARS, len(ends)) - 1]
