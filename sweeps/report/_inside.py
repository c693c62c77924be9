"""What a page says about the chosen designs: where time goes, when, and what decides it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from opbyte.core.errors import OpbyteError, SimulationError, UncoveredError
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.plots._frames import cell
from opbyte.sweeps.plots._quantities import quantity, show
from opbyte.sweeps.report._chosen import (
    Again,
    again,
    as_designed,
    choose,
    is_current,
)
from opbyte.sweeps.report._evidence import class_of
from opbyte.sweeps.report._figures import picture
from opbyte.sweeps.report._findings import setting
from opbyte.sweeps.sensitivity import sensitivity, sobol_indices
from opbyte.sweeps.store import Results
from opbyte.sweeps.stored_designs import stored_plan

__all__ = ["inside", "left_out"]

_ROWS = 8
_SAMPLES = 256
_BARS = 8
#: Words of a path that tell parameters apart.
_WORDS = 3
#: Indices below this are not drawn.
_LEAST = 0.005


def inside(
    results: Results,
    frame: pd.DataFrame,
    objectives: Mapping[str, str],
    axes: list[str],
    best: Any,
) -> dict[str, Any]:
    """Return what the page shows of the chosen designs.

    Args:
        results: The store.
        frame: One row for each point.
        objectives: Metric -> min or max.
        axes: Columns of the axes that vary.
        best: Which rows are on the front.
    """
    chosen = choose(frame, objectives, best)
    if not chosen:
        why = "no point is on a front" if objectives else "the study names no objective"
        return left_out(f"No design is chosen: {why}.")
    try:
        plan = stored_plan(results)
    except Exception as error:  # noqa: BLE001  whatever keeps the study from being read again
        text = " ".join(str(error).split())
        return left_out(f"The study could not be simulated again here: {text}")
    shown = list(again(results, plan, frame, chosen))
    metrics = [m for m in objectives if m in plan.metrics or m == "speedup"]
    return {
        "note": "",
        "current": is_current(results),
        "designs": [_design(one, frame, objectives, axes) for one in shown],
        "breakdown": _breakdown(shown),
        "sensitivity": _sensitivity(plan, shown, metrics),
    }


def left_out(note: str) -> dict[str, Any]:
    """Return the section without designs, with why."""
    return {"note": note, "current": True, "designs": [], "breakdown": None, "sensitivity": None}


def _design(
    one: Again, frame: pd.DataFrame, objectives: Mapping[str, str], axes: list[str]
) -> dict[str, Any]:
    row = frame.iloc[one.chosen.row]
    rows, more = _operators(one)
    return {
        "name": one.chosen.name,
        "setting": setting(row, axes),
        "metrics": ", ".join(f"{quantity(m).label} {cell(row[m], m)}" for m in objectives),
        "problem": one.problem,
        "differs": "; ".join(one.differs),
        "operators": rows,
        "more": more,
        "timeline": _timeline(one),
    }


def _operators(one: Again) -> tuple[list[list[str]], int]:
    """Return the longest operators as texts, and how many others there are."""
    if one.result is None or not one.result.outcome.phases:
        return [], 0
    frame = one.result.breakdown
    keys = ["phase", "operator", "unit", "bound_by"]
    sums = frame.groupby(keys, sort=False)[["seconds", "joules"]].sum().reset_index()
    sums = sums.sort_values("seconds", ascending=False, kind="stable")
    whole = float(sums["seconds"].sum())
    rows = [
        [
            *(str(r[k]) for k in keys), show(float(r["seconds"]), "seconds"),
            f"{r['seconds'] / whole:.1%}" if whole > 0 else "", show(float(r["joules"]), "joules"),
        ]
        for _, r in sums.head(_ROWS).iterrows()
    ]  # fmt: skip
    return rows, len(sums) - len(rows)


def _breakdown(shown: list[Again]) -> dict[str, str] | None:
    """Return the figure of all designs' times by operator."""
    from opbyte.sweeps.plots import breakdown

    known = {
        one.chosen.name: one.result
        for one in shown
        if one.result is not None and one.result.outcome.phases
    }
    if not known:
        return None
    text = "Time by operator, all runs. Operators that run at the same time are all counted."
    return picture(breakdown(known), text)


def _timeline(one: Again) -> dict[str, str] | None:
    """Return the figure of what ran when."""
    from opbyte.sweeps.plots import serving, timeline

    if one.played is None:
        return None
    if "series" in one.played.outcome.detail:
        return picture(serving(one.played), "Requests of the served trace over time.")
    text = "What runs when, and the share of each port and link that it holds (event level)."
    try:
        return picture(timeline(one.played), text)
    except SimulationError:
        return None


# -- sensitivity ----------------------------------------------------------------------------------


def _sensitivity(plan: Plan, shown: list[Again], metrics: list[str]) -> dict[str, Any] | None:
    """Return what decides the metrics at the first design that could be simulated."""
    one = next((a for a in shown if a.design is not None), None)
    if one is None or not metrics:
        return None
    found = [_of_metric(plan, one, metric) for metric in metrics]
    return {"design": one.chosen.name, "metrics": found}


def _of_metric(plan: Plan, one: Again, metric: str) -> dict[str, Any]:
    about: dict[str, Any] = {"label": quantity(metric).label, "evidence": "", "rests": []}
    about |= {"figures": [], "problem": ""}
    try:
        about["figures"] = list(_figures(plan, one, metric))
        if metric != "speedup":
            assert one.design is not None
            machine, work, mapping = (
                as_designed(plan, one.design),
                one.design.work,
                one.design.mapping,
            )
            about["evidence"], about["rests"] = class_of(machine, work, metric, mapping)
    except Exception as error:  # noqa: BLE001  works that take no arrays, units of users
        about["problem"] = " ".join(str(error).split())
    return about


def _figures(plan: Plan, one: Again, metric: str) -> Iterator[dict[str, str]]:
    """Yield the tornado and the Sobol indices of a metric.

    Raises:
        OpbyteError: If the work can not be evaluated with other parameters.
    """
    from opbyte.sweeps.plots import sensitivity as tornado
    from opbyte.sweeps.plots import shares

    assert one.design is not None
    machine, work, mapping = as_designed(plan, one.design), one.design.work, one.design.mapping
    if work.played:
        raise UncoveredError(f"a {work.kind} work is played in time, one set of parameters at once")
    other: Any = None
    name = metric
    if metric == "speedup":
        name, other = "seconds", plan.baseline and plan.baseline.machine
        if other is None:
            raise UncoveredError("the baseline is no other machine")
    frame = sensitivity(machine, work, name, mapping=mapping, baseline=other)
    label = quantity(metric).label
    if (frame["span"] > 1e-3).any():
        text = (
            f"{label}: the ends of each parameter's range, one at a time; "
            "without a range, 10 % less and more."
        )
        yield picture(tornado(frame, _BARS), text)
    try:
        table = sobol_indices(
            machine, work, name, mapping=mapping, baseline=other, samples=_SAMPLES
        )
    except OpbyteError:
        return
    table = table[table["total"] > _LEAST].set_index("parameter")
    if len(table):
        table.index = pd.Index([".".join(str(p).split(".")[-_WORDS:]) for p in table.index])
        drawn = table[["first", "total"]].rename(columns={"first": "alone", "total": "with others"})
        errors = table[["first_error", "total_error"]].set_axis(drawn.columns, axis=1)
        spread = f"{100 * table.attrs['deviation'] / abs(table.attrs['mean']):.2g} %"
        text = (
            f"{label}: Sobol indices, all ranges at once (standard deviation {spread} "
            "of the mean); lines are standard errors."
        )
        ax = shares(drawn.clip(lower=0.0), "Share of the variance", most=_BARS, errors=errors)
        yield picture(ax, text)
