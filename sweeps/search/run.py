"""One search: checked, opened, screened where that pays, played, and told about."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from contextlib import closing
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, Problem
from opbyte.sweeps.compact import tidied
from opbyte.sweeps.files import write_json
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.runner import Options, Progress, Session, open_session
from opbyte.sweeps.search.board import Board, Judged, Point, judged
from opbyte.sweeps.search.climb import Climb
from opbyte.sweeps.search.gaps import Gaps
from opbyte.sweeps.search.generations import bayesian, generations
from opbyte.sweeps.search.order import write_order
from opbyte.sweeps.search.screen import MOST_SCREENED, at_fidelity, screened
from opbyte.sweeps.search.start import starting_points
from opbyte.sweeps.store import Results
from opbyte.sweeps.study import List, Optuna, Zip
from opbyte.workloads.works import WORKS

__all__ = ["search_plan"]

#: Points that are played by default: a share of the grid, but not so few that they say nothing.
_DEFAULT_TRIALS = 400
_SHARE_OF_GRID = 20
_FEWEST = 100
#: How much worse than another a candidate of a large screen may be: half as much again.
_BAND = float(np.log(1.5))
SUMMARY = "search.json"
#: Seconds between two summaries of a search that runs.
_TELL_EVERY_S = 2.0


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
    fidelity = screen_of(plan, strategy)
    grid = 0 if plan.continuous else plan.grid_points
    share = max(grid // _SHARE_OF_GRID, _FEWEST) if grid else _DEFAULT_TRIALS
    budget = strategy.trials or share
    budget = max(min(budget, grid) if grid else budget, 1)
    start = starting_points(plan, strategy)
    session = open_session(plan, options, executor, progress)
    board = Board(session, tuple(axis.line for axis in plan.axes), budget)
    try:
        board.stored = _restored(session, plan)
        _tell(board, {"running": True})
        if fidelity:
            about = _two_levels(board, options, strategy, fidelity, start)
        else:
            about = {"screen": "none"}
            if progress is not None:
                progress.start(budget, 0)
            (bayesian if strategy.sampler == "gp" else generations)(board, strategy, start)
        session.store.flush()
        _tell(board, about)
        tidied(session.store.folder)
    finally:
        with closing(session):
            write_order(session.store.folder, [board.id(p) for p in board.known])
    return session.store.results


def _two_levels(
    board: Board, options: Options, strategy: Optuna, fidelity: str, start: list[Point]
) -> dict[str, Any]:
    """Screen all points, play those that could be on the front, and say how it went."""
    session = board.session
    plan = session.plan
    objectives = plan.study.objectives
    parameters = [a.path for a in plan.axes] + [k.target.path for k in plan.links]
    gaps = Gaps.of(list(objectives), parameters)
    band = np.where(gaps.exact, 0.0, _BAND)
    key = str(session.store.results.meta["key"])
    pool = screened(at_fidelity(plan, fidelity), options, band, session.progress, key)
    if not len(pool) and pool.failed:
        where = plan.document.where(("strategy",))
        rule = f"every point failed on the {fidelity} screen ({pool.reason})"
        raise ConfigError.one(where, "strategy", rule, "", "Write `screen: none`.")
    if session.progress is not None:
        session.progress.start(min(board.budget, len(pool)), 0, "played")
    climb = Climb(board, plan, pool, gaps, strategy.population)
    told = time.monotonic()

    def about(left: int) -> dict[str, Any]:
        low, high = gaps.interval()
        shown = {name: [_percent(low[i]), _percent(high[i])] for i, name in enumerate(objectives)}
        broken = [n for n, bad in zip(objectives, gaps.law_broken, strict=True) if bad]
        return {
            "screen": fidelity, "screened": pool.points, "candidates": len(pool),
            "failed_on_screen": pool.failed, "gap_percent": shown, "law_broken": broken,
            "could_still_join": left,
        }  # fmt: skip

    def tell(left: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_EVERY_S:
            _tell(board, {**about(left), "running": True})
            told = time.monotonic()

    return about(climb.run(start, tell) if len(pool) else 0)


def _percent(log: float) -> float | None:
    return round(100.0 * float(np.expm1(log)), 9) if np.isfinite(log) else None


def _tell(board: Board, about: dict[str, Any]) -> None:
    """Write down how the search stands; `running` stays in it where it is stopped."""
    known = {**about, "played": len(board.known), "budget": board.budget}
    write_json(board.session.store.folder / SUMMARY, known)


def screen_of(plan: Plan, strategy: Optuna) -> str:
    """Return the fidelity of the screen, empty without one.

    Raises:
        ConfigError: If a screen is asked for that the study can not have.
    """
    asked = strategy.screen
    why = _why_not(plan)
    if asked == "none" or (asked == "auto" and why):
        return ""
    if why:
        where = plan.document.where(("strategy", "screen"))
        raise ConfigError.one(where, "strategy.screen", why, asked, "Write `screen: none`.")
    return "analytic" if asked == "auto" else asked


def _why_not(plan: Plan) -> str:
    """Return why a study has no screen; empty where it has."""
    if plan.study.fidelity != "event":
        return (
            f"a screen confirms at the event level, the study's fidelity is {plan.study.fidelity}"
        )
    if WORKS.lookup(plan.kind).played:
        return f"a {plan.kind} work passes in time at every fidelity and has no cheaper one"
    if plan.continuous:
        return "a screen needs axes with listed values or steps"
    if plan.grid_points > MOST_SCREENED:
        return (
            f"a screen enumerates at most {MOST_SCREENED:,} points, here are {plan.grid_points:,}"
        )
    return ""


def _checked(plan: Plan, options: Options) -> Optuna:
    """Return the strategy of a search.

    Raises:
        ConfigError: With everything that keeps this study from being searched.
    """
    strategy = plan.study.strategy
    where = plan.document.where
    problems = []
    if not plan.study.objectives:
        remedy = "Add for example `objectives: {tokens_per_s: max, price_usd: min}`."
        problems.append(Problem(where(), "objectives", "a search needs objectives", "", remedy))
    if not plan.axes:
        problems.append(Problem(where(), "axes", "a search needs axes"))
    if options.shard != (1, 1):
        rule = "a search can not be split in shards"
        problems.append(Problem("--shard", "", rule, "", "Use --workers."))
    if isinstance(strategy, Zip | List) or not isinstance(strategy, Optuna):
        rule = "a search needs axes that combine freely"
        problems.append(Problem(where(("strategy",)), "strategy", rule, strategy.kind))
    if problems or not isinstance(strategy, Optuna):
        raise ConfigError(problems)
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
