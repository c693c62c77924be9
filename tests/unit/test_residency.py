"""Least recently used, exactly and by Che's approximation."""

from collections import OrderedDict

import numpy as np
import pytest

from opbyte.sim.residency import LruSet, lru_hit_rate


def test_the_least_recently_used_leaves() -> None:
    cache = LruSet(2)
    assert [cache.touch(x) for x in (1, 2, 1, 3, 2, 1)] == [False, False, True, False, False, False]
    assert list(cache.entries) == [2, 1]


def test_nothing_stays_where_nothing_fits() -> None:
    cache = LruSet(0)
    assert [cache.touch(x) for x in (1, 1, 1)] == [False] * 3


def zipf(entries: int, skew: float) -> np.ndarray:
    weights = np.arange(1, entries + 1) ** -skew
    return weights / weights.sum()


def played(popularity: np.ndarray, capacity: int, references: int, seed: int) -> float:
    """Return the hit rate of an LRU list under drawn references, the first tenth not counted."""
    drawn = np.random.default_rng(seed).choice(len(popularity), references, p=popularity)
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for i, name in enumerate(drawn.tolist()):
        if name in held:
            hits += i >= references // 10
            held.move_to_end(name)
            continue
        held[name] = None
        if len(held) > capacity:
            held.popitem(last=False)
    return hits / (references - references // 10)


@pytest.mark.parametrize("skew", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("capacity", [5, 40, 120])
def test_che_is_within_a_percent_of_a_long_run(skew: float, capacity: int) -> None:
    popularity = zipf(150, skew)
    assert lru_hit_rate(popularity, capacity) == pytest.approx(
        played(popularity, capacity, 100_000, seed=7), abs=0.01
    )


def test_che_is_exact_for_equal_popularity() -> None:
    for entries, capacity in ((150, 46), (10, 1), (7, 7), (7, 9), (7, 0)):
        assert lru_hit_rate(np.full(entries, 1 / entries), capacity) == pytest.approx(
            min(capacity / entries, 1.0), rel=1e-12
        )


def test_two_entries_and_room_for_one_by_hand() -> None:
    # The resident one is the last that was used: a hit if it comes again, p^2 + q^2. Che's
    # characteristic time is an approximation, worst for so few entries.
    p = np.array([0.8, 0.2])
    assert played(p, 1, 100_000, seed=1) == pytest.approx(0.68, abs=0.01)
    assert lru_hit_rate(p, 1) == pytest.approx(0.68, abs=0.05)


def test_more_room_never_hits_less() -> None:
    rates = [lru_hit_rate(zipf(60, 0.9), c) for c in range(61)]
    assert rates[0] == 0
    assert rates[-1] == 1
    assert (np.diff(rates) > 0).all()
    assert max(rates) <= 1
