"""Several readers of one device: sums of demands, what meets on top, and two devices."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.hw_models.memory.interleave import (
    best_shares,
    interleaved_rate,
    round_robin,
    whole_weights,
)


def reader(**changes):
    own = {"bytes": 1e9, "compute_s": 0.06, "rate": 54e9, "in_flight": 65536.0, "path_s": 6e-7}
    return ob.Reader(**(own | changes))


def test_analytic_is_the_sum_of_the_demands():
    device = ob.cxl("cxl-asic-x8")
    for readers in (1, 2, 3, 5):
        found = ob.shared_reads(device, reader(), readers)
        assert found.seconds == max(found.alone_s, readers * 1e9 / device.peak_bytes_per_s())


def test_two_devices_remove_what_two_gpus_lose():
    device = ob.cxl("cxl-asic-x8")
    for fidelity in ("analytic", "event"):
        one, two = (
            ob.shared_reads(device, reader(compute_s=0.04), 2, d, fidelity=fidelity) for d in (1, 2)
        )
        assert one.slowdown > 1.8
        assert two.slowdown < 1.03


def test_readers_in_step_that_do_not_fetch_ahead_queue_although_demands_fit():
    device = ob.cxl("cxl-asic-x8")
    own = reader(compute_s=0.1, prefetch=False)
    assert ob.shared_reads(device, own, 2).slowdown == 1.0
    assert ob.shared_reads(device, own, 2, fidelity="event").slowdown > 1.2
    # At drawn phases they meet less.
    drawn = ob.shared_reads(device, own, 2, fidelity="event", seed=3).slowdown
    assert drawn < ob.shared_reads(device, own, 2, fidelity="event").slowdown


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.floats(0.0, 0.2),
    st.booleans(),
    st.floats(4096, 262144),
)
def test_event_is_never_faster_than_analytic(readers, devices, compute, prefetch, in_flight):
    device = ob.cxl("cxl-asic-x8")
    own = reader(compute_s=compute, prefetch=prefetch, in_flight=in_flight)
    found = {
        f: ob.shared_reads(device, own, readers, devices, fidelity=f, iterations=8)
        for f in ("analytic", "event")
    }
    assert found["event"].seconds >= found["analytic"].seconds * (1 - 1e-9)
    peak = devices * device.peak_bytes_per_s()
    assert found["event"].bytes_per_s <= min(peak, readers * own.rate) * (1 + 1e-9)


def test_a_small_window_bounds_a_reader_by_littles_law():
    device = ob.cxl("cxl-asic-x8")
    own = reader(compute_s=0.0, in_flight=4096.0)
    found = ob.shared_reads(device, own, 1)
    assert found.alone_s >= 1e9 * (device.idle_latency_s + 6e-7) / 4096 * (1 - 1e-9)


def test_bad_readers_are_refused():
    with pytest.raises(ConfigError, match="above 0"):
        reader(bytes=0.0)
    with pytest.raises(ConfigError, match="not be below 0"):
        reader(compute_s=-1.0)
    device = ob.cxl("cxl-asic-x8")
    with pytest.raises(ConfigError, match="from 1 on"):
        ob.shared_reads(device, reader(), 0)
    with pytest.raises(ConfigError, match="analytic or event"):
        ob.shared_reads(device, reader(), 1, fidelity="bound")


# -- weights ----------------------------------------------------------------------------------

RATES = st.dictionaries(st.sampled_from("abcd"), st.floats(1.0, 1000.0), min_size=1)


@given(RATES)
def test_best_shares_reach_the_sum_and_nothing_beats_them(rates):
    assert interleaved_rate(rates, best_shares(rates)) == pytest.approx(sum(rates.values()))
    even = interleaved_rate(rates, round_robin(rates))
    assert even == pytest.approx(len(rates) * min(rates.values()))
    weights = whole_weights(rates)
    total = sum(weights.values())
    whole = interleaved_rate(rates, {n: w / total for n, w in weights.items()})
    assert max(rates.values()) * (1 - 1e-9) <= whole <= sum(rates.values()) * (1 + 1e-9)


def test_whole_weights_of_rates_that_are_whole():
    assert whole_weights({"dram": 200.0, "cxl": 50.0}) == {"dram": 4, "cxl": 1}
    assert whole_weights({"dram": 200.0, "cxl": 1.0}, most=16) == {"dram": 1, "cxl": 0}


@given(st.lists(st.floats(1.0, 20.0), min_size=2, max_size=3), st.integers(1, 4))
def test_no_whole_weights_are_faster(rates, most):
    rates = {f"m{i}": rate for i, rate in enumerate(rates)}

    def rate(weights):
        total = sum(weights.values())
        return interleaved_rate(rates, {n: w / total for n, w in weights.items()})

    found = rate(whole_weights(rates, most))
    for weights in itertools.product(range(most + 1), repeat=len(rates)):
        if any(weights):
            assert rate(dict(zip(rates, weights, strict=True))) <= found * (1 + 1e-9)


def test_bad_shares_are_refused():
    with pytest.raises(ConfigError, match="add up to 1"):
        interleaved_rate({"a": 1.0}, {"a": 0.5})
    with pytest.raises(ConfigError, match="with a rate"):
        interleaved_rate({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ConfigError, match="above 0"):
        best_shares({"a": 0.0})
    with pytest.raises(ConfigError, match="at least one"):
        round_robin({})
