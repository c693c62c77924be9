"""The front of stored points under what is not known: which points stay on it, and how far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter
from opbyte.hw_models.machine import Machine
from opbyte.sim.metrics import COSTS, with_costs
from opbyte.sim.simulate import evaluate
from opbyte.sweeps.draws import Draws
from opbyte.sweeps.pareto import costs, feasible
from opbyte.sweeps.store import Results
from opbyte.sweeps.stored_designs import StoredDesigns, StoredPoint

__all__ = ["FrontBand", "front_band", "is_cost"]

#: Dimensions of parameters that no time and no energy depends on.
COST_DIMENSIONS = frozenset(
    {
        "area", "area_per_byte", "area_per_rate", "area_per_ops",
        "dollars", "dollars_per_byte", "dollars_per_area", "dollars_per_joule",
        "kilograms", "kilograms_per_byte", "kilograms_per_joule",
    }
)  # fmt: skip
#: Blocks of a machine that are about costs alone.
COST_BLOCKS = ("site.", "making.")
#: Metrics that such parameters decide; those of a token need the two others of the point.
PER_TOKEN = ("usd_per_mtoken", "tco_usd_per_mtoken", "carbon_g_per_mtoken")
_NEEDED = ("tokens_per_s", "joules_per_token")
#: Draws of a band; each takes 8 bytes for each point and each range.
MOST_DRAWS = 100_000
_ENDS = (5.0, 95.0)
_SAME = 1e-6


@dataclass(frozen=True)
class FrontBand:
    """A front with what it may be.

    Attributes:
        frame: One row for each point looked at, with its stored columns; `probability` of being on
            the front, `on_front` as stored, and for each objective `NAME_low` and `NAME_high`, its
            5 and 95 % percentiles.
        objectives: Column -> min or max.
        draws: Objective -> (samples, points); the first sample is as stored.
        on_front: Which points are on the front of each sample, (samples, points).
        simulated: Whether points were simulated again, as parameters that change time were drawn.
        left_out: Stored points that were not looked at, as too many others are before them.
    """

    frame: pd.DataFrame
    objectives: Mapping[str, str]
    draws: Mapping[str, Array]
    on_front: npt.NDArray[np.bool_]
    simulated: bool
    left_out: int


def front_band(
    results: Results,
    *,
    objectives: Mapping[str, str] | None = None,
    parameters: Literal["costs", "all"] = "costs",
    samples: int = 1000,
    most: int = 200,
    seed: int = 0,
) -> FrontBand:
    """Return the front of stored points with the band that parameters' ranges give it.

    All ranges are drawn at once, by a scrambled Sobol sequence, and each draw holds for all points:
    what two machines take from one source moves on both. What an axis sets is not drawn.

    Args:
        results: Stored points of a study.
        objectives: Column -> min or max; default: the study's.
        parameters: `costs` draws prices, areas, carbon, yields and the site, and no point is
            simulated again. `all` draws times and energies too; points are simulated again, at
            analytic level, and a stored value moves as its analytic one does.
        samples: Draws, the first of which is as stored.
        most: Points to look at: the front, and those that fewest fronts are before.
        seed: Of the sequence.
    Raises:
        ConfigError: For an objective that is not stored, no objective, or points that were stored
            with other prices than the study now has.
    """
    chosen = dict(objectives or results.objectives)
    if not chosen:
        remedy = "Give for example objectives={'tokens_per_s': 'max', 'price_usd': 'min'}."
        raise ConfigError.one("", "objectives", "the study has no objectives", "", remedy)
    if not 2 <= samples <= MOST_DRAWS:
        raise ConfigError.one("", "samples", f"a band has 2 to {MOST_DRAWS:,} draws", samples)
    columns = results.columns()
    rows, left_out = _candidates(columns, chosen, most)
    designs = StoredDesigns(results)
    points = [designs.point(columns, int(row)) for row in rows]
    drawn = [dict(_drawn(p, parameters)) for p in points]
    table = Draws((p for d in drawn for p in d.values()), samples, seed)
    names = dict.fromkeys([*chosen, *(n for c in designs.plan.constraints for n in c.names)])
    moved: dict[str, list[Array]] = {name: [] for name in names}
    for row, point, ranged in zip(rows, points, drawn, strict=True):
        stored = {name: columns[name][row] for name in columns}
        ratios = _ratios(point, ranged, table, stored, parameters)
        for name in names:
            ratio = ratios.get(name, 1.0)
            moved[name].append(np.broadcast_to(stored[name] * ratio, samples))
    draws = {name: np.stack(moved[name], axis=1) for name in names}
    allowed = np.ones((samples, len(rows)), dtype=np.bool_)
    for constraint in designs.plan.constraints:
        allowed &= constraint.violation({n: draws[n] for n in constraint.names}) == 0.0
    on_front = _fronts({n: draws[n] for n in chosen}, chosen, allowed)
    frame = _framed(columns, rows, draws, chosen, on_front)
    draws = {n: draws[n] for n in chosen}
    return FrontBand(frame, chosen, draws, on_front, parameters == "all", left_out)


def is_cost(path: str, parameter: Parameter) -> bool:
    """Return whether a machine's parameter decides what it costs and nothing else."""
    return parameter.dimension in COST_DIMENSIONS or path.startswith(COST_BLOCKS)


def _candidates(
    columns: Mapping[str, Any], objectives: Mapping[str, str], most: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Return positions of points to look at, front after front, and how many others there are."""
    import moocore

    values = costs(columns, objectives)
    fine = np.flatnonzero(feasible(columns) & np.isfinite(values).all(axis=1))
    if not len(fine):
        rule = "no point is ok and keeps every constraint, so there is no front"
        raise ConfigError.one("", "results", rule)
    ranks = moocore.pareto_rank(values[fine]) if values.shape[1] > 1 else values[fine, 0]
    order = fine[np.argsort(ranks, kind="stable")]
    kept = order[: max(most, 1)]
    return kept, len(fine) - len(kept)


def _drawn(point: StoredPoint, parameters: str) -> Iterator[tuple[str, Parameter]]:
    """Yield the parameters of a point's machine that are drawn."""
    for path, p in point.design.machine.parameters.items():
        if p.range is None or path in point.values or p.dimension == "count":
            continue
        if parameters == "all" or is_cost(path, p):
            yield path, p


def _ratios(
    point: StoredPoint,
    ranged: Mapping[str, Parameter],
    table: Draws,
    stored: Mapping[str, Any],
    parameters: str,
) -> dict[str, Array]:
    """Return each metric over what it is as stored, (samples,)."""
    columns = {path: c for path, p in ranged.items() if (c := table.of(p)) is not None}
    fixed = {path: np.full(table.samples, value) for path, value in point.values.items()}
    machine = point.design.machine.with_values({**fixed, **columns})
    with np.errstate(all="ignore"):
        if parameters == "all":
            outcome = evaluate(machine, point.work, point.design.mapping, "analytic")
            metrics: Mapping[str, Any] = outcome.metrics
        else:
            metrics = _costs_of(machine, stored)
        found = {}
        for name, value in metrics.items():
            each = np.broadcast_to(np.asarray(value, dtype=np.float64), table.samples)
            if np.isfinite(each[0]) and each[0] != 0.0:
                found[name] = each / each[0]
                _check(name, stored, float(each[0]))
    return found


def _costs_of(machine: Machine, stored: Mapping[str, Any]) -> dict[str, Array]:
    """Return the metrics that follow from costs and from a stored point's rate and energy."""
    given = {n: np.atleast_1d(stored.get(n, np.nan)) for n in _NEEDED}
    found = with_costs(machine, given)
    return {name: found[name] for name in (*COSTS, *PER_TOKEN)}


def _check(name: str, stored: Mapping[str, Any], now: float) -> None:
    """Refuse points whose costs are not what they were; a fleet costs a multiple of a machine."""
    if name not in COSTS or name not in stored or not np.isfinite(stored[name]):
        return
    times = float(stored[name]) / now
    if abs(times - max(round(times), 1)) > _SAME * times:
        rule = f"{name} was stored as {stored[name]:.6g} and is {now:.6g} now"
        raise ConfigError.one("", "results", rule, "", "Run the study again with --fresh.")


def _fronts(
    draws: Mapping[str, Array], objectives: Mapping[str, str], allowed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which points are on the front of each sample, (samples, points)."""
    import moocore

    values = np.stack(
        [draws[n] if d == "min" else -draws[n] for n, d in objectives.items()], axis=2
    )
    allowed = allowed & np.isfinite(values).all(axis=2)
    found = np.zeros(allowed.shape, dtype=np.bool_)
    for i, here in enumerate(allowed):
        inside = values[i, here]
        if not len(inside):
            continue
        if inside.shape[1] == 1:
            best = np.arange(len(inside)) == int(np.argmin(inside[:, 0]))
        else:
            best = moocore.is_nondominated(inside, keep_weakly=False)
        found[i, here] = best
    return found


def _framed(
    columns: Mapping[str, Any],
    rows: npt.NDArray[np.int64],
    draws: Mapping[str, Array],
    objectives: Mapping[str, str],
    on_front: npt.NDArray[np.bool_],
) -> pd.DataFrame:
    frame = pd.DataFrame({name: column[rows] for name, column in columns.items()})
    frame["probability"] = on_front[1:].mean(axis=0)
    frame["on_front"] = on_front[0]
    for name in objectives:
        low, high = np.nanpercentile(draws[name][1:], _ENDS, axis=0)
        frame[f"{name}_low"], frame[f"{name}_high"] = low, high
    order = np.lexsort((costs(columns, objectives)[rows, 0], -frame["probability"].to_numpy()))
    return frame.iloc[order]
