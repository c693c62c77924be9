"""Stored results as they are read, and those that older programs wrote."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import META, Store, add_part, check_rows, rows

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps.cli import main
from opbyte.sweeps.compact import compact
from opbyte.sweeps.migrate import SCHEMA
from opbyte.sweeps.results import open_results
from opbyte.sweeps.rows import Rows, Words


@pytest.fixture
def old(root, tmp_path):
    """A folder that the program wrote at schema 1: two shards, and one of them twice."""
    folder = tmp_path / "old"
    shutil.copytree(root / "tests" / "data" / "results_v1", folder)
    return folder


def old_rows(folder):
    return pd.read_csv(folder / "rows.csv", keep_default_na=False, na_values=["nan", "NaN"])


def check_old(frame, folder):
    expected = old_rows(folder)
    assert frame.columns.tolist() == expected.columns.tolist()
    for name in expected:
        if frame[name].dtype.kind == "f":
            theirs = pd.to_numeric(expected[name], errors="coerce").to_numpy()
            np.testing.assert_array_equal(frame[name].to_numpy(), theirs)
        else:
            assert frame[name].tolist() == expected[name].tolist()


def test_results_of_schema_1_read_as_they_did(old):
    meta = json.loads((old / "study.json").read_text())
    assert "schema" not in meta
    results = open_results(old)
    assert results.meta["schema"] == SCHEMA == 2
    assert len(results.parts) == 3
    check_old(results.frame(), old)
    assert results.counts == {"ok": 6}
    assert results.query("select count(*) n from points")["n"].tolist() == [6]
    assert json.loads((old / "study.json").read_text()) == meta


def test_a_compaction_writes_results_of_schema_1_anew(old):
    done = compact(old)
    assert (done.before, done.after, done.doubled) == (3, 1, 3)
    assert json.loads((old / "study.json").read_text())["schema"] == 2
    (part,) = open_results(old).parts
    assert pq.read_schema(part).metadata[b"opbyte.schema"] == b"2"
    assert pq.read_table(part)["point"].to_pylist() == list(range(6))
    check_old(open_results(old).frame(), old)


def test_a_run_into_results_of_schema_1_writes_the_migrated_study_down(old):
    meta = json.loads((old / "study.json").read_text())
    assert Store(old, meta).done.tolist() == list(range(6))
    assert json.loads((old / "study.json").read_text())["schema"] == 2
    check_old(open_results(old).frame(), old)


def test_unsorted_and_doubled_rows_of_a_part_of_schema_1_are_put_in_order(old):
    (part, *_) = sorted((old / "points").iterdir())
    table = pq.read_table(part)
    pq.write_table(table.take(pa.array([2, 0, 1, 0])), part)
    check_old(open_results(old).frame(), old)
    asked = open_results(old).query("from points order by point")
    assert asked["point"].tolist() == list(range(6))


def test_stores_from_before_dimensions_get_them_from_their_units(old):
    file = old / "study.json"
    meta = json.loads(file.read_text())
    kept = {n: meta.pop("dimensions")[n] for n in ["seconds"]}
    file.write_text(json.dumps(meta))
    assert open_results(old).dimensions["seconds"] == kept["seconds"]


@pytest.mark.parametrize("newer", [3, 99])
def test_a_newer_schema_is_refused_with_what_to_do(tmp_path, newer, capsys):
    add_part(tmp_path, [1])
    file = tmp_path / "study.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": newer, "version": "9.1"}))
    for call in (lambda: open_results(tmp_path), lambda: Store(tmp_path, META)):
        with pytest.raises(ConfigError) as caught:
            call()
        text = str(caught.value)
        for word in (str(file), "schema", "up to 2", f"got {newer}", "opbyte 9.1", "--out"):
            assert word in text
    assert main(["watch", str(tmp_path)]) == 2
    assert "newer schema" in capsys.readouterr().err
    assert Store(tmp_path, META, fresh=True).done.size == 0


@pytest.mark.parametrize("bad", [0, -1, "2", 1.5, None, True])
def test_a_schema_that_is_no_number_is_refused(tmp_path, bad):
    add_part(tmp_path, [1])
    file = tmp_path / "study.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": bad}))
    with pytest.raises(ConfigError, match="whole number"):
        open_results(tmp_path)


def test_a_part_of_a_newer_schema_is_refused(tmp_path):
    add_part(tmp_path, [1])
    (part,) = open_results(tmp_path).parts
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({b"opbyte.schema": b"3"}), part)
    with pytest.raises(ConfigError, match=r"part-.*newer schema"):
        open_results(tmp_path).frame()


def test_columns_are_read_as_asked(tmp_path):
    add_part(tmp_path, [4, 2])
    add_part(tmp_path, [3, 1])
    frame = open_results(tmp_path).frame(["seconds", "machine"])
    assert frame.columns.tolist() == ["point", "seconds", "machine"]
    assert frame["point"].tolist() == [1, 2, 3, 4]
    check_rows(open_results(tmp_path).frame(), [1, 2, 3, 4])


def test_the_front_of_a_folder_is_that_of_its_frame(tmp_path):
    for start in range(0, 300, 50):
        add_part(tmp_path, range(start, start + 50))
    results = open_results(tmp_path)
    whole = ob.front(results.frame(), results.objectives)
    assert len(whole) > 3
    pd.testing.assert_frame_equal(results.front(), whole.reset_index(drop=True))
    one = results.front({"seconds": "max"})
    assert one["point"].tolist() == ob.front(results.frame(), {"seconds": "max"})["point"].tolist()
    with pytest.raises(ConfigError, match="no column"):
        results.front({"second": "min"})


def test_the_front_of_nothing_is_empty(tmp_path):
    Store(tmp_path, META)
    assert open_results(tmp_path).front({}).empty
    add_part(tmp_path, [9])
    assert open_results(tmp_path).front().empty


def test_a_damaged_part_is_named(tmp_path):
    add_part(tmp_path, [1])
    (part,) = open_results(tmp_path).parts
    part.write_bytes(b"PAR1 nothing")
    with pytest.raises(ConfigError, match=r"part-.*can not be read"):
        open_results(tmp_path).frame()


def part_with(folder, points, **more):
    """Add a part that has columns beside the usual ones."""
    usual = rows(points)
    store = Store(folder, META)
    store.add(Rows(usual.point, {**usual.numbers, **more}, usual.words))
    store.flush()


@pytest.mark.parametrize("merged", [False, True])
def test_rows_of_parts_that_lack_a_column_hold_nothing_there(tmp_path, merged):
    """A study's objectives may change between two runs: each has its baseline's column."""
    points = [[0, 2, 4], [1, 3, 5], [6, 7, 8]]
    part_with(tmp_path, points[0], early=np.array([1.0, 2.0, 3.0]))
    part_with(tmp_path, points[1])
    part_with(tmp_path, points[2], late=np.array([4.0, 5.0, 6.0]))
    if merged:
        assert compact(tmp_path).after == 1
    results, nan = open_results(tmp_path), np.nan
    assert {"early", "late"} < set(results.names)
    frame = results.frame()
    check_rows(frame, range(9))
    np.testing.assert_array_equal(frame["early"], [1, nan, 2, nan, 3, nan, nan, nan, nan])
    np.testing.assert_array_equal(frame["late"], [nan] * 6 + [4, 5, 6])
    found = results.query("select point, late from points where early is null order by point")
    assert found["point"].tolist() == [1, 3, 5, 6, 7, 8]
    assert results.front({"early": "max"})["point"].tolist() == [4]
    assert results.front({"late": "max"})["point"].tolist() == [8]


def test_texts_that_a_part_lacks_are_empty(tmp_path):
    one, two = rows([0, 1]), rows([2, 3])
    store = Store(tmp_path, META)
    for some, words in ((one, {}), (two, {"why": Words.same("so", 2)})):
        store.add(Rows(some.point, some.numbers, {**some.words, **words}))
        store.flush()
    assert open_results(tmp_path).frame()["why"].tolist() == ["", "", "so", "so"]
    compact(tmp_path)
    assert open_results(tmp_path).frame()["why"].tolist() == ["", "", "so", "so"]
