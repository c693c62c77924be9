"""Bars: where the time goes, and how full the memories are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from opbyte.core.errors import ConfigError
from opbyte.core.ops import COLLECTIVES
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.result import PhaseRun, Result
from opbyte.sweeps.plots._frames import named
from opbyte.sweeps.plots._quantities import Quantity, dress, show, show_as
from opbyte.sweeps.plots._style import (
    GREY,
    PAGE,
    PALETTE,
    axes_for,
    in_style,
    legend_below,
)

By = Literal["operator", "resource", "phase"]
_COLUMN = {"operator": "operator", "resource": "bound_by", "phase": "phase"}
_SIZE = Quantity("Bytes in one instance", "B", 1.0, "binary")
#: Kinds of rows that one colour covers.
_KINDS = MappingProxyType(
    dict.fromkeys(("score", "softmax", "context"), "attention")
    | dict.fromkeys(
        ("norm", "rotary", "elementwise", "activation", "kv_append", "embedding"),
        "norms and element-wise",
    )
)
#: Stacked parts that keep a colour of their own; the rest is `other`.
_PARTS = 7
#: Parts narrower than this share of the longest bar carry no number.
_WRITTEN = 0.07
#: Black would swallow the numbers: yellow comes first on bars.
_COLORS = (*PALETTE[:6], PALETTE[7], "#999999")


@in_style
def breakdown(
    results: Result | Mapping[str, Result] | Iterable[Result],
    by: By = "operator",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw one stacked bar of seconds for each result.

    Args:
        results: A result, results by name, or results.
        by: `operator`, `resource` (what decides each operator's duration) or `phase`. Copies of a
            Composition of Experts are a part of their own.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If there is no result, or `by` is unknown.
    """
    if by not in _COLUMN:
        raise ConfigError.one("", "by", f"must be one of {', '.join(_COLUMN)}", by, "choose one")
    parts = _stacks(named(results), by)
    ax = axes_for(ax, PAGE, 0.75 + 0.32 * len(parts))
    totals = parts.sum(axis=1).to_numpy()
    heights = np.arange(len(parts))[::-1]
    left = np.zeros(len(parts))
    dress(ax.xaxis, "seconds", [0.0, totals.max()], log=False)
    for i, part in enumerate(parts.columns):
        width = parts[part].to_numpy()
        color = _COLORS[i % len(_COLORS)]
        ax.barh(heights, width, 0.62, left, color=color, edgecolor="white", label=part)
        for at, start, size, total in zip(heights, left, width, totals, strict=True):
            if size > _WRITTEN * totals.max():
                ax.text(
                    start + size / 2, at, f"{size / total:.0%}", ha="center", va="center",
                    fontsize=6.5, bbox={"fc": "white", "ec": "none", "pad": 0.8, "alpha": 0.85},
                )  # fmt: skip
        left += width
    for at, total in zip(heights, totals, strict=True):
        ax.annotate(
            show(float(total), "seconds"), (total, at), (3, 0), textcoords="offset points",
            va="center", fontsize=7,
        )  # fmt: skip
    ax.set_yticks(heights, parts.index)
    ax.set_xlim(0, totals.max() * 1.12)
    ax.grid(visible=False, axis="y")
    legend_below(ax, ax.get_legend_handles_labels()[0])
    return ax


def _stacks(results: Mapping[str, Result], by: By) -> pd.DataFrame:
    """Return seconds by result (rows) and part (columns), the largest parts first."""
    if not results:
        raise ConfigError.one("", "", "a breakdown needs at least one result", "none", "")
    rows = {}
    for name, result in results.items():
        frame = result.breakdown
        if by == "operator":
            frame["operator"] = [g for p in result.outcome.phases for g in _groups(p)]
        seconds = frame.groupby(_COLUMN[by])["seconds"].sum()
        if result.metrics.get("switch_s", 0.0) > 0:
            seconds["copy of experts"] = result.metrics["switch_s"]
        rows[name] = seconds
    table = pd.DataFrame(rows).T.reindex(list(rows)).fillna(0.0)
    table = table[table.sum().sort_values(ascending=False).index]
    if table.shape[1] > _PARTS + 1:
        rest = table.iloc[:, _PARTS:].sum(axis=1)
        table = table.iloc[:, :_PARTS].assign(other=rest)
    return table


def _groups(phase: PhaseRun) -> list[str]:
    """Return what each operator is called in a bar: small ones by kind, products by name."""
    placed = phase.demand.placed
    kinds: list[set[str]] = [set() for _ in placed.names]
    for op, kind in zip(placed.op_of, placed.table.kinds, strict=True):
        kinds[op].add(_KINDS.get(kind, "collectives" if kind in COLLECTIVES else kind))
    groups = []
    for own, name, block in zip(kinds, placed.names, placed.block_of, strict=True):
        matrix = own & {"gemm", "grouped_gemm"}
        if len(own) > 1:
            groups.append(f"fused {placed.table.blocks[block]}")
        else:
            groups.append(name if matrix else next(iter(own)))
    if placed.runs is not None:
        groups = [g for g, runs in zip(groups, placed.runs[:, 0], strict=True) if runs > 0]
    groups += [str(row["operator"]) for row in phase.beside]
    return groups


@in_style
def occupancy(
    results: Result | Mapping[str, Result] | Iterable[Result],
    machine: str | Path | Mapping[str, Any] | Machine | None = None,
    *,
    scale: Literal["log", "share"] = "log",
    ax: Axes | None = None,
) -> Axes:
    """Draw the bytes in one instance of each memory against its capacity.

    Args:
        results: A result, results by name, or results.
        machine: Another machine to hold them against; by default each result's own.
        scale: `log`: bytes, so that SRAM and DDR are both readable; `share`: of the capacity.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If there is no result.
    """
    rows = []
    for name, result in named(results).items():
        loaded = result.hardware if machine is None else load_machine(machine)
        for tier, memory in loaded.memories.items():
            capacity = float(np.ravel(loaded.values[f"{tier}.capacity"])[0])
            used = result.occupancy.get(tier, 0.0)
            rows.append((name, tier, memory.count, used, capacity))
    if not rows:
        raise ConfigError.one("", "", "an occupancy plot needs at least one result", "none", "")
    ax = axes_for(ax, PAGE, 0.7 + 0.27 * len(rows))
    several = len({name for name, *_ in rows}) > 1
    least = min(min(u or c, c) for *_, u, c in rows)
    low = min(2.0**20, 2.0 ** np.floor(np.log2(least / 16)))
    for i, (name, tier, count, used, capacity) in enumerate(rows):
        at = len(rows) - 1 - i
        full, part = (1.0, used / capacity) if scale == "share" else (capacity, used)
        ax.barh(at, full, 0.62, color="#E6E6E6", ec=GREY, lw=0.5)
        ax.barh(at, part, 0.36, color=PALETTE[0] if used <= capacity else PALETTE[1])
        size = show_as(capacity, _SIZE)
        share = f"{show_as(used, _SIZE)} of {size}, {100 * used / capacity:.3g} %"
        text = share if used else f"nothing placed of {size}"
        ax.annotate(text, (full, at), (4, 0), textcoords="offset points", va="center", fontsize=6.5)
        rows[i] = (f"{name}: {tier} (×{count})" if several else f"{tier} (×{count})", *rows[i][1:])
    ax.set_yticks(np.arange(len(rows))[::-1], [r[0] for r in rows])
    ax.grid(visible=False, axis="y")
    _size_axis(ax, scale, low, max(c for *_, c in rows))
    return ax


def _size_axis(ax: Axes, scale: str, low: float, high: float) -> None:
    """Give the x axis its scale, with room for the text behind the bars."""
    if scale == "share":
        ax.set_xlim(0, 1.45)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
        ax.set_xlabel("Share of the capacity")
        return
    ax.set_xscale("log", base=2)
    ax.set_xlim(low, high * (high / low) ** 0.45)
    ticks = 2.0 ** np.arange(np.ceil(np.log2(low) / 10) * 10, np.log2(high) + 1, 10)
    ax.set_xticks(ticks)
    ax.minorticks_off()
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: show_as(v, _SIZE)))
    ax.set_xlabel(_SIZE.label)
