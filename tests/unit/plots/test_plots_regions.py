"""Maps of claims: what is filled, where marks lie, and the map of CXL-aware fine-tuning."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.sweeps.claims import Claim, held
from opbyte.sweeps.plots._cxl_map import CXL_CLAIMS, CXL_DEVICES
from opbyte.sweeps.plots._regions import FINE, fine

RATE = "machine.aic.dram.cxl.bandwidth"
DRAM = "machine.cpu.dram.imc.bandwidth"


def grid(links=(1.0, 2.0)):
    x, y = np.geomspace(2e9, 6e10, 9), np.geomspace(2e10, 6e11, 11)
    rows = [
        {"kind": kind, "link": link, RATE: a, DRAM: b, "seconds": b if kind == "far" else a}
        for kind in ("near", "far")
        for link in links
        for a in x
        for b in y
    ]
    return pd.DataFrame(rows)


SLOW = Claim("3 to 5 times", "seconds", 3.0, 5.0, {"kind": "far"}, {"kind": "near"})
SLOWER = Claim("4 to 6 times", "seconds", 4.0, 6.0, {"kind": "far"}, {"kind": "near"})


def test_between_points_ratios_are_powers():
    found = held(grid((1.0,)), [SLOW], [RATE, DRAM])
    found["log"] = np.log(found[SLOW.name])
    x, y, z = fine(found, RATE, DRAM, "log")
    assert x.shape == y.shape == (FINE,)
    np.testing.assert_allclose(np.exp(z), y[:, None] / x[None, :], rtol=1e-9)


def test_panels_marks_and_legend():
    marks = [
        ob.plot.Mark("known", 1e10, 4e10, "here"),
        ob.plot.Mark("no host", 2e10, None, "here"),
        ob.plot.Mark("outside", 1e13, 1e11, "here"),
    ]
    figure = ob.plot.regions(
        grid(), RATE, DRAM, [SLOW, SLOWER], columns="link", marks=marks,
        bands=[ob.plot.Band("four", 1e11, 2e11)], words={RATE: "Device", ("link", 1.0): "old"},
    )  # fmt: skip
    try:
        first, second = figure.axes
        assert first.get_title("left") == "old"
        assert first.get_xlabel() == "Device (GB/s)"
        assert first.get_ylabel().endswith("(GB/s)")
        assert second.get_ylabel() == ""
        points = [tuple(np.ravel(line.get_data())) for line in first.lines]
        assert (1e10, 4e10) in points
        texts = [t.get_text() for t in figure.legends[0].get_texts()]
        assert texts[:4] == [SLOW.name, SLOWER.name, "all together", "four"]
        # 4 to 5 times: black above a tenth of the line, nowhere else.
        black = first.collections[-1].get_paths()[0].vertices
        ratio = black[:, 1] / black[:, 0]
        assert ratio.min() > 3.8
        assert ratio.max() < 5.2
    finally:
        plt.close(figure)


def test_rates_of_devices_say_where_they_are_from():
    assert all(mark.source for mark in CXL_DEVICES)
    assert len({mark.name for mark in CXL_DEVICES}) == len(CXL_DEVICES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    study = ob.load_study(
        "cxl_map",
        {
            f"axes.{RATE}.steps": 7, f"axes.{DRAM}.steps": 6,
            "axes.machine.dma.bandwidth": {"values": ["31.5 GB/s", "63 GB/s"]},
            "axes.workload.batch": {"values": [1, 16]},
        },
    )  # fmt: skip
    return study.run(out=tmp_path_factory.mktemp("cxl_map"), workers=1)


def test_the_map_of_fine_tuning(small):
    frame = small.frame()
    assert set(frame["status"]) == {"ok"}
    axes = ["machine.dma.bandwidth", "workload.batch", RATE, DRAM]
    found = held(frame, CXL_CLAIMS, axes)
    one, two, slow = (found[claim.name] for claim in CXL_CLAIMS)
    # Wholly beyond, a step of the optimizer is slower by the rates, while bytes decide.
    np.testing.assert_allclose(slow, found[DRAM] / found[RATE], rtol=0.02)
    # A second device never hurts.
    assert np.all(two >= one * (1 - 1e-9))
    # A faster expander never hurts, faster DRAM only DRAM alone.
    for by, column, sign in ((RATE, one.name, 1), (RATE, two.name, 1), (DRAM, two.name, -1)):
        rest = [a for a in axes if a != by]
        steps = found.sort_values(by).groupby(rest)[column].diff().dropna()
        assert np.all(sign * steps >= -1e-6)
    figure = ob.plot.cxl_map(small)
    try:
        assert figure.axes[0].get_title("left") == "GPU at PCIe 4 x16"
        assert len(figure.axes) == 4
    finally:
        plt.close(figure)
