"""Expected experts hit and loads, against enumeration and simulation."""

import itertools

import numpy as np
import pytest

from opbyte.core.errors import WorkloadError
from opbyte.workloads.ffn import MoeFfn
from opbyte.workloads.ffn_ops import expert_load
from opbyte.workloads.routing import Routing


def test_uniform_expectation_equals_enumeration():
    experts, picks, tokens = 4, 2, 3
    choices = list(itertools.combinations(range(experts), picks))
    sets = [set().union(*draw) for draw in itertools.product(choices, repeat=tokens)]
    exact = sum(map(len, sets)) / len(sets)
    assert Routing().distinct(experts, picks, tokens) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("kind", ["uniform", "zipf", "balanced"])
def test_limits(kind):
    routing = Routing(kind, 1.2 if kind == "zipf" else 0.0)
    assert routing.distinct(64, 6, 1) == pytest.approx(6, rel=1e-12)
    assert routing.distinct(64, 6, 10**7) == pytest.approx(64, rel=1e-6)
    assert routing.distinct(8, 8, 1) == pytest.approx(8)


def test_balanced_hits_as_many_as_it_can():
    assert Routing("balanced").distinct(64, 6, 5) == 30
    assert Routing("balanced").distinct(64, 6, 11) == 64


def test_zipf_without_skew_is_uniform():
    for tokens in (1, 7, 300):
        assert Routing("zipf").distinct(32, 4, tokens) == Routing().distinct(32, 4, tokens)


def test_hit_probabilities_sum_to_picks_and_follow_the_power_law():
    hit = Routing("zipf", 0.8).hit_probability(100, 4)
    assert hit.sum() == pytest.approx(4)
    assert hit[9] / hit[0] == pytest.approx(10**-0.8)
    steep = Routing("zipf", 3.0).hit_probability(100, 4)
    assert steep.sum() == pytest.approx(4)
    assert steep.max() == 1
    assert (np.diff(steep) <= 0).all()


def test_skew_hits_fewer_experts():
    tokens = np.array([1.0, 4.0, 16.0, 64.0, 1000.0])
    uniform = Routing().distinct(64, 4, tokens)
    previous = uniform
    for skew in (0.3, 0.8, 1.5):
        skewed = Routing("zipf", skew).distinct(64, 4, tokens)
        assert (skewed <= previous * (1 + 1e-12)).all()
        previous = skewed
    assert (np.diff(uniform) > 0).all()


def test_arrays_of_tokens_equal_scalars():
    tokens = np.array([1.0, 3.0, 50.0])
    for routing in (Routing(), Routing("zipf", 1.1), Routing("balanced")):
        for method in ("distinct", "max_load"):
            many = getattr(routing, method)(16, 2, tokens)
            each = [getattr(routing, method)(16, 2, float(t)) for t in tokens]
            np.testing.assert_allclose(many, each, rtol=1e-12)


@pytest.mark.parametrize(("experts", "picks", "tokens"), [(8, 2, 256), (64, 6, 512), (128, 8, 64)])
def test_most_loaded_expert_against_draws(experts, picks, tokens):
    rng = np.random.default_rng(3)
    draws = rng.random((300, tokens, experts)).argpartition(picks, axis=2)[:, :, :picks]
    loads = [np.bincount(d.ravel(), minlength=experts).max() for d in draws]
    expected = Routing().max_load(experts, picks, tokens)
    assert expected == pytest.approx(np.mean(loads), rel=0.06)


def test_devices_are_less_uneven_than_experts():
    routing = Routing()
    few = routing.imbalance(64, 6, 100, 4)
    many = routing.imbalance(64, 6, 100, 32)
    assert 1 < few < many < routing.max_load(64, 6, 100) * 64 / 600
    assert routing.imbalance(64, 6, 1e7, 32) == pytest.approx(1, abs=0.01)
    assert routing.imbalance(64, 6, 100, 1) == 1
    assert Routing("balanced").imbalance(64, 6, 100, 8) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unifrom",), "no kind is called 'unifrom'. Known: uniform, zipf, balanced"),
        (("zipf", -1.0), "skew must be finite and >= 0, got -1.0"),
        (("zipf", float("nan")), "skew must be finite"),
        (("uniform", 0.5), "skew belongs to the kinds 'zipf'"),
    ],
)
def test_wrong_routings(arguments, message):
    with pytest.raises(WorkloadError, match=message):
        Routing(*arguments)


@pytest.mark.parametrize("kind", ["uniform", "zipf_0.7"])
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_scattered_picks_have_the_mean_load(kind, devices):
    named = Routing.named(kind)
    ffn = MoeFfn(64, 6, 1408)
    tokens = np.array([1.0, 40.0, 1000.0])
    for routing in (named, Routing(named.kind, named.skew, fullest=devices > 1)):
        load = expert_load(routing, ffn, tokens, devices)
        spread = load.counts()
        assert spread.shape == (-(-64 // devices), 3)
        assert np.abs(spread.sum(axis=0) - np.maximum(load.assigned, 1)).max() <= 0.5
        assert np.abs((spread > 0).sum(axis=0) - load.hit).max() <= 2.5
        # As a batch and one by one.
        for i, t in enumerate(tokens):
            assert (routing.likely_counts(64, 6, float(t), devices)[:, 0] == spread[:, i]).all()


def test_the_mean_load_itself_does_not_know_the_scatter():
    """Units that compute expert by expert may ask for it; for all others nothing changes."""
    ffn, tokens = MoeFfn(64, 6, 1408), 40.0
    load = expert_load(Routing(), ffn, tokens, 4)
    assert load.assigned == tokens * 6 / 4
    assert load.hit == pytest.approx(16 * (1 - (1 - 6 / 64) ** tokens))
    assert callable(load.counts)
