"""Nine published machines stay expressible, each with what is special about it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from opbyte.hw_models.machine import Machine, load_machine

FOLDER = Path(__file__).parents[1] / "data" / "sketches"
FILES = sorted(FOLDER.glob("*.yaml"))


def sketch(number: int) -> Machine:
    return load_machine(next(FOLDER.glob(f"{number}_*.yaml")))


def test_there_are_nine() -> None:
    assert [f.name[0] for f in FILES] == list("123456789")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_sketch_loads_with_its_ports_and_links(file: Path) -> None:
    machine = load_machine(file)
    ends = {*machine.counts, *_ports(machine)}
    for unit in machine.units:
        assert set(machine.unit_ports(unit)) <= set(_ports(machine))
    for link in machine.config.links.values():
        assert set(link.ends) <= ends
        assert link.bandwidth.value > 1e9


def _ports(machine: Machine) -> Iterator[str]:
    for path, memory in machine.memories.items():
        yield from (f"{path}.{port}" for port in memory.config.ports)


def test_sn40l_experts_live_in_ddr_and_are_cached_in_hbm() -> None:
    machine = sketch(1)
    place = machine.mapping().place["expert.weight"]
    assert place.in_ == {"rdu.ddr": 1.0}
    assert place.cache is not None
    assert (place.cache.tier, place.cache.evict, place.cache.via) == ("rdu.hbm", "lru", "fill")
    assert machine.values["fill.bandwidth"] == 125e9
    assert machine.counts["rdu"] * machine.values["rdu.ddr.capacity"] == 12 * 2**40


def test_duplex_has_two_units_at_two_ports_of_one_memory() -> None:
    machine = sketch(2)
    assert machine.unit_ports("device.xpu") == ("device.hbm.interposer",)
    assert machine.unit_ports("device.lpim") == ("device.hbm.tsv",)
    assert machine.memory("device.hbm").config.sharing.rule == "partition"
    values = machine.values
    assert values["device.hbm.tsv.bandwidth"] == 4 * values["device.hbm.interposer.bandwidth"]
    split = machine.mapping().run[2].split
    assert split is not None
    assert split.between == ("device.xpu", "device.lpim")


def test_attacc_stacks_are_parts_inside_a_device() -> None:
    machine = sketch(3)
    assert machine.counts["attacc.stack"] == 40
    assert machine.units["attacc.stack.gemv"].count == 40
    assert machine.memory("attacc.stack.hbm").config.ports["bank"].limit == {"power": "tFAW"}
    assert machine.mapping().parallel["attention"].heads == 40


def test_cent_groups_channels_and_not_devices() -> None:
    machine = sketch(4)
    mapping = machine.mapping()
    group = mapping.groups[mapping.parallel["all"].group]
    assert machine.counts[group] == 1024
    assert machine.counts[group] % mapping.degrees.pp != 0  # stages of unequal size are allowed
    assert machine.config.links["cxl"].multicast


def test_instinfer_and_flexgen_are_one_machine_with_two_mappings() -> None:
    machine = sketch(5)
    ours, flexgen = machine.mapping(), machine.mapping("flexgen")
    assert ours.place["kv"].copies == {"k": 2, "v": 1}
    assert ours.place["kv"].page is not None
    assert ours.place["kv"].page.value == 4096
    assert ours.place["kv"].in_ == flexgen.place["kv"].in_
    assert ours.routes["kv"][0].via == ("p2p",)
    assert flexgen.routes["kv"][0].via == ("p2p", "slot")
    software = flexgen.routes["kv"][0].software
    assert software is not None
    assert getattr(software.cap, "value", None) == pytest.approx(1.33e9)
    assert (software.source or "").startswith("calibrated:")
    assert ours.not_modelled() == ()
    assert flexgen.not_modelled() == ("routes",)


def test_cxl_host_computes_at_the_memory_of_another_part() -> None:
    machine = sketch(6)
    assert machine.unit_ports("cpu.cores") == ("cpu.llc.core", "cpu.dram.imc", "aic.dram.cxl")
    place = machine.mapping().place["master_weight"]
    assert place.in_ == {"cpu.dram": 0.3, "aic.dram": 0.7}
    assert machine.mapping().parallel["all"].zero == 3


def test_vitallm_weights_are_packed_and_kv_is_selected() -> None:
    mapping = sketch(7).mapping()
    stored = mapping.place["weight"].format
    assert stored is not None
    assert (stored.to, stored.passes) == ("t1.6", 2.0)
    assert mapping.kv_select is not None
    assert (mapping.kv_select.kind, mapping.kv_select.keep.value) == ("lop", 0.25)
    assert mapping.overlap == "dependency"
    assert mapping.not_modelled() == ("place.weight.format",)
    assert sketch(7).unit("chip.booth").config.dtypes == ("int8",)


def test_lamina_joins_two_kinds_of_device() -> None:
    machine = sketch(8)
    assert machine.counts == {"h100": 2, "h20": 4}
    assert machine.config.links["roce"].ends == ("h100", "h20")
    mapping = machine.mapping()
    assert mapping.pipeline is not None
    assert (mapping.pipeline.batches, mapping.pipeline.replicas) == (2, 1)
    assert mapping.degrees.tp == 2
    assert mapping.attention_degrees.tp == 4
    assert mapping.not_modelled() == ()


def test_pregated_experts_are_prefetched() -> None:
    cache = sketch(9).mapping().place["expert.weight"].cache
    assert cache is not None
    assert (cache.evict, cache.prefetch) == ("none", "next_block_gate")
    assert sketch(9).mapping().not_modelled() == ()


@pytest.mark.parametrize(
    ("number", "wish"),
    [
        (3, "overlap"),
        (6, "parallel.zero"),
        (7, "place.weight.format"),
    ],
)
def test_what_no_model_honours_yet_is_said(number: int, wish: str) -> None:
    assert wish in sketch(number).mapping().not_modelled()
