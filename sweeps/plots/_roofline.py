"""Roofline: one roof for each memory tier, operators as points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from opbyte.core.dtypes import lookup as dtype_of
from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.systolic import peak_rate
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.place import Placer
from opbyte.sim.result import PhaseRun, Result
from opbyte.sim.simulate import resolve_mapping, simulate
from opbyte.sweeps.plots._frames import named
from opbyte.sweeps.plots._labels import Label, place
from opbyte.sweeps.plots._quantities import Quantity, dress_as, show_as
from opbyte.sweeps.plots._style import (
    DASHES,
    GREY,
    PALETTE,
    axes_for,
    in_style,
    legend_below,
    series_style,
)
from opbyte.workloads.work import Work

_INTENSITY = Quantity("Operational intensity", "FLOP/B")
_RATE = Quantity("Rate of one device", "FLOP/s", 1.0, "si")
#: Operators below this share of the time are drawn, but not named.
_NAMED_SHARE = 0.05
_NAMED = 4


@dataclass(frozen=True)
class Roof:
    """A memory as one device sees it.

    Attributes:
        name: Short enough for a plot.
        resource: Port that bytes are counted at.
        bandwidth: Slowest peak rate between the memory and the unit, bytes/s.
        peak: Matrix rate of the unit that reads it, FLOP/s.
    """

    name: str
    resource: str
    bandwidth: float
    peak: float

    @property
    def ridge(self) -> float:
        """Return the intensity at which bandwidth and arithmetic take equally long, FLOP/B."""
        return self.peak / self.bandwidth


@in_style
def roofline(
    machine: str | Path | Mapping[str, Any] | Machine,
    *results: Result | Work | Mapping[str, Any] | Mapping[str, Result],
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the roofs of one device of a machine, and operators as points.

    A point stands at its operator's FLOPs over the bytes at the memory that keeps it longest, and
    at FLOPs over seconds; its colour is that memory's, its area its share of the result's time.
    Memories behind a link are drawn where a result uses them. Roofs are peak rates, so launch
    latency and lower effective rates appear as distance to them.

    Args:
        machine: What `load_machine` takes.
        results: Results on this machine, alone or by name, or works, which are simulated first.
        mapping: For the routes from memory to unit, and for works.
        ax: Where to draw; by default a new figure.
    Raises:
        ConfigError: If the machine has no unit with a matrix rate for what the results compute in.
    """
    loaded = load_machine(machine)
    runs = _runs(loaded, results, mapping)
    kind = next((r.work for r in runs.values()), "")
    chosen = resolve_mapping(loaded, mapping, kind)
    used = {r for run in runs.values() for p in run.outcome.phases for r in _used(p)}
    roofs = [
        r
        for r in roofs_of(loaded, chosen, _dtypes(runs))
        if " via " not in r.name or r.resource in used
    ]
    ax = axes_for(ax, width=4.6, height=3.1)
    points = {n: _operators(r.breakdown, roofs) for n, r in runs.items()}
    drawn = pd.concat(points.values()) if points else pd.DataFrame({"x": [], "y": []})
    low = min([*drawn["x"], *(r.ridge for r in roofs)]) / 3
    high = max([*drawn["x"], *(r.ridge for r in roofs)]) * 6
    floor = min([*drawn["y"], *(low * r.bandwidth for r in roofs)])
    top = max(r.peak for r in roofs)
    dress_as(ax.xaxis, _INTENSITY, [low, high], log=True)
    dress_as(ax.yaxis, _RATE, [floor, top], log=True)
    ax.set_xlim(low, high)
    ax.set_ylim(floor / 2, top * 4)
    shade = {r.resource: PALETTE[i % len(PALETTE)] for i, r in enumerate(roofs)}
    handles: list[Any] = []
    for i, roof in enumerate(roofs):
        xs = np.geomspace(low, high, 200)
        style: Any = {"color": shade[roof.resource], "ls": DASHES[i % len(DASHES)]}
        ax.plot(xs, np.minimum(roof.peak, roof.bandwidth * xs), lw=1.2, zorder=2, **style)
        rate = show_as(roof.bandwidth, Quantity("", "B/s", 1.0, "si"))
        handles.append(Line2D([], [], label=f"{roof.name}, {rate}", **style))
    labels = _ridges(ax, roofs)
    for i, (name, found) in enumerate(points.items()):
        marker = series_style(i)[1]
        colors = [shade[r] for r in found["resource"]]
        area = 8 + 160 * found["share"]
        ax.scatter(
            found["x"], found["y"], s=area, c=colors, marker=marker, alpha=0.75, lw=0.4,
            edgecolors="white", zorder=4,
        )  # fmt: skip
        if len(points) > 1:
            handles.append(Line2D([], [], ls="", marker=marker, c=GREY, ms=4.5, label=name))
        important = found[found["share"] >= _NAMED_SHARE].nlargest(_NAMED, "share")
        for _, op in important.iterrows():
            labels.append(Label(op["x"], op["y"], f"{op['name']} {op['share']:.0%}"))
    legend_below(ax, handles)
    grid = np.geomspace(low, high, 200)
    lines = [np.stack([grid, np.minimum(r.peak, r.bandwidth * grid)], axis=1) for r in roofs]
    place(ax, labels, drawn[["x", "y"]].to_numpy(float), np.concatenate(lines))
    return ax


def _runs(
    machine: Machine,
    given: Sequence[Any],
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None,
) -> dict[str, Result]:
    """Return results by name; works are simulated."""
    runs: dict[str, Result] = {}
    plain = []
    for one in given:
        if isinstance(one, Mapping) and all(isinstance(v, Result) for v in one.values()):
            runs |= one
        elif isinstance(one, Result):
            plain.append(one)
        else:
            plain.append(simulate(machine, one, mapping=mapping))
    return {**named(plain), **runs}


def roofs_of(machine: Machine, mapping: SoftwareMapping, dtypes: frozenset[str]) -> list[Roof]:
    """Return one roof for each port of each memory that a unit can reach, fastest first.

    Args:
        machine: The machine.
        mapping: For the routes from memory to unit.
        dtypes: Arithmetic dtypes; of several that a unit has, the fastest counts.
    Raises:
        ConfigError: If no unit has a matrix rate for any of them.
    """
    placer = Placer(machine, mapping)
    peaks = {u: _peak(machine, u, dtypes) for u in machine.units}
    able = {u: p for u, p in peaks.items() if p > 0}
    if not able:
        wanted = ", ".join(sorted(dtypes)) or "anything"
        raise ConfigError.one(
            "", "machine", f"no unit of {machine.name} has a matrix rate for", wanted, ""
        )
    direct = {port: u for u in able for port in machine.unit_ports(u)}
    main = placer.unit_of(frozenset({"all"}))
    main = main if main in able else max(able, key=lambda u: able[u])
    roofs = []
    for path, memory in machine.memories.items():
        for port in memory.config.ports:
            resource = f"{path}.{port}"
            unit = direct.get(resource, main)
            try:
                hops = [resource] if resource in direct else placer.hops(path, unit)
            except ConfigError:
                continue
            rates = [_bandwidth(placer, r) for r in hops]
            if all(rates) and hops[0] == resource:
                name = path if len(memory.config.ports) == 1 else resource
                slow = hops[int(np.argmin(rates))]
                via = f" via {slow}" if slow in machine.config.links else ""
                roofs.append(Roof(f"{name}{via}", resource, min(rates), able[unit]))
    return sorted(roofs, key=lambda r: -r.bandwidth)


def _bandwidth(placer: Placer, resource: str) -> float:
    value = placer.machine.values.get(f"{resource}.bandwidth")
    return 0.0 if value is None else float(np.ravel(value)[0]) * placer.instances(resource)


def _peak(machine: Machine, unit: str, dtypes: frozenset[str]) -> float:
    wanted = (
        dtypes | {dtype_of(d).compute for d in dtypes} if dtypes else frozenset({"bf16", "fp16"})
    )
    config = machine.unit(unit).config
    if not config.peak:
        # Arrays whose rate follows from their clock.
        view, able = UnitView(machine, unit), wanted.intersection(config.dtypes)
        return max((float(np.ravel(peak_rate(view, d))[0]) for d in able), default=0.0)
    rates = [machine.values.get(f"{unit}.peak.{d}", 0.0) for d in wanted]
    if not dtypes and not any(rates):
        rates = [machine.values[f"{unit}.peak.{d}"] for d in config.peak]
    return max((float(np.ravel(r)[0]) for r in rates), default=0.0)


def _dtypes(runs: Mapping[str, Result]) -> frozenset[str]:
    found = set()
    for run in runs.values():
        for phase in run.outcome.phases:
            table = phase.demand.placed.table
            rows = np.flatnonzero(table["m"].max(axis=1) > 0)
            found |= {table.dtypes[row] for row in rows}
    return frozenset(found)


def _used(phase: PhaseRun) -> list[str]:
    """Return the ports and links that bytes of a phase cross."""
    moved = phase.demand.bytes.max(axis=(0, 2), initial=0.0)
    return [r for r, m in zip(phase.demand.placed.resources, moved, strict=True) if m > 0]


def _operators(breakdown: pd.DataFrame, roofs: list[Roof]) -> pd.DataFrame:
    """Return intensity, rate, share of time and deciding port of every operator with FLOPs."""
    known = [r.resource for r in roofs if f"{r.resource}_bytes" in breakdown]
    rows = []
    total = breakdown["seconds"].sum()
    short = breakdown["operator"].value_counts()
    for _, op in breakdown.iterrows():
        busy = {r: op[f"{r}_s"] for r in known if op[f"{r}_bytes"] > 0}
        if not busy or op["flops"] <= 0 or op["seconds"] <= 0:
            continue
        port = max(busy, key=lambda r: busy[r])
        name = op["operator"] if short[op["operator"]] == 1 else f"{op['phase']} {op['operator']}"
        rows.append(
            {
                "name": f"{op['block']}: {name}" if ".." in name else name,
                "x": op["flops"] / op[f"{port}_bytes"],
                "y": op["flops"] / op["seconds"],
                "share": op["seconds"] / total,
                "resource": port,
            }
        )
    return pd.DataFrame(rows, columns=["name", "x", "y", "share", "resource"])


def _ridges(ax: Axes, roofs: list[Roof]) -> list[Label]:
    labels = []
    for roof in roofs:
        ax.plot(roof.ridge, roof.peak, "|", color="black", ms=6, mew=0.9, zorder=5)
        labels.append(
            Label(roof.ridge, roof.peak, f"ridge {show_as(roof.ridge, _INTENSITY)}", "#555555")
        )
    return labels
