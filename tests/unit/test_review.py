"""Odd arguments of the Python interface: an error that says what is due, never a wrong number."""

import numpy as np
import pandas as pd
import pytest

import opbyte as ob

MACHINE = "h100-sxm-80gb"


@pytest.fixture(scope="module")
def model():
    return ob.load_model("llama-3.1-8b")


def test_several_points_are_no_simulation(model):
    work = ob.Decode(model, batch=np.array([1.0, 64.0]), context=64)
    with pytest.raises(ob.ConfigError, match=r"one simulation is one point.*got 2"):
        ob.simulate(MACHINE, work)


@pytest.mark.parametrize("work", [None, "decode", ["decode"], 5])
def test_what_is_no_work_is_refused(work):
    with pytest.raises(ob.ConfigError, match="a work or a dict is due"):
        ob.simulate(MACHINE, work)


def test_a_rate_of_zero_takes_for_ever(model):
    machine = ob.load_machine(MACHINE).replace({"gpu.hbm.phy.bandwidth": "0 TB/s"})
    with pytest.raises(ob.SimulationError, match="a rate that it needs is 0"):
        ob.simulate(machine, ob.Decode(model, batch=1, context=64))


def test_a_batch_of_products_keeps_rows_whose_labels_repeat():
    frame = pd.DataFrame(
        {"kind": "gemm", "m": [1, 4096, 1], "n": 4096, "k": 4096, "dtype": ["bf16", "fp8", "bf16"]},
        index=[0, 0, 0],
    )
    seconds = ob.simulate_batch(MACHINE, frame)["seconds"].tolist()
    for row, found in zip(frame.itertuples(index=False), seconds, strict=True):
        one = ob.simulate(MACHINE, ob.Gemm(m=row.m, n=row.n, k=row.k, dtype=row.dtype))
        assert found == pytest.approx(one.seconds, rel=1e-12)


def test_a_batch_without_its_columns_is_refused():
    with pytest.raises(ob.ConfigError, match="needs m, n, k; empty or missing"):
        ob.simulate_batch(MACHINE, pd.DataFrame({"kind": ["gemm"]}))


def test_a_front_of_texts_is_refused():
    frame = pd.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]})
    with pytest.raises(ob.ConfigError, match="'name' holds no numbers"):
        ob.front(frame, {"a": "min", "name": "min"})
