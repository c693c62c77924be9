"""Primitives: closed forms, published rows, scaling between nodes, a user's own table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.cost.energy import scale_energy
from opbyte.hw_models.cost.primitives import NUMBERS, _collected, number, primitives
from opbyte.hw_models.gates import CATALOG, load_gates

UM2, FJ, PJ = 1e-12, 1e-15, 1e-12
OWN = primitives()


@pytest.mark.parametrize(
    ("bits", "area", "energy"), [(8, 36, 0.03), (16, 67, 0.05), (32, 137, 0.1)]
)
def test_adders_are_the_published_ones(bits: int, area: float, energy: float) -> None:
    """Horowitz's three integer adders are one full adder for each bit."""
    price = OWN.adder(bits)
    assert price.area == pytest.approx(area * UM2, rel=0.06)
    assert price.energy == pytest.approx(energy * PJ, rel=0.18)


def test_operators_of_the_table() -> None:
    fp16, int8 = NUMBERS["fp16"], NUMBERS["int8"]
    assert OWN.add(fp16).area == pytest.approx(1360 * UM2)
    assert OWN.multiply(fp16).energy == pytest.approx(1.1 * PJ)
    assert OWN.multiply(int8).area == pytest.approx(282 * UM2)
    # Between 8 and 32 bits a power of the width.
    assert OWN.int_multiplier(16).area == pytest.approx(math.sqrt(282 * 3495) * UM2)
    assert OWN.int_multiplier(64).area > 3 * OWN.int_multiplier(32).area
    assert OWN.mux(1, 16).area == 0
    assert OWN.mux(40, 16).area == pytest.approx(39 * 16 * 1.86 * UM2)
    assert OWN.mux(40, 16).delay == pytest.approx(6 * 2 * 18e-12)
    assert OWN.register(10).energy == pytest.approx(90 * FJ)
    assert OWN.shifter(16, 16).area == pytest.approx(4 * 16 * 1.86 * UM2)


@pytest.mark.parametrize(("bytes_", "pj"), [(512, 0.0332), (128, 0.0214)])
def test_small_arrays_agree_with_cacti(bytes_: int, pj: float) -> None:
    """energy_area_cost.yaml, sram_cacti: 45 nm, 32 bits wide, pJ for a bit."""
    assert OWN.sram(8.0 * bytes_).energy == pytest.approx(pj * PJ, rel=0.2)


def significand(bits: int) -> int:
    return math.ceil(math.log2(bits + 3))


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_ranges_of_fp_begin_where_their_gates_are_counted(name: str) -> None:
    """Two shifters, swap, two exponent adders, adder, leading zeros, rounding; product of both."""
    form = NUMBERS[name]
    p, wide = form.significand, form.significand + 3
    fa, mux, xor, gate = (OWN.values[f"{g}.area"] for g in ("full_adder", "mux2", "xor2", "and2"))
    adder = (3 * form.exponent + wide) * fa + (2 * p + 2 * wide * significand(p)) * mux
    adder += wide * (xor + 3 * gate) + p * (fa - xor)
    product = p * p * (fa + gate) + 2 * form.exponent * fa + p * (mux + fa - xor)
    for kind, counted in (("fp_add", adder), ("fp_multiply", product)):
        low, high = OWN.ranges[f"{kind}.{name}.area"]
        assert low == pytest.approx(counted, rel=0.25)
        assert low <= OWN.values[f"{kind}.{name}.area"] <= high


@pytest.mark.parametrize(
    ("node", "volt"), [(32, 0.9), (20, 0.85), (16, 0.8), (14, 0.8), (10, 0.75), (7, 0.7)]
)
def test_energy_follows_the_published_polynomials(node: int, volt: float) -> None:
    factor = primitives(node_nm=node).scale[1]
    assert factor == pytest.approx(scale_energy(45, 0.9, node, volt), rel=1e-3)


def test_nodes_between_lie_between_and_arrays_equal_single_nodes() -> None:
    nodes = np.array([45.0, 28.0, 22.0, 16.0, 12.0, 7.0])
    many = primitives(node_nm=nodes)
    for what in range(3):
        assert (np.diff(many.scale[what]) < 0).all()
        for i, node in enumerate(nodes):
            alone = primitives(node_nm=float(node)).scale[what]
            assert many.scale[what][i] == pytest.approx(alone, rel=1e-15)
    sampled = primitives(node_nm=nodes).sampled(6)
    assert sampled.scale[0][0] == many.scale[0][0]


@pytest.mark.parametrize("node", [5.0, 65.0, float("nan")])
def test_a_node_outside_of_the_table_is_refused(node: float) -> None:
    with pytest.raises(UncoveredError, match="gates are scaled from 7 to 45 nm"):
        primitives(node_nm=node)


@pytest.mark.parametrize("name", ["fp9", "int4", "", None, 8])
def test_an_activation_that_is_not_built_names_the_range(name: object) -> None:
    with pytest.raises(ConfigError, match="one of int8, int16, fp16, bf16, fp32"):
        number(name)


@pytest.mark.parametrize("name", CATALOG.names())
def test_values_of_the_catalog_have_sources_and_assumed_ones_ranges(name: str) -> None:
    table = primitives(name)
    for path, parameter in _collected(load_gates(name), ""):
        assert parameter.source, path
        if parameter.source.startswith(("assumed", "recalled")):
            assert parameter.range is not None, path
        assert parameter.value > 0
    assert table.ranges


def test_a_user_replaces_the_table(tmp_path: Path) -> None:
    text = CATALOG.path("gates-45nm").read_text()
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("value: 1.86 um2", "value: 1.2 um2"))
    assert primitives(file).mux(2, 1).area == pytest.approx(1.2 * UM2)
    file.write_text("extends: gates-45nm\nfp_add: {fp16: {area: 500 um2}}\n")
    assert primitives(file).add(NUMBERS["fp16"]).area == pytest.approx(500 * UM2)
    with pytest.raises(ConfigError, match="no table of gates is called 'gates-45'"):
        primitives("gates-45")
    file.write_text(text.replace("mux2:", "mux3:"))
    with pytest.raises(ConfigError, match="mux3"):
        primitives(file)
    fewer = replace(OWN, values={k: v for k, v in OWN.values.items() if "fp_add.fp16" not in k})
    with pytest.raises(UncoveredError, match="no fp_add of fp16"):
        fewer.add(NUMBERS["fp16"])


def test_samples_stay_inside_their_ranges_and_begin_with_the_table() -> None:
    drawn = OWN.sampled(200, seed=3)
    for path, (low, high) in OWN.ranges.items():
        values = drawn.values[path]
        assert values[0] == OWN.values[path]
        assert low <= values.min() <= values.max() <= high
    area = drawn.adder(8).area
    assert area.shape == (200,)
    assert len(dict(OWN.ends())) == len(OWN.ranges)
