"""SimPy's clock with events at exact times, and an order of what happens at once."""

from __future__ import annotations

from heapq import heappush

import simpy

#: Order of what happens at one moment: devices are lost or return, what comes in, the ends of steps
#: by the numbers of their engines, and then plans, which see all of it. Compiled loops keep it too.
CHANGES, COMES, ENDS, PLANS = -1, 0, 1, 1 << 30


class Clock(simpy.Environment):
    """SimPy's environment with events at exact times, which sums of delays are not."""

    def at(self, time: float, order: int = ENDS) -> simpy.Event:
        """Return an event at a time.

        Args:
            time: Seconds, not before now.
            order: Of what happens then the smallest comes first; of equals what was asked for
                first.
        """
        event = simpy.Event(self)
        event._ok, event._value = True, None
        priority = simpy.events.EventPriority(order)
        heappush(self._queue, (time, priority, next(self._eid), event))
        return event
