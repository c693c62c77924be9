"""Which models are in the fast tier: least recently used, expected and as it happens."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from opbyte.core.ops import Array


@dataclass
class LruSet:
    """Names of what is resident, the least recently used first.

    Weights are read only, so leaving costs nothing.

    Attributes:
        capacity: Entries that fit.
    """

    capacity: int
    entries: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def touch(self, name: int) -> bool:
        """Use an entry and return whether it was resident; it is afterwards."""
        hit = name in self.entries
        self.entries[name] = None
        self.entries.move_to_end(name)
        if len(self.entries) > max(self.capacity, 0):
            self.entries.popitem(last=False)
        return hit


def lru_hit_rate(popularity: Array, capacity: float) -> float:
    """Return the long-run hit rate of an LRU set under independent references.

    Che, Tung and Wang 2002: an entry is resident if it was used within the characteristic time T,
    where sum(1 - exp(-p_i T)) equals the capacity. Equal popularities give capacity / entries.

    Args:
        popularity: Probability of each entry, (entries,), adding up to one.
        capacity: Entries that fit.
    """
    entries = len(popularity)
    if capacity >= entries:
        return 1.0
    if capacity <= 0:
        return 0.0
    if np.ptp(popularity) < 1e-15:
        return float(capacity) / entries
    low, high = 0.0, 1.0
    while -np.expm1(-popularity * high).sum() < capacity:
        high *= 2.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        if -np.expm1(-popularity * middle).sum() < capacity:
            low = middle
        else:
            high = middle
    return float((popularity * -np.expm1(-popularity * high)).sum())
