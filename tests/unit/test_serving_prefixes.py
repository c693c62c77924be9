"""Prompts that share prefixes: plug-in and compiled loop hold, find and forget the same blocks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import UncoveredError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.compiled.fleet import route_compiled
from opbyte.sim.serving.compiled.loop import loop_limits, serve_compiled, serve_loop
from opbyte.sim.serving.compiled.moves import new_link
from opbyte.sim.serving.compiled.prefixes import content, prefixes_of
from opbyte.sim.serving.compiled.queue import new_queue, order_of
from opbyte.sim.serving.compiled.state import (
    BEFORE,
    CONTENT,
    FREE,
    HELD,
    HOLDERS,
    KEPT,
    NEXT,
    NONE,
    RUNNING,
    SERIES,
    SLOT,
    SLOTS,
    new_state,
    new_steps,
)
from opbyte.sim.serving.engine import Engine, feed
from opbyte.sim.serving.fleet.server import FleetServer
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.prices.step import masks_of
from opbyte.sim.serving.requests import requests_of
from opbyte.sim.serving.schedulers.fair import Clients
from opbyte.sim.serving.server import COMPILED, Server
from opbyte.sim.serving.tiers import Tier
from opbyte.sim.serving.transfers import LinkPrice
from opbyte.spi import SCHEDULERS, Limits
from opbyte.workloads.serve import Fleet, Scheduling, Serve
from opbyte.workloads.traces import PrefixBlocks, RequestTrace
from tests.unit.test_serving_layered import GROUPINGS, small
from tests.unit.test_serving_speculation import DRAFT, guesses
from tests.unit.test_serving_speculation import PRICES as GUESSED
from tests.unit.test_serving_twin import prices

PRICES = prices(128)
#: Entry of a state's place: requests that are done.
DONE = 4
KINDS = ("continuous", "static", "shortest", "prefix", "fair")


@st.composite
def cases(draw, kinds=KINDS):
    """Return arguments of `both`: prompts of a few families, limits and blocks that are short."""
    size, inside = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    n = draw(st.integers(1, 25))
    inputs, outputs = (
        np.array(draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))) for _ in range(2)
    )
    # Texts that begin alike, and some that have the same block twice or at another place.
    texts = draw(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=4))
    which = draw(st.lists(st.integers(0, len(texts) - 1), min_size=n, max_size=n))
    ids = [texts[w][: -(-int(x) // (size * inside))] for w, x in zip(which, inputs, strict=True)]
    offsets = np.cumsum([0, *map(len, ids)])
    prefix = PrefixBlocks(np.array([i for of in ids for i in of], np.int64), offsets, size * inside)
    gaps = draw(st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.05]), min_size=n, max_size=n))
    who = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    trace = RequestTrace(
        np.cumsum(gaps), inputs, outputs, prefix=prefix, tenant=who,
        priority=np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))),
    )  # fmt: skip
    kind, chunk = draw(st.sampled_from(kinds)), draw(st.booleans())
    whole = int((inputs + outputs - 1).max())
    limits = Limits(
        max_sequences=draw(st.integers(1, 16)), chunk=chunk, reserve=draw(st.booleans()),
        max_batched_tokens=draw(st.integers(1 if chunk else whole, 64 if chunk else 100)),
        aging=draw(st.sampled_from([10.0, 1000.0, 1e5])), together=kind == "static",
        lead=draw(st.sampled_from([None, 0, 20, 100])), layered=kind == "layered",
        grouping=draw(st.sampled_from(GROUPINGS)),
    )  # fmt: skip
    longest = -(-whole // size)
    few = draw(st.sampled_from([longest // 2, 3 * longest]))
    return {
        "trace": trace, "limits": limits, "kind": kind, "size": size,
        "blocks": longest + draw(st.integers(0, few)), "depth": draw(st.integers(1, 4)),
    }  # fmt: skip


def priced(case):
    """Return the prices of a case."""
    return small() if case["kind"] == "layered" else PRICES


def by_plug_in(case):
    """Serve by the readable engine; return it and its requests."""
    trace, kind = case["trace"], case["kind"]
    requests = requests_of(trace, case["size"], shared=True)
    clients = Clients.of(trace)
    for request, client in zip(requests, clients.client.tolist(), strict=True):
        request.client, request.priority = client, -int(clients.level[client])
    pool = BlockPool(case["blocks"], case["size"])
    plug_in = SCHEDULERS.lookup("continuous" if kind == "static" else kind)
    env = Clock()
    engine = Engine(env, plug_in(case["limits"], pool), priced(case), depth=case["depth"])
    feed(engine, requests)
    env.run()
    return engine, requests


def by_loop(case, *, plain=False):
    """Serve by the compiled loop; return what happened and the prefixes it leaves behind."""
    trace, limits = case["trace"], case["limits"]
    rows = np.arange(len(trace))
    prefixes = prefixes_of(trace, rows, case["size"], limits.max_sequences)
    served = serve_compiled(
        trace.arrival_s, trace.input_tokens, trace.output_tokens, limits, priced(case),
        blocks=case["blocks"], block_tokens=case["size"], depth=case["depth"], order=case["kind"],
        clients=Clients.of(trace), prefixes=prefixes, plain=plain,
    )  # fmt: skip
    return served, prefixes


def check(case, *, plain=False):
    """Serve both ways and compare; return what the loop did."""
    engine, requests = by_plug_in(case)
    served, prefixes = by_loop(case, plain=plain)
    times = np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T
    assert served.times == pytest.approx(times, rel=1e-12, abs=0.0)
    assert served.preempted.tolist() == [r.preempted for r in requests]
    for name, column in zip(SERIES, served.series, strict=True):
        assert column.tolist() == pytest.approx(getattr(engine.series, name), rel=1e-12), name
    pool = engine.scheduler.pool
    assert (served.asked, served.found) == (pool.asked, pool.hit)
    assert served.means == pytest.approx(engine.means, rel=1e-9)
    mine, other = served.tally, engine.tally
    assert mine.used == pytest.approx(other.used, rel=1e-9, abs=1e-15)
    assert mine.waiting == pytest.approx(other.waiting[: len(mine.waiting)], rel=1e-9, abs=1e-15)
    assert mine.gaps.sum() == other.gaps.sum()
    assert (mine.gap_sum, mine.gap_max) == pytest.approx((other.gap_sum, other.gap_max), rel=1e-9)
    # The cache holds the same in the end, in the same blocks.
    assert pool.free == case["blocks"]
    blocks = {
        request.key(i): prefixes.known[content(prefixes, request.index, i)] - 1
        for request in requests
        for i in range(-(-request.target // case["size"]))
    }
    assert {key: block for key, block in blocks.items() if block >= 0} == pool._known
    return served


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_give_every_request_the_same_times(case):
    check(case)


@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_arrivals_at_the_very_end_of_a_step(case, data):
    trace = case["trace"]
    ends = by_loop(case)[0].series[0].tolist()
    moved = data.draw(st.lists(st.sampled_from(ends), min_size=len(trace), max_size=len(trace)))
    check(case | {"trace": replace(trace, arrival_s=np.sort(moved))})


@settings(max_examples=60, deadline=None)
@given(cases((*KINDS, "layered", "layered")))
def test_the_loop_is_its_own_twin_without_the_compiler(case):
    check(case, plain=True)


# -- conservation --------------------------------------------------------------------------


def check_blocks(state):
    """Check that blocks are free or held, by as many as say so, and found where they are."""
    p, of, counts = state.prefixes, state.blocks, state.counts
    end = of.shape[1] - 1
    free, block = [], of[NEXT, end]
    while block != end:
        assert of[BEFORE, of[NEXT, block]] == block
        free.append(block)
        block = of[NEXT, block]
    assert len(free) == counts[FREE]
    assert (of[HOLDERS, free] == 0).all()
    running = state.running[: counts[RUNNING]]
    held = [p.tables[state.requests[SLOT, r], : state.requests[HELD, r]] for r in running]
    times = np.bincount(np.concatenate([[], *held]).astype(int), minlength=end)
    assert times.tolist() == of[HOLDERS, :end].tolist()
    assert np.count_nonzero(times) + len(free) == end
    assert counts[SLOTS] == len(p.slots) - counts[RUNNING]
    assert len({*p.slots[: counts[SLOTS]], *state.requests[SLOT, running]}) == len(p.slots)
    known = np.flatnonzero(of[CONTENT, :end] != NONE)
    assert (p.known[of[CONTENT, known]] - 1 == known).all()
    assert np.count_nonzero(p.known) == len(known)
    assert not of[KEPT, :end].any()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_blocks_are_conserved_at_every_step(case):
    trace, limits, kind = case["trace"], case["limits"], case["kind"]
    ends = by_loop(case)[0].series[0]
    prefixes = prefixes_of(trace, np.arange(len(trace)), case["size"], limits.max_sequences)
    state = new_state(len(trace), case["blocks"], limits.max_sequences, 9999, prefixes=prefixes)
    args = trace.arrival_s, trace.input_tokens
    queue = new_queue(kind, *args, limits, Clients.of(trace), shared=True)
    order = order_of(kind, shared=True)
    numbers = loop_limits(limits, case["size"], remember=True, order=order)
    steps = new_steps(case["depth"], limits.max_sequences, masks_of(PRICES))
    busy, drawn = np.zeros(1 + len(TRAFFIC)), np.zeros(2)
    for end in ends.tolist():
        serve_loop(
            state, steps, queue, new_link(0, None, case["size"]), *args, trace.output_tokens,
            numbers, PRICES.table, busy, drawn, np.nextafter(end, np.inf),
        )  # fmt: skip
        check_blocks(state)
    assert state.place[DONE] == len(trace)
    assert state.counts[FREE] == case["blocks"]


# -- servers -------------------------------------------------------------------------------


def conversations(n=90, *, seed=0, gap=2e-3, block=8, **columns):
    """Return the turns of six conversations, interleaved; each goes on where the last one ended."""
    rng = np.random.default_rng(seed)
    said, ids, inputs, fresh = [[0] for _ in range(6)], [], [], iter(range(1, 10**6))
    for i in range(n):
        text = said[i % 6]
        text += [next(fresh) for _ in range(int(rng.integers(0, 3)))]
        ids.append(text[:12].copy())
        inputs.append(len(ids[-1]) * block - int(rng.integers(0, block)))
    prefix = PrefixBlocks(
        np.concatenate(ids).astype(np.int64), np.cumsum([0, *map(len, ids)]), block
    )
    arrival = np.cumsum(rng.exponential(gap, n))
    outputs = rng.integers(1, 30, n)
    return RequestTrace(arrival, np.array(inputs), outputs, prefix, **columns)


def server(kind="continuous", blocks=60, **more):
    """Return an engine of made-up prices; some prompts of `conversations` exceed its context."""
    own = {
        "fair": {"lead": 40},
        "shortest": {"aging": 1e4}, "prefix": {"aging": 1e4},
    }  # fmt: skip
    scheduling = Scheduling(
        kind=kind, max_sequences=12, max_batched_tokens=64, block_tokens=4, depth=2,
        kv_blocks=blocks, **own.get(kind, {}),
    )  # fmt: skip
    return Server(PRICES, scheduling, blocks, 110, **more)


def alike(one, other):
    """Check that two servings say the same."""
    assert one.reasons == other.reasons
    assert one.times == pytest.approx(other.times, rel=1e-12, abs=0.0, nan_ok=True)
    assert one.preempted.tolist() == other.preempted.tolist()
    assert one.series == pytest.approx(other.series, rel=1e-12)
    assert one.hits == other.hits
    assert one.tokens_per_decode == pytest.approx(other.tokens_per_decode, rel=1e-12)
    assert one.joules == pytest.approx(other.joules, rel=1e-9, nan_ok=True)
    assert one.busy == pytest.approx(other.busy, rel=1e-9)


@pytest.mark.parametrize("kind", sorted({*COMPILED} - {"layered"}))
def test_servers_take_the_loop(kind):
    trace = conversations(tenant=np.arange(90) % 4)
    one = server(kind)
    assert one.loops(trace)
    served, other = one.serve(trace), server(kind, compiled=False).serve(trace)
    alike(served, other)
    assert served.reasons
    assert served.hits["cache"] > 0
    assert served.preempted.any() or kind == "static"


@pytest.mark.parametrize("draft", [None, DRAFT])
@pytest.mark.parametrize("chance", [0.7, 1.0])
def test_guesses_and_prefixes(draft, chance):
    trace = conversations()
    how = {"guesses": guesses(chance, tokens=3), "draft": draft, "context": 110}
    scheduling = Scheduling(
        max_sequences=12, max_batched_tokens=64, block_tokens=4, kv_blocks=60, depth=1
    )
    fast = Server(GUESSED, scheduling, 60, **how)
    assert fast.loops(trace)
    served = fast.serve(trace)
    alike(served, replace(fast, compiled=False).serve(trace))
    assert served.preempted.any()
    assert served.hits["cache"] > 0


def test_another_adapter_has_another_prefix():
    """Nobody finds what another adapter computed, and the same one finds it."""
    alone = conversations(12, gap=1.0)
    other = replace(alone, adapter=np.arange(12) // 6)
    found = []
    for trace in (alone, other, alone.take(np.arange(6)), alone.take(np.arange(6, 12))):
        served = server(blocks=400).serve(trace)
        alike(served, server(blocks=400, compiled=False).serve(trace))
        found.append(served.hits["cache"])
    assert found[0] > found[1] == found[2] + found[3] > 0
    text = "4 tokens do not consist of KV blocks of 3"
    with pytest.raises(UncoveredError, match=text):
        prefixes_of(conversations(block=4), np.arange(90), 3, 8)


def test_prefixes_on_their_way_to_a_tier_below_stay_with_the_readable_engine():
    trace = conversations()
    below = Tier("ddr", 60, LinkPrice("link", 1e-4, 1e-4))
    swaps = replace(server(), below=below)
    assert not swaps.loops(trace)
    assert swaps.loops(replace(trace, prefix=None))


def test_nothing_is_left_where_all_are_refused():
    trace = replace(conversations(3), output_tokens=np.full(3, 1000))
    for compiled in (True, False):
        served = server(compiled=compiled).serve(trace)
        assert sorted(served.reasons) == [0, 1, 2]
        assert served.steps == 0


def test_a_prompt_again_is_found_but_for_its_last_token():
    """Blocks of 4; a prompt of 12 is found to two blocks, for its last token is computed."""
    prefix = PrefixBlocks(np.array([7, 8, 9, 7, 8, 9, 7, 8, 5]), np.array([0, 3, 6, 9]), 4)
    trace = RequestTrace(np.arange(3.0), np.array([12, 12, 13]), np.full(3, 1), prefix)
    served = server().serve(trace)
    assert served.hits == {"cache": 16, "computed": 37 - 16}
    assert served.series[1].tolist() == [12, 4, 5]
    # What is not remembered is not found.
    scheduling = server().scheduling.model_copy(update={"prefix_cache": False})
    assert replace(server(), scheduling=scheduling).serve(trace).hits["cache"] == 0


@pytest.mark.parametrize("kind", ["chunked", "prefix", "shortest"])
def test_a_real_trace_of_shared_prefixes(kind, reference):
    """Mooncake's, at the rate at which it came: an engine that can not keep up with it."""
    machine, count = load_machine("a100-sxm-80gb"), 1200 if kind == "chunked" else 70
    path = reference / "traces" / "mooncake_synthetic.jsonl"
    limits = {"kind": kind, "max_batched_tokens": 4096, "kv_blocks": 12_000}
    work = Serve(ob.load_model("llama-3.1-8b"), str(path), scheduler=limits)
    fast, trace = Server.of(machine, work, machine.mapping()), work.trace[:count]
    served = fast.serve(trace)
    alike(served, replace(fast, compiled=False).serve(trace))
    assert served.preempted.any() == (kind == "chunked")
    assert served.hits["cache"] > 10**5 / (1 if kind == "chunked" else 10)
    assert served.served.mean() > 0.9


# -- fleets --------------------------------------------------------------------------------


def fleet(kind, router, *, replicas=3, slack=2, **more):
    """Return engines that share out requests."""
    block = {"replicas": replicas, "router": router}
    if router == "prefix_affinity":
        block["slack"] = slack
    return FleetServer(server(kind, **more), Fleet.model_validate(block))


def alike_in_fleets(how, trace):
    """Serve by loops and by plug-ins, and compare; return what the loops did."""
    served, other = fleet(**how).serve(trace), fleet(**how, compiled=False).serve(trace)
    assert served.spread.replica.tolist() == other.spread.replica.tolist()
    assert served.spread.series.tolist() == other.spread.series.tolist()
    alike(served, other)
    return served


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_fleets_of_drawn_requests(data):
    kinds = ("continuous", "static", "shortest", "prefix", "fair")
    how = {
        "kind": data.draw(st.sampled_from(kinds)), "slack": data.draw(st.integers(0, 8)),
        "router": data.draw(st.sampled_from(["least_outstanding", "prefix_affinity"])),
        "replicas": data.draw(st.integers(2, 4)), "blocks": data.draw(st.integers(30, 80)),
    }  # fmt: skip
    n, seed = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 99))
    gap = data.draw(st.sampled_from([1e-4, 1e-3, 0.01]))
    trace = conversations(n, seed=seed, gap=gap, tenant=np.arange(n) % 4)
    if data.draw(st.booleans()):
        trace = replace(trace, prefix=None)
    alike_in_fleets(how, trace)


def test_routers_that_know_prefixes_find_more():
    """Six conversations over four engines: in turn, each engine sees all of them."""
    trace, share = conversations(200, gap=4e-3), {}
    for router in ("round_robin", "least_outstanding", "prefix_affinity"):
        how = {"kind": "continuous", "router": router, "blocks": 60, "replicas": 4}
        served = alike_in_fleets(how, trace)
        share[router] = served.hits["cache"] / sum(served.hits.values())
    assert share["prefix_affinity"] > 1.2 * share["round_robin"] > 0.1
    assert share["prefix_affinity"] > 1.2 * share["least_outstanding"] > 0.1


@pytest.mark.parametrize("kind", ["shortest", "prefix", "fair"])
def test_loops_of_a_fleet_with_little_room_at_first(kind):
    trace = conversations(80)
    rows, clients = np.arange(80), Clients(np.arange(80, dtype=np.int32) % 3, np.zeros(3, np.int32))
    limits = Limits(max_sequences=8, max_batched_tokens=64, lead=20)
    how = {"engines": 3, "blocks": 60, "block_tokens": 4, "order": kind, "clients": clients}
    one, *others = (
        route_compiled(
            trace.arrival_s, trace.input_tokens, trace.output_tokens, limits, PRICES, **how,
            affine=True, slack=2, prefixes=prefixes_of(trace, rows, 4, 8), **more,
        )
        for more in ({}, {"room": 1}, {"plain": True})
    )  # fmt: skip
    for other in others:
        assert one.replica.tolist() == other.replica.tolist()
        for a, b in zip(one.engines, other.engines, strict=True):
            assert a.times.tolist() == b.times.tolist()
            assert (a.asked, a.found) == (b.asked, b.found)
