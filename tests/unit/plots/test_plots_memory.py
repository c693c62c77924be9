"""Figures of memories: expanders under load, and several readers of one."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.sweeps import plots
from tests.unit.plots.figures import assert_readable


def drawn(figure):
    return {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}


def test_slowdown_is_drawn_against_gpus_for_each_fidelity_and_number_of_devices():
    device = ob.cxl("cxl-asic-x8")
    own = ob.Reader(bytes=1e9, compute_s=0.1, rate=54e9, in_flight=65536.0, prefetch=False)
    found = {
        fidelity: [
            ob.shared_reads(device, own, n, d, fidelity=fidelity, iterations=8)
            for d in (1, 2) for n in (4, 2, 1)
        ]
        for fidelity in ("analytic", "event")
    }  # fmt: skip
    figure = plots.shared_readers("1 GB before 100 ms", found)
    lines = drawn(figure)
    assert set(lines) == {
        f"{d} device{'s' * (d > 1)}, {f}" for d in (1, 2) for f in ("analytic", "event")
    }
    for line in lines.values():
        assert line[:, 0].tolist() == [1, 2, 4]
        assert line[0, 1] == pytest.approx(1.0)
        assert (np.diff(line[:, 1]) >= -1e-9).all()
    # Two GPUs ask for less than a device has, and meet all the same; two devices halve that.
    asked, met = lines["1 device, analytic"][:, 1], lines["1 device, event"][:, 1]
    assert asked[1] == 1.0 < lines["2 devices, event"][1, 1] < met[1]
    assert_readable(figure.axes[0])


def test_an_expander_is_drawn_with_what_its_reads_wait_for():
    device = ob.cxl("cxl-asic-x8")
    curve = device.curve(67)
    figure = plots.cxl_latency("x8, 67 % reads", curve, measured=[(10.0, 210.0)])
    lines = drawn(figure)
    assert lines["mean of reads"][:, 1] == pytest.approx([1e9 * x.latency_s for x in curve])
    assert lines["published"].tolist() == [[10.0, 210.0]]
    assert_readable(figure.axes[0])
