"""Measured attention, MLA and MoE operators against the catalog's A100, through the batch call.

The parameters are medians of five fits on 300 random rows each: those rows are left out. The
mechanisms were chosen while looking at all rows, so none is blind.
"""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sweeps.validation.measured import TABLES, compare

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPBYTE_REFERENCE", ROOT.parent / "shared")) / "reference" / "gpu"
#: Published seconds of one layer (LLMCompass, figure 5).
MEASURED = {"prefill": 66.7e-3, "decode": 1.111e-3}
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no measured GPU rows in {DATA}")


def rows(operator: str) -> pd.DataFrame:
    """Return the rows that were not fitted, with our seconds and the relative error."""
    (table,) = (t for t in TABLES if t.operator == operator)
    compared = compare(table, DATA)
    assert compared is not None
    assert compared.seen == "left out"
    frame = compared.rows
    assert np.isfinite(frame["seconds"]).all()
    return frame.assign(error=frame["seconds"] / frame["measured"] - 1)


@pytest.mark.parametrize(
    ("operator", "least", "bar", "bias"),
    [("prefill attention", 4000, 0.11, 0.03), ("decode attention", 4000, 0.13, 0.03)],
)
def test_attention(operator: str, least: int, bar: float, bias: float) -> None:
    frame = rows(operator)
    assert len(frame) > least
    assert frame["error"].abs().mean() <= bar
    assert abs(frame["error"].mean()) <= bias


def test_mla_decode() -> None:
    frame = rows("MLA decode")
    assert len(frame) > 350
    assert frame["error"].abs().mean() <= 0.20
    # Where the device and not the host decides.
    busy = frame[frame["seconds"] > 1.2 * 341e-6]
    assert len(busy) > 100
    assert busy["error"].abs().mean() <= 0.20


def test_experts() -> None:
    frame = rows("MoE layer")
    assert len(frame) > 4500
    assert frame["error"].abs().mean() <= 0.19
    assert frame.loc[frame["ep_size"] == 1, "error"].abs().mean() <= 0.16


def test_a_million_attention_calls_a_second() -> None:
    (table,) = (t for t in TABLES if t.operator == "decode attention")
    frame = pd.concat([table.read(DATA / table.file)] * 60, ignore_index=True)
    ob.simulate_batch("a100-sxm-80gb", frame)
    times = []
    for _ in range(5):
        start = time.process_time()
        ob.simulate_batch("a100-sxm-80gb", frame)
        times.append(time.process_time() - start)
    assert len(frame) / min(times) >= 1_000_000


@pytest.mark.parametrize(
    ("operator", "bar"), [("softmax", 0.12), ("norm", 0.12), ("activation", 0.04)]
)
def test_vector_operators_that_no_fit_saw(operator: str, bar: float) -> None:
    (table,) = (t for t in TABLES if t.operator == operator)
    compared = compare(table, DATA)
    assert compared is not None
    error = compared.rows["seconds"] / compared.rows["measured"] - 1
    assert len(error) >= 20
    assert error.abs().mean() <= bar


def layer(phase: str, machine: Machine | None = None) -> float:
    """Return the relative error of the sum of one GPT-3 layer's operators on four GPUs."""
    (table,) = (t for t in TABLES if t.operator == f"GPT-3 layer, {phase}")
    compared = compare(table, DATA, machine)
    assert compared is not None
    frame = compared.rows
    assert len(frame) == 12
    assert frame["measured"].sum() == pytest.approx(MEASURED[phase], rel=1e-3)
    error = frame["seconds"].sum() / frame["measured"].sum() - 1
    (band,) = (b for b in compared.bands() if b.band == "sum")
    assert band.bias == pytest.approx(100 * error)
    return float(error)


def test_a_gpt3_layer_decodes() -> None:
    assert abs(layer("decode")) <= 0.08


def test_a_gpt3_layer_prefills_one_point_beside_its_bar_because_of_the_clock() -> None:
    """The bar is 8 %. The board that was measured keeps its clock under load, ours does not.

    It multiplies random matrices at 283 to 290 TFLOP/s, where another A100 reached 257 at its 400
    W (the source of `kernel.energy`). A board at the low end of that parameter's range fits.
    """
    assert 0.08 < layer("prefill") <= 0.095
    a100 = load_machine("a100-sxm-80gb")
    low = a100.parameters["gpu.sm.kernel.energy"].range[0]
    assert abs(layer("prefill", a100.with_values({"gpu.sm.kernel.energy": low}))) <= 0.02
