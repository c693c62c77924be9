"""A million stored points: processor time of this process, and the memory of others."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stored import META

import opbyte as ob
from opbyte.sweeps.compact import compact
from opbyte.sweeps.rows import Rows, Words
from opbyte.sweeps.store import Store

POINTS = 1_000_000
AXES = [f"machine.part.unit.axis_{i}" for i in range(4)]
METRICS = [f"metric_{i}" for i in range(16)]
OBJECTIVES = {"metric_0": "max", "metric_1": "min", "metric_2": "min"}


def write(folder, points, part):
    """Write random points in parts: 4 axes, 16 metrics, 3 columns of texts, a violation."""
    study = {"objectives": OBJECTIVES}
    meta = {**META, "axes": AXES, "metrics": METRICS, "points": points, "study": study}
    store = Store(folder, meta)
    rng = np.random.default_rng(7)
    for start in range(0, points, part):
        ids = np.arange(start, min(start + part, points))
        count = len(ids)
        numbers = {name: rng.random(count) for name in [*AXES, *METRICS]}
        numbers["violation"] = np.where(rng.random(count) < 0.7, 0.0, 0.1)
        codes = (rng.random(count) < 0.1).astype(np.int32)
        words = {
            "status": Words(codes, ("ok", "infeasible")),
            "reason": Words(codes, ("", "weights do not fit in hbm")),
            "mapping.fusion": Words((ids % 2).astype(np.int32), ("none", "layer")),
        }
        store.add(Rows(ids, numbers, words))
        store.flush()


@pytest.fixture(scope="module", params=[500, 125_000])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write(folder, POINTS, request.param if request.param > 1000 else POINTS // request.param)
    if request.param == 500:
        compact(folder)
    return folder


def measured(benchmark, call):
    """Time a call by the processor; return the median of five."""
    spent = []

    def timed():
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)

    benchmark.pedantic(timed, rounds=5, warmup_rounds=1)
    benchmark.extra_info["processor_s"] = statistics.median(spent)
    return statistics.median(spent)


def test_a_million_points_load_filter_and_front(benchmark, folder):
    def look():
        frame = ob.open_results(folder).frame()
        assert len(frame) == POINTS
        kept = frame[(frame["metric_3"] < 0.5) & (frame["status"] == "ok")]
        assert 0.4 < len(kept) / POINTS < 0.5
        assert len(ob.front(kept, OBJECTIVES)) > 10

    assert measured(benchmark, look) <= 2.0


def test_a_million_points_are_filtered_on_the_disk_and_the_front_drawn(benchmark, folder):
    pytest.importorskip("duckdb")

    def look():
        results = ob.open_results(folder)
        asked = ", ".join(["point", "status", "violation", *OBJECTIVES])
        kept = results.query(f"select {asked} from points where metric_3 < 0.5 and status = 'ok'")
        assert len(ob.front(kept, OBJECTIVES)) > 10
        assert len(results.front()) > 10

    assert measured(benchmark, look) <= 2.0


LIMITED = """
import sys
import opbyte as ob
from opbyte.sweeps.compact import compact
what, folder = sys.argv[1:]
results = ob.open_results(folder)
if what == "front":
    assert len(results.front()) > 10
elif what == "query":
    sql = "select status, count(*) n, median(metric_0) from points group by status"
    assert results.query(sql, memory=3e8)["n"].sum() == results.meta["points"]
elif what == "compact":
    assert compact(folder).points == results.meta["points"]
else:
    assert len(results.frame()) == results.meta["points"]
# Not getrusage: there a process begins with the peak of the one that started it.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line) * 1024)
"""


@pytest.mark.proof
def test_results_larger_than_memory_stay_on_the_disk(tmp_path):
    """6,000,000 points are 1.2 GB in memory; front, query and compaction need less than half."""
    pytest.importorskip("duckdb")
    if not Path("/proc/self/status").exists():
        pytest.skip("peaks of memory are read from /proc")
    points = 6_000_000
    write(tmp_path, points, 40_000)
    peaks = {}
    for what in ("front", "query", "compact", "frame"):
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, what, str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks[what] = int(done.stdout)
    decoded = points * (len(AXES) + len(METRICS) + 2) * 8
    assert peaks["frame"] > decoded
    for what in ("front", "query", "compact"):
        assert peaks[what] < decoded / 2, peaks
