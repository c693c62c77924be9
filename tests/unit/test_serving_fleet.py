"""Several engines: routers, compiled twins, failures, devices; what one engine does, N times."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.compiled.fleet import route_compiled
from opbyte.sim.serving.fleet.routers import ROUTERS
from opbyte.sim.serving.fleet.server import FleetServer, server_of
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.server import Server
from opbyte.spi import Router, check_router
from opbyte.sweeps.cli import main
from opbyte.workloads.serve import Fleet, Scheduling, Serve
from opbyte.workloads.traces import ClosedLoop, PrefixBlocks, RequestTrace
from tests.unit.test_serving_twin import prices

PRICES = prices(128)


def trace(n: int = 120, seed: int = 0, gap: float = 0.002) -> RequestTrace:
    rng = np.random.default_rng(seed)
    return RequestTrace(
        np.cumsum(rng.exponential(gap, n)), rng.integers(1, 40, n), rng.integers(1, 40, n)
    )


def server(blocks: int = 60, *, compiled: bool = True, depth: int = 2, **fleet) -> FleetServer:
    scheduling = Scheduling(
        max_sequences=8, max_batched_tokens=64, block_tokens=4, kv_blocks=blocks, depth=depth
    )
    engine = Server(PRICES, scheduling, blocks, compiled=compiled)
    return FleetServer(engine, Fleet.model_validate(fleet))


def same(one, other):
    """Check that two ways through say the same of requests and of steps."""
    assert one.spread.replica.tolist() == other.spread.replica.tolist()
    np.testing.assert_array_equal(one.times, other.times)
    assert one.preempted.tolist() == other.preempted.tolist()
    assert one.series.tolist() == other.series.tolist()
    assert one.spread.series.tolist() == other.spread.series.tolist()
    assert one.means == pytest.approx(other.means, rel=1e-9)
    assert list(one.busy.values()) == pytest.approx(list(other.busy.values()), rel=1e-9)
    assert (one.steps, one.tokens) == (other.steps, other.tokens)


@pytest.mark.parametrize("router", ROUTERS.names())
def test_the_compiled_loops_and_the_plug_ins_say_the_same(router):
    given = trace()
    one = server(replicas=3, router=router).serve(given)
    other = server(replicas=3, router=router, compiled=False).serve(given)
    assert one.preempted.any()
    same(one, other)
    assert np.isfinite(one.times).all()
    assert set(one.spread.replica) == {0, 1, 2}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_twins_of_drawn_requests(data):
    n = data.draw(st.integers(1, 30))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    gaps = st.lists(st.sampled_from([0.0, 1e-4, 0.003, 0.05]), min_size=n, max_size=n)
    given = RequestTrace(
        np.cumsum(data.draw(gaps)), np.array(data.draw(lengths)), np.array(data.draw(lengths))
    )
    fleet = {"replicas": data.draw(st.integers(2, 4)), "router": "least_outstanding"}
    how = {"blocks": data.draw(st.integers(20, 60)), "depth": data.draw(st.integers(1, 3))}
    same(server(**how, **fleet).serve(given), server(**how, **fleet, compiled=False).serve(given))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_twins_where_arrivals_are_at_the_very_end_of_a_step(data):
    """A router sees what is outstanding before the answers of that instant."""
    fleet = {"replicas": 2, "router": "least_outstanding"}
    given = trace(20)
    ends = server(**fleet).serve(given).series[0]
    moved = np.sort(data.draw(st.lists(st.sampled_from(ends.tolist()), min_size=20, max_size=20)))
    given = RequestTrace(moved, given.input_tokens, given.output_tokens)
    same(server(**fleet).serve(given), server(**fleet, compiled=False).serve(given))


def test_the_loops_without_the_compiler_and_with_little_room_at_first():
    given = trace(60)
    args = (given.arrival_s, given.input_tokens, given.output_tokens)
    limits = Limits(max_sequences=8, max_batched_tokens=64)
    how = {"engines": 3, "blocks": 60, "block_tokens": 4, "depth": 2}
    one = route_compiled(*args, limits, PRICES, **how)
    for other in (
        route_compiled(*args, limits, PRICES, **how, room=1),
        route_compiled(*args, limits, PRICES, **how, plain=True),
    ):
        assert one.replica.tolist() == other.replica.tolist()
        for a, b in zip(one.engines, other.engines, strict=True):
            assert a.times.tolist() == b.times.tolist()
            assert a.busy.tolist() == b.busy.tolist()


@pytest.mark.parametrize("compiled", [True, False])
def test_in_turn_is_as_many_engines_of_their_own(compiled):
    given = trace()
    together = server(replicas=3, compiled=compiled).serve(given)
    for i in range(3):
        alone = server(compiled=compiled).engine.serve(given.take(np.arange(i, len(given), 3)))
        assert together.times[:, i::3].tolist() == alone.times.tolist()
        mine = together.spread.series == i
        assert together.series[:, mine].tolist() == alone.series.tolist()
    assert together.spread.replica.tolist() == [i % 3 for i in range(len(given))]


def test_requests_that_never_fit_take_no_turn():
    given = trace(9)
    long = given.input_tokens.copy()
    long[1] = 1000
    given = RequestTrace(given.arrival_s, long, given.output_tokens)
    for compiled in (True, False):
        served = server(replicas=2, compiled=compiled).serve(given)
        assert list(served.reasons) == [1]
        assert served.spread.replica.tolist() == [0, -1, 1, 0, 1, 0, 1, 0, 1]
        assert served.requests["replica"][1] == -1


def test_the_least_loaded_engine_is_chosen():
    """A long answer keeps the first engine; the short ones that follow go to the second."""
    arrival = np.array([0.0, 0.02, 0.04, 0.06])
    given = RequestTrace(arrival, np.full(4, 4), np.array([39, 2, 2, 2]))
    served = server(replicas=2, router="least_outstanding").serve(given)
    assert served.times[2, 0] > arrival[3]
    assert served.spread.replica.tolist() == [0, 1, 1, 1]
    rare = RequestTrace(arrival * 50, given.input_tokens, given.output_tokens)
    served = server(replicas=2, router="least_outstanding").serve(rare)
    assert served.spread.replica.tolist() == [0, 0, 0, 0]


def conversations(n: int = 60) -> RequestTrace:
    """Return requests of six conversations in turn, each with a prompt of its own."""
    ids = np.repeat(np.arange(n) % 6, 8) * 8 + np.tile(np.arange(8), n)
    prefix = PrefixBlocks(ids, np.arange(n + 1) * 8, 4)
    return RequestTrace(np.arange(n) * 0.01, np.full(n, 33), np.full(n, 3), prefix)


def test_prompts_go_where_their_blocks_are():
    """Six conversations over four engines: in turn, each engine reads most of them."""
    given = conversations()
    near = server(replicas=4, router="prefix_affinity", blocks=200).serve(given)
    far = server(replicas=4, router="round_robin", blocks=200).serve(given)
    of = near.spread.replica.reshape(-1, 6)
    assert (of == of[0]).all()
    # 32 of 33 tokens of each prompt but the first of a conversation are in the cache.
    assert near.tokens == 60 * 35 - 54 * 32
    assert far.tokens > near.tokens


def test_a_crowded_engine_is_left_alone():
    given = conversations()
    hurried = RequestTrace(
        given.arrival_s / 1e3, given.input_tokens, given.output_tokens, given.prefix
    )
    fleet = {"replicas": 4, "router": "prefix_affinity", "slack": 2}
    counts = np.bincount(server(**fleet).serve(hurried).spread.replica)
    assert counts.max() - counts.min() <= 3


def test_a_failing_replica_loses_nothing():
    given = trace(200)
    fleet = {"replicas": 3, "router": "round_robin"}
    usual = server(**fleet, compiled=False).serve(given)
    down = {"replica": 1, "at": "100 ms", "for": "150 ms"}
    served = server(**fleet, failures=[down]).serve(given)
    assert np.isfinite(served.times).all()
    assert not served.reasons
    # Nothing changes before it fails, and a request that was served by then stays served.
    before = usual.times < 0.1
    assert (served.times[before] == usual.times[before]).all()
    assert served.preempted.sum() > usual.preempted.sum()
    # Prompts, and answers but their last token, are computed once at least.
    due = int((given.input_tokens + given.output_tokens - 1).sum())
    assert served.tokens >= due
    steps, of = served.series[0], served.spread.series
    assert not ((of == 1) & (steps > 0.1) & (steps <= 0.25)).any()
    assert ((of == 1) & (steps > 0.25)).any()
    arrivals = (given.arrival_s >= 0.1) & (given.arrival_s < 0.25)
    assert 1 not in served.spread.replica[arrivals]
    again = server(**fleet, failures=[down]).serve(given)
    assert again.times.tobytes() == served.times.tobytes()


def test_what_a_failing_replica_never_had_is_not_touched():
    """It fails after its last answer, and is not needed again."""
    given = trace(30)
    usual = server(replicas=3, compiled=False).serve(given)
    late = [{"replica": 0, "at": "1000 s", "for": "1 s"}]
    served = server(replicas=3, failures=late).serve(given)
    assert served.times.tolist() == usual.times.tolist()


def test_a_request_goes_on_with_the_tokens_that_it_has():
    """One request: half of its answer before the failure, the rest read again elsewhere."""
    given = RequestTrace(np.zeros(1), np.array([20]), np.array([30]))
    alone = server(replicas=2, compiled=False, depth=1).serve(given)
    at = float(alone.series[0, 10]) + 1e-4
    down = [{"replica": 0, "at": f"{at} s", "for": "1 s"}]
    served = server(replicas=2, failures=down, depth=1).serve(given)
    assert served.times[:2].tolist() == alone.times[:2].tolist()
    assert served.spread.replica.tolist() == [1]
    assert served.preempted.tolist() == [1]
    # 11 steps, then the prompt and the 11 tokens in one, then the other 18.
    steps = served.series[1]
    assert steps.tolist() == [20, *[1] * 10, 31, *[1] * 18]
    assert served.tokens == 20 + 29 + 30


def test_where_all_are_down_requests_wait():
    given = RequestTrace(np.array([0.0, 0.5, 0.6]), np.full(3, 8), np.full(3, 4))
    down = [{"replica": i, "at": f"{400 + i} ms", "for": "1 s"} for i in range(2)]
    served = server(replicas=2, failures=down).serve(given)
    assert (served.times[0, 1:] == 1.4).all()
    assert np.isfinite(served.times).all()
    alone = [{"replica": 0, "at": "0 s", "for": "1 s"}]
    assert (server(replicas=1, failures=alone).serve(given).times[0] == 1.0).all()


def test_clients_that_wait_for_answers_survive_a_failure():
    n = 40
    client = ClosedLoop(8, np.full(n, 0.001))
    given = RequestTrace(np.zeros(n), np.full(n, 12), np.full(n, 9), timed=False, client=client)
    down = [{"replica": 1, "at": "20 ms", "for": "30 ms"}]
    served = server(replicas=2, router="least_outstanding", failures=down).serve(given)
    assert np.isfinite(served.times).all()
    assert served.preempted.any()


# -- on machines -------------------------------------------------------------------------


LLAMA = ob.load_model("llama-3.1-8b")


def gpus(count: int):
    """Return a machine of so many A100, without a host."""
    return load_machine("a100-sxm-80gb").replace({"gpu.count": count})


def chats(n: int = 80, gap: float = 0.05) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(gap, n)),
            "input_tokens": rng.integers(20, 1500, n),
            "output_tokens": rng.integers(1, 200, n),
        }
    )


def test_one_replica_is_one_engine():
    one = ob.simulate(gpus(1), Serve(LLAMA, chats()))
    same = ob.simulate(gpus(1), Serve(LLAMA, chats(), fleet={"replicas": 1}))
    assert one.metrics == pytest.approx(same.metrics, nan_ok=True, abs=0.0)
    assert "replica" not in one.requests
    assert isinstance(server_of(gpus(1), Serve(LLAMA, chats()), gpus(1).mapping()), Server)


def test_a_fleet_end_to_end():
    result = ob.simulate(gpus(4), Serve(LLAMA, chats(), fleet={"replicas": 4}))
    frame, series = result.requests, result.outcome.detail["series"]
    assert (frame["status"] == "served").all()
    assert frame["replica"].value_counts().tolist() == [20] * 4
    assert series["end_s"].is_monotonic_increasing
    assert sorted(set(series["replica"])) == [0, 1, 2, 3]
    assert result.tokens_per_s * result.seconds == pytest.approx(frame["output_tokens"].sum())
    # Shares are means over engines.
    assert result.utilisation < 1.0
    busy = result.outcome.detail["busy"]
    assert result.utilisation == pytest.approx(max(busy.values()) / result.seconds / 4)
    # Joules are of all steps and of all devices, whether or not they work.
    idle = ob.simulate(gpus(8), Serve(LLAMA, chats(), fleet={"replicas": 4}))
    watts = load_machine("a100-sxm-80gb").values["gpu.static_power"]
    assert idle.joules - result.joules == pytest.approx(4 * watts * result.seconds)
    assert idle.price_usd == pytest.approx(2 * result.price_usd)


def test_four_engines_take_four_times_the_load():
    goal = {"ttft_p99": "1 s", "tpot_p99": "60 ms"}
    rate = [
        ob.capacity(gpus(n), Serve(LLAMA, chats(100 * n), fleet={"replicas": n}), goal).rate
        for n in (1, 4)
    ]
    assert rate[1] / rate[0] == pytest.approx(4.0, rel=0.15)


def test_more_engines_than_devices_are_refused():
    with pytest.raises(
        ob.ConfigError, match="3 engines of 1 devices need 3 of 'gpu', but a100-sxm-80gb has 2"
    ):
        ob.simulate(gpus(2), Serve(LLAMA, chats(), fleet={"replicas": 3}))
    with pytest.raises(ob.ConfigError, match="a100-sxm-80gb has 1"):
        ob.simulate("a100-sxm-80gb", Serve(LLAMA, chats(), fleet={"replicas": 2}))


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        ({"replicas": 0}, "must be at least 1"),
        ({"replica": 2}, "replica"),
        ({"replicas": 2, "pools": {"prefill": 1, "decode": 1}}, "beside pools"),
        ({"replicas": 2, "via": "nvlink"}, "via"),
        ({"replicas": 2, "failures": [{"replica": 2, "at": "1 s", "for": "1 s"}]}, "2 engines"),
        ({"failures": [{"replica": 0, "at": "1 s", "for": "0 s"}]}, "some time"),
        ({"failures": [{"replica": 0, "at": f"{t} s", "for": "2 s"} for t in (1, 2)]}, "back"),
        ({"failures": [{"replica": 0, "at": f"{t} s", "for": "2 s"} for t in (3, 1)]}, "back"),
        ({"failures": [{"replica": 0, "at": "1 GB", "for": "2 s"}]}, "time"),
        ({"replicas": 2, "router": "round-robin"}, "Did you mean 'round_robin'"),
        ({"replicas": 2, "router": "randm"}, "no router is called 'randm'"),
    ],
)  # fmt: skip
def test_fleets_that_make_no_sense_are_refused(block, rule):
    with pytest.raises(ob.ConfigError, match=rule):
        ob.simulate(gpus(2), Serve(LLAMA, chats(3), fleet=block))


def test_what_engines_would_share_is_refused():
    """Weights in a memory of which there is one: both engines would read it at its full rate."""
    machine = load_machine("dgx-a100")
    mapping = machine.mapping("eager").model_dump(by_alias=True, exclude_unset=True)
    mapping["parallel"]["all"]["tp"] = 1
    mapping["place"] = {"weight": {"in": {"host.dram": 1.0}}}
    work = Serve(LLAMA, chats(3), fleet={"replicas": 2})
    with pytest.raises(ob.UncoveredError, match="would share"):
        ob.simulate(machine, work, mapping)


def test_a_fleet_on_the_command_line(tmp_path, capsys):
    machine = "{kind: machine, extends: a100-sxm-80gb, name: two, parts: {gpu: {count: 2}}}"
    (tmp_path / "two.yaml").write_text(machine)
    fleet = "{replicas: 2, router: least_outstanding, failures: [{replica: 1, at: 9 s, for: 1 s}]}"
    work = f"{{kind: serve, model: llama-3.1-8b, trace: sample-chat, fleet: {fleet}}}"
    (tmp_path / "e.yaml").write_text(f"kind: experiment\nmachine: two.yaml\nworkload: {work}\n")
    run = ["run", str(tmp_path / "e.yaml"), "--quiet", "--out", str(tmp_path / "out")]
    assert main(run) == 0
    frame = pd.read_parquet(tmp_path / "out" / "requests.parquet")
    assert set(frame["replica"]) == {0, 1}
    assert (frame["status"] == "served").all()
    assert set(pd.read_parquet(tmp_path / "out" / "series.parquet")["replica"]) == {0, 1}
    assert main([*run, "--set", "workload.fleet.replicas=3"]) == 2
    assert "3 engines of 1 devices need 3 of 'gpu', but two has 2" in capsys.readouterr().err
    assert main([*run, "--set", "workload.fleet.router=random"]) == 2
    assert "no router is called 'random'" in capsys.readouterr().err


# -- plug-ins ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROUTERS.names())
def test_routers_that_ship_keep_their_contract(name):
    check_router(ROUTERS.lookup(name))


class Stubborn(Router):
    """Always the second one."""

    def choose(self, request, up):  # noqa: ARG002
        """Return the number of an engine."""
        return 1


class Last(Router):
    """The last one that works."""

    def choose(self, request, up):  # noqa: ARG002
        """Return the number of an engine."""
        return up[-1].number


def test_a_router_of_ones_own():
    with pytest.raises(ob.SimulationError, match="of those that work"):
        check_router(Stubborn)
    check_router(Last)
    ROUTERS.register("test-last")(Last)
    try:
        served = server(replicas=3, router="test-last").serve(trace(10))
        assert set(served.spread.replica) == {2}
    finally:
        ROUTERS._entries.pop("test-last")
