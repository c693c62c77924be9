"""`opbyte validate gpu` on folders that are not as they should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opbyte", "validate", *arguments],
        env={**os.environ, "OPBYTE_REFERENCE": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reference" / "gpu").mkdir(parents=True)
    return tmp_path


def put(folder: Path, frame: pd.DataFrame) -> None:
    frame.to_parquet(folder / "reference" / "gpu" / "a100_gemm.parquet")


ROWS = pd.DataFrame({"m": [16, 32], "n": [4096, 64], "k": [4096, 64], "latency": [0.03, 0.004]})


def test_a_good_file_is_compared_as_one_json_document(folder: Path) -> None:
    put(folder, ROWS)
    done = run(folder, "gpu", "--json")
    assert done.returncode == 0, done.stderr
    (whole, *_) = json.loads(done.stdout)["measured"]
    assert (whole["rows"], whole["band"]) == (2, "all")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda rows: rows.drop(columns="latency"), "latency"),
        (lambda rows: rows.iloc[:0], "no rows"),
        (lambda rows: rows.assign(latency=[0.0, 1.0]), "above 0"),
        (None, "can not be read"),
        ("absent", "none of the files"),
    ],
)
def test_a_bad_file_is_one_clear_error(folder: Path, spoil, says: str) -> None:
    if spoil is None:
        (folder / "reference" / "gpu" / "a100_gemm.parquet").write_bytes(b"PAR1 cut off")
    elif spoil != "absent":
        put(folder, spoil(ROWS))
    done = run(folder, "gpu")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 20


def test_only_measured_rows_have_a_plot(folder: Path) -> None:
    done = run(folder, "sn40l", "--plot", "x.png")
    assert done.returncode == 2
    assert "--plot" in done.stderr
