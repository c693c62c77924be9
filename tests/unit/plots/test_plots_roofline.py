"""Figures: operators under the roofs of a machine."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.sweeps import plots
from opbyte.sweeps.plots._roofline import roofs_of
from tests.unit.plots.figures import DECODE, assert_readable, legend_texts


def test_one_roof_for_each_tier_with_its_ridge(decode):
    machine = ob.load_machine("sn40l-node")
    roofs = roofs_of(machine, machine.mapping(), frozenset({"bf16"}))
    found = {r.name: (r.bandwidth, r.ridge) for r in roofs}
    assert found["rdu.hbm"] == (1.8e12, pytest.approx(638e12 / 1.8e12))
    assert found["rdu.ddr"] == (200e9, pytest.approx(638e12 / 200e9))
    assert found["rdu.sram"][0] == machine.values["rdu.sram.fabric.bandwidth"]
    ax = plots.roofline(machine, decode)
    texts = legend_texts(ax)
    assert {"rdu.hbm, 1.8 TB/s", "rdu.ddr, 200 GB/s"} <= set(texts)
    assert not any("host" in t for t in texts), "nothing uses the host's memory here"
    assert "ridge 354 FLOP/B" in [t.get_text() for t in ax.texts]
    assert_readable(ax)


def test_a_changed_bandwidth_moves_its_roof():
    machine = ob.load_machine("sn40l-node").replace({"rdu.hbm.phy.bandwidth": "3.6 TB/s"})
    roofs = {r.name: r for r in roofs_of(machine, machine.mapping(), frozenset({"bf16"}))}
    assert roofs["rdu.hbm"].ridge == pytest.approx(638e12 / 3.6e12)


def test_operators_stand_below_their_roof_at_their_intensity(decode):
    ax = plots.roofline("sn40l-node", decode)
    offsets = np.concatenate([c.get_offsets() for c in ax.collections])
    table = decode.breakdown
    layer = table[table["block"].str.startswith("layer")].iloc[0]
    intensity = layer["flops"] / layer["rdu.hbm.phy_bytes"]
    rate = layer["flops"] / layer["seconds"]
    assert np.isclose(offsets, [intensity, rate]).all(axis=1).any()
    assert (offsets[:, 1] <= 1.8e12 * offsets[:, 0] * (1 + 1e-9)).all()


def test_a_roofline_without_results_shows_the_machine_alone():
    ax = plots.roofline("h100-sxm-80gb")
    assert not ax.collections
    assert_readable(ax)


def test_a_roofline_simulates_works():
    ax = plots.roofline("dgx-h100", DECODE)
    assert ax.collections
    assert_readable(ax)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("fusemax-cloud", 2 * 256 * 256 * 940e6), ("bitmod", 2 * 1024 * 4 * 1e9)],
)
def test_arrays_whose_rate_follows_from_their_clock_have_a_roof(name, rate):
    machine = ob.load_machine(name)
    roofs = roofs_of(machine, machine.mapping(), frozenset({"fp16"}))
    assert roofs
    assert all(r.peak == pytest.approx(rate) for r in roofs)
