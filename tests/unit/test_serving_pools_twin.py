"""Compiled pools and the readable ones: equal times, bytes, steps; and what happens at once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.clock import COMES, ENDS, PLANS, Clock
from opbyte.sim.serving.compiled import pooled
from opbyte.sim.serving.compiled.pooled import serve_pools
from opbyte.sim.serving.compiled.wire import BUSY_S, DRAWN, Way, carry
from opbyte.sim.serving.fleet.link import Wire
from opbyte.sim.serving.fleet.server import FleetServer, server_of
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.server import Server
from opbyte.workloads.serve import Fleet, Scheduling, Serve
from opbyte.workloads.traces import ClosedLoop, RequestTrace
from tests.unit.test_serving_fleet import LLAMA, chats, conversations, gpus, same, trace
from tests.unit.test_serving_layered import small
from tests.unit.test_serving_pools import BLOCK, PRICES, server

ROUTERS = ("round_robin", "least_outstanding", "prefix_affinity")


def both(one: FleetServer, given: RequestTrace):
    """Return what compiled and readable pools say, after checking that they say the same."""
    ways = [replace(one, engine=replace(one.engine, compiled=c)) for c in (True, False)]
    fast, slow = (way.serve(given) for way in ways)
    same(fast, slow)
    assert fast.reasons == slow.reasons
    assert fast.hits == slow.hits
    assert list(fast.busy) == list(slow.busy)
    assert fast.joules == pytest.approx(slow.joules, rel=1e-9, nan_ok=True)
    assert fast.spread.prefill.tolist() == slow.spread.prefill.tolist()
    assert fast.spread.moved_bytes.tolist() == slow.spread.moved_bytes.tolist()
    assert fast.spread.steps.tolist() == slow.spread.steps.tolist()
    assert fast.spread.instances == slow.spread.instances
    assert fast.tally.gaps.tolist() == slow.tally.gaps.tolist()
    assert fast.tally.gap_sum == pytest.approx(slow.tally.gap_sum, rel=1e-9)
    assert fast.tally.used == pytest.approx(slow.tally.used, rel=1e-9)
    assert fast.tally.sums == pytest.approx(slow.tally.sums, rel=1e-9)
    return fast


@pytest.fixture
def loops(monkeypatch):
    """Let readable pools be an error."""

    def fail(*_args):
        raise AssertionError("readable engines are used")

    monkeypatch.setattr(FleetServer, "_by_plug_in", fail)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", ["continuous", "chunked"])
def test_the_compiled_loop_is_used(router, kind):
    one = server(router=router)
    scheduling = one.engine.scheduling.model_copy(update={"kind": kind})
    one = replace(one, engine=replace(one.engine, scheduling=scheduling, compiled=True))
    assert one.serve(trace(20)).served.all()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("router", ROUTERS)
def test_both_say_the_same(router, depth):
    given = trace(150, gap=0.0005)
    served = both(server(router=router, depth=depth, rate=1e5, blocks=30), given)
    assert served.preempted.any()
    assert served.served.all()
    # Prompts and answers but the last tokens are computed once at least, and sent once.
    assert served.tokens > (given.input_tokens + given.output_tokens - 1).sum()
    due = -(-given.input_tokens // 4) * BLOCK * (given.output_tokens > 1)
    assert served.spread.moved_bytes.tolist() == due.tolist()
    assert served.busy["wire"] == pytest.approx(2.0 * due.sum() / 1e5)


@st.composite
def fleets(draw):
    """Draw pools, their wire and a scheduler."""
    prefill, decode = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    engines = range(prefill + decode)
    ends = draw(
        st.sampled_from(
            [
                tuple((i,) for i in engines),
                tuple((2 * i, 2 * i + 1) for i in engines),
                tuple((i // 2,) for i in engines),
                tuple((i,) if i < prefill else (i, i + 1) for i in engines),
            ]
        )
    )
    wire = Wire(
        "wire", draw(st.sampled_from([1e4, 1e5, 1e6, 1e12])), draw(st.sampled_from([0.0, 1e-3])),
        ends, 1e-9, duplex=draw(st.booleans()), shared=draw(st.booleans()),
    )  # fmt: skip
    size = draw(st.sampled_from([1, 4, 16]))
    remember = draw(st.booleans())
    windows = not remember and draw(st.booleans())
    scheduling = Scheduling(
        max_sequences=draw(st.sampled_from([1, 2, 8])), max_batched_tokens=64, block_tokens=size,
        depth=draw(st.integers(1, 3)), prefix_cache=remember,
        reserve=draw(st.booleans()),
    )  # fmt: skip
    # No request needs more.
    most = -(-80 // size)
    engine = Server(
        PRICES, scheduling, most + draw(st.integers(0, most)),
        growth=(Growth(1, 0), Growth(2, 8)) if windows else (),
    )  # fmt: skip
    pools = {"prefill": prefill, "decode": decode}
    fleet = Fleet.model_validate({"pools": pools, "router": draw(st.sampled_from(ROUTERS))})
    return FleetServer(engine, fleet, wire, (BLOCK, draw(st.sampled_from([0.0, 70.0]))))


@settings(max_examples=60, deadline=None)
@drawn(st.data())
def test_twins_of_drawn_requests_and_fleets(data):
    n = data.draw(st.integers(1, 40))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    gaps = st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.05]), min_size=n, max_size=n)
    given = RequestTrace(
        np.cumsum(data.draw(gaps)), np.array(data.draw(lengths)), np.array(data.draw(lengths))
    )
    assert both(data.draw(fleets()), given).served.all()


@settings(max_examples=40, deadline=None)
@drawn(st.data())
def test_twins_where_much_happens_at_once(data):
    """Equal requests that come together: steps and transfers of several engines end together."""
    n, together = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 8))
    length, answer = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    arrival = np.arange(n) // together * data.draw(st.sampled_from([0.0, 0.002, 0.05]))
    given = RequestTrace(arrival, np.full(n, length), np.full(n, answer))
    assert both(data.draw(fleets()), given).served.all()


def test_waves_of_prompts_stay_behind_what_comes(monkeypatch):
    """Layered prefill on both sides: who lost its blocks is read by groups beside what comes."""
    # Another kind of prices takes half a minute to compile.
    monkeypatch.setattr(pooled, "compiled", lambda function: function)
    scheduling = Scheduling(
        kind="layered", max_sequences=8, max_batched_tokens=64, block_tokens=4, groups=3, depth=2
    )
    wire = Wire("wire", 1e6, 1e-5, tuple((i,) for i in range(4)), 1e-9)
    fleet = Fleet.model_validate({"pools": {"prefill": 2, "decode": 2}})
    one = FleetServer(Server(small(), scheduling, 30), fleet, wire, (BLOCK, 0.0))
    assert both(one, trace(100, gap=1e-4)).preempted.any()


def test_requests_that_never_fit_are_left_out():
    given = trace(9)
    long = given.input_tokens.copy()
    long[[0, 4]] = 1000
    given = RequestTrace(given.arrival_s, long, given.output_tokens)
    served = both(server(), given)
    assert list(served.reasons) == [0, 4]
    assert served.spread.prefill[[0, 4]].tolist() == [-1, -1]
    assert not served.spread.moved_bytes[[0, 4]].any()
    none = RequestTrace(given.arrival_s, np.full(9, 1000), given.output_tokens)
    assert not both(server(), none).served.any()


def test_the_loop_without_the_compiler_and_with_little_room_at_first():
    given = trace(40)
    args = (given.arrival_s, given.input_tokens, given.output_tokens)
    limits = Limits(max_sequences=8, max_batched_tokens=64)
    wire = Wire("wire", 1e5, 1e-3, tuple((i,) for i in range(4)), 1e-9)
    how = {
        "pools": (1, 3), "sizes": (BLOCK, 0.0), "least": True, "blocks": 30, "block_tokens": 4,
        "depth": 2,
    }  # fmt: skip
    one = serve_pools(*args, limits, PRICES, wire, **how)
    for other in (
        serve_pools(*args, limits, PRICES, wire, **how, room=1),
        serve_pools(*args, limits, PRICES, wire, **how, plain=True),
    ):
        assert one.times.tolist() == other.times.tolist()
        assert one.replica.tolist() == other.replica.tolist()
        assert one.wire.busy == other.wire.busy
        for a, b in zip(one.engines, other.engines, strict=True):
            assert a.series.tolist() == b.series.tolist()
            assert a.busy.tolist() == b.busy.tolist()


@settings(max_examples=60, deadline=None)
@drawn(st.data())
def test_both_wires_carry_alike(data):
    one = data.draw(fleets())
    pools, wire = one.fleet.pools, one.wire.idle()
    way, now = Way.of(wire, pools.prefill), 0.0
    for _ in range(data.draw(st.integers(1, 20))):
        i = data.draw(st.integers(0, pools.prefill - 1))
        j = data.draw(st.integers(0, pools.decode - 1))
        size = data.draw(st.sampled_from([0.0, 1.0, 1000.0]))
        assert carry(way, now, i, j, size) == wire.send(now, i, pools.prefill + j, size)
        now += data.draw(st.sampled_from([0.0, 1e-3, 1.0]))
    assert way.sums[BUSY_S] == wire.busy
    assert way.sums[DRAWN] == wire.joules


def test_a_moment_has_an_order():
    """What comes, then ends of steps by engine, then plans; of equals what was asked for first."""
    env, seen = Clock(), []
    orders = [PLANS, ENDS + 1, COMES, ENDS, PLANS, COMES]
    for number, order in enumerate(orders):
        env.at(1.0, order).callbacks.append(lambda _, n=number: seen.append(n))
    env.run()
    assert seen == [2, 5, 3, 1, 0, 4]


def test_on_a_machine():
    machine, work = gpus(4), Serve(LLAMA, chats(), fleet={"pools": {"prefill": 2, "decode": 2}})
    server = server_of(machine, work, machine.mapping())
    served = both(server, work.trace)
    found = ob.simulate(machine, work)
    assert found.requests["last_token_s"].tolist() == served.times[2].tolist()
    assert list(found.requests)[-3:] == ["replica", "prefill_replica", "moved_bytes"]


@pytest.mark.parametrize("how", ["clients", "prefixes", "failures", "orders"])
def test_what_only_readable_pools_do(how, monkeypatch):
    """Clients that wait, shared prompts, failures and other orders: the compiled are not asked."""
    n = 12
    given, fleet, kind = trace(n), {}, "continuous"
    if how == "clients":
        client = ClosedLoop(2, np.zeros(n))
        given = RequestTrace(
            np.zeros(n), given.input_tokens, given.output_tokens, timed=False, client=client
        )
    elif how == "prefixes":
        given = conversations(n)
    elif how == "failures":
        fleet = {"failures": [{"replica": 3, "at": "9 s", "for": "1 s"}]}
    else:
        kind = "shortest"
    one = server(**fleet)
    scheduling = one.engine.scheduling.model_copy(update={"kind": kind})
    one = replace(one, engine=replace(one.engine, scheduling=scheduling, compiled=True))
    monkeypatch.setattr(FleetServer, "_by_pools", None)
    assert one.serve(given).served.all()
