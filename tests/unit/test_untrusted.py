"""Folders of results and YAML from strangers: read, never executed."""

import json
import pickle
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import opbyte as ob
from opbyte.sweeps.cli import main
from opbyte.sweeps.store import open_results


class Trap:
    """Says so when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def refuse(*_, **__):
    raise AssertionError("something was unpickled")


def test_reading_results_unpickles_nothing(tmp_path, monkeypatch):
    ob.load_study("quick").run(tmp_path / "out", workers=1)
    for name in ("load", "loads", "Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    results = open_results(tmp_path / "out")
    assert len(results.frame()) == sum(results.counts.values()) > 0
    assert len(ob.front(results.frame(), results.objectives)) > 0


def test_a_pickle_hidden_in_a_part_is_not_opened(tmp_path):
    out, sprung = tmp_path / "out", tmp_path / "sprung"
    ob.load_study("quick").run(out, workers=1)
    (part, *_) = open_results(out).parts
    hidden = pickle.dumps(Trap(sprung))
    table = pq.read_table(part)
    kept = open_results(out).frame()
    point = pa.field(
        "point", pa.int64(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": hidden,
        },
    )  # fmt: skip
    fields = [point if f.name == "point" else f for f in table.schema]
    schema = pa.schema(fields, metadata={b"pandas": json.dumps({"pickle": repr(hidden)}).encode()})
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), part)
    assert open_results(out).frame().equals(kept)
    assert not sprung.exists()


def test_only_executors_know_pickle(root):
    """What travels to workers is pickled by the process that asks; nothing else is."""
    found = {
        str(file.relative_to(root))
        for room in ("opbyte", "sweeps", "sim", "workloads", "hw_models")
        for file in (root / room).rglob("*.py")
        if re.search(r"\bpickle\b(?!d)|allow_pickle=True|read_pickle|joblib|marshal\b|shelve",
                     re.sub(r'"""(.|\n)*?"""', "", file.read_text()))
    }  # fmt: skip
    assert {name for name in found if not name.startswith("opbyte/sweeps")} == {
        "sweeps/backends.py"
    }


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os"]
)
@pytest.mark.parametrize("command", ["sweep", "search", "run", "explain"])
def test_yaml_never_executes(tmp_path, capsys, command, tag):
    file = tmp_path / "s.yaml"
    file.write_text(f"kind: study\nname: {tag} ['touch {tmp_path / 'sprung'}']\n")
    assert main([command, str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert f"{file}:2:7" in error
    assert "tag" in error
    assert not (tmp_path / "sprung").exists()


def test_no_loader_but_the_safe_composer_is_used(root):
    for room in ("sweeps", "sim", "workloads", "hw_models", "opbyte/core", "scripts"):
        for file in (root / room).rglob("*.py"):
            text = file.read_text()
            assert not re.search(r"yaml\.(unsafe_|full_)?load(_all)?\(", text), file
            assert "yaml.Loader" not in text, file


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("axes",), 3), (("name",), "\x1b]0;title\x07"), (("units",), []), (("dimensions",), None),
        (("study",), []), (("study", "objectives"), ["seconds"]),
        (("study", "objectives"), {"seconds": "least"}), (("study", "strategy"), 3),
        (("study", "base"), [3]), (("study", "fidelity"), 3), (("study", "axes"), {"a": 3}),
    ],
)  # fmt: skip
def test_a_study_json_of_another_shape_is_one_error(tmp_path, path, value, capsys):
    ob.load_study("quick").run(tmp_path / "out", workers=1)
    file = tmp_path / "out" / "study.json"
    meta = json.loads(file.read_text(encoding="utf-8"))
    at = meta
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    file.write_text(json.dumps(meta), encoding="utf-8")
    assert main(["front", str(tmp_path / "out"), "--samples", "2"]) == 2
    told = capsys.readouterr().err
    assert "study.json" in told
    assert path[-1] in told
    assert "\x1b" not in told
