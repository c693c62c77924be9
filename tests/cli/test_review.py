"""What users get wrong: every mistake is one located line and exit code 2, never a traceback."""

import json

import pytest

from tests.cli.test_commands import EXPERIMENT, STUDY, answer, opbyte, refused

WORK = "{kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}"
BASE = f"base: {{machine: sn40l-node, workload: {WORK}}}"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "s.yaml").write_text(STUDY)
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    return tmp_path


def study(folder, *lines):
    text = "\n".join(["kind: study", BASE, "objectives: {tpot: min}", *lines, ""])
    (folder / "w.yaml").write_text(text)
    return opbyte(folder, "sweep", "w.yaml", "--out", "o", "--no-plots")


@pytest.mark.parametrize(
    ("axis", "rule"),
    [
        ("machine.rdu.hbm.phy.bandwith: {values: [1 TB/s]}", "Did you mean 'bandwidth'?"),
        ("machine.rdu.count: {values: [-1, 8]}", "must be at least 0, got -1"),
        ("workload.bach: {values: [1]}", "Did you mean 'batch'?"),
        ("workload.batch: {values: [0]}", "batch must be at least 1"),
        ("mapping.fusion: {values: [none, layr]}", "no fusion is called 'layr'"),
        ("machine: {values: [sn40l-node, dgx-h10]}", "Did you mean 'dgx-h100'?"),
        ("machine: {log2: [1, 2]}", "lists its `values`"),
        ("mapping: {values: [default, nope]}", "no such mapping, got nope"),
        ("mapping: {values: [[1], default]}", "got a list of 1 item"),
        ("workload: {values: [1]}", "a workload is a mapping, got 1"),
        ("workload: {range: [1, 2], steps: 2}", "lists its `values`"),
    ],
)
def test_a_wrong_axis_is_named_where_it_stands(folder, axis, rule):
    text = refused(study(folder, "axes:", f"  {axis}"), rule)
    path = axis.partition(":")[0]
    for line in text.splitlines():
        assert line.startswith("error: w.yaml:5:")
        assert f" axes.{path}" in line
    assert not (folder / "o").exists()


def test_a_second_structural_axis_does_not_hide_which_one_is_wrong(folder):
    lines = ["axes:", "  mapping.fusion: {values: [none, layer]}", "  mapping.fusio: {values: [x]}"]
    assert "w.yaml:6:3: axes.mapping.fusio: " in refused(study(folder, *lines))


def test_a_broken_machine_file_on_an_axis_is_named_where_it_is_broken(folder):
    (folder / "m.yaml").write_text("kind: machine\nname: m\npart: {}\n")
    text = refused(study(folder, "axes:", "  machine: {values: [./m.yaml]}"))
    assert "m.yaml:3:1: " in text


def test_a_rate_of_zero_is_no_result(folder):
    axis = "  machine.rdu.hbm.phy.bandwidth: {values: [0 TB/s, 1 TB/s]}"
    done = study(folder, "axes:", axis)
    assert done.returncode == 1
    assert "2 points: 1 ok, 1 failed" in done.stdout
    assert "a rate that it needs is 0" in done.stdout
    done = opbyte(folder, "run", "e.yaml", "--set", "machine.rdu.hbm.phy.bandwidth=0 TB/s")
    assert "RuntimeWarning" not in refused(done, "a rate that it needs is 0")


def test_a_bare_bound_of_a_time_is_refused(folder):
    axis = ["axes:", "  workload.batch: {values: [1, 2]}"]
    text = refused(study(folder, *axis, "constraints: ['tpot <= 20']"))
    assert "w.yaml:6:15: constraints.0: the right side needs a unit, got 20" in text


def test_a_front_that_is_empty_is_said(folder):
    done = study(folder, "constraints: ['tpot <= 1 ns']")
    assert done.returncode == 0
    assert "1 point: 1 ok (1 of the ok ones break a constraint)" in done.stdout
    assert "there is no front" in done.stdout


def test_a_damaged_part_is_named_and_its_points_are_computed_again(folder):
    assert opbyte(folder, "sweep", "s.yaml", "--out", "o", "--no-plots").returncode == 0
    (part,) = (folder / "o" / "points").iterdir()
    part.write_bytes(part.read_bytes()[:300])
    for command in (("report", "o"), ("sweep", "s.yaml", "--out", "o", "--no-plots")):
        refused(opbyte(folder, *command), part.name, "can not be read", "Remove it")
    part.unlink()
    done = opbyte(folder, "sweep", "s.yaml", "--out", "o", "--no-plots", "--json")
    assert answer(done)["points"]["ok"] == 16


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run e.yaml --out e.yaml", "e.yaml: File exists"),
        ("run e.yaml --fidelity event --timeline d", "d: Is a directory"),
        ("run e.yaml --timeline t.json --out r", "Add --fidelity event"),
        ("compare e.yaml s.yaml", "e.yaml: a folder of results is due here, this is a file"),
        ("report s.yaml", "s.yaml: a folder of results is due here, this is a file"),
    ],
)
def test_files_and_folders_that_are_mixed_up_are_refused(folder, command, words):
    (folder / "d").mkdir()
    refused(opbyte(folder, *command.split()), words)
    assert not (folder / "r").exists()


def test_lists_and_explanations_are_for_people(folder):
    entries = answer(opbyte(folder, "list", "--json"))
    works = {e["name"]: e["about"] for e in entries["works"]}
    assert not any(about.endswith(": .") for about in works.values())
    assert "e+" not in json.dumps(entries["models"])
    shown = opbyte(folder, "explain", "llama-3.1-8b").stdout
    assert "None" not in shown
    assert "weight bf16, activation bf16, kv bf16" in shown
