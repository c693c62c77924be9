"""Measured collectives against the catalog's GPUs, through the public batch call.

The parameters of `a100-sxm-80gb` are medians of five fits, each on 300 rows of the file of NCCL
calls, drawn by the seeds 0 to 4. Together they saw all but a few of its 504 rows: what carries to
rows that a fit did not see is tested by fitting anew, in `test_gpu_calibration`. Vidur's rows were
not fitted.
"""

import os
import time
from pathlib import Path

import pandas as pd
import pytest

import opbyte as ob
from opbyte.sweeps.calibration import read_rows

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPBYTE_REFERENCE", ROOT.parent / "shared")) / "reference" / "gpu"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no measured GPU rows in {DATA}")


def calls() -> pd.DataFrame:
    """Return NCCL's rows; sizes are elements of the largest buffer of each participant."""
    return read_rows(DATA / "a100_nccl.parquet").drop(columns="file")


def vidur() -> pd.DataFrame:
    """Return all-reduces inside one node of 1 MB and more.

    Smaller ones take 32 or 62 us whatever their size: the clock was the host's.
    """
    rows = pd.read_csv(DATA / "a100_dgx__all_reduce.csv.gz")
    rows = rows[(rows["num_workers"] == rows["devices_per_node"]) & (rows["size"] >= 1e6)]
    return pd.DataFrame(
        {
            "kind": "all_reduce",
            "bytes": rows["size"],
            "participants": rows["num_workers"],
            "measured": rows["time_stats.all_reduce.median"] * 1e-3,
        }
    )


def errors(rows: pd.DataFrame) -> pd.Series:
    out = ob.simulate_batch("a100-sxm-80gb", rows.drop(columns="measured"))
    return out["seconds"] / rows["measured"] - 1


def test_nccl_calls_on_the_a100() -> None:
    rows = calls()
    assert len(rows) == 504
    error = errors(rows)
    assert error.abs().mean() <= 0.06
    assert abs(error.mean()) <= 0.01
    assert error.abs().groupby(rows["kind"]).mean().max() <= 0.085
    assert error.abs().groupby(rows["participants"]).mean().max() <= 0.07
    for low, high in ((0, 2**14), (2**14, 2**18), (2**18, 2**22), (2**22, 2**26), (2**26, 2**40)):
        assert error[rows["bytes"].between(low, high, "right")].abs().mean() <= 0.1, (low, high)


def test_a_plain_latency_and_rate_misses_them() -> None:
    rows = calls()
    halves = rows["kind"].map(lambda kind: 2.0 if kind == "all_reduce" else 1.0)
    p = rows["participants"]
    wire = halves * rows["bytes"] * (p - 1) / p
    plain = 2.22e-6 + 2e-6 * halves + wire / (0.8 * 300e9)
    assert (plain / rows["measured"] - 1).abs().mean() > 0.5


def test_all_reduces_that_the_fit_never_saw() -> None:
    rows = vidur()
    assert len(rows) > 2500
    error = errors(rows)
    assert error.abs().mean() <= 0.12
    assert error.abs()[rows["bytes"] >= 16e6].mean() <= 0.08


def test_batches_are_fast() -> None:
    rows = pd.concat([calls()] * 300, ignore_index=True)
    errors(rows.iloc[:100])
    start = time.perf_counter()
    errors(rows)
    assert len(rows) / (time.perf_counter() - start) > 300_000
