"""Results on disk: whole parts, resume, and what must not be mixed."""

import json
import os

import numpy as np
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.cli import main
from opbyte.sweeps.rows import STATUS, Rows, Words, joined
from opbyte.sweeps.store import Store, open_results

META = {
    "name": "n", "key": "k", "code": "c", "version": "0", "axes": ["workload.batch", "machine"],
    "units": {"seconds": "s"}, "study": {"axes": {"workload.batch": {"values": [1, 2]}}},
}  # fmt: skip


def rows(points, machine="a"):
    points = np.array(points, dtype=np.int64)
    return Rows(
        points,
        {"workload.batch": points * 2.0, "seconds": points * 0.5},
        {"machine": Words.same(machine, len(points)), "status": Words.same("ok", len(points))},
    )


def test_rows_come_back_sorted_by_point_whatever_the_order_of_parts(tmp_path):
    store = Store(tmp_path, META)
    store.add(rows([5, 3], "b"))
    store.flush()
    store.add(rows([1, 4]))
    store.flush()
    frame = open_results(tmp_path).frame()
    assert frame["point"].tolist() == [1, 3, 4, 5]
    assert frame["seconds"].tolist() == [0.5, 1.5, 2.0, 2.5]
    assert frame["machine"].tolist() == ["a", "b", "a", "b"]
    assert frame.columns.tolist()[:3] == ["point", "workload.batch", "machine"]


def test_stored_points_are_not_missing(tmp_path):
    store = Store(tmp_path, META)
    store.add(rows([0, 2, 7]))
    store.flush()
    again = Store(tmp_path, META)
    assert again.done.tolist() == [0, 2, 7]
    assert again.missing(np.array([9, 7, 1, 0])).tolist() == [9, 1]


def test_what_was_not_flushed_is_not_there(tmp_path):
    store = Store(tmp_path, META)
    store.add(rows([1]))
    assert open_results(tmp_path).frame().empty


def test_a_point_stored_twice_is_one_row(tmp_path):
    for _ in range(2):
        store = Store(tmp_path, META)
        store.add(rows([1, 2]))
        store.flush()
    assert len(open_results(tmp_path).parts) == 2
    assert open_results(tmp_path).frame()["point"].tolist() == [1, 2]


def test_half_written_parts_of_dead_processes_are_swept_away(tmp_path):
    store = Store(tmp_path, META)
    dead = tmp_path / "points" / ".999999999-ab.tmp"
    alive = tmp_path / "points" / f".{os.getppid()}-ab.tmp"
    for file in (dead, alive):
        file.write_bytes(b"PAR1 half")
    assert Store(tmp_path, META).done.size == 0
    assert not dead.exists()
    assert alive.exists()
    del store


def test_units_and_hashes_are_in_the_parquet_metadata(tmp_path):
    import pyarrow.parquet as pq

    store = Store(tmp_path, META)
    store.add(rows([1]))
    store.flush()
    (part,) = store.results.parts
    schema = pq.read_schema(part)
    assert schema.metadata[b"opbyte.key"] == b"k"
    assert schema.field("seconds").metadata == {b"unit": b"s"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"key": "other", "study": {"axes": {"workload.batch": {"values": [1, 4]}}}},
            "workload.batch",
        ),
        ({"code": "new"}, "another version"),
    ],
)
def test_other_results_are_refused_until_fresh(tmp_path, change, message):
    store = Store(tmp_path, META)
    store.add(rows([1]))
    store.flush()
    with pytest.raises(ConfigError, match=message) as caught:
        Store(tmp_path, {**META, **change})
    assert "--out" in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert Store(tmp_path, {**META, **change}, fresh=True).done.size == 0


OTHER = {**META, "key": "other", "study": {"axes": {"workload.batch": {"values": [1, 4]}}}}


@pytest.mark.parametrize("text", [None, "{"])
def test_a_study_that_stored_nothing_makes_way_for_another(tmp_path, text):
    Store(tmp_path, META)
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    store = Store(tmp_path, OTHER)
    store.add(rows([1]))
    store.flush()
    assert open_results(tmp_path).meta["key"] == "other"
    with pytest.raises(ConfigError, match="another study"):
        Store(tmp_path, META)


def test_a_study_that_others_may_be_storing_makes_no_way(tmp_path):
    Store(tmp_path, META, alone=False)
    with pytest.raises(ConfigError, match="another study"):
        Store(tmp_path, OTHER, alone=False)
    assert open_results(tmp_path).meta["key"] == "k"


def test_a_refusal_names_what_decides_the_points_and_nothing_else(tmp_path):
    store = Store(tmp_path, {**META, "study": {**META["study"], "strategy": {"kind": "grid"}}})
    store.add(rows([1]))
    store.flush()
    new = {
        **OTHER["study"],
        "strategy": {"kind": "optuna", "trials": 4},
        "objectives": {"seconds": "min"},
        "budget": {"machine": "dgx-a100", "count": 2},
    }
    with pytest.raises(ConfigError) as caught:
        Store(tmp_path, {**OTHER, "study": new})
    assert "(axes.workload.batch.values: [1, 2] -> [1, 4])" in str(caught.value)
    new["strategy"] = {"kind": "random", "points": 5}
    with pytest.raises(ConfigError, match="strategy: grid -> "):
        Store(tmp_path, {**OTHER, "study": new})


def test_fresh_leaves_other_files_alone(tmp_path):
    Store(tmp_path, META)
    (tmp_path / "notes.txt").write_text("mine")
    Store(tmp_path, META, fresh=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_fresh_removes_what_a_search_said_of_the_points(tmp_path):
    Store(tmp_path, META)
    for name in ("search.json", "order.json"):
        (tmp_path / name).write_text("{}")
    Store(tmp_path, META, fresh=True)
    assert {f.name for f in tmp_path.iterdir()} == {"points", "study.json"}


def test_no_shard_removes_the_points_of_the_others(tmp_path, capsys):
    command = ["sweep", "quick", "--out", str(tmp_path / "out"), "--no-plots", "--quiet"]
    assert main([*command, "--shard", "1/2"]) == 0
    stored = len(open_results(tmp_path / "out").frame())
    assert main([*command, "--shard", "2/2", "--fresh"]) == 2
    assert "--fresh removes the points of all shards" in capsys.readouterr().err
    assert len(open_results(tmp_path / "out").frame()) == stored > 0


def test_objectives_may_change_without_losing_points(tmp_path):
    store = Store(tmp_path, META)
    store.add(rows([1]))
    store.flush()
    study = {**META["study"], "objectives": {"seconds": "min"}}
    assert Store(tmp_path, {**META, "study": study}).done.tolist() == [1]
    assert open_results(tmp_path).objectives == {"seconds": "min"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}', "\x00"])
def test_broken_study_json_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ConfigError, match=r"study\.json"):
        open_results(tmp_path)


def test_no_results_is_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match="opbyte sweep"):
        open_results(tmp_path / "absent")


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match="folder"):
        Store(file, META)


def test_joined_rows_keep_their_texts():
    one = Rows(np.array([1, 2]), {}, {"w": Words(np.array([0, 1], np.int32), ("x", "y"))})
    two = Rows(np.array([3]), {}, {"w": Words(np.array([0], np.int32), ("y",))})
    both = joined([one, two])
    assert [both.words["w"].texts[c] for c in both.words["w"].codes] == ["x", "y", "y"]


def test_status_counts():
    status = Words(np.array([0, 2, 2], np.int32), STATUS)
    assert Rows(np.arange(3), {}, {"status": status}).count(2) == 2


def test_study_json_is_plain_and_keeps_its_order(tmp_path):
    Store(tmp_path, META)
    text = (tmp_path / "study.json").read_text()
    kept = list(json.loads(text))
    assert kept[: len(META)] == list(META)
