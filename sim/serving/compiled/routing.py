"""Which engine takes a request, in the compiled fleet: the twin of the routers that see load."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.sim.serving.compiled.prefixes import Prefixes, content_of, sharing


class Route(NamedTuple):
    """What a router knows.

    Attributes:
        outstanding: Requests that each engine has and has not answered, (engines,).
        seen: Whether it sent a content to an engine, (contents, engines); no contents where it
            does not ask.
        best: Engines that were sent the longest part of a prompt, (engines,).
        slack: Requests that such an engine may have more than the emptiest one.
    """

    outstanding: npt.NDArray[np.int64]
    seen: npt.NDArray[np.bool_]
    best: npt.NDArray[np.bool_]
    slack: int


def new_route(engines: int, p: Prefixes, *, affine: bool, slack: int) -> Route:
    """Return a router that has sent nothing.

    Args:
        affine: It sends prompts where the longest part of them was sent before.
    """
    contents = int(p.own[0]) if affine and sharing(p) and len(p.own) else 0
    seen = np.zeros((contents, engines), np.bool_)
    return Route(np.zeros(engines, np.int64), seen, np.zeros(engines, np.bool_), slack)


@register_jitable
def choose(t: Route, p: Prefixes, row: int) -> int:
    """Return the engine that takes a request of the trace."""
    t.best[:] = True
    chosen = emptiest(t)
    if t.seen.shape[0] > 0:
        narrow(t, p, row)
        near = emptiest(t)
        if t.outstanding[near] <= t.outstanding[chosen] + t.slack:
            chosen = near
        for number in range(p.shared[row]):
            t.seen[content_of(p, row, number), chosen] = True
    return chosen


@register_jitable
def emptiest(t: Route) -> int:
    """Return the one of the best engines that has the fewest requests, of equals the first."""
    least = -1
    for i in range(t.best.shape[0]):
        if t.best[i] and (least < 0 or t.outstanding[i] < t.outstanding[least]):
            least = i
    return least


@register_jitable
def narrow(t: Route, p: Prefixes, row: int) -> None:
    """Keep of the best engines those that were sent most leading blocks; all if none was."""
    for number in range(p.shared[row]):
        held, some = content_of(p, row, number), False
        for i in range(t.best.shape[0]):
            some = some or (t.best[i] and t.seen[held, i])
        if not some:
            return
        for i in range(t.best.shape[0]):
            t.best[i] = t.best[i] and t.seen[held, i]
