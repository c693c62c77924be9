"""Where tasks run: in this process, in a pool of processes, or on a given executor.

A cluster is one more executor: `opbyte.sweeps.cluster`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    ProcessPoolExecutor,
    wait,
)
from functools import lru_cache
from typing import Any

from opbyte.core.errors import SimulationError
from opbyte.sweeps.evaluate import Evaluator
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.portions import Portions, Task
from opbyte.sweeps.rows import Rows

__all__ = ["Backend", "ExecutorBackend", "PoolBackend", "SerialBackend", "evaluator_of", "run_task"]

#: Seconds after which a task hands back what it has, so that it can be stored.
PATIENCE_S = 1.0
#: A point that was alone with a worker when it died, this many times, is what kills.
_DEATHS = 3
_THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
def evaluator_of(blob: bytes) -> Evaluator:
    """Return the evaluator of a pickled study; a worker builds it once."""
    from opbyte.core.config import validate
    from opbyte.sweeps.study import Study

    document, seed_key = pickle.loads(blob)  # noqa: S301  written by the parent process
    study = validate(Study, document)
    return Evaluator(Plan.build(study, document, trusted=True), seed_key)


#: One task at a time in a process, however many threads its executor has.
_ALONE = threading.Lock()


def run_task(blob: bytes, task: Task) -> tuple[Rows, float]:
    """Return rows of a task in a worker, and the seconds that they took."""
    with _ALONE:
        evaluator = evaluator_of(blob)
        began = time.monotonic()
        rows = _evaluated(evaluator, task)
        return rows, time.monotonic() - began


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
    """Evaluates on an executor of `concurrent.futures`; keeps two tasks in flight per worker."""

    def __init__(self, plan: Plan, seed_key: str, executor: Executor | None, workers: int) -> None:
        self._plan = plan
        self._seed_key = seed_key
        self._blob = pickle.dumps((plan.document, seed_key))
        self._given = executor
        self._workers = workers
        self._portions = Portions(single=plan.study.fidelity == "event")

    def run(self, tasks: Iterator[Task]) -> Iterator[Rows]:
        """Yield rows as workers return them.

        A task that its worker did not survive is run again in halves, until the point that kills
        is alone: that one is a failed row.
        """
        portions = self._portions
        portions.take(tasks)
        flying: dict[Any, Task] = {}
        suspects: list[Task] = []
        while True:
            workers = self._width()
            while not suspects and len(flying) < 2 * workers:
                task = portions.next(workers)
                if task is None:
                    break
                try:
                    flying[self._submit(task)] = task
                except BrokenExecutor:
                    suspects.append(task)
            if not flying and not suspects:
                return
            for future in self._done(flying):
                task = flying.pop(future)
                try:
                    rows, seconds = self._answer(future)
                except BrokenExecutor:
                    suspects.append(task)
                    continue
                yield rows
                portions.learn(seconds, len(rows))
                portions.put_back(task.without(rows))
            if suspects and not flying:
                self._replace()
                for task in suspects:
                    yield from self._alone(task)
                suspects = []

    # -- what an executor may do in its own way ------------------------------------------------

    def _executor(self) -> Executor:
        assert self._given is not None
        return self._given

    def _width(self) -> int:
        """Return the number of workers."""
        return self._workers

    def _submit(self, task: Task) -> Any:
        """Return the future of a task.

        Raises:
            BrokenExecutor: If a worker died.
        """
        return self._executor().submit(run_task, self._blob, task)

    def _done(self, flying: Collection[Any]) -> Iterable[Any]:
        """Return the futures that are done; at least one, where any is given."""
        return wait(flying, return_when=FIRST_COMPLETED).done if flying else ()

    def _answer(self, future: Any) -> tuple[Rows, float]:
        """Return what a task answers.

        Raises:
            BrokenExecutor: If its worker died.
        """
        answer: tuple[Rows, float] = future.result()
        return answer

    def _replace(self) -> None:
        """Get a new executor after a broken one."""
        rule = "the executor that was given is broken: one of its workers died"
        raise SimulationError(f"{rule}. Finished points are stored; run again with a new one.")

    def _alone(self, task: Task) -> Iterator[Rows]:
        """Yield the rows of a task that may kill its worker."""
        waiting = [(task, 0)]
        while waiting:
            task, deaths = waiting.pop()
            try:
                future = self._submit(task)
                while not self._done([future]):
                    pass
                rows, _ = self._answer(future)
            except BrokenExecutor:
                self._replace()
                half = len(task.ids) // 2
                if half:
                    waiting += [(task.at(slice(half, None)), 0), (task.at(slice(0, half)), 0)]
                elif deaths + 1 < _DEATHS:
                    waiting.append((task, deaths + 1))
                else:
                    reason = "the worker process died while it evaluated this point"
                    evaluator = Evaluator(self._plan, self._seed_key)
                    yield evaluator.failures(task.ids, task.codes, reason)
                continue
            yield rows
            rest = task.without(rows)
            if rest is not None:
                waiting.append((rest, 0))


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
        """End the worker processes, whatever they are doing, and the thread that led them.

        An interruption may come here too: until all has ended, the next call ends the rest.
        """
        if self._pool is None:
            return
        for child in multiprocessing.active_children():
            if child.pid not in self._before:
                with contextlib.suppress(OSError):
                    child.terminate()
        # A pool that was shut down without waiting forgets its thread, which then closes a pipe
        # while the interpreter that exits writes into it.
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
