"""Merging parts: fewer of them, no point lost or doubled, and nobody has to wait."""

import fcntl
import json
import os
import shutil
import threading

import pyarrow.parquet as pq
import pytest
from stored import META, Store, add_part, check_rows, rows

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps import compact as module
from opbyte.sweeps import parts
from opbyte.sweeps.cli import main
from opbyte.sweeps.compact import compact, sweep, tidied
from opbyte.sweeps.results import open_results


def test_small_parts_become_one_and_rows_stay_as_they_were(tmp_path):
    for points in ([5, 3], [1, 4], [9, 2]):
        add_part(tmp_path, points)
    before = open_results(tmp_path).frame()
    done = compact(tmp_path)
    assert (done.before, done.after, done.points, done.doubled) == (3, 1, 6, 0)
    results = open_results(tmp_path)
    assert results.frame().equals(before)
    assert [p.name for p in (tmp_path / "points").iterdir()] == [results.parts[0].name]


def test_doubled_rows_are_left_out(tmp_path):
    add_part(tmp_path, [1, 2, 3])
    add_part(tmp_path, [2, 3, 4])
    done = compact(tmp_path)
    assert (done.points, done.doubled) == (4, 2)
    check_rows(open_results(tmp_path).frame(), [1, 2, 3, 4])


def test_full_parts_are_left_alone(tmp_path):
    for start in (0, 10, 20):
        add_part(tmp_path, range(start, start + 10))
    add_part(tmp_path, [30])
    add_part(tmp_path, [31])
    before = set(open_results(tmp_path).parts)
    compact(tmp_path, full=20)
    after = set(open_results(tmp_path).parts)
    assert len(before & after) == 3
    assert len(after) == 4
    check_rows(open_results(tmp_path).frame(), range(32))


def test_a_second_compaction_changes_nothing(tmp_path):
    for start in range(0, 40, 4):
        add_part(tmp_path, range(start, start + 4))
    compact(tmp_path, full=16)
    parts_then = open_results(tmp_path).parts
    compact(tmp_path, full=16)
    assert open_results(tmp_path).parts == parts_then


def test_metadata_of_columns_and_study_survive(tmp_path):
    import pyarrow.parquet as pq

    add_part(tmp_path, [1])
    add_part(tmp_path, [2])
    compact(tmp_path)
    (part,) = open_results(tmp_path).parts
    schema = pq.read_schema(part)
    assert schema.metadata[b"opbyte.key"] == b"k"
    assert schema.metadata[b"opbyte.schema"] == b"2"
    assert schema.field("seconds").metadata[b"unit"] == b"s"


def test_replaced_parts_that_a_kill_left_are_not_read_and_go_with_the_next_run(tmp_path):
    for point in range(4):
        add_part(tmp_path, [point])
    old = {p: p.read_bytes() for p in open_results(tmp_path).parts}
    compact(tmp_path)
    for path, data in old.items():
        path.write_bytes(data)
    results = open_results(tmp_path)
    assert len(results.parts) == 1
    assert results.query("select count(*) n from points")["n"].tolist() == [4]
    check_rows(results.frame(), range(4))
    assert Store(tmp_path, META).done.tolist() == [0, 1, 2, 3]
    assert not any(path.exists() for path in old)


def test_readers_and_writers_need_not_wait_for_a_compaction(tmp_path):
    """Everything is merged over and over while rows are added and read."""
    store = Store(tmp_path, META)
    ended = threading.Event()
    failures = []

    def merge():
        try:
            while not ended.is_set():
                compact(tmp_path, full=40)
            compact(tmp_path, full=40)
        except BaseException as error:  # noqa: BLE001  told below
            failures.append(error)

    thread = threading.Thread(target=merge)
    thread.start()
    try:
        for point in range(60):
            store.add(rows([point]))
            store.flush()
            if point % 3 == 0:
                check_rows(open_results(tmp_path).frame(), range(point + 1))
            if point % 15 == 0:
                asked = open_results(tmp_path).query("select point from points order by point")
                assert asked["point"].tolist() == list(range(point + 1))
    finally:
        ended.set()
        thread.join()
    assert not failures
    check_rows(open_results(tmp_path).frame(), range(60))


def test_a_listing_that_misses_both_sides_of_a_merge_is_read_again(tmp_path, monkeypatch):
    """What a folder says while it changes: neither the merged part nor those before it."""
    add_part(tmp_path, [1])
    add_part(tmp_path, [2])
    real = parts.Path.glob
    answers = iter([[]])

    def glob(self, pattern):
        return next(answers, None) if pattern == "part-*.parquet" else real(self, pattern)

    def torn(self, pattern):
        found = glob(self, pattern)
        return real(self, pattern) if found is None else found

    monkeypatch.setattr(parts.Path, "glob", torn)
    assert len(parts.paths(tmp_path)) == 2


def test_two_compactions_at_once_are_refused(tmp_path):
    add_part(tmp_path, [1])
    handle = os.open(tmp_path / "points", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="another compaction"):
        compact(tmp_path)
    os.close(handle)
    compact(tmp_path)


def test_a_full_disk_leaves_the_parts_as_they_are(tmp_path, monkeypatch):
    add_part(tmp_path, [1])
    add_part(tmp_path, [2])
    before = sorted((tmp_path / "points").iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, ob.OpbyteError), match=r"(?i)no space"):
        compact(tmp_path)
    assert sorted((tmp_path / "points").iterdir()) == before
    check_rows(open_results(tmp_path).frame(), [1, 2])


def test_a_run_merges_its_parts_at_the_end_when_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MANY", 3)
    add_part(tmp_path, [1])
    add_part(tmp_path, [2])
    tidied(tmp_path)
    assert len(open_results(tmp_path).parts) == 2
    add_part(tmp_path, [3])
    tidied(tmp_path)
    assert len(open_results(tmp_path).parts) == 1


def test_sweeping_without_merged_parts_removes_nothing(tmp_path):
    add_part(tmp_path, [1])
    sweep(tmp_path)
    check_rows(open_results(tmp_path).frame(), [1])


def test_the_command_says_what_it_did(tmp_path, capsys):
    add_part(tmp_path, [1, 2])
    add_part(tmp_path, [2, 3])
    assert main(["compact", str(tmp_path)]) == 0
    assert "3 points: 2 parts became 1, 1 doubled row left out" in capsys.readouterr().out
    assert main(["compact", str(tmp_path / "absent")]) == 2
    assert "no results" in capsys.readouterr().err


def test_a_part_of_another_study_is_refused_wherever_it_is_read(tmp_path, capsys):
    mine, other = tmp_path / "mine", tmp_path / "other"
    add_part(mine, range(5))
    add_part(other, range(3, 9), {**META, "key": "another", "name": "foreign"})
    (part,) = (other / "points").glob("part-*")
    shutil.copy(part, mine / "points")
    for command in (["compact"], ["watch", "--once"], ["front"], ["compare", str(other)]):
        assert main([command[0], str(mine), *command[1:]]) == 2, command
        told = capsys.readouterr().err
        assert all(word in told for word in ("another study", "foreign", part.name))
    with pytest.raises(ConfigError, match="another study"):
        Store(mine, META)
    assert len(list((mine / "points").glob("part-*"))) == 2


@pytest.mark.parametrize("absolute", [False, True])
def test_a_merged_part_of_strangers_removes_no_file_elsewhere(tmp_path, absolute):
    folder = tmp_path / "out"
    add_part(folder, [1, 2])
    add_part(folder, [3, 4])
    compact(folder)
    kept = tmp_path / "kept.txt"
    kept.write_text("mine", encoding="utf-8")
    (merged,) = (folder / "points").glob("part-*")
    table = pq.read_table(merged)
    names = json.dumps([str(kept) if absolute else "../../kept.txt"]).encode()
    meta = {**table.schema.metadata, parts.REPLACES: names}
    pq.write_table(table.replace_schema_metadata(meta), merged)
    compact(folder)
    sweep(folder)
    Store(folder, META)
    assert kept.exists()


@pytest.mark.parametrize("said", [b"{", b"3", b"[3]", b"itself"])
def test_a_merged_part_that_says_nonsense_is_named(tmp_path, said):
    add_part(tmp_path, [1, 2])
    add_part(tmp_path, [3, 4])
    compact(tmp_path)
    (merged,) = (tmp_path / "points").glob("part-*")
    table = pq.read_table(merged)
    said = json.dumps([merged.name]).encode() if said == b"itself" else said
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, parts.REPLACES: said}), merged
    )
    with pytest.raises(ConfigError, match=merged.name):
        open_results(tmp_path).frame()


def test_fresh_waits_for_no_compaction_that_would_bring_old_points_back(tmp_path):
    add_part(tmp_path, range(4))
    with module.alone(tmp_path), pytest.raises(ConfigError, match="another compaction"):
        Store(tmp_path, META, fresh=True)
    check_rows(open_results(tmp_path).frame(), range(4))
    assert not len(Store(tmp_path, META, fresh=True).done)


def test_what_a_run_writes_while_a_compaction_begins_stays(tmp_path, monkeypatch):
    add_part(tmp_path, range(4))
    add_part(tmp_path, range(4, 8))
    study = {**META["study"], "objectives": {"joules": "max"}}
    monkeypatch.setattr(module, "sweep", lambda _: Store(tmp_path, {**META, "study": study}))
    assert compact(tmp_path).after == 1
    assert open_results(tmp_path).objectives == {"joules": "max"}


def test_where_there_are_no_locks_a_compaction_goes_on(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    add_part(tmp_path, range(4))
    add_part(tmp_path, range(4, 8))
    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    assert compact(tmp_path).after == 1
    check_rows(open_results(tmp_path).frame(), range(8))


def test_results_without_points_are_refused_with_a_remedy(tmp_path, capsys):
    add_part(tmp_path, [1])
    shutil.rmtree(tmp_path / "points")
    assert main(["compact", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {tmp_path}: its folder `points` is gone: no points are stored. "
        "Run the study again.\n"
    )
    assert not (tmp_path / "points").exists()


def test_a_report_is_a_file(tmp_path, capsys):
    add_part(tmp_path, [1])
    assert main(["report", str(tmp_path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {tmp_path}: a file is due here, this is a folder. "
        f"Write {tmp_path / 'report.html'}.\n"
    )
