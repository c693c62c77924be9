"""Least recently used, exactly and by Che's approximation."""

from collections import OrderedDict
from itertools import combinations

import numpy as np
import pytest

from opbyte.sim.residency import LruSet, belady_misses, lru_hit_rate, lru_iteration_misses


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


def test_what_is_needed_together_stays() -> None:
    cache = LruSet(2)
    assert [cache.need(x) for x in ((1, 2), (3, 1), (1, 3), (2,))] == [2, 1, 0, 1]
    assert list(cache.entries) == [3, 2]


def test_belady_by_hand() -> None:
    # Room for two: at 3, of 1 and 2, what is needed later leaves.
    assert belady_misses([[1], [2], [3], [1], [2]], 2) == [1, 1, 1, 0, 1]
    assert belady_misses([[1], [2], [1]], 2, (1,)) == [0, 1, 0]
    assert belady_misses([[1, 2], [3], [1, 2]], 2) == [2, 1, 1]


def best(needs: list[list[int]], held: frozenset[int], capacity: int) -> int:
    """Return the fewest misses by trying all that may leave."""
    if not needs:
        return 0
    wanted = set(needs[0])
    missed = len(wanted - held)
    keep = sorted(held - wanted)
    room = capacity - len(wanted)
    choices = combinations(keep, min(room, len(keep)))
    return missed + min(best(needs[1:], frozenset(c) | wanted, capacity) for c in choices)


@pytest.mark.parametrize("seed", range(20))
def test_belady_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    needs = [sorted(rng.choice(6, rng.integers(1, 3), replace=False).tolist()) for _ in range(8)]
    assert sum(belady_misses(needs, 3)) == best(needs, frozenset(), 3)


@pytest.mark.parametrize("capacity", [4, 8, 20, 40, 63])
def test_one_token_of_equal_entries_misses_by_their_share(capacity: int) -> None:
    found = lru_iteration_misses(np.full(16, 1 / 16), np.ones(4), capacity)
    np.testing.assert_allclose(found, 1 - capacity / 64, atol=0.02)


def test_entries_that_stay_are_found_and_a_set_too_small_finds_none() -> None:
    visit = np.full(64, 2 / 64)
    assert lru_iteration_misses(visit, np.ones(8), 17.0, 1.0) == pytest.approx(0.0, abs=1e-6)
    assert lru_iteration_misses(visit, np.ones(8), 13.0, 1.0) == pytest.approx(2.0, abs=1e-6)
    assert not lru_iteration_misses(visit, np.ones(8), 512.0).any()


def test_layers_of_few_and_many_tokens_share_one_set() -> None:
    visit = zipf(64, 0.8)
    misses = [lru_iteration_misses(visit, np.array([1.0, 8.0, 1.0]), c).sum() for c in range(192)]
    assert (np.diff(misses) <= 1e-9).all()
    one, many, same = lru_iteration_misses(visit, np.array([1.0, 8.0, 1.0]), 30.0)
    assert one == same
    assert one < many


@pytest.mark.parametrize("capacity", [16, 32, 48, 49, 52, 60, 63])
def test_a_scan_of_everything_misses_what_does_not_fit(capacity: int) -> None:
    layers, entries = 4, 16
    cache = LruSet(capacity)
    for _ in range(60):
        found = [cache.need(range(i * entries, (i + 1) * entries)) for i in range(layers)]
    expected = lru_iteration_misses(np.ones(entries), np.ones(layers), float(capacity))
    np.testing.assert_array_equal(expected, found)
