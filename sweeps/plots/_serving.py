"""A served trace: how long requests waited for tokens, and what the engine held meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.sim.result import Result
from opbyte.sim.serving.timeline import step_starts
from opbyte.sweeps.plots._frames import named
from opbyte.sweeps.plots._quantities import Quantity, dress, dress_as
from opbyte.sweeps.plots._style import DASHES, PAGE, PALETTE, in_style

#: Points of a curve of shares, and stretches of time of which means are drawn.
_QUANTILES, _STRETCHES = 400, 240
_LOG = 8.0
_PANELS = {
    "running": Quantity("Running"),
    "waiting": Quantity("Waiting"),
    "kv": Quantity("KV in use", "%"),
}


@in_style
def serving(results: Result | Mapping[str, Result] | Iterable[Result]) -> Figure:
    """Draw served traces: shares of requests by TTFT and TPOT, and the engine over time.

    The upper panels show which share of the requests had a time of at most x; grey lines are the
    limits of the work's `slo`. The lower ones show requests running and waiting and the share of KV
    blocks in use, means of stretches of time.

    Args:
        results: Of served traces; several are drawn over each other.
    Raises:
        ConfigError: If there is none, or one is not of a served trace.
    """
    found = named(results)
    if not found:
        raise ConfigError.one("", "", "a plot needs at least one result", "none", "")
    for name, result in found.items():
        if "series" not in result.outcome.detail:
            remedy = "Simulate a `serve` work."
            raise ConfigError.one("", name, "no trace was served", result.work, remedy)
    layout: list[Any] = [["ttft", "tpot"], *([name] * 2 for name in _PANELS)]
    figure: Figure
    figure, panels = plt.subplot_mosaic(
        layout, figsize=(PAGE, 6.0), layout="constrained", height_ratios=[2.4, 1, 1, 1]
    )
    for name in ("ttft", "tpot"):
        _shares(panels[name], name, found)
    _over_time(panels, found)
    looks = [_look(i) for i in range(len(found))]
    handles = [Line2D([], [], label=n, **look) for n, look in zip(found, looks, strict=True)]
    if _goals(found):
        handles.append(Line2D([], [], label="limit (slo)", **_LIMIT))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


_LIMIT: dict[str, Any] = {"color": "#666666", "lw": 0.7, "ls": "-"}


def _look(index: int) -> dict[str, Any]:
    """Return the look of a result: colours repeat with other dashes."""
    dash = DASHES[(index + index // len(PALETTE)) % len(DASHES)]
    return {"color": PALETTE[index % len(PALETTE)], "ls": dash, "lw": 1.3}


def _goals(found: Mapping[str, Result]) -> dict[str, set[float]]:
    """Return the limits that any of the works gives, seconds."""
    goals: dict[str, set[float]] = {}
    for result in found.values():
        for name, limit in result.outcome.detail["slo"].items():
            goals.setdefault(name, set()).add(limit)
    return goals


def _times(result: Result, name: str) -> Array:
    """Return the times of the requests that have one, seconds."""
    frame = result.requests
    if name == "ttft":
        times = frame["first_token_s"] - frame["arrival_s"]
    else:
        later = frame["output_tokens"] - 1
        times = (frame["last_token_s"] - frame["first_token_s"]).where(later > 0) / later
    return times.dropna().to_numpy(float)


def _shares(ax: Axes, name: str, found: Mapping[str, Result]) -> None:
    """Draw which share of requests has at most a time."""
    drawn: list[float] = []
    for i, result in enumerate(found.values()):
        times = _times(result, name)
        if not len(times):
            continue
        shares = np.linspace(0.0, 1.0, min(_QUANTILES, len(times) + 1))
        at = np.quantile(times, shares)
        ax.plot(at, 100.0 * shares, drawstyle="steps-post", **_look(i))
        drawn += at.tolist()
    limits = _goals(found).get(name, set())
    for limit in limits:
        ax.axvline(limit, zorder=1, **_LIMIT)
    drawn += limits
    if not drawn:
        ax.text(0.5, 0.5, "answers of one token", ha="center", transform=ax.transAxes)
    log = bool(drawn) and min(drawn) > 0 and max(drawn) > _LOG * min(drawn)
    dress(ax.xaxis, name, drawn, log=log)
    ax.set_ylim(0, 101)
    ax.set_ylabel("Requests with at most (%)" if name == "ttft" else "")


def _over_time(panels: Mapping[str, Axes], found: Mapping[str, Result]) -> None:
    """Draw means of what ran, waited and was held."""
    last = max(float(r.outcome.detail["series"]["end_s"].iloc[-1]) for r in found.values())
    for i, result in enumerate(found.values()):
        detail = result.outcome.detail
        rows = {str(name): column.to_numpy(float) for name, column in detail["series"].items()}
        frame = result.requests
        arrival = frame["arrival_s"][frame["status"] == "served"].to_numpy(float)
        start, end = step_starts(rows, arrival), rows["end_s"]
        edges = np.linspace(min(0.0, start[0]), end[-1], _STRETCHES + 1)
        rows["kv"] = 100.0 * (1.0 - rows["free"] / detail["blocks"])
        for name in _PANELS:
            means = _means(start, end, rows[name], edges)
            panels[name].stairs(means, edges, baseline=None, **_look(i))
    for name, q in _PANELS.items():
        ax = panels[name]
        ax.set_xlim(0, last)
        ax.set_ylim(0, None)
        dress_as(ax.yaxis, q, ax.get_ylim(), log=False)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 2.5, 5, 10]))
        if name != "kv":
            ax.tick_params(labelbottom=False)
    dress_as(panels["kv"].xaxis, Quantity("Time of the trace", "s"), [0.0, last], log=False)


def _means(start: Array, end: Array, values: Array, edges: Array) -> Array:
    """Return the mean over each stretch of what holds `values` during steps, 0 between them."""
    at = np.stack([start, end], axis=1).ravel()
    area = np.repeat(np.cumsum(values * (end - start)), 2)
    area[::2] = np.concatenate([[0.0], area[1:-1:2]])
    found: Array = np.diff(np.interp(edges, at, area)) / np.diff(edges)
    return found
