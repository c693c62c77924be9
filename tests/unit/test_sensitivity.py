"""What decides a metric, and the band of what is not known exactly."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from handmade import device

import opbyte as ob
from opbyte.core.errors import ConfigError

WORK = {"kind": "gemm", "m": 1, "n": 4096, "k": 4096, "dtype": "bf16"}
#: Bound by HBM: 2 TB/s at 0.75, with a range of efficiency.
PORT = {"capacity": "64 GiB", "ports": {"phy": {
    "bandwidth": "2 TB/s", "energy": "4 pJ/bit",
    "efficiency": {"value": 0.75, "source": "assumed: as in the tests", "range": [0.5, 0.9]},
}}}  # fmt: skip
MACHINE = device(memory={"hbm": PORT}, unit={"launch": {"hardware": "0 us"}})


def test_the_strongest_parameter_comes_first_with_the_ends_of_its_range() -> None:
    frame = ob.sensitivity(MACHINE, WORK, "seconds")
    value = ob.simulate(MACHINE, WORK).seconds
    first = frame.iloc[0]
    assert frame.attrs == {"metric": "seconds", "value": pytest.approx(value), "ratio": False}
    assert first["parameter"] == "dev.hbm.phy.efficiency"
    assert (first["low"], first["high"]) == (0.5, 0.9)
    assert first["at_low"] == pytest.approx(value * 0.75 / 0.5)
    assert first["at_high"] == pytest.approx(value * 0.75 / 0.9)
    # Without a range: 10 % either way.
    second = frame.set_index("parameter").loc["dev.hbm.phy.bandwidth"]
    assert second["at_low"] == pytest.approx(value / 0.9)
    assert (frame["span"].diff().dropna() <= 0).all()
    # Memory decides: the peak does not move it, nor what stores nothing.
    assert not frame["parameter"].str.contains("peak|ddr").any()


def test_what_both_machines_share_moves_on_both() -> None:
    twice = MACHINE.replace({"dev.hbm.phy.bandwidth": "4 TB/s"})
    frame = ob.sensitivity(twice, WORK, "seconds", baseline=MACHINE)
    assert frame.attrs["value"] == pytest.approx(2.0)
    assert frame.attrs["ratio"]
    # Bandwidths differ, so one moves alone; the efficiency is common and cancels.
    assert frame["parameter"].tolist() == ["dev.hbm.phy.bandwidth"]


def test_a_band_begins_with_the_machine_and_stays_between_the_ends() -> None:
    found = ob.band(MACHINE, WORK, "seconds", samples=500, seed=1)
    value = ob.simulate(MACHINE, WORK).seconds
    assert found.shape == (500,)
    assert found[0] == pytest.approx(value)
    assert value * 0.75 / 0.9 <= found.min() < 0.9 * value
    assert 1.3 * value < found.max() <= value * 0.75 / 0.5
    np.testing.assert_array_equal(found, ob.band(MACHINE, WORK, "seconds", samples=500, seed=1))


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no such metric, got second\. did you mean 'seconds'"):
        ob.sensitivity(MACHINE, WORK, "second")


def test_bars_are_the_ends_of_the_strongest() -> None:
    frame = ob.sensitivity(MACHINE, WORK, "seconds")
    ax = ob.plot.sensitivity(frame, most=2)
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "hbm.phy.bandwidth",
        "hbm.phy.efficiency",
    ]
    widths = [bar.get_width() for bar in ax.patches]
    top = frame.iloc[0]
    assert widths[1] == pytest.approx(top["at_low"] - frame.attrs["value"])
    assert ax.get_xlabel() == "Time (µs)"
    texts = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert texts == ["low end of the range", "high end of the range"]
    with pytest.raises(ConfigError, match=r"a frame of `opbyte\.sensitivity` is due"):
        ob.plot.sensitivity(pd.DataFrame({"a": [1]}))
    with pytest.raises(ConfigError, match="no parameter moves the metric"):
        ob.plot.sensitivity(frame.head(0))
    plt.close("all")
