"""AttAcc's systems: decode attention at the banks, or on CPUs, against its simulator's rows.

The work and the engine are those of `test_attacc_gpu.py`; what is compared are the layers, since
that tool has no embedding and no head. It prices what does not fit, so capacities are lifted.
"""

import csv

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import UncoveredError
from opbyte.sweeps.validation.pim_rows import SYSTEMS, layer_seconds, layers, run


@pytest.fixture(scope="module")
def rows(reference):
    path = reference / "reference" / "pim" / SYSTEMS
    if not path.is_file():
        pytest.skip(f"no reference rows: {path} is not a file")
    with path.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["system"] != "dgx"]
    assert len(rows) == 31
    return rows


def error(row):
    """Return the relative difference of the layers' time."""
    return layer_seconds(run(row)) / (float(row["g_time (ms)"]) / 1e3) - 1.0


def test_attention_on_cpus_is_within_a_percent_and_a_quarter(rows):
    found = [error(r) for r in rows if r["system"] == "dgx-cpu"]
    assert len(found) == 15
    assert np.abs(found).max() < 0.0125


def test_attention_in_memory_alone_and_head_by_head_is_within_a_thousandth_or_two(rows):
    found = [error(r) for r in rows if r["pim"] and r["is parallel"] == "False"]
    assert len(found) == 3
    assert np.abs(found).max() < 0.002


def test_kernels_of_attention_are_within_a_percent_and_a_half(rows):
    for row in (r for r in rows if r["pim"]):
        frame = run(row, "decode").breakdown
        took = 1e3 * frame[frame.unit == "attacc.gemv"].seconds.sum()
        assert took == pytest.approx(float(row["g_matmul"]), rel=0.015), row


def test_assisted_steps_are_within_two_percent(rows):
    """That tool leaves out the link and refresh, and has nominal rates for the assisting units."""
    found = {
        (r["pim"], r["power constraint"], r["bs"], r["Lin"], r["pipe_level"]): error(r)
        for r in rows
        if r["is parallel"] == "True"
    }
    assert len(found) == 13
    limited = {k: abs(e) for k, e in found.items() if k[1] == "True"}
    assert max(e for k, e in limited.items() if k[0] != "buffer") < 0.004
    assert max(limited.values()) < 0.018
    # 16 times the pins' rate is the nominal rate without a power limit, row switches left out.
    (free,) = (e for (_, limit, *_), e in found.items() if limit == "False")
    assert 0.03 < free < 0.045


def test_all_rows_together_are_within_half_a_percent(rows):
    found = np.abs([error(r) for r in rows])
    assert found.mean() < 0.005
    assert found.max() < 0.045


def test_energy_is_within_ten_percent(rows):
    """That tool charges assisted products to the GPU alone, and CPUs and their links nothing."""
    for row in rows:
        unassisted = {"True": "head", "False": "decode"}[row["pipe_level"]]
        frame = layers(run(row, unassisted if row["pim"] else None))
        counted = frame.unit != "cpu.cores"
        if not row["pim"]:
            counted &= ~frame.operator.str.startswith("send")
        joules = frame[counted].joules.sum()
        assert joules == pytest.approx(float(row["g_energy (nJ)"]) / 1e9, rel=0.05), row


def test_events_do_not_cut_operators_into_heads():
    with pytest.raises(UncoveredError, match="overlap: none"):
        ob.simulate("dgx-attacc-bank", ob.Decode("gpt-3-175b", 1, 512), "head", fidelity="event")
