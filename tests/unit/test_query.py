"""SQL over stored points: what it answers, and what it must never reach."""

import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
from stored import META, Store, add_part, check_rows

from opbyte.core.errors import ConfigError
from opbyte.sweeps import parts
from opbyte.sweeps.cli import main
from opbyte.sweeps.results import open_results

pytest.importorskip("duckdb")


@pytest.fixture
def folder(tmp_path):
    add_part(tmp_path, range(20))
    add_part(tmp_path, range(20, 30))
    return tmp_path


def test_answers_are_those_of_the_frame(folder):
    results = open_results(folder)
    frame = results.frame()
    sql = """select status, count(*) as n, avg(seconds) as mean, max("workload.batch") as most
             from points group by status order by status"""
    found = results.query(sql).set_index("status")
    groups = frame.groupby("status")
    assert found["n"].to_dict() == groups.size().to_dict()
    assert found["mean"].to_dict() == pytest.approx(groups["seconds"].mean().to_dict())
    assert found["most"].to_dict() == groups["workload.batch"].max().to_dict()


def test_a_point_in_several_parts_is_one_row(folder):
    add_part(folder, [5, 6, 25, 40])
    check_rows(open_results(folder).query("from points order by point"), [*range(30), 40])


def test_sums_of_whole_numbers_are_floats(folder):
    assert open_results(folder).query("select sum(point) s from points")["s"].tolist() == [435.0]


def test_no_points_is_an_empty_table(tmp_path):
    Store(tmp_path, META)
    assert open_results(tmp_path).query("from points").empty


def test_a_name_with_quotes_is_a_folder_like_any_other(tmp_path):
    folder = tmp_path / "it's [a] *"
    add_part(folder, [1])
    assert len(open_results(folder).query("from points")) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('{other}')",
        "select * from read_csv('{other}')",
        "select * from '{other}'",
        "select * from glob('/*')",
        "select * from read_parquet('{folder}/points/*.parquet')",
    ],
)
def test_other_files_can_not_be_read(folder, tmp_path_factory, sql):
    other = tmp_path_factory.mktemp("other") / "secret.csv"
    other.write_text("secret\n1\n")
    with pytest.raises(ConfigError, match=r"(?i)permission|disabled") as caught:
        open_results(folder).query(sql.format(other=other, folder=folder))
    assert "secret\n1" not in str(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "copy points to '{other}'",
        "attach '{other}' as db",
        "export database '{other}'",
        "set enable_external_access = true",
        "set allowed_directories = ['/']",
        "install httpfs",
        "load httpfs",
        "pragma database_list",
        "create table t as select 1",
        "drop view points",
        "delete from points",
        "select 1; select 2",
        "",
    ],
)
def test_anything_but_one_select_is_refused(folder, tmp_path, sql):
    other = tmp_path / "written"
    with pytest.raises(ConfigError, match="one SELECT"):
        open_results(folder).query(sql.format(other=other))
    assert not other.exists()


def test_objects_of_the_program_are_not_tables(folder):
    frame = pd.DataFrame({"secret": [1]})
    with pytest.raises(ConfigError, match="frame"):
        open_results(folder).query("select * from frame")
    assert len(frame) == 1


def test_a_name_with_dots_is_told_to_be_quoted(folder):
    with pytest.raises(ConfigError, match=r'"workload\.batch"'):
        open_results(folder).query("select workload.batch from points")


def test_a_query_that_meets_a_compaction_is_asked_again(folder, monkeypatch):
    from opbyte.sweeps.compact import compact

    real, calls = parts.places, []

    def merged_first(found):
        answer = real(found)
        if not calls:
            calls.append(1)
            compact(folder)
        return answer

    monkeypatch.setattr("opbyte.sweeps.query.parts.places", merged_first)
    check_rows(open_results(folder).query("from points order by point"), range(30))
    assert calls


def test_without_duckdb_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match=r"opbyte\[query\]"):
        open_results(folder).query("from points")


def test_the_command_prints_tables_json_and_csv(folder, capfd):
    sql = "select point, machine, seconds, 0.0 / 0 as nothing from points order by point limit 2"
    assert main(["query", str(folder), sql, "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert rows[0] == {"point": 0, "machine": "a", "seconds": 1.0, "nothing": None}
    assert main(["query", str(folder), sql, "--csv"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == '"point","machine","seconds","nothing"'
    assert len(lines) == 3
    assert main(["query", str(folder), sql]) == 0
    assert "machine" in capfd.readouterr().out
    assert main(["query", str(folder), "from points where point < 0", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []


def test_bad_options_are_errors(folder, capsys):
    assert main(["query", str(folder), "from points", "--csv", "--json"]) == 2
    assert main(["query", str(folder), "from points", "--memory", "2"]) == 2
    assert "unit" in capsys.readouterr().err


ENDLESS = "with recursive t(n) as (select 1 union all select n + 1 from t) select count(*) from t"


def test_a_query_without_end_heeds_an_interruption(folder):
    # The alarm stands for Ctrl-C; DuckDB itself never looks at signals while it counts.
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_results(folder).query(ENDLESS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert len(open_results(folder).query("from points")) == 30


def test_columns_of_one_name_are_shown_and_refused_where_an_object_would_lose_one(folder, capsys):
    sql = "select 7 as a, 8 as a"
    assert main(["query", str(folder), sql]) == 0
    assert capsys.readouterr().out.split()[-2:] == ["7", "8"]
    assert main(["query", str(folder), sql, "--json"]) == 2
    assert "names of their own, got a" in capsys.readouterr().err


@pytest.mark.parametrize(
    "cell", ["[1, 2]", "{'a': 1}", "map {'a': 1}", "interval 1 day", "union_value(a := 1)"]
)
def test_cells_that_csv_can_not_hold_are_refused_by_name(folder, capfd, cell):
    sql = f"select point, {cell} as inner from points"
    assert main(["query", str(folder), sql, "--csv"]) == 2
    out, error = capfd.readouterr()
    assert not out
    assert "column inner" in error
    assert "--json" in error
    assert main(["query", str(folder), sql]) == main(["query", str(folder), sql, "--json"]) == 0


def test_numbers_without_an_end_are_shown(folder, capsys):
    assert main(["query", str(folder), "select 'inf'::double up, '-inf'::double down"]) == 0
    assert capsys.readouterr().out.split()[-2:] == ["inf", "-inf"]


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_a_reader_that_has_seen_enough_is_no_failure(folder, form):
    sql = "select range from range(1000000)"
    command = [sys.executable, "-m", "opbyte", "query", str(folder), sql, form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
