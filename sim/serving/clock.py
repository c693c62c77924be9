"""SimPy's clock with events at exact times."""

from __future__ import annotations

from heapq import heappush

import simpy


class Clock(simpy.Environment):
    """SimPy's environment with events at exact times, which sums of delays are not."""

    def at(self, time: float, *, first: bool = False) -> simpy.Event:
        """Return an event at a time.

        Args:
            time: Seconds, not before now.
            first: Before all else that happens then: arrivals, in compiled loops too.
        """
        event = simpy.Event(self)
        event._ok, event._value = True, None
        priority = simpy.events.URGENT if first else simpy.events.NORMAL
        heappush(self._queue, (time, priority, next(self._eid), event))
        return event
