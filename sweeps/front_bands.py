"""The front of stored points under what is not known: which points stay on it, and how far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.sim.metrics import COSTS
from opbyte.sim.simulate import evaluate
from opbyte.sweeps.constraints import Constraint
from opbyte.sweeps.drawn_costs import COSTLY, DrawnCosts, Rows, check_costs, ranged
from opbyte.sweeps.draws import Draws
from opbyte.sweeps.pareto import costs, feasible
from opbyte.sweeps.store import Results
from opbyte.sweeps.stored_designs import StoredDesigns, StoredPoint

__all__ = ["FrontBand", "front_band"]

#: Draws of a band; each takes 8 bytes for each point and each range.
MOST_DRAWS = 100_000
_ENDS = (5.0, 95.0)


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
        most: Points to look at: the front, and those that fewest fronts are before; and as many
            of those that break a constraint as stored and may keep all in a draw.
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
    designs = StoredDesigns(results)
    constraints = designs.plan.constraints
    points = _Points(results, designs, columns, costs(columns, chosen), parameters == "all")
    rows, table, left_out = points.looked_at(most, samples, seed)
    names = list(dict.fromkeys([*chosen, *(n for c in constraints for n in c.names)]))
    draws = (
        points.simulated(rows, names, table)
        if parameters == "all"
        else points.priced(rows, names, table)
    )
    allowed = np.ones((samples, len(rows)), dtype=np.bool_)
    for constraint in constraints:
        allowed &= constraint.violation({n: draws[n] for n in constraint.names}) == 0.0
    on_front = _fronts({n: draws[n] for n in chosen}, chosen, allowed)
    if not on_front.any():
        raise _no_front()
    frame = _framed(columns, rows, draws, chosen, on_front)
    draws = {n: draws[n] for n in chosen}
    return FrontBand(frame, chosen, draws, on_front, parameters == "all", left_out)


def _no_front() -> ConfigError:
    rule = "no point is ok and keeps every constraint, so there is no front"
    return ConfigError.one("", "results", rule)


@dataclass(frozen=True)
class _Points:
    """Stored points, of which some are drawn.

    Attributes:
        results: Where they are stored.
        designs: What they are.
        columns: All columns.
        values: Objectives as costs to minimise, (points, objectives).
        all_drawn: Whether times and energies are drawn too.
    """

    results: Results
    designs: StoredDesigns
    columns: Mapping[str, npt.NDArray[Any]]
    values: Array
    all_drawn: bool

    def looked_at(self, most: int, samples: int, seed: int) -> tuple[Rows, Draws, int]:
        """Return positions of points to draw, the draws, and how many points are left out."""
        good, known = feasible(self.columns), np.isfinite(self.values).all(axis=1)
        fine = np.flatnonzero(good & known)
        broken = self._in_doubt(np.flatnonzero((self.columns["status"] == "ok") & ~good & known))
        kept = fine[_by_front(self.values[fine])][:most]
        machines = DrawnCosts(self.designs, self.columns, np.concatenate([kept, broken]))
        table = Draws(machines.parameters, samples, seed)
        judged = self._by_costs() if self.all_drawn else list(self.designs.plan.constraints)
        if len(broken) and judged:
            broken = DrawnCosts(self.designs, self.columns, broken).possible(judged, table)
        ranks = _ranks(self.values[np.concatenate([fine, broken])])[len(fine) :]
        rows = np.concatenate([kept, broken[np.argsort(ranks, kind="stable")][:most]])
        if not len(rows):
            raise _no_front()
        if self.all_drawn:
            each = (ranged(self.designs.point(self.columns, int(r)), costs=False) for r in rows)
            table = Draws((p for drawn in each for p in drawn.values()), samples, seed)
        return rows, table, len(fine) + len(broken) - len(rows)

    def _in_doubt(self, broken: Rows) -> Rows:
        """Return those that may keep every constraint: they break none that no draw moves."""
        for constraint in () if self.all_drawn else self.designs.plan.constraints:
            if not set(constraint.names) & set(COSTLY):
                as_stored = {n: self.columns[n][broken] for n in constraint.names}
                broken = broken[constraint.violation(as_stored) == 0.0]
        return broken

    def _by_costs(self) -> list[Constraint]:
        """Return the constraints that costs decide alone, also where times are drawn."""
        plan = self.designs.plan
        given = {*COSTS, *(a.path for a in plan.axes), *(k.target.path for k in plan.links)}
        return [c for c in plan.constraints if set(c.names) <= given]

    def priced(self, rows: Rows, names: Sequence[str], table: Draws) -> dict[str, Array]:
        """Return columns over draws of costs, (samples, rows); nothing is simulated."""
        draws = {name: np.empty((table.samples, len(rows))) for name in names}
        order = np.argsort(rows)
        for own, values in DrawnCosts(self.designs, self.columns, rows).drawn(names, table):
            at = order[np.searchsorted(rows[order], own)]
            for name in names:
                draws[name][:, at] = values[name].T
        return draws

    def simulated(self, rows: Rows, names: Sequence[str], table: Draws) -> dict[str, Array]:
        """Return columns over draws of everything, (samples, rows); points are simulated."""
        draws = {name: np.empty((table.samples, len(rows))) for name in names}
        for i, row in enumerate(rows):
            ratios = _ratios(self.designs.point(self.columns, int(row)), table)
            for name in names:
                stored = self.columns[name][row]
                draws[name][:, i] = stored * ratios[name][0] if name in ratios else stored
            for name in COSTS:
                if name in ratios and name in self.columns:
                    check_costs(name, self.columns[name][row], ratios[name][1])
        return draws


def _ranks(values: Array) -> Array:
    """Return how many fronts are before each point."""
    import moocore

    if values.shape[1] == 1 or not len(values):
        return values[:, 0]
    ranks: Array = moocore.pareto_rank(values)
    return ranks


def _by_front(values: Array) -> Rows:
    """Return positions in the order of fronts."""
    return np.argsort(_ranks(values), kind="stable")


def _ratios(point: StoredPoint, table: Draws) -> dict[str, tuple[Array, float]]:
    """Return each metric over what it is as stored, (samples,), and what it is now."""
    drawn = {p: c for p, q in ranged(point, costs=False).items() if (c := table.of(q)) is not None}
    fixed = {path: np.full(table.samples, value) for path, value in point.values.items()}
    machine = point.design.machine.with_values({**fixed, **drawn})
    found = {}
    with np.errstate(all="ignore"):
        outcome = evaluate(machine, point.work, point.design.mapping, "analytic")
        for name, value in outcome.metrics.items():
            each = np.broadcast_to(np.asarray(value, dtype=np.float64), table.samples)
            if np.isfinite(each[0]) and each[0] != 0.0:
                found[name] = each / each[0], float(each[0])
    return found


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
