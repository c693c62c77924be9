"""Does `opbyte validate megatron` compare the rows, and say what is absent?"""

import json

import pytest

from opbyte.sweeps.cli import main


def test_without_rows(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPBYTE_REFERENCE", str(tmp_path))
    assert main(["validate", "megatron"]) == 2
    assert "OPBYTE_REFERENCE" in capsys.readouterr().err
    folder = tmp_path / "reference" / "training"
    folder.mkdir(parents=True)
    assert main(["validate", "megatron"]) == 2
    (folder / "megatron_a100.csv").write_text("model,layers\ngpt,2\n")
    assert main(["validate", "megatron"]) == 2
    assert "can not be read" in capsys.readouterr().err


def test_rows(reference, monkeypatch, capsys):
    if not (reference / "reference" / "training" / "megatron_a100.csv").is_file():
        pytest.skip("no reference rows")
    monkeypatch.setenv("OPBYTE_REFERENCE", str(reference))
    assert main(["validate", "megatron", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["megatron"]
    assert len(rows) == 8
    assert all(row["seen"] == "never" and 0 < row["mfu"] <= row["hfu"] < 0.7 for row in rows)
