"""Measured collectives against the catalog's GPUs, through the public batch call.

The parameters of `a100-sxm-80gb` are medians of five fits, each on 300 rows of the file of NCCL
calls, drawn by the seeds 0 to 4. Together they saw all but a few of its 504 rows: what carries to
rows that a fit did not see is tested by fitting anew. Vidur's rows were not fitted.
"""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

import opbyte as ob
from opbyte.hw_models.link.calls import Caller
from opbyte.hw_models.machine import load_machine

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPBYTE_REFERENCE", ROOT.parent / "shared")) / "reference" / "gpu"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no measured GPU rows in {DATA}")

FITTED_ROWS = 300
#: What was known before any fit: value, and standard deviation of its logarithm.
PRIORS = {
    "collectives.call": (6e-6, 0.3),
    "latency": (0.8e-6, 0.4),
    "collectives.crowd": (0.35, 0.5),
    "collectives.ll": (0.4, 0.15),
    "collectives.ll128_start": (6e-6, 0.5),
    "collectives.ll128_step": (1e-6, 0.5),
    "collectives.ll128": (0.7, 0.15),
    "collectives.simple_start": (15e-6, 0.7),
    "collectives.simple_step": (3.5e-6, 0.5),
    "efficiency": (0.78, 0.12),
    "collectives.own_copy": (2.0, 0.5),
}


def calls() -> pd.DataFrame:
    """Return NCCL's rows; sizes are elements of the largest buffer of each participant."""
    rows = pd.read_parquet(DATA / "a100_nccl.parquet")
    element = rows["nccl_dtype"].map({"half": 2, "int8": 1})
    return pd.DataFrame(
        {
            "kind": rows["op_name"].replace({"alltoall": "all_to_all"}),
            "bytes": rows["message_size"] * element,
            "participants": rows["num_gpus"],
            "measured": rows["latency"] * 1e-3,
        }
    )


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


def test_a_fit_carries_to_rows_that_it_did_not_see() -> None:
    rows = calls()
    order = np.random.default_rng(0).permutation(len(rows))
    seen, other = rows.iloc[order[:FITTED_ROWS]], rows.iloc[order[FITTED_ROWS:]]
    names, prior = list(PRIORS), np.log([value for value, _ in PRIORS.values()])
    spread = np.array([deviation for _, deviation in PRIORS.values()])

    def misses(x: np.ndarray) -> np.ndarray:
        off = np.log(priced(seen, dict(zip(names, np.exp(x), strict=True))) / seen["measured"])
        soft = 0.1 * np.sqrt(2.0 * (np.sqrt(1.0 + (off / 0.1) ** 2) - 1.0))
        return np.concatenate([soft, 0.1 * (x - prior) / spread])

    fitted = least_squares(misses, prior).x
    values = dict(zip(names, np.exp(fitted), strict=True))
    error = priced(other, values) / other["measured"] - 1
    assert error.abs().mean() <= 0.07
    # What is shipped is what a fit of any sample gives, within its spread.
    machine = load_machine("a100-sxm-80gb")
    for name, value in values.items():
        assert value == pytest.approx(machine.values[f"nvlink.{name}"], rel=0.2), name


def priced(rows: pd.DataFrame, values: dict[str, float]) -> np.ndarray:
    """Return seconds with some parameters of the link replaced."""
    machine = load_machine("a100-sxm-80gb")
    caller = Caller(
        machine.config.links["nvlink"],
        lambda word, default: values.get(word, machine.values.get(f"nvlink.{word}", default)),
        np.asarray(machine.values["nvlink.bandwidth"]),
    )
    seconds = np.full(len(rows), machine.values["gpu.sm.launch.graph"])
    for kind in rows["kind"].unique():
        mine = (rows["kind"] == kind).to_numpy()
        sizes, counts = (rows.loc[mine, c].to_numpy(float) for c in ("bytes", "participants"))
        seconds[mine] += caller.cost(kind, sizes, counts).total
    return seconds


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
