"""Where tasks run: in this process, in a pool of processes, or on a given executor."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from opbyte.sweeps.evaluate import Evaluator
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.rows import Rows
from opbyte.sweeps.space import Codes, Ids

__all__ = ["Backend", "ExecutorBackend", "PoolBackend", "SerialBackend", "Task"]

#: Seconds after which a task hands back what it has, so that it can be stored.
PATIENCE_S = 1.0
_THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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


class Backend(ABC):
    """Evaluates tasks; the order of rows is no promise."""

    @abstractmethod
    def run(self, tasks: Iterator[Task]) -> Iterator[Rows]:
        """Yield the rows of all tasks, as they become ready."""

    def close(self) -> None:  # noqa: B027  most have nothing to give back
        """Give back what was taken; nothing more is run."""


class SerialBackend(Backend):
    """Evaluates in this process."""

    def __init__(self, plan: Plan, seed_key: str) -> None:
        self._evaluator = Evaluator(plan, seed_key)

    def run(self, tasks: Iterator[Task]) -> Iterator[Rows]:
        """Yield the rows of one task after the other."""
        for task in tasks:
            rest: Task | None = task
            while rest is not None:
                rows = _evaluated(self._evaluator, rest)
                yield rows
                rest = rest.without(rows)


def _evaluated(evaluator: Evaluator, task: Task) -> Rows:
    end = time.monotonic() + PATIENCE_S
    return evaluator.rows(task.ids, task.codes, lambda: time.monotonic() > end)


@lru_cache(maxsize=4)
def _evaluator(blob: bytes) -> Evaluator:
    """Return the evaluator of a pickled study; a worker builds it once."""
    from opbyte.core.config import validate
    from opbyte.sweeps.study import Study

    document, seed_key = pickle.loads(blob)  # noqa: S301  written by the parent process
    study = validate(Study, document)
    return Evaluator(Plan.build(study, document, trusted=True), seed_key)


def _run_task(blob: bytes, task: Task) -> Rows:
    return _evaluated(_evaluator(blob), task)


def _start_worker() -> None:
    """Prepare a worker: one thread each, Ctrl-C is the parent's, no life after the parent."""
    for name in _THREADS:
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class ExecutorBackend(Backend):
    """Evaluates on an executor of `concurrent.futures`; keeps a few tasks in flight per worker."""

    def __init__(self, plan: Plan, seed_key: str, executor: Executor | None, workers: int) -> None:
        self._plan = plan
        self._seed_key = seed_key
        self._blob = pickle.dumps((plan.document, seed_key))
        self._given = executor
        self._workers = workers

    def _executor(self) -> Executor:
        assert self._given is not None
        return self._given

    def run(self, tasks: Iterator[Task]) -> Iterator[Rows]:
        """Yield rows as workers return them.

        A task that its worker did not survive is run again in halves, until the point that kills
        is alone: that one is a failed row.
        """
        flying: dict[Future[Rows], Task] = {}
        again: deque[Task] = deque()
        suspects: list[Task] = []
        while True:
            while len(flying) < 2 * self._workers:
                task = again.popleft() if again else next(tasks, None)
                if task is None:
                    break
                try:
                    flying[self._executor().submit(_run_task, self._blob, task)] = task
                except BrokenProcessPool:
                    suspects.append(task)
                    break
            if not flying and not suspects:
                return
            done, _ = wait(flying, return_when=FIRST_COMPLETED) if flying else (set(), set())
            for future in done:
                task = flying.pop(future)
                try:
                    rows = future.result()
                except BrokenProcessPool:
                    suspects.append(task)
                    continue
                yield rows
                rest = task.without(rows)
                if rest is not None:
                    again.append(rest)
            if suspects and not flying:
                self._replace()
                for task in suspects:
                    yield from self._alone(task)
                suspects = []

    def _replace(self) -> None:
        """Get a new executor after a broken one."""

    def _alone(self, task: Task) -> Iterator[Rows]:
        """Yield the rows of a task that may kill its worker."""
        waiting = [task]
        while waiting:
            task = waiting.pop()
            try:
                rows = self._executor().submit(_run_task, self._blob, task).result()
            except BrokenProcessPool:
                self._replace()
                if len(task.ids) == 1:
                    reason = "the worker process died while it evaluated this point"
                    evaluator = Evaluator(self._plan, self._seed_key)
                    yield evaluator.failures(task.ids, task.codes, reason)
                else:
                    half = len(task.ids) // 2
                    waiting += [task.at(slice(half, None)), task.at(slice(0, half))]
                continue
            yield rows
            rest = task.without(rows)
            if rest is not None:
                waiting.append(rest)


class PoolBackend(ExecutorBackend):
    """Evaluates in local processes."""

    def __init__(self, plan: Plan, seed_key: str, workers: int) -> None:
        super().__init__(plan, seed_key, None, workers)
        self._pool: ProcessPoolExecutor | None = None
        self._before: set[int | None] = set()

    def _executor(self) -> Executor:
        if self._pool is None:
            self._before = {p.pid for p in multiprocessing.active_children()}
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._workers, mp_context=context, initializer=_start_worker
            )
        return self._pool

    def _replace(self) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        children = [p for p in multiprocessing.active_children() if p.pid not in self._before]
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            with contextlib.suppress(OSError):
                child.terminate()
        pool.shutdown(wait=True)
