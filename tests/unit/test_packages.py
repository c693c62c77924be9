"""Packages and dies: published prices as data, laws of the equations, refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.units import parse
from opbyte.hw_models.cost import (
    die_price_usd,
    machine_area_m2,
    machine_price_usd,
    price_table,
)
from opbyte.hw_models.cost.area import held_area_m2, part_area_m2
from opbyte.hw_models.cost.packages import package_price_usd, stack_price_usd
from opbyte.hw_models.cost.wafers import die_yield
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.hw_models.making import Package
from opbyte.sweeps.drawn_costs import is_cost
from opbyte.sweeps.draws import Draws

MM2 = 1e-6
KNOWN = yaml.safe_load((Path(__file__).parents[1] / "data" / "costs.yaml").read_text())
MACHINE = load_machine("h100-sxm-80gb")
MAKING, PRICES = MACHINE.values, MACHINE.document.data["prices"]


def rows(name: str) -> Any:
    return pytest.mark.parametrize("row", KNOWN[name], ids=lambda row: row["id"])


def package(kind: str, dies: int, chips: float, area: Any, **values: float) -> Any:
    known = {**MAKING, **values}
    return package_price_usd(Package(kind=kind), dies, chips, area, known, "gpu")


@rows("dies")
def test_dies_cost_what_llmcompass_published(row):
    area = row["area_mm2"] * MM2
    assert die_yield(area, row["node_nm"]) == pytest.approx(row["yield"], rel=2e-3)
    price = die_price_usd(area, row["node_nm"])
    assert price == pytest.approx(row["price"], rel=row["tolerance"])


@rows("memories")
def test_memories_cost_what_they_were_sold_at(row):
    price = parse(row["capacity"], "bytes") * parse(PRICES[row["id"]]["value"], "dollars_per_byte")
    # Sources are rounded to two digits; a GB of 10**9 bytes would be 7 % off.
    assert price == pytest.approx(row["price"], rel=row["tolerance"])


@rows("packages")
def test_packages_cost_what_chiplet_actuary_has(row):
    area = row["dies"] * row["area_mm2"] * MM2
    found = package(row["kind"], row["dies"], row["chips"], area)
    assert found == pytest.approx(row["price"], rel=row["tolerance"])


@rows("estimates")
def test_the_band_of_a_gpu_reaches_what_it_is_estimated_at(row):
    machine = load_machine(row["machine"])
    drawn = {p: x for p, x in machine.parameters.items() if x.range and is_cost(p, x)}
    table = Draws(drawn.values(), 1024, 0)
    columns = {p: c for p, x in drawn.items() if (c := table.of(x)) is not None}
    low, high = np.percentile(machine_price_usd(machine.with_values(columns)), [5, 95])
    assert low < row["high"]
    assert row["low"] < high


def test_logic_pim_is_under_the_stacks_and_not_on_the_gpus_die():
    machine, gpu = load_machine("dgx-h100-logic-pim"), load_machine("dgx-h100")
    values, part = machine.values, machine.config.parts["gpu"]
    on_gpu = part_area_m2(machine, values, "gpu", part)
    assert on_gpu == part_area_m2(gpu, gpu.values, "gpu", gpu.config.parts["gpu"])
    assert on_gpu == pytest.approx(814 * MM2, rel=1e-3)  # NVIDIA H100 white paper
    assert part.other_dies["logic"].holds == ("lpim", "hbm.tsv")
    # Duplex, section VI, on each logic die: TSVs, multiply-adds, buffers and softmax.
    each = held_area_m2(machine, values, "gpu", part, "logic") / 5
    assert each == pytest.approx((10.89 + 3.02 + 2.26 + 1.64) * MM2, rel=1e-3)
    assert machine_area_m2(machine) - machine_area_m2(gpu) == pytest.approx(8 * 5 * each)
    # As many and as dear as those of Duplex's own device.
    duplex = {i.what: i.each for i in price_table(load_machine("duplex-x4"))}
    here = {i.what: i.each for i in price_table(machine) if i.part == "gpu"}
    assert here["other_dies.logic"] == duplex["other_dies.logic"]


def test_an_organic_package_by_hand():
    # 2 dies of 100 mm2: substrate 4 * 200 mm2 * 0.005 USD * 1.75, bumps 200 * 0.005, bonds 0.99^2.
    lost = 1 / 0.99**2
    expected = (4 * 200 * 0.005 * 1.75 + 200 * 0.005) * lost + 50 * (lost - 1)
    assert package("organic", 2, 50.0, 200 * MM2) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["organic", "rdl", "interposer"])
def test_a_package_costs_more_with_dearer_chips_more_area_and_more_bonds(kind):
    base = package(kind, 2, 500.0, 400 * MM2)
    assert package(kind, 2, 900.0, 400 * MM2) > base
    assert package(kind, 2, 500.0, 600 * MM2) > base
    assert package(kind, 3, 500.0, 400 * MM2) > base
    block = "substrate" if kind == "organic" else kind
    assert package(kind, 2, 500.0, 400 * MM2, **{f"making.{block}.bond": 0.999}) < base


def test_perfect_bonds_and_a_perfect_carrier_waste_nothing():
    sure = {"making.substrate.bond": 1.0, "making.interposer.bond": 1.0,
            "making.interposer.defects": 0.0}  # fmt: skip
    cheap = package("interposer", 6, 0.0, 800 * MM2, **sure)
    assert package("interposer", 6, 5000.0, 800 * MM2, **sure) == pytest.approx(cheap)


@given(st.floats(1, 800), st.floats(1.01, 3), st.sampled_from([5, 7, 16, 28]))
def test_yield_and_price_move_with_defects_wafers_and_clusters(mm2, factor, node):
    area = mm2 * MM2
    price = die_price_usd(area, node)
    assert die_price_usd(area, node, wafers=factor) == pytest.approx(factor * price)
    assert die_price_usd(area, node, defects=factor) > price
    # More even defects hit more dies.
    yields = [float(die_yield(area, node, clusters=c)) for c in (1.0, 2.0, 3.0, 10.0, 1e6)]
    assert yields == sorted(yields, reverse=True)


def test_dies_on_dies_cost_their_dies_bonds_and_losses():
    one = stack_price_usd(20.0, 100 * MM2, 1, MAKING)
    assert one == 20.0
    gross = np.pi * 150**2 / 100 - np.pi * 300 / np.sqrt(200)
    expected = (2 * 20 + 500 / gross + 5.75) / 0.99
    assert stack_price_usd(20.0, 100 * MM2, 2, MAKING) == pytest.approx(expected)


def chip(**part: Any) -> Machine:
    data = {
        "node_nm": 7, "area": "200 mm2", "dies": 4, "units": {}, "power": "1 W",
        "memory": {
            "hbm": {
                "capacity": "32 GB",
                "price": "10 USD/GB",
                "ports": {"phy": {"bandwidth": "1 TB/s"}},
            },
        },
        **part,
    }  # fmt: skip
    return load_machine({"name": "m", "parts": {"chip": data}})


STACKS = {"memory": "hbm", "stacks": 2, "stack_area": "100 mm2"}


def test_memory_on_the_package_is_wasted_with_it_and_bought_once():
    bare, packed = chip(), chip(package={"kind": "interposer", **STACKS})
    items = {i.what: float(i.each) for i in price_table(packed)}
    assert items["hbm"] == pytest.approx(320)
    # Four dies of 50 mm2 and two stacks of 100 mm2; dies and memory are lost with bad bonds.
    value = items["dies"] + 320
    alone = Package(kind="interposer", **STACKS)
    known = packed.values
    assert items["package"] == pytest.approx(
        package_price_usd(alone, 4, value, 200 * MM2, known, "chip")
    )
    held = 0.95**6 * 0.99
    assert items["package"] > value * (1 / held - 1)
    assert machine_price_usd(packed) == pytest.approx(machine_price_usd(bare) + items["package"])


def test_tiers_make_chips_of_several_dies():
    flat = {i.what: float(i.each) for i in price_table(chip(package={"kind": "organic"}))}
    high = chip(package={"kind": "organic", "tiers": 2})
    tall = {i.what: float(i.each) for i in price_table(high)}
    die = flat["dies"] / 4
    stacks = 2 * stack_price_usd(die, 50 * MM2, 2, high.values)
    on = package_price_usd(Package(kind="organic"), 2, stacks, 100 * MM2, high.values, "chip")
    assert tall["package"] == pytest.approx(stacks - 4 * die + on)


def test_packages_broadcast_over_design_points():
    machine = chip(package={"kind": "organic"})
    areas = np.array([20.0, 60.0, 200.0, 900.0]) * MM2
    many = machine_price_usd(machine.with_values({"chip.area": areas}))
    ones = [machine_price_usd(machine.with_values({"chip.area": float(a)})) for a in areas]
    assert many == pytest.approx(ones, rel=1e-12)


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ({"price": "5 USD", "package": {"kind": "organic"}}, "has its package in it"),
        ({"package": {"kind": "organic", "tiers": 3}}, "4 dies are no stacks of 3"),
        ({"package": {"kind": "organic", "memory": "hbm"}}, "needs `stacks`"),
        ({"package": {"kind": "organic", **STACKS, "memory": "ddr"}}, "Known: hbm"),
        ({"package": {"kind": "wood"}}, "organic"),
    ],
)
def test_a_package_that_can_not_be_is_refused(part, rule):
    with pytest.raises(ConfigError, match=rule):
        chip(**part)


@pytest.mark.parametrize("package", [{"kind": "organic"}, {"kind": "organic", "tiers": 40000}])
def test_a_package_that_is_never_whole_has_no_price(package):
    with pytest.raises(UncoveredError, match="nearly none is whole"):
        machine_price_usd(chip(dies=40000, area="40000 mm2", package=package))


@pytest.mark.parametrize(
    "given",
    [
        {"package": {"kind": "organic"}},
        {"other_dies": {"logic": {"dies": 1, "node_nm": 7, "footprint": "100 mm2"}}},
    ],
)
def test_a_part_without_dies_has_nothing_to_pack(given):
    memory = {"capacity": "1 GB", "ports": {"bus": {"bandwidth": "1 GB/s"}}}
    with pytest.raises(ConfigError, match=r"is of a part with dies.*leave it out"):
        load_machine({"name": "m", "parts": {"dimm": {"memory": {"dram": memory}, **given}}})


def test_a_carrier_must_fit_on_a_wafer():
    with pytest.raises(UncoveredError, match="does not fit"):
        package("interposer", 1, 1.0, 60000 * MM2)


def test_making_keeps_what_is_not_given_and_is_a_parameter_with_source():
    machine = load_machine("h100-sxm-80gb").replace({"making.interposer.bond": 0.99})
    assert machine.values["making.interposer.bond"] == 0.99
    assert machine.values["making.interposer.wafer"] == 1937
    assert machine_price_usd(machine) < machine_price_usd(load_machine("h100-sxm-80gb"))
    data = load_machine("h100-sxm-80gb").document.data
    own = {**data, "making": {"interposer": {"bond": 0.98}}}
    assert load_machine(own).values["making.interposer.area"] == 1.1
    with pytest.raises(ConfigError, match=r"making.*no key is called 'wafer'"):
        load_machine({**data, "making": {"wafer": 1.0}})
    assert all(
        p.source for path, p in load_machine(data).parameters.items() if path.startswith("making.")
    )


def test_a_given_carbon_stands_in_place_of_dies():
    from opbyte.hw_models.cost import carbon_table

    given = chip(carbon="3 kg")
    assert next((i.what, i.each) for i in carbon_table(given)) == ("carbon", 3.0)


def test_equal_doubts_share_a_draw():
    one, two = (load_machine(n).parameters["gpu.hbm.price"] for n in ("h100-sxm-80gb", "h20"))
    other = dataclasses.replace(two, source="elsewhere")
    table = Draws([one, two, other], 64, 0)
    assert table.of(one) is table.of(two)
    assert not np.array_equal(table.of(one), table.of(other))
    assert table.of(dataclasses.replace(one, range=None)) is None
