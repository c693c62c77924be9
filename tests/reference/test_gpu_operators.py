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


#: What docs/machines/gpu.md says of the rows that were not fitted: mean absolute error and bias.
#: `busy` are rows where we take 1.2 times the host's time at least, `one device` those without
#: expert parallelism.
DOCUMENTED = {
    ("prefill attention", "all"): (0.038, -0.002),
    ("decode attention", "all"): (0.046, -0.011),
    ("MLA decode", "all"): (0.090, -0.023),
    ("MLA decode", "busy"): (0.082, 0.012),
    ("MoE layer", "all"): (0.085, -0.039),
    ("MoE layer", "one device"): (0.075, -0.015),
}
#: The bars: the documented error and a tenth, and so much off the documented bias.
MORE, ASIDE = 1.10, 0.008
LEAST = {"prefill attention": 4000, "decode attention": 4000, "MLA decode": 350, "MoE layer": 4500}
HOST = 341e-6


def rows(operator: str, machine: Machine | None = None) -> pd.DataFrame:
    """Return the rows that were not fitted, with our seconds and the relative error."""
    (table,) = (t for t in TABLES if t.operator == operator)
    compared = compare(table, DATA, machine)
    assert compared is not None
    assert compared.seen == "left out"
    frame = compared.rows
    assert np.isfinite(frame["seconds"]).all()
    assert len(frame) > LEAST[operator]
    return frame.assign(error=frame["seconds"] / frame["measured"] - 1)


def part(frame: pd.DataFrame, band: str) -> pd.Series:
    """Return the errors of a part of the rows."""
    if band == "busy":
        return frame.loc[frame["seconds"] > 1.2 * HOST, "error"]
    if band == "one device":
        return frame.loc[frame["ep_size"] == 1, "error"]
    return frame["error"]


def holds(operator: str, machine: Machine | None = None) -> dict[str, tuple[bool, float, float]]:
    """Return whether each part keeps its bars, its error and its bias."""
    frame = rows(operator, machine)
    found = {}
    for (name, band), (error, bias) in DOCUMENTED.items():
        if name == operator:
            ours = part(frame, band)
            mean, aside = float(ours.abs().mean()), float(ours.mean())
            found[band] = (mean <= MORE * error and abs(aside - bias) <= ASIDE, mean, aside)
    return found


@pytest.mark.parametrize("operator", LEAST)
def test_errors_are_those_of_the_page(operator: str) -> None:
    for band, (kept, error, bias) in holds(operator).items():
        assert kept, (band, error, bias)


@pytest.mark.parametrize(
    ("operator", "parameter", "value"),
    [
        ("prefill attention", "attention.tail", 0.0),
        ("prefill attention", "attention.turn", 0.0),
        ("prefill attention", "attention.write", 0.0),
        ("prefill attention", "attention.softmax", 0.5),
        ("decode attention", "attention.write", 0.0),
        ("decode attention", "attention.combine", 0.0),
        ("decode attention", "attention.small", 0.0),
        ("decode attention", "attention.copying", 0.0),
        ("MLA decode", "latent.trip", 0.64),
        ("MLA decode", "latent.start", 0.0),
        ("MLA decode", "latent.single", 0.28),
        ("MoE layer", "grouped.gather", 0.0),
        ("MoE layer", "grouped.narrow", 1 / 0.66),
        ("MoE layer", "grouped.matrix", 1.3),
        ("MoE layer", "latency", 0.5),
    ],
)
def test_a_mechanism_that_is_gone_or_wrong_is_noticed(
    operator: str, parameter: str, value: float
) -> None:
    """The parameter times `value`; 0 removes the mechanism."""
    a100, path = load_machine("a100-sxm-80gb"), f"gpu.sm.kernel.{parameter}"
    changed = a100.with_values({path: value * a100.values[path]})
    assert not all(kept for kept, _, _ in holds(operator, changed).values())


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
