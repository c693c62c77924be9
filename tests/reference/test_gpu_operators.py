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
from opbyte.sweeps.validation.measured import TABLES, compare

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPBYTE_REFERENCE", ROOT.parent / "shared")) / "reference" / "gpu"
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
