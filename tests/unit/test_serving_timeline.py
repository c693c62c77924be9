"""The timeline of a served trace: what Perfetto needs, and what happened when."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.sim.serving import timeline
from opbyte.sim.timeline import write_perfetto
from opbyte.sweeps.cli import main

ROWS = 40


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            # A gap of a minute in which nothing is there.
            "arrival_s": np.cumsum(rng.exponential(0.05, ROWS)) + 60.0 * (np.arange(ROWS) > 20),
            "input_tokens": rng.integers(20, 1500, ROWS),
            "output_tokens": rng.integers(1, 60, ROWS),
        }
    )
    limits = {"kv_blocks": 400, "max_batched_tokens": 512}
    return ob.simulate("a100-sxm-80gb", ob.Serve("llama-3.1-8b", frame, scheduler=limits))


def events_of(result, folder):
    return json.loads(write_perfetto(result, folder / "t.json").read_text())["traceEvents"]


def names(events, kind):
    key = "pid" if kind == "process_name" else "tid"
    return {e["args"]["name"]: e[key] for e in events if e["name"] == kind}


def test_every_event_has_what_viewers_need(result, tmp_path):
    events = events_of(result, tmp_path)
    due = {"X": {"dur", "args"}, "C": {"args"}, "b": {"id", "cat"}, "e": {"id", "cat"}, "M": set()}
    for event in events:
        needed = {"name", "ph", "pid", "tid"} | due[event["ph"]]
        assert needed <= set(event), event
        assert isinstance(event["pid"], int)
        assert event["ph"] == "M" or event["ts"] >= 0
    assert {"steps", "running", "waiting", "KV blocks free", "tokens of a step"} <= set(
        names(events, "thread_name")
    )


def test_steps_follow_each_other_and_hold_all_tokens(result, tmp_path):
    steps = [e for e in events_of(result, tmp_path) if e["ph"] == "X"]
    assert len(steps) == result.steps
    for before, after in pairwise(steps):
        assert after["ts"] >= before["ts"] + before["dur"] - 1e-3
    frame = result.requests
    least = (frame["input_tokens"] + frame["output_tokens"] - 1).sum()
    tokens = sum(e["args"]["tokens"] for e in steps)
    assert tokens >= least
    assert (tokens == least) == (not frame["preempted"].any())
    # A unit that is never idle in a step is busy as long as the steps last.
    lasting = sum(e["dur"] for e in steps) / 1e6
    assert lasting <= result.seconds - 55.0
    assert max(result.outcome.detail["busy"].values()) <= lasting * (1 + 1e-9)


def test_requests_are_phases_inside_of_their_whole(result, tmp_path):
    events = [e for e in events_of(result, tmp_path) if e["ph"] in "be"]
    frame = result.requests
    for row in range(ROWS):
        own = [e for e in events if e["id"] == str(row)]
        assert [own[0]["name"], own[-1]["name"]] == ["request", "request"]
        assert own[0]["ts"] == pytest.approx(1e6 * frame["arrival_s"][row])
        assert own[-1]["ts"] == pytest.approx(1e6 * frame["last_token_s"][row])
        assert [e["ts"] for e in own] == sorted(e["ts"] for e in own)
        lasting = {}
        for begin, end in pairwise(own):
            if (begin["ph"], end["ph"]) == ("b", "e"):
                lasting[begin["name"]] = (end["ts"] - begin["ts"]) / 1e6
        prefill = frame["first_token_s"][row] - frame["scheduled_s"][row]
        assert lasting["prefill"] == pytest.approx(prefill)
        assert ("decode" in lasting) == (frame["output_tokens"][row] > 1)


def test_counters_end_at_rest(result, tmp_path):
    last = {}
    for event in events_of(result, tmp_path):
        if event["ph"] == "C":
            last[event["name"]] = event["args"][event["name"]]
    assert last["running"] == last["waiting"] == 0
    assert last["KV blocks free"] == 400


def test_large_traces_stay_small_and_say_so(result, tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "MOST_STEPS", 50)
    monkeypatch.setattr(timeline, "MOST_REQUESTS", 10)
    events = events_of(result, tmp_path)
    steps = [e for e in events if e["ph"] == "X"]
    assert 25 <= len(steps) <= 50
    each = -(-int(result.steps) // 50)
    assert f"steps, {each} in each slice" in names(events, "thread_name")
    assert "requests, one of 4 of 40" in names(events, "process_name")
    assert sum(e["ph"] == "b" and e["name"] == "request" for e in events) == 10
    for before, after in pairwise(steps):
        assert after["ts"] >= before["ts"] + before["dur"] - 1e-3


@pytest.mark.parametrize(("steps", "rows", "each"), [(100, 100, 1), (100, 50, 2), (101, 13, 8)])
def test_how_many_steps_a_row_is(steps, rows, each):
    assert timeline.steps_in_a_row(steps, rows) == each


def test_the_command_writes_it_at_every_fidelity(tmp_path):
    text = (
        "kind: experiment\nmachine: a100-sxm-80gb\n"
        "workload: {kind: serve, model: llama-3.1-8b, trace: sample-chat}\n"
    )
    (tmp_path / "e.yaml").write_text(text)
    file = tmp_path / "t.json"
    for fidelity in ("analytic", "event"):
        command = ["run", str(tmp_path / "e.yaml"), "--quiet", "--timeline", str(file)]
        assert main([*command, "--fidelity", fidelity]) == 0
        assert json.loads(file.read_text())["traceEvents"]
        file.unlink()


@pytest.fixture(scope="module")
def nodes():
    machine = ob.load_machine("dgx-a100").replace({"gpu.count": 4})
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.2, ROWS)),
            "input_tokens": rng.integers(20, 1500, ROWS),
            "output_tokens": rng.integers(1, 60, ROWS),
        }
    )
    return machine, frame


@pytest.mark.parametrize(
    "fleet",
    [
        {"replicas": 3},
        {"replicas": 2, "failures": [{"replica": 0, "at": "2 s", "for": "1 s"}]},
        {"pools": {"prefill": 1, "decode": 2}},
    ],
)
def test_engines_have_tracks_of_their_own(nodes, fleet, tmp_path):
    machine, frame = nodes
    mapping = machine.mapping("eager").model_dump(by_alias=True, exclude_unset=True)
    mapping["parallel"]["all"]["tp"] = 1
    result = ob.simulate(machine, ob.Serve("llama-3.1-8b", frame, fleet=fleet), mapping)
    events = events_of(result, tmp_path)
    pids = names(events, "process_name")
    served, steps = result.requests, 0
    for number in range(len(result.outcome.detail["engine_steps"])):
        pid = pids[f"{machine.name}, engine {number}"]
        own = [e for e in events if e["ph"] == "X" and e["pid"] == pid]
        assert len(own) == result.outcome.detail["engine_steps"][number] > 0
        assert all(e["dur"] > 0 for e in own)
        for before, after in pairwise(own):
            assert after["ts"] >= before["ts"] + before["dur"] - 1e-3
        steps += len(own)
    assert steps == result.steps
    tracks = {v: k for k, v in names(events, "thread_name").items()}
    whole = [e for e in events if e["ph"] == "b" and e["name"] == "request"]
    for row in range(ROWS):
        found = [tracks[e["tid"]] for e in whole if e["args"]["row"] == row]
        read = "prefill_replica" if "pools" in fleet else "replica"
        numbers = dict.fromkeys([served[read][row], served["replica"][row]])
        assert found == [f"requests of engine {number}" for number in numbers]
