"""One run writes into a folder; shards of one study may share it."""

import os
import subprocess
import sys

import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps import lock as module
from opbyte.sweeps.cli import main
from opbyte.sweeps.lock import Lock
from opbyte.sweeps.runner import meta_of
from opbyte.sweeps.store import Store
from opbyte.sweeps.study import load_study

HOLDER = """\
import sys
from pathlib import Path
from opbyte.sweeps.lock import Lock
lock = Lock.taken(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_refused_and_told_who_the_first_is(tmp_path):
    first = Lock.taken(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"process {os.getpid()} on .* since 20") as caught:
        Lock.taken(tmp_path / "out")
    assert "--out" in str(caught.value)
    first.release()
    Lock.taken(tmp_path / "out").release()


def test_a_killed_run_leaves_no_lock(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {process.pid} "):
            Lock.taken(tmp_path)
        process.kill()
    Lock.taken(tmp_path).release()


def test_shards_share_a_folder_each_once_and_not_with_a_whole_run(tmp_path):
    one, two = Lock.taken(tmp_path, (1, 3)), Lock.taken(tmp_path, (2, 3))
    for shard in ((1, 3), (2, 3), (1, 1)):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            Lock.taken(tmp_path, shard)
    one.release()
    two.release()
    whole = Lock.taken(tmp_path)
    with pytest.raises(ConfigError, match="another run"):
        Lock.taken(tmp_path, (3, 3))
    whole.release()


def test_a_shard_is_not_alone_in_its_folder(tmp_path):
    lock = Lock.taken(tmp_path)
    assert lock.alone
    lock.release()
    assert not lock.alone
    shard = Lock.taken(tmp_path, (1, 2))
    assert not shard.alone
    shard.release()


QUICK = ["sweep", "quick", "--no-plots", "--quiet", "--set", "seed=3"]


@pytest.mark.parametrize(("shard", "code"), [([], 0), (["--shard", "1/2"], 2)])
def test_a_run_alone_takes_over_a_folder_where_nothing_is_stored(tmp_path, shard, code, capsys):
    meta = meta_of(load_study("quick").plan)
    Store(tmp_path, meta)
    assert main([*QUICK, *shard, "--out", str(tmp_path)]) == code
    assert ("another study (seed: absent -> 3)" in capsys.readouterr().err) == bool(code)


@pytest.mark.parametrize("command", ["sweep", "search"])
def test_figures_and_summary_are_of_a_folder_that_nobody_writes_to(tmp_path, monkeypatch, command):
    held = []

    def held_at(what):
        def try_lock(*_):
            with pytest.raises(ConfigError, match="another run writes"):
                Lock.taken(tmp_path)
            held.append(what)
            return []

        return try_lock

    monkeypatch.setattr("opbyte.sweeps.plots.study_plots", held_at("figures"))
    monkeypatch.setattr("opbyte.sweeps.summary.show", held_at("summary"))
    monkeypatch.setattr("opbyte.sweeps.runner.tidied", held_at("tidied"))
    monkeypatch.setattr("opbyte.sweeps.search.run.tidied", held_at("tidied"))
    more = ["--budget", "4"] if command == "search" else []
    assert main([command, "quick", "--out", str(tmp_path), "--quiet", *more]) == 0
    assert held == ["tidied", "figures", "summary"]
    Lock.taken(tmp_path).release()


def test_a_figure_that_fails_lets_others_in(tmp_path, monkeypatch):
    def broken(*_):
        raise ConfigError.one("figure", "", "it can not be drawn")

    monkeypatch.setattr("opbyte.sweeps.plots.study_plots", broken)
    assert main(["sweep", "quick", "--out", str(tmp_path), "--quiet"]) == 2
    Lock.taken(tmp_path).release()


def test_who_only_asks_keeps_no_run_out(tmp_path, monkeypatch):
    """A program that watches tries the lock, and holds it for an instant."""
    Lock.taken(tmp_path).release()
    asking = os.open(tmp_path / ".lock", os.O_RDONLY)
    module.fcntl.flock(asking, module.fcntl.LOCK_SH)
    monkeypatch.setattr(module.time, "sleep", lambda _: os.close(asking))
    lock = Lock.taken(tmp_path)
    assert module.is_held(tmp_path / ".lock")
    lock.release()
    assert not module.is_held(tmp_path / ".lock")


def test_without_locks_of_the_file_system_a_run_goes_on(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file"):
        first, second = Lock.taken(place), Lock.taken(place)
        assert not first.alone
        assert not second.alone


@pytest.mark.parametrize("command", ["sweep", "search"])
@pytest.mark.parametrize("more", [[], ["--fresh"]])
def test_two_runs_on_one_folder(tmp_path, capsys, command, more):
    arguments = [command, "quick", "--out", str(tmp_path / "out"), "--no-plots", "--quiet"]
    arguments += ["--budget", "4"] if command == "search" else []
    lock = Lock.taken(tmp_path / "out")
    assert main([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert "another run writes into this folder" in error
    lock.release()
    assert main([*arguments, *more]) == 0
