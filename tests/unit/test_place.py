"""Placement: which unit, which way, which memory, and what is refused."""

import numpy as np
import pytest
from handmade import demand, device, gemm, table

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.ops import OpTableBuilder
from opbyte.core.placed import MOVED
from opbyte.hw_models.machine import load_machine
from opbyte.sim.analytic import analytic_step
from opbyte.sim.event import event_step
from opbyte.sim.place import Placer
from opbyte.sim.simulate import simulate


def placer(machine):
    return Placer(machine, machine.mapping())


def crossed(placed, unit, moved):
    """Return resource -> share of a moved class on its way to a unit."""
    shares = placed.routes[placed.units.index(unit), MOVED.index(moved)]
    return {r: s for r, s in zip(placed.resources, shares, strict=True) if s}


# -- ways ----------------------------------------------------------------------------------


def test_a_unit_at_memory_reads_through_its_port_alone():
    placed = placer(device()).place(table(gemm(1, 1, 1)))
    assert crossed(placed, "dev.core", "weight") == {"dev.hbm.phy": 1.0}
    assert crossed(placed, "dev.core", "internal") == {}


def test_a_unit_at_sram_reads_memory_through_both_ports():
    placed = placer(device(unit={"at": "l2.fabric"})).place(table(gemm(1, 1, 1)))
    both = {"dev.hbm.phy": 1.0, "dev.l2.fabric": 1.0}
    assert crossed(placed, "dev.core", "weight") == both
    assert crossed(placed, "dev.core", "activation") == both
    assert crossed(placed, "dev.core", "internal") == {"dev.l2.fabric": 1.0}


FAR = {
    "host": {"memory": {"dram": {"capacity": "1 TiB", "ports": {"bus": {"bandwidth": "1 TB/s"}}}}},
    "hub": {"memory": {"pool": {"capacity": "1 GiB", "ports": {"p": {"bandwidth": "1 TB/s"}}}}},
}


def test_the_fewest_links_are_taken():
    links = {
        "up": {"ends": ["host", "hub"], "bandwidth": "64 GB/s"},
        "down": {"ends": ["hub", "dev"], "bandwidth": "64 GB/s"},
    }
    place = {"weight": {"in": {"host.dram": 1.0}}}
    machine = device(parts=FAR, links=links, mapping={"place": place})
    assert placer(machine).hops("host.dram", "dev.core") == ["host.dram.bus", "up", "down"]
    direct = {**links, "short": {"ends": ["host.dram.bus", "dev"], "bandwidth": "1 GB/s"}}
    machine = device(parts=FAR, links=direct, mapping={"place": place})
    assert placer(machine).hops("host.dram", "dev.core") == ["host.dram.bus", "short"]


def test_a_memory_that_no_link_reaches_is_named():
    place = {"weight": {"in": {"host.dram": 1.0}}}
    machine = device(parts=FAR, mapping={"place": place})
    with pytest.raises(ConfigError, match="no link of small leads from 'host' to 'dev'"):
        placer(machine).place(table(gemm(1, 1, 1)))


def test_experts_state_and_caches_live_where_their_class_says_or_with_their_kin():
    place = {
        "weight": {"in": {"dev.hbm": 1.0}},
        "expert.weight": {"in": {"dev.ddr": 1.0}},
        "kv": {"in": {"dev.hbm": 0.5, "dev.ddr": 0.5}},
    }
    placed = placer(device(mapping={"place": place})).place(table(gemm(1, 1, 1)))
    assert crossed(placed, "dev.core", "expert") == {"dev.ddr.bus": 1.0}
    for moved in ("kv_read", "kv_write", "state_read", "state_write"):
        assert crossed(placed, "dev.core", moved) == {"dev.hbm.phy": 0.5, "dev.ddr.bus": 0.5}
    assert crossed(placed, "dev.core", "activation") == {"dev.hbm.phy": 1.0}


# -- units and fusion ----------------------------------------------------------------------


def test_the_first_rule_that_fits_picks_the_unit():
    rules = [
        {"ops": ["norm", "softmax"], "unit": "dev.lanes"},
        {"ops": "special", "unit": "dev.core"},
        {"ops": "all", "unit": "dev.lanes"},
    ]
    document = device().document.data["parts"]["dev"]["units"]
    made = device().replace(
        {"parts.dev.units.lanes": document["core"], "mappings.default.run": rules}
    )
    assert placer(made).unit_of(frozenset({"norm", "special"})) == "dev.lanes"
    assert placer(made).unit_of(frozenset({"gemm", "special"})) == "dev.core"
    assert placer(made).unit_of(frozenset({"gemm"})) == "dev.lanes"


def test_an_operator_that_no_rule_fits_is_named():
    machine = device(mapping={"run": [{"ops": "gemm", "unit": "dev.core"}]})
    with pytest.raises(ConfigError, match=r"no rule fits.*norm"):
        placer(machine).place(table(("n", "norm", {"flops": 1.0})))


def fused(fusion, labels, blocks=1):
    builder = OpTableBuilder()
    for b in range(blocks):
        with builder.block(f"b{b}") as block:
            for i, words in enumerate(labels):
                block.add(f"r{i}", "norm", dtype="bf16", flops=1.0, labels=words)
    builder.order = list(range(blocks))
    return placer(device(mapping={"fusion": fusion})).place(builder.build())


def test_neighbours_with_a_common_label_are_one_kernel():
    labels = [["a"], ["a"], [], ["a"], ["b"], ["b"]]
    assert fused([["a"]], labels).op_of.tolist() == [0, 0, 1, 2, 3, 4]
    assert fused([["a"], ["b"]], labels).op_of.tolist() == [0, 0, 1, 2, 3, 3]
    assert fused([["a", "b"]], labels).op_of.tolist() == [0, 0, 1, 2, 2, 2]
    assert fused("none", labels).op_of.tolist() == [0, 1, 2, 3, 4, 5]


def test_kernels_end_with_their_block():
    placed = fused("layer", [[], []], blocks=3)
    assert placed.op_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert placed.block_of.tolist() == [0, 1, 2]


def test_kernels_do_not_span_units():
    document = device().document.data["parts"]["dev"]["units"]
    rules = [{"ops": "x", "unit": "dev.lanes"}, {"ops": "all", "unit": "dev.core"}]
    machine = device(mapping={"fusion": "layer"}).replace(
        {"parts.dev.units.lanes": document["core"], "mappings.default.run": rules}
    )
    builder = OpTableBuilder()
    with builder.block("b") as block:
        for name, words in (("r", []), ("s", []), ("t", ["x"]), ("u", [])):
            block.add(name, "norm", dtype="bf16", flops=1.0, labels=words)
    builder.order = [0]
    placed = placer(machine).place(builder.build())
    assert placed.names == ("r+s", "t", "u")
    assert [placed.units[u] for u in placed.unit_of] == ["dev.core", "dev.lanes", "dev.core"]


# -- capacity ------------------------------------------------------------------------------


def test_occupancy_follows_the_shares():
    place = {"weight": {"in": {"dev.hbm": 0.25, "dev.ddr": 0.75}}, "kv": {"in": {"dev.ddr": 1.0}}}
    used = placer(device(mapping={"place": place})).occupancy(
        {"weight": 100.0, "kv": np.array([1.0, 7.0]), "state": 0.0, "activation": 5.0}
    )
    np.testing.assert_allclose(used["dev.hbm"], 25 + 5)
    np.testing.assert_allclose(used["dev.ddr"], [76, 82])


@pytest.mark.parametrize(("count", "tp", "crowd"), [(1, 1, 1), (8, 8, 8), (8, 2, 2), (8, 1, 1)])
def test_one_host_memory_holds_what_all_devices_that_run_put_there(count, tp, crowd):
    mapping = {
        "place": {"weight": {"in": {"host.dram": 1.0}}},
        "parallel": {"all": {"group": "all", "tp": tp}},
    }
    links = {"pcie": {"ends": ["host", "dev"], "topology": "bus", "bandwidth": "32 GB/s"}}
    machine = device(parts=FAR, links=links, count=count, mapping=mapping)
    used = placer(machine).occupancy({"weight": 10.0})
    assert used["host.dram"].item() == 10.0 * crowd
    assert placer(machine).instances("host.dram.bus") == 1 / tp
    assert placer(machine).instances("dev.hbm.phy") == 1


def test_coverage_is_the_share_of_a_tier_that_tensors_may_take():
    weights = 2.0 * 4096 * 4096
    fits = device(mapping={"coverage": 1.0}).with_values(
        {"dev.hbm.capacity": 1.5 * weights + 16384}
    )
    work = {"kind": "gemm", "m": 1, "n": 4096, "k": 4096}
    assert simulate(fits, work).seconds > 0
    tight = device(mapping={"coverage": 0.5}).with_values(
        {"dev.hbm.capacity": 1.5 * weights + 16384}
    )
    with pytest.raises(CapacityError) as caught:
        simulate(tight, work)
    assert caught.value.needed_bytes == weights + 2.0 * 2 * 4096
    assert caught.value.available_bytes == 0.75 * weights + 8192


# -- what no model honours is said ---------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "wish"),
    [
        ({"overlap": "head"}, "overlap"),
        ({"pipeline": {"kind": "staggered", "batches": 2, "replicas": 1}}, "pipeline"),
        ({"routes": {"kv": {"via": ["net"]}}}, "routes"),
        ({"place": {"kv": {"in": {"dev.hbm": 1.0}, "copies": 2}}}, "place.kv.copies"),
        (
            {"place": {"kv": {"in": {"dev.hbm": 1.0}, "page": "4 KiB", "spill": [{"tier": "x"}]}}},
            "place.kv.page of what",
        ),
    ],
)
def test_wishes_that_would_be_ignored_are_refused(mapping, wish):
    with pytest.raises(UncoveredError, match=f"no model honours.*{wish}"):
        placer(device(mapping=mapping))


def test_a_cache_that_no_model_fills_is_refused():
    machine = load_machine("sn40l-node")
    sparse = {"kind": "moe", "tokens": 8, "hidden": 256, "ffn": 512, "experts": 8, "top_k": 2}
    with pytest.raises(UncoveredError, match=r"no model of the cache of expert.weight"):
        simulate(machine, {**sparse, "dtype": "bf16"}, "coe")


def test_several_instances_of_a_part_inside_a_device_are_refused():
    stack = {
        "count": 5,
        "memory": {"hbm": {"capacity": "16 GiB", "ports": {"phy": {"bandwidth": "600 GB/s"}}}},
    }
    document = device(count=2).document.data
    machine = load_machine(document).replace(
        {
            "parts.dev.parts": {"stack": stack},
            "mappings.default.place": {"weight": {"in": {"dev.stack.hbm": 1.0}}},
            "links.in": {"ends": ["dev.stack", "dev"], "bandwidth": "600 GB/s"},
        }
    )
    with pytest.raises(UncoveredError, match=r"'dev.stack.hbm' occurs 10 times for 2 of 'dev'"):
        placer(machine).place(table(gemm(1, 1, 1)))


def test_limits_of_ports_are_refused():
    ports = {"phy": {"bandwidth": "1 TB/s"}, "bank": {"bandwidth": "8 TB/s", "limit": {"p": "x"}}}
    memory = {"hbm": {"capacity": "64 GiB", "ports": ports}}
    with pytest.raises(UncoveredError, match=r"limit of 'dev.hbm.bank'"):
        demand(device(memory=memory, unit={"at": "hbm.bank"}), gemm(1, 1, 1))


def near(sharing):
    """Return a device with a second unit at a second port of its HBM, which runs the norms."""
    ports = {
        "phy": {"bandwidth": "1 TB/s", "energy": "4 pJ/bit"},
        "bank": {"bandwidth": "8 TB/s", "energy": "1 pJ/bit"},
    }
    base = device(memory={"hbm": {"capacity": "64 GiB", "ports": ports, "sharing": sharing}})
    unit = {**base.document.data["parts"]["dev"]["units"]["core"], "at": "hbm.bank"}
    rules = [{"ops": "norm", "unit": "dev.near"}, {"ops": "all", "unit": "dev.core"}]
    return base.replace({"parts.dev.units.near": unit, "mappings.default.run": rules})


READS = ("n", "norm", {"flops": 1.0, "weight": 8e9, "inputs": []})


def test_two_ports_of_one_memory_share_its_cells_by_the_rule():
    rows = (gemm(1, 1, 1, weight=1e9), READS)
    together = demand(near({"rule": "sum"}), *rows)
    assert together.placed.resources[-1] == "dev.hbm"
    assert together.busy[:, -1, 0] == pytest.approx([1e9 / 8e12, 8e9 / 8e12], rel=1e-6)
    alone = demand(near({"rule": "exclusive"}), *rows)
    assert alone.busy[:, -1, 0] == pytest.approx([1e9 / 1e12, 8e9 / 8e12], rel=1e-6)
    apart = demand(near({"rule": "partition", "partitions": 2}), *rows)
    assert "dev.hbm" not in apart.placed.resources
    assert (alone.bytes.sum(), together.bytes.sum()) == (apart.bytes.sum(), apart.bytes.sum())


@pytest.mark.parametrize(("rule", "seconds"), [("exclusive", 2e-3), ("sum", 1.125e-3)])
def test_cells_that_ports_share_bound_a_block_and_every_instant(rule, seconds):
    priced = demand(near({"rule": rule}), gemm(1, 1, 1, weight=1e9), READS)
    assert analytic_step(priced).seconds[0] == pytest.approx(seconds, rel=0.01)
    step, line = event_step(priced)
    assert step.seconds[0] >= analytic_step(priced).seconds[0]
    assert (line.peak_share <= 1 + 1e-9).all()


def test_more_ports_than_partitions_are_refused():
    with pytest.raises(UncoveredError, match=r"dev.hbm.*used at once.*1 partitions"):
        demand(near({"rule": "partition"}), gemm(1, 1, 1), READS)


def test_a_collective_needs_a_link_between_devices():
    reduce = ("ar", "all_reduce", {"payload": 8.0, "participants": 2})
    with pytest.raises(ConfigError, match="no link between instances of 'dev'"):
        demand(device(count=2), reduce)


def test_a_copy_takes_a_link_that_joins_its_memories():
    links = {
        "up": {"ends": ["host", "dev"], "bandwidth": "32 GB/s"},
        "peer": {"ends": ["dev", "dev"], "bandwidth": "300 GB/s"},
        "away": {"ends": ["hub", "dev"], "bandwidth": "300 GB/s"},
        "inside": {"ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": "90 GB/s"},
    }
    one = placer(device(parts=FAR, links=links))
    assert one.path("host.dram", "dev.hbm", "up") == ["host.dram.bus", "up", "dev.hbm.phy"]
    assert one.path("dev.hbm", "dev.ddr", "inside") == ["dev.hbm.phy", "inside", "dev.ddr.bus"]
    for ends, wrong, right in (
        (("host.dram", "dev.hbm"), "peer", "up"),
        (("host.dram", "dev.hbm"), "away", "up"),
        (("host.dram", "dev.hbm"), "inside", "up"),
        (("host.dram", "dev.hbm"), "nvlnk", "up"),
        (("dev.ddr", "dev.hbm"), "peer", "inside"),
        (("host.dram", "hub.pool"), "up", "none"),
    ):
        with pytest.raises(ConfigError, match=f"joins '{ends[0]}' and.*{wrong}.*: {right}"):
            one.path(*ends, wrong)
