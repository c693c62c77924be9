"""Two fidelities: all points on a screen, the few that could be on the front at the event level.

A candidate is *alive* while it could still join the front: no played point is at least as good in
every objective as the candidate's screened value moved by the lower end of its gap (`gaps`).
Rounds of candidates are played until none is alive or the budget is used. The first of a round are
those that the expected gaps put on the front, chosen one by one for the hypervolume that they add;
the rest those whose best case adds most.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opbyte.sweeps.plan import Plan
from opbyte.sweeps.search.board import Board, Point
from opbyte.sweeps.search.gaps import Gaps
from opbyte.sweeps.search.screen import Pool, beaten, nondominated

__all__ = ["Climb"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

#: Candidates whose gaps are estimated one by one.
_MOST_ESTIMATED = 4096
#: Candidates whose hypervolume is compared.
_MOST_COMPARED = 400
#: A round has at least this part of its size.
_LEAST_SHARE = 4
#: The reference of the hypervolume, beyond the worst of the front.
_REFERENCE = 1.1


@dataclass
class Climb:
    """The state of a search of two fidelities.

    Attributes:
        board: Points at the event level.
        plan: The study.
        pool: Candidates.
        gaps: What was measured between the two fidelities.
        round_size: Candidates of one round.
    """

    board: Board
    plan: Plan
    pool: Pool
    gaps: Gaps
    round_size: int
    played: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _logs: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    _fit: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))

    def __post_init__(self) -> None:
        """Nothing is played yet."""
        self._logs = np.zeros((0, self.pool.logs.shape[1]))
        shape = [line.size for line in self.board.lines]
        self._shape = tuple(shape)
        self._scale = np.array([max(size - 1, 1) for size in shape], dtype=np.float64)
        structure = [not axis.target.numeric for axis in self.plan.axes]
        self._structure = np.flatnonzero(structure)

    def run(self, start: list[Point], tell: Callable[[int], None] = lambda _: None) -> int:
        """Play rounds until no candidate is alive or the budget is used; return how many are left.

        Args:
            start: Designs that are played first, candidates or not.
            tell: Is told after each round how many are alive.
        """
        if start:
            self._play(np.array([self.board.id(p) for p in start], dtype=np.int64))
        while True:
            alive = self.alive()
            tell(len(alive))
            if not len(alive) or not self.board.left:
                return len(alive)
            chosen = self._chosen(alive)[: self.board.left]
            self._play(self.pool.ids[chosen])

    # -- what is known -----------------------------------------------------------------------

    def _codes(self, ids: Ids) -> npt.NDArray[np.int64]:
        return np.stack(np.unravel_index(ids, self._shape), axis=1).astype(np.int64)

    def _places(self, ids: Ids) -> Floats:
        places: Floats = self._codes(ids) / self._scale
        return places

    def _labels(self, ids: Ids) -> Ids:
        """Return the group of points: their combination of structure."""
        codes = self._codes(ids)
        label = np.zeros(len(ids), dtype=np.int64)
        for i in self._structure:
            label = label * self._shape[i] + codes[:, i]
        return label

    def _play(self, ids: Ids) -> None:
        """Play points, and measure their gaps."""
        ids = ids[~np.isin(ids, self.played)]
        points: list[Point] = [tuple(map(float, code)) for code in self._codes(ids)]
        self.board.evaluate(points)
        found = [self.board.known[p] for p in points]
        fit = np.array([bool(j.costs) for j in found], dtype=np.bool_)
        count = self._logs.shape[1]
        costs = np.array([j.costs or (np.nan,) * count for j in found]).reshape(-1, count)
        sign = np.where(costs < 0.0, -1.0, 1.0)
        with np.errstate(all="ignore"):
            logs = sign * np.log(np.abs(costs))
        at = np.minimum(np.searchsorted(self.pool.ids, ids), len(self.pool) - 1)
        both = fit & (self.pool.ids[at] == ids)
        self.gaps.add((logs - self.pool.logs[at])[both], self._labels(ids[both]))
        self._measured = np.concatenate([self._measured, ids[both]])
        self.played = np.concatenate([self.played, ids])
        self._logs = np.concatenate([self._logs, logs])
        self._fit = np.concatenate([self._fit, fit])

    _measured: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def front(self) -> Floats:
        """Return the logarithms of the played points on the front, (points, k)."""
        fit = self._logs[self._fit]
        return fit[nondominated(fit)]

    def alive(self) -> Ids:
        """Return the positions of the candidates that could still join the front."""
        pool = self.pool
        waiting = np.flatnonzero(~np.isin(pool.ids, self.played))
        low, _ = self.gaps.intervals(self._labels(pool.ids[waiting]))
        best = pool.logs[waiting] + low
        hopeful = ~beaten(best, self.front()) & (pool.violation[waiting] <= self._forgiven())
        answer: Ids = waiting[hopeful]
        return answer

    def _forgiven(self) -> float:
        """Return the share by which a screened point may break constraints and yet keep them.

        As much as the event level was ever better than the screen.
        """
        low, _ = self.gaps.interval()
        least = float(np.min(low, initial=0.0))
        return float(np.expm1(min(-least, 1.0)))

    # -- what comes next ---------------------------------------------------------------------

    def _chosen(self, alive: Ids) -> Ids:
        """Return the positions of the candidates of the next round.

        First those that are on the front by their expected gaps, then those that would be at best.
        """
        low, high = self.gaps.intervals(self._labels(self.pool.ids[alive]))
        logs = self.pool.logs[alive]
        where, expected = self._expected(alive, logs, low, high)
        first = self._gaining(where, expected, self.round_size, beyond=True)
        if len(first) == self.round_size:
            return first
        rest = ~np.isin(alive, first)
        best = logs + np.where(np.isfinite(low), low, 0.0)
        more = self._gaining(alive[rest], best[rest], self.round_size - len(first), beyond=False)
        chosen = np.concatenate([first, more])
        # Workers must have something to do: the next best in the best case, layer by layer.
        while len(chosen) < min(self.round_size // _LEAST_SHARE, len(alive)):
            rest = ~np.isin(alive, chosen)
            most = self.round_size // _LEAST_SHARE - len(chosen)
            more = self._gaining(alive[rest], best[rest], most, beyond=False)
            chosen = np.concatenate([chosen, more])
        return chosen

    def _expected(self, alive: Ids, logs: Floats, low: Floats, high: Floats) -> tuple[Ids, Floats]:
        """Return candidates and the logarithms of the costs that are expected of them."""
        if not len(self.gaps):
            return alive, logs
        if len(alive) > _MOST_ESTIMATED:
            middle = np.where(np.isfinite(low + high), (low + high) / 2.0, 0.0)
            keep = nondominated(logs + middle)
            alive, logs = alive[keep], logs[keep]
        ids = self.pool.ids[alive]
        places, measured = self._places(ids), self._places(self._measured)
        return alive, logs + self.gaps.expected(places, self._labels(ids), measured)

    def _gaining(self, where: Ids, logs: Floats, most: int, *, beyond: bool) -> Ids:
        """Return candidates one by one, by the hypervolume that each adds to the front.

        Args:
            where: Positions of the candidates, (n,).
            logs: Logarithms of their costs, (n, k).
            most: How many.
            beyond: Only those that the front played so far does not beat.
        """
        front = self.front()
        keep = nondominated(logs)
        if beyond:
            keep[keep] = ~beaten(logs[keep], front)
        where, logs = where[keep], logs[keep]
        if len(where) > _MOST_COMPARED:
            spread = np.linspace(0, len(where) - 1, _MOST_COMPARED).astype(np.int64)
            order = np.lexsort(logs.T[::-1])[spread]
            where, logs = where[order], logs[order]
        if not len(where):
            return where
        both = np.concatenate([front, logs])
        low, high = both.min(axis=0), both.max(axis=0)
        width = np.where(high > low, high - low, 1.0)
        picked = _greedy((logs - low) / width, (front - low) / width, most)
        answer: Ids = where[picked]
        return answer


def _greedy(points: Floats, front: Floats, most: int) -> list[int]:
    """Return positions of points in the order of the hypervolume that each adds to those before.

    Gains only shrink as others are taken (the hypervolume is submodular), so that a point whose
    old gain is not the largest need not be computed again.
    """
    from opbyte.sweeps.pareto import hypervolume

    reference = np.full(points.shape[1], _REFERENCE)
    chosen = front
    whole = hypervolume(chosen, reference)

    def gain(i: int) -> float:
        return hypervolume(np.concatenate([chosen, points[i : i + 1]]), reference) - whole

    heap = [(-gain(i), i, 0) for i in range(len(points))]
    heapq.heapify(heap)
    picked: list[int] = []
    while heap and len(picked) < most:
        value, i, seen = heapq.heappop(heap)
        if seen == len(picked):
            picked.append(i)
            chosen = np.concatenate([chosen, points[i : i + 1]])
            whole -= value
        else:
            heapq.heappush(heap, (-gain(i), i, len(picked)))
    return picked
