"""Gaps between tokens, queues and caches over time: equal in both engines, and those of the tokens.

Every kind of scheduler, guesses, and several engines, whose requests may move or be read again.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.sim.serving.compiled.guesses import serve_guessing
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.tally import PARTS, Tally
from opbyte.workloads.traces import RequestTrace
from tests.unit import test_serving_fleet as fleets
from tests.unit import test_serving_layered as layered
from tests.unit import test_serving_orders as orders
from tests.unit import test_serving_pools as pools
from tests.unit import test_serving_speculation as speculation
from tests.unit import test_serving_twin as twin


class Seen:
    """What engines of the plug-in did: when each request got its tokens, and what they counted."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.tokens: dict[int, list[float]] = defaultdict(list)
        self.engines: dict[Engine, None] = {}

    @property
    def tally(self) -> Tally:
        return Tally.together([engine.tally for engine in self.engines])

    @property
    def gaps(self):
        return np.concatenate([np.diff(times) for times in self.tokens.values()])


@contextmanager
def watched() -> Iterator[Seen]:
    """Note what all engines hand out meanwhile."""
    seen, inner = Seen(), Engine._end

    def end(self, step):
        seen.engines[self] = None
        for piece in step.plan.pieces:
            seen.tokens[piece.request.index] += [step.end] * piece.samples
        inner(self, step)

    Engine._end = end
    try:
        yield seen
    finally:
        Engine._end = inner


def check(seen: Seen, tally: Tally, produced) -> None:
    """Check that gaps are those between the tokens."""
    assert [len(seen.tokens[i]) for i in range(len(produced))] == list(produced)
    gaps = seen.gaps
    assert tally.gaps.sum() == len(gaps)
    assert tally.gap_sum == pytest.approx(gaps.sum(), rel=1e-9)
    assert tally.gap_max == gaps.max(initial=0.0)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        if len(gaps):
            exact = np.quantile(gaps, share, method="inverted_cdf")
            assert tally.gap_quantile(share) == pytest.approx(exact, rel=1 / PARTS, abs=1e-12)
        else:
            assert np.isnan(tally.gap_quantile(share))


def same(one: Tally, other: Tally) -> None:
    """Check that two ways through counted the same."""
    assert one.gaps.tolist() == other.gaps.tolist()
    assert one.gap_sum == pytest.approx(other.gap_sum, rel=1e-9)
    assert one.gap_max == other.gap_max
    most = max(len(one.waiting), len(other.waiting))
    waiting = [np.pad(t.waiting, (0, most - len(t.waiting))) for t in (one, other)]
    assert waiting[0] == pytest.approx(waiting[1], rel=1e-9)
    assert one.used == pytest.approx(other.used, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(twin.cases())
def test_both_engines_count_every_gap(case):
    """Also where a request lost its blocks in between, or a budget ended before it."""
    big = twin.prices(128)
    with watched() as seen:
        twin.by_plug_in(*case, priced=big)
    served = twin.by_loop(*case, priced=big)
    for tally in (seen.tally, served.tally):
        check(seen, tally, case[2])
    same(served.tally, seen.tally)
    assert served.means[1:] == pytest.approx(seen.tally.sums, rel=1e-9)
    (engine,) = seen.engines
    assert served.means == pytest.approx(engine.means, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(orders.cases())
def test_in_every_order_and_with_a_tier_below(case):
    with watched() as seen:
        orders.by_plug_in(case)
    served = orders.by_loop(case)
    check(seen, served.tally, case["outputs"])
    same(served.tally, seen.tally)


@settings(max_examples=150, deadline=None)
@given(layered.cases())
def test_with_layered_prefill(case):
    with watched() as seen:
        layered.by_plug_in(*case)
    served = layered.by_loop(*case)
    check(seen, served.tally, case[2])
    same(served.tally, seen.tally)


@settings(max_examples=150, deadline=None)
@given(speculation.cases(), st.booleans())
def test_tokens_of_one_step_have_no_gap(case, remember):
    arrival, inputs, outputs, limits, blocks, size = case
    with watched() as seen:
        speculation.by_plug_in(*case, remember=remember)
    served = serve_guessing(
        arrival, inputs, outputs, limits, speculation.PRICES, speculation.DRAFT,
        index=np.arange(len(arrival)), blocks=blocks, block_tokens=size, remember=remember,
    ).served  # fmt: skip
    check(seen, served.tally, outputs)
    same(served.tally, seen.tally)
    assert served.tally.gaps[0] == (seen.gaps == 0.0).sum()


def test_uncompiled_it_is_the_same():
    rng = np.random.default_rng(0)
    case = (
        np.cumsum(rng.exponential(0.01, 60)), rng.integers(1, 40, 60), rng.integers(1, 40, 60),
        twin.Limits(max_sequences=16, max_batched_tokens=20), 20, 8,
        {"depth": 2, "remember": True},
    )  # fmt: skip
    served, plain = twin.by_loop(*case), twin.by_loop(*case, plain=True)
    assert served.preempted.any()
    same(served.tally, plain.tally)
    assert served.tally.gap_sum == plain.tally.gap_sum


# -- several engines -----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gaps_of_a_fleet_add_up(data):
    n = data.draw(st.integers(1, 30))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    gaps = st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.05]), min_size=n, max_size=n)
    trace = RequestTrace(
        np.cumsum(data.draw(gaps)), np.array(data.draw(lengths)), np.array(data.draw(lengths))
    )
    router = data.draw(st.sampled_from(["round_robin", "least_outstanding"]))
    how = {
        "blocks": data.draw(st.integers(20, 60)), "depth": data.draw(st.integers(1, 3)),
        "replicas": data.draw(st.integers(2, 4)), "router": router,
    }  # fmt: skip
    with watched() as seen:
        readable = fleets.server(**how, compiled=False).serve(trace)
    served = fleets.server(**how).serve(trace)
    check(seen, served.tally, trace.output_tokens)
    same(served.tally, readable.tally)
    assert served.spread.steps.tolist() == readable.spread.steps.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_gap_goes_on_at_another_engine(data):
    """From prompt to answer, and where an engine fails: from the last token that was handed out."""
    times = st.integers(1, 300)
    failures = [
        {"replica": i, "at": f"{data.draw(times)} ms", "for": f"{data.draw(times)} ms"}
        for i in range(4)
        if data.draw(st.booleans())
    ]
    trace = fleets.trace(data.draw(st.integers(1, 80)), seed=data.draw(st.integers(0, 9)))
    depth = data.draw(st.integers(1, 2))
    if data.draw(st.booleans()):
        server = pools.server(rate=2e5, depth=depth, blocks=120, failures=failures)
    else:
        server = fleets.server(replicas=4, depth=depth, failures=failures, compiled=False)
    with watched() as seen:
        served = server.serve(trace)
    check(seen, served.tally, trace.output_tokens)


def test_a_cache_on_its_way_is_a_gap():
    trace = RequestTrace(np.array([0.0]), np.array([30]), np.array([3]))
    served = pools.server().serve(trace)
    first, last = served.times[1:, 0]
    assert served.tally.gap_sum == pytest.approx(last - first)
    assert served.tally.gap_max > pools.LATENCY + 8 * pools.BLOCK / pools.RATE
