"""Runs that are interrupted, killed and resumed; workers that die."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from costly import costly_study

from opbyte.sweeps.store import open_results

PROGRAM = [sys.executable, "-m", "opbyte"]


def heed_interrupts():
    """Undo what a shell's background jobs inherit: SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(study: Path, out: Path, *more: str, command: str = "sweep") -> subprocess.Popen[str]:
    arguments = [*PROGRAM, command, str(study), "--out", str(out), "--no-plots", *more]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  (tests start no threads)
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], expected: int = 0) -> str:
    out, err = process.communicate(timeout=1200)
    assert process.returncode == expected, err
    return out + err


def parts_of(folder: Path) -> set[Path]:
    return set((folder / "points").glob("part-*.parquet"))


def wait_for_another_part(process: subprocess.Popen[str], folder: Path, known: set[Path]) -> None:
    end = time.monotonic() + 120
    while parts_of(folder) <= known:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


@pytest.mark.proof
def test_2000_event_points_killed_five_times_are_complete_and_identical(tmp_path):
    study = tmp_path / "kills.yaml"
    study.write_text(costly_study(requests=320, counts=20, rates=10, baseline=True))
    began = time.monotonic()
    finish(start(study, tmp_path / "whole", "--workers", "2"))
    assert time.monotonic() - began >= 60
    expected = open_results(tmp_path / "whole").frame()
    assert len(expected) == 2000

    rng = random.Random(20241)
    folder = tmp_path / "killed"
    survived = 0
    for _ in range(5):
        process = start(study, folder, "--workers", "2")
        wait_for_another_part(process, folder, parts_of(folder))
        time.sleep(rng.uniform(0.0, 3.0))
        workers = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        stored = len(open_results(folder).frame())
        assert survived < stored < 2000
        survived = stored
        end = time.monotonic() + 30
        while any(is_alive(pid) for pid in workers):
            assert time.monotonic() < end, "worker processes outlive their parent"
            time.sleep(0.1)
    text = finish(start(study, folder, "--workers", "1"))
    assert f"{survived:,} of 2,000 points are stored already" in text
    points = pd.concat(pd.read_parquet(p, columns=["point"]) for p in parts_of(folder))["point"]
    assert sorted(points) == list(range(2000))
    pd.testing.assert_frame_equal(open_results(folder).frame(), expected, check_exact=True)
    assert not list((folder / "points").glob(".*"))


@pytest.fixture
def small(tmp_path):
    study = tmp_path / "small.yaml"
    study.write_text(costly_study(requests=120, counts=5, rates=4, baseline=True))
    return study


@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_an_interruption_keeps_finished_points_and_exits_130(small, tmp_path, sent, workers):
    folder = tmp_path / "out"
    process = start(small, folder, "--workers", workers)
    wait_for_another_part(process, folder, set())
    began = time.monotonic()
    os.killpg(process.pid, sent) if sent == signal.SIGINT else os.kill(process.pid, sent)
    text = finish(process, 130)
    assert time.monotonic() - began < 10
    assert "Traceback" not in text
    assert "same command" in text
    stored = open_results(folder).frame()
    assert 0 < len(stored) < 200
    finish(start(small, folder, "--workers", "2"))
    frame = open_results(folder).frame()
    assert frame["point"].tolist() == list(range(200))
    kept = frame[frame["point"].isin(stored["point"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, stored, check_exact=True)


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.proof)]
)
def test_a_search_that_was_stopped_goes_on_to_the_same_points(small, tmp_path, sent):
    strategy = "strategy={kind: optuna, screen: none, population: 8}"
    options = ("--budget", "60", "--set", strategy)
    first = (*options, "--workers", "1")
    process = start(small, tmp_path / "out", *first, command="search")
    wait_for_another_part(process, tmp_path / "out", set())
    os.kill(process.pid, sent)
    text = finish(process, 130 if sent == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in text
    stored = len(open_results(tmp_path / "out").frame())
    finish(start(small, tmp_path / "out", *options, "--workers", "2", command="search"))
    finish(start(small, tmp_path / "whole", *first, command="search"))
    frames = [open_results(tmp_path / name).frame() for name in ("out", "whole")]
    assert 0 < stored < len(frames[0])
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_a_killed_run_leaves_whole_parts_and_is_resumed(small, tmp_path):
    folder = tmp_path / "out"
    process = start(small, folder, "--workers", "1")
    wait_for_another_part(process, folder, set())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    stored = open_results(folder).frame()
    assert 0 < len(stored) < 200
    finish(start(small, folder, "--workers", "1"))
    assert open_results(folder).frame()["point"].tolist() == list(range(200))


CRASHING = """\
import os
import signal
import sys

import numpy as np

import opbyte.sweeps.evaluate as module
from opbyte.sweeps.cli import main

plain = module.evaluate


def deadly(machine, work, *rest):
    if np.any(np.asarray(work.context) == 300.0):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(machine, work, *rest)


module.evaluate = deadly
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_a_point_that_kills_its_worker_is_a_failed_row(tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text(
        "kind: study\n"
        "base: {machine: sn40l-node, workload: {kind: decode, model: llama-3.1-8b, batch: 1,"
        " context: 8}}\n"
        "axes: {workload.context: [100, 200, 300, 400, 500], mapping.fusion: [none, layer]}\n"
        "objectives: {seconds: min}\n"
    )
    script = tmp_path / "crashing.py"
    script.write_text(CRASHING)
    out = tmp_path / "out"
    arguments = ["sweep", str(study), "--out", str(out), "--workers", "2", "--no-plots"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    frame = open_results(out).frame()
    assert len(frame) == 10
    failed = frame[frame["status"] == "failed"]
    assert failed["workload.context"].tolist() == [300.0, 300.0]
    assert failed["reason"].str.contains("worker").all()
    assert frame[frame["status"] == "ok"]["seconds"].notna().all()
    shutil.rmtree(out)
