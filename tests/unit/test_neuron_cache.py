"""Popularity of neurons: the power law's quantile, windows, LRU against played caches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.errors import UncoveredError
from opbyte.sim.neuron_cache import missed_share, uses, window_shares
from opbyte.sim.residency import LruSet


@pytest.mark.parametrize(("used", "top", "share"), [(0.1, 0.26, 0.8), (0.04, 0.43, 0.8)])
def test_a_power_law_goes_through_its_quantile(used: float, top: float, share: float) -> None:
    found = uses(4096, used, top, share)
    assert found.sum() == pytest.approx(used * 4096, rel=1e-9)
    assert found[: round(top * 4096)].sum() == pytest.approx(share * found.sum(), rel=1e-3)
    assert (np.diff(found) <= 1e-15).all()
    assert 0 < found.min() <= found.max() <= 1


def test_a_quantile_that_no_power_law_has_is_refused() -> None:
    # A token uses half of the neurons: the first quarter has at most half of the uses.
    with pytest.raises(UncoveredError, match=r"no power law gives 0\.25 of 1024 neurons 0\.9"):
        uses(1024, 0.5, 0.25, 0.9)


def test_the_window_of_one_model_follows_from_the_popularity_of_its_sister() -> None:
    """PowerInfer's quantile of OPT-30B against LLM in a flash's window of OPT-6.7B.

    15.5 % of the model, 24 % of its networks, are kept for five tokens, and 2.4 % are read.
    """
    kept, fresh = window_shares(uses(16384, 0.10, 0.26, 0.8), 5)
    assert kept == pytest.approx(0.24, rel=0.10)
    assert fresh == pytest.approx(0.024, rel=0.20)
    # The other quantile that PowerInfer gives, of the whole model, lies on the other side.
    kept, fresh = window_shares(uses(16384, 0.10, 0.17, 0.8), 5)
    assert kept == pytest.approx(0.24, rel=0.10)
    assert fresh == pytest.approx(0.024, rel=0.10)


def test_equal_neurons_are_missed_by_the_share_that_is_not_there() -> None:
    equal = np.full(1000, 0.1)
    for slots in (0.0, 0.2, 0.5, 0.9):
        assert missed_share(equal, slots) == pytest.approx(0.1 * (1 - slots), rel=1e-6)
    assert missed_share(equal, 1.0) == 0
    assert missed_share(np.zeros(0), 0.5) == 0


@pytest.mark.parametrize("slots", [60, 150, 300])
def test_lru_misses_as_expected(slots: int) -> None:
    probability = uses(512, 0.1, 0.26, 0.8)
    rng = np.random.default_rng(7)
    cache, missed, steps = LruSet(slots), 0, 3000
    for step in range(steps):
        wanted = np.flatnonzero(rng.random(512) < probability)
        rng.shuffle(wanted)
        found = cache.need(wanted.tolist())
        missed += found if step >= steps // 3 else 0
    played = missed / (steps - steps // 3) / 512
    assert missed_share(probability, slots / 512) == pytest.approx(played, abs=0.006)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_room_never_misses_more(a: float, b: float) -> None:
    probability = uses(256, 0.1, 0.3, 0.7)
    few, many = sorted((a, b))
    assert missed_share(probability, many) <= missed_share(probability, few) + 1e-12
    assert 0 <= missed_share(probability, few) <= probability.mean() + 1e-12
