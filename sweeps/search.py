"""Searches the front of a study's objectives with Optuna's NSGA-II, generation by generation.

Asked in order, evaluated together, told in order: the search sees the same whatever the number of
workers. Points are those of the grid (or of the continuous axes), so a search and a sweep share
one store. A point that NSGA-II asks for again is answered from memory and costs nothing.

The first generation is corners of the space and a scrambled Sobol sequence. Each later one is
partly children of NSGA-II and partly untried neighbours, one step along one axis, of the points
on the front so far: crossover finds the region, neighbours fill its edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.sweeps.backends import Task
from opbyte.sweeps.keys import id_of
from opbyte.sweeps.pareto import costs, feasible
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.rows import Rows
from opbyte.sweeps.runner import CHUNK, Options, Progress, Session, open_session
from opbyte.sweeps.space import Codes, Line, unit_points
from opbyte.sweeps.store import Results
from opbyte.sweeps.study import List, Optuna, Zip

__all__ = ["search_plan"]

_DEFAULT_TRIALS = 400
_SHARE_OF_GRID = 20
_STALE_GENERATIONS = 20
_EVENT_CHUNK = 4

#: One point: the code of each axis, in order.
Point = tuple[float, ...]


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
class _Search:
    """The state of a search."""

    session: Session
    strategy: Optuna
    lines: tuple[Line, ...]
    budget: int
    known: dict[Point, Judged] = field(default_factory=dict)
    stored: dict[int, Judged] = field(default_factory=dict)

    # -- points ----------------------------------------------------------------------------

    def id(self, point: Point) -> int:
        """Return a point's id: its position in the grid, or a hash of its values."""
        if all(line.size for line in self.lines):
            place = 0
            for line, code in zip(self.lines, point, strict=True):
                place = place * line.size + int(code)
            return place
        return id_of(np.array(point, dtype=np.float64).tobytes())

    def evaluate(self, points: list[Point]) -> None:
        """Evaluate points that are neither known nor stored, all together."""
        fresh = [p for p in dict.fromkeys(points) if p not in self.known]
        ids = {p: self.id(p) for p in fresh}
        wanted = [p for p in fresh if ids[p] not in self.stored]
        if wanted:
            for rows in self.session.evaluate(self._tasks(wanted, ids)):
                self.stored |= self._judged(rows)
        if self.session.progress is not None and len(wanted) < len(fresh):
            self.session.progress.advance(len(fresh) - len(wanted), 0)
        self.known |= {p: self.stored[ids[p]] for p in fresh}

    def _tasks(self, points: list[Point], ids: Mapping[Point, int]) -> Iterator[Task]:
        """Yield tasks in the order of designs; the rows do not depend on the portions."""
        points = sorted(points, key=ids.__getitem__)
        most = _EVENT_CHUNK if self.session.plan.study.fidelity == "event" else CHUNK
        for start in range(0, len(points), most):
            some = points[start : start + most]
            matrix = np.array(some, dtype=np.float64)
            codes: Codes = {
                line.path: matrix[:, i].astype(np.int64 if line.size else np.float64)
                for i, line in enumerate(self.lines)
            }
            yield Task(np.array([ids[p] for p in some], dtype=np.int64), codes)

    def _judged(self, rows: Rows) -> dict[int, Judged]:
        columns: dict[str, Any] = dict(rows.numbers)
        columns["status"] = np.array(rows.words["status"].texts, dtype=object)[
            rows.words["status"].codes
        ]
        return judged(rows.point, columns, self.session.plan.study.objectives)

    # -- generations -----------------------------------------------------------------------

    def first(self) -> list[Point]:
        """Return the first generation: corners, then a scrambled Sobol sequence."""
        size = self.strategy.population
        points = list(dict.fromkeys(_corners(self.lines, size // 2)))[: size // 2]
        share = unit_points(len(self.lines), 4 * size, self.strategy.seed, sobol=True)
        columns = [line.at(share[:, i]) for i, line in enumerate(self.lines)]
        drawn = zip(*(c.tolist() for c in columns), strict=True)
        points = list(dict.fromkeys([*points, *(tuple(map(float, p)) for p in drawn)]))
        return points[:size]

    def neighbours(self, rng: np.random.Generator, most: int) -> list[Point]:
        """Return untried points one step along one axis away from the front, at random."""
        found: dict[Point, None] = {}
        for point in self.front():
            for i, line in enumerate(self.lines):
                for step in (-1, 1):
                    code = _stepped(line, point[i], step)
                    if code is None:
                        continue
                    near = (*point[:i], code, *point[i + 1 :])
                    if near not in self.known:
                        found[near] = None
        candidates = sorted(found)
        chosen = rng.permutation(len(candidates))[:most]
        return [candidates[i] for i in chosen]

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


def _corners(lines: tuple[Line, ...], most: int) -> Iterator[Point]:
    """Yield corners of the space: all of them, or those with one axis at its other end."""
    ends = [_ends(line) for line in lines]
    if 2 ** len(lines) <= most:
        yield from itertools.product(*ends)
        return
    low, high = tuple(e[0] for e in ends), tuple(e[1] for e in ends)
    yield low
    yield high
    for i in range(len(lines)):
        yield (*low[:i], high[i], *low[i + 1 :])
        yield (*high[:i], low[i], *high[i + 1 :])


def _ends(line: Line) -> tuple[float, float]:
    return (0.0, float(line.size - 1)) if line.size else (line.low, line.high)


def _stepped(line: Line, code: float, step: int) -> float | None:
    """Return the next code along an axis; a continuous axis has steps of a fiftieth."""
    if line.size:
        moved = code + step
        return moved if 0 <= moved < line.size else None
    width = (line.high - line.low) / 50.0
    moved = min(
        max(code + step * (max(1.0, round(width)) if line.whole else width), line.low), line.high
    )
    return moved if moved != code else None


def search_plan(
    plan: Plan,
    options: Options,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Results:
    """Search the front of a plan's objectives; results are in the same store as a sweep's.

    Raises:
        ConfigError: Without objectives, or for axes that do not combine freely.
    """
    strategy = _checked(plan, options)
    lines = tuple(axis.line for axis in plan.axes)
    grid = 0 if plan.continuous else plan.grid_points
    budget = strategy.trials or (grid // _SHARE_OF_GRID if grid else _DEFAULT_TRIALS)
    budget = max(min(budget, grid) if grid else budget, 1)
    session = open_session(plan, options, executor, progress)
    search = _Search(session, strategy, lines, budget)
    search.stored = _restored(session, plan)
    if progress is not None:
        progress.start(budget, 0)
    try:
        _generations(search)
    finally:
        session.store.flush()
        session.backend.close()
    return session.store.results


def _checked(plan: Plan, options: Options) -> Optuna:
    strategy = plan.study.strategy
    where = plan.document.where
    if not plan.study.objectives:
        remedy = "Add for example `objectives: {tokens_per_s: max, price_usd: min}`."
        raise ConfigError.one(where(), "objectives", "a search needs objectives", "", remedy)
    if not plan.axes:
        raise ConfigError.one(where(), "axes", "a search needs axes")
    if options.shard != (1, 1):
        rule = "a search can not be split in shards"
        raise ConfigError.one("--shard", "", rule, "", "Use --workers.")
    if isinstance(strategy, Zip | List) or not isinstance(strategy, Optuna):
        rule = "a search needs axes that combine freely"
        raise ConfigError.one(where(("strategy",)), "strategy", rule, strategy.kind)
    return strategy


def _restored(session: Session, plan: Plan) -> dict[int, Judged]:
    """Return what the store knows already."""
    store = session.store
    if not len(store.done):
        return {}
    names = ["status", "needed_bytes", "available_bytes", *plan.study.objectives]
    names += ["violation"] if plan.constraints else []
    columns = store.results.columns(names)
    return judged(columns["point"], columns, plan.study.objectives)


def _generations(search: _Search) -> None:
    """Ask, evaluate and tell until the budget of distinct points is used."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    strategy = search.strategy
    size = strategy.population
    sampler = optuna.samplers.NSGAIISampler(population_size=size, seed=strategy.seed)
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(search.session.plan.study.objectives)
    study = optuna.create_study(directions=directions, sampler=sampler)
    rng = np.random.default_rng(strategy.seed)
    enqueued = search.first()
    stale = 0
    while len(search.known) < search.budget and stale < _STALE_GENERATIONS:
        for point in enqueued:
            study.enqueue_trial(_parameters(search.lines, point))
        trials = [study.ask() for _ in range(size)]
        points = [_suggested(trial, search.lines) for trial in trials]
        before = len(search.known)
        allowed = _within(points, search)
        search.evaluate(allowed)
        for trial, point in zip(trials, points, strict=True):
            _tell(study, trial, search.known.get(point), len(directions))
        stale = stale + 1 if len(search.known) == before else 0
        enqueued = search.neighbours(rng, size // 2)


def _within(points: list[Point], search: _Search) -> list[Point]:
    """Return the points that the budget still allows."""
    left = search.budget - len(search.known)
    new = [p for p in dict.fromkeys(points) if p not in search.known]
    return new[:left]


def _parameters(lines: tuple[Line, ...], point: Point) -> dict[str, Any]:
    return {
        line.path: int(code) if line.size else code for line, code in zip(lines, point, strict=True)
    }


def _suggested(trial: Any, lines: tuple[Line, ...]) -> Point:
    """Return the point of a trial."""
    codes = []
    for line in lines:
        if line.size:
            codes.append(float(trial.suggest_int(line.path, 0, line.size - 1)))
        else:
            value = float(trial.suggest_float(line.path, line.low, line.high, log=line.log))
            codes.append(float(np.rint(value)) if line.whole else value)
    return tuple(codes)


def _tell(study: Any, trial: Any, answer: Judged | None, objectives: int) -> None:
    """Tell a trial's values; an infeasible one has a constraint above zero and idle values."""
    import optuna

    if answer is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    trial.set_constraint("violation", answer.violation)
    study.tell(trial, list(answer.costs) if answer.costs else [0.0] * objectives)
