"""Folders of results that strangers made: nothing outside them is written, nothing hangs."""

import json
import os
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import META, add_part

from opbyte.core.errors import ConfigError
from opbyte.sweeps.cli import main
from opbyte.sweeps.files import read_json
from opbyte.sweeps.lock import Lock
from opbyte.sweeps.results import open_results
from opbyte.sweeps.store import Store

READERS = (
    ["watch", "--once"], ["front"], ["report", "--no-designs"], ["compact"], ["compare"],
    ["query", "select 1"],
)  # fmt: skip
SECONDS = 20


@pytest.fixture
def folder(tmp_path):
    add_part(tmp_path / "results", range(8))
    return tmp_path / "results"


@pytest.fixture
def precious(tmp_path):
    file = tmp_path / "precious.txt"
    file.write_text("mine")
    return file


@pytest.fixture(autouse=True)
def _in_time():
    """Fail instead of waiting for a pipe for ever."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def asked(command, folder):
    verb, *rest = command
    return [verb, str(folder), *([str(folder)] if verb == "compare" else []), *rest]


def test_a_lock_that_leads_elsewhere_is_refused(folder, precious, capsys):
    for name, shard in ((".lock", (1, 1)), (".lock-1-of-2", (1, 2))):
        (folder / name).symlink_to(precious)
        with pytest.raises(ConfigError, match=f"{name}: .*Remove it"):
            Lock.taken(folder, shard)
        (folder / name).unlink()
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(precious)
    assert main(["sweep", "quick", "--out", str(folder)]) == 2
    assert main(["watch", str(folder), "--once"]) == 0
    assert precious.read_text() == "mine"


def test_a_report_replaces_a_link_and_follows_none(folder, precious):
    (folder / "report.html").symlink_to(precious)
    assert main(["report", str(folder), "--no-designs", "--quiet"]) == 0
    assert precious.read_text() == "mine"
    assert "<html" in (folder / "report.html").read_text()


def test_figures_replace_links_and_follow_none(tmp_path, precious):
    out = tmp_path / "out"
    assert main(["sweep", "quick", "--out", str(out), "--quiet"]) == 0
    drawn = sorted((out / "plots").iterdir())
    assert {f.suffix for f in drawn} == {".png", ".pdf", ".csv"}
    for file in drawn:
        file.unlink()
        file.symlink_to(precious)
    other = out / "plots" / "other.png"
    other.symlink_to(precious)
    assert main(["sweep", "quick", "--out", str(out), "--quiet"]) == 0
    assert precious.read_text() == "mine"
    assert not any(file.is_symlink() for file in drawn)
    assert other.is_symlink()


def test_figures_go_into_no_other_folder(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plots").symlink_to(tmp_path / "mine")
    assert main(["sweep", "quick", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "plots" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_fresh_removes_no_points_behind_a_link(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "points").symlink_to(folder / "points")
    with pytest.raises(ConfigError, match="behind a link"):
        Store(other, META, fresh=True)
    assert len(open_results(folder).frame()) == 8


@pytest.mark.parametrize("command", READERS, ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["study.json", *(f"points/part-1-{t}.parquet" for t in "am")])
def test_pipes_and_folders_are_refused_by_name(folder, capsys, command, name):
    file = folder / name
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
        file.unlink(missing_ok=True)
        make(file)
        assert main(asked(command, folder)) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {file}: ")
        assert "no regular file" in error
        file.unlink() if not file.is_dir() or file.is_symlink() else file.rmdir()


@pytest.mark.parametrize("name", [".lock", ".lock-1-of-2", "search.json", "order.json"])
def test_pipes_beside_the_points_keep_nobody_waiting(folder, name):
    meta = json.loads((folder / "study.json").read_text())
    meta["study"]["strategy"] = {"kind": "optuna"}
    (folder / "study.json").write_text(json.dumps(meta))
    os.mkfifo(folder / name)
    for command in READERS:
        assert main(asked(command, folder)) in (0, 2)


@pytest.mark.parametrize("name", ["part-1-a.parquet", "part-1-m.parquet"])
@pytest.mark.parametrize("command", READERS, ids=lambda c: c[0])
def test_a_part_that_leads_nowhere_is_named(folder, capsys, name, command):
    (folder / "points" / name).symlink_to("nowhere")
    assert main(asked(command, folder)) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "leads nowhere" in error


def test_json_that_nests_without_an_end_is_refused(folder, capsys):
    (folder / "study.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="too many"):
        read_json(folder / "study.json")
    assert main(["watch", str(folder)]) == 2
    assert "too many lists" in capsys.readouterr().err


def changed(folder, name, column):
    """Put another column, or none, in the place of one of the only part."""
    (part,) = open_results(folder).parts
    table = pq.read_table(part)
    said, at = table.schema.metadata, table.column_names.index(name)
    table = table.remove_column(at)
    if column is not None:
        table = table.add_column(at, name, column)
    pq.write_table(table.replace_schema_metadata(said), part)


TEXTS, NUMBERS, LISTS = pa.array(["a"] * 8), pa.array([1.5] * 8), pa.array([[1]] * 8)


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("point", TEXTS, "point holds no whole numbers"),
        ("point", NUMBERS, "point holds no whole numbers"),
        ("point", pa.array([None, *range(7)], pa.int64()), "rows have no point"),
        ("status", None, "no column status"),
        ("status", NUMBERS, "status holds no texts"),
        ("status", pa.array([1] * 8).dictionary_encode(), "status holds no texts"),
        ("status", pa.array([b"ok"] * 8), "status holds no texts"),
        ("seconds", None, "no column seconds"),
        ("seconds", TEXTS, "seconds holds no numbers"),
        ("seconds", LISTS, "seconds holds no numbers"),
        ("seconds", pa.array([1] * 8, pa.timestamp("s")), "seconds holds no numbers"),
        ("workload.batch", None, "no column workload.batch"),
        ("machine", LISTS, "machine holds no texts"),
    ],
)
def test_a_column_of_another_kind_is_named(folder, capsys, name, column, said):
    changed(folder, name, column)
    for command in READERS:
        assert main(asked(command, folder)) == 2, command
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        assert said in error
        assert "part-" in error


def test_plain_and_missing_texts_are_read(folder):
    changed(folder, "status", pa.array(["ok"] * 7 + [None]))
    changed(folder, "machine", pa.array(["a"] * 7 + [None]).dictionary_encode())
    results = open_results(folder)
    assert results.counts == {"ok": 7}
    assert results.frame()["machine"].tolist() == ["a"] * 7 + [""]
    for command in READERS:
        assert main(asked(command, folder)) in (0, 2)


def test_a_schema_with_very_many_digits_is_refused(folder):
    (part,) = open_results(folder).parts
    table = pq.read_table(part)
    said = {**table.schema.metadata, b"opbyte.schema": b"9" * 5000}
    pq.write_table(table.replace_schema_metadata(said), part)
    with pytest.raises(ConfigError, match="no number"):
        open_results(folder).frame()


@pytest.mark.parametrize(
    ("entry", "value"), [("derive", 1.5), ("constraints", 1.5), ("baseline", 1.5)]
)
def test_entries_of_study_json_of_another_kind_are_named(folder, capsys, entry, value):
    meta = json.loads((folder / "study.json").read_text())
    meta["study"][entry] = value
    (folder / "study.json").write_text(json.dumps(meta))
    assert main(["report", str(folder), "--no-designs"]) == 2
    assert f"study.{entry}" in capsys.readouterr().err
