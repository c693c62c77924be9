"""How fast sweeps are, whole processes."""

import statistics
import subprocess
import sys
import time

import pytest

from opbyte.sweeps.store import open_results

STUDY = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
axes:
  machine.rdu.hbm.phy.bandwidth: {range: [0.8 TB/s, 4 TB/s], steps: 40}
  machine.rdu.pcu.peak.bf16: {range: [300 TFLOP/s, 900 TFLOP/s], steps: 25}
  machine.p2p.bandwidth: {range: [50 GB/s, 400 GB/s], steps: 20}
  workload.batch: {log2: [1, 512]}
objectives: {tokens_per_s: max, joules_per_token: min}
"""


def run(*arguments):
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "opbyte", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


def test_200000_analytic_points_on_one_core(benchmark, tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text(STUDY)
    out = tmp_path / "out"
    command = ("sweep", str(study), "--out", str(out), "--workers", "1", "--no-plots", "--fresh")
    seconds = benchmark.pedantic(run, command, rounds=3)
    frame = open_results(out).frame()
    assert len(frame) == 200_000
    assert (frame["status"] == "ok").all()
    benchmark.extra_info["points_per_s"] = 200_000 / seconds
    assert 200_000 / benchmark.stats.stats.median >= 50_000


@pytest.mark.parametrize("study", ["coe_scaling", "op_per_byte"])
def test_a_shipped_study_takes_less_than_a_minute(benchmark, tmp_path, study):
    command = ("sweep", study, "--out", str(tmp_path / study))
    assert benchmark.pedantic(run, command, rounds=1) < 60


def test_help(benchmark):
    benchmark.pedantic(run, ("--help",), rounds=5)
    assert statistics.median(benchmark.stats.stats.data) <= 0.3
