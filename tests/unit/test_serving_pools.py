"""Prefill and decode on engines of their own: what is sent, what waits, what fails."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.sim.place import Placer
from opbyte.sim.serving.arrivals import ask
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.fleet.link import Wire, wire_of
from opbyte.sim.serving.fleet.server import FleetServer, server_of
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.grid import grid_cost
from opbyte.sim.serving.requests import requests_of
from opbyte.sim.serving.server import Server
from opbyte.workloads.serve import Fleet, Scheduling, Serve
from opbyte.workloads.traces import RequestTrace
from tests.unit.test_serving_fleet import LLAMA, chats, gpus, trace
from tests.unit.test_serving_twin import prices

PRICES = prices(128)
RATE, LATENCY, BLOCK = 1e6, 1e-3, 1000.0


def server(
    prefill=2, decode=2, blocks=60, depth=1, rate=RATE, sequences=8, state=0.0, **fleet
) -> FleetServer:
    scheduling = Scheduling(
        max_sequences=sequences, max_batched_tokens=64, block_tokens=4, depth=depth
    )
    block = Fleet.model_validate({"pools": {"prefill": prefill, "decode": decode}, **fleet})
    ends = tuple((i,) for i in range(prefill + decode))
    wire = Wire("wire", rate, LATENCY, ends, 1e-9)
    engine = Server(PRICES, scheduling, blocks, compiled=False)
    return FleetServer(engine, block, wire, (BLOCK, state))


def played(one: FleetServer, given: RequestTrace):
    """Return the pools and requests after a trace was served."""
    env = Clock()
    pools = one._fleet(env, len(given))
    for failure in one.fleet.failures:
        pools.fail(failure.replica, failure.at.value, failure.for_.value)
    requests = requests_of(given, 4, shared=False)
    ask(pools, requests, given)
    env.run()
    return pools, requests


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("router", ["round_robin", "least_outstanding", "prefix_affinity"])
def test_every_token_is_computed_once_and_every_block_comes_back(router, depth):
    given = trace(150)
    one = server(router=router, depth=depth, blocks=200)
    served = one.serve(given)
    assert np.isfinite(served.times).all()
    assert (np.diff(served.times, axis=0) >= 0).all()
    assert not served.preempted.any()
    assert served.tokens == (given.input_tokens + given.output_tokens - 1).sum()
    # Prompts are read by the first two, everything else is computed by the other two.
    by_readers = served.series[1, served.spread.series < 2].sum()
    assert by_readers == given.input_tokens.sum()
    assert set(served.spread.prefill) == {0, 1}
    short = given.output_tokens == 1
    assert set(served.spread.replica[~short]) == {2, 3}
    assert (served.spread.replica[short] == served.spread.prefill[short]).all()
    all_is_over(*played(one, given))
    assert one.serve(given).times.tobytes() == served.times.tobytes()


def test_what_is_sent_is_the_cache_of_every_prompt_in_blocks():
    given = trace(100)
    one = server(state=70.0)
    served = one.serve(given)
    due = -(-given.input_tokens // 4) * BLOCK + 70.0
    due[given.output_tokens == 1] = 0.0
    assert served.spread.moved_bytes.tolist() == due.tolist()
    assert served.busy["wire"] == pytest.approx(2.0 * due.sum() / RATE)
    pools, _ = played(one, given)
    assert pools.wire.joules == pytest.approx(1e-9 * due.sum())


def test_an_idle_link_takes_latency_and_bytes_over_rate():
    """The second token comes a transfer and a step after the first."""
    given = RequestTrace(np.array([0.0]), np.array([30]), np.array([2]))
    served = server().serve(given)
    new = np.zeros(8)
    step, _ = grid_cost(PRICES.table, Batch(new, new, 0, 1.0, 31.0), np.zeros(1))
    first, last = served.times[1:, 0]
    assert last - first == pytest.approx(LATENCY + 8 * BLOCK / RATE + step)


def test_transfers_take_turns_at_both_ends():
    wire = Wire("wire", 10.0, 0.5, ((0,), (1,), (2,), (3,)), 0.0)
    assert wire.send(0.0, 0, 2, 20.0) == 2.5
    assert wire.send(0.0, 1, 2, 10.0) == 3.5  # behind the first at the receiver
    assert wire.send(0.0, 0, 3, 10.0) == 3.5  # behind the first at the sender
    assert wire.send(1.0, 2, 0, 10.0) == 2.5  # the other way nothing is sent
    assert wire.busy == 2 * (2 + 1 + 1 + 1)
    half = Wire("wire", 10.0, 0.0, ((0,), (1,)), 0.0, duplex=False)
    assert [half.send(0.0, 0, 1, 10.0), half.send(0.0, 1, 0, 10.0)] == [1.0, 2.0]
    bus = Wire("wire", 10.0, 0.0, ((0,), (1,), (2,), (3,)), 0.0, shared=True)
    assert [bus.send(0.0, 0, 1, 10.0), bus.send(0.0, 2, 3, 10.0)] == [1.0, 2.0]
    wide = Wire("wire", 10.0, 0.0, ((0, 1), (2, 3)), 0.0)
    assert wide.send(0.0, 0, 1, 10.0) == 0.5


def test_a_prompt_keeps_its_blocks_until_they_were_fetched():
    """One block more than a prompt: the second one waits for the transfer of the first."""
    given = RequestTrace(np.zeros(2), np.array([32, 32]), np.array([3, 3]))
    slow = server(prefill=1, decode=1, blocks=9, rate=1e4).serve(given)
    sent = slow.times[1, 0] + LATENCY + 8 * BLOCK / 1e4
    assert slow.times[0, 1] == pytest.approx(sent)


def test_what_is_read_waits_for_blocks_at_the_other_end():
    given = RequestTrace(np.zeros(2), np.array([30, 30]), np.array([3, 3]))
    # Each takes 8 blocks: there is no room for both.
    served = server(prefill=2, decode=1, blocks=9, rate=1e12).serve(given)
    assert served.times[1, 1] < served.times[2, 0]
    assert served.times[2, 1] > served.times[2, 0] + LATENCY
    alone = server(prefill=2, decode=1, blocks=20, rate=1e12).serve(given)
    assert alone.times[2, 1] < served.times[2, 1]
    one = server(prefill=2, decode=1, blocks=20, rate=1e12, sequences=1).serve(given)
    assert one.times[2, 1] == pytest.approx(served.times[2, 1])


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "failures",
    [
        [{"replica": 0, "at": "60 ms", "for": "100 ms"}],
        [{"replica": 2, "at": "200 ms", "for": "100 ms"}],
        [{"replica": i, "at": f"{60 + 3 * i} ms", "for": "50 ms"} for i in range(4)],
        [{"replica": i, "at": f"{65 - i} ms", "for": "50 ms"} for i in range(4)],
        [{"replica": i % 4, "at": f"{10 + 20 * i} ms", "for": "30 ms"} for i in range(12)],
    ],
)
def test_failures_on_either_side_lose_nothing(failures, depth):
    given = trace(150)
    how = {"rate": 2e5, "router": "least_outstanding", "depth": depth, "blocks": 300}
    one = server(**how, failures=failures)
    served = one.serve(given)
    assert np.isfinite(served.times).all()
    assert (np.diff(served.times, axis=0) >= 0).all()
    usual = server(**how).serve(given)
    before = usual.times < 0.01
    assert (served.times[before] == usual.times[before]).all()
    assert not usual.preempted.any()
    assert served.preempted.any()
    all_is_over(*played(one, given))


def all_is_over(pools, requests):
    """Check that nobody holds or waits for anything, and every answer is whole."""
    for replica in pools.replicas:
        scheduler = replica.engine.scheduler
        assert scheduler.pool.free == scheduler.pool.total
        assert not scheduler.running
        assert not scheduler.waiting
        assert replica.outstanding == 0
    assert not pools._asked
    assert all(r.sampled == r.output and r.last_token_s >= r.first_token_s for r in requests)


@settings(max_examples=100, deadline=None)
@drawn(st.data())
def test_drawn_failures_lose_nothing(data):
    """Few blocks, slow links, several at once or one after the other."""
    prefill, decode = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    failures = []
    for i in range(prefill + decode):
        at = 0
        for _ in range(data.draw(st.integers(0, 3))):
            at += data.draw(st.integers(1, 80))
            away = data.draw(st.integers(1, 60))
            failures.append({"replica": i, "at": f"{at} ms", "for": f"{away} ms"})
            at += away
    one = server(
        prefill, decode, blocks=data.draw(st.sampled_from([20, 30, 60])), failures=failures,
        depth=data.draw(st.integers(1, 3)), rate=data.draw(st.sampled_from([1e5, 1e6, 1e9])),
        router=data.draw(st.sampled_from(["round_robin", "least_outstanding"])),
        sequences=data.draw(st.sampled_from([2, 8])),
    )  # fmt: skip
    all_is_over(*played(one, trace(40, seed=data.draw(st.integers(0, 99)))))


def test_decoding_is_not_held_up_by_prompts():
    """Two engines, one A100 each: pieces of long prompts beside decodes, or apart from them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.25, 80)),
            "input_tokens": rng.integers(2000, 4000, 80),
            "output_tokens": rng.integers(50, 100, 80),
        }
    )
    mixed = ob.simulate(gpus(2), Serve(LLAMA, frame, fleet={"replicas": 2}))
    apart = ob.simulate(gpus(2), Serve(LLAMA, frame, fleet={"pools": {"prefill": 1, "decode": 1}}))
    assert apart.tpot_p99 < 0.6 * mixed.tpot_p99
    columns = ["replica", "prefill_replica", "moved_bytes"]
    assert list(apart.requests)[-3:] == columns
    due = -(-frame["input_tokens"] // 16) * 16 * LLAMA.kv_bytes_per_token
    assert apart.requests["moved_bytes"].tolist() == due.tolist()
    # The link's bytes and the cells at both ends are in the joules.
    values = gpus(2).values
    each = 8 * (values["nvlink.energy"] + 2 * values["gpu.hbm.phy.energy"])
    wire = wire_of(Placer(gpus(2), gpus(2).mapping()), 2, None)
    assert wire.joules_per_byte == pytest.approx(each)
    assert wire.rate == pytest.approx(0.725 * 300e9)


# -- the way from pool to pool ------------------------------------------------------------


def nodes(count: int):
    """Return a machine of nodes with four A100 each."""
    a100 = load_machine("a100-sxm-80gb")
    data = dict(a100.document.data)
    gpu = {**data["parts"]["gpu"], "count": 4}
    data["parts"] = {"node": {"count": count, "parts": {"gpu": gpu}}}
    between = {"ends": ["node", "node"], "topology": "switch", "bandwidth": "100 GB/s",
               "latency": "2 us", "energy": "20 pJ/bit"}  # fmt: skip
    inside = {**data["links"]["nvlink"], "ends": ["node.gpu", "node.gpu"]}
    data["links"] = {"nvlink": inside, "ib": between}
    mapping = {"run": [{"ops": "all", "unit": "node.gpu.sm"}], "launch": "graph",
               "fusion": "attention", "groups": {"gpus": "node.gpu"}}  # fmt: skip
    data["mappings"] = {"default": mapping}
    data["name"] = "nodes"
    return load_machine(data)


def placed(machine, tp):
    split = {"all": {"group": "gpus", "tp": tp}}
    default = machine.mapping().model_dump(by_alias=True, exclude_none=True)
    return Placer(machine, ob.load_mapping({**default, "parallel": split}))


def test_the_link_is_found():
    two = nodes(2)
    assert wire_of(placed(two, 2), 2, None).name == "nvlink"
    between = wire_of(placed(two, 4), 2, None)
    assert (between.name, between.ends) == ("ib", ((0,), (1,)))
    assert between.rate == 100e9
    assert between.latency == pytest.approx(2e-6)
    with pytest.raises(ob.ConfigError, match=r"fleet.via.*name one of nvlink, ib"):
        wire_of(placed(two, 2), 4, None)
    named = wire_of(placed(two, 2), 4, "ib")
    assert named.ends == ((0,), (0,), (1,), (1,))


def test_machines_without_a_link_are_refused():
    work = Serve(LLAMA, chats(3), fleet={"pools": {"prefill": 1, "decode": 1}})
    data = {**gpus(2).document.data, "links": {}}
    with pytest.raises(ob.ConfigError, match="no link between instances of 'gpu'"):
        ob.simulate(load_machine(data), work)
    named = {"pools": {"prefill": 1, "decode": 1}, "via": "nvlnk"}
    with pytest.raises(ob.ConfigError, match="did you mean 'nvlink'"):
        ob.simulate(gpus(2), Serve(LLAMA, chats(3), fleet=named))
    with pytest.raises(ob.UncoveredError, match="static batch"):
        ob.simulate(gpus(2), Serve(LLAMA, chats(3), "static", fleet=work.fleet))


def test_several_devices_send_their_shares_at_once():
    machine = gpus(4)
    default = machine.mapping().model_dump(by_alias=True, exclude_none=True)
    group = next(iter(default["groups"]))
    pair = ob.load_mapping({**default, "parallel": {"all": {"group": group, "tp": 2}}})
    work = Serve(LLAMA, chats(10), fleet={"pools": {"prefill": 1, "decode": 1}})
    two = server_of(machine, work, pair)
    assert two.sizes[0] == pytest.approx(16 * LLAMA.kv_bytes_per_token)
    assert two.wire.ends == ((0, 1), (2, 3))
    frame = two.serve(work.trace).requests
    assert (frame["status"] == "served").all()
