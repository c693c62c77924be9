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


@pytest.mark.parametrize(("readers", "devices"), [(1, 1), (2, 1), (4, 1), (4, 2), (6, 2)])
def test_what_queues_comes_on_top_of_the_demands(readers, devices):
    """In step, all copy at once and then all compute: the last byte is there after n b / (d R)."""
    device = ob.cxl("cxl-asic-x8")
    own = reader(compute_s=0.1, prefetch=False, in_flight=float(1 << 20))
    found = {
        f: ob.shared_reads(device, own, readers, devices, fidelity=f) for f in ("analytic", "event")
    }
    rate = min(devices * device.peak_bytes_per_s(), readers * own.rate)
    met = 0.1 + readers * 1e9 / rate
    assert found["event"].seconds == pytest.approx(met, rel=1e-3)
    # The sum of the demands is one reader's own seconds until the device is full.
    alone = 0.1 + 1e9 / min(devices * device.peak_bytes_per_s(), own.rate)
    demands = max(alone, readers * 1e9 / rate)
    assert found["analytic"].seconds == pytest.approx(demands, rel=1e-3)
    queued = found["event"].seconds - found["analytic"].seconds
    assert queued == pytest.approx(met - demands, rel=0.02, abs=1e-4)


def test_gpus_that_fetch_ahead_are_slowed_from_the_first_that_the_devices_can_not_feed():
    """Slowdowns of a data-parallel job: flat up to d R / (b / c) GPUs, then in proportion."""
    device = ob.cxl("cxl-asic-x8")
    own = reader(compute_s=0.04)
    for devices in (1, 2):
        fed = devices * device.peak_bytes_per_s() / (own.bytes / own.compute_s)
        for readers in range(1, 9):
            found = {
                f: ob.shared_reads(device, own, readers, devices, fidelity=f)
                for f in ("analytic", "event")
            }
            expected = max(1.0, readers / max(fed, 1.0))
            assert found["analytic"].slowdown == pytest.approx(expected, rel=0.02)
            assert found["event"].slowdown == pytest.approx(expected, rel=0.06)


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


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 3),
    st.sampled_from((0.0, 1e-3, 0.02)),
    st.booleans(),
    st.integers(0, 100),
    st.sampled_from((1, 8)),
)
def test_phases_deliver_no_more_than_devices_do(readers, devices, compute, prefetch, seed, many):
    device = ob.cxl("cxl-asic-x8")
    own = reader(compute_s=compute, prefetch=prefetch)
    found = {
        f: ob.shared_reads(device, own, readers, devices, fidelity=f, iterations=many, seed=seed)
        for f in ("analytic", "event")
    }
    assert found["event"].seconds >= found["analytic"].seconds * (1 - 1e-9)
    assert found["event"].bytes_per_s <= devices * device.peak_bytes_per_s() * (1 + 1e-9)


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


@pytest.mark.parametrize("value", ["1 GB", None, True, float("nan")])
@pytest.mark.parametrize("field", ["bytes", "compute_s", "rate", "in_flight", "path_s"])
def test_a_reader_has_numbers(field, value):
    with pytest.raises(ConfigError, match=f"reader.{field}: must (be above|not be below) 0"):
        reader(**{field: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"readers": float("nan")}, "readers: must be a whole number from 1 on, got nan"),
        ({"readers": "2"}, "readers: must be a whole number from 1 on, got 2"),
        ({"devices": True}, "devices: must be a whole number"),
        ({"seed": -1}, "seed: must be a whole number from 0 on, got -1"),
        ({"seed": "a"}, "seed: must be a whole number from 0 on"),
        ({"read_pct": 0}, "read_pct: must be at least 1: among writes alone"),
        ({"expander": "cxl-asic-x8"}, r"expander: must be what opbyte\.cxl makes"),
        ({"reader": {"bytes": 1.0}}, r"reader: must be what opbyte\.Reader makes"),
    ],
)
def test_what_can_not_share_a_device_is_told(change, words):
    given_ = {"expander": ob.cxl("cxl-asic-x8"), "reader": reader(), "readers": 2} | change
    with pytest.raises(ConfigError, match=words):
        ob.shared_reads(**given_, fidelity="event")


def test_fetching_ahead_is_true_or_false():
    with pytest.raises(ConfigError, match="prefetch: must be true or false, got no"):
        reader(prefetch="no")


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
