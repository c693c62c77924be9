"""Gaps in bins, and numbers over time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.sim.serving.tally import BINS, PARTS, Tally, bin_of, largest, over_time


@given(st.floats(1e-11, 1e6))
def test_a_bin_is_less_than_a_hundredth_wide(gap):
    tally = Tally()
    tally.add_gap(gap, 3)
    tally.add_gap(2.0**22)
    assert tally.gap_quantile(0.5) == pytest.approx(gap, rel=1 / PARTS)
    assert bin_of(gap) <= bin_of(gap * (1 + 1 / PARTS)) <= bin_of(gap) + 2


def test_bins_ascend_and_what_is_outside_is_in_the_nearest():
    gaps = np.geomspace(1e-12, 1e7, 5000)
    bins = [bin_of(float(gap)) for gap in gaps]
    assert bins == sorted(bins)
    assert 0 < bins[0] < bins[-1] < BINS - 1
    assert bin_of(0.0) == bin_of(-1.0) == bin_of(1e-300) == 0
    assert bin_of(1e300) == BINS - 1


def test_nothing_has_no_mean_and_no_quantile():
    assert math.isnan(Tally().gap_mean)
    assert math.isnan(Tally().gap_quantile(0.5))


@pytest.mark.parametrize(("share", "number"), [(0.5, 0), (0.79, 0), (0.85, 1), (0.95, 3), (1.0, 3)])
def test_numbers_over_time(share, number):
    # Of ten seconds two were busy: one with one, one with three.
    seconds = np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert over_time(seconds, share, 10.0) == number
    assert largest(seconds) == 3


def test_what_several_engines_count_adds_up():
    one, other = Tally(used=np.zeros(5)), Tally(used=np.zeros(5))
    one.add_gap(0.5, 3)
    other.add_gap(2.0)
    one.add_step(1.0, 0, 4)
    other.add_step(3.0, 6, 2)
    both = Tally.together([one, other])
    assert both.gaps.sum() == 4
    assert (both.gap_mean, both.gap_max) == (3.5 / 4, 2.0)
    assert both.waiting[[0, 6]].tolist() == [1.0, 3.0]
    assert both.used.tolist() == [0.0, 0.0, 3.0, 0.0, 1.0]
    assert both.sums == tuple(np.add(one.sums, other.sums))


def test_tokens_that_come_together_have_no_gap():
    tally = Tally()
    tally.add_gap(0.0, 3)
    tally.add_gap(0.4)
    assert tally.gap_quantile(0.75) == 0.0
    assert tally.gap_quantile(0.76) == pytest.approx(0.4, rel=1 / PARTS)
