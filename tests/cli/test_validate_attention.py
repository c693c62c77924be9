"""`opbyte validate attention`: rows that are there, rows that are not, and damaged ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "model,seq_len,traffic,latency,energy,util_2d,util_1d\n"
#: 64 sequences of 1,024 tokens, twelve heads of 64, on FuseMax: closed forms of test_spatial.
ROW = "BERT,1K,402653184,0.0020131404,1.95e12,0.8896103896,1.0\n"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opbyte", "validate", "attention", *arguments],
        env={**os.environ, "OPBYTE_REFERENCE": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reference" / "attention").mkdir(parents=True)
    return tmp_path


def test_rows_that_are_there_are_compared_and_others_named(folder: Path) -> None:
    path = folder / "reference" / "attention" / "fusemax_attn-binding.csv"
    path.write_text(HEAD + ROW)
    done = run(folder, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["attention"]
    assert {r["band"]: r["ok"] for r in rows} == dict.fromkeys(
        ("latency", "traffic", "energy", "util_2d", "util_1d"), True
    )
    assert {r["machine"] for r in rows} == {"fusemax-cloud"}
    assert "fusemax_attn-flat.csv is not there" in run(folder).stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + ROW.replace("BERT", "BURT"), "BURT"),
        (HEAD + ROW.replace("1K", "1X"), "a length such as 16K is due"),
        ("model,seq_len\nBERT,1K\n", "latency"),
    ],
)
def test_a_damaged_file_is_one_clear_error(folder: Path, text: str, says: str) -> None:
    (folder / "reference" / "attention" / "fusemax_attn-binding.csv").write_text(text)
    done = run(folder)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_no_rows_and_no_folder_are_told(tmp_path: Path, folder: Path) -> None:
    assert "none of the files" in run(folder).stderr
    nowhere = run(tmp_path / "nowhere")
    assert nowhere.returncode == 2
    assert "reference/attention/" in nowhere.stderr
