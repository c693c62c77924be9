"""What is in a fast tier, models or experts: expected, as it happens, and at best (Belady)."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
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

    def fetch(self, name: int, held: Container[int] = ()) -> bool:
        """Take in an entry that is not there, and return whether there was room.

        Args:
            held: Entries that can not leave. What was used longest ago of the others does.
        """
        if len(self.entries) >= self.capacity:
            leaving = next((entry for entry in self.entries if entry not in held), None)
            if leaving is None:
                return False
            del self.entries[leaving]
        self.entries[name] = None
        return True

    def need(self, names: Iterable[int]) -> int:
        """Use entries that are needed together and return how many were missing.

        What is resident is used first, so that what is fetched does not push it out.
        """
        missing = [name for name in names if name not in self.entries]
        absent = set(missing)
        for name in names:
            if name not in absent:
                self.touch(name)
        for name in missing:
            self.touch(name)
        return len(missing)


def belady_misses(
    needs: Sequence[Sequence[int]], capacity: int, resident: Iterable[int] = ()
) -> list[int]:
    """Return how many entries are missing at each need when the future is known.

    What leaves is what is needed again last (Belady, IBM Syst. J. 5, 1966), never what is needed
    together with the newcomer: no policy that fetches on demand misses less on the same sequence.

    Args:
        needs: Entries needed together, in order.
        capacity: Entries that fit, those that are needed together at least.
        resident: Entries that are there at first, no more than fit.
    """
    end = len(needs)
    after: dict[int, int] = {}
    following = []
    for at in range(end - 1, -1, -1):
        following.append([after.get(name, end) for name in needs[at]])
        after.update(dict.fromkeys(needs[at], at))
    held = {name: after.get(name, end) for name in resident}
    queue = [(-use, name) for name, use in held.items()]
    heapq.heapify(queue)
    misses = []
    for names, uses in zip(needs, reversed(following), strict=True):
        misses.append(sum(name not in held for name in names))
        held.update(zip(names, uses, strict=True))
        while len(held) > capacity and queue:
            use, leaving = heapq.heappop(queue)
            if held.get(leaving) == -use and leaving not in names:
                del held[leaving]
        for name, use in zip(names, uses, strict=True):
            heapq.heappush(queue, (-use, name))
    return misses


def lru_iteration_misses(
    visit: Array, tokens: Array, capacity: float, locality: float = 0.0
) -> Array:
    """Return the expected misses of each layer when iterations use one LRU set, (layers,).

    Each of the n tokens of a layer keeps, with the probability l (`locality`), the entries that it
    had there in the iteration before, and draws anew otherwise. An entry e that a drawn token
    visits with probability v_e was visited in the last a iterations with probability

        h_e(a) = 1 - (1 - v_e)^n (1 - (1 - l) v_e)^(n (a - 1)).

    Last used a iterations ago, it is there if no more than `capacity` entries of all layers were
    used since. Their number is taken as normal: Che's characteristic time (2002), not sharp. Its
    mean is the sum of h_e(a), less half of what its own layer used before it in that iteration; its
    variance that of n (1 + (a - 1) (1 - l)) tokens, each of which visits as many entries (Hajek
    1964 for a token's pairs). Entries of tokens that stay were used one iteration ago; others are
    missed with (1 - l v_e)^n - (1 - v_e)^n times the probability that they are not there.

    Where every layer uses all its entries in every iteration nothing is random. Of the d entries
    that do not fit, a layer finds up to all of its own missing, and what it fetches pushes out as
    many of the next layer's, which were used longest ago: min(entries, d) misses.

    Args:
        visit: Probability that a token which draws visits each entry of a layer, (entries,).
        tokens: Tokens of an iteration in each layer, (layers,).
        capacity: Entries, of all layers, that fit.
    """
    from scipy.special import ndtr

    if capacity >= len(visit) * len(tokens):
        return np.zeros(len(tokens))
    if np.exp(tokens.min() * _log_missed(visit)).max() < _NEVER:
        absent = len(visit) * len(tokens) - np.floor(capacity)
        return np.full(len(tokens), min(float(len(visit)), absent))
    kinds, of_layer, times = np.unique(tokens, return_inverse=True, return_counts=True)
    seen = {n: _seen(visit, n, locality) for n in kinds}
    mean = sum(t * seen[n].sum(axis=1) for n, t in zip(kinds, times, strict=True))
    variance = sum(
        t * _spread(visit, n * (1.0 + (_AGES - 1.0) * (1.0 - locality)), seen[n])
        for n, t in zip(kinds, times, strict=True)
    )
    found = []
    for n in kinds:
        before = _before(visit, n, locality)
        wide = np.sqrt(np.maximum(variance, 0.0) + before**2 / 3.0 + 1e-12)
        there = ndtr((capacity + 0.5 - mean + before) / wide)
        reached = np.diff(seen[n], axis=0, prepend=0.0)
        hit = there @ reached
        stays = np.exp(n * _log_missed(locality * visit))
        anew = stays - np.exp(n * _log_missed(visit))
        found.append(float(((1.0 - hit) * anew + (1.0 - there[0]) * (1.0 - stays)).sum()))
    return np.array(found)[of_layer]


#: An entry that an iteration leaves out less often is used by every one.
_NEVER = 1e-9
#: Ages of entries, in iterations: every one at first, then 4 % apart.
_AGES = np.concatenate([np.arange(1.0, 257.0), np.geomspace(257.0, 1e9, 400)])


def _log_missed(visit: Array) -> Array:
    return np.asarray(np.log1p(-np.minimum(visit, 1.0 - 1e-15)))


def _seen(visit: Array, tokens: float, locality: float) -> Array:
    """Return the probability that each entry was used in the last iterations, (ages, entries)."""
    later = (_AGES[:, None] - 1.0) * _log_missed((1.0 - locality) * visit)
    return np.asarray(-np.expm1(tokens * (_log_missed(visit) + later)))


def _spread(visit: Array, draws: Array, seen: Array) -> Array:
    """Return the variance of how many different entries tokens visit, (ages,)."""
    unseen = 1.0 - seen
    single = max(float((visit * (1.0 - visit)).sum()), 1e-12)
    together: Array = draws / single * (unseen @ visit) ** 2
    return np.asarray((seen * unseen).sum(axis=1) - together)


def _before(visit: Array, tokens: float, locality: float) -> Array:
    """Return the mean entries that a layer used before one of its own, and not since, (ages,).

    It lies between none and twice as many, all equally likely.
    """
    used = -np.expm1(tokens * _log_missed(visit))
    later = tokens * (_AGES[:, None] - 1.0) * _log_missed((1.0 - locality) * visit)
    others = np.exp(later) @ used * (1.0 - 1.0 / max(float(used.sum()), 1.0))
    return np.asarray(0.5 * others)


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
