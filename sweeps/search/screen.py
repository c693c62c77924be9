"""The screen: every point of a space at a cheaper fidelity, in chunks, and which are worth playing.

Memory stays bounded: up to `MOST_KEPT` candidates are kept whole. Beyond, a candidate stays only
while no other is better by more than the band in every objective that the fidelity may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.sweeps.pareto import costs, feasible
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.portions import Task
from opbyte.sweeps.rows import FAILED, OK, STATUS, Rows
from opbyte.sweeps.runner import CHUNK, Options, Progress, backend_of
from opbyte.sweeps.search.gaps import TOLERANCE, log_costs
from opbyte.sweeps.study import changed

__all__ = ["MOST_SCREENED", "Pool", "screened"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Points that are enumerated at most.
MOST_SCREENED = 10_000_000
#: Candidates that are kept without a second look.
MOST_KEPT = 1 << 20
#: A screened point that breaks a constraint by more than this share is no candidate.
MOST_VIOLATION = 0.5
#: Points of a front that later candidates are compared with.
_JUDGES = 256


@dataclass(frozen=True)
class Pool:
    """Candidates, sorted by id.

    Attributes:
        ids: Ids of the points, (n,).
        logs: Logarithms of the objectives as costs, (n, k).
        violation: By how much constraints are broken on the screen, (n,).
        points: How many were screened.
        fits: How many of them are ok and keep the constraints.
        failed: How many failed on the screen.
        reason: Why, of one of them.
    """

    ids: Ids
    logs: Floats
    violation: Floats
    points: int
    fits: int
    failed: int
    reason: str

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.ids)


def screened(
    plan: Plan, options: Options, band: Floats, progress: Progress | None, seed_key: str
) -> Pool:
    """Return the candidates of a plan's space.

    Args:
        plan: The study, at the fidelity of the screen.
        options: Workers and executor.
        band: How much worse, in logarithms, a candidate may be than another, (k,); it counts only
            where there are more than `MOST_KEPT`.
        progress: Wants to know how far it is.
        seed_key: Key of the study.

    Raises:
        ConfigError: If an objective is not above 0 somewhere.
    """
    space = plan.points()
    backend = backend_of(plan, options, None, seed_key)
    collector = _Collector(plan, band)
    if progress is not None:
        progress.start(space.count, 0, "screened")

    def tasks() -> Iterator[Task]:
        for ids in space.portions(plan.slow, CHUNK):
            yield Task(ids, space.codes(ids))

    try:
        for rows in backend.run(tasks()):
            collector.take(rows)
            if progress is not None:
                progress.advance(len(rows), 0)
    finally:
        backend.close()
    return collector.pool()


def at_fidelity(plan: Plan, fidelity: str) -> Plan:
    """Return the plan at another fidelity, with the same points."""
    document = changed(plan.document, {"fidelity": fidelity}, "base")
    study = plan.study.model_copy(update={"fidelity": fidelity})
    return dataclasses.replace(plan, study=study, document=document)


class _Collector:
    """Takes rows in any order; what remains does not depend on it."""

    def __init__(self, plan: Plan, band: Floats) -> None:
        self._objectives = plan.study.objectives
        self._document = plan.document
        self._band = band
        self._parts: list[tuple[Ids, Floats, Floats]] = []
        self._judges = np.zeros((0, len(band)))
        self.points = self.fits = self.failed = 0
        self.reason = ""

    def take(self, rows: Rows) -> None:
        """Take the candidates among some rows."""
        self.points += len(rows)
        columns: dict[str, Any] = dict(rows.numbers)
        status = np.array(rows.words["status"].texts, dtype=object)[rows.words["status"].codes]
        columns["status"] = status
        failed = status == STATUS[FAILED]
        if failed.any():
            self.failed += int(failed.sum())
            words = rows.words["reason"]
            self.reason = self.reason or words.texts[words.codes[int(np.flatnonzero(failed)[0])]]
        ok = status == STATUS[OK]
        self.fits += int(feasible(columns).sum())
        violation = np.asarray(columns.get("violation", np.zeros(len(rows))), dtype=np.float64)
        with np.errstate(invalid="ignore"):
            worth = ok & (violation <= MOST_VIOLATION)
        worth &= np.isfinite(costs(columns, self._objectives)).all(axis=1)
        logs = log_costs(columns, self._objectives)[worth]
        if not np.isfinite(logs).all():
            self._refuse(logs)
        self._parts.append((rows.point[worth], logs, violation[worth]))
        if sum(len(part[0]) for part in self._parts) > 2 * MOST_KEPT:
            self._prune()

    def _refuse(self, logs: Floats) -> None:
        wrong = [
            name for i, name in enumerate(self._objectives) if not np.isfinite(logs[:, i]).all()
        ]
        where = self._document.where(("objectives", wrong[0]))
        rule = "a screen compares ratios and needs objectives above 0"
        remedy = "Write `screen: none` in the strategy."
        raise ConfigError.one(where, f"objectives.{wrong[0]}", rule, 0.0, remedy)

    def _prune(self) -> None:
        """Drop what another candidate beats by more than the band."""
        ids, logs, violation = self._joined()
        fine = violation == 0.0
        front = _thinned(np.concatenate([self._judges, logs[fine]]))
        self._judges = front
        keep = np.ones(len(ids), dtype=np.bool_)
        for start in range(0, len(ids), CHUNK):
            some = slice(start, start + CHUNK)
            keep[some] = ~beaten(logs[some] - self._band, front)
        self._parts = [(ids[keep], logs[keep], violation[keep])]

    def _joined(self) -> tuple[Ids, Floats, Floats]:
        parts = self._parts
        ids = np.concatenate([p[0] for p in parts])
        order = np.argsort(ids, kind="stable")
        return (
            ids[order],
            np.concatenate([p[1] for p in parts])[order],
            np.concatenate([p[2] for p in parts])[order],
        )

    def pool(self) -> Pool:
        """Return the candidates."""
        if sum(len(part[0]) for part in self._parts) > MOST_KEPT:
            self._prune()
        ids, logs, violation = self._joined()
        return Pool(ids, logs, violation, self.points, self.fits, self.failed, self.reason)


def beaten(logs: Floats, by: Floats) -> Mask:
    """Return which points some other equals or beats in every objective, (points,).

    Args:
        logs: Logarithms of costs, (points, k).
        by: The same of the others, (others, k).
    """
    answer = np.zeros(len(logs), dtype=np.bool_)
    rest = np.arange(len(logs))
    columns = [logs[:, j] + TOLERANCE for j in range(logs.shape[1])]
    # What is good in all objectives beats most, and fewer points remain to be compared.
    for other in by[np.argsort(by.sum(axis=1), kind="stable")]:
        worse = columns[0] >= other[0]
        for column, value in zip(columns[1:], other[1:], strict=True):
            worse &= column >= value
        if worse.any():
            answer[rest[worse]] = True
            rest, columns = rest[~worse], [c[~worse] for c in columns]
    return answer


def _thinned(logs: Floats) -> Floats:
    """Return some of the front of points, evenly along it."""
    front = nondominated(logs)
    chosen = logs[front]
    chosen = chosen[np.lexsort(chosen.T[::-1])]
    if len(chosen) <= _JUDGES:
        return chosen
    return chosen[np.linspace(0, len(chosen) - 1, _JUDGES).astype(np.int64)]


def nondominated(logs: Floats) -> Mask:
    """Return which points no other beats; of equal ones the first, (points,)."""
    import moocore

    if not len(logs):
        return np.zeros(0, dtype=np.bool_)
    if logs.shape[1] == 1:
        first = np.zeros(len(logs), dtype=np.bool_)
        first[int(np.argmin(logs[:, 0]))] = True
        return first
    keep: Mask = moocore.is_nondominated(logs, keep_weakly=False)
    return keep
