"""What commands say to people: counts in words, quantities with their units."""

import re

import pytest

from opbyte.sweeps.cli import main
from opbyte.sweeps.console import counted


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 points"), (1, "1 point"), (2, "2 points"), (12_000, "12,000 points")]
)
def test_counts(count, text):
    assert counted(count, "point") == text


def test_one_of_something_is_singular(tmp_path, capsys):
    file, out = tmp_path / "one.yaml", str(tmp_path / "out")
    file.write_text(
        """\
kind: study
name: one
base: {machine: sn40l-node, workload: {kind: decode, model: llama-3.1-8b, context: 4096}}
axes: {workload.batch: {values: [2]}}
objectives: {tokens_per_s: max, price_usd: min}
"""
    )
    commands = [
        ["sweep", str(file), "--out", out, "--no-plots"],
        ["sweep", str(file), "--out", out, "--no-plots"],
        ["watch", out, "--once"],
        ["front", out],
        ["compact", out],
        ["report", out],
    ]
    said = []
    for command in commands:
        assert main(command) == 0
        said.extend(capsys.readouterr())
    text = " ".join("".join(said).split())
    for part in (
        "Front of one: 1 point ", "1 point: 1 ok", "1 of 1 point is stored already",
        "one: finished, 1 of 1 point (100.0%)", "Front of one: 1 point on it in some draw",
        "1 point looked at", "1 point: 1 part became 1", " MB, 1 point)",
    ):  # fmt: skip
        assert part in text
    assert not re.search(r"\b1 (points|parts|draws)\b", text)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sweep", "cxl_optimizer", "--no-plots"], ["GB/s"]),
        (["run", "{experiment}"], ["carbon_g_per_mtoken", " g ", "kv_bytes", "iB"]),
    ],
)
def test_metrics_have_units(tmp_path, capsys, arguments, parts):
    experiment = tmp_path / "e.yaml"
    experiment.write_text(
        "kind: experiment\nmachine: h100-sxm-80gb\n"
        "workload: {kind: decode, model: llama-3.1-8b, batch: 8, context: 4096}\n"
    )
    filled = [a.format(experiment=experiment) for a in arguments]
    assert main([*filled, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for part in parts:
        assert part in said
    assert not re.search(r"e\+(09|1\d) *$", said, re.MULTILINE), "a number of SI units"
