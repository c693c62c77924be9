"""Cores of tables: area by hand, cycles counted one by one, what must rise and what must fall."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError
from opbyte.hw_models.compute.lut import Core, Structure, product_cycles, structure
from opbyte.hw_models.compute.lut.cycles import walk
from opbyte.hw_models.cost.primitives import primitives

GATES = primitives(node_nm=16)
FA, MUX, FF, XOR, AND = (
    GATES.values[f"{g}.area"] * GATES.scale[0]
    for g in ("full_adder", "mux2", "flip_flop", "xor2", "and2")
)


def test_area_by_hand_int8() -> None:
    """mu = 3: 13 entries of 10 bits from 14 adders; 4 tables, 2 readers: 12, 13 and 32 bits."""
    made = structure(Core(mu=3, tables=4, readers=2, buffers=2), GATES)
    area = made.area
    assert area["build"] == pytest.approx(4 * 14 * 10 * FA)
    assert area["tables"] == pytest.approx(2 * 4 * 13 * 10 * FF)
    assert area["read"] == pytest.approx(4 * 2 * 10 * (12 * MUX + AND + XOR))
    assert area["reduce"] == pytest.approx(2 * (2 * 11 + 12) * FA)
    assert area["accumulate"] == pytest.approx(2 * 32 * (FA + FF))
    assert area["pipeline"] == 0.0
    assert made.area_m2 == pytest.approx(sum(area.values()))
    assert made.core.macs_per_cycle == 4 * 3 * 2
    # The generator's own tree is 32 bits wide.
    wide = structure(Core(mu=3, tables=4, readers=2, reduce_bits=32), GATES).area
    assert wide["reduce"] == pytest.approx(2 * 3 * 32 * FA)


def test_area_by_hand_fp16() -> None:
    """A sign is one bit; every addition is a floating-point adder."""
    adder = GATES.values["fp_add.fp16.area"] * GATES.scale[0]
    area = structure(Core(activation="fp16", mu=2, tables=3, readers=5), GATES).area
    assert area["build"] == pytest.approx(3 * 2 * adder)
    assert area["tables"] == pytest.approx(3 * 4 * 16 * FF)
    assert area["read"] == pytest.approx(15 * (3 * 16 * MUX + 16 * AND + XOR))
    assert area["reduce"] == pytest.approx(5 * 2 * adder)
    assert area["accumulate"] == pytest.approx(5 * (adder + 16 * FF))


def test_area_of_arrays_by_hand() -> None:
    product = GATES.values["int_multiply.int8.area"] * GATES.scale[0]
    plain = structure(Core(kind="multiplier", mu=1, tables=4, readers=3), GATES).area
    assert plain["read"] == pytest.approx(12 * product)
    assert plain["reduce"] == pytest.approx(3 * (2 * 17 + 18) * FA)
    unpacked = structure(Core(kind="dequantise", mu=1, tables=4, readers=3), GATES).area
    assert unpacked["read"] == pytest.approx(12 * (product + 8 * (AND + XOR)))
    serial = structure(Core(kind="bit_serial", mu=1, tables=4, readers=3), GATES)
    assert serial.area["read"] == pytest.approx(12 * (AND + XOR))
    assert serial.area["reduce"] == pytest.approx(3 * (2 * 3 + 4) * FA)
    assert serial.core.macs_per_cycle == 12 / 8
    only = structure(Core(mu=1, tables=4, readers=3), GATES).area
    assert only["build"] == 0.0
    assert only["read"] == pytest.approx(12 * 8 * (AND + XOR))


def test_energy_by_hand() -> None:
    made = structure(Core(mu=2, tables=1, readers=1), GATES)
    e = {g: GATES.values[f"{g}.energy"] * GATES.scale[1] for g in
         ("full_adder", "mux2", "flip_flop", "xor2", "and2")}  # fmt: skip
    assert made.build_energy == pytest.approx(9 * (2 * e["full_adder"] + 4 * e["flip_flop"]))
    read = 9 * (3 * e["mux2"] + e["and2"] + e["xor2"])
    assert made.read_energy == pytest.approx(read + 32 * (e["full_adder"] + e["flip_flop"]))


def test_tables_for_sherry_are_smaller_than_those_for_any_weights() -> None:
    """16 entries of b + 2 bits from 20 adders, and no zero to select."""
    fields = {"mu": 4, "tables": 8, "readers": 32}
    made = structure(Core(weights="sherry", **fields), GATES)  # type: ignore[arg-type]
    assert made.area["build"] == pytest.approx(8 * 20 * 10 * FA)
    assert made.area["tables"] == pytest.approx(8 * 16 * 10 * FF)
    assert made.area["read"] == pytest.approx(8 * 32 * 10 * (15 * MUX + XOR))
    assert made.area_m2 < 0.5 * structure(Core(**fields), GATES).area_m2  # type: ignore[arg-type]
    for wrong in ({"mu": 3}, {"kind": "multiplier", "mu": 1}):
        with pytest.raises(ConfigError, match="tables of mu = 4"):
            Core(weights="sherry", **wrong)  # type: ignore[arg-type]


small = st.integers(1, 5)


@given(
    mu=st.integers(1, 4),
    tables=small,
    readers=small,
    accumulators=st.integers(0, 20),
    buffers=st.integers(1, 2),
    stages=st.tuples(small, small),
    sizes=st.tuples(*[st.integers(1, 30)] * 3),
    kind=st.sampled_from(["lut", "bit_serial"]),
)
def test_cycles_are_those_counted_one_by_one(
    mu: int, kind: str, stages: tuple[int, int], sizes: tuple[int, int, int], **fields: Any
) -> None:
    core = Core(kind=kind, mu=mu if kind == "lut" else 1, **fields)  # type: ignore[arg-type]
    made = replace(
        structure(core, GATES), build_stages=float(stages[0]), read_stages=float(stages[1])
    )
    m, n, k = sizes
    assert product_cycles(made, float(m), float(n), float(k)).total == walk(core, *stages, m, n, k)


def test_whole_tiles_without_waiting_take_their_operations_and_one_fill() -> None:
    made = structure(Core(mu=2, tables=8, readers=16, accumulators=256, buffers=2), GATES)
    cycles = product_cycles(made, 3.0, 256.0, 160.0)
    assert made.build_stages == 1
    assert cycles.reads == 3 * 256 * 160 / (16 * 16)
    assert cycles.total == cycles.reads + made.build_stages + made.read_stages - 1
    assert cycles.builds == 3 * 160 / 16


def test_edge_tiles_are_whole_tiles() -> None:
    made = structure(Core(mu=3, tables=2, readers=4), GATES)
    edge, whole = (product_cycles(made, 1.0, n, k).total for n, k in ((5.0, 7.0), (8.0, 12.0)))
    assert edge == whole


def test_tables_are_filled_again_for_each_block_of_outputs() -> None:
    few = structure(Core(readers=8, accumulators=32), GATES)
    many = structure(Core(readers=8, accumulators=256), GATES)
    assert product_cycles(few, 1.0, 256.0, 96.0).builds == 8 * 4
    assert product_cycles(many, 1.0, 256.0, 96.0).builds == 4


def test_cores_share_outputs_or_rows() -> None:
    one = structure(Core(readers=8), GATES)
    four = structure(Core(readers=8, instances=4), GATES)
    assert product_cycles(four, 1.0, 64.0, 96.0).total == product_cycles(one, 1.0, 16.0, 96.0).total
    assert product_cycles(four, 4.0, 8.0, 96.0).total == product_cycles(one, 1.0, 8.0, 96.0).total
    # Every core fills its tables; reads are as many as one core's.
    builds, reads = product_cycles(four, 1.0, 64.0, 96.0).everywhere
    assert builds == product_cycles(one, 1.0, 64.0, 96.0).builds
    assert reads == product_cycles(one, 1.0, 64.0, 96.0).reads


KINDS = ["lut", "multiplier", "dequantise", "bit_serial"]


@pytest.mark.parametrize("activation", ["int8", "int16", "fp16", "bf16", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_equal_single_designs(kind: str, activation: str) -> None:
    if kind == "bit_serial" and not activation.startswith("int"):
        return
    rng = np.random.default_rng(1)
    points = 40
    fields = {
        "mu": rng.integers(1, 8, points) if kind == "lut" else np.ones(points),
        "tables": rng.integers(1, 40, points),
        "readers": rng.integers(1, 40, points),
        "accumulators": rng.integers(0, 100, points),
        "buffers": rng.integers(1, 3, points),
        "clock": rng.uniform(1e8, 1e9, points),
        "instances": rng.integers(1, 5, points),
    }
    nodes = rng.choice([45.0, 28.0, 16.0, 7.0], points)
    many = structure(Core(kind, activation, **fields), primitives(node_nm=nodes))  # type: ignore[arg-type]
    all_of = product_cycles(many, 2.0, 333.0, 1000.0)
    for i in range(points):
        own = {name: float(column[i]) for name, column in fields.items()}
        one = structure(Core(kind, activation, **own), primitives(node_nm=float(nodes[i])))  # type: ignore[arg-type]
        assert np.broadcast_to(many.area_m2, points)[i] == pytest.approx(one.area_m2, rel=1e-12)
        assert (
            np.broadcast_to(all_of.total, points)[i] == product_cycles(one, 2.0, 333.0, 1e3).total
        )
        assert np.broadcast_to(many.read_energy, points)[i] == pytest.approx(one.read_energy)


def per_mac(activation: str, mu: int, size: int = 64, gates: Any = GATES, **more: Any) -> Any:
    fields = {"mu": mu, "tables": -(-size // mu), "readers": size, **more}
    return structure(Core(activation=activation, **fields), gates).area_per_mac  # type: ignore[arg-type]


def gain(activation: str, gates: Any = GATES) -> Any:
    """Return what the best table saves over additions alone."""
    best = np.minimum.reduce([per_mac(activation, mu, gates=gates) for mu in range(2, 8)])
    return per_mac(activation, 1, gates=gates) / best


def test_dear_additions_gain_from_reuse_and_cheap_ones_do_not() -> None:
    gains = {name: gain(name) for name in ("int8", "int16", "bf16", "fp16", "fp32")}
    assert gains["int8"] < 1.25
    assert gains["fp16"] > 1.5
    assert gains["fp16"] > gains["bf16"] > gains["int16"] > 0
    assert gains["fp16"] > gains["int8"]


def test_the_order_of_types_holds_over_all_ranges_of_the_table() -> None:
    drawn = GATES.sampled(300, seed=2)
    assert (gain("fp16", drawn) > gain("int8", drawn)).mean() > 0.99


@pytest.mark.parametrize("activation", ["int8", "fp16"])
def test_larger_cores_are_denser(activation: str) -> None:
    """Fills and accumulators are shared by more reads: density grows with size, then saturates."""
    area = [per_mac(activation, 2, size) for size in (8, 16, 32, 64, 96)]
    assert (np.diff(area) < 0).all()
    assert area[0] / area[1] > area[3] / area[4]


def test_one_large_core_is_smaller_than_many_small_ones() -> None:
    large = structure(Core(activation="fp16", mu=2, tables=32, readers=64), GATES)
    small = structure(Core(activation="fp16", mu=2, tables=8, readers=16, instances=16), GATES)
    assert small.core.macs_per_cycle * 16 == large.core.macs_per_cycle
    assert large.area_m2 < 16 * small.area_m2


def test_faster_clocks_take_more_registers() -> None:
    areas = [
        structure(Core(activation="fp16", mu=3, tables=11, readers=32, clock=clock), GATES)
        for clock in (0.2e9, 0.5e9, 1e9, 2e9)
    ]
    assert (np.diff([a.area["pipeline"] for a in areas]) >= 0).all()
    assert areas[-1].read_stages > areas[0].read_stages
    assert 2e9 < areas[-1].max_clock < 5e9


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("clock", float("inf"), "above 0"),
        ("mu", 0, "mu must be a whole number from 1 to 12, got 0"),
        ("mu", 13, "from 1 to 12, got 13"),
        ("mu", np.array([1, 2.5]), r"from 1 to 12, got 2\.5"),
        ("readers", 0, "readers must be a whole number at least 1, got 0"),
        ("tables", -1, "tables must be a whole number at least 1"),
        ("buffers", 3, "from 1 to 2"),
        ("activation", "fp9", "one of int8, int16, fp16, bf16, fp32"),
        ("scheme", "best", "one of naive"),
        ("kind", "fast", "one of lut, multiplier"),
        ("weights", "binary", "one of ternary, sherry"),
        ("clock", 0, "above 0"),
        ("out_bits", 4, "from 8 to 128"),
    ],
)
def test_a_wrong_design_names_the_range(field: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Core(**{field: value})


def test_kinds_without_tables_have_none() -> None:
    with pytest.raises(ConfigError, match="mu must be a whole number from 1 to 1, got 3"):
        Core(kind="multiplier")
    with pytest.raises(ConfigError, match="int8 or int16"):
        Core(kind="bit_serial", mu=1, activation="fp16")


def explored(points: int) -> Structure:
    rng = np.random.default_rng(0)
    core = Core(
        activation="fp16",
        mu=rng.integers(1, 8, points),
        tables=rng.integers(1, 128, points),
        readers=rng.integers(1, 128, points),
        accumulators=rng.integers(1, 8192, points),
        instances=rng.integers(1, 17, points),
    )
    return structure(core, primitives(node_nm=rng.uniform(7, 45, points)))


def test_a_hundred_thousand_designs_in_a_second_or_two() -> None:
    """A million within 60 s: here a tenth of it, with room for a busy machine."""
    start = time.process_time()
    made = explored(100_000)
    cycles = product_cycles(made, 1.0, 6912.0, 2560.0).total
    assert np.isfinite(cycles * made.area_m2).all()
    assert time.process_time() - start < 6.0
