"""Systolic rows: fill, drain and edge tiles of SCALE-Sim, memory stalls of ZigZag.

Two effects, each on its own: SCALE-Sim's rows have skew and no bandwidth limit, ZigZag's have
memory and no skew.
"""

import csv

import numpy as np
import pytest

from opbyte.hw_models.compute.systolic import Supply, array_cycles, memory_waits


@pytest.fixture(scope="module")
def rows(reference):
    path = reference / "reference" / "systolic" / "systolic_reference.csv"
    if not path.is_file():
        pytest.skip(f"no reference rows: {path} is not a file")
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["cycles"]]


def shape(row):
    side = int(row["array"])
    return int(row["M"]), int(row["N"]), int(row["K"]), (side, side), row["dataflow"]


def of(rows, tool):
    return [row for row in rows if row["tool"].startswith(tool)]


def zigzag(rows, *, preload):
    """Return the relative error of each ZigZag row, of the whole model and without memory.

    Stated: capacity, and bits per cycle of the DRAM. Not stated, read off the rows where M = 1:
    8-bit elements and an SRAM that takes one edge of the array per cycle and gives two.
    """
    errors, bare = [], []
    for row in of(rows, "ZigZag"):
        m, n, k, array, dataflow = shape(row)
        supply = Supply(
            capacity=1024.0 * int(row["sram_KB"].split()[0]),
            feed=float(row["mem"].split()[1]) / 8,
            fill=array[0],
            read=2 * array[0],
            preload=preload,
        )
        alone = array_cycles(m, n, k, array, dataflow, skew=False)
        waits = memory_waits(m, n, k, array, dataflow, 1.0, supply)
        errors.append(waits.total(alone) / float(row["cycles"]) - 1)
        bare.append(alone / float(row["cycles"]) - 1)
    return np.array(errors), np.array(bare)


def test_scale_sim_rows_are_exact(rows):
    mine = of(rows, "SCALE-Sim")
    assert len(mine) == 20
    for row in mine:
        # SCALE-Sim prints the index of the last cycle, counted from zero.
        assert array_cycles(*shape(row)) - 1 == float(row["cycles"]), row


def test_zigzag_rows_with_its_memory_are_within_10_percent_on_average_and_25_at_worst(rows):
    errors, _ = zigzag(rows, preload=True)
    assert len(errors) == 48
    assert np.abs(errors).mean() <= 0.10
    assert np.abs(errors).max() <= 0.25


def test_rows_that_memory_stalls_are_explained_by_memory(rows):
    """On the rows that the array alone misses by more than 5 %, memory has to explain the rest."""
    errors, bare = zigzag(rows, preload=True)
    stalled = np.abs(bare) > 0.05
    assert stalled.sum() >= 10
    assert np.abs(bare[stalled]).mean() > 0.20
    assert np.abs(errors[stalled]).mean() <= 0.10


def test_without_preload_only_the_layer_that_fits_its_buffer_is_faster_than_zigzag(rows):
    """ZigZag holds all of a layer that fits and loads it first; overlapping tiles do not wait."""
    errors, _ = zigzag(rows, preload=False)
    far = [
        shape(row)[:4] for row, e in zip(of(rows, "ZigZag"), errors, strict=True) if abs(e) > 0.25
    ]
    assert far == [(128, 1024, 1024, (128, 128))]
    assert np.abs(errors).mean() <= 0.10
