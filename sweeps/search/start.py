"""Where a search begins: designs that the study names, and the fronts of other results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, Problem
from opbyte.core.registry import nearest
from opbyte.sweeps.axes import PlanAxis, position, read_number
from opbyte.sweeps.pareto import front_of
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.search.board import Point, settled
from opbyte.sweeps.store import open_results
from opbyte.sweeps.study import Optuna

__all__ = ["starting_points"]

_SHOWN = 8


def starting_points(plan: Plan, strategy: Optuna) -> list[Point]:
    """Return the points that a search plays first: its `designs`, then the fronts of `results`.

    Raises:
        ConfigError: With everything that is wrong with them.
    """
    problems: list[Problem] = []
    points: list[Point] = []
    for i, design in enumerate(strategy.designs):
        try:
            points.append(_design(plan, design))
        except ConfigError as error:
            at = ("strategy", "designs", i)
            for p in error.problems:
                path = ".".join(map(str, (*at, p.path))).rstrip(".")
                problems.append(Problem(plan.document.where(at), path, p.rule, p.value, p.remedy))
    for i, name in enumerate(strategy.results):
        at = ("strategy", "results", i)
        try:
            points += _stored(plan, Path(plan.side.beside(name)))
        except ConfigError as error:
            for p in error.problems:
                where = plan.document.where(at)
                problems.append(Problem(where, ".".join(map(str, at)), p.rule, name, p.remedy))
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(points))


def _design(plan: Plan, design: Mapping[str, Any]) -> Point:
    """Return the point of a design that is written path by path."""
    problems = []
    for path in design:
        if path not in plan.by_path:
            near = nearest(path, plan.by_path)
            remedy = f"Did you mean {near!r}?" if near else f"Axes: {', '.join(plan.by_path)}."
            problems.append(Problem("", path, "a design gives values of axes", path, remedy))
    codes: dict[str, float] = {}
    used = dict.fromkeys(plan.by_path, True)
    for path, axis in plan.by_path.items():
        for parent, positions in axis.line.when:
            used[path] &= used[parent] and codes.get(parent) in (None, *positions)
        if path in design:
            try:
                codes[path] = _code(axis, design[path])
            except ConfigError as error:
                problems += [Problem("", path, p.rule, p.value, p.remedy) for p in error.problems]
        elif used[path]:
            remedy = f"Add for example `{path}: {(axis.shown or ('...',))[0]}`."
            problems.append(
                Problem("", "", f"a design gives every axis, {path} is missing", "", remedy)
            )
        else:
            codes[path] = float(axis.line.idle)
    if problems:
        raise ConfigError(problems)
    lines = tuple(axis.line for axis in plan.axes)
    return settled(lines, tuple(float(codes[line.path]) for line in lines))


def _code(axis: PlanAxis, raw: Any) -> float:
    """Return the code of a written value of an axis."""
    if axis.line.size:
        found = position(axis, raw)
        if found is None:
            shown = ", ".join(axis.shown[:_SHOWN])
            more = f" and {axis.line.size - _SHOWN} more" if axis.line.size > _SHOWN else ""
            raise ConfigError.one(
                "", "", "the axis never has this value", raw, f"It has {shown}{more}."
            )
        return float(found)
    number = read_number(axis.target, raw, "")
    if not axis.line.low <= number <= axis.line.high:
        ends = f"{axis.line.low:g} to {axis.line.high:g}"
        raise ConfigError.one("", "", f"the axis reaches from {ends} (SI)", raw)
    return number


def _stored(plan: Plan, folder: Path) -> Iterator[Point]:
    """Return the points of ours that are nearest to the front of stored results."""
    results = open_results(folder)
    columns = results.columns()
    missing = [a.path for a in plan.axes if a.path not in columns]
    lost = [n for n in plan.study.objectives if n not in columns]
    if missing or lost:
        rule = f"these results have no column {', '.join([*missing, *lost])}"
        raise ConfigError.one("", "", rule, "", "Name results with the same axes and objectives.")
    points = []
    for row in front_of(columns, plan.study.objectives).tolist():
        codes = [_nearest(axis, columns[axis.path][row]) for axis in plan.axes]
        if None not in codes:
            point = tuple(float(c) for c in codes if c is not None)
            points.append(settled(tuple(a.line for a in plan.axes), point))
    return iter(points)


def _nearest(axis: PlanAxis, value: Any) -> float | None:
    """Return the code nearest to a stored value, None where a name is not among ours."""
    if isinstance(value, str):
        if value == "" and axis.line.when:
            return float(axis.line.idle)
        return float(axis.texts.index(value)) if value in axis.texts else None
    if np.isnan(value):
        return float(axis.line.idle) if axis.line.when else None
    if axis.line.size:
        if axis.numbers is None:
            return None
        return float(np.argmin(np.abs(axis.numbers - value)))
    return float(np.clip(value, axis.line.low, axis.line.high))
