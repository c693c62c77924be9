"""Points of a study: every id once, whatever the order and the portions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.sweeps.space import Line, grid_space, sampled_space, table_space


def lines_of(sizes):
    return tuple(Line(f"axis{i}", n) for i, n in enumerate(sizes))


def test_ids_of_a_grid_count_the_last_axis_fastest():
    space = grid_space(lines_of([2, 3]))
    codes = space.codes(np.arange(6))
    pairs = list(zip(codes["axis0"].tolist(), codes["axis1"].tolist(), strict=True))
    assert pairs == list(itertools.product(range(2), range(3)))


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    most=st.integers(1, 50),
    data=st.data(),
)
def test_portions_hold_every_id_once_and_keep_designs_together(sizes, most, data):
    lines = lines_of(sizes)
    slow = frozenset(data.draw(st.sets(st.sampled_from([line.path for line in lines]))))
    space = grid_space(lines)
    portions = list(space.portions(slow, most))
    assert all(0 < len(p) <= most for p in portions)
    order = np.concatenate(portions)
    assert sorted(order.tolist()) == list(range(space.count))
    codes = space.codes(order)
    designs = list(zip(*(codes[p].tolist() for p in sorted(slow)), strict=True))
    runs = [key for key, _ in itertools.groupby(designs)]
    assert len(runs) == len(set(runs))


def test_points_given_one_by_one_keep_their_ids():
    lines = lines_of([2, 2])
    table = {"axis0": np.array([1, 0, 1]), "axis1": np.array([0, 1, 1])}
    space = table_space(lines, table)
    portions = list(space.portions(frozenset({"axis0"}), 2))
    assert np.concatenate(portions).tolist() == [1, 0, 2]
    assert space.codes(np.array([2, 0]))["axis1"].tolist() == [1, 0]


@pytest.mark.parametrize("sobol", [False, True])
def test_samples_are_equal_for_equal_seeds_only(sobol):
    lines = (Line("a", 0, 1.0, 3.0), Line("b", 7), Line("c", 0, 1.0, 1e6, log=True))
    one, two, other = (sampled_space(lines, 100, seed, sobol=sobol) for seed in (5, 5, 6))
    for path in ("a", "b", "c"):
        assert np.array_equal(one.table[path], two.table[path])
        assert not np.array_equal(one.table[path], other.table[path])
    assert one.table["a"].min() >= 1.0
    assert one.table["a"].max() <= 3.0
    assert set(one.table["b"].tolist()) == set(range(7))


def test_a_logarithmic_axis_has_equally_many_points_in_each_decade():
    space = sampled_space((Line("c", 0, 1.0, 1e4, log=True),), 4096, 0, sobol=True)
    decade = np.floor(np.log10(space.table["c"]))
    counts = np.bincount(decade.astype(int), minlength=4)
    assert counts.tolist() == [1024, 1024, 1024, 1024]


def test_whole_numbers_stay_whole():
    space = sampled_space((Line("c", 0, 1.0, 9.0, whole=True),), 200, 0, sobol=False)
    values = space.table["c"]
    assert np.array_equal(values, np.rint(values))
    assert {values.min(), values.max()} == {1.0, 9.0}
