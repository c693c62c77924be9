"""Drawn tokens of each expert: totals, limits, and the rules by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import WorkloadError
from opbyte.workloads.drawn import _quantile, balanced, likely, on_device, power_law, typical
from opbyte.workloads.routing import Routing

TOKENS = np.array([1, 2, 7, 64, 1000, 16384], np.float64)


@given(
    experts=st.integers(1, 40),
    share=st.floats(0.01, 1.0),
    tokens=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    skew=st.sampled_from([0.0, 0.5, 1.0, 1.01, 2.5]),
    draw=st.integers(0, 3),
)
def test_every_pick_goes_to_an_expert_that_the_token_has_not_picked(
    experts, share, tokens, skew, draw
):
    picks = max(1, int(share * experts))
    many = np.array(tokens, np.float64)
    for counts in (
        power_law(experts, picks, many, skew, draw=draw),
        balanced(experts, picks, many),
    ):
        assert counts.shape == (experts, len(many))
        np.testing.assert_array_equal(counts.sum(axis=0), many * picks)
        assert (counts >= 0).all()
        assert (counts <= many).all()
        np.testing.assert_array_equal(counts, np.rint(counts))


def test_a_draw_is_the_same_each_time_and_another_is_another():
    one = power_law(64, 8, TOKENS, 1.2, seed=3, draw=1)
    np.testing.assert_array_equal(one, power_law(64, 8, TOKENS, 1.2, seed=3, draw=1))
    assert (one != power_law(64, 8, TOKENS, 1.2, seed=3, draw=2)).any()
    assert (one != power_law(64, 8, TOKENS, 1.2, seed=4, draw=1)).any()


def test_points_do_not_depend_on_their_neighbours():
    together = power_law(64, 8, TOKENS, 1.01)
    for i, tokens in enumerate(TOKENS):
        np.testing.assert_array_equal(together[:, [i]], power_law(64, 8, tokens, 1.01))


@pytest.mark.parametrize(("skew", "ratio"), [(1.0, 8e5**0.3), (2.0, 0.4 / 0.1)])
def test_popularity_follows_the_density(skew, ratio):
    """Quantiles between 1 and 8e5: 8e5^u for 1 / x, 1 / (1 - u) for 1 / x^2."""
    counts = power_law(4000, 1, 1e6, skew)[:, 0]
    high, low = np.quantile(counts, [0.9, 0.6])
    assert high / low == pytest.approx(ratio, rel=0.2)


def test_what_is_above_the_tokens_fills_the_fewest():
    """Two experts, one pick each of 10 tokens: with 2 picks both have all."""
    np.testing.assert_array_equal(power_law(2, 2, 10, 2.0), [[10], [10]])
    # Three experts and two picks: none above 10, all 20 placed, the fewest has what is left.
    for draw in range(20):
        counts = np.sort(power_law(3, 2, 10, 3.0, draw=draw)[:, 0])
        assert counts.sum() == 20
        assert counts[2] <= 10


def test_few_picks_spread_over_as_many_experts_of_one_stretch():
    """One token, 8 of 128: every popularity rounds to nothing, the last eight make up for it."""
    counts = power_law(128, 8, 1, 1.01)[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(counts), np.arange(120, 128))
    np.testing.assert_array_equal(on_device(counts[:, None], 16)[:, 0], np.ones(8))


def test_a_typical_batch_keeps_picks_and_experts_hit():
    draws = [np.array([[4.0], [0.0], [1.0]]), np.array([[2.0], [3.0], [0.0]])]
    # Means of the ranks: 3.5, 1.5, 0.
    np.testing.assert_array_equal(typical(draws)[:, 0], [4, 1, 0])
    np.testing.assert_array_equal(typical(draws[:1])[:, 0], [4, 1, 0])
    many = [power_law(128, 8, TOKENS, 1.01, draw=i) for i in range(20)]
    batch = typical(many)
    np.testing.assert_array_equal(batch.sum(axis=0), TOKENS * 8)
    hit = np.mean([(counts > 0).sum(axis=0) for counts in many], axis=0)
    np.testing.assert_allclose((batch > 0).sum(axis=0), hit, rtol=0.05)


def test_balanced_by_hand():
    np.testing.assert_array_equal(
        balanced(4, 2, [1, 3, 5.5]).T, [[1, 1, 0, 0], [2, 2, 1, 1], [3, 3, 3, 2]]
    )


def test_the_device_with_most_tokens_is_found_at_each_point():
    counts = np.array([[1.0, 9.0], [2.0, 0.0], [4.0, 1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(on_device(counts, 2), [[4.0, 9.0], [0.0, 0.0]])
    np.testing.assert_array_equal(on_device(counts, 2, 0), counts[:2])
    np.testing.assert_array_equal(on_device(counts, 1), counts)


def test_experts_that_do_not_divide_leave_a_row_of_zeros():
    counts = np.arange(1.0, 6.0)[:, None]
    np.testing.assert_array_equal(on_device(counts, 2, 0)[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(on_device(counts, 2, 1)[:, 0], [4, 5, 0])
    np.testing.assert_array_equal(on_device(counts, 2)[:, 0], [4, 5, 0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: power_law(8, 9, 1, 1.0), "picks 9 of 8"),
        (lambda: balanced(8, 0, 1), "picks 0 of 8"),
        (lambda: power_law(8, 2, 1, -1.0), "skew"),
        (lambda: power_law(8, 2, 1, float("nan")), "skew"),
        (lambda: on_device(np.ones((4, 1)), 5), "5 devices for 4 experts"),
        (lambda: on_device(np.ones((4, 1)), 2, 2), "device 2 of 2"),
    ],
)
def test_what_can_not_be(call, text):
    with pytest.raises(WorkloadError, match=text):
        call()


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.5])
@pytest.mark.parametrize(("experts", "picks"), [(8, 2), (64, 6), (128, 8), (4, 4)])
def test_likely_counts_are_whole_and_sum_to_the_picks(experts, picks, skew):
    tokens = np.array([1.0, 2, 5, 16, 63, 64, 500, 16385, 1e6])
    hit = Routing("zipf", skew).hit_probability(experts, picks)[:, None]
    counts = likely(hit, tokens, tokens * picks)
    assert (counts == np.rint(counts)).all()
    assert (counts >= 0).all()
    assert (counts <= tokens).all()
    assert (counts.sum(axis=0) == tokens * picks).all()


@pytest.mark.parametrize("skew", [0.0, 0.8])
def test_likely_counts_scatter_as_random_picks_do(skew):
    """Mean order statistics and experts hit, against draws of distinct experts by popularity."""
    experts, picks, tokens, draws = 32, 4, 40, 400
    routing = Routing("zipf", skew)
    hit = routing.hit_probability(experts, picks)
    rng = np.random.default_rng(5)
    # Picks of a token by systematic sampling, which has exactly these probabilities.
    sorted_counts = np.zeros(experts)
    reached = 0.0
    for _ in range(draws):
        counts = np.zeros(experts)
        for _ in range(tokens):
            order = rng.permutation(experts)
            steps = np.floor(hit[order].cumsum() + rng.random() + 1e-9)
            counts[order] += np.diff(steps, prepend=0.0)
        sorted_counts += np.sort(counts)[::-1] / draws
        reached += (counts > 0).sum() / draws
    ours = np.sort(likely(hit[:, None], np.array([40.0]), np.array([160.0]))[:, 0])[::-1]
    assert np.abs(ours - sorted_counts).mean() <= 0.5
    assert (ours > 0).sum() == pytest.approx(reached, abs=1.0)


def test_the_quantile_of_a_binomial():
    from scipy.stats import binom

    level = ((np.arange(64) + 0.5) / 64)[:, None]
    for chance in (1e-4, 0.05, 0.5, 0.97, 1.0):
        tokens = np.array([1.0, 10, 300, 5000, 100_000])
        exact = binom.ppf(level, tokens, chance)
        ours = _quantile(level, tokens, np.full((64, 1), chance))
        few = tokens * chance * (1 - chance) < 9
        assert (ours[:, few] == exact[:, few]).all()
        assert np.abs(ours - exact).max() <= 1
