"""A drive against MQSim: mean latency and bandwidth of its rows."""

import csv

import numpy as np
import pytest

from opbyte.sweeps.validation.ssd_rows import FILE, errors_of, play


@pytest.fixture(scope="module")
def rows(reference):
    path = reference / "reference" / "ssd" / FILE
    if not path.is_file():
        pytest.skip(f"no reference rows: {path} is not a file")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    return rows


def test_latency_and_bandwidth(rows):
    errors = np.abs([errors_of(row) for row in rows])
    # The bars are 8 % on average and 20 % at worst; the drawn addresses differ.
    assert errors.mean(axis=0).max() < 0.02
    assert errors.max() < 0.05


def test_mapping_reads_and_planes(rows):
    for row in rows[::4]:
        found, scale = play(row), float(row["completed"])
        misses = float(row["mapping_reads"])
        assert found.counts.mapping_reads == pytest.approx(misses, rel=0.1, abs=5), row
        together = float(row["multiplane_reads"])
        assert abs(found.counts.multiplane - together) <= 0.03 * scale + 0.1 * together, row
