"""The `misses` block of cores: lines under way, and the cache that they stand behind.

**Lines under way.** n cores that keep k lines of l bytes outstanding each move bytes with a mean
latency T no faster than Little's law allows (Operations Research 9, 1961):

    seconds >= bytes * T / (n k l)        T = path + latency of the port, by the share of each tier

**The last-level cache.** What a step touches comes again in the next step, after W other bytes: the
working set, all that the unit's operators move in one run. Of a cache of C bytes a cyclic pass
hits the share h of

    replacement random:  h = exp(-(1 - h) W / C)      a line survives (1 - h) W misses, each of
                                                      which replaces it with probability 1 / C
    replacement lru:     h = 1 where W <= C, else 0   the line needed next is the one that left

Hits cross the cache's port; the rest crosses those behind it. `bound` has the most that any policy
keeps, min(1, C / W).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from opbyte.core.blocks import Block
from opbyte.core.ops import Array
from opbyte.core.parameters import Bytes, Parameter, Quantity, Seconds

__all__ = ["Misses", "hit_share"]

_Several = Annotated[Parameter, Quantity("count", least=1.0)]


class Misses(Block):
    """What cores wait for."""

    outstanding: _Several
    """Lines that one core keeps under way beyond its own caches, prefetches included."""
    line: Bytes = Parameter(64.0, "bytes", "x86-64 and Arm servers: cache line")
    path: Seconds
    """From a core to a memory's port and back: look-ups in caches, mesh."""
    replacement: Literal["random", "lru"] = Field("random")
    """Of the last-level cache: the SRAM that the unit is at, if it is at one."""
    source: str | None = None


def hit_share(working: Any, capacity: Any, replacement: str) -> Array:
    """Return the share of a cyclic pass that hits: the equations above.

    Args:
        working: Bytes between two uses of a line, above 0.
        capacity: Bytes of the cache; without any nothing hits.
        replacement: `random`, `lru`, or `best` for the most that any policy keeps.
    """
    with np.errstate(divide="ignore"):
        ratio: Array = np.asarray(working, float) / np.asarray(capacity, float)
    if replacement == "best":
        return 1.0 / np.maximum(ratio, 1.0)
    if replacement == "lru":
        return np.where(ratio <= 1.0, 1.0, 0.0)
    from scipy.special import lambertw

    # h exp(-h r) = exp(-r): h = -W(-r exp(-r)) / r on the lower solution, 1 up to r = 1.
    # Far beyond the cache h is below 1e-300.
    safe = np.clip(ratio, 1.0, 700.0)
    root: Any = lambertw  # scipy's stubs do not know arrays of floats here
    hits = -root(-safe * np.exp(-safe)).real / safe
    found: Array = np.where(ratio <= 1.0, 1.0, np.clip(hits, 0.0, 1.0))
    return found
