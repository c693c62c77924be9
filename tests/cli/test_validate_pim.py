"""`opbyte validate pim`: rows of another simulator, where they are, and where they are not."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNEL = {
    "pim_type": "bank", "power_constraint": "True", "dhead": 128, "L": 256, "nhead_per_hbm": 1,
    "cycles": 465,
}  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opbyte", "validate", "pim", *arguments],
        env={**os.environ, "OPBYTE_REFERENCE": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reference" / "pim").mkdir(parents=True)
    return tmp_path


def put(folder: Path, row: dict[str, object]) -> None:
    path = folder / "reference" / "pim" / "attacc_kernel_reference.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)


def test_rows_that_are_there_are_compared_and_others_named(folder: Path) -> None:
    put(folder, KERNEL)
    done = run(folder, "--json")
    assert done.returncode == 0, done.stderr
    (whole,) = json.loads(done.stdout)["reference"]
    assert (whole["rows"], whole["band"]) == (1, "all")
    assert whole["mape"] < 1.0
    assert "attacc_system_reference.csv is not there" in run(folder).stderr


def test_a_damaged_file_and_none_are_one_clear_error(folder: Path) -> None:
    empty = run(folder)
    assert empty.returncode == 2
    assert "none of the files" in empty.stderr
    put(folder, {k: v for k, v in KERNEL.items() if k != "L"})
    damaged = run(folder)
    assert damaged.returncode == 2
    assert "'L'" in damaged.stderr
    assert "Traceback" not in damaged.stderr
