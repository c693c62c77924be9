"""Serving with guesses: draws, the plug-in and its compiled twin, and what both must keep."""

from dataclasses import replace
from functools import cache

import numba
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import UncoveredError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.compiled.guess_plan import drawn_at
from opbyte.sim.serving.compiled.guesses import serve_guessing
from opbyte.sim.serving.compiled.state import SERIES
from opbyte.sim.serving.engine import serve
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.grid import GridPrices, GridTable, grid_cost
from opbyte.sim.serving.prices.step import flat_cost
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import SCHEDULERS, Continuous, Limits
from opbyte.sim.serving.server import Server
from opbyte.sim.serving.speculation import Drafter, Guesses, drawn
from opbyte.sim.serving.stamped import compiled
from opbyte.spi import check_scheduler
from opbyte.workloads.serve import Serve
from opbyte.workloads.speculation import Speculation

A100 = load_machine("a100-sxm-80gb")
LLAMA, SMALL = ob.load_model("llama-3.1-8b"), ob.load_model("llama-3.2-1b")


def prices(tokens: int = 200, sequences: int = 400, scale: float = 1.0) -> GridPrices:
    """Return made-up prices: steps in tokens, logits, attention that grows with past."""
    dense = scale * 1e-3 * (1.0 + np.ceil(np.arange(tokens + 1) / 8.0))
    head = scale * 1e-4 * np.arange(sequences + 1.0)
    axes = np.array([[0.0, 16, 64], [0, 32, 256], [0, 4, 16], [0, 64, 256]])
    new, past, decodes, context = np.meshgrid(*axes, indexing="ij")
    attention = scale * 1e-6 * (new * (past + new / 2) + decodes * context)
    return GridPrices(GridTable(dense, head, axes, np.full(4, 3.0), attention))


PRICES, DRAFT = prices(), prices(scale=0.1)


def guesses(acceptance, *, tokens=None, tree=None, seed=0) -> Guesses:
    of = Speculation(draft=None, tokens=tokens, acceptance=acceptance, tree=tree)
    return Guesses(of.widths, of.chances, seed)


@st.composite
def cases(draw):
    size = draw(st.sampled_from([1, 4, 16]))
    n = draw(st.integers(1, 25))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    inputs, outputs = draw(lengths), draw(lengths)
    depth = draw(st.integers(1, 4))
    tree = tuple(draw(st.lists(st.integers(1, 2), min_size=depth, max_size=depth)))
    chance = st.floats(0.0, 1.0)
    acceptance = tuple(draw(st.lists(chance, min_size=depth, max_size=depth)))
    ahead = guesses(acceptance, tree=tree, seed=draw(st.integers(0, 2**40)))
    whole = [i + o - 1 + ahead.most for i, o in zip(inputs, outputs, strict=True)]
    longest = max(-(-w // size) for w in whole)
    gaps = draw(st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.05]), min_size=n, max_size=n))
    most = max(i + o for i, o in zip(inputs, outputs, strict=True))
    limits = Limits(
        max_sequences=draw(st.integers(1, 12)), max_batched_tokens=draw(st.integers(1, 64)),
        reserve=draw(st.booleans()), guesses=ahead,
        context=draw(st.sampled_from([0, most])),
    )  # fmt: skip
    blocks = longest + draw(st.integers(0, draw(st.sampled_from([longest // 2, 3 * longest]))))
    return np.cumsum(gaps), np.array(inputs), np.array(outputs), limits, blocks, size


def by_plug_in(arrival, inputs, outputs, limits, blocks, size, *, remember=True, draft=DRAFT):
    requests = [
        Request(i, float(a), int(x), int(y))
        for i, (a, x, y) in enumerate(zip(arrival, inputs, outputs, strict=True))
    ]
    scheduler = SCHEDULERS.lookup("continuous")(limits, BlockPool(blocks, size, remember=remember))
    drafter = Drafter(draft, limits.guesses) if draft and limits.guesses else None
    series = serve(requests, scheduler, PRICES, drafter=drafter)
    times = np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T
    return times, np.array([r.preempted for r in requests]), series, scheduler, drafter


# -- draws ---------------------------------------------------------------------------------


def test_draws_are_uniform_and_depend_on_their_arguments_alone():
    values = np.array([[drawn(3, r, p) for p in range(100)] for r in range(100)])
    assert 0.0 <= values.min() < values.max() < 1.0
    assert values.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / values.size))
    assert np.histogram(values, 10, (0, 1))[0] == pytest.approx(1000, abs=150)
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.04
    assert drawn(3, 7, 9) == values[7, 9] != drawn(4, 7, 9)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31), st.integers(0, 2**31))
def test_draws_of_the_compiled_loop_are_the_same(seed, request, position):
    assert _draw()(np.uint64(seed), request, position) == drawn(seed, request, position)


@cache
def _draw():
    return numba.njit(drawn_at)


@pytest.mark.parametrize(
    ("acceptance", "tokens", "tree"),
    [(0.8, 4, None), ((0.9, 0.6, 0.3), None, None), (0.5, None, (3, 2, 1)),
     (((0.6, 0.2, 0.1), 0.5), None, (3, 1))],
)  # fmt: skip
def test_tokens_of_a_step_are_the_closed_form_on_average(acceptance, tokens, tree):
    """Steps follow each other as in an answer: each begins where the last one ended."""
    ahead = guesses(acceptance, tokens=tokens, tree=tree, seed=1)
    depth, found = len(ahead.widths), []
    for request in range(40):
        position = 0
        while position < 500:
            found.append(1 + ahead.accepted(request, position, depth))
            position += found[-1]
    expected = Speculation(draft=None, tokens=tokens, acceptance=acceptance, tree=tree)
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected.tokens_per_step, abs=3 * error)


# -- the engine ----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(cases(), st.booleans(), st.booleans())
def test_both_ways_give_every_request_the_same_times(case, remember, drafts):
    arrival, inputs, outputs, limits, blocks, size = case
    draft = DRAFT if drafts else None
    times, preempted, series, scheduler, drafter = by_plug_in(*case, remember=remember, draft=draft)
    guessed = serve_guessing(
        arrival, inputs, outputs, limits, PRICES, draft, index=np.arange(len(arrival)),
        blocks=blocks, block_tokens=size, remember=remember,
    )  # fmt: skip
    served = guessed.served
    assert served.times == pytest.approx(times, rel=1e-12, abs=0.0)
    assert served.preempted.tolist() == preempted.tolist()
    for name, column in zip(SERIES, served.series, strict=True):
        assert column.tolist() == pytest.approx(getattr(series, name), rel=1e-12), name
    if drafter:
        assert guessed.draft_busy == pytest.approx(drafter.busy, rel=1e-12)
    # All blocks are back, and every token was computed once at least; no step was too large.
    assert scheduler.pool.free == blocks == served.series[4, -1]
    assert not scheduler.waiting
    assert not scheduler.running
    assert sum(series.tokens) >= (inputs + outputs - 1).sum()
    assert max(series.tokens) <= limits.max_batched_tokens
    if not preempted.any():
        assert guessed.tokens == (outputs - 1).sum()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_guesses_that_all_fail_cost_time_and_no_token(case):
    """Nobody decodes faster than without guesses, and all get as many tokens."""
    *rest, limits, _, size = case
    fails = (0.0,) * len(limits.guesses.widths)
    never = replace(limits, guesses=replace(limits.guesses, chances=fails))
    rest = [np.zeros(len(rest[0])), *rest[1:]]
    room = 10**4
    times, *_ = by_plug_in(*rest, never, room, size)
    plain, *_ = by_plug_in(*rest, replace(limits, guesses=None), room, size, draft=None)
    assert (times[2] >= plain[2] * (1 - 1e-12)).all()


def test_all_guesses_that_hold_give_one_token_more_than_guesses():
    for chance, steps in ((1.0, 4), (0.0, 20)):
        limits = Limits(max_batched_tokens=64, max_sequences=8, guesses=guesses(chance, tokens=4))
        _, _, series, *_ = by_plug_in([0.0], [10], [21], limits, 20, 4)
        assert len(series.end_s) == 1 + steps
        assert series.tokens[1:] == [5] * steps


def test_what_a_lone_request_takes_is_its_passes():
    """Three guesses, all hold: the draft's last one is read in its next first pass."""
    limits = Limits(max_batched_tokens=64, max_sequences=8, guesses=guesses(1.0, tokens=3))
    times, *_ = by_plug_in([0.0], [10], [9], limits, 20, 4)

    def cost(of, new, past, decodes=0, context=0, logits=0):
        sizes = np.array([float(new)]), np.array([float(past)]), int(new > 0)
        return grid_cost(of.table, Batch(*sizes, decodes, context, logits), np.zeros(1))[0]

    prompt = cost(PRICES, 10, 0) + cost(DRAFT, 10, 0)
    assert times[1, 0] == pytest.approx(prompt, rel=1e-12)
    one = cost(PRICES, 4, 10, logits=3) + sum(cost(DRAFT, 0, 0, 1, c) for c in (11, 12, 13))
    two = cost(PRICES, 4, 14, logits=3)
    two += cost(DRAFT, 2, 13) + sum(cost(DRAFT, 0, 0, 1, c) for c in (16, 17))
    assert times[2, 0] == pytest.approx(prompt + one + two, rel=1e-12)


def test_a_budget_that_is_too_small_cuts_the_deepest_guesses():
    limits = Limits(max_batched_tokens=4, max_sequences=8, guesses=guesses(1.0, tree=(2, 2)))
    _, _, series, *_ = by_plug_in([0.0], [4], [9], limits, 20, 4)
    # One token and the two guesses of the first depth; six do not fit.
    assert series.tokens[1:] == [3] * 4


def test_draws_do_not_depend_on_what_else_runs():
    """Alone and in a crowd a request gets its tokens in as many steps."""
    limits = Limits(max_batched_tokens=128, max_sequences=16, guesses=guesses(0.7, tokens=3))
    alone = [
        serve_guessing(
            np.zeros(1), np.array([8]), np.array([30]), limits, PRICES, index=np.array([i]),
            blocks=900, block_tokens=4,
        ).decodes
        for i in range(12)
    ]  # fmt: skip
    crowd = serve_guessing(
        np.linspace(0, 0.1, 12), np.full(12, 8), np.full(12, 30), limits, PRICES,
        index=np.arange(12), blocks=900, block_tokens=4,
    )  # fmt: skip
    assert len(set(alone)) > 1
    assert crowd.decodes == sum(alone)


# -- a machine -----------------------------------------------------------------------------


def trace(n=60, gap=0.05):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(gap, n)),
            "input_tokens": rng.integers(20, 1000, n),
            "output_tokens": rng.integers(1, 150, n),
        }
    )


def speculate(acceptance=0.8, tokens=4, draft=SMALL, **more):
    return {"draft": draft, "tokens": tokens, "acceptance": acceptance, **more}


def test_the_server_takes_either_way():
    work = Serve(LLAMA, trace(), scheduler={"kv_blocks": 250}, speculate=speculate())
    server = Server.of(A100, work, A100.mapping(), seed=5)
    loop = server.serve(work.trace)
    other = replace(server, compiled=False).serve(work.trace)
    assert loop.preempted.sum() > 0
    assert loop.times == pytest.approx(other.times, rel=1e-12)
    assert loop.joules == pytest.approx(other.joules, rel=1e-9)
    assert loop.means == pytest.approx(other.means, rel=1e-9)
    assert loop.tokens_per_decode == pytest.approx(other.tokens_per_decode, rel=1e-12)
    assert list(loop.busy) == list(other.busy)
    assert list(loop.busy.values()) == pytest.approx(list(other.busy.values()), rel=1e-9)
    again = Server.of(A100, work, A100.mapping(), seed=6).serve(work.trace)
    assert again.tokens_per_decode != loop.tokens_per_decode


def test_a_verification_costs_what_it_costs_alone():
    """The table's step is the direct price of `speculative_decode`'s last phase, piece by piece."""
    most = StepPrices.build(A100, LLAMA, max_tokens=512, max_sequences=512)
    for batch, context, tokens in ((1, 700, 4), (16, 1500, 3), (64, 300, 7)):
        work = ob.SpeculativeDecode(LLAMA, batch, context, speculate(0.5, tokens, "none"))
        direct = ob.simulate(A100, work).seconds
        new, past = np.full(batch, tokens + 1.0), np.full(batch, context - 1.0)
        busy = np.zeros(len(most.resources))
        verified = Batch(new, past, batch, 0.0, 0.0, float(batch * tokens))
        seconds, _ = compiled(flat_cost)(most.table, busy, *verified)
        assert seconds == pytest.approx(direct, rel=1e-9)


def test_guessing_pays_where_few_run_and_loses_where_many_do():
    def tpot(gap, guess):
        return ob.simulate(A100, Serve(LLAMA, trace(150, gap), speculate=guess)).tpot_mean

    assert tpot(2.0, speculate(0.8)) < 0.75 * tpot(2.0, None)
    assert tpot(1e-4, speculate(0.4)) > 1.1 * tpot(1e-4, None)


def test_the_cache_takes_what_both_models_leave():
    plain, free, both = (
        Server.of(A100, Serve(LLAMA, trace(3), speculate=guess), A100.mapping())
        for guess in (None, speculate(draft="none"), speculate())
    )
    each = 16 * (LLAMA.kv_bytes_per_token + SMALL.kv_bytes_per_token)
    left = 0.9 * 80 * 2**30 - 2 * (LLAMA.parameters + SMALL.parameters)
    assert 0.97 * left / each < both.blocks <= left / each
    assert both.blocks < free.blocks <= plain.blocks


def test_a_batch_that_runs_to_its_end_guesses_too():
    result = ob.simulate(
        A100, Serve(LLAMA, trace(20), scheduler="static", speculate=speculate(1.0))
    )
    assert result.requests["status"].eq("served").all()
    assert result.preempted == 0
    assert result.tokens_per_decode > 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler": {"depth": 2}}, "depth 2"),
        ({"fleet": {"replicas": 2}}, "several engines"),
        ({"speculate": speculate(1.2)}, "acceptance"),
        ({"speculate": speculate((0.9, 0.8))}, "2 depths for 4 tokens"),
        ({"speculate": {**speculate(), "drafft": 1}}, "draft"),
        ({"speculate": {"draft": "none", "acceptance": 0.5}}, "give tokens"),
        ({"speculate": 5}, "speculate must be a mapping"),
        ({"speculate": speculate(draft=7)}, "name a model"),
        ({"speculate": speculate(draft="llama-3.2-1bb")}, "llama-3.2-1b"),
        ({"speculate": speculate(draft="nemotron-h-8b")}, "recurrent"),
        ({"speculate": speculate(draft="t5-small")}, "encoder"),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(ob.OpbyteError, match=says):
        ob.simulate(A100, Serve(LLAMA, trace(3), **{"speculate": speculate(), **changes}))


def test_schedulers_that_do_not_say_that_they_guess_are_refused():
    class Silent(Continuous):
        pass

    class Saying(Continuous):
        speculates = True

    limits = Limits(guesses=guesses(0.5, tokens=2))
    with pytest.raises(UncoveredError, match="Silent plans without guesses"):
        Silent(limits, BlockPool(40, 4))
    assert Silent(Limits(), BlockPool(40, 4)).limits.ahead == 0
    assert Saying(limits, BlockPool(40, 4)).limits.ahead == 2
    check_scheduler(Saying)


def test_answers_give_the_closed_form_on_average():
    """The last step of an answer drops what is beyond its end: long answers hide that."""
    answers, tokens, chance, k = 60, 1200, 0.75, 3
    limits = Limits(max_batched_tokens=128, max_sequences=16, guesses=guesses(chance, tokens=k))
    found = serve_guessing(
        np.zeros(answers), np.full(answers, 8), np.full(answers, tokens), limits, PRICES,
        index=np.arange(answers), blocks=10**5, block_tokens=16,
    )  # fmt: skip
    assert found.tokens == answers * (tokens - 1)
    expected = (1 - chance ** (k + 1)) / (1 - chance)
    # Variance of the tokens of a step, 1 + min(geometric, k), and at most k tokens lost at an end.
    values = np.arange(1, k + 2)
    odds = np.array([chance**i * (1 - chance) for i in range(k)] + [chance**k])
    sigma = np.sqrt((odds * values**2).sum() - expected**2) / np.sqrt(found.decodes)
    lost = k * answers / found.decodes
    mean = found.tokens / found.decodes
    assert expected - 3 * sigma - lost <= mean <= expected + 3 * sigma


def test_prices_that_end_before_the_logits_are_refused():
    limits = Limits(max_batched_tokens=64, max_sequences=16, guesses=guesses(0.5, tokens=3))
    for priced, draft, says in (
        (prices(64, 60), None, "64 sequences"),
        (prices(64, 64), prices(70, 64), "80 tokens"),
    ):
        scheduler = SCHEDULERS.lookup("continuous")(limits, BlockPool(40, 4))
        drafter = Drafter(draft, limits.guesses) if draft else None
        with pytest.raises(UncoveredError, match=says):
            serve([], scheduler, priced, drafter=drafter)
        with pytest.raises(UncoveredError, match=says):
            serve_guessing(
                *np.ones((3, 1), int), limits, priced, draft, index=np.zeros(1, int), blocks=40,
                block_tokens=4,
            )  # fmt: skip
