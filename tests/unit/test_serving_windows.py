"""Windows and chunks in serving: every decode attends to what its own context lets through."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.errors import WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.phases import total
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.compiled.fleet import route_compiled
from opbyte.sim.serving.compiled.guesses import serve_guessing
from opbyte.sim.serving.compiled.loop import serve_compiled
from opbyte.sim.serving.engine import serve
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.layers import LayerPrices
from opbyte.sim.serving.prices.layout import ATTENDED, attend, pairs_of
from opbyte.sim.serving.prices.step import flat_cost
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import SCHEDULERS, Limits
from opbyte.sim.serving.speculation import Drafter, Guesses
from opbyte.sim.serving.stamped import compiled
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.serve import Grouping
from opbyte.workloads.spans import Segment

#: Kernel calls with windows, with aligned chunks; slopes; operators of each segment.
CASES = (
    ("h200-sxm-141gb", "gemma-3-27b", "default"),
    ("h100-sxm-80gb", "gpt-oss-20b", "default"),
    ("dgx-h100", "llama-4-scout", "default"),
    ("sn40l-node", "gemma-2-9b", "default"),
    ("sn40l-node", "gemma-2-9b", "unfused"),
)
LLAMA = ("h100-sxm-80gb", "llama-3.1-8b", "default")


@cache
def setting(machine, model, mapping):
    loaded = load_machine(machine)
    return loaded, load_model(model), resolve_mapping(loaded, loaded.mapping(mapping), "mixed")


@cache
def prices(machine, model, mapping):
    return StepPrices.build(*setting(machine, model, mapping), max_tokens=1024, max_sequences=300)


def gemma(window: int, layers: int = 6, **changed):
    """Return a small model whose layers but every sixth one have a window."""
    config = {
        "model_type": "gemma3_text", "torch_dtype": "bfloat16", "hidden_size": 512,
        "intermediate_size": 1024, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1024, "sliding_window": window,
        "sliding_window_pattern": 6, "max_position_embeddings": 4096, **changed,
    }  # fmt: skip
    return load_model({"kind": "model", "name": "gemma-small", "config": config})


@cache
def small(window: int = 16, layers: int = 6) -> StepPrices:
    model = gemma(window, layers)
    return StepPrices.build("a100-sxm-80gb", model, max_tokens=256, max_sequences=96)


# -- one step ----------------------------------------------------------------------------------


def test_a_few_long_sequences_do_not_fill_the_windows_of_all():
    """240 decodes at 100 beside 16 at 16,000: the KV of a step is the sum of its sequences'."""
    of = prices(*CASES[0])
    contexts = [100.0] * 240 + [16_000.0] * 16
    each, mean = of.cost([], 256, contexts), of.cost([], 256, sum(contexts))
    short, long = (of.cost([], 256, 256 * c).busy["gpu.hbm.phy"] for c in (100, 16_000))
    assert each.busy["gpu.hbm.phy"] == pytest.approx((240 * short + 16 * long) / 256, rel=1e-9)
    assert each.busy["gpu.hbm.phy"] == pytest.approx(26.07e-3, rel=1e-3)
    assert mean.busy["gpu.hbm.phy"] == pytest.approx(49.95e-3, rel=1e-3)
    assert each.seconds < 0.62 * mean.seconds


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_of_drawn_contexts_costs_its_direct_price(case):
    of, (machine, model, mapping) = prices(*case), setting(*case)
    rng = np.random.default_rng(8)
    top = min(model.max_context, 32_768)
    for pieces in (0, 1, 2):
        for _ in range(6):
            counts = rng.integers(1, 80, 3)
            lengths = np.floor(np.exp(rng.uniform(0.0, np.log(top), 3)))
            chunks = [
                (int(rng.integers(1, 300)), int(rng.integers(0, 7000))) for _ in range(pieces)
            ]
            cost = of.cost(chunks, counts.sum(), np.repeat(lengths, counts))
            contexts = tuple(zip(counts, lengths, strict=True))
            run = evaluate(machine, Mixed(model, tuple(chunks), contexts=contexts), mapping).phases[
                0
            ]
            assert cost.seconds == pytest.approx(run.step.seconds[0], rel=1e-9)
            assert cost.busy == pytest.approx({k: v[0] for k, v in run.step.busy.items()}, rel=1e-8)
            joules = mapping.degrees.devices * total(run.demand, run.demand.joules)[0]
            assert cost.joules == pytest.approx(joules, rel=1e-9)


def test_without_masks_a_sum_says_as_much_as_each_context():
    of = prices(*LLAMA)
    assert of.table.masks.shape == (0, 3)
    contexts = [100.0] * 240 + [16_000.0] * 16
    assert of.cost([(64, 7)], 256, contexts) == of.cost([(64, 7)], 256, sum(contexts))


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_equal_contexts_cost_what_their_mean_does(case):
    of = prices(*case)
    for context in (1.0, 700.0, 9000.0):
        each, mean = of.cost([(9, 3)], 40, [context] * 40), of.cost([(9, 3)], 40, 40 * context)
        assert each.seconds == pytest.approx(mean.seconds, rel=1e-12)


def test_nothing_is_left_of_what_a_step_was_told():
    of = small()
    mean = of.cost([], 2, 1001.0)
    each = of.cost([], 2, [1.0, 1000.0])
    assert each.seconds < mean.seconds
    assert of.cost([], 2, 1001.0) == mean
    # Nor of one that was refused.
    with pytest.raises(ValueError, match="more tokens"):
        of.cost([(500, 0)], 2, [1.0, 1000.0])
    assert of.cost([], 2, 1001.0) == mean
    none = np.zeros(0)
    of.cost([], 2, [1.0, 1000.0])
    seconds, _ = compiled(flat_cost)(of.table, np.zeros(2), *Batch(none, none, 0, 2.0, 1001.0))
    assert seconds == mean.seconds
    assert not of.table.masks[:, ATTENDED].any()


def test_as_many_contexts_as_decodes():
    with pytest.raises(ValueError, match="3 sequences decode, and 2 have a context"):
        small().cost([], 3, [4.0, 5.0])


def test_groups_of_layers_know_what_decodes_attend_to():
    """One group is a step of all layers; of two, each reads no more than its windows hold."""
    of = LayerPrices.of(small(), (1, 2))
    contexts = [3.0, 900.0, 40.0]
    assert of.cost(0, 1, [(20, 5)], 3, contexts).busy == pytest.approx(
        small().cost([(20, 5)], 3, contexts).busy
    )
    for group in range(2):
        each, mean = (of.cost(group, 2, [(20, 5)], 3, c) for c in (contexts, 943.0))
        assert each.busy["gpu.hbm.phy"] < mean.busy["gpu.hbm.phy"]
    assert not of.table.step.masks[:, ATTENDED].any()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 300), st.integers(0, 300))
def test_one_decode_attends_to_the_closed_form(context, window, chunk):
    masks = np.array([[window, chunk, 0.0]])
    attend(masks, float(context))
    assert masks[0, ATTENDED] == pairs_of(1.0, context - 1.0, float(window), float(chunk))
    assert masks[0, ATTENDED] == Segment("decode", 1.0, 1.0, context - 1.0).pairs(window, chunk)


# -- the work ----------------------------------------------------------------------------------


def test_contexts_are_decodes_and_their_mean():
    work = Mixed(gemma(16), ((5, 0),), contexts=((3, 10), (1, 50)))
    assert (work.decodes, work.context, work.tokens) == (4.0, 20.0, 9.0)
    (phase,) = work.lower(Parallel())
    flat = Mixed(gemma(1000), ((5, 0),), 4, 20).lower(Parallel())[0].table
    mixed = Mixed(gemma(1000), ((5, 0),), contexts=((3, 10), (1, 50))).lower(Parallel())[0].table
    # Where the window holds all, only the mean counts.
    np.testing.assert_allclose(mixed["kv_read"], flat["kv_read"], rtol=1e-12)
    name = phase.table.names.index("score.decode1")
    seen = (3 * 10 + 16) * 4 * 64 * 2
    assert phase.table["kv_read"][name] == pytest.approx(seen)
    assert (
        work.footprint(Parallel())["kv"]
        < Mixed(gemma(16), ((5, 0),), 4, 20).footprint(Parallel())["kv"]
    )


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"contexts": (5,)}, r"contexts\[0\] must be \(sequences, context\), got 5"),
        ({"contexts": ((0, 5),)}, r"contexts\[0\].sequences must be at least 1"),
        ({"contexts": ((2, 0),)}, r"contexts\[0\].context must be at least 1"),
        ({"contexts": ((2, 5000),)}, r"contexts\[0\] = 5000 tokens"),
        ({"contexts": ((2, 5),), "decodes": 3}, "contexts are of 2.0 sequences, but decodes = 3.0"),
    ],
)
def test_contexts_that_make_no_sense_are_named(fields, says):
    with pytest.raises(WorkloadError, match=says):
        Mixed(gemma(16), **fields)


# -- engines -----------------------------------------------------------------------------------


@st.composite
def cases(draw):
    size = draw(st.sampled_from([1, 4, 16]))
    n = draw(st.integers(1, 20))
    lengths = st.lists(st.integers(1, 60), min_size=n, max_size=n)
    inputs, outputs = draw(lengths), draw(lengths)
    longest = max(-(-(i + o + 6) // size) for i, o in zip(inputs, outputs, strict=True))
    gaps = draw(st.lists(st.sampled_from([0.0, 1e-4, 0.003]), min_size=n, max_size=n))
    blocks = longest + draw(st.integers(0, 3 * longest))
    limits = Limits(max_sequences=draw(st.integers(1, 16)), max_batched_tokens=64)
    return np.cumsum(gaps), np.array(inputs), np.array(outputs), limits, blocks, size


def by_plug_in(case, of, kind="continuous", depth=1, drafter=None):
    arrival, inputs, outputs, limits, blocks, size = case
    requests = [
        Request(i, float(a), int(x), int(y))
        for i, (a, x, y) in enumerate(zip(arrival, inputs, outputs, strict=True))
    ]
    scheduler = SCHEDULERS.lookup(kind)(limits, BlockPool(blocks, size))
    serve(requests, scheduler, of, depth=depth, drafter=drafter)
    return np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(1, 3))
def test_the_loop_and_the_plug_in_are_equal(case, depth):
    *arrays, limits, blocks, size = case
    loop = serve_compiled(*arrays, limits, small(), blocks=blocks, block_tokens=size, depth=depth)
    np.testing.assert_allclose(loop.times, by_plug_in(case, small(), depth=depth), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_they_are_equal_with_groups_of_layers(case):
    arrival, inputs, outputs, limits, blocks, size = case
    limits = replace(limits, layered=True, grouping=Grouping(tokens=(4, 16), groups=(1, 2, 5)))
    of = LayerPrices.of(small(), range(1, 7))
    loop = serve_compiled(arrival, inputs, outputs, limits, of, blocks=blocks, block_tokens=size)
    case = (arrival, inputs, outputs, limits, blocks, size)
    np.testing.assert_allclose(loop.times, by_plug_in(case, of, "layered"), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0.0, 1.0), st.sampled_from([(1, 1, 1), (2, 1), (1,)]), st.booleans())
def test_they_are_equal_with_guesses_and_a_draft(case, acceptance, widths, drafted):
    arrival, inputs, outputs, limits, blocks, size = case
    guesses = Guesses(widths, (acceptance,) * len(widths), 3)
    limits = replace(limits, guesses=guesses)
    # The draft has a window of its own.
    draft = small(5, 7) if drafted else None
    loop = serve_guessing(
        arrival, inputs, outputs, limits, small(), draft, index=np.arange(len(arrival)),
        blocks=blocks, block_tokens=size,
    )  # fmt: skip
    drafter = Drafter(draft, guesses) if draft else None
    case = (arrival, inputs, outputs, limits, blocks, size)
    np.testing.assert_allclose(
        loop.served.times, by_plug_in(case, small(), drafter=drafter), rtol=1e-12
    )


def test_steps_of_an_engine_are_priced_by_every_context():
    """All prompts in one step, then steps of one token each: a closed form of prices."""
    inputs, count = np.array([2, 3, 9, 14, 30, 90, 60]), 40
    n, of = len(inputs), small()
    served = serve_compiled(
        np.zeros(n), inputs, np.full(n, count), Limits(max_sequences=16, max_batched_tokens=256),
        of, blocks=1000, block_tokens=4,
    )  # fmt: skip
    at = of.cost([(x, 0) for x in inputs]).seconds
    busy = of.cost([(x, 0) for x in inputs]).busy["gpu.hbm.phy"]
    for step in range(1, count):
        cost = of.cost([], n, [float(x + step) for x in inputs])
        at, busy = at + cost.seconds, busy + cost.busy["gpu.hbm.phy"]
    assert served.times[2] == pytest.approx(np.full(n, at), rel=1e-12)
    assert served.busy[of.resources.index("gpu.hbm.phy")] == pytest.approx(busy, rel=1e-12)


def test_engines_that_share_a_table_do_not_mix_their_contexts():
    """Two engines, requests in turn: each serves its own as if it were alone."""
    rng = np.random.default_rng(2)
    n, of = 60, small()
    arrival = np.cumsum(rng.exponential(1e-4, n))
    inputs, outputs = rng.integers(1, 90, (2, n))
    limits = Limits(max_sequences=8, max_batched_tokens=64)
    both = route_compiled(
        arrival, inputs, outputs, limits, of, engines=2, blocks=400, block_tokens=4
    )
    for i, one in enumerate(both.engines):
        mine = both.replica == i
        alone = serve_compiled(
            arrival[mine], inputs[mine], outputs[mine], limits, of, blocks=400, block_tokens=4
        )
        assert one.times.tolist() == alone.times.tolist()
        assert one.busy.tolist() == alone.busy.tolist()


@pytest.mark.parametrize("window", [16, 64])
def test_guesses_that_never_hold_are_never_faster_than_none(window):
    rng = np.random.default_rng(4)
    n, of = 60, small(window)
    inputs = np.where(rng.random(n) < 0.1, 900, rng.integers(2, 40, n))
    arrays = np.zeros(n), inputs, np.full(n, 60)
    limits = Limits(max_sequences=32, max_batched_tokens=256)
    plain = serve_compiled(*arrays, limits, of, blocks=5000, block_tokens=4)
    for tokens in (1, 2):
        guesses = Guesses((1,) * tokens, (0.0,) * tokens, 1)
        none = serve_guessing(
            *arrays, replace(limits, guesses=guesses), of, index=np.arange(n), blocks=5000,
            block_tokens=4,
        )  # fmt: skip
        assert none.tokens_per_decode == 1.0
        assert none.served.times[2].max() >= plain.times[2].max()
        assert (
            none.served.busy[of.resources.index("gpu.hbm.phy")]
            >= (plain.busy[of.resources.index("gpu.hbm.phy")])
        )
