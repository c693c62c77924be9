"""Tasks, and how they are cut for workers: small enough to share, large enough to pay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from opbyte.sweeps.rows import Rows
from opbyte.sweeps.space import Codes, Ids

__all__ = ["Portions", "Task"]

#: Seconds of one portion: far above what it costs to send one, far below a run.
_MOST_S = 0.25
#: Points of arrays are not cut into portions below this: the operators of a design cost once.
_LEAST_S = 0.05
#: Portions per worker into which the rest of a task is cut.
_SHARES = 3
#: Points of the first portions, while nobody knows what an event-level point costs.
_FIRST = 4


@dataclass(frozen=True)
class Task:
    """Points to evaluate: their ids, and what each stands for."""

    ids: Ids
    codes: Codes

    def at(self, where: Any) -> Task:
        """Return the task of some of the points."""
        return Task(self.ids[where], {p: c[where] for p, c in self.codes.items()})

    def without(self, rows: Rows) -> Task | None:
        """Return what remains of the task after some rows, None if nothing does."""
        left = ~np.isin(self.ids, rows.point)
        return self.at(left) if left.any() else None


class Portions:
    """Cuts tasks so that every worker is busy to the end.

    A portion is a third of a worker's share of what remains of a task (guided self-scheduling:
    Polychronopoulos and Kuck, IEEE Trans. Computers C-36, 1987), and at most a quarter of a second.
    """

    def __init__(self, *, single: bool) -> None:
        """Know nothing yet.

        Args:
            single: Whether points are evaluated one by one, and not as arrays.
        """
        self._single = single
        self._seconds: float | None = None
        self._waiting: deque[Task] = deque()
        self._tasks: Iterator[Task] = iter(())

    def take(self, tasks: Iterator[Task]) -> None:
        """Cut these tasks from now on."""
        self._tasks = tasks
        self._waiting.clear()

    def learn(self, seconds: float, points: int) -> None:
        """Hear what points took; what came last counts as much as all before."""
        found = seconds / points
        self._seconds = found if self._seconds is None else 0.5 * (self._seconds + found)

    def put_back(self, task: Task | None) -> None:
        """Take a task that is to be evaluated before all others, if there is one."""
        if task is not None:
            self._waiting.appendleft(task)

    def next(self, workers: int) -> Task | None:
        """Return the next portion; None where none is left."""
        task = self._waiting.popleft() if self._waiting else next(self._tasks, None)
        if task is None:
            return None
        size = self._size(len(task.ids), workers)
        if size < len(task.ids):
            self._waiting.appendleft(task.at(slice(size, None)))
            task = task.at(slice(0, size))
        return task

    def _size(self, points: int, workers: int) -> int:
        size = ceil(points / (_SHARES * workers))
        if self._seconds is None:
            return min(size, _FIRST) if self._single else size
        if not self._single:
            size = max(size, _points_in(_LEAST_S, self._seconds))
        return max(1, min(size, _points_in(_MOST_S, self._seconds)))


def _points_in(seconds: float, each: float) -> int:
    return int(seconds / max(each, 1e-9))
