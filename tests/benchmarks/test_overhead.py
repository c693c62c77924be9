"""What a sweep costs beside its simulations: at most a millisecond of processor time a point."""

import time

import pytest

import opbyte.sweeps.evaluate as module
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study

BASE = {
    "machine": "sn40l-node",
    "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096},
}
RATE = "machine.rdu.hbm.phy.bandwidth"
RANGE = ["0.8 TB/s", "4 TB/s"]
#: Numbers at the event level, one point at a time; many designs; arrays of points.
STUDIES = {
    "event": ("event", {RATE: {"range": RANGE, "steps": 50}, "workload.batch": {"log2": [1, 512]}}),
    "designs": (
        "analytic",
        {
            "mapping.fusion": {"values": ["none", "layer"]},
            "mapping.parallel.all.tp": {"values": [1, 2, 4, 8]},
            "workload.context": {"range": [1024, 8192], "steps": 50},
            "workload.batch": {"log2": [1, 16]},
        },
    ),
    "arrays": (
        "analytic",
        {
            RATE: {"range": RANGE, "steps": 1000},
            "workload.context": {"range": [1024, 8192], "steps": 10},
            "workload.batch": {"log2": [1, 512]},
        },
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_point_costs_at_most_a_millisecond_beside_its_simulation(
    benchmark, tmp_path, monkeypatch, name
):
    fidelity, axes = STUDIES[name]
    objectives = {"tokens_per_s": "max", "joules_per_token": "min"}
    study = {
        "kind": "study", "name": name, "base": BASE, "fidelity": fidelity, "axes": axes,
        "objectives": objectives, "constraints": ["tpot <= 20 ms"],
    }  # fmt: skip
    plan = load_study(study).plan
    simulated, real, own = [0.0], module.evaluate, []

    def timed(*arguments):
        began = time.process_time()
        try:
            return real(*arguments)
        finally:
            simulated[0] += time.process_time() - began

    monkeypatch.setattr(module, "evaluate", timed)

    def sweep():
        simulated[0] = 0.0
        began = time.process_time()
        out = tmp_path / str(len(own))
        points = len(run_plan(plan, Options(out=out, workers=1)).frame())
        own.append((time.process_time() - began - simulated[0]) / points)

    benchmark.pedantic(sweep, rounds=3, warmup_rounds=1)
    benchmark.extra_info["own_ms_a_point"] = 1e3 * min(own)
    assert min(own) <= 1e-3
