"""One budget, every machine: who does most within what some number of a machine costs.

A machine that costs c is bought n = floor(C / c) times within a budget C, and its copies serve
requests of their own: n times the rate of one, at the latency of one. docs/one-budget.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.metrics import COSTS
from opbyte.sim.simulate import evaluate
from opbyte.sweeps.draws import Draws
from opbyte.sweeps.pareto import feasible
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.report._evidence import kind_of
from opbyte.sweeps.sensitivity import sensitivity
from opbyte.sweeps.store import Results
from opbyte.sweeps.stored_designs import StoredDesigns, StoredPoint

__all__ = ["WITHIN", "contest", "copies"]

#: Budgets: one for each cost, and one that all three end.
WITHIN = ("price_usd", "area_m2", "tdp_w", "all")
_COSTS = WITHIN[:3]
#: A parameter matters if a change by 10 % moves the metric by more than 1 %.
_MATTERS = 0.1
_ROUNDING = 1e-9
_LOW, _HIGH = 5.0, 95.0


def copies(costs: Mapping[str, Array], budget: Mapping[str, Array], within: str) -> Array:
    """Return how many machines a budget buys, whole ones; shape of the costs.

    Args:
        costs: `price_usd`, `area_m2` and `tdp_w` of one machine.
        budget: The same of the budget.
        within: One of `WITHIN`.
    """
    named = _COSTS if within == "all" else (within,)
    bought = [np.floor(budget[c] / costs[c] * (1.0 + _ROUNDING)) for c in named]
    least: Array = np.min(np.broadcast_arrays(*bought), axis=0)
    return least


def contest(results: Results, samples: int = 257, seed: int = 0) -> pd.DataFrame:
    """Return what the best design of each machine does within the study's budget.

    The band draws all parameters from their ranges, those of the budget's machine too; what two
    machines take from one source (same value, range and source) moves on both. Capacities and
    counts stay. A machine keeps the design that is best at its own values, but serves in each draw
    the work of the study's points (batch) that does most and keeps every constraint.

    Args:
        results: Of a study with a `budget` and an axis `machine`.
        samples: Draws.
        seed: Of the draws.
    Returns:
        One row for each budget and machine, the best first: `within`, `machine`, `copies`,
        `tokens_per_s` (of all copies), `low` and `high` (5 and 95 % of the draws), `wins` (share of
        the draws in which no other machine does more), `design`, `evidence`, `built`.
        `attrs["refused"]` says of the other machines why they have no place, `attrs["uncovered"]`
        how many points of a machine nothing covers, `attrs["budget"]` what there was to spend,
        `attrs["draws"]` how many draws there were.
    Raises:
        ConfigError: If the study has no budget or compares no machines.
    """
    stored = StoredDesigns(results)
    plan = stored.plan
    budget = plan.study.budget
    if budget is None or "machine" not in results.axes:
        rule = "a contest needs a study with a `budget` and an axis `machine`"
        raise ConfigError.one(str(results.folder), "budget", rule)
    reference = load_machine(plan.side.beside(budget.machine))
    own = _costs_of(reference, reference.values)
    limits = {name: np.asarray(own[name]) * budget.count for name in _COSTS}
    frame = results.frame()
    columns = {name: frame[name].to_numpy() for name in frame.columns}
    best, refused = _entrants(columns, limits, list(plan.study.constraints))
    entries = [
        _Entry(within, name, row, stored.point(columns, row), _chosen(plan, columns, row))
        for within in WITHIN
        for name, row in best[within]
    ]
    table = _table([reference, *(e.point.design.machine for e in entries)], samples, seed)
    own_draws = _costs_of(reference, _columns(reference, {}, table))
    drawn = {name: value * budget.count for name, value in own_draws.items()}
    served = {
        row: [_played(stored, columns, i, table) for i in _served(plan, columns, row)]
        for row in {e.row for e in entries}
    }
    for entry in entries:
        rates = [kept * copies(m, drawn, entry.within) for m, kept in served[entry.row]]
        entry.rates = np.max(np.broadcast_arrays(*rates, np.zeros(samples)), axis=0)
    told = {row: _evidence(point) for row, point in {e.row: e.point for e in entries}.items()}
    found = pd.DataFrame(
        [
            {**row, "evidence": told[entry.row]}
            for within in WITHIN
            for entry, row in _rows(entries, within, columns, limits)
        ]
    )
    spent = {name: float(value) for name, value in limits.items()}
    failed = frame[frame["status"] == "failed"]["machine"].value_counts().to_dict()
    found.attrs |= {"refused": refused, "uncovered": failed, "budget": spent, "draws": samples - 1}
    return found


def _costs_of(machine: Machine, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: COSTS[name](machine.with_values(values)) for name in _COSTS}


_Best = dict[str, list[tuple[str, int]]]
_Columns = Mapping[str, Any]


def _entrants(
    columns: _Columns, limits: Mapping[str, Array], constraints: list[str]
) -> tuple[_Best, dict[str, str]]:
    """Return the position of each machine's best row by budget, and why machines have none."""
    good = feasible(columns)
    known = np.all([np.isfinite(columns[name]) for name in _COSTS], axis=0)
    best: _Best = {within: [] for within in WITHIN}
    refused: dict[str, str] = {}
    for name in dict.fromkeys(columns["machine"].tolist()):
        here = columns["machine"] == name
        chosen = np.flatnonzero(here & good & known)
        if not len(chosen):
            refused[name] = _why(columns, here, here & good, constraints)
            continue
        costs = {c: columns[c][chosen] for c in _COSTS}
        for within in WITHIN:
            rate = copies(costs, limits, within) * columns["tokens_per_s"][chosen]
            best[within].append((name, int(chosen[np.argmax(rate)])))
    return best, refused


def _why(columns: _Columns, here: Any, good: Any, constraints: list[str]) -> str:
    if good.any():
        return "one of its costs is not known"
    ran = columns["status"] == "ok"
    if (here & ran).any():
        return f"no point keeps {', '.join(constraints)}"
    return str(pd.Series(columns["reason"][here & ~ran]).value_counts().index[0])


@dataclass
class _Entry:
    """The best design of a machine within a budget, and its rates of all copies, (samples,)."""

    within: str
    name: str
    row: int
    point: StoredPoint
    text: str
    rates: Array = field(default_factory=lambda: np.empty(0))


def _chosen(plan: Plan, columns: _Columns, row: int) -> str:
    """Return what a row has chosen beside the machine."""
    told = []
    for axis in plan.axes:
        value = columns[axis.path][row]
        if axis.path == "machine" or value == "" or value != value:
            continue
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        told.append(f"{axis.path.rpartition('.')[2]} {shown}")
    return ", ".join(told)


def _served(plan: Plan, columns: _Columns, row: int) -> Sequence[int]:
    """Return the rows that differ from one in numbers of the work alone, its own among them."""
    here = columns["status"] == "ok"
    for axis in plan.axes:
        if not (axis.target.numeric and axis.path.startswith("workload.")):
            column, value = columns[axis.path], columns[axis.path][row]
            # An axis that means nothing here holds NaN.
            here = here & ((column == value) if value == value else (column != column))
    found: list[int] = np.flatnonzero(here).tolist()
    return found


def _table(machines: list[Machine], samples: int, seed: int) -> Draws:
    return Draws([p for machine in machines for _, p in _ranged(machine, {})], samples, seed)


def _played(
    stored: StoredDesigns, columns: _Columns, row: int, table: Draws
) -> tuple[Mapping[str, Array], Array]:
    """Return a row's metrics over the draws, and tokens per second where it keeps constraints."""
    point = stored.point(columns, row)
    machine = point.design.machine.with_values(_columns(point.design.machine, point.values, table))
    with np.errstate(divide="ignore", invalid="ignore"):
        metrics = evaluate(machine, point.work, point.design.mapping, "analytic").metrics
    broken = np.zeros(table.samples)
    for constraint in stored.plan.constraints:
        names = {n: metrics.get(n, columns[n][row]) for n in constraint.names}
        broken = broken + constraint.violation(names)
    return metrics, np.where(broken == 0.0, metrics["tokens_per_s"], 0.0)


def _ranged(machine: Machine, given: Mapping[str, float]) -> Iterator[tuple[str, Parameter]]:
    """Yield what is drawn: no capacity, as what fits is a choice, and nothing that an axis sets."""
    for path, p in machine.parameters.items():
        if p.range is not None and path not in given and not path.endswith(".capacity"):
            yield path, p


def _columns(machine: Machine, given: Mapping[str, float], table: Draws) -> dict[str, Array]:
    fixed = {path: np.full(table.samples, value) for path, value in given.items()}
    drawn = {path: c for path, p in _ranged(machine, given) if (c := table.of(p)) is not None}
    return fixed | drawn


def _rows(
    entries: list[_Entry], within: str, columns: _Columns, limits: Mapping[str, Array]
) -> list[tuple[_Entry, dict[str, Any]]]:
    """Return the rows of one budget, the best first."""
    here = [e for e in entries if e.within == within]
    if not here:
        return []
    rates = np.stack([e.rates for e in here])
    most = rates[:, 1:].max(axis=0)
    wins = ((rates[:, 1:] >= most) & (most > 0)).mean(axis=1)
    found = []
    for entry, share in zip(here, wins, strict=True):
        bought = float(copies({c: columns[c][entry.row] for c in _COSTS}, limits, within))
        low, high = np.percentile(entry.rates[1:], [_LOW, _HIGH])
        row = {
            "within": within,
            "machine": entry.name,
            "copies": int(bought),
            "tokens_per_s": bought * float(columns["tokens_per_s"][entry.row]),
            "low": float(low),
            "high": float(high),
            "wins": float(share),
            "design": entry.text,
            "built": kind_of(entry.point.design.machine.config.source) == "published",
        }
        found.append((entry, row))
    return sorted(found, key=lambda pair: -pair[1]["tokens_per_s"])


def _evidence(point: StoredPoint) -> str:
    """Return the class of dollars per token (docs/evidence.md), and how many parameters matter.

    A machine's tokens per dollar rest on all its parameters that a token's time and its price do;
    those of the site and of making dies are the same everywhere and do not count.
    """
    try:
        machine = point.design.machine.with_values(point.values)
        frame = sensitivity(machine, point.work, "usd_per_mtoken", mapping=point.design.mapping)
    except OpbyteError as error:
        return f"open: {error}"
    low = np.maximum(frame["low"], 1e-300)
    moved = np.abs(np.log(frame["at_high"] / frame["at_low"]))
    common = frame["parameter"].str.startswith(("site.", "making."))
    matters = (moved > _MATTERS * np.log(frame["high"] / low)) & ~common
    kinds = [kind_of(source) for source in frame.loc[matters, "source"]]
    for kind in ("calibrated", "assumed", "unsourced"):
        if kind in kinds:
            return f"{kind} ({kinds.count(kind)} of {len(kinds)})"
    return f"predicted ({len(kinds)})"
