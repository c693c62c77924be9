"""The compiled loop from change to change: the twin of `Survivor`.

A loop that has been stopped has planned the step under way already. Where that is lost, the loop is
run once more up to the moment when it was planned; what the step cost until it was lost is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.compiled.state import HELD, PREEMPTED
from opbyte.sim.serving.faults.changes import Change
from opbyte.sim.serving.faults.fates import Toll
from opbyte.sim.serving.faults.stretch import Stretch
from opbyte.sim.serving.served import EngineRun, Fates
from opbyte.sim.serving.server import Server
from opbyte.workloads.traces import RequestTrace

_NEVER = Change(np.inf, (), (), 0, 0)


class Segments:
    """Requests of a trace, served by one compiled loop after the other.

    Attributes:
        times: Scheduled, first token, last token, seconds, negative before, (3, requests).
        sampled: Tokens of its answer that each request has got, (requests,).
        latest: When it got the last of them, seconds, (requests,).
        preempted: How often it lost its blocks, (requests,).
    """

    def __init__(self, left: Callable[[int], Server], trace: RequestTrace, toll: Toll) -> None:
        """Start before the first arrival.

        Args:
            left: Returns the engine on so many devices.
        """
        n = len(trace)
        self.trace, self.toll, self._left = trace, toll, left
        self.times = np.full((3, n), -1.0)
        self.sampled, self.preempted = np.zeros(n, np.int32), np.zeros(n, np.int32)
        self.latest = np.full(n, -1.0)
        self._working, self._awaited, self._next = toll.devices, 0, 0
        self._refused: dict[int, dict[int, str]] = {}

    @property
    def fates(self) -> Fates:
        """Return what became of the requests."""
        times = np.where(self.times < 0.0, np.nan, self.times)
        return Fates(times, self.trace.arrival_s, self.toll.reasons, self.preempted)

    def run(self, changes: Iterator[Change]) -> list[EngineRun]:
        """Serve all requests; return what each loop did."""
        runs: list[EngineRun] = []
        begin, now, waiting = float(self.trace.arrival_s.min()), -np.inf, list[int]()
        change = next(changes, _NEVER)
        while waiting or self._next < len(self.trace):
            at = begin + change.at
            waiting += self._come(at)
            if not waiting and self._next == len(self.trace):
                break
            if not waiting or (not self._working and self._awaited):
                played, pending = None, [change]
                change, now = next(changes, _NEVER), at
            else:
                played = self._stretch(waiting, now)
                played.run(at)
                if played.over and self._next == len(self.trace):
                    pending = []
                else:
                    pending, change, now = self._meet(played, change, changes, begin, waiting)
                runs.append(self._left(self._working).run_of_loop(played.served))
            waiting = self._go_on(waiting, played, pending)
        if runs:
            return runs
        # Where all are refused nobody does anything.
        idle = self._left(self.toll.devices)
        return [idle.run_of_engine(idle.engine(Clock()))]

    def _meet(
        self,
        played: Stretch,
        change: Change,
        changes: Iterator[Change],
        begin: float,
        waiting: list[int],
    ) -> tuple[list[Change], Change, float]:
        """Let changes take effect: at once, or when the step under way has ended.

        Args:
            waiting: Who comes until then is put behind them.
        Returns:
            Changes that take effect together, the next one after them, and when that is.
        """
        pending, now = [change], begin + change.at
        change = next(changes, _NEVER)
        if not played.flying:
            return pending, change, now
        while self.toll.ends(pending[-1:]) and begin + change.at <= played.end:
            pending.append(change)
            now, change = begin + change.at, next(changes, _NEVER)
        if self.toll.ends(pending[-1:]):
            now = played.end
            late = self._come(now, ended=True)
            played.finish(len(late))
            waiting += late
        else:
            waiting += self._come(now)
            played.cut(now)
        return pending, change, now

    def _come(self, until: float, *, ended: bool = False) -> list[int]:
        """Return who arrives before a moment, and is not refused.

        Args:
            ended: Then, too: a step ends after what arrives at the same moment.
        """
        arrival, first = self.trace.arrival_s, self._next
        self._next = int(np.searchsorted(arrival, until, "right" if ended else "left"))
        return self._taken(range(first, self._next))

    def _taken(self, rows: Sequence[int]) -> list[int]:
        """Return those of some rows that the devices which work can serve; refuse the others."""
        if not self._working and self._awaited:
            return list(rows)
        if self._working not in self._refused:
            self._refused[self._working] = self._left(self._working).refused(self.trace)
        refused, taken = self._refused[self._working], []
        for row in rows:
            if row in refused:
                begun = bool(self.times[0, row] >= 0.0)
                self.toll.refuse(row, refused[row], self._working, begun=begun)
            else:
                taken.append(row)
        return taken

    def _stretch(self, rows: Sequence[int], now: float) -> Stretch:
        """Return a loop of some requests that have come, at a moment."""
        chosen, trace = np.array(rows, np.int64), self.trace
        return Stretch(
            self._left(self._working),
            np.maximum(now, trace.arrival_s[chosen]),
            trace.input_tokens[chosen],
            trace.output_tokens[chosen],
            self.times[:, chosen],
            self.sampled[chosen],
            self.latest[chosen],
        )

    def _go_on(
        self, waiting: list[int], played: Stretch | None, pending: Sequence[Change]
    ) -> list[int]:
        """Note what became of requests; return those that wait for the devices that work now."""
        held: list[int] = []
        if played is not None:
            n = len(played.arrival)
            rows = np.array(waiting[:n], np.int64)
            self.times[:, rows], self.sampled[rows] = played.times, played.sampled
            self.latest[rows] = played.latest
            open_ = played.sampled < played.produced
            holds = open_ & (played.planned.requests[HELD] > 0)
            self.preempted[rows] += played.planned.requests[PREEMPTED] + holds
            held = rows[holds].tolist()
            waiting = rows[open_].tolist() + waiting[n:]
        if pending:
            self.toll.lose(held, pending)
            self._working, self._awaited = pending[-1].working, pending[-1].awaited
        return self._taken([row for row in waiting if row not in self.toll.reasons])
