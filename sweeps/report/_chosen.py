"""The designs of a front that one would look at first, simulated again to see into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from opbyte.core.errors import OpbyteError, UncoveredError
from opbyte.hw_models.machine import Machine
from opbyte.sim.result import Result
from opbyte.sweeps.design import Design
from opbyte.sweeps.evaluate import Evaluator
from opbyte.sweeps.keys import code_version
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.plots._frames import cell, numbers
from opbyte.sweeps.plots._pareto import LOG_FROM, front_mask, knee
from opbyte.sweeps.plots._quantities import quantity, span_of
from opbyte.sweeps.report._evidence import CHOSEN
from opbyte.sweeps.space import Codes
from opbyte.sweeps.store import Results
from opbyte.sweeps.targets import parameter_path

__all__ = ["Again", "Chosen", "again", "choose"]

#: Designs of a page.
_MOST = 4
#: What a metric may differ from its stored value by, relative.
_SAME = 1e-6


@dataclass(frozen=True)
class Chosen:
    """A row that one would look at first.

    Attributes:
        name: Why.
        row: Position in the frame.
    """

    name: str
    row: int


@dataclass(frozen=True)
class Again:
    """A chosen design, simulated again.

    Attributes:
        design: Machine, work and mapping.
        result: What the study's fidelity answers; None where `problem` says why not.
        played: The same at the event level, where it has a timeline.
        differs: Objectives that are not what the store has, as sentences.
    """

    chosen: Chosen
    design: Design | None
    result: Result | None
    played: Result | None
    problem: str
    differs: tuple[str, ...] = ()


def choose(frame: pd.DataFrame, objectives: Mapping[str, str], best: Any) -> list[Chosen]:
    """Return the knee of the first two objectives whose front has one, and the best of each.

    Args:
        frame: One row for each point.
        objectives: Metric -> min or max.
        best: Which rows are on the front.
    """
    rows = np.flatnonzero(best)
    if not len(rows):
        return []
    names: dict[int, list[str]] = {}
    for pair in combinations(objectives.items(), 2):
        at = _knee(frame.iloc[rows], dict(pair))
        if at is not None:
            of = " and ".join(_lower(metric) for metric, _ in pair)
            names.setdefault(int(rows[at]), []).append(f"knee of {of}")
            break
    for metric, sense in objectives.items():
        values = numbers(frame, metric)[rows]
        at = int(np.nanargmax(values) if sense == "max" else np.nanargmin(values))
        word = "highest" if sense == "max" else "lowest"
        names.setdefault(int(rows[at]), []).append(f"{word} {_lower(metric)}")
    found = [Chosen(", ".join(why), row) for row, why in names.items()]
    return [Chosen(c.name[:1].upper() + c.name[1:], c.row) for c in found][:_MOST]


def _lower(metric: str) -> str:
    label = quantity(metric).label
    return label if label[1:2].isupper() else label[:1].lower() + label[1:]


def _knee(front: pd.DataFrame, pair: Mapping[str, str]) -> int | None:
    """Return the position of the knee of a front in two objectives; None where it has none."""
    line = np.flatnonzero(front_mask(front.reset_index(drop=True), pair, np.ones(len(front), bool)))
    xs, ys = (numbers(front, metric)[line] for metric in pair)
    order = np.lexsort((ys, xs))
    log = (span_of(xs) > LOG_FROM, span_of(ys) > LOG_FROM)
    at = knee(xs[order], ys[order], log=log)
    return None if at is None else int(line[order[at]])


def again(
    results: Results, plan: Plan, frame: pd.DataFrame, chosen: list[Chosen]
) -> Iterator[Again]:
    """Yield the chosen designs, simulated again at the study's fidelity.

    Where that is not the event level, they are played there as well, for their timelines.

    Args:
        results: The store.
        plan: Of its study.
        frame: One row for each point, as stored.
        chosen: Rows of it.
    """
    evaluator = Evaluator(plan, str(results.meta["key"]))
    for one in chosen:
        row = frame.iloc[one.row]
        try:
            design, seed = evaluator.design(int(row.get("point", 0)), _codes(plan, row))
            result = _simulated(design, plan.study.fidelity, seed)
        except Exception as error:  # noqa: BLE001  a user's unit or scheduler may raise anything
            yield Again(one, None, None, None, " ".join(str(error).split()))
            continue
        differs = tuple(_differences(plan, row, result))
        yield Again(one, design, result, _played(design, result, seed), "", differs)


def _codes(plan: Plan, row: pd.Series) -> Codes:
    """Return the codes of a stored row.

    Raises:
        UncoveredError: If it has a value that the axis does not have.
    """
    codes: Codes = {}
    for axis in plan.axes:
        value = row[axis.path]
        empty = value is None or value == "" or (isinstance(value, float) and np.isnan(value))
        if empty:
            code: float = axis.line.idle
        elif axis.line.size == 0:
            code = float(value)
        elif axis.numbers is not None:
            away = np.abs(axis.numbers - float(value))
            code = int(np.argmin(away))
            if away[code] > 1e-9 * abs(float(value)):
                raise UncoveredError(f"{axis.path} has no value {value}")
        elif str(value) in axis.texts:
            code = axis.texts.index(str(value))
        else:
            raise UncoveredError(f"{axis.path} has no value {value}")
        codes[axis.path] = np.array([code], dtype=np.int64 if axis.line.size else np.float64)
    return codes


def _simulated(design: Design, fidelity: Any, seed: int) -> Result:
    from opbyte.sim.simulate import simulate

    return simulate(design.machine, design.work, design.mapping, fidelity, seed)


def _played(design: Design, result: Result, seed: int) -> Result | None:
    """Return the design at the event level, None where it can not be played so."""
    if result.fidelity == "event" or design.work.played:
        return result
    try:
        return _simulated(design, "event", seed)
    except OpbyteError:
        return None


def _differences(plan: Plan, row: pd.Series, result: Result) -> Iterator[str]:
    """Yield what the simulation answers otherwise than the store, as sentences."""
    for metric in plan.study.objectives:
        now, then = result.metrics.get(metric), row.get(metric)
        if now is None or then is None or not np.isfinite(then):
            continue
        if abs(now - then) > _SAME * abs(then):
            yield f"{quantity(metric).label}: {cell(then, metric)} stored, {cell(now, metric)} now"


def is_current(results: Results) -> bool:
    """Return whether the results were computed by this version of the program."""
    return bool(results.meta.get("code") == code_version())


def as_designed(plan: Plan, design: Design) -> Machine:
    """Return the machine of a design whose parameters have their values there.

    What the study's axes and derived parameters choose is no uncertainty: it loses its range.
    """
    machine = design.machine
    targets = [*(a.target for a in plan.axes), *(k.target for k in plan.links)]
    chosen = {
        parameter_path(machine, t.name) or t.name for t in targets if t.key.startswith("machine.")
    }
    parameters = {
        path: dataclasses.replace(
            p, value=float(np.ravel(machine.values[path])[0]), range=None, source=CHOSEN
        )
        if path in chosen and path in machine.values
        else p
        for path, p in machine.parameters.items()
    }
    return Machine(machine.config, machine.document, machine.values, parameters)
