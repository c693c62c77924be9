"""Laws that hold whatever is served: memory is finite, time is spent once, who waits is counted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, UncoveredError, WorkloadError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.fleet.link import Wire
from opbyte.sim.serving.fleet.routers import ROUTERS
from opbyte.sim.serving.fleet.server import FleetServer
from opbyte.sim.serving.metrics import metrics
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.schedulers import SCHEDULERS, Continuous, Limits
from opbyte.sim.serving.schedulers.fair import Fair
from opbyte.sim.serving.server import Server
from opbyte.workloads.serve import Fleet, Goal, Scheduling, Serve
from opbyte.workloads.traces import RequestTrace
from tests.unit.test_serving_pools import server as pools
from tests.unit.test_serving_twin import prices

A100 = load_machine("a100-sxm-80gb")
LLAMA = ob.load_model("llama-3.1-8b")
PRICES = prices(128)


def frame(n=20, gap=0.05, **columns) -> pd.DataFrame:
    lengths = {"input_tokens": 300, "output_tokens": 20, **columns}
    return pd.DataFrame({"arrival_s": gap * np.arange(n), **lengths})


def fleet(depth=2, **block) -> FleetServer:
    scheduling = Scheduling(max_sequences=8, max_batched_tokens=64, block_tokens=4, depth=depth)
    return FleetServer(Server(PRICES, scheduling, 60), Fleet.model_validate(block))


def test_given_blocks_must_fit_beside_the_weights():
    card, big = load_machine("rtx-4090"), ob.load_model("llama-3.1-70b")
    with pytest.raises(CapacityError, match="weight"):
        ob.simulate(card, Serve(big, frame(2), scheduler={"kv_blocks": 1}))
    # 40,000 blocks of 2 MiB are 78 GiB.
    with pytest.raises(CapacityError, match="kv"):
        ob.simulate(A100, Serve(LLAMA, frame(2), scheduler={"kv_blocks": 40_000}))


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_is_cut_counts_for_as_long_as_it_ran(depth):
    """A quarter of the first step is executed in vain, and nothing of what was only planned."""
    given = RequestTrace(np.zeros(3), np.full(3, 60), np.full(3, 5))

    def at(seconds):
        failures = [{"replica": 0, "at": f"{seconds} s", "for": "1 us"}]
        return fleet(depth, replicas=1, failures=failures).serve(given)

    whole = at(9.0)
    wasted = float(whole.series[0, 0]) / 4
    cut = at(wasted)
    assert sum(cut.busy.values()) == pytest.approx(sum(whole.busy.values()) + wasted, rel=1e-9)
    assert cut.seconds == pytest.approx(whole.seconds + wasted + 1e-6, rel=1e-9)
    assert cut.steps == whole.steps


def test_no_device_is_busy_for_longer_than_there_is_time():
    rng = np.random.default_rng(0)
    given = RequestTrace(np.sort(rng.uniform(0, 0.2, 60)), rng.integers(1, 60, 60), np.full(60, 9))
    failures = [{"replica": 0, "at": f"{0.002 + 0.004 * i} s", "for": "1 ms"} for i in range(100)]
    for one in (fleet(replicas=1, failures=failures), pools(1, 1, failures=failures)):
        served = one.serve(given)
        assert served.preempted.sum() > 50
        most = served.seconds * served.spread.engines
        assert max(v for n, v in served.busy.items() if n != "wire") <= most * (1 + 1e-9)


def test_a_pool_that_reads_knows_who_asks_and_since_when():
    n = 40
    given = RequestTrace(
        np.r_[np.zeros(n - 4), np.full(4, 0.001)], np.full(n, 60), np.full(n, 2),
        tenant=np.r_[np.zeros(n - 4, np.int64), np.ones(4, np.int64)],
    )  # fmt: skip
    urgent = np.r_[np.zeros(n - 4, np.int64), np.ones(4, np.int64)]

    def last_four(kind, trace):
        one = pools(1, 1, blocks=400)
        scheduling = one.engine.scheduling.model_copy(update={"kind": kind})
        engine = Server(PRICES, scheduling, 400, compiled=False)
        times = FleetServer(engine, one.fleet, one.wire, one.sizes).serve(trace).times
        return float(np.nanmean(times[0, -4:]))

    late = last_four("continuous", given)
    assert last_four("fair", given) < 0.7 * late
    with_priority = replace(given, tenant=np.zeros(n, np.int64), priority=urgent)
    assert last_four("fair", with_priority) < 0.5 * late


@pytest.mark.parametrize("router", ROUTERS.names())
def test_a_fleet_that_can_serve_nothing_says_so(router):
    work = Serve(LLAMA, frame(3, input_tokens=1_000_000), fleet={"replicas": 2, "router": router})
    two = A100.replace({"gpu.count": 2})
    with pytest.raises(WorkloadError, match="none of 3 requests can be served"):
        ob.simulate(two, work)


def test_capacity_does_not_stretch_failures():
    work = Serve(LLAMA, frame(), fleet={"failures": [{"replica": 0, "at": "1 s", "for": "1 s"}]})
    with pytest.raises(UncoveredError, match=r"leave out fleet\.failures"):
        ob.capacity(A100, work, {"ttft_p99": "1 s"})


def test_capacity_refuses_a_limit_on_what_no_request_has():
    work = Serve(LLAMA, frame(output_tokens=1))
    with pytest.raises(WorkloadError, match=r"no request has a later token.*limit ttft"):
        ob.capacity(A100, work, {"tpot_p99": "1 us"})
    found = ob.capacity(A100, work, {"ttft_p99": "1000 s"})
    assert found.rate == np.inf
    assert found.answer.startswith("more than ")
    assert "too short" in found.answer


def test_capacity_draws_guesses_by_its_seed():
    speculate = {"draft": "none", "tokens": 3, "acceptance": 0.5}
    work = Serve(LLAMA, frame(), speculate=speculate)
    one, same, other = (
        ob.capacity(A100, work, {"ttft_p99": "1000 s"}, seed=seed).metrics["tokens_per_decode"]
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_models_of_few_layers_are_divided_into_as_many_groups():
    shallow = ob.load_model("gpt-2").with_precision(weight="bf16", activation="bf16", kv="bf16")
    assert len(shallow.order) == 12
    work = Serve(shallow, frame(2, input_tokens=600), scheduler="layered")
    server = Server.of(A100, work, A100.mapping())
    assert server.scheduling.groups.groups == (1, 2, 4, 8, 12)


def test_nobody_is_switched_out_for_blocks_that_were_found():
    """Two of the victim's blocks are what the first in line shares with it: they stay taken."""
    pool = BlockPool(12, 16)
    fair = Fair(Limits(lead=0, max_batched_tokens=4096), pool)
    shared = tuple(("p", i) for i in range(4))
    victim = Request(0, 0.0, 16 * 8 - 8, 20, shared, client=0)
    other = Request(1, 0.0, 16 * 3 - 8, 20, (), client=1)
    fair.add(victim)
    fair.add(other)
    fair.plan()
    fair.plan()
    first = Request(2, 1.0, 16 * 11 - 8, 5, shared, client=1)
    fair.add(first)
    fair.service[1] = 0
    plan = fair.plan()
    assert bool(plan.preempted) == bool(first.blocks)


def test_who_reads_a_prompt_after_a_failure_counts_it():
    fair = Fair(Limits(), BlockPool(50, 16))
    thrown_off = Request(0, 0.0, 100, 5, preempted=1, client=3)
    fair.add(thrown_off)
    fair.plan()
    assert fair.service[3] == 100 + 2
    fair._lose(thrown_off)
    fair.plan()
    assert fair.service[3] == 100 + 2 + 2


def test_capacity_leaves_out_what_a_scheduler_of_ones_own_refuses():
    class Picky(Continuous):
        def refusal(self, request):
            return super().refusal(request) or ("too long for it" if request.input > 30 else "")

    SCHEDULERS.register("test-picky")(Picky)
    try:
        server = Server(PRICES, Scheduling(kind="test-picky", block_tokens=4), 60)
        given = RequestTrace(np.zeros(3), np.array([10, 31, 30]), np.full(3, 2))
        assert server.refused(given) == {1: "too long for it"}
    finally:
        SCHEDULERS._entries.pop("test-picky")


def test_failures_are_counted_from_the_first_arrival():
    given = RequestTrace(1000.0 + 0.001 * np.arange(9), np.full(9, 30), np.full(9, 9))
    failures = [{"replica": 0, "at": f"{at} s", "for": "1 ms"} for at in (0.005, 500)]
    served = fleet(replicas=2, failures=failures).serve(given)
    assert served.preempted.sum() > 0
    assert served.spread.idle_failures == 1


@pytest.mark.parametrize(
    ("shared", "duplex", "ends"), [(True, True, 1), (False, True, 5), (False, False, 5)]
)
def test_a_link_is_as_many_as_its_ends_that_pools_use(shared, duplex, ends):
    """Two engines read, three go on: two ends send and three receive, or one bus does both."""
    wire = Wire("wire", 1e6, 1e-3, tuple((i,) for i in range(5)), duplex=duplex, shared=shared)
    assert wire.instances(2) == ends
    given = RequestTrace(np.zeros(30), np.full(30, 40), np.full(30, 2))
    one = pools(2, 3, blocks=200)
    slow = replace(wire, rate=1e5)
    served = FleetServer(one.engine, one.fleet, slow, one.sizes).serve(given)
    # Bytes of 30 prompts over each end that they leave or come to.
    each = 30 * 10 * 1000.0 / 1e5
    assert served.busy["wire"] == pytest.approx(each if shared else 2 * each)
    share = served.busy_shares["wire"]
    assert share == pytest.approx(served.busy["wire"] / served.seconds / ends)
    assert (0.9 if shared else 0.3) < share <= 1


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_nothing_is_busy_for_longer_than_there_is(data):
    """With drawn failures, pools and replicas: shares of time are shares."""
    n = data.draw(st.integers(1, 25))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    gaps = st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.02]), min_size=n, max_size=n)
    given_trace = RequestTrace(
        np.cumsum(data.draw(gaps)), np.array(data.draw(lengths)), np.array(data.draw(lengths))
    )
    ats = data.draw(st.lists(st.integers(1, 400), max_size=12, unique=True))
    failures = [
        {"replica": data.draw(st.integers(0, 1)), "at": f"{at} ms", "for": "0.5 ms"} for at in ats
    ]
    depth = data.draw(st.integers(1, 3))
    for one in (
        fleet(depth, replicas=2, failures=failures),
        pools(1, 1, depth=depth, failures=failures),
    ):
        served = one.serve(given_trace)
        assert np.isfinite(served.times).all()
        assert served.busy_shares["device"] <= 1 + 1e-9


def test_who_runs_and_waits_is_counted_over_time():
    """A prompt of one long step; who arrives during it waits, though the step found nobody."""
    scheduling = Scheduling(max_sequences=8, max_batched_tokens=64, block_tokens=4, chunk=False)
    given = RequestTrace(np.r_[0.0, 1e-5 * np.ones(5)], np.r_[60, np.full(5, 4)], np.ones(6))
    for compiled in (True, False):
        server = Server(PRICES, scheduling, 200, compiled=compiled)
        served = server.serve(given)
        found = metrics(server, served, Goal())
        began, _, last = served.times
        at = np.linspace(0.0, served.seconds, 20_001)[:-1, None]
        waiting = ((served.arrival <= at) & (at < began)).sum(1).mean()
        running = ((began <= at) & (at < last)).sum(1).mean()
        assert found["waiting_mean"] == pytest.approx(waiting, rel=1e-3)
        assert found["waiting_mean"] > 2
        assert found["running_mean"] == pytest.approx(running, rel=1e-3)
