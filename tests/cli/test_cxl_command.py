"""`opbyte memory` for CXL expanders, and `opbyte validate cxl_devices`."""

import json

import pytest

from opbyte.sweeps.cli import main

DEVICE = "cxl-asic-x8"


def test_answer_as_json(capsys):
    assert main(["memory", DEVICE, "--reads", "67", "--set", "link.lanes=16", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["memory"] == DEVICE
    assert answer["idle_latency_s"] == pytest.approx(sum(answer["steps_s"].values()))
    assert answer["bandwidth_bytes_per_s"] == min(answer["limits_bytes_per_s"].values())
    assert answer["limit"] == "dram"


def test_curve_is_drawn(tmp_path, capsys):
    assert main(["memory", DEVICE, "--out", str(tmp_path), "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert [p["delivered_bytes_per_s"] for p in curve] == sorted(
        p["delivered_bytes_per_s"] for p in curve
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        "load_latency.png", "load_latency.pdf", "load_latency.csv",
    }  # fmt: skip


def test_a_table_for_people_and_a_file(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: {DEVICE}\nlink: {{generation: 6, lanes: 8, flit: 256}}\n")
    assert main(["memory", str(own), "--curve", "--set", "capacity=256 GB"]) == 0
    text = capsys.readouterr().out
    assert "idle latency" in text
    assert "outstanding" in text
    assert main(["list", "cxl", "--json"]) == 0
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)["cxl"]]
    assert DEVICE in names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["memory", DEVICE, "--pattern", "random"], "another kind of memory"),
        (["memory", DEVICE, "--queue-depth", "4"], "another kind of memory"),
        (["memory", DEVICE, "--interval", "4"], "an option of DRAM"),
        (["memory", DEVICE, "--set", "lanes"], "setting must be path=value"),
        (["memory", DEVICE, "--set", "link.lanes=3"], "1, 2, 4, 8, 16"),
    ],
)
def test_bad_input_is_one_error(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")


def test_validate_lists_every_device(capsys):
    assert main(["validate", "cxl_devices", "--json"]) == 0
    points = {p["id"]: p for p in json.loads(capsys.readouterr().out)["points"]}
    assert len(points) == 34
    assert {p["class"] for p in points.values()} == {"assumed", "calibrated", "internal", "open"}
    fine = [p for p in points.values() if p["class"] != "open"]
    assert all(p["ok"] for p in fine)
