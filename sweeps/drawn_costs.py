"""Costs of stored points over draws: once for each machine, for all of its points together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter
from opbyte.sim.metrics import COSTS, with_costs
from opbyte.sweeps.constraints import Constraint
from opbyte.sweeps.draws import Draws
from opbyte.sweeps.stored_designs import StoredDesigns, StoredPoint

__all__ = ["COSTLY", "DrawnCosts", "Rows", "check_costs", "is_cost", "ranged"]

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
COSTLY = (*COSTS, *PER_TOKEN)
_NEEDED = ("tokens_per_s", "joules_per_token")
_SAME = 1e-6
#: Points times draws that are held at once.
_AT_ONCE = 1 << 21

Rows = npt.NDArray[np.int64]
Columns = Mapping[str, npt.NDArray[Any]]


def is_cost(path: str, parameter: Parameter) -> bool:
    """Return whether a machine's parameter decides what it costs and nothing else."""
    return parameter.dimension in COST_DIMENSIONS or path.startswith(COST_BLOCKS)


def ranged(point: StoredPoint, *, costs: bool) -> dict[str, Parameter]:
    """Return the parameters of a point's machine that are drawn, or those of its costs alone."""
    return {
        path: p
        for path, p in point.design.machine.parameters.items()
        if p.range is not None and path not in point.values and p.dimension != "count"
        if not costs or is_cost(path, p)
    }


def check_costs(name: str, stored: Any, now: float) -> None:
    """Refuse points whose costs are not what they were; a fleet costs a multiple of a machine."""
    known = np.atleast_1d(np.asarray(stored, dtype=np.float64))
    known = known[np.isfinite(known)]
    if not np.isfinite(now) or now == 0.0:
        return
    times = known / now
    wrong = np.abs(times - np.maximum(np.round(times), 1)) > _SAME * times
    if wrong.any():
        rule = f"{name} was stored as {known[wrong][0]:.6g} and is {now:.6g} now"
        raise ConfigError.one("", "results", rule, "", "Run the study again with --fresh.")


class DrawnCosts:
    """Metrics of stored points that follow from what their machines cost, over draws."""

    def __init__(self, designs: StoredDesigns, columns: Columns, rows: Rows) -> None:
        """Tell the machines of rows apart.

        Args:
            designs: Of the study.
            columns: All of its columns.
            rows: Positions of the points.
        """
        self._columns = columns
        self._groups = [
            (point := designs.point(columns, int(own[0])), ranged(point, costs=True), own)
            for own in _by_machine(designs, columns, rows)
        ]

    @property
    def parameters(self) -> Iterator[Parameter]:
        """Return what is drawn."""
        return (p for _, drawn, _ in self._groups for p in drawn.values())

    def possible(self, constraints: Sequence[Constraint], table: Draws) -> Rows:
        """Return the rows that keep all constraints in some draw, sorted."""
        names = dict.fromkeys(n for c in constraints for n in c.names)
        found = []
        for rows, values in self.drawn(list(names), table):
            kept = np.ones((len(rows), table.samples), dtype=np.bool_)
            for constraint in constraints:
                kept &= constraint.violation(values) == 0.0
            found.append(rows[kept.any(axis=1)])
        return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    def drawn(
        self, names: Sequence[str], table: Draws
    ) -> Iterator[tuple[Rows, dict[str, npt.NDArray[Any]]]]:
        """Yield rows with their columns over the draws, (rows, samples), in portions.

        What costs do not decide is as stored, (rows, 1).
        """
        portion = max(_AT_ONCE // table.samples, 1)
        for point, drawn, rows in self._groups:
            fixed = {path: np.full(table.samples, value) for path, value in point.values.items()}
            taken = {path: c for path, p in drawn.items() if (c := table.of(p)) is not None}
            machine = point.design.machine.with_values({**fixed, **taken})
            for start in range(0, len(rows), portion):
                own = rows[start : start + portion]
                given = {n: self._stored(n, own) for n in _NEEDED}
                with np.errstate(all="ignore"):
                    now = with_costs(machine, given)
                for name in COSTS:
                    check_costs(name, self._stored(name, own), float(now[name].flat[0]))
                yield own, {n: _moved(n, self._stored(n, own), now) for n in names}

    def _stored(self, name: str, rows: Rows) -> npt.NDArray[Any]:
        """Return a column, (rows, 1), NaN where there is none."""
        column = self._columns.get(name)
        return np.full((len(rows), 1), np.nan) if column is None else column[rows][:, None]


def _moved(name: str, stored: npt.NDArray[Any], now: Mapping[str, Array]) -> npt.NDArray[Any]:
    """Return a metric as stored times what it is over what it was, (rows, samples)."""
    if name not in COSTLY:
        return stored
    each = np.broadcast_to(now[name], np.broadcast_shapes(stored.shape, now[name].shape))
    first = each[:, :1]
    known = np.isfinite(first) & (first != 0.0)
    return stored * np.where(known, each / np.where(known, first, 1.0), 1.0)


def _by_machine(designs: StoredDesigns, columns: Columns, rows: Rows) -> list[Rows]:
    """Return rows in groups of one machine: what axes and derived parameters set is the same."""
    import pandas as pd

    plan = designs.plan
    paths = [*(a.path for a in plan.axes), *(k.target.path for k in plan.links)]
    own = [p for p in paths if p.partition(".")[0] == "machine"]
    if not own or not len(rows):
        return [rows] if len(rows) else []
    codes = np.stack([pd.factorize(columns[p][rows], use_na_sentinel=False)[0] for p in own])
    _, which = np.unique(codes, axis=1, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which.ravel()))[:-1]
    return np.split(rows[order], ends)
