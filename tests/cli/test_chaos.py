"""Twenty kills at drawn moments: parents, workers and schedulers, local and on a cluster."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from clusters import PATIENCE_S, Cluster, kill
from costly import costly_study

from opbyte.sweeps.pareto import front
from opbyte.sweeps.store import open_results

pytest.importorskip("distributed")

KILLS = 20
VICTIMS = ("local parent", "local worker", "cluster parent", "cluster worker", "scheduler")


def workers_of(pid):
    """Return the worker processes of a local pool."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.scandir(f"/proc/{pid}/task"):
            with open(f"{thread.path}/children") as children:  # noqa: PTH123
                found += [int(child) for child in children.read().split()]
    return [p for p in found if b"spawn_main" in command_of(p)]


def command_of(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
        return file.read()
    return b""


class Run:
    """One run of the study, until it ends or is killed."""

    def __init__(self, study, out, executor):
        self.out = out
        self.local = not executor
        where = ("--executor", executor) if executor else ("--workers", "2")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "opbyte", "sweep", str(study), "--out", str(out), "--no-plots",
             "--quiet", *where],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def over(self):
        return self.process.poll() is not None

    def goes_on(self):
        """Wait until more is stored, or the run is over."""
        known = set(self.out.glob("points/part-*"))
        end = time.monotonic() + PATIENCE_S
        while set(self.out.glob("points/part-*")) <= known and not self.over:
            assert time.monotonic() < end, "a run stands still"
            time.sleep(0.02)

    def ends(self):
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in errors, errors
        return self.process.returncode, errors


def all_kills(study, out, cluster, victims, rng):
    """Run the study again and again, and kill; return the kills and how many workers were hit."""
    done, hit = [], 0
    run = None
    for _ in range(2):
        cluster.add()
    for victim in victims:
        local = victim.startswith("local")
        if run is not None and (run.over or local != run.local):
            stop(run)
            run = None
        if run is None:
            run = Run(study, out, "" if local else cluster.executor)
            run.goes_on()
        time.sleep(rng.uniform(0.0, 0.5))
        if run.over:
            break
        done.append(victim)
        if victim.endswith("parent"):
            kill(run.process)
            run.ends()
            run = None
        elif victim == "local worker":
            for pid in workers_of(run.process.pid)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hit += 1
        elif victim == "cluster worker":
            kill(cluster.workers.pop(rng.randrange(len(cluster.workers))))
            cluster.add()
        else:
            kill_scheduler(cluster, run)
            run = None
    if run is not None:
        stop(run)
    return done, hit


def kill_scheduler(cluster, run):
    """Kill the scheduler, see the run end, and start the cluster anew."""
    kill(cluster.scheduler)
    code, errors = run.ends()
    assert code == 2, errors
    assert "was lost" in errors
    cluster.restart()
    for worker in cluster.workers:
        kill(worker)
    cluster.workers.clear()
    for _ in range(2):
        cluster.add()


@pytest.mark.proof
def test_twenty_kills_lose_and_double_no_point(tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text(costly_study(requests=120, counts=20, rates=5, baseline=True))
    whole = Run(study, tmp_path / "whole", "")
    assert whole.ends()[0] == 0
    expected = open_results(tmp_path / "whole")
    assert len(expected.frame()) == 1000

    rng = random.Random(90210)
    victims = [VICTIMS[i % len(VICTIMS)] for i in range(KILLS)]
    rng.shuffle(victims)
    out, cluster = tmp_path / "killed", Cluster(tmp_path)
    try:
        done, hit = all_kills(study, out, cluster, victims, rng)
    finally:
        cluster.close()
    assert len(done) == KILLS, f"all points were there after {done}"
    assert hit > 0
    assert len(open_results(out).frame()) < 1000
    assert Run(study, out, "").ends()[0] == 0
    parts = [pd.read_parquet(p, columns=["point"]) for p in out.glob("points/part-*.parquet")]
    assert sorted(pd.concat(parts)["point"]) == list(range(1000))
    assert not list(out.glob("points/.*"))
    found = open_results(out)
    pd.testing.assert_frame_equal(found.frame(), expected.frame(), check_exact=True)
    fronts = [front(r.frame(), r.objectives).to_csv().encode() for r in (found, expected)]
    assert fronts[0] == fronts[1]


def stop(run):
    """End a run as its user would, if it is not over."""
    if not run.over:
        run.process.send_signal(signal.SIGTERM)
    code, errors = run.ends()
    assert code in (0, 130), errors
