"""A disk that is full: a clear end, whole files only, and the rest of the points later."""

import errno
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from opbyte.core.errors import SimulationError
from opbyte.sweeps.rows import Rows, Words
from opbyte.sweeps.store import Store, open_results

META = {"name": "n", "key": "k", "code": "c", "version": "0", "axes": [], "units": {}, "study": {}}
STUDY = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
axes:
  machine.rdu.hbm.phy.bandwidth: {range: [1 TB/s, 4 TB/s], steps: 2000}
  workload.batch: {log2: [1, 8]}
objectives: {tokens_per_s: max}
"""


def rows(*points):
    return Rows(np.array(points, dtype=np.int64), {}, {"status": Words.same("ok", len(points))})


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_part_that_finds_no_room_is_gone_and_named(tmp_path, monkeypatch):
    store = Store(tmp_path, META)
    store.add(rows(1))
    store.flush()
    store.add(rows(2, 3))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SimulationError, match="No space left on device") as caught:
            store.flush()
        assert str(tmp_path) in str(caught.value)
        assert "same command" in str(caught.value)
    assert not list((tmp_path / "points").glob(".*"))
    assert open_results(tmp_path).frame()["point"].tolist() == [1]
    again = Store(tmp_path, META)
    assert again.missing(np.arange(4)).tolist() == [0, 2, 3]


def test_study_json_that_finds_no_room_leaves_a_folder_that_can_be_used(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SimulationError, match="No space left"):
            Store(tmp_path / "out", META)
    assert not list((tmp_path / "out").glob("*.json"))
    assert not list((tmp_path / "out").glob(".*.tmp"))
    Store(tmp_path / "out", META)


def sweep(folder, out, *more, **options):
    return subprocess.run(
        [sys.executable, "-m", "opbyte", "sweep", str(folder / "s.yaml"), "--out", str(out),
         "--no-plots", "--quiet", *more],
        capture_output=True, text=True, check=False, timeout=300, **options,
    )  # fmt: skip


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def ended_well(done):
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    assert "can not be written" in done.stderr


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.proof)])
def test_a_run_that_may_not_write_large_files_ends_and_is_resumed(tmp_path, workers):
    (tmp_path / "s.yaml").write_text(STUDY)
    out = tmp_path / "out"
    limited = sweep(tmp_path, out, "--workers", workers, preexec_fn=small_files)
    ended_well(limited)
    assert (out / "study.json").exists()
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]
    assert sweep(tmp_path, out).returncode == 0
    assert open_results(out).frame()["point"].tolist() == list(range(8000))


@pytest.mark.proof
def test_a_disk_that_fills_up_ends_a_run_which_goes_on_when_there_is_room(tmp_path):
    (tmp_path / "s.yaml").write_text(STUDY)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a small disk")
    try:
        (disk / "ballast").write_bytes(b"x" * 200 * 1024)
        ended_well(sweep(tmp_path, disk / "out"))
        assert not list((disk / "out" / "points").iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert sweep(tmp_path, disk / "out").returncode == 0
        assert open_results(disk / "out").frame()["point"].tolist() == list(range(8000))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
