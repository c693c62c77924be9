"""Layered prefill: the compiled loop against the plug-in, and prices of groups of layers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.compiled.loop import serve_compiled
from opbyte.sim.serving.compiled.state import SERIES
from opbyte.sim.serving.engine import serve
from opbyte.sim.serving.fleet.server import FleetServer
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.layers import LayerPrices, divided
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import SCHEDULERS, Group, Limits
from opbyte.sim.serving.schedulers.layered import Layered
from opbyte.sim.serving.server import Server
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.routing import Routing
from opbyte.workloads.serve import Fleet, Grouping, Scheduling
from opbyte.workloads.traces import RequestTrace

#: Equal layers, layers with windows between others, layers of experts, scans beside attention.
MODELS = ("llama-3.2-1b", "gemma-3-4b", "qwen3-30b-a3b", "gpt-oss-20b", "nemotron-h-8b")


@cache
def prices(model: str, machine: str = "h100-sxm-80gb", tokens: int = 600) -> StepPrices:
    return StepPrices.build(machine, load_model(model), max_tokens=tokens, max_sequences=20)


@cache
def small() -> LayerPrices:
    """Return prices of a model of 12 layers."""
    whole = StepPrices.build(
        "a100-sxm-80gb",
        load_model("gpt-2").with_precision(weight="bf16", activation="bf16", kv="bf16"),
        max_tokens=128,
        max_sequences=16,
    )
    return LayerPrices.of(whole, (1, 2, 3, 5))


# -- prices of groups --------------------------------------------------------------------------


def test_groups_are_contiguous_and_the_first_ones_take_the_rest():
    assert [list(part) for part in divided(5, 2)] == [[0, 1, 2], [3, 4]]
    for layers, groups in ((48, 16), (24, 16), (28, 12), (7, 7), (9, 1)):
        parts = divided(layers, groups)
        assert [i for part in parts for i in part] == list(range(layers))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(ConfigError, match="no more groups than layers"):
        divided(12, 16)


@pytest.mark.parametrize("model", MODELS)
def test_prompts_through_all_groups_cost_what_they_cost_at_once(model):
    chunks = [(300, 0), (17, 90), (1, 5)]
    whole = prices(model)
    at_once = whole.cost(chunks)
    for groups in (1, 2, 5, 16):
        divided_ = LayerPrices.of(whole, [groups])
        parts = [divided_.cost(i, groups, chunks) for i in range(groups)]
        assert sum(p.seconds for p in parts) == pytest.approx(at_once.seconds, rel=1e-9)
        for name, busy in at_once.busy.items():
            assert sum(p.busy[name] for p in parts) == pytest.approx(busy, rel=1e-9)
        assert sum(p.joules for p in parts) == pytest.approx(at_once.joules, rel=1e-9)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chunks", [[(300, 0), (17, 90)], [(512, 1000)]])
def test_one_group_is_all_layers(model, chunks):
    whole = prices(model)
    one = LayerPrices.of(whole, [1]).cost(0, 1, chunks, 12, 12 * 300.0)
    cost = whole.cost(chunks, 12, 12 * 300.0)
    assert one.seconds == pytest.approx(cost.seconds, rel=1e-12)
    assert one.joules == pytest.approx(cost.joules, rel=1e-12)
    assert one.busy == pytest.approx(cost.busy, rel=1e-12)


@pytest.mark.parametrize("routing", ["uniform", "zipf_0.8"])
@pytest.mark.parametrize(
    ("machine", "name", "groups"),
    [
        ("h100-sxm-80gb", "qwen3-30b-a3b", 16),
        ("h100-sxm-80gb", "gpt-oss-20b", 16),
        ("h100-sxm-80gb", "gemma-3-4b", 5),
        ("sn40l-node", "nemotron-h-8b", 7),
    ],
)
def test_equals_models_of_the_groups_layers(machine, name, groups, routing):
    """Each layer once by `Mixed`: of the group with prompts and decodes, of the rest with decodes.

    A model of layers (a, b) less one of (a) is layer b.
    """
    model, how = load_model(name), Routing.named(routing)
    loaded = load_machine(machine)
    mapping = resolve_mapping(loaded, None, "mixed")
    chunks, decodes, context = ((300.0, 0.0), (40.0, 200.0)), 15.0, 400.0

    def direct(order, *, with_chunks=True):
        layers = tuple(model.layers)
        used = sorted(set(order))
        part = replace(
            model, layers=tuple(layers[i] for i in used),
            order=tuple(used.index(i) for i in order),
        )  # fmt: skip
        work = Mixed(part, chunks if with_chunks else (), decodes, context, routing=how)
        return float(evaluate(loaded, work, mapping).phases[0].step.path[0])

    whole = StepPrices.build(loaded, model, max_tokens=600, max_sequences=20, routing=how)
    of = LayerPrices.of(whole, [groups])
    first = model.order[0]
    for number, part in enumerate(divided(len(model.order), groups)):
        if number not in (1, groups // 2):
            continue
        seconds = direct((first,), with_chunks=False)
        for i, kind in enumerate(model.order):
            # The layer of `seconds` is there already.
            mixed = i in part
            base = direct((first,), with_chunks=mixed)
            seconds += direct((first, kind), with_chunks=mixed) - base
        seconds -= direct((first, first), with_chunks=False) - direct((first,), with_chunks=False)
        cost = of.cost(number, groups, chunks, decodes, decodes * context)
        assert cost.seconds == pytest.approx(seconds, rel=1e-9)


def test_bytes_of_experts_are_those_of_the_tokens_in_each_layer():
    """The table's traffic is the closed form of distinct experts: the group's, and the rest's."""
    model, whole = load_model("qwen3-30b-a3b"), prices("qwen3-30b-a3b")
    of, each = LayerPrices.of(whole, [16]), 3 * 2048 * 768 * 2.0

    def experts(tokens):
        return float(Routing().distinct(128, 8, tokens)) * each

    from opbyte.sim.serving.prices.batch import Batch
    from opbyte.sim.serving.prices.step import flat_cost
    from opbyte.sim.serving.stamped import compiled

    moved = np.zeros(len(of.resources) + 2)
    batch = Batch(np.array([400.0]), np.zeros(1), 1, 10.0, 3000.0)
    compiled(flat_cost)(of.table, moved, *batch._replace(group=3, groups=16))
    assert moved[-1] == pytest.approx(3 * experts(410) + 45 * experts(10), rel=1e-9)
    whole_step = np.zeros(len(of.resources) + 2)
    compiled(flat_cost)(of.table, whole_step, *batch)
    assert whole_step[-1] == pytest.approx(48 * experts(410), rel=1e-9)
    # Weights that are no experts are read in every step, however many tokens there are.
    assert 0.9 < moved[-2] / whole_step[-2] <= 1.0
    assert whole_step[-2] < 0.1 * model.parameters * 2


def test_what_tables_do_not_divide_is_refused():
    of = small()
    with pytest.raises(ValueError, match="so many groups"):
        of.cost(0, 4, [(8, 0)])
    with pytest.raises(ValueError, match="so many groups"):
        of.cost(3, 3, [(8, 0)])
    with pytest.raises(ValueError, match="more tokens"):
        of.cost(0, 3, [(129, 0)])
    limits = Limits(max_batched_tokens=64, max_sequences=8, layered=True)
    with pytest.raises(UncoveredError, match="groups of layers have no price"):
        serve_compiled(*np.ones((3, 1), int), limits, of.whole, blocks=4, block_tokens=4)
    with pytest.raises(UncoveredError, match="groups of layers have no price"):
        serve([], Layered(limits, BlockPool(4, 4)), of.whole)


# -- the twins ---------------------------------------------------------------------------------

GROUPINGS = (
    Grouping(tokens=(), groups=(1,)),
    Grouping(tokens=(), groups=(3,)),
    Grouping(tokens=(4, 16), groups=(1, 2, 5)),
)


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
    # Tokens of a step: whole prompts fit, or are longer than a step.
    tokens = draw(st.integers(1 if chunk else whole, 64 if chunk else 100))
    limits = Limits(
        max_sequences=draw(st.integers(1, 16)), max_batched_tokens=tokens, chunk=chunk,
        reserve=draw(st.booleans()), layered=True, grouping=draw(st.sampled_from(GROUPINGS)),
    )  # fmt: skip
    blocks = longest + draw(st.integers(0, draw(st.sampled_from([longest // 2, 3 * longest]))))
    setting = {"depth": draw(st.integers(1, 4)), "remember": draw(st.booleans())}
    return np.cumsum(gaps), np.array(inputs), np.array(outputs), limits, blocks, size, setting


def by_plug_in(arrival, inputs, outputs, limits, blocks, size, setting):
    requests = [
        Request(i, float(a), int(x), int(y))
        for i, (a, x, y) in enumerate(zip(arrival, inputs, outputs, strict=True))
    ]
    pool = BlockPool(blocks, size, remember=setting["remember"])
    scheduler = SCHEDULERS.lookup("layered")(limits, pool)
    series = serve(requests, scheduler, small(), depth=setting["depth"])
    times = np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T
    return times, np.array([r.preempted for r in requests]), series, scheduler


def by_loop(arrival, inputs, outputs, limits, blocks, size, setting, *, plain=False):
    return serve_compiled(
        arrival, inputs, outputs, limits, small(), blocks=blocks, block_tokens=size, plain=plain,
        **setting,
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_give_every_request_the_same_times(case):
    times, preempted, series, scheduler = by_plug_in(*case)
    served = by_loop(*case)
    assert served.times == pytest.approx(times, rel=1e-12, abs=0.0)
    assert served.preempted.tolist() == preempted.tolist()
    for name, column in zip(SERIES, served.series, strict=True):
        assert column.tolist() == pytest.approx(getattr(series, name), rel=1e-12), name
    _arrival, inputs, outputs, _limits, blocks, *_ = case
    assert scheduler.pool.free == blocks
    assert not scheduler.waiting
    assert not scheduler.running
    assert not scheduler.wave
    due = int((inputs + outputs - 1).sum())
    assert served.tokens == sum(series.tokens) >= due
    if not preempted.any():
        assert served.tokens == due


@settings(max_examples=20, deadline=None)
@given(cases())
def test_the_loop_is_its_own_twin_without_the_compiler(case):
    served, plain = by_loop(*case), by_loop(*case, plain=True)
    assert served.times.tolist() == plain.times.tolist()
    assert served.busy.tolist() == plain.busy.tolist()


# -- worked out by hand ------------------------------------------------------------------------


def test_a_prompt_passes_its_groups_beside_decodes():
    """A prompt of 20 in 3 groups; a request that decodes gets a token from each of these steps."""
    limits = Limits(
        max_batched_tokens=64, max_sequences=4, layered=True, grouping=GROUPINGS[1]
    )  # fmt: skip
    of = small()
    first = [of.cost(i, 3, [(8, 0)]).seconds for i in range(3)]
    start = sum(first)
    case = ([0.0, start], [8, 20], [6, 2], limits, 20, 4, {"depth": 1, "remember": False})
    times, *_ = by_plug_in(*case)
    assert times[1, 0] == pytest.approx(start)
    ends = start + np.cumsum([of.cost(i, 3, [(20, 0)], 1, 9 + i).seconds for i in range(3)])
    assert times[0, 1] == pytest.approx(start)
    assert times[1, 1] == pytest.approx(ends[-1])
    both = of.whole.cost([], 2, 12 + 21).seconds
    assert times[2, 1] == pytest.approx(ends[-1] + both)


def test_what_arrives_meanwhile_waits_for_the_last_group():
    limits = Limits(max_batched_tokens=64, max_sequences=4, layered=True, grouping=GROUPINGS[1])
    case = ([0.0, 1e-6], [8, 8], [1, 1], limits, 20, 4, {"depth": 1, "remember": False})
    times, *_ = by_plug_in(*case)
    assert times[0, 1] == pytest.approx(times[1, 0])


def waiting(tokens, *, chunk):
    """Return the first seven steps of prompts that wait, 32 tokens each."""
    limits = Limits(
        max_batched_tokens=32, max_sequences=8, layered=True, chunk=chunk, grouping=GROUPINGS[2]
    )
    scheduler = Layered(limits, BlockPool(100, 4))
    for i, given_ in enumerate(tokens):
        scheduler.add(Request(i, 0.0, given_, 3))
    return [[(p.new, p.group, p.samples) for p in scheduler.plan().pieces] for _ in range(7)]


@pytest.mark.parametrize(("chunk", "rest"), [(False, 5), (True, 3)])
def test_prompts_that_wait_begin_together_while_they_fit(chunk, rest):
    plans = waiting((10, 20, 5), chunk=chunk)
    cut = [2] if chunk else []
    for i in range(5):
        assert [new for new, _, _ in plans[i]] == [10, 20, *cut]
        assert {group for _, group, _ in plans[i]} == {Group(i, 5)}
        assert [samples for *_, samples in plans[i]] == [i == 4, i == 4, *[False for _ in cut]]
    # What is left of the third one is alone, beside two decodes: one group, or two.
    group = Group(0, 1) if chunk else Group(0, 2)
    assert [piece[:2] for piece in plans[5]] == [(1, None), (1, None), (rest, group)]


def test_a_prompt_longer_than_a_step_passes_all_groups_in_pieces():
    limits = Limits(max_batched_tokens=16, max_sequences=8, layered=True, grouping=GROUPINGS[1])
    scheduler = Layered(limits, BlockPool(100, 4))
    scheduler.add(Request(0, 0.0, 40, 2))
    plans = [scheduler.plan() for _ in range(9)]
    assert [(p.pieces[0].new, p.pieces[0].past) for p in plans] == (
        [(16, 0)] * 3 + [(16, 16)] * 3 + [(8, 32)] * 3
    )
    assert [p.pieces[0].samples for p in plans] == [False] * 8 + [True]
    assert [sum(piece.tokens for piece in p.pieces) for p in plans] == [0, 0, 16, 0, 0, 16, 0, 0, 8]


# -- as users see it -----------------------------------------------------------------------------


def test_groups_are_read():
    assert Scheduling(kind="layered", groups=4).groups.of(10**6) == 4
    default = Scheduling(kind="layered").groups
    assert [default.of(t) for t in (1, 512, 513, 1024, 2048, 4096, 4097)] == [1, 1, 2, 2, 4, 8, 16]
    with pytest.raises(ValueError, match="2 ranges, but groups are given for 3"):
        Grouping(tokens=(512,), groups=(1, 2, 3))
    with pytest.raises(ValueError, match="ascend"):
        Grouping(tokens=(512, 512), groups=(1, 2, 3))


TRACE = {
    "kind": "trace", "requests": 60, "arrivals": {"kind": "poisson", "rate": "4 requests/s"},
    "lengths": {"input": {"kind": "lognormal", "mean": 2000, "cv": 1, "most": 6000}, "output": 60},
}  # fmt: skip


def test_serving_a_model_of_experts_in_groups_of_layers_loads_fewer_of_them():
    def run(**scheduler):
        work = ob.Serve("qwen3-30b-a3b", TRACE, scheduler={"kv_blocks": 10_000, **scheduler})
        return ob.simulate("h100-sxm-80gb", work)

    layered = run(kind="layered", max_batched_tokens=8192)
    chunked = run(kind="continuous", max_batched_tokens=512)
    assert layered.expert_bytes_per_token < 0.9 * chunked.expert_bytes_per_token
    assert layered.requests.output_tokens.sum() == chunked.requests.output_tokens.sum()
    two = run(kind="layered", max_batched_tokens=8192, depth=2)
    assert two.ttft_mean > 0


@pytest.mark.parametrize(
    "scheduler",
    [
        {"kind": "layered", "max_batched_tokens": 4096, "depth": 2},
        {"kind": "continuous", "max_batched_tokens": 512},
    ],
)
def test_both_engines_count_the_same_bytes(scheduler):
    machine = load_machine("h100-sxm-80gb")
    work = ob.Serve("gpt-oss-20b", TRACE, scheduler={"kv_blocks": 20_000, **scheduler})
    server = Server.of(machine, work, resolve_mapping(machine, None, "serve"))
    fast, slow = server.serve(work.trace), replace(server, compiled=False).serve(work.trace)
    assert fast.traffic == pytest.approx(slow.traffic, rel=1e-12)
    assert fast.busy == pytest.approx(slow.busy, rel=1e-12)
    assert fast.joules == pytest.approx(slow.joules, rel=1e-12)
    assert fast.times == pytest.approx(slow.times, rel=1e-12)
    assert 0 < fast.traffic["weight"] < fast.traffic["expert"]


@pytest.mark.parametrize("router", ["round_robin", "least_outstanding"])
def test_fleets_of_layered_engines_are_the_same_in_loops_and_plug_ins(router):
    fleet = Fleet(replicas=2, router=router)
    scheduling = Scheduling(
        kind="layered", max_batched_tokens=128, max_sequences=16,
        groups={"tokens": (40,), "groups": (2, 5)},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(0.001, 60))
    trace = RequestTrace(arrival, rng.integers(1, 200, 60), rng.integers(1, 40, 60))
    fast, slow = (
        FleetServer(Server(small(), scheduling, 60, compiled=compiled), fleet).serve(trace)
        for compiled in (True, False)
    )
    assert fast.preempted.any()
    assert fast.times == pytest.approx(slow.times, rel=1e-12)
    assert fast.traffic == pytest.approx(slow.traffic, rel=1e-12)


def test_requests_that_come_with_their_blocks_do_not_join_the_wave():
    limits = Limits(max_batched_tokens=32, max_sequences=8, layered=True, grouping=GROUPINGS[1])
    scheduler = Layered(limits, BlockPool(100, 4))
    scheduler.add(Request(0, 0.0, 20, 3))
    scheduler.plan()
    other = Request(1, 0.0, 8, 3, computed=8, sampled=1)
    other.blocks = scheduler.pool.take(2)
    scheduler.resume(other)
    plans = [
        [(p.request.index, p.new, p.samples) for p in scheduler.plan().pieces] for _ in range(2)
    ]
    assert plans == [[(1, 1, True), (0, 20, False)], [(1, 1, True), (0, 20, True)]]


def test_more_groups_than_layers_are_refused():
    model = load_model("gpt-2").with_precision(weight="bf16", activation="bf16", kv="bf16")
    lengths, scheduler = {"input": 100, "output": 5}, {"kind": "layered", "groups": 16}
    work = ob.Serve(model, TRACE | {"lengths": lengths}, scheduler=scheduler)
    with pytest.raises(ConfigError, match="12 layers"):
        ob.simulate("a100-sxm-80gb", work)
