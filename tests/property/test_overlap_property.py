"""Laws of what goes on beside each other, layer by layer, against schedules that are played."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.sim.training.overlap import alone, overlapped

SECONDS = st.floats(1e-6, 1e3)
LAYERS = st.integers(1, 100)


def played(layers: int, *stages: float) -> float:
    """Return when the last of equal layers leaves the last stage; a stage has one at a time."""
    free = [0.0] * len(stages)
    for _ in range(layers):
        ready = 0.0
        for s, seconds in enumerate(stages):
            ready = free[s] = max(free[s], ready) + seconds / layers
    return free[-1]


def closed(layers: int, first: float, second: float) -> float:
    return float(overlapped(first, second, alone(layers)))


@given(LAYERS, SECONDS, SECONDS)
def test_two_stages_take_what_their_schedule_takes(layers, copies, computing):
    found = closed(layers, copies, computing)
    assert found == pytest.approx(played(layers, copies, computing), rel=1e-9)
    assert found == pytest.approx(played(layers, computing, copies), rel=1e-9)


@given(LAYERS, SECONDS, SECONDS)
def test_the_longer_stage_bounds_and_one_layer_of_the_other_is_left(layers, copies, computing):
    found, most = closed(layers, copies, computing), max(copies, computing)
    assert most <= found <= (copies + computing) * (1 + 1e-12)
    assert found <= (most + copies / layers) * (1 + 1e-12)
    assert found - most >= min(copies, computing) / layers * (1 - 1e-6) - 1e-9 * most
    assert closed(2 * layers, copies, computing) <= found * (1 + 1e-12)
    assert closed(layers, 2.0 * copies, computing) >= found


@given(LAYERS, SECONDS, SECONDS, SECONDS)
def test_copies_both_ways_are_told_too_short_by_the_shorter_ones_layer(layers, way_in, out, passes):
    """Copies that come, computing, copies that go: taken as two stages, a bound from below."""
    found = closed(layers, max(way_in, out), passes)
    exact = played(layers, way_in, passes, out)
    assert exact - found == pytest.approx(min(way_in, out) / layers, rel=1e-6, abs=1e-9 * exact)


@given(SECONDS, SECONDS)
def test_ends_of_the_share(a, b):
    assert overlapped(a, b, 1.0) == pytest.approx(a + b)
    assert overlapped(a, b, 0.0) == max(a, b)
    assert alone(0) == 1.0
