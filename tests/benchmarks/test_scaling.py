"""How much two workers gain, on points of 20 ms and more, whole processes, and what a point costs.

Two workers on two cores are at the limit of the machine: measure when nothing else runs. Beside
the wall time stands the CPU time of everything that is not the simulation, which other work on the
machine hardly moves.
"""

import os
import subprocess
import sys
import time

import pytest
from clusters import Cluster
from costly import costly_study

from opbyte.sweeps.store import open_results

#: 24 x 5 x 5 x 2 = 1,200 points, event level, 30 to 50 ms each.


def run(study, out, *where):
    """Return wall seconds and CPU seconds of a run with its local workers."""
    command = [sys.executable, "-m", "opbyte", "sweep", str(study), "--out", str(out)]
    before, began = os.times(), time.perf_counter()
    subprocess.run([*command, "--no-plots", "--quiet", *where], check=True)
    wall, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system
    return wall, used - before.children_user - before.children_system


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling")
    study = folder / "s.yaml"
    study.write_text(costly_study(requests=160, counts=24, rates=5))
    run(study, folder / "warm", "--workers", "1", "--set", "workload.requests=2")
    wall, cpu = run(study, folder / "one", "--workers", "1")
    return study, wall, cpu, open_results(folder / "one").frame()


def test_two_local_workers(benchmark, tmp_path, alone):
    study, wall, cpu, frame = alone
    assert cpu / len(frame) >= 0.020
    two, used = benchmark.pedantic(run, (study, tmp_path / "two", "--workers", "2"), rounds=1)
    assert open_results(tmp_path / "two").frame().equals(frame)
    benchmark.extra_info |= {
        "ms_per_point": 1e3 * cpu / len(frame), "gain": wall / two, "gain_by_cpu": 2 * cpu / used,
    }  # fmt: skip
    assert wall / two >= 1.8


def test_two_workers_of_a_cluster(benchmark, tmp_path, alone):
    study, wall, _, frame = alone
    cluster = Cluster(tmp_path, DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED="False")
    try:
        for _ in range(2):
            cluster.add()
        where = (tmp_path / "dask", "--executor", cluster.executor)
        run(study, tmp_path / "warm", *where[1:], "--set", "workload.requests=2")
        two, _ = benchmark.pedantic(run, (study, *where), rounds=1)
    finally:
        cluster.close()
    assert open_results(tmp_path / "dask").frame().equals(frame)
    benchmark.extra_info["gain"] = wall / two
    assert wall / two >= 1.7
