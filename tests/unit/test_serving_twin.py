"""The compiled loop and the plug-in in SimPy: equal times, and what both must keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.errors import UncoveredError
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.compiled.loop import serve_compiled
from opbyte.sim.serving.compiled.state import SERIES
from opbyte.sim.serving.engine import serve
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.grid import GridPrices, GridTable, grid_cost
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import SCHEDULERS, Limits


def prices(tokens: int = 64, sequences: int = 16, scale: float = 1.0) -> GridPrices:
    """Return made-up prices: steps in tokens, attention that grows with past and context."""
    dense = scale * 1e-3 * (1.0 + np.ceil(np.arange(tokens + 1) / 8.0))
    head = scale * 1e-4 * np.arange(sequences + 1.0)
    axes = np.array([[0.0, 16, 64], [0, 32, 256], [0, 4, 16], [0, 64, 256]])
    new, past, decodes, context = np.meshgrid(*axes, indexing="ij")
    attention = scale * 1e-6 * (new * (past + new / 2) + decodes * context)
    return GridPrices(GridTable(dense, head, axes, np.full(4, 3.0), attention))


PRICES = prices()
SMALL = Limits(max_batched_tokens=64, max_sequences=16)


@st.composite
def cases(draw):
    size = draw(st.sampled_from([1, 4, 16]))
    n = draw(st.integers(1, 25))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    inputs, outputs = draw(lengths), draw(lengths)
    longest = max(-(-(i + o - 1) // size) for i, o in zip(inputs, outputs, strict=True))
    gaps = draw(st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.05]), min_size=n, max_size=n))
    chunk = draw(st.booleans())
    whole = max(i + o - 1 for i, o in zip(inputs, outputs, strict=True))
    tokens = draw(st.integers(1 if chunk else whole, 64 if chunk else 100))
    limits = Limits(
        max_sequences=draw(st.integers(1, 16)), max_batched_tokens=tokens, chunk=chunk,
        reserve=draw(st.booleans()), together=draw(st.booleans()),
    )  # fmt: skip
    blocks = longest + draw(st.integers(0, draw(st.sampled_from([longest // 2, 3 * longest]))))
    setting = {"depth": draw(st.integers(1, 4)), "remember": draw(st.booleans())}
    return np.cumsum(gaps), np.array(inputs), np.array(outputs), limits, blocks, size, setting


def by_plug_in(arrival, inputs, outputs, limits, blocks, size, setting, priced=PRICES):
    requests = [
        Request(i, float(a), int(x), int(y))
        for i, (a, x, y) in enumerate(zip(arrival, inputs, outputs, strict=True))
    ]
    growth = setting.get("growth", ())
    pool = BlockPool(blocks, size, remember=setting["remember"], growth=growth)
    scheduler = SCHEDULERS.lookup("continuous")(limits, pool)
    series = serve(requests, scheduler, priced, depth=setting["depth"])
    times = np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T
    return times, np.array([r.preempted for r in requests]), series, scheduler


def by_loop(arrival, inputs, outputs, limits, blocks, size, setting, *, priced=PRICES, plain=False):
    return serve_compiled(
        arrival, inputs, outputs, limits, priced, blocks=blocks, block_tokens=size, plain=plain,
        **setting,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_give_every_request_the_same_times(case):
    big = prices(128)
    times, preempted, series, scheduler = by_plug_in(*case, priced=big)
    served = by_loop(*case, priced=big)
    assert served.times == pytest.approx(times, rel=1e-12, abs=0.0)
    assert served.preempted.tolist() == preempted.tolist()
    for name, column in zip(SERIES, served.series, strict=True):
        assert column.tolist() == pytest.approx(getattr(series, name), rel=1e-12), name
    # All blocks are back, nobody waits or runs, every token of every answer was computed once at
    # least, and every prompt: what was lost was computed again.
    _arrival, inputs, outputs, _limits, blocks, *_ = case
    assert scheduler.pool.free == blocks
    assert not scheduler.waiting
    assert not scheduler.running
    assert served.series[4, -1] == blocks
    due = int((inputs + outputs - 1).sum())
    assert served.tokens == sum(series.tokens) >= due
    if not preempted.any():
        assert served.tokens == due


@settings(max_examples=100, deadline=None)
@given(
    cases(),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 40)), min_size=1, max_size=3),
    st.integers(0, 6),
)
def test_layers_that_forget_need_the_same_blocks_both_ways(case, growth, more):
    big = prices(128)
    arrival, inputs, outputs, limits, _, size, setting = case
    setting = setting | {"remember": False, "growth": growth}
    whole = BlockPool(0, size, remember=False, growth=growth).needed(int((inputs + outputs).max()))
    case = arrival, inputs, outputs, limits, whole + more, size, setting
    times, preempted, series, scheduler = by_plug_in(*case, priced=big)
    served = by_loop(*case, priced=big)
    assert served.times == pytest.approx(times, rel=1e-12, abs=0.0)
    assert served.preempted.tolist() == preempted.tolist()
    assert served.series[4].tolist() == series.free
    assert scheduler.pool.free == whole + more


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_arrivals_at_the_very_end_of_a_step(case, data):
    """Ends of steps are no sums of delays: what arrives then is there before the next plan."""
    big = prices(128)
    arrival, *rest = case
    ends = by_loop(*case, priced=big).series[0]
    moved = np.sort(data.draw(st.lists(
        st.sampled_from(ends.tolist()), min_size=len(arrival), max_size=len(arrival)
    )))  # fmt: skip
    times, *_ = by_plug_in(moved, *rest, priced=big)
    assert by_loop(moved, *rest, priced=big).times.tolist() == times.tolist()
    assert (times[0] >= moved).all()


def test_steps_beyond_the_prices_are_refused():
    wide = Limits(max_batched_tokens=65, max_sequences=16)
    with pytest.raises(UncoveredError, match="65 tokens"):
        serve_compiled(*np.ones((3, 1), int), wide, PRICES, blocks=4, block_tokens=4)
    many = Limits(max_batched_tokens=64, max_sequences=17)
    scheduler = SCHEDULERS.lookup("continuous")(many, BlockPool(4, 4))
    with pytest.raises(UncoveredError, match="17 sequences"):
        serve([], scheduler, PRICES)


def test_nothing_waits_for_a_step_that_is_too_small():
    """Without chunks who loses his blocks computes prompt and answer at once."""
    pool = BlockPool(17, 16, remember=False)
    limits = Limits(max_batched_tokens=128, max_sequences=4, chunk=False)
    scheduler = SCHEDULERS.lookup("continuous")(limits, pool)
    assert "159 tokens exceed a step's 128" in scheduler.refusal(Request(0, 0.0, 100, 60))
    assert not scheduler.refusal(Request(0, 0.0, 100, 29))


def test_a_series_that_is_full_keeps_every_second_row():
    args = ([0.0], [4], [100], SMALL, 20, 8, {"depth": 1, "remember": False})
    arrays = [np.array(a) for a in args[:3]]
    whole = serve_compiled(*arrays, SMALL, PRICES, blocks=20, block_tokens=8)
    few = serve_compiled(*arrays, SMALL, PRICES, blocks=20, block_tokens=8, rows=10)
    assert whole.steps == few.steps == 100
    assert few.series.shape[1] <= 10
    assert few.series.tolist() == whole.series[:, ::16].tolist()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_loop_is_its_own_twin_without_the_compiler(case):
    big = prices(128)
    served, plain = by_loop(*case, priced=big), by_loop(*case, priced=big, plain=True)
    assert served.times.tolist() == plain.times.tolist()
    assert served.busy.tolist() == plain.busy.tolist()


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0.1, 1.0))
def test_faster_steps_of_the_same_plan_end_no_later(case, scale):
    """All requests are there at once, so that the plan does not depend on time."""
    _, inputs, outputs, limits, blocks, size, setting = case
    arrival = np.zeros(len(inputs))
    args = (arrival, inputs, outputs, limits, blocks, size, setting)
    slow, fast = by_loop(*args, priced=prices(128)), by_loop(*args, priced=prices(128, scale=scale))
    assert slow.steps == fast.steps
    assert (fast.times <= slow.times * (1 + 1e-12)).all()


def test_runs_repeat_bit_for_bit():
    rng = np.random.default_rng(0)
    args = (
        np.cumsum(rng.exponential(0.01, 200)), rng.integers(1, 60, 200), rng.integers(1, 60, 200),
        Limits(max_sequences=16, max_batched_tokens=64), 40, 8, {"depth": 2, "remember": True},
    )  # fmt: skip
    first, again = by_loop(*args), by_loop(*args)
    assert first.preempted.any()
    assert first.times.tobytes() == again.times.tobytes()
    assert first.series.tobytes() == again.series.tobytes()


# -- worked out by hand --------------------------------------------------------------------


def test_one_request_alone():
    """20 tokens of a prompt in steps of 8, then one token in each step."""
    limits = Limits(max_batched_tokens=8, max_sequences=4)
    times, *_ = by_plug_in([1.0], [20], [3], limits, 10, 4, {"depth": 1, "remember": False})
    new, past = np.zeros(4), np.zeros(4)

    def step(pieces, decodes, context):
        batch = Batch(new, past, pieces, float(decodes), float(context))
        return grid_cost(PRICES.table, batch, np.zeros(1))[0]

    end = 1.0
    for tokens, before in ((8, 0), (8, 8), (4, 16)):
        new[0], past[0] = tokens, before
        end += step(1, 0, 0)
    assert times[0, 0] == 1.0
    assert times[1, 0] == pytest.approx(end)
    for context in (21, 22):
        end += step(0, 1, context)
    assert times[2, 0] == pytest.approx(end)


def test_who_came_last_loses_its_blocks_and_is_tried_first():
    """Two prompts of 4 in 4 blocks of 2: the third block of the first one takes the second's."""
    limits = Limits(max_batched_tokens=64, max_sequences=4, reserve=True)
    case = ([0.0, 0.0, 0.0], [4, 4, 1], [4, 2, 1], limits, 4, 2, {"depth": 1, "remember": False})
    times, preempted, series, _ = by_plug_in(*case)
    assert preempted.tolist() == [0, 1, 0]
    assert times[0, 1] == 0.0
    assert series.preempted[1] == 1
    # The second is back before the third, which has waited longer.
    assert times[1, 1] < times[0, 2] or times[0, 1] < times[0, 2]


def test_what_was_computed_is_found_again_unless_its_blocks_were_needed():
    limits = Limits(max_batched_tokens=64, max_sequences=4)
    case = ([0.0, 0.0], [16, 16], [12, 12], limits, 11, 4)
    kept, *_ = by_plug_in(*case, {"depth": 1, "remember": True})
    lost, *_ = by_plug_in(*case, {"depth": 1, "remember": False})
    assert kept[2, 1] < lost[2, 1]


def test_a_batch_runs_to_its_end_before_the_next_one_starts():
    limits = Limits(max_batched_tokens=64, max_sequences=2, together=True)
    case = ([0.0, 0.0, 0.0], [4, 4, 4], [3, 9, 2], limits, 20, 4)
    times, preempted, *_ = by_plug_in(*case, {"depth": 1, "remember": False})
    assert not preempted.any()
    assert times[0].tolist() == pytest.approx([0.0, 0.0, times[2, 1]])
    assert times[2, 0] < times[2, 1]


def test_a_second_step_is_planned_before_the_first_one_ends():
    """With two steps ahead, what arrives during the first waits for the second to end."""
    limits = Limits(max_batched_tokens=16, max_sequences=4)
    case = ([0.0, 1e-4], [16, 4], [4, 1], limits, 20, 4)
    one, *_ = by_plug_in(*case, {"depth": 1, "remember": False})
    two, *_ = by_plug_in(*case, {"depth": 2, "remember": False})
    assert one[0, 1] == pytest.approx(one[1, 0])
    assert two[0, 1] == pytest.approx(two[1, 0])
    assert two[1, 1] > one[1, 1]


def test_what_never_fits_is_refused_with_a_reason():
    pool = BlockPool(4, 4)
    scheduler = SCHEDULERS.lookup("continuous")(Limits(max_batched_tokens=8, max_sequences=8), pool)
    requests = [Request(0, 0.0, 10, 7), Request(1, 0.0, 10, 8), Request(2, 0.5, 3, 2)]
    serve(requests, scheduler, PRICES)
    assert [bool(r.reason) for r in requests] == [False, True, False]
    assert "5 KV blocks of 4" in requests[1].reason
    assert requests[1].last_token_s < 0
    whole = SCHEDULERS.lookup("continuous")(Limits(max_batched_tokens=8, chunk=False), pool)
    assert "without chunks" in whole.refusal(Request(0, 0.0, 9, 1))
    assert not whole.refusal(Request(0, 0.0, 8, 1))
