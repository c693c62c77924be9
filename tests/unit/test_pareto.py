"""Fronts and hypervolume against brute force."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError
from opbyte.sweeps.pareto import front, hypervolume

POINTS = st.lists(
    st.tuples(*[st.integers(0, 6).map(float)] * 3), min_size=1, max_size=25, unique=True
)
SENSES = {"a": "max", "b": "min", "c": "min"}


def beats(one, two):
    signs = [-1 if d == "max" else 1 for d in SENSES.values()]
    pairs = [(s * x, s * y) for s, x, y in zip(signs, one, two, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(POINTS)
def test_front_is_what_nothing_beats(points):
    frame = pd.DataFrame(points, columns=list(SENSES))
    expected = [p for p in points if not any(beats(q, p) for q in points)]
    found = front(frame, SENSES)
    assert sorted(map(tuple, found.to_numpy().tolist())) == sorted(expected)
    assert found["a"].is_monotonic_decreasing


def test_rows_without_a_result_or_with_a_broken_constraint_take_no_part():
    frame = pd.DataFrame(
        {
            "status": ["ok", "ok", "infeasible", "ok", "failed"],
            "violation": [0.0, 0.1, np.nan, 0.0, np.nan],
            "t": [1.0, 9.0, 99.0, np.nan, 99.0],
        }
    )
    assert front(frame, {"t": "max"}).index.tolist() == [0]


def test_of_equal_points_the_first_stays():
    frame = pd.DataFrame({"x": [1.0, 1.0, 2.0], "y": [2.0, 2.0, 1.0]})
    assert front(frame, {"x": "min", "y": "min"}).index.tolist() == [0, 2]


def test_nothing_feasible_is_an_empty_front():
    frame = pd.DataFrame({"status": ["failed"], "x": [np.nan], "y": [1.0]})
    assert front(frame, {"x": "min", "y": "min"}).empty


def test_unknown_column_and_direction_are_errors():
    frame = pd.DataFrame({"tokens_per_s": [1.0]})
    with pytest.raises(ConfigError, match="tokens_per_s"):
        front(frame, {"token_per_s": "max"})
    with pytest.raises(ConfigError, match="min or max"):
        front(frame, {"tokens_per_s": "highest"})


@given(POINTS)
def test_hypervolume_counts_the_dominated_unit_cells(points):
    reference = np.array([6.0, 5.0, 4.0])
    cells = np.stack(np.meshgrid(*(np.arange(r) for r in reference), indexing="ij"), -1)
    corners = cells.reshape(-1, 3)
    covered = sum(any(np.all(np.array(p) <= c) for p in points) for c in corners)
    assert hypervolume(np.array(points), reference) == pytest.approx(covered)


def test_hypervolume_of_one_objective_is_a_length():
    assert hypervolume(np.array([[3.0], [2.0], [9.0]]), np.array([5.0])) == 3.0
