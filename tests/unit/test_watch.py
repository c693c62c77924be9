"""A folder of results seen from outside while it grows."""

import fcntl
import json

import numpy as np
import pytest
from stored import META, Store, add_part

import opbyte as ob
from opbyte.sweeps.cli import main
from opbyte.sweeps.commands.watch import _follow
from opbyte.sweeps.compact import compact
from opbyte.sweeps.files import write_json
from opbyte.sweeps.pareto import hypervolume
from opbyte.sweeps.results import open_results
from opbyte.sweeps.watch import Watcher, is_running


@pytest.fixture
def lock(tmp_path):
    """A run's lock of the folder, held."""
    file = (tmp_path / ".lock").open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    yield file
    file.close()


def test_a_look_tells_what_is_there(tmp_path, lock):
    add_part(tmp_path, range(25))
    look = Watcher(tmp_path, rows=2).look()
    assert (look.state, look.stored, look.total) == ("running", 25, 100)
    assert look.counts == {"ok": 23, "failed": 2}
    results = open_results(tmp_path)
    best = ob.front(results.frame(), results.objectives)
    assert look.front_size == len(best)
    assert [row["point"] for row in look.front] == best["point"].tolist()[:2]
    values = best[["seconds", "joules"]].to_numpy()
    low, high = values.min(axis=0), values.max(axis=0)
    share = hypervolume((values - low) / (high - low), np.array([1.1, 1.1])) / 1.1**2
    assert look.hypervolume == pytest.approx(share)
    assert 0.0 < share < 1.0


def test_each_look_reads_only_what_is_new(tmp_path, monkeypatch):
    import opbyte.sweeps.watch as module

    real, read = module.arrays, []
    monkeypatch.setattr(
        module, "arrays", lambda file, names: read.append(file) or real(file, names)
    )
    watcher = Watcher(tmp_path)
    for start in range(0, 40, 10):
        add_part(tmp_path, range(start, start + 10))
        assert watcher.look().stored == start + 10
    assert len(read) == 4
    front = watcher.look().front
    compact(tmp_path)
    look = watcher.look()
    assert (look.stored, look.counts, look.front) == (40, {"ok": 36, "failed": 4}, front)
    fresh = Watcher(tmp_path).look()
    assert (fresh.stored, fresh.counts, fresh.front) == (look.stored, look.counts, look.front)


def test_rate_and_time_left_are_those_of_the_parts(tmp_path, lock, monkeypatch):
    import os

    import opbyte.sweeps.watch as module

    for i in range(4):
        add_part(tmp_path, range(10 * i, 10 * i + 10))
    for i, part in enumerate(open_results(tmp_path).parts):
        os.utime(part, (1000.0 + 5.0 * i, 1000.0 + 5.0 * i))
    monkeypatch.setattr(module.time, "time", lambda: 1015.0)
    look = Watcher(tmp_path).look()
    assert look.rate == pytest.approx(30 / 15.0)
    assert look.left_s == pytest.approx(60 / 2.0)


def test_who_runs_is_known_by_the_lock(tmp_path, lock):
    Store(tmp_path, META)
    assert is_running(tmp_path)
    lock.close()
    assert not is_running(tmp_path)
    assert Watcher(tmp_path).look().state == "stopped"
    add_part(tmp_path, range(100))
    assert Watcher(tmp_path).look().state == "finished"


def test_a_search_tells_its_gaps(tmp_path, lock, capsys):
    study = {**META["study"], "strategy": {"kind": "optuna"}}
    add_part(tmp_path, range(8), {**META, "study": study})
    about = {
        "screen": "analytic", "screened": 1000, "played": 8, "budget": 20, "could_still_join": 12,
        "gap_percent": {"seconds": [0.0, 3.5], "joules": [None, None]}, "running": True,
    }  # fmt: skip
    write_json(tmp_path / "search.json", about)
    look = Watcher(tmp_path).look()
    assert (look.state, look.total) == ("running", 20)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "1,000 points screened (analytic), 8 played, 12 could still join" in out
    assert "seconds: 0 to 3.5 % worse" in out
    lock.close()
    assert Watcher(tmp_path).look().state == "stopped"
    del about["running"]
    write_json(tmp_path / "search.json", about)
    assert Watcher(tmp_path).look().state == "finished"


def test_the_command_prints_once_where_nobody_looks(tmp_path, capsys, lock):
    add_part(tmp_path, range(50))
    assert main(["watch", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "n: running, 50 of 100 points (50.0%)" in out
    assert "45 ok, 0 infeasible, 5 failed" in out
    assert "seconds (min)" in out
    assert main(["watch", str(tmp_path), "--json", "--rows", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["stored"] == 50
    assert len(data["front"]) == 1
    assert main(["watch", str(tmp_path / "absent")]) == 2


def test_it_follows_until_nothing_runs(tmp_path, lock, capsys):
    """Points come between looks; the last look is that of the finished study."""

    class Grows(Watcher):
        def look(self):
            seen = super().look()
            if seen.state == "running":
                add_part(tmp_path, range(seen.stored, seen.stored + 25))
                if seen.stored == 75:
                    lock.close()
            return seen

    add_part(tmp_path, range(25))
    watcher = Grows(tmp_path)
    _follow(watcher, watcher.look(), {}, 0.0)
    assert watcher.look().stored == 100
    assert "n: finished, 100 of 100 points" in capsys.readouterr().out


def test_a_search_after_a_sweep_is_not_more_than_done(tmp_path):
    strategy = {"kind": "optuna", "trials": 20}
    add_part(tmp_path, range(60), {**META, "study": {**META["study"], "strategy": strategy}})
    write_json(tmp_path / "search.json", {"budget": 20, "played": 20})
    look = Watcher(tmp_path).look()
    assert (look.stored, look.total) == (60, 60)


@pytest.mark.parametrize(
    "said",
    ["3", "[]", '{"played": 8}', '{"played": 8, "budget": "x"}',
     '{"played": 8, "budget": 20, "screened": 9, "gap_percent": {"seconds": [1]}}'],
)  # fmt: skip
def test_a_summary_that_nobody_can_read_is_left_aside(tmp_path, said, capsys):
    study = {**META["study"], "strategy": {"kind": "optuna"}}
    add_part(tmp_path, range(8), {**META, "study": study})
    (tmp_path / "search.json").write_text(said, encoding="utf-8")
    assert Watcher(tmp_path).look().search == {}
    assert main(["watch", str(tmp_path), "--once"]) == 0
