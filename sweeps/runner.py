"""Runs the points of a plan: in this process, in worker processes, or on any executor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import opbyte
from opbyte.core.errors import ConfigError
from opbyte.sweeps.axes import SI_UNITS, Target
from opbyte.sweeps.backends import Backend, ExecutorBackend, PoolBackend, SerialBackend
from opbyte.sweeps.compact import tidied
from opbyte.sweeps.constraints import metric_dimension
from opbyte.sweeps.interruption import Interruption
from opbyte.sweeps.keys import code_version, resolved, study_key
from opbyte.sweeps.lock import Lock
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.portions import Task
from opbyte.sweeps.rows import FAILED, Rows
from opbyte.sweeps.store import Results, Store
from opbyte.sweeps.study import Optuna

__all__ = ["Options", "Progress", "Session", "backend_of", "open_session", "run_plan"]

#: Points of one vectorised evaluation: what stays in a processor's cache.
CHUNK = 8192
_EVENT_CHUNK = 1024


class Progress(Protocol):
    """What wants to know how far a run is."""

    def start(self, total: int, stored: int, what: str = "") -> None:
        """A run of `total` points begins, `stored` of which exist already; `what` is done."""

    def advance(self, rows: int, failed: int) -> None:
        """Rows were evaluated, some of which failed."""


@dataclass(frozen=True)
class Options:
    """How to run.

    Attributes:
        out: Folder of results; default results/<name>.
        workers: Processes; default: as many as pay.
        executor: process, serial, dask://HOST:PORT or tls://HOST:PORT.
        shard: Which part of the points, of how many: (1, 4) is the first quarter.
        fresh: Remove stored points first.
        chunk: Points of one vectorised evaluation.
        held: Who lets others into the folder, when it ends; default: the run, at its own end.
    """

    out: Path | None = None
    workers: int | None = None
    executor: str = "process"
    shard: tuple[int, int] = (1, 1)
    fresh: bool = False
    chunk: int | None = None
    held: ExitStack | None = None


@dataclass
class Session:
    """A plan with its store, its backend and the lock of its folder, while it runs.

    Attributes:
        lock: What keeps others out; None where the caller lets them in later.
    """

    plan: Plan
    store: Store
    backend: Backend
    lock: Lock | None
    interruption: Interruption
    progress: Progress | None = None

    def evaluate(self, tasks: Iterator[Task]) -> Iterator[Rows]:
        """Evaluate tasks, store their rows, and yield them.

        Raises:
            KeyboardInterrupt: After an interruption. Rows that came with it are not stored: they
                may say that a point failed which was interrupted.
        """
        for rows in self.backend.run(tasks):
            self.interruption.check()
            self.store.add(rows)
            if self.progress is not None:
                self.progress.advance(len(rows), rows.count(FAILED))
            yield rows

    def close(self) -> None:
        """Store what waits, end the workers and let others into the folder."""
        try:
            self.store.flush()
        finally:
            self.backend.close()
            if self.lock is not None:
                self.lock.release()
            self.interruption.close()


def meta_of(plan: Plan) -> dict[str, Any]:
    """Return what `study.json` holds of a plan."""
    import json

    data = resolved(plan)
    dimensions = {t.path: t.dimension for t in _targets(plan)}
    names = [*plan.metrics, *(f"baseline_{n}" for n in ("seconds", *plan.study.objectives))]
    dimensions |= {n: metric_dimension(n.removeprefix("baseline_")) for n in names}
    dimensions |= {"needed_bytes": "bytes", "available_bytes": "bytes"}
    known = {name: kind for name, kind in dimensions.items() if kind}
    meta = {
        "name": plan.name,
        "description": plan.study.description,
        "key": study_key(data),
        "code": code_version(),
        "version": opbyte.__version__,
        "kind": plan.kind,
        "axes": [a.path for a in plan.axes],
        "derived": [k.target.path for k in plan.links],
        "metrics": list(plan.metrics),
        "points": plan.space.count if plan.space is not None else None,
        "dimensions": known,
        "units": {name: SI_UNITS[kind] for name, kind in known.items() if kind in SI_UNITS},
        "study": data,
    }
    plain: dict[str, Any] = json.loads(json.dumps(meta, default=str))
    return plain


def _targets(plan: Plan) -> list[Target]:
    return [*(a.target for a in plan.axes), *(k.target for k in plan.links)]


def open_session(
    plan: Plan,
    options: Options,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Session:
    """Return the session of a run: its store is open, its backend ready to start.

    Raises:
        ConfigError: If the folder holds other results or is being written to, or the executor is
            unknown.
    """
    if options.fresh and options.shard != (1, 1):
        rule = "--fresh removes the points of all shards, also those that others compute now"
        remedy = "Remove the folder before the first shard starts, or choose another --out."
        raise ConfigError.one("--shard", "", rule, "", remedy)
    meta = meta_of(plan)
    folder = options.out or Path("results") / plan.name
    lock = Lock.taken(folder, options.shard)
    try:
        store = Store(folder, meta, fresh=options.fresh, alone=lock.alone)
        backend = backend_of(plan, options, executor, str(meta["key"]))
    except BaseException:
        lock.release()
        raise
    if options.held is not None:
        options.held.callback(lock.release)
    own = lock if options.held is None else None
    return Session(plan, store, backend, own, Interruption(), progress)


def backend_of(plan: Plan, options: Options, executor: Executor | None, seed_key: str) -> Backend:
    """Return where the points of a plan are evaluated.

    Raises:
        ConfigError: If the executor is unknown.
    """
    workers = options.workers or _default_workers(plan)
    if executor is not None:
        return ExecutorBackend(plan, seed_key, executor, max(workers, 2))
    kind = options.executor
    if "://" in kind:
        from opbyte.sweeps.cluster import DaskBackend

        return DaskBackend(plan, seed_key, kind)
    if kind not in ("process", "serial"):
        rule = "an executor is process, serial, dask://HOST:PORT or tls://HOST:PORT"
        raise ConfigError.one("--executor", "", rule, kind)
    if kind == "serial" or workers == 1:
        return SerialBackend(plan, seed_key)
    return PoolBackend(plan, seed_key, workers)


def _default_workers(plan: Plan) -> int:
    """Return the number of processes that pay: starting one costs about a second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    points = plan.space.count if plan.space is not None else 1000
    designs = 1
    for axis in plan.axes:
        if axis.path in plan.slow:
            designs *= max(axis.line.size, 1)
    designs = min(designs, points)
    event = plan.study.fidelity == "event"
    seconds = points * 0.01 if event else designs * 0.006 + points * 6e-6
    return max(1, min(cores or 1, int(seconds / 3.0)))


def run_plan(
    plan: Plan,
    options: Options,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Results:
    """Evaluate the points of a plan that are not stored yet, and return all that are.

    Raises:
        ConfigError: If the folder holds other results, or the strategy leaves the points open.
        KeyboardInterrupt: After an interruption; finished points are stored.
    """
    if isinstance(plan.study.strategy, Optuna):
        from opbyte.sweeps.search import search_plan

        return search_plan(plan, options, executor=executor, progress=progress)
    space = plan.points()
    session = open_session(plan, options, executor, progress)
    part, parts = options.shard
    chunk = options.chunk or (_EVENT_CHUNK if plan.study.fidelity == "event" else CHUNK)
    total = len(range(part - 1, space.count, parts))
    store = session.store
    stored = int(np.count_nonzero(store.done % parts == part - 1))

    def tasks() -> Iterator[Task]:
        for ids in space.portions(plan.slow, chunk):
            own = ids[ids % parts == part - 1] if parts > 1 else ids
            own = store.missing(own)
            if len(own):
                yield Task(own, space.codes(own))

    if progress is not None:
        progress.start(total, stored)
    try:
        for _ in session.evaluate(tasks()):
            pass
        store.flush()
        tidied(store.folder)
    finally:
        session.close()
    return store.results
