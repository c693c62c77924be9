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
