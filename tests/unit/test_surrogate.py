"""Gaussian processes and what a Bayesian round takes."""

import numpy as np
import pytest
from searching import recorded

from opbyte.sweeps.search.board import Judged
from opbyte.sweeps.search.surrogate import Process, features, proposals


def test_a_process_passes_through_what_it_knows():
    rng = np.random.default_rng(0)
    at = rng.random((12, 3))
    values = np.sin(3 * at.sum(axis=1))
    process = Process(at, values, 1.2, 1e-9)
    mean, covariance = process.posterior(at)
    np.testing.assert_allclose(mean, values, atol=1e-5)
    np.testing.assert_allclose(np.diag(covariance), 0.0, atol=1e-6)


def test_far_away_a_process_knows_nothing():
    process = Process(np.zeros((1, 2)), np.ones(1), 0.1, 1e-6)
    mean, covariance = process.posterior(np.full((1, 2), 9.0))
    np.testing.assert_allclose(mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(covariance, 1.0, atol=1e-12)


def test_one_known_point_is_weighed_as_the_closed_form_says():
    """m = k v / (1 + s), c = 1 - k k / (1 + s), k of the Matern 5/2 kernel."""
    process = Process(np.zeros((1, 1)), np.array([2.0]), 0.5, 0.1)
    x = np.sqrt(5.0) * 0.3 / 0.5
    k = (1 + x + x * x / 3) * np.exp(-x)
    mean, covariance = process.posterior(np.array([[0.3]]))
    assert mean[0] == pytest.approx(k * 2.0 / 1.1)
    assert covariance[0, 0] == pytest.approx(1 - k * k / 1.1)


def test_smooth_data_get_a_long_length_and_rough_data_a_short_one():
    at = np.linspace(0, 1, 30)[:, None]
    smooth, rough = (np.sin(w * at[:, 0]) for w in (3.0, 40.0))
    lengths = [Process.fitted(at, (v - v.mean()) / v.std()).length for v in (smooth, rough)]
    assert lengths[0] > lengths[1]


def test_names_are_equally_far_apart_and_numbers_are_in_order():
    space = recorded("search_duplex")
    at = features(space.plan.axes, [(i, 0, 0, 0, 0) for i in range(3)])
    away = np.linalg.norm(at[:, None] - at[None], axis=2)
    np.testing.assert_allclose(away, 1.0 - np.eye(3), atol=1e-12)
    numbers = features(space.plan.axes, [(0, i, 0, 0, 0) for i in range(6)])
    assert (np.diff(numbers[:, 3]) > 0).all()


def test_a_round_is_distinct_and_avoids_what_does_not_fit():
    """Costs fall with the second axis; the upper half of the third does not fit."""
    space = recorded("search_duplex")
    board = space.board(1000)
    rng = np.random.default_rng(1)
    for _ in range(60):
        point = (0.0, *(float(rng.integers(n)) for n in (6, 16, 5, 7)))
        bad = point[2] >= 8
        costs = () if bad else (1.0 - point[1], 10.0 + point[1], 1.0 + point[3])
        board.known[point] = Judged(costs, 1.0 if bad else 0.0)
    every = [(0.0, float(a), float(b), 0.0, 0.0) for a in range(6) for b in range(16)]
    untried = [p for p in every if p not in board.known]
    chosen = proposals(board, space.plan.axes, untried, 10, rng)
    assert len(set(chosen)) == 10
    assert sum(p[2] < 8 for p in chosen) >= 8


def test_processes_find_more_than_chance():
    space = recorded("search_duplex")
    found = space.volume(space.one_level(60, seed=0, sampler="gp", population=20))
    assert found > np.median([space.volume(space.at_random(60, s)) for s in range(10)])
