"""What stands in a folder of results right now, while another process writes or after it.

Parts are never changed, so that each is read once: a look at a folder that has grown costs what is
new in it. Points that were seen in one part and come again, merged with others, count once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.sweeps import parts
from opbyte.sweeps.files import read_json
from opbyte.sweeps.lock import is_held
from opbyte.sweeps.pareto import costs, feasible, front_of, hypervolume, nadir
from opbyte.sweeps.results import Results, arrays, objects, open_results
from opbyte.sweeps.stored_shape import check_summary

__all__ = ["Look", "Watcher"]

#: The rate is that of the last minute in which points came.
_WINDOW_S = 60.0
#: Without a lock to ask, a study runs while its folder has changed this lately.
_FRESH_S = 30.0
_BEYOND = 1.1
_MOST_FOR_VOLUME = 2000
_FEW_OBJECTIVES = 4


@dataclass(frozen=True)
class Look:
    """What a folder of results holds at one moment.

    Attributes:
        name: The study's name.
        state: running, finished, or stopped before its end.
        stored: Points, each counted once.
        total: Points that are asked for, a search's budget; None where nobody knows.
        counts: Points of each status.
        broken: Points that are ok and break a constraint.
        rate: Points per second in the last minute in which any came; None unless running, and
            before two parts came.
        left_s: Seconds to the end at this rate.
        objectives: Column -> min or max.
        front: Rows of the front, best first objective first: axes and objectives, SI.
        front_size: Points on the front.
        hypervolume: Share of the box from the best of the front to its worst plus 10 % that the
            front dominates; None without a front.
        search: How a search stands (`search.json`).
    """

    name: str
    state: str
    stored: int
    total: int | None
    counts: dict[str, int]
    broken: int
    rate: float | None
    left_s: float | None
    objectives: dict[str, str]
    front: list[dict[str, Any]]
    front_size: int
    hypervolume: float | None
    search: dict[str, Any]


@dataclass
class Watcher:
    """Looks at a folder again and again.

    Attributes:
        folder: The folder of results.
        rows: Most rows of the front in a look.
    """

    folder: Path
    rows: int = 10
    _read: set[str] = field(default_factory=set)
    _seen: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    _counts: dict[str, int] = field(default_factory=dict)
    _broken: int = 0
    _came: list[tuple[float, int]] = field(default_factory=list)
    _front: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def look(self) -> Look:
        """Return what the folder holds now.

        Raises:
            ConfigError: If it holds no results, or a part is damaged.
        """
        results = open_results(self.folder)
        running = is_running(self.folder)
        parts.steadily(self.folder, lambda files: self._take(files, results))
        stored, objectives = len(self._seen), results.objectives
        search = _search(results)
        total: int | None
        if _searches(results):
            # A sweep, or a search with a larger budget, may have been here before.
            total = max(search["budget"], stored) if "budget" in search else None
            ended = bool(search) and not search.get("running")
        else:
            total = results.meta.get("points")
            ended = stored == total
        state = "running" if running else "finished" if ended else "stopped"
        rate = self._rate(time.time()) if running else None
        left = max(total - stored, 0) / rate if rate and total is not None else None
        size = len(next(iter(self._front.values()), ()))
        shown = [
            {name: column[i] for name, column in self._front.items() if name not in _JUDGED}
            for i in range(min(size, self.rows))
        ]
        return Look(
            name=results.name, state=state, stored=stored, total=total, counts=dict(self._counts),
            broken=self._broken, rate=rate, left_s=left, objectives=objectives, front=shown,
            front_size=size, hypervolume=self._volume(objectives), search=search,
        )  # fmt: skip

    def _take(self, files: Sequence[Path], results: Results) -> None:
        """Read what is new."""
        wanted = ["point", *_JUDGED, *results.axes, *results.objectives]
        new_files = [file for file in files if file.name not in self._read]
        for file in (part.path for part in parts.live(new_files)):
            columns = {n: objects(v) for n, v in arrays(file, wanted).items()}
            point, first = np.unique(columns["point"], return_index=True)
            new = first[~np.isin(point, self._seen, assume_unique=True)]
            self._read.add(file.name)
            if len(new):
                if not parts.is_merged(file):
                    self._came.append((_written(file), len(new)))
                self._add({n: v[new] for n, v in columns.items()}, results)

    def _add(self, some: dict[str, npt.NDArray[Any]], results: Results) -> None:
        self._seen = np.union1d(self._seen, some["point"])
        names, counts = np.unique(some["status"].astype(str), return_counts=True)
        for name, count in zip(names.tolist(), counts.tolist(), strict=True):
            self._counts[name] = self._counts.get(name, 0) + count
        self._broken += int(np.sum((some["status"] == "ok") & ~feasible(some)))
        objectives = {n: d for n, d in results.objectives.items() if n in some}
        if objectives:
            both = {n: np.concatenate([self._front.get(n, v[:0]), v]) for n, v in some.items()}
            kept = front_of(both, objectives)
            self._front = {n: v[kept] for n, v in both.items()}

    def _rate(self, now: float) -> float | None:
        """Return points per second, from when parts were written."""
        came = sorted(self._came)
        if len(came) < 2:
            return None
        last = came[-1][0]
        recent = [(t, n) for t, n in came if t >= last - _WINDOW_S]
        if len(recent) < 2:
            recent = came[-2:]
        spent = max(last, now) - recent[0][0]
        return sum(n for _, n in recent[1:]) / spent if spent > 0.0 else None

    def _volume(self, objectives: dict[str, str]) -> float | None:
        objectives = {n: d for n, d in objectives.items() if n in self._front}
        if not objectives or not len(self._front["point"]):
            return None
        values = costs(self._front, objectives)
        if len(values) > _MOST_FOR_VOLUME and len(objectives) > _FEW_OBJECTIVES:
            return None
        best, worst = nadir(values)
        width = np.where(worst > best, worst - best, 1.0)
        reference = np.full(len(objectives), _BEYOND)
        return hypervolume((values - best) / width, reference) / float(np.prod(reference))


_JUDGED = ("status", "violation")


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        raise parts.Vanished from None


def _searches(results: Results) -> bool:
    return bool(results.meta["study"].get("strategy", {}).get("kind") == "optuna")


def _search(results: Results) -> dict[str, Any]:
    """Return what a search has told of itself; nothing where none has, or nobody can read it."""
    from opbyte.sweeps.search.run import SUMMARY

    if not _searches(results):
        return {}
    with contextlib.suppress(OSError, ValueError):
        about: dict[str, Any] = read_json(results.folder / SUMMARY)
        check_summary(about)
        return about
    return {}


def is_running(folder: Path) -> bool:
    """Return whether a run writes into a folder: by its lock, or by the age of what is there."""
    locks = sorted(folder.glob(".lock*"))
    if any(is_held(lock) for lock in locks):
        return True
    if locks:
        return False
    ages = [time.time() - _changed(path) for path in (folder, folder / "points")]
    return min(ages) < _FRESH_S


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
