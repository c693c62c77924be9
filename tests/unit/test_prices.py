"""Prices of memories from the table, dies made apart from a part's own, parts of count 0."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError, OpbyteError, UncoveredError
from opbyte.hw_models.cost import (
    area_table,
    carbon_table,
    die_price_usd,
    machine_area_m2,
    machine_carbon_kg,
    machine_price_usd,
    price_table,
)
from opbyte.hw_models.machine import CATALOG, Machine, load_machine
from opbyte.hw_models.memory.cxl_devices import load_cxl
from opbyte.hw_models.prices import entry_of
from opbyte.sweeps.draws import Draws, doubt

#: Machines with a memory of its own price: units stand in it, or the file gives another source.
OWN = {
    "cent-8", "cent-20", "cent-32", "gddr6-aim", "hbm-pim", "ianus", "neupims", "pim-gpt",
    "upmem-2556", "dgx-attacc-bank", "dgx-attacc-bank-group", "dgx-attacc-buffer",
    "dgx-h100-attacc-bank",
}  # fmt: skip


def item(machine: Machine, what: str, table=price_table) -> float:
    return float(sum(i.each for i in table(machine) if i.what == what))


def chip(dies: dict | None = None, **memory) -> dict:
    hbm = {
        "technology": "hbm3-5200", "capacity": "80 GB",
        "ports": {"pins": {"bandwidth": "3 TB/s", "efficiency": 0.9, "area": "0 mm2/(TB/s)"}},
        **memory,
    }  # fmt: skip
    unit = {
        "kind": "matrix", "at": "hbm.pins", "peak": {"fp16": "100 TFLOP/s"},
        "vector": "10 TFLOP/s", "area": "1 mm2/(TFLOP/s)",
    }  # fmt: skip
    part = {"node_nm": 5, "area": "400 mm2", "memory": {"hbm": hbm}, "units": {"core": unit}}
    if dies is not None:
        part["other_dies"] = {"more": dies}
    return {"kind": "machine", "name": "chip", "parts": {"gpu": part}}


@pytest.mark.parametrize(
    ("memory", "entry"),
    [
        ({"technology": "hbm2e-3200"}, "hbm2e"),
        ({"technology": "hbm2-2000"}, "hbm2"),
        ({"technology": "hbm3e-9600"}, "hbm3e"),
        ({"technology": "hbm3"}, "hbm3"),
        ({"technology": "hbm4-8000"}, "hbm4"),
        ({"technology": "ddr4-3200"}, "ddr4"),
        ({"technology": "DDR5"}, "ddr5"),
        ({"technology": "folder/ddr5-mine.yaml"}, "ddr5"),
        ({"technology": "lpddr5x-9600"}, "lpddr5"),
        ({"technology": "gddr6x-21000"}, "gddr6"),
        ({"kind": "flash", "technology": "nvme-ssd"}, "flash"),
        ({"kind": "cxl", "technology": "cxl-asic-x8"}, "ddr5"),
        ({"kind": "cxl", "technology": "vistara"}, "ddr4"),
        ({"kind": "cxl", "technology": "unheard-of"}, None),
        ({"kind": "sram"}, None),
        ({"technology": "ddr3-1600"}, None),
        ({"technology": "wide-ddr4"}, None),
        ({}, None),
    ],
)
def test_a_technology_has_its_generations_price(memory, entry):
    assert entry_of(memory) == entry


@pytest.mark.parametrize("name", CATALOG.names())
def test_machines_of_the_catalog_take_the_tables_prices(name):
    machine = load_machine(name)
    table = machine.document.data["prices"]
    for path, memory in machine.memories.items():
        if memory.config.kind == "sram":
            continue
        parameter = machine.parameters[f"{path}.price"]
        assert doubt(parameter) is not None, path
        raw = {"kind": memory.config.kind, "technology": memory.config.technology}
        entry = entry_of({**raw, "expander": memory.config.expander})
        if name not in OWN:
            assert entry is not None, path
            assert parameter.source == table[entry]["source"], path


def test_one_draw_moves_equal_memories_of_all_families():
    paths = {
        "cxl-server": ("cpu.dram.price", "aic.dram.price"), "dgx-h100": ("host.dram.price",),
        "i9-13900k": ("pc.dram.price",), "dgx-h100-cxl": ("host.dram.price", "aic.dram.price"),
    }  # fmt: skip
    found = [load_machine(name).parameters[p] for name, of in paths.items() for p in of]
    table = Draws(found, 32, 0)
    assert len(table.columns) == 1
    assert np.ptp(table.of(found[0])) > 0


def test_a_price_of_its_own_is_kept_and_the_table_can_be_set():
    server = load_machine("cxl-server")
    dear = server.replace({"prices.ddr5": "11.25 USD/GB"})
    assert dear.values["cpu.dram.price"] == dear.values["aic.dram.price"] == 11.25e-9
    wide = {"value": "9 USD/GB", "range": ["8 USD/GB", "9 USD/GB"]}
    ranged = server.replace({"prices.ddr5": wide})
    for one in (dear, ranged):
        assert one.parameters["cpu.dram.price"].source == "given: prices.ddr5"
    # What is set on a memory stands above the table, in any order.
    own = dear.replace({"cpu.dram.price": "5 USD/GB"}).replace({"prices.ddr5": "3 USD/GB"})
    assert own.values["cpu.dram.price"] == 5e-9
    assert own.values["aic.dram.price"] == 3e-9
    assert server.path("cpu.dram.price") == "cpu.dram.price"
    given = chip(price="10 USD/GB")
    assert load_machine(given).values["gpu.hbm.price"] == 10e-9


def test_what_the_table_does_not_have_has_no_price():
    machine = load_machine(chip(technology="fram", channels=None))
    with pytest.raises(UncoveredError, match=r"'gpu.hbm.price' is not given"):
        machine_price_usd(machine)
    with pytest.raises(ConfigError, match="fram"):
        load_machine({**chip(), "prices": {"fram": "1 USD/GB"}})


def test_an_expanders_controller_is_the_tables_unless_it_is_a_die():
    server = load_machine("cxl-server")
    assert server.values["aic.price"] == 500
    assert server.replace({"prices.expander": "100 USD"}).values["aic.price"] == 100
    assert server.replace({"aic.price": "7 USD"}).values["aic.price"] == 7
    assert load_cxl("vistara").dram.technology.startswith("ddr4")


def test_newer_memory_is_never_cheaper():
    known = ("hbm2", "hbm2e", "hbm3", "hbm3e", "hbm4", "ddr4", "ddr5", "gddr6", "gddr7")
    value = {k: load_machine(chip(technology=k)).values["gpu.hbm.price"] for k in known}
    hbm = [value[k] for k in ("hbm2", "hbm2e", "hbm3", "hbm3e", "hbm4")]
    assert hbm == sorted(hbm)
    assert value["ddr4"] < value["ddr5"] < value["gddr6"] < value["gddr7"] < value["hbm2"]


LOGIC = {"dies": 5, "node_nm": 7, "footprint": "121 mm2", "holds": ["core"], "area": "4 mm2"}


def test_a_logic_die_is_bought_in_its_own_node_and_whole():
    bare, with_logic = load_machine(chip()), load_machine(chip(LOGIC))
    assert item(with_logic, "other_dies.more") == pytest.approx(5 * die_price_usd(121e-6, 7.0))
    # The part's own die has lost what stands on the others.
    assert item(bare, "dies") == pytest.approx(die_price_usd(500e-6, 5.0))
    assert item(with_logic, "dies") == pytest.approx(die_price_usd(400e-6, 5.0))
    assert machine_area_m2(with_logic) - machine_area_m2(bare) == pytest.approx(20e-6)
    assert item(with_logic, "core", area_table) == pytest.approx(100e-6)
    assert item(with_logic, "other_dies.more", carbon_table) > 0


def test_units_on_a_memorys_dies_make_it_dearer_by_their_share():
    cells = {"dies": 40, "memory": "hbm", "footprint": "100 mm2", "holds": ["core"]}
    bare, inside = load_machine(chip()), load_machine(chip(cells))
    share = 100 / 4000
    assert item(inside, "hbm") == pytest.approx(item(bare, "hbm") * (1 + share))
    assert item(inside, "hbm", carbon_table) == pytest.approx(
        item(bare, "hbm", carbon_table) * (1 + share)
    )
    assert item(inside, "dies") == pytest.approx(die_price_usd(400e-6, 5.0))
    assert machine_area_m2(inside) == pytest.approx(machine_area_m2(bare))
    points = inside.with_values({"gpu.core.area": np.array([0.0, 1e-18, 2e-18])})
    prices = next(i.each for i in price_table(points) if i.what == "hbm")
    assert np.diff(prices) == pytest.approx(item(bare, "hbm") * share, rel=1e-9)


@pytest.mark.parametrize(
    ("dies", "message"),
    [
        ({"memory": "hbm"}, "give one of the two"),
        ({"node_nm": None}, "give one of the two"),
        ({"holds": ["kore"]}, "'kore' is no unit, memory or port"),
        ({"holds": ["core", "core"]}, "'core' is held twice"),
        ({"footprint": "0 mm2"}, "`footprint` above zero"),
        ({"node_nm": None, "memory": "sram"}, "must name DRAM or flash"),
    ],
)
def test_dies_that_can_not_be_are_refused(dies, message):
    with pytest.raises(ConfigError, match=message):
        load_machine(chip({**LOGIC, **dies}))


def test_logic_that_does_not_fit_under_its_stack_has_no_price():
    with pytest.raises(UncoveredError, match="hold 24 mm2 each, more than their footprint"):
        machine_price_usd(load_machine(chip({**LOGIC, "footprint": "20 mm2"})))


@pytest.mark.parametrize("name", ["duplex-x4", "bank-pim-x4", "bank-group-pim-x4"])
def test_units_at_the_memory_do_not_make_the_gpu_dearer(name):
    gpu = load_machine("duplex-gpu-x4")
    assert item(load_machine(name), "dies") == pytest.approx(item(gpu, "dies"))
    assert 1.01 < machine_price_usd(load_machine(name)) / machine_price_usd(gpu) < 1.2


@pytest.mark.parametrize("none", [0, 0.0, "0", False])
def test_a_part_of_count_0_is_in_no_cost_and_leaves_with_its_links(none):
    server = load_machine("cxl-server")
    bare = server.replace({"aic.count": none})
    for cost in (machine_price_usd, machine_carbon_kg):
        gone = sum(i.total for i in _items(server, cost) if i.part == "aic")
        assert gone > 0
        assert cost(bare) == pytest.approx(cost(server) - gone)
    assert "cxl" not in bare.config.links
    assert bare.unit_ports("cpu.cores") == ("cpu.llc.core", "cpu.dram.imc")
    assert not any(p.startswith("aic") for p in bare.parameters)
    again = bare.replace({"aic.count": 1})
    assert again.values == server.values


def _items(machine, cost):
    return {machine_price_usd: price_table, machine_carbon_kg: carbon_table}[cost](machine)


def test_a_mapping_without_it_runs_as_before_and_one_with_it_is_refused():
    work = {"kind": "decode", "model": "llama-2-13b", "batch": 4, "context": 1024}
    whole = load_machine("a6000-csd")
    bare = whole.replace({"csd.count": 0, "switch.count": 0})
    one, two = (ob.simulate(m, work, "eager") for m in (whole, bare))
    assert one.seconds == two.seconds
    assert two.price_usd < one.price_usd
    assert two.usd_per_mtoken == pytest.approx(one.usd_per_mtoken * two.price_usd / one.price_usd)
    with pytest.raises(OpbyteError, match=r"csd.count is 0. set it, or take a mapping without csd"):
        ob.simulate(bare, work, "instinfer")
    server = load_machine("cxl-server").replace({"aic.count": 0})
    work = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 512}
    with pytest.raises(OpbyteError, match=r"aic.count is 0"):
        ob.simulate(server, work, "stream-cxl")


def test_counts_below_0_and_machines_of_nothing_are_refused():
    server = load_machine("cxl-server")
    with pytest.raises(ConfigError, match="count"):
        server.replace({"aic.count": -1})
    with pytest.raises(ConfigError, match="parts"):
        server.replace({"aic.count": 0, "cpu.count": 0})
