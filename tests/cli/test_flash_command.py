"""`opbyte memory` for flash devices, and `opbyte validate ssd`."""

import json

import pytest

from opbyte.sweeps.cli import main

DRIVE = "mqsim-default"


def test_answer_as_json(capsys):
    arguments = ["memory", DRIVE, "--pattern", "random", "--block", "4096", "--queue-depth", "16"]
    assert main([*arguments, "--requests", "500", "--reads", "70", "--wear", "seq", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["memory"] == DRIVE
    assert answer["bandwidth_bytes_per_s"] > 0
    assert answer["latency_p50_s"] <= answer["latency_p99_s"]
    assert answer["page_reads"] - answer["mapping_reads"] + answer["page_programs"] == 500
    assert answer["write_amplification"] == 1.0


def test_curve_is_drawn(tmp_path, capsys):
    arguments = ["memory", DRIVE, "--requests", "300", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [point["queue_depth"] for point in answer["curve"]][:3] == [1, 2, 4]
    assert {p.name for p in tmp_path.iterdir()} == {
        "queue_depth.png", "queue_depth.pdf", "queue_depth.csv",
    }  # fmt: skip


def test_a_table_for_people_and_a_file(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("extends: mqsim-default\nread: 25 us\n")
    changes = ["--set", "channels=4", "--set", "mapping.ideal=true", "--set", "program=200 us"]
    assert main(["memory", str(own), "--requests", "200", "--curve", *changes]) == 0
    text = capsys.readouterr().out
    assert "bandwidth_bytes_per_s" in text
    assert "queue depth" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DRIVE, "--interval", "4"], "--interval"),
        ([DRIVE, "--drain"], "--drain"),
        ([DRIVE, "--set", "channels"], "--set"),
        ([DRIVE, "--set", "chanels=4"], "chanels"),
        ([DRIVE, "--pattern", "rand_1KB"], "pattern"),
        ([DRIVE, "--wear", "rand"], "random"),
        (["ddr4-3200", "--block", "4096"], "--block"),
        (["mqsim-defaul"], "mqsim-defaul"),
    ],
)
def test_mistakes(arguments, words, capsys):
    assert main(["memory", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_listed(capsys):
    assert main(["list", "flash", "--json"]) == 0
    assert DRIVE in capsys.readouterr().out


def test_validate_without_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPBYTE_REFERENCE", str(tmp_path))
    assert main(["validate", "ssd"]) == 2
    assert "OPBYTE_REFERENCE" in capsys.readouterr().err
    folder = tmp_path / "reference" / "ssd"
    folder.mkdir(parents=True)
    assert main(["validate", "ssd"]) == 2
    (folder / "ssd_reference.csv").write_text("variant,status\ndefault,ok\n")
    assert main(["validate", "ssd"]) == 2
    assert "can not be read" in capsys.readouterr().err


def test_validate(reference, monkeypatch, capsys):
    if not (reference / "reference" / "ssd" / "ssd_reference.csv").is_file():
        pytest.skip("no reference rows")
    monkeypatch.setenv("OPBYTE_REFERENCE", str(reference))
    assert main(["validate", "ssd", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["ssd"]
    whole = [row for row in rows if row["band"] == "all"]
    assert {row["metric"] for row in whole} == {"mean latency", "bandwidth"}
    assert all(row["mape"] < 8 and row["worst"] < 20 for row in whole)
