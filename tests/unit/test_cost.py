import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.cost import (
    area_table,
    by_part,
    carbon_table,
    die_carbon_kg,
    die_price_usd,
    machine_area_m2,
    machine_carbon_kg,
    machine_power_w,
    machine_price_usd,
    power_table,
    price_table,
    scale_energy,
)
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import simulate

MM2 = 1e-6


def chip(**part: Any) -> dict[str, Any]:
    """Two chips: 100 mm2 of rest, 8 MiB at 2 mm2/MiB, 2 TB/s at 30, 50 TFLOP/s at 16 bits at 1."""
    return {
        "count": 2,
        "node_nm": 7,
        "area": "100 mm2",
        "power": "300 W",
        "memory": {
            "l2": {
                "kind": "sram",
                "capacity": "8 MiB",
                "ports": {"sm": {"bandwidth": "5 TB/s"}},
                "area": "2 mm2/MiB",
            },
            "hbm": {
                "capacity": "32 GB",
                "price": "7 USD/GB",
                "ports": {"phy": {"bandwidth": "2 TB/s", "area": "30 mm2/(TB/s)"}},
            },
        },
        "units": {
            "sm": {
                "kind": "gpu",
                "at": "hbm.phy",
                "peak": {"bf16": "50 TFLOP/s", "int8": "80 TFLOP/s"},
                "area": "1 mm2/(TFLOP/s)",
            }
        },
        **part,
    }


def build(part: dict[str, Any] | None = None, **system: Any) -> Machine:
    return load_machine({"name": "m", "parts": {"chip": part or chip()}, **system})


def without(data: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = data
    for word in path[:-1]:
        inner = inner[word]
    del inner[path[-1]]
    return data


def test_area_is_rest_and_densities() -> None:
    # 100 + 8 * 2 + 2 * 30 + max(50, 80 * 8 / 16) * 1 = 226 mm2, twice.
    assert machine_area_m2(build()) == pytest.approx(2 * 226 * MM2)
    rows = {(i.what, round(float(i.each) / MM2, 6)) for i in area_table(build())}
    assert rows == {("area", 100), ("l2", 16), ("hbm.phy", 60), ("sm", 50)}


def test_unit_area_follows_the_peak_with_the_most_bits_per_second() -> None:
    machine = build()
    more_int8 = machine.with_values({"chip.sm.peak.int8": 200e12})
    assert machine_area_m2(more_int8) == pytest.approx(2 * 276 * MM2)
    more_bf16 = machine.with_values({"chip.sm.peak.bf16": 60e12})
    assert machine_area_m2(more_bf16) == pytest.approx(2 * 236 * MM2)


def test_a_unit_without_matrix_rates_counts_by_its_vector_rate() -> None:
    part = chip()
    part["units"]["sm"] = {
        "kind": "vector",
        "at": "hbm.phy",
        "vector": "10 TFLOP/s",
        "area": "1 mm2/(TFLOP/s)",
    }
    assert machine_area_m2(build(part)) == pytest.approx(2 * (176 + 20) * MM2)


def test_an_sram_port_counts_only_with_a_density_of_its_own() -> None:
    part = chip()
    part["memory"]["l2"]["ports"]["sm"]["area"] = "4 mm2/(TB/s)"
    assert machine_area_m2(build(part)) == pytest.approx(2 * (226 + 20) * MM2)


def test_costs_broadcast_over_design_points() -> None:
    machine = build()
    sizes = np.array([8.0, 16.0, 64.0]) * 2**20
    swept = machine.with_values({"chip.l2.capacity": sizes})
    area, price = machine_area_m2(swept), machine_price_usd(swept)
    assert area.shape == price.shape == (3,)
    for point, size in enumerate(sizes):
        one = machine.with_values({"chip.l2.capacity": float(size)})
        assert area[point] == machine_area_m2(one)
        assert price[point] == machine_price_usd(one)
    # Values may also be passed beside the machine.
    assert np.array_equal(machine_area_m2(machine, swept.values), area)


def test_die_price_at_a_listed_node() -> None:
    # 7 nm: 9346 USD, 0.0015 defects per mm2 (ttm-cas); 226 mm2.
    gross = math.pi * 150**2 / 226 - math.pi * 300 / math.sqrt(2 * 226)
    good = (1 + 226 * 0.0015 / 3) ** -3
    assert die_price_usd(226 * MM2, 7) == pytest.approx(9346 / gross / good)


def test_die_price_between_nodes_is_between_and_monotonic() -> None:
    prices = [float(die_price_usd(500 * MM2, node)) for node in (14, 12, 10, 8, 7, 6, 5)]
    assert prices == sorted(prices)
    assert prices[0] < prices[1] < prices[2]


@pytest.mark.parametrize("node", [3, 300])
def test_a_node_without_wafer_price_is_not_covered(node: float) -> None:
    with pytest.raises(UncoveredError, match=f"none for {node} nm"):
        die_price_usd(100 * MM2, node)


def test_a_die_must_fit_on_a_wafer() -> None:
    with pytest.raises(UncoveredError, match="does not fit"):
        die_price_usd(np.array([80000 * MM2, 70000 * MM2]), 7)
    with pytest.raises(UncoveredError, match="above zero"):
        die_price_usd(0.0, 7)


def test_a_design_point_without_a_price_takes_none_from_others() -> None:
    machine = build()
    areas = np.array([100.0, 90000.0, 200.0]) * MM2
    swept = machine.with_values({"chip.area": areas})
    price = machine_price_usd(swept)
    assert math.isnan(price[1])
    for point in (0, 2):
        one = machine.with_values({"chip.area": float(areas[point])})
        assert price[point] == machine_price_usd(one)
    footprints = np.array([50.0, 60.0]) * MM2
    part = chip()
    part["other_dies"] = {
        "logic": {"dies": 1, "node_nm": 7, "footprint": "121 mm2", "holds": ["sm"]}
    }
    path = "chip.other_dies.logic.footprint"
    prices = machine_price_usd(build(part).with_values({path: footprints - 5 * MM2}))
    assert math.isnan(prices[0]), "50 mm2 of the unit on 45 mm2"
    assert prices[1] == machine_price_usd(build(part).with_values({path: 55 * MM2}))


@given(st.floats(1, 1500), st.floats(1.001, 4), st.sampled_from([5, 6, 7, 12, 28]))
def test_a_bigger_die_costs_more_for_each_mm2(mm2: float, factor: float, node: float) -> None:
    small, large = (float(die_price_usd(a * MM2, node)) for a in (mm2, mm2 * factor))
    assert large > factor * small * (1 - 1e-12)


def test_price_is_dies_memory_and_system() -> None:
    machine = build(price="1000 USD")
    each = float(die_price_usd(226 * MM2, 7))
    assert machine_price_usd(machine) == pytest.approx(1000 + 2 * (each + 32 * 7))
    assert by_part(price_table(machine)) == pytest.approx({"": 1000, "chip": 2 * (each + 32 * 7)})


def test_a_given_price_replaces_dies_but_not_memory() -> None:
    machine = build(chip(price="5000 USD"))
    assert machine_price_usd(machine) == pytest.approx(2 * (5000 + 224))


def test_two_dies_are_cheaper_than_one_of_their_area() -> None:
    one, two = build(), build(chip(dies=2))
    assert machine_area_m2(one) == machine_area_m2(two)
    assert machine_price_usd(two) < machine_price_usd(one)
    dies = 2 * float(die_price_usd(113 * MM2, 7))
    assert machine_price_usd(two) == pytest.approx(2 * (dies + 224))


@pytest.mark.parametrize(
    ("path", "name", "cost"),
    [
        (("area",), "chip.area", machine_area_m2),
        (("memory", "l2", "area"), "chip.l2.area", machine_area_m2),
        (("memory", "hbm", "ports", "phy", "area"), "chip.hbm.phy.area", machine_area_m2),
        (("memory", "hbm", "ports", "phy", "bandwidth"), "hbm.phy.bandwidth", machine_area_m2),
        (("units", "sm", "area"), "chip.sm.area", machine_area_m2),
        (("units", "sm", "peak"), "chip.sm.vector", machine_area_m2),
        (("area",), "chip.area", machine_price_usd),
        (("node_nm",), "chip.node_nm", machine_price_usd),
        (("memory", "hbm", "price"), "chip.hbm.price", machine_price_usd),
        (("power",), "chip.power", machine_power_w),
    ],
)
def test_what_is_missing_is_named_and_never_free(path: Any, name: str, cost: Any) -> None:
    with pytest.raises(UncoveredError, match=f"set .*{name}"):
        cost(build(without(chip(), *path)))


def test_memory_without_a_logic_die_has_no_area_but_a_price() -> None:
    dimm = {"count": 4, "memory": {"dram": {"capacity": "64 GB", "price": "3 USD/GB"}}}
    dimm["memory"]["dram"]["ports"] = {"bus": {"bandwidth": "25 GB/s"}}
    machine = load_machine({"name": "m", "parts": {"chip": chip(), "dimm": dimm}})
    assert machine_area_m2(machine) == machine_area_m2(build())
    assert by_part(price_table(machine))["dimm"] == pytest.approx(4 * 64 * 3)
    with pytest.raises(UncoveredError, match=r"set dimm\.power"):
        machine_power_w(machine)


def test_inner_parts_multiply_and_share_the_power_around_them() -> None:
    outer = {"count": 3, "parts": {"chip": chip()}}
    machine = load_machine({"name": "m", "parts": {"board": outer}})
    assert machine_area_m2(machine) == pytest.approx(3 * 2 * 226 * MM2)
    assert machine_price_usd(machine) == pytest.approx(3 * machine_price_usd(build()))
    assert machine_power_w(machine) == 3 * 2 * 300
    covered = load_machine({"name": "m", "parts": {"board": {**outer, "power": "700 W"}}})
    assert machine_power_w(covered) == 3 * 700


def test_power_adds_what_is_no_part() -> None:
    machine = build(static_power="50 W")
    assert machine_power_w(machine) == 2 * 300 + 50
    assert [i.what for i in power_table(machine)] == ["power", "static_power"]


def test_energy_scales_between_nodes_as_published() -> None:
    # 1.103 * 0.81 - 0.362 * 0.9 + 0.2767 = 0.844; 0.1776 * 0.49 - 0.09097 * 0.7 + 0.02447 = 0.0478.
    assert scale_energy(45, 0.9, 7, 0.7) == pytest.approx(0.0478 / 0.844, rel=2e-3)
    assert scale_energy(7, 0.7, 45, 0.9) == pytest.approx(1 / scale_energy(45, 0.9, 7, 0.7))
    assert scale_energy(16, 0.8, 16, 0.8) == 1.0


def test_energy_does_not_scale_outside_of_the_fit() -> None:
    with pytest.raises(UncoveredError, match="not for 5 nm"):
        scale_energy(45, 0.9, 5, 0.7)
    with pytest.raises(UncoveredError, match="2 V"):
        scale_energy(45, 2.0, 7, 0.7)


def test_catalog_energy_starts_at_scaled_arithmetic() -> None:
    # Horowitz 45 nm, 0.9 V: FP16 multiply 1.1 pJ and FP32 add 0.9 pJ for two operations.
    low = (1.1e-12 + 0.9e-12) / 2 * scale_energy(45, 0.9, 7, 0.7)
    allowed = load_machine("a100-sxm-80gb").parameters["gpu.sm.energy.bf16"].range
    assert allowed is not None
    assert allowed[0] == pytest.approx(low, rel=0.02)


def test_carbon_of_a_die_is_energy_gases_and_materials_over_the_yield() -> None:
    # 7 nm, ACT v2: 2.15 kWh, 350 and 500 g per cm2; 226 mm2 on a grid of 642 g/kWh.
    good = (1 + 226 * 0.0015 / 3) ** -3
    kilograms = 2.26 * (2.15 * 0.642 + 0.350 + 0.500) / good
    assert die_carbon_kg(226 * MM2, 7, 0.642 / 3.6e6) == pytest.approx(kilograms)
    finer, coarser = (float(die_carbon_kg(100 * MM2, n, 0.642 / 3.6e6)) for n in (5, 28))
    assert finer > coarser > 0


@pytest.mark.parametrize("node", [3, 40])
def test_carbon_of_a_node_that_is_not_listed_is_refused(node: float) -> None:
    with pytest.raises(UncoveredError, match=f"none for {node} nm"):
        die_carbon_kg(100 * MM2, node, 1e-7)


def test_carbon_counts_dies_and_bytes_and_broadcasts() -> None:
    machine = load_machine("h100-sxm-80gb")
    rows = {(i.part, i.what): i.each for i in carbon_table(machine)}
    assert rows["gpu", "hbm"] == pytest.approx(machine.values["gpu.hbm.capacity"] * 65e-12)
    assert machine_carbon_kg(machine) == pytest.approx(sum(rows.values()))
    grids = np.array([0.1, 0.642]) / 3.6e6
    swept = machine_carbon_kg(machine.with_values({"site.fab_grid": grids}))
    assert swept[0] < swept[1] == pytest.approx(machine_carbon_kg(machine))


def test_a_token_costs_its_share_of_the_making_and_its_energy() -> None:
    work = {"kind": "decode", "model": "llama-3.1-8b", "batch": 32, "context": 4096}
    machine = load_machine("h100-sxm-80gb")
    changes = {"site.life": "2 years", "site.busy": 0.5, "site.electricity": "0.36 USD/kWh",
               "site.overhead": 1.5, "site.grid": "36 g/kWh"}  # fmt: skip
    r = simulate(machine.replace(changes), work)
    share = 1e6 / (2 * 365.25 * 86400 * 0.5 * r.tokens_per_s)
    assert r.usd_per_mtoken == pytest.approx(r.price_usd * share)
    energy = 1e6 * r.joules_per_token * 1.5
    assert r.tco_usd_per_mtoken == pytest.approx(r.usd_per_mtoken + energy * 1e-7)
    assert r.carbon_g_per_mtoken == pytest.approx(1e3 * (r.carbon_kg * share + energy * 1e-8))
    assert simulate(machine, work).seconds == r.seconds


def test_a_site_keeps_the_values_that_are_not_given_and_refuses_others() -> None:
    data = load_machine("h100-sxm-80gb").document.data
    own = {**data, "site": {"grid": "24 g/kWh"}}
    values = load_machine(own).values
    assert values["site.grid"] == pytest.approx(24e-3 / 3.6e6)
    assert values["site.life"] == pytest.approx(3 * 365.25 * 86400)
    with pytest.raises(ConfigError, match=r"site: no key is called 'grids'"):
        load_machine({**data, "site": {"grids": "24 g/kWh"}})
    with pytest.raises(ConfigError, match="site"):
        load_machine({**data, "site": "iceland"})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [("life", "0 years", "must be above 0"), ("overhead", 0.5, "must be at least 1")],
)
def test_a_site_that_can_not_be_is_refused(field, value, rule) -> None:
    with pytest.raises(ConfigError, match=rule):
        load_machine("h100-sxm-80gb").replace({f"site.{field}": value})
