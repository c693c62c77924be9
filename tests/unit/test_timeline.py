"""Timelines as Perfetto and chrome://tracing read them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from opbyte.core.errors import SimulationError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.result import Result
from opbyte.sim.simulate import simulate
from opbyte.sim.timeline import write_perfetto
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model
from opbyte.workloads.phases import Decode, Generate

SMALL = Model("small", 256, 1000, (Layer(Attention(8, 8, 64), DenseFfn(1024)),), (0,) * 4)


def trace(result: Result, folder: Path) -> list[dict[str, Any]]:
    path = write_perfetto(result, folder / "out.json")
    document = json.loads(path.read_text())
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = document["traceEvents"]
    return events


def of(events: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [e for e in events if e["ph"] == phase]


def mapping(**degrees: int) -> dict[str, Any]:
    made = load_machine("dgx-a100").mapping("eager").model_dump(by_alias=True)
    made["parallel"]["all"].update(degrees)
    return made


CASES = {
    "eager": (Decode(SMALL, 4, 100), "eager"),
    "fused": (Decode(SMALL, 4, 100), "default"),
    "pipeline": (Decode(SMALL, 8, 100), mapping(tp=2, pp=4, microbatches=4)),
}


@pytest.fixture(params=CASES)
def drawn(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Result, list[dict[str, Any]]]:
    work, chosen = CASES[request.param]
    result = simulate("dgx-a100", work, chosen, fidelity="event")
    return result, trace(result, tmp_path)


def test_every_event_is_what_the_format_asks_for(drawn) -> None:
    _, events = drawn
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    for e in events:
        assert isinstance(e["pid"], int)
        assert isinstance(e["tid"], int)
        assert isinstance(e["name"], str)
        assert isinstance(e["args"], dict)
        if e["ph"] == "M":
            assert e["name"] in ("process_name", "thread_name")
            assert isinstance(e["args"]["name"], str)
        else:
            assert e["ts"] >= 0
        if e["ph"] == "X":
            assert e["dur"] >= 0
        if e["ph"] == "C":
            assert all(isinstance(v, int | float) and v >= 0 for v in e["args"].values())


def test_every_process_and_thread_has_a_name(drawn) -> None:
    _, events = drawn
    named = {(e["pid"], e["tid"]) for e in of(events, "M") if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events} == named
    processes = {e["pid"] for e in of(events, "M") if e["name"] == "process_name"}
    assert {e["pid"] for e in events} == processes


def test_the_timeline_spans_the_result(drawn) -> None:
    result, events = drawn
    spans = of(events, "X")
    assert min(e["ts"] for e in spans) == 0
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(result.seconds * 1e6, rel=1e-9)


def test_a_unit_runs_one_operator_at_a_time(drawn) -> None:
    _, events = drawn
    tracks: dict[int, list[tuple[float, float]]] = {}
    names = {e["tid"]: e["args"]["name"] for e in of(events, "M") if e["name"] == "thread_name"}
    for e in of(events, "X"):
        tracks.setdefault(e["tid"], []).append((e["ts"], e["ts"] + e["dur"]))
    assert any("gpu.sm" in names[t] for t in tracks)
    for track, spans in tracks.items():
        if "gpu.sm" in names[track]:
            spans.sort()
            assert all(b[0] >= a[1] - 1e-6 for a, b in pairwise(spans))


def test_bytes_and_operations_of_events_add_up_to_the_breakdown(drawn) -> None:
    result, events = drawn
    frame = result.breakdown
    spans = of(events, "X")
    assert len(spans) == frame["runs"].sum()
    assert sum(e["args"]["flops"] for e in spans) == pytest.approx(frame["flops"].sum(), rel=1e-9)
    for resource in spans[0]["args"]["bytes"]:
        moved = sum(e["args"]["bytes"][resource] for e in spans)
        assert moved == pytest.approx(frame[f"{resource}_bytes"].sum(), rel=1e-9)


def test_counters_rise_in_time_end_at_zero_and_hold_the_bytes(drawn) -> None:
    result, events = drawn
    series: dict[str, list[tuple[float, float]]] = {}
    for e in of(events, "C"):
        series.setdefault(e["name"], []).append((e["ts"], e["args"]["GB/s"]))
    assert "gpu.hbm.phy GB/s" in series
    for name, points in series.items():
        times = [t for t, _ in points]
        assert times == sorted(times)
        assert points[-1][1] == pytest.approx(0, abs=1e-3)
        area = sum(v * (b - t) for (t, v), (b, _) in pairwise(points))
        moved = result.breakdown[f"{name.removesuffix(' GB/s')}_bytes"].sum()
        assert area * 1e-6 * 1e9 == pytest.approx(moved, rel=1e-3)


def test_phases_follow_each_other(tmp_path: Path) -> None:
    result = simulate("dgx-a100", Generate(SMALL, 2, 100, 5), fidelity="event")
    events = trace(result, tmp_path)
    names = {e["pid"]: e["args"]["name"] for e in of(events, "M") if e["name"] == "process_name"}
    first = {
        names[p]: min(e["ts"] for e in of(events, "X") if e["pid"] == p)
        for p in {e["pid"] for e in of(events, "X")}
    }
    assert first == {"prefill": 0, "decode": pytest.approx(result.ttft * 1e6, rel=1e-9)}
    # A step that repeats is drawn once.
    last = max(e["ts"] + e["dur"] for e in of(events, "X"))
    assert last == pytest.approx((result.ttft + result.tpot) * 1e6, rel=1e-9)


def test_a_composition_shows_copies_and_runs(tmp_path: Path) -> None:
    work = {"kind": "coe", "router": "llama-2-7b", "experts": "llama-2-7b", "count": 60,
            "batch": 2, "input": 64, "output": 4, "requests": 5}  # fmt: skip
    result = simulate("sn40l-node", work, fidelity="event", seed=1)
    events = trace(result, tmp_path)
    names = {e["pid"]: e["args"]["name"] for e in of(events, "M") if e["name"] == "process_name"}
    spans = [e for e in of(events, "X") if names[e["pid"]] == "Composition of Experts"]
    words = [e["name"].split()[0] for e in spans]
    assert words.count("router") == 5
    assert words.count("expert") == 10
    assert words.count("copy") == result.requests["misses"].sum()
    last = max(e["ts"] + e["dur"] for e in spans)
    assert last == pytest.approx(result.requests["end_s"].max() * 1e6, rel=1e-9)


@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_without_events_there_is_no_timeline(fidelity: Any, tmp_path: Path) -> None:
    result = simulate("dgx-a100", Decode(SMALL, 1, 10), fidelity=fidelity)
    with pytest.raises(SimulationError, match=f"fidelity '{fidelity}' records no timeline"):
        write_perfetto(result, tmp_path / "out.json")
    assert not list(tmp_path.iterdir())
