"""Calibration on products that the model made with other parameters, and files it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.batch import simulate_batch
from opbyte.sweeps.calibrate import calibrate, read_rows
from opbyte.sweeps.cli import main

#: How the pretended device differs from the catalog's A100.
OTHER = {
    "gpu.sm.launch.graph": 3.5e-6,
    "gpu.sm.kernel.fill": 1.2e-6,
    "gpu.hbm.phy.efficiency": 0.9,
    "gpu.sm.kernel.latency": 0.8e-6,
}


def measured(count: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    sizes = np.ceil(2.0 ** rng.uniform([[0], [7], [6]], [[13], [14], [14]], (3, count)))
    frame = pd.DataFrame(dict(zip("mnk", sizes, strict=True))).assign(kind="gemm", dtype="bf16")
    return simulate_batch(load_machine("a100-sxm-80gb").with_values(OTHER), frame)


def csv(path: Path, frame: pd.DataFrame) -> Path:
    frame.assign(microseconds=1e6 * frame["seconds"])[
        ["m", "n", "k", "dtype", "microseconds"]
    ].to_csv(path, index=False)
    return path


def test_a_fit_finds_a_device_that_the_model_can_be() -> None:
    found = calibrate("a100-sxm-80gb", measured(), "mine", rows=80)
    assert found.before["all"]["mape"] > 10
    assert found.after["all"]["mape"] < 2
    assert found.after["all"]["rows"] == 120
    assert sum(band["rows"] for band in found.after.values()) == 240
    for path in ("gpu.sm.launch.graph", "gpu.hbm.phy.efficiency"):
        assert found.values[path] == pytest.approx(OTHER[path], rel=0.1)


def test_the_command_writes_a_machine_that_says_what_it_was_fitted_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = csv(tmp_path / "rows.csv", measured(60)), tmp_path / "mine.yaml"
    arguments = ["calibrate", "a100-sxm-80gb", "--data", str(data), "--out", str(out)]
    assert main([*arguments, "--rows", "30", "--seed", "7", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    machine = load_machine(out)
    assert machine.name == "mine"
    assert len(answer["values"]) == 11
    for path, value in answer["values"].items():
        assert machine.values[path] == pytest.approx(value, rel=1e-12)
        source = machine.parameters[path].source or ""
        assert source.startswith("calibrated: 30 rows (seed 7) of 60 in rows.csv")
    again = calibrate("a100-sxm-80gb", read_rows(data), "mine", rows=30, seed=7)
    assert again.values == answer["values"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m,n,k,dtype\n1,2,3,bf16\n", ["lacks the column microseconds", "m, n, k, dtype"]),
        ("m,n,k,dtype,microseconds\n1,2,3,bf16,5\n1,2,3,bf16,\n", [":3", "microseconds"]),
        ("m,n,k,dtype,microseconds\n1,0,3,bf16,5\n", [":2", "n: must be a whole number", "0"]),
        ("m,n,k,dtype,microseconds\n1,2,3,bf16,-5\n", [":2", "positive", "-5"]),
        ("m,n,k,dtype,microseconds\n1,2,3.5,bf16,5\n", [":2", "k: must be a whole number"]),
        ("m,n,k,dtype,microseconds\n1,2,3,bf61,5\n", ["bf61", "bf16"]),
        ("", ["can not be read"]),
    ],
)
def test_rows_that_are_no_measurements_are_named(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    for word in words:
        assert word in str(caught.value)


def test_a_fit_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    frame = measured(60)
    with pytest.raises(ConfigError, match="leave rows of 60 to judge"):
        calibrate("a100-sxm-80gb", frame, "mine", rows=60)
    with pytest.raises(ConfigError, match="no unit with a `kernel` block"):
        calibrate("t4", frame, "mine", rows=30)
    with pytest.raises(ConfigError, match="can not be read"):
        read_rows(tmp_path / "absent.parquet")
