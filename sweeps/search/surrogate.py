"""Bayesian optimisation of several objectives, for points that cost seconds or more.

Each objective has a Gaussian process over the axes (Matern 5/2; names count as 0 or 1 apart), each
member of a round one draw of all of them (Thompson sampling), and takes the candidate that adds
most hypervolume to the front of the played points in that draw. Rasmussen and Williams, Gaussian
Processes for Machine Learning, equations 2.25, 2.26, 4.17 and 5.8; Bradford et al., J. Global
Optimization 71 (2018) for the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.sweeps.axes import PlanAxis
from opbyte.sweeps.pareto import hypervolume
from opbyte.sweeps.search.board import Board, Point
from opbyte.sweeps.search.screen import nondominated
from opbyte.sweeps.space import Line

__all__ = ["Process", "features", "proposals"]

Floats = npt.NDArray[np.float64]

_LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.5, 5.0)
_NOISES = (1e-6, 1e-3, 3e-2)
#: Played points that a process is fitted to: the last ones and those of the front.
_MOST_FITTED = 400
_REFERENCE = 0.1


def features(axes: Sequence[PlanAxis], points: Sequence[Point]) -> Floats:
    """Return points as vectors: numbers in [0, 1], a name as a corner of a simplex with sides 1."""
    codes = np.array(points, dtype=np.float64).reshape(-1, len(axes))
    columns = []
    for i, axis in enumerate(axes):
        if axis.target.numeric or axis.numbers is not None:
            columns.append(_share(axis.line, codes[:, i])[:, None])
        else:
            corners = np.eye(axis.line.size) / np.sqrt(2.0)
            columns.append(corners[codes[:, i].astype(np.int64)])
    return np.concatenate(columns, axis=1)


def _share(line: Line, code: Floats) -> Floats:
    if line.size:
        return code / max(line.size - 1, 1)
    if line.log:
        code, low, high = np.log(code), np.log(line.low), np.log(line.high)
    else:
        low, high = line.low, line.high
    share: Floats = (code - low) / (high - low)
    return share


@dataclass(frozen=True)
class Process:
    """A Gaussian process with the length and noise that make its data most likely."""

    at: Floats
    values: Floats
    length: float
    noise: float

    @classmethod
    def fitted(cls, at: Floats, values: Floats) -> Process:
        """Return the process of values (n,) at vectors (n, d); values have mean 0 and spread 1."""
        away = _distance(at, at)
        best, chosen = -np.inf, (1.0, 1e-3)
        for length in _LENGTHS:
            kernel = _matern(away / length)
            for noise in _NOISES:
                factor = np.linalg.cholesky(kernel + noise * np.eye(len(at)))
                half = np.linalg.solve(factor, values)
                likelihood = -0.5 * float(half @ half) - float(np.log(np.diag(factor)).sum())
                if likelihood > best:
                    best, chosen = likelihood, (length, noise)
        return cls(at, values, *chosen)

    def posterior(self, at: Floats) -> tuple[Floats, Floats]:
        """Return mean (m,) and covariance (m, m) at vectors (m, d)."""
        own = _matern(_distance(self.at, self.at) / self.length)
        factor = np.linalg.cholesky(own + self.noise * np.eye(len(self.at)))
        cross = _matern(_distance(self.at, at) / self.length)
        left = np.linalg.solve(factor, cross)
        mean: Floats = left.T @ np.linalg.solve(factor, self.values)
        return mean, _matern(_distance(at, at) / self.length) - left.T @ left

    def draws(self, at: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Return joint draws at vectors (m, d): (count, m)."""
        mean, covariance = self.posterior(at)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn: Floats = mean + rng.standard_normal((count, len(at))) @ root.T
        return drawn


def _distance(a: Floats, b: Floats) -> Floats:
    squared: Floats = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return np.sqrt(squared)


def _matern(r: Floats) -> Floats:
    x = np.sqrt(5.0) * r
    value: Floats = (1.0 + x + x**2 / 3.0) * np.exp(-x)
    return value


def proposals(
    board: Board,
    axes: Sequence[PlanAxis],
    candidates: Sequence[Point],
    count: int,
    rng: np.random.Generator,
) -> list[Point]:
    """Return the points of the next round.

    Args:
        board: What was played.
        axes: The axes.
        candidates: Untried points to choose from.
        count: How many.
        rng: Draws.
    """
    fit = [p for p, j in board.known.items() if j.costs and j.violation == 0.0]
    if len(fit) < 4 or len(candidates) <= count:
        return list(candidates[:count])
    costs = np.array([board.known[p].costs for p in fit])
    keep = nondominated(costs)
    keep[-_MOST_FITTED:] = True
    used = np.flatnonzero(keep)[-_MOST_FITTED:]
    values = costs[used]
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0)
    at, there = features(axes, [fit[i] for i in used]), features(axes, candidates)
    draws = np.stack([Process.fitted(at, v).draws(there, count, rng) for v in values.T], axis=2)
    draws = draws + _penalty(board, axes, there)[None, :, None]
    front = values[nondominated(values)]
    reference = front.max(axis=0) + _REFERENCE * np.maximum(np.ptp(front, axis=0), 1e-6)
    chosen: list[int] = []
    for drawn in draws:
        gain = _gains(drawn, front, reference)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    return [candidates[i] for i in chosen]


def _penalty(board: Board, axes: Sequence[PlanAxis], there: Floats) -> Floats:
    """Return what candidates pay where they are likely not to fit, 0 elsewhere, (m,)."""
    known = list(board.known)[-_MOST_FITTED:]
    fits = np.array([bool(board.known[p].costs) for p in known])
    if fits.all():
        return np.zeros(len(there))
    process = Process.fitted(features(axes, known), np.where(fits, 1.0, -1.0))
    mean, _ = process.posterior(there)
    return np.where(mean < 0.0, 1e3, 0.0)


def _gains(drawn: Floats, front: Floats, reference: Floats) -> Floats:
    """Return what each of some points adds to the front's hypervolume, (m,)."""
    gains = np.zeros(len(drawn))
    whole = hypervolume(front, reference)
    better = np.flatnonzero((drawn < reference).all(axis=1))
    beats = [i for i in better if not (front <= drawn[i]).all(axis=1).any()]
    for i in beats:
        gains[i] = hypervolume(np.concatenate([front, drawn[i : i + 1]]), reference) - whole
    # Where none adds anything, the one that lacks least.
    if not beats:
        gains = -np.maximum(drawn - reference, 0.0).sum(axis=1) - 1.0
    return gains
