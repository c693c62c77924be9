"""What a search knows: points, their costs, and which of them are on the front so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opbyte.sweeps.keys import id_of
from opbyte.sweeps.pareto import costs, feasible
from opbyte.sweeps.portions import Task
from opbyte.sweeps.rows import Rows
from opbyte.sweeps.runner import CHUNK, Session
from opbyte.sweeps.space import Codes, Line

__all__ = ["Board", "Judged", "Point", "judged", "settled"]

#: One point: the code of each axis, in order.
Point = tuple[float, ...]


def settled(lines: Sequence[Line], point: Point) -> Point:
    """Return a point with each axis at its first value where it means nothing."""
    codes = {line.path: code for line, code in zip(lines, point, strict=True)}
    used = dict.fromkeys(codes, True)
    for line in lines:
        for path, positions in line.when:
            used[line.path] &= used[path] and codes[path] in positions
        if not used[line.path]:
            codes[line.path] = float(line.idle)
    return tuple(codes.values())


@dataclass(frozen=True)
class Judged:
    """What a search needs to know of a point.

    Attributes:
        costs: Objectives to minimise; empty where there is no result.
        violation: 0 where all constraints hold; above 0 it is infeasible, and by how much.
    """

    costs: tuple[float, ...]
    violation: float


@dataclass
class Board:
    """The points of a search.

    Attributes:
        session: Evaluates and stores.
        lines: The axes.
        budget: Most distinct points.
        known: What the search has asked for, in that order.
        stored: What the store knew before, by id.
    """

    session: Session
    lines: tuple[Line, ...]
    budget: int
    known: dict[Point, Judged] = field(default_factory=dict)
    stored: dict[int, Judged] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Return how many points the budget still allows."""
        return max(self.budget - len(self.known), 0)

    @property
    def objectives(self) -> Mapping[str, str]:
        """Return column -> min or max."""
        return self.session.plan.study.objectives

    def id(self, point: Point) -> int:
        """Return a point's id: its position in the grid, or a hash of its values."""
        if all(line.size for line in self.lines):
            place = 0
            for line, code in zip(self.lines, point, strict=True):
                place = place * line.size + int(code)
            return place
        return id_of(np.array(point, dtype=np.float64).tobytes())

    def allowed(self, points: Sequence[Point]) -> list[Point]:
        """Return the new ones of some points, as many as the budget allows."""
        new = [p for p in dict.fromkeys(points) if p not in self.known]
        return new[: self.left]

    def evaluate(self, points: Sequence[Point]) -> None:
        """Evaluate points that are neither known nor stored, all together."""
        fresh = [p for p in dict.fromkeys(points) if p not in self.known]
        ids = {p: self.id(p) for p in fresh}
        wanted = [p for p in fresh if ids[p] not in self.stored]
        if wanted:
            for rows in self.session.evaluate(self._tasks(wanted, ids)):
                self.stored |= _judged_rows(rows, self.objectives)
        if self.session.progress is not None and len(wanted) < len(fresh):
            self.session.progress.advance(len(fresh) - len(wanted), 0)
        self.known |= {p: self.stored[ids[p]] for p in fresh}

    def _tasks(self, points: list[Point], ids: Mapping[Point, int]) -> Iterator[Task]:
        """Yield tasks in the order of designs; the rows do not depend on the portions."""
        points = sorted(points, key=ids.__getitem__)
        for start in range(0, len(points), CHUNK):
            some = points[start : start + CHUNK]
            matrix = np.array(some, dtype=np.float64)
            codes: Codes = {
                line.path: matrix[:, i].astype(np.int64 if line.size else np.float64)
                for i, line in enumerate(self.lines)
            }
            yield Task(np.array([ids[p] for p in some], dtype=np.int64), codes)

    def front(self) -> list[Point]:
        """Return the known points that no other beats; the least infeasible where none fits."""
        fit = {p: j for p, j in self.known.items() if j.costs and j.violation == 0.0}
        if not fit:
            some = sorted(self.known, key=lambda p: (self.known[p].violation, p))
            return some[:1]
        import moocore

        values = np.array([j.costs for j in fit.values()])
        if values.shape[1] == 1:
            return [min(fit, key=lambda p: (fit[p].costs, p))]
        keep = moocore.is_nondominated(values, keep_weakly=False)
        return [p for p, kept in zip(fit, keep, strict=True) if kept]


def _judged_rows(rows: Rows, objectives: Mapping[str, str]) -> dict[int, Judged]:
    columns: dict[str, Any] = dict(rows.numbers)
    texts = np.array(rows.words["status"].texts, dtype=object)
    columns["status"] = texts[rows.words["status"].codes]
    return judged(rows.point, columns, objectives)


def judged(
    points: Any, columns: Mapping[str, Any], objectives: Mapping[str, str]
) -> dict[int, Judged]:
    """Return what a search needs to know of rows, by id."""
    values = costs(columns, objectives)
    fine = feasible(columns) & np.isfinite(values).all(axis=1)
    violation = np.asarray(columns.get("violation", np.zeros(len(fine))), dtype=np.float64)
    over = _overflow(columns)
    answers = {}
    for i, point in enumerate(np.asarray(points).tolist()):
        if fine[i]:
            answers[point] = Judged(tuple(values[i].tolist()), 0.0)
        else:
            amount = violation[i] if violation[i] > 0.0 else 1e3 + over[i]
            answers[point] = Judged((), float(amount))
    return answers


def _overflow(columns: Mapping[str, Any]) -> Any:
    """Return by how much points do not fit, relative to what there is; large where they failed."""
    with np.errstate(all="ignore"):
        ratio = np.asarray(columns["needed_bytes"]) / np.asarray(columns["available_bytes"])
    return np.where(np.isfinite(ratio), np.minimum(ratio, 1e6), 1e6)
