"""Search of one fidelity with Optuna, generation by generation.

Asked in order, evaluated together, told in order: the search sees the same whatever the number of
workers. Points are those of the grid (or of the continuous axes), so a search and a sweep share
one store. A point that is asked for again is answered from memory and costs nothing.

The first generation is given designs, corners of the space and a scrambled Sobol sequence. Each
later one is partly the sampler's and partly untried neighbours, one step along one axis, of the
points on the front so far: crossover finds the region, neighbours fill its edge.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from opbyte.sweeps.search.board import Board, Judged, Point, settled
from opbyte.sweeps.space import Line, unit_points
from opbyte.sweeps.study import Optuna

__all__ = ["bayesian", "generations"]

_STALE_GENERATIONS = 20
#: Candidates of a Bayesian round: beside the front, and anywhere.
_NEAR, _AFAR = 100, 150


def generations(board: Board, strategy: Optuna, start: Sequence[Point] = ()) -> None:
    """Ask, evaluate and tell until the budget of distinct points is used.

    Args:
        board: The points.
        strategy: Sampler, population and seed.
        start: Designs to begin with.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    size = strategy.population
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(board.objectives)
    study = optuna.create_study(directions=directions, sampler=_sampler(strategy))
    rng = np.random.default_rng(strategy.seed)
    enqueued = _first(board.lines, strategy, start)
    stale = 0
    while board.left and stale < _STALE_GENERATIONS:
        for point in enqueued:
            study.enqueue_trial(_parameters(board.lines, point))
        trials = [study.ask() for _ in range(max(size, len(enqueued)))]
        points = [_suggested(trial, board.lines) for trial in trials]
        before = len(board.known)
        board.evaluate(board.allowed(points))
        for trial, point in zip(trials, points, strict=True):
            _tell(study, trial, board.known.get(point), len(directions))
        stale = stale + 1 if len(board.known) == before else 0
        enqueued = _neighbours(board, rng, size // 2)


def bayesian(board: Board, strategy: Optuna, start: Sequence[Point] = ()) -> None:
    """The same with Gaussian processes, for points that cost seconds; see `surrogate`."""
    from opbyte.sweeps.search.surrogate import proposals

    size, axes = strategy.population, board.session.plan.axes
    rng = np.random.default_rng(strategy.seed)
    points = _first(board.lines, strategy, start)
    stale = 0
    while board.left and points and stale < _STALE_GENERATIONS:
        before = len(board.known)
        board.evaluate(board.allowed(points))
        stale = stale + 1 if len(board.known) == before else 0
        near = _neighbours(board, rng, _NEAR)
        share = rng.random((_AFAR, len(board.lines)))
        columns = [line.at(share[:, i]).tolist() for i, line in enumerate(board.lines)]
        far = [settled(board.lines, tuple(map(float, p))) for p in zip(*columns, strict=True)]
        untried = [p for p in dict.fromkeys([*near, *far]) if p not in board.known]
        points = proposals(board, axes, untried, size, rng)


def _sampler(strategy: Optuna) -> Any:
    """Return Optuna's sampler of a strategy."""
    import optuna

    samplers = optuna.samplers
    size, seed = strategy.population, strategy.seed
    # Optuna calls some samplers experimental: our tests say what we need of them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SAMPLERS[strategy.sampler](samplers, size, seed)


_SAMPLERS: Mapping[str, Callable[[Any, int, int], Any]] = MappingProxyType(
    {
        "nsga2": lambda of, size, seed: of.NSGAIISampler(population_size=size, seed=seed),
        "nsga3": lambda of, size, seed: of.NSGAIIISampler(population_size=size, seed=seed),
        "tpe": lambda of, size, seed: of.TPESampler(
            seed=seed, n_startup_trials=size, multivariate=True
        ),
        "qmc": lambda of, _, seed: of.QMCSampler(seed=seed, scramble=True),
        "random": lambda of, _, seed: of.RandomSampler(seed=seed),
    }
)


def _first(lines: tuple[Line, ...], strategy: Optuna, start: Sequence[Point]) -> list[Point]:
    """Return the first generation: given designs, corners, a scrambled Sobol sequence."""
    size = strategy.population
    corners = list(dict.fromkeys(_corners(lines, size // 2)))[: size // 2]
    share = unit_points(len(lines), 4 * size, strategy.seed, sobol=True)
    columns = [line.at(share[:, i]) for i, line in enumerate(lines)]
    drawn = zip(*(c.tolist() for c in columns), strict=True)
    all_points = [*start, *corners, *(tuple(map(float, p)) for p in drawn)]
    points = list(dict.fromkeys(settled(lines, p) for p in all_points))
    return points[: max(size, len(start))]


def _neighbours(board: Board, rng: np.random.Generator, most: int) -> list[Point]:
    """Return untried points one step along one axis away from the front, at random."""
    found: dict[Point, None] = {}
    for point in board.front():
        for i, line in enumerate(board.lines):
            for step in (-1, 1):
                code = _stepped(line, point[i], step)
                if code is None:
                    continue
                near = settled(board.lines, (*point[:i], code, *point[i + 1 :]))
                if near not in board.known:
                    found[near] = None
    candidates = sorted(found)
    chosen = rng.permutation(len(candidates))[:most]
    return [candidates[i] for i in chosen]


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
    return settled(lines, tuple(codes))


def _tell(study: Any, trial: Any, answer: Judged | None, objectives: int) -> None:
    """Tell a trial's values; an infeasible one has a constraint above zero and idle values."""
    import optuna

    if answer is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    trial.set_constraint("violation", answer.violation)
    study.tell(trial, list(answer.costs) if answer.costs else [0.0] * objectives)
