"""Devices of decode attention that are lost while a trace is served."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.faults.changes import changes
from opbyte.sim.serving.faults.server import FaultServer, with_heads
from opbyte.sim.serving.fleet.server import server_of
from opbyte.sim.serving.served import Serving
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.serve import Faults, Serve
from opbyte.workloads.traces import ClosedLoop, RequestTrace

MACHINE = "lamina-70b"
CONFIG = {
    "model_type": "llama", "torch_dtype": "float16", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 3, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192,
}  # fmt: skip
MODEL = load_model({"kind": "model", "name": "small", "config": CONFIG})


def trace(requests: list[tuple[float, int, int]], **more: Any) -> RequestTrace:
    arrival, given_, produced = (np.array(c) for c in zip(*requests, strict=True))
    return RequestTrace(arrival.astype(float), given_, produced, **more)


ONE = trace([(0.0, 40, 200)])


def work(faults: Any, requests: RequestTrace = ONE, **scheduler: Any) -> Serve:
    scheduler = {"max_batched_tokens": 64, "max_sequences": 8, "prefix_cache": False} | scheduler
    return Serve(MODEL, requests, scheduler=scheduler, faults=faults)


@cache
def priced(options: tuple[tuple[str, Any], ...]) -> FaultServer:
    machine = load_machine(MACHINE)
    server = server_of(machine, work({}, **dict(options)), machine.mapping("lamina"))
    assert isinstance(server, FaultServer)
    return server


def served(
    faults: Any, requests: RequestTrace = ONE, *, compiled: bool = True, seed: int = 0,
    **scheduler: Any,
) -> Serving:  # fmt: skip
    """Serve a trace; prices of each number of devices are built once for all tests."""
    server = priced(tuple(sorted(scheduler.items())))
    asked = work(faults, requests, **scheduler)
    return replace(server, work=asked, compiled=compiled, seed=seed).serve(asked.trace)


def lost(at: float, device: int = 0, **more: Any) -> dict[str, Any]:
    return {"devices": [{"device": device, "at": f"{at} s", **more}]}


# -- closed forms --------------------------------------------------------------------------


def alone(working: int, prompt: int, answer: int) -> float:
    """Return how long a request takes that is alone on so many devices."""
    prices, seconds, done = priced(()).left(working).prices, 0.0, 0
    while done < prompt:
        new = min(64, prompt - done)
        seconds += prices.cost([(new, done)] if new > 1 else (), new == 1, done + 1.0).seconds
        done += new
    return seconds + sum(prices.cost((), 1, prompt + i).seconds for i in range(1, answer))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("step", ["lost", "ends"])
def test_prompt_and_answer_are_computed_again_on_what_is_left(step: str, compiled: bool) -> None:
    before = served({})
    ends = before.series[0]
    at = 0.5 * float(ends[99] + ends[100])
    found = served({**lost(at, 2), "step": step}, compiled=compiled)
    got, start = (101, float(ends[100])) if step == "ends" else (100, at)
    assert found.times[2, 0] == pytest.approx(start + alone(3, 40 + got, 200 - got), rel=1e-12)
    assert found.preempted.tolist() == [1]
    assert found.losses == 1
    # Tokens of steps that have ended: the lost one's are not among them.
    assert found.tokens == 40 + 199 + 40 + got - 1


@pytest.mark.parametrize("compiled", [True, False])
def test_a_request_fails_with_a_reason(compiled: bool) -> None:
    requests = trace([(0.0, 40, 200), (0.0, 9, 2), (0.03, 40, 5)])
    found = served({**lost(0.02, 3), "policy": "fail"}, requests, compiled=compiled)
    frame = found.requests
    assert frame["status"].tolist() == ["failed", "served", "served"]
    assert frame["reason"][0] == "its KV cache went with device 3 of 'h20' at 0.02 s"
    assert np.isnan(found.times[2, 0])
    assert found.times[1, 0] > 0.0


def test_what_never_happens_changes_nothing() -> None:
    requests = trace([(0.01 * i, 30 + 7 * i, 3 + 11 * i) for i in range(9)])
    machine = load_machine(MACHINE)
    plain = replace(work({}, requests), faults=None)
    whole = server_of(machine, plain, machine.mapping("lamina")).serve(requests)
    for faults in ({}, lost(1e6), {"mtbf": "1e9 s"}):
        found = served(faults, requests)
        assert np.array_equal(found.times, whole.times)
        assert (found.joules, found.steps, found.losses) == (whole.joules, whole.steps, 0)


def test_a_lost_step_costs_what_was_executed_of_it() -> None:
    ends = served({}).series[0]
    at = 0.25 * float(ends[99]) + 0.75 * float(ends[100])
    for compiled in (True, False):
        found = served({**lost(at), "policy": "fail"}, compiled=compiled)
        parts = [
            float(served({**lost(t), "policy": "fail"}).joules) for t in ends[[99, 100]] + 1e-9
        ]
        share = (float(found.joules) - parts[0]) / (parts[1] - parts[0])
        assert share == pytest.approx(0.75, rel=1e-3)


# -- capacity ------------------------------------------------------------------------------


def test_the_fullest_device_decides() -> None:
    server = priced(())
    blocks = {n: server.left(n).blocks for n in (4, 3, 2, 1, 0)}
    # 8 KV heads: 2 on each of four devices, 3 on the fullest of three.
    assert blocks[0] == 0
    for n, heads in {3: 3, 2: 4, 1: 8}.items():
        assert blocks[n] == pytest.approx(blocks[4] * 2 / heads, abs=1)
    given_ = priced((("kv_blocks", 600),))
    assert [given_.left(n).blocks for n in (4, 3, 2, 1)] == [600, 400, 300, 150]


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_left_refuses_what_it_can_not_hold(compiled: bool) -> None:
    requests = trace([(0.0, 40, 60), (0.0, 150, 20), (0.05, 180, 5), (0.06, 20, 5)])
    found = served(lost(0.01), requests, compiled=compiled, kv_blocks=13, max_batched_tokens=48)
    frame = found.requests
    assert frame["status"].tolist() == ["served", "failed", "rejected", "served"]
    want = "needs 11 KV blocks of 8: 3 of 4 devices of 'h20' work"
    assert frame["reason"][1] == want
    assert frame["reason"][2] == want.replace("11", "12")


@pytest.mark.parametrize("compiled", [True, False])
def test_without_devices_requests_wait_for_one_or_are_refused(compiled: bool) -> None:
    requests = trace([(0.0, 40, 100), (0.1, 40, 5)])
    all_ = [{"device": d, "at": "10 ms"} for d in range(4)]
    gone = served({"devices": all_}, requests, compiled=compiled)
    assert gone.requests["status"].tolist() == ["failed", "rejected"]
    assert "0 of 4 devices of 'h20' work" in gone.requests["reason"][1]
    back = [{**loss, "for": "1 s"} for loss in all_[:1]] + all_[1:]
    found = served({"devices": back}, requests, compiled=compiled)
    assert found.served.all()
    assert found.times[0, 1] >= 1.01
    assert found.times[2, 0] > 1.01 + alone(1, 40, 50)


def test_a_device_returns() -> None:
    requests = trace([(0.0, 40, 400)])
    never = served(lost(0.01), requests)
    back = served({"devices": [{"device": 0, "at": "10 ms", "for": "10 ms"}]}, requests)
    assert back.preempted.tolist() == [2]
    assert never.preempted.tolist() == [1]
    # Losing nobody to policy fail: nothing is lost by a return.
    kept = {"devices": [{"device": 0, "at": "0 s", "for": "10 ms"}], "policy": "fail"}
    assert served(kept, requests).served.all()


# -- both engines, on everything that may happen ---------------------------------------------


@st.composite
def cases(draw: Any) -> tuple[dict[str, Any], RequestTrace, int, int]:
    count = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.sampled_from([0.0, 1e-3, 0.01]), min_size=count, max_size=count))
    lengths = st.lists(st.integers(1, 90), min_size=count, max_size=count)
    requests = trace(list(zip(np.cumsum(gaps).tolist(), draw(lengths), draw(lengths), strict=True)))
    at, losses = draw(st.sampled_from([0.0, 0.01])), []
    for _ in range(draw(st.integers(0, 4))):
        device = draw(st.integers(0, 3))
        if device in [loss["device"] for loss in losses]:
            continue
        away = draw(st.sampled_from([None, "1 ms", "20 ms"]))
        losses.append({"device": device, "at": f"{at} s", **({"for": away} if away else {})})
        at += draw(st.sampled_from([0.0, 1e-4, 0.01]))
    faults: dict[str, Any] = {
        "devices": losses,
        "policy": draw(st.sampled_from(["recompute", "fail"])),
        "step": draw(st.sampled_from(["lost", "ends"])),
    }
    if draw(st.booleans()):
        faults["mtbf"] = draw(st.sampled_from(["1 ms", "20 ms", "200 ms"]))
        if draw(st.booleans()):
            faults["repair"] = draw(st.sampled_from(["1 ms", "20 ms"]))
    if faults["policy"] == "recompute":
        faults["retries"] = draw(st.integers(0, 4))
    return faults, requests, draw(st.sampled_from([14, 30])), draw(st.integers(0, 9))


@seed(7)
@settings(max_examples=120, deadline=None)
@given(cases())
def test_every_request_ends_and_both_engines_agree(case: Any) -> None:
    faults, requests, blocks, drawn = case
    one, two = (
        served(faults, requests, compiled=c, seed=drawn, kv_blocks=blocks) for c in (True, False)
    )
    for found in (one, two):
        counts = found.requests["status"].value_counts()
        assert counts.sum() == len(requests)
        assert counts["served"] == np.isfinite(found.times[2]).sum()
        assert counts["failed"] == len(found.failed)
        assert counts["rejected"] == len(found.reasons) - len(found.failed)
        begun, first, last = found.times[:, found.served]
        assert np.all((found.arrival[found.served] <= begun) & (begun < first) & (first <= last))
    assert one.times == pytest.approx(two.times, rel=1e-12, nan_ok=True)
    assert (one.reasons, one.failed) == (two.reasons, two.failed)
    assert one.preempted.tolist() == two.preempted.tolist()
    same = ("losses", "steps", "tokens", "hits")
    assert [getattr(one, n) for n in same] == [getattr(two, n) for n in same]
    assert one.joules == pytest.approx(two.joules, rel=1e-9)
    assert one.busy == pytest.approx(two.busy, rel=1e-9)
    assert one.means == pytest.approx(two.means, rel=1e-9, abs=1e-15)
    assert one.tally.gaps.tolist() == two.tally.gaps.tolist()
    assert one.series == pytest.approx(two.series, rel=1e-12)


OTHERS = [
    {"kind": "shortest"}, {"kind": "static"}, {"depth": 2}, {"prefix_cache": True}, {"chunk": False,
    "max_batched_tokens": 200},
]  # fmt: skip


@pytest.mark.parametrize("scheduler", OTHERS, ids=lambda s: next(iter(s)))
@pytest.mark.parametrize("step", ["lost", "ends"])
def test_other_orders_end_too(scheduler: dict[str, Any], step: str) -> None:
    requests = trace([(0.002 * i, 30 + 9 * i, 10 + 5 * i) for i in range(12)])
    found = served(
        {**lost(0.02, 1, **{"for": "10 ms"}), "step": step}, requests, kv_blocks=60, **scheduler
    )
    assert found.served.all()
    assert found.preempted.sum() > 0


def test_clients_that_wait_hear_of_failures() -> None:
    client = ClosedLoop(2, np.zeros(6))
    requests = trace([(0.0, 40, 60)] * 6, timed=False, client=client)
    found = served({**lost(0.01), "policy": "fail"}, requests)
    assert found.requests["status"].tolist() == ["failed"] * 2 + ["served"] * 4


def test_retries_end_what_would_never_end() -> None:
    requests = trace([(0.0, 60, 80), (0.001, 60, 80)])
    found = served({"mtbf": "4 ms", "repair": "1 ms", "retries": 3}, requests)
    assert found.requests["status"].tolist() == ["failed"] * 2
    assert "computed again 3 times" in found.requests["reason"][0]


# -- what is drawn -------------------------------------------------------------------------


@seed(3)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_changes_are_consistent(devices: int, repaired: bool, drawn: int) -> None:
    faults = Faults(mtbf="10 s", **({"repair": "3 s"} if repaired else {}))
    found = list(islice(changes(faults, devices, drawn), 200))
    assert found == list(islice(changes(faults, devices, drawn), 200))
    assert all(a.at < b.at for a, b in pairwise(found))
    away: set[int] = set()
    for change in found:
        assert not away & set(change.lost)
        assert away >= set(change.back)
        away = (away | set(change.lost)) - set(change.back)
        assert change.working == devices - len(away)
        assert change.awaited == (len(away) if repaired else 0)
    assert repaired or len(found) == devices


def test_mean_time_between_failures() -> None:
    faults = Faults(mtbf="10 s", repair="2 s")
    found = list(islice(changes(faults, 16, 1), 40_000))
    losses = sum(len(change.lost) for change in found)
    # A device fails once in 12 seconds, 10 of which it works.
    assert found[-1].at * 16 / losses == pytest.approx(12.0, rel=0.02)


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (lost(1, 4), r"faults.devices\[0\].device: decode attention has 4 of 'h20'.*got 4"),
        ({"devices": [{"device": 0, "at": "1 s", "for": "0 s"}]}, "must be some time"),
        ({"devices": [{"device": 0, "at": "1 s"}] * 2}, "must be back before it is lost again"),
        ({"devices": [{"device": 0, "at": "-1 s"}]}, "can not be negative"),
        ({"devices": [{"device": 0, "at": 3}]}, "unit"),
        ({"repair": "1 s"}, "does nothing here, it is for mtbf"),
        ({"mtbf": "0 s"}, "must be some time"),
        ({"policy": "fail", "retries": 3}, "does nothing here, it is for policy recompute"),
        ({"policy": "hope"}, "recompute"),
        ({"device": 1}, "device"),
    ],
)
def test_mistakes_are_named(faults: Any, message: str) -> None:
    machine = load_machine(MACHINE)
    with pytest.raises(ConfigError, match=message):
        server_of(machine, work(faults), machine.mapping("lamina"))


def test_what_no_model_covers_is_refused() -> None:
    machine = load_machine(MACHINE)
    with pytest.raises(UncoveredError, match="has no devices of their own for decode attention"):
        ob.simulate(machine, work(lost(1)), mapping="default")
    with pytest.raises(UncoveredError, match="one of several engines"):
        ob.simulate(machine, replace(work(lost(1)), fleet={"replicas": 2}), mapping="lamina")
    with pytest.raises(UncoveredError, match="devices are lost at given times"):
        ob.capacity(machine, work(lost(1)), {"ttft_p99": "1 s"}, mapping="lamina")
    gone = {"devices": [{"device": d, "at": "0 s"} for d in range(4)]}
    with pytest.raises(WorkloadError, match="0 of 4 devices of 'h20' work"):
        ob.simulate(machine, work(gone), mapping="lamina")


def test_metrics_are_there_for_users() -> None:
    found = ob.simulate(MACHINE, work(lost(0.01)), mapping="lamina")
    assert found.metrics["device_losses"] == 1
    assert found.metrics["failed"] == found.metrics["rejected"] == 0
    assert set(work(None).silent) >= {"failed", "device_losses"}


# -- a system with a device missing --------------------------------------------------------


def test_a_static_work_is_priced_on_fewer_devices() -> None:
    machine = load_machine(MACHINE)
    mapping = machine.mapping("lamina")
    asked = ob.Decode("llama-3-70b", batch=64, context=4096)
    times, most = [], []
    for n in (4, 3, 2):
        fewer = with_heads(mapping, n)
        times.append(ob.simulate(machine, asked, mapping=fewer).tpot)
        whole = ob.Decode("llama-3-70b", batch="max", context=4096)
        most.append(ob.simulate(machine, whole, mapping=fewer).metrics["batch_max"])
    assert times[0] < times[1] < times[2]
    assert most[1] == pytest.approx(most[0] * 2 / 3, abs=1)
    assert most[2] == pytest.approx(most[0] / 2, abs=1)
    too_many = ob.Decode("llama-3-70b", batch=int(most[0]), context=4096)
    ob.simulate(machine, too_many, mapping=mapping)
    with pytest.raises(CapacityError, match=r"h20\.hbm"):
        ob.simulate(machine, too_many, mapping=with_heads(mapping, 3))
