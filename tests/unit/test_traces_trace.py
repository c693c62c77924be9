"""RequestTrace: what it refuses, and what slicing, scaling, windows and samples keep."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.workloads.traces import ClosedLoop, PrefixBlocks, RequestTrace, load_trace
from opbyte.workloads.traces.describe import reusable_blocks


def blocks(*requests, tokens=16):
    flat = [i for request in requests for i in request]
    offsets = np.cumsum([0, *map(len, requests)])
    return PrefixBlocks(np.array(flat, np.int64), offsets, tokens)


def lists(prefix):
    return [prefix.of(i).tolist() for i in range(len(prefix))]


def example(**more):
    return RequestTrace(
        [0.0, 1.0, 1.0, 4.0],
        [10, 20, 30, 40],
        [1, 2, 3, 4],
        prefix=blocks([0, 1], [], [0, 2, 3], [0]),
        session=[5, 6, 5, 6],
        **more,
    )


REFUSED = {
    "no requests": (([], [], []), {}),
    "equally long": (([0.0], [1, 2], [1]), {}),
    "request 1: input_tokens must be a whole number from 1": (([0, 1], [1, 0], [1, 1]), {}),
    "request 0: output_tokens must be a whole number": (([0, 1], [1, 1], [0.5, 1]), {}),
    "input_tokens must be a whole number from 1 to 2,147": (([0], [2**31], [1]), {}),
    "arrival_s must be finite and at least 0, got nan": (([0, np.nan], [1, 1], [1, 1]), {}),
    "arrival_s must be finite and at least 0, got -1": (([-1], [1], [1]), {}),
    "request 2 arrives before": (([0, 2, 1], [1, 1, 1], [1, 1, 1]), {}),
    "input_tokens must be numbers": (([0], ["1"], [1]), {}),
    "one dimension": (([0], [[1]], [1]), {}),
    "session must be whole numbers": (([0], [1], [1]), {"session": [0.5]}),
    "'prefix': 2": (([0], [1], [1]), {"prefix": blocks([1], [2])}),
    "'client.think_s': 2": (
        ([0], [1], [1]),
        {"client": ClosedLoop(1, [0.0, 0.0]), "timed": False},
    ),
    "but it is timed": (([0], [1], [1]), {"client": ClosedLoop(1, [0.0])}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_impossible_requests_are_refused(words):
    columns, more = REFUSED[words]
    with pytest.raises(WorkloadError) as caught:
        RequestTrace(*columns, **more, name="mine")
    assert words in str(caught.value)
    assert "'mine'" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PrefixBlocks([1, 2], [0, 1], 16), "rise from 0 to the number of ids, 2"),
        (lambda: PrefixBlocks([1, 2], [1, 2], 16), "rise from 0"),
        (lambda: PrefixBlocks([1, 2], [0, 2, 1, 2], 16), "rise from 0"),
        (lambda: PrefixBlocks([1, -2], [0, 2], 16), "at least 0, got -2"),
        (lambda: PrefixBlocks([1], [0, 1], 0), "block_tokens must be at least 1"),
        (lambda: ClosedLoop(0, [1.0]), "concurrency must be at least 1"),
        (lambda: ClosedLoop(1, [-1.0]), "think_s must be finite"),
        (lambda: ClosedLoop(1, [np.inf]), "think_s must be finite"),
    ],
)
def test_impossible_parts_are_refused(make, words):
    with pytest.raises(WorkloadError, match=words):
        make()


def test_columns_are_typed_views_that_nobody_can_write():
    arrivals = np.array([0.0, 1.0])
    trace = RequestTrace(arrivals, [1, 2], np.array([1.0, 2.0]))
    assert trace.output_tokens.dtype == np.int64
    assert np.shares_memory(trace.arrival_s, arrivals)
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 5.0
    arrivals[0] = 0.5  # the caller's own array stays writeable


def test_slices_are_views_of_all_columns():
    trace = example()
    part = trace[1:3]
    assert part.input_tokens.tolist() == [20, 30]
    assert part.arrival_s.tolist() == [1.0, 1.0]
    assert part.session.tolist() == [6, 5]
    assert lists(part.prefix) == [[], [0, 2, 3]]
    assert np.shares_memory(part.input_tokens, trace.input_tokens)
    assert np.shares_memory(part.prefix.ids, trace.prefix.ids)
    assert trace[::2].input_tokens.tolist() == [10, 30]
    assert lists(trace[::3].prefix) == [[0, 1], [0]]
    for empty in (slice(2, 2), slice(3, 1), slice(9, None)):
        with pytest.raises(WorkloadError, match="no requests"):
            trace[empty]
    with pytest.raises(WorkloadError, match="arrives before"):
        trace[::-1]


def test_slices_keep_the_times_of_thinking():
    client = ClosedLoop(2, [0.0, 1.0, 2.0, 3.0])
    trace = RequestTrace(np.zeros(4), [1] * 4, [1] * 4, timed=False, client=client)
    assert trace[1:3].client.think_s.tolist() == [1.0, 2.0]
    assert trace.take([0, 3]).client.think_s.tolist() == [0.0, 3.0]
    assert trace[1:3].client.concurrency == 2


def test_rate_is_gaps_over_their_sum_and_scaling_hits_it():
    trace = example()
    assert trace.rate == 3 / 4.0
    faster = trace.scaled(3.0)
    assert faster.rate == pytest.approx(3.0, rel=1e-15)
    assert faster.arrival_s.tolist() == [0.0, 0.25, 0.25, 1.0]
    assert faster.describe()["gap_cv"] == pytest.approx(trace.describe()["gap_cv"])
    for rate in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(WorkloadError, match="above 0"):
            trace.scaled(rate)


def test_what_has_no_rate_says_so():
    with pytest.raises(WorkloadError, match="at one moment"):
        RequestTrace([1.0, 1.0], [1, 1], [1, 1]).scaled(1.0)
    with pytest.raises(WorkloadError, match="it has no arrivals"):
        RequestTrace([0.0, 0.0], [1, 1], [1, 1], timed=False).scaled(1.0)


def test_a_window_has_its_begin_and_not_its_end_and_starts_at_zero():
    trace = example()
    assert trace.window(1.0, 4.0).input_tokens.tolist() == [20, 30]
    assert trace.window(0.5, 4.5).arrival_s.tolist() == [0.5, 0.5, 3.5]
    with pytest.raises(WorkloadError, match=r"from 2 to 3 s, its arrivals are 0 to 4 s"):
        trace.window(2.0, 3.0)
    with pytest.raises(WorkloadError, match="no window"):
        example(timed=False).window(0.0, 1.0)


def test_samples_are_drawn_without_replacement_in_order():
    trace = RequestTrace(np.arange(1000.0), np.arange(1, 1001), np.ones(1000))
    first = trace.sample(100, seed=3)
    assert len(set(first.input_tokens.tolist())) == 100
    assert (np.diff(first.arrival_s) > 0).all()
    assert (first.input_tokens == first.arrival_s + 1).all()
    assert first.input_tokens.tolist() == trace.sample(100, seed=3).input_tokens.tolist()
    assert first.input_tokens.tolist() != trace.sample(100, seed=4).input_tokens.tolist()
    assert trace.sample(1000).input_tokens.tolist() == trace.input_tokens.tolist()
    for n in (0, 1001):
        with pytest.raises(WorkloadError, match="1 to 1,000 requests"):
            trace.sample(n)


def test_description_by_hand():
    found = example(name="mine", skipped=3).describe()
    assert found["requests"] == 4
    assert found["skipped_rows"] == 3
    assert found["duration_s"] == 4.0
    assert found["rate_requests_per_s"] == 0.75
    # Gaps 1, 0, 3: mean 4/3, variance 14/9.
    assert found["gap_cv"] == pytest.approx((14 / 9) ** 0.5 / (4 / 3))
    assert found["input_tokens_total"] == 100
    assert found["input_tokens_p50"] == 25.0
    assert found["output_tokens_max"] == 4
    assert found["sessions"] == 2
    # Request 2 has block 0 again, request 3 too; of six blocks two were seen.
    assert found["prefix_reuse_bound"] == pytest.approx(2 / 6)
    assert found["prefix_blocks_distinct"] == 4
    # A block has 16 tokens.
    assert found["prefix_reusable_tokens"] == 32


def test_a_description_of_lengths_has_no_rate():
    found = RequestTrace([0.0, 0.0], [1, 1], [1, 1], timed=False).describe()
    assert np.isnan(found["rate_requests_per_s"])
    assert np.isnan(found["gap_cv"])
    assert "prefix_reuse_bound" not in found


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=12),
)
def test_reusable_blocks_equal_a_cache_that_forgets_nothing(requests):
    seen = set()
    due = []
    for request in requests:
        hits = 0
        while hits < len(request) and request[hits] in seen:
            hits += 1
        due.append(hits)
        seen.update(request)
    assert reusable_blocks(blocks(*requests)).tolist() == due


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=8), st.data())
def test_taken_blocks_are_those_of_the_requests(requests, data):
    prefix = blocks(*requests)
    n = len(requests)
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=6))
    assert lists(prefix.take(np.array(rows, np.int64))) == [requests[row] for row in rows]
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert lists(prefix.between(start, stop)) == requests[start:stop]


def test_frames_there_and_back():
    trace = example()
    frame = trace.frame()
    assert list(frame) == ["arrival_s", "input_tokens", "output_tokens", "session"]
    again = load_trace(frame)
    assert again.timed
    assert again.frame().equals(frame)
    lengths = frame.drop(columns=["arrival_s", "session"])
    assert not load_trace(lengths).timed
    assert load_trace(lengths).frame().equals(lengths)


def test_frames_with_wrong_columns():
    frame = pd.DataFrame({"arival_s": [0.0], "input_tokens": [1], "output_tokens": [1]})
    with pytest.raises(ConfigError, match="Did you mean 'arrival_s'"):
        load_trace(frame)
    with pytest.raises(ConfigError, match="needs the column 'output_tokens'"):
        load_trace(frame[["input_tokens"]])
    with pytest.raises(WorkloadError, match="no requests"):
        load_trace(pd.DataFrame({"input_tokens": [], "output_tokens": []}))
