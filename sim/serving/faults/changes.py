"""When devices are lost and return: given times, and times that are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from opbyte.workloads.serve import Faults


class Change(NamedTuple):
    """Devices that are lost or return at one moment.

    Attributes:
        at: Seconds after the trace's start.
        lost, back: Their numbers, ascending.
        working: Devices that work from then on.
        awaited: Devices that are away then, and will return.
    """

    at: float
    lost: tuple[int, ...]
    back: tuple[int, ...]
    working: int
    awaited: int


def changes(faults: Faults, devices: int, seed: int) -> Iterator[Change]:
    """Yield the changes in the order of time; they may go on for ever.

    A device's losses are drawn by a generator of its own, so that they do not depend on those of
    others. A device that is away can not be lost; what was drawn for it is drawn anew when it
    returns.

    Args:
        devices: How many there are.
        seed: Of what is drawn.
    """
    mtbf, repair = (None if t is None else t.value for t in (faults.mtbf, faults.repair))
    draws = [np.random.default_rng((seed, device)) for device in range(devices)]
    # Time, returns before losses, device, seconds away (infinite: for good), and for which stay
    # of the device it was drawn (below 0 where it is given).
    due: list[tuple[float, int, int, float, int]] = []
    stay = [0] * devices
    away: dict[int, float] = {}

    def draw(device: int, now: float) -> None:
        if mtbf is not None:
            lost = now + float(draws[device].exponential(mtbf))
            heappush(due, (lost, 1, device, repair or np.inf, stay[device]))

    for loss in faults.devices:
        seconds = np.inf if loss.for_ is None else loss.for_.value
        heappush(due, (loss.at.value, 1, loss.device, seconds, -1))
    for device in range(devices):
        draw(device, 0.0)
    while due:
        at, lost, back = due[0][0], set[int](), set[int]()
        while due and due[0][0] == at:
            _, is_loss, device, seconds, drawn = heappop(due)
            if not is_loss:
                del away[device]
                back.add(device)
                draw(device, at)
            elif device not in away and drawn in (-1, stay[device]):
                stay[device] += 1
                away[device] = at + seconds
                lost.add(device)
                if np.isfinite(seconds):
                    heappush(due, (at + seconds, 0, device, 0.0, -1))
        if lost or back:
            awaited = sum(bool(np.isfinite(until)) for until in away.values())
            yield Change(
                at, tuple(sorted(lost)), tuple(sorted(back - lost)), devices - len(away), awaited
            )
