"""Prices of operators against formulas over a small machine, one effect at a time."""

import math

import numpy as np
import pytest
from handmade import (
    DDR,
    EFFICIENCY,
    HBM,
    HBM_LATENCY,
    HBM_SHARE,
    LAUNCH,
    MIB,
    PEAK,
    VECTOR,
    demand,
    device,
    gemm,
    on,
)

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import OpTableBuilder
from opbyte.hw_models.price import price
from opbyte.sim.place import Placer
from opbyte.sim.simulate import simulate

# -- arithmetic ----------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (16, 8, 16), (17, 8, 16), (100, 33, 1000)])
def test_a_product_executes_whole_tiles(m, n, k):
    machine = device(unit={"tile": [16, 8, 16]})
    padded = 2 * (math.ceil(m / 16) * 16) * (math.ceil(n / 8) * 8) * (math.ceil(k / 16) * 16)
    priced = demand(machine, gemm(m, n, k, groups=3))
    assert priced.compute[0, 0] == pytest.approx(3 * padded / (PEAK * EFFICIENCY), rel=1e-12)
    assert priced.flops[0, 0] == 3 * 2 * m * n * k
    bound = demand(machine, gemm(m, n, k, groups=3), ideal=True)
    assert bound.compute[0, 0] == pytest.approx(3 * 2 * m * n * k / PEAK, rel=1e-12)


def test_a_causal_product_keeps_the_useful_share_of_its_padded_rectangle():
    machine = device(unit={"tile": [16, 8, 16]})
    half = 0.5 * 2 * 100 * 100 * 64
    priced = demand(machine, gemm(100, 100, 64, flops=half))
    assert priced.compute[0, 0] == pytest.approx(
        0.5 * 2 * 112 * 104 * 64 / (PEAK * EFFICIENCY), rel=1e-12
    )


def test_dataflow_does_not_pad():
    priced = demand(device(unit={"kind": "dataflow", "tile": [16, 8, 16]}), gemm(1, 7, 9))
    assert priced.compute[0, 0] == pytest.approx(2 * 7 * 9 / (PEAK * EFFICIENCY), rel=1e-12)


def test_everything_else_runs_at_the_vector_rate_whatever_the_efficiency():
    priced = demand(device(), ("norm", "norm", {"flops": 1e9, "in_bytes": 1e3}))
    assert priced.compute[0, 0] == pytest.approx(1e9 / VECTOR, rel=1e-12)


def test_a_unit_of_lanes_runs_products_at_the_vector_rate_too():
    priced = demand(device(unit={"kind": "vector"}), gemm(8, 8, 8))
    assert priced.compute[0, 0] == pytest.approx(2 * 8**3 / VECTOR, rel=1e-12)


@pytest.mark.parametrize(
    ("has", "asks", "allowed"),
    [
        ("bf16", "fp16", True),
        ("fp16", "fp16", True),
        ("fp16", "bf16", False),
        ("bf16", "int8", False),
        ("bf16", "mxfp4", True),
        ("int8", "t1.6", True),
        ("bf16", "fp32", False),
    ],
)
def test_a_unit_computes_in_what_loses_nothing(has, asks, allowed):
    machine = device(unit={"peak": {has: "100 TFLOP/s"}})
    if allowed:
        priced = demand(machine, gemm(64, 64, 64, dtype=asks))
        assert priced.compute[0, 0] == pytest.approx(2 * 64**3 / (PEAK * EFFICIENCY), rel=1e-12)
    else:
        with pytest.raises(UncoveredError, match=rf"no arithmetic for {asks}. It has: {has}"):
            demand(machine, gemm(64, 64, 64, dtype=asks))


def test_a_t4_refuses_bf16_and_runs_fp16():
    assert simulate("t4", {"kind": "gemm", "m": 8, "n": 8, "k": 8, "dtype": "fp16"}).seconds > 0
    with pytest.raises(UncoveredError, match=r"t4.*no arithmetic for bf16"):
        simulate("t4", {"kind": "gemm", "m": 8, "n": 8, "k": 8, "dtype": "bf16"})


@pytest.mark.parametrize(
    ("change", "row", "words"),
    [
        ({"peak": {}}, gemm(1, 1, 1), ["dev.core", "no arithmetic", "no matrix rate"]),
        ({"vector": None}, ("n", "norm", {"flops": 1.0}), ["dev.core", "`vector`", "norm"]),
        ({"launch": {}}, gemm(1, 1, 1), ["dev.core", "launch latency", "hardware", "none"]),
        ({"kind": "abacus"}, gemm(1, 1, 1), ["abacus", "dev.core", "gpu"]),
    ],
)
def test_what_a_unit_lacks_is_named(change, row, words):
    with pytest.raises(UncoveredError) as caught:
        demand(device(unit=change), row)
    for word in words:
        assert word in str(caught.value)


def test_a_port_without_a_rate_is_named():
    memory = {"hbm": {"capacity": "1 GiB", "ports": {"phy": {}}}}
    with pytest.raises(UncoveredError, match=r"'dev.hbm.phy' has no bandwidth.*set dev.hbm.phy.b"):
        demand(device(memory=memory), gemm(1, 1, 1))


# -- what tiles read again -----------------------------------------------------------------

SIZE = 8 * MIB  # half of the SRAM


def traffic(m, n, k, size=SIZE, groups=1):
    """Least traffic of one product through a buffer, by hand: bytes of (weights, activations)."""
    w, x, y = 2.0 * n * k, 2.0 * m * k, 2.0 * m * n
    if w <= size:
        return groups * w, groups * (x + y)
    side = math.sqrt(size / 2)
    ways = [
        (math.ceil(x / size) * w, x),
        (w, math.ceil(w / size) * x),
        (max(math.ceil(m / side), 1) * w, max(math.ceil(n / side), 1) * x),
    ]
    best_w, best_x = min(ways, key=sum)
    return groups * best_w, groups * (best_x + y)


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (16, 1024, 1024),  # weights fit
        (100, 4096, 4096),  # input fits, weights stream past it once
        (65536, 2048, 4096),  # a buffer-full of weights stays
        (16384, 16384, 16384),  # square tiles
        (8192, 28672, 4096),  # wide output: only the input is read again
        (100000, 3000, 3000),
    ],
)
def test_a_product_moves_what_the_best_way_of_three_moves(m, n, k):
    priced = demand(device(), gemm(m, n, k))
    weights, activations = traffic(m, n, k)
    moved = priced.moved
    zero = np.zeros((1, 1))
    assert (
        moved["weight", "compulsory"] + moved.get(("weight", "re-read"), zero)
    ).item() == pytest.approx(weights, rel=1e-12)
    assert (
        moved["activation", "compulsory"] + moved.get(("activation", "re-read"), zero)
    ).item() == pytest.approx(activations, rel=1e-12)
    assert on(priced, "dev.hbm.phy") == pytest.approx(weights + activations, rel=1e-12)
    assert priced.busy[0, 0, 0] == pytest.approx(
        (weights + activations) / (HBM * HBM_SHARE), rel=1e-12
    )
    bound = demand(device(), gemm(m, n, k), ideal=True)
    assert on(bound, "dev.hbm.phy") == 2.0 * (n * k + m * k + m * n)


def test_each_product_of_a_group_has_the_buffer_to_itself():
    # Eight experts: 32 MiB of weights and 4 MiB of input each. Every input stays in the buffer,
    # so nothing is read twice, although all of them together exceed it.
    m, n, k, groups = 512, 4096, 4096, 8
    row = gemm(
        m,
        n,
        k,
        groups=groups,
        weight=0.0,
        expert=2.0 * n * k * groups,
        in_bytes=2.0 * m * k * groups,
        out_bytes=2.0 * m * n * groups,
    )
    priced = demand(device(), row)
    weights, activations = traffic(m, n, k, groups=groups)
    assert weights == 2.0 * n * k * groups
    assert on(priced, "dev.hbm.phy") == pytest.approx(weights + activations, rel=1e-12)


@pytest.mark.parametrize("shape", [(8192, 8192, 8192), (300, 50000, 700), (50000, 300, 9000)])
def test_more_buffer_never_reads_more_and_never_less_than_everything_once(shape):
    m, n, k = shape
    machine = device()
    sizes = np.geomspace(1e4, 1e10, 300)
    priced = demand(machine.with_values({"dev.l2.capacity": sizes}), gemm(m, n, k))
    carried = priced.bytes[0, 0]
    once = 2.0 * (n * k + m * k + m * n)
    assert (np.diff(carried) <= 1e-9 * carried[:-1]).all()
    assert (carried >= once * (1 - 1e-12)).all()
    assert carried[-1] == pytest.approx(once, rel=1e-12)
    assert carried[0] > 2 * once


def test_a_gathered_embedding_is_read_once():
    row = ("embedding", "embedding", {"flops": 0.0, "weight": 64e6, "out_bytes": 64e6})
    assert on(demand(device(), row), "dev.hbm.phy") == 128e6


# -- fusion, placement, routes -------------------------------------------------------------

CHAIN = (
    gemm(64, 512, 256),
    ("act", "activation", {"flops": 1e6, "out_bytes": 3e5}),
    ("down", "gemm", {"m": 64, "n": 256, "k": 512, "weight": 2.0 * 256 * 512, "out_bytes": 2e5}),
)


def test_a_fused_layer_keeps_its_activations_on_the_chip():
    fused = demand(device(mapping={"fusion": "layer"}), *CHAIN)
    apart = demand(device(), *CHAIN)
    weights = 2.0 * 2 * 256 * 512
    first, inside, last = 2.0 * 64 * 256, (2.0 * 64 * 512, 3e5), 2e5
    assert len(fused.placed) == 1
    assert len(apart.placed) == 3
    assert on(fused, "dev.hbm.phy") == weights + first + last
    assert on(apart, "dev.hbm.phy") == weights + first + last + 2 * sum(inside)
    assert fused.moved["internal", "compulsory"].item() == 2 * sum(inside)
    launches = (len(apart.placed) - 1) * LAUNCH
    accesses = (len(apart.placed) - 1) * HBM_LATENCY
    assert apart.latency.sum() - fused.latency.sum() == pytest.approx(launches + accesses)


def test_an_activation_that_leaves_the_kernel_is_written_once_and_read_by_each_other_kernel():
    builder = OpTableBuilder()
    with builder.block("b") as block:
        a = block.add("a", "gemm", dtype="bf16", m=1, n=1, k=1, in_bytes=10.0, out_bytes=1000.0)
        block.add("x", "norm", dtype="bf16", flops=1.0, inputs=[a], labels=["p"], out_bytes=7.0)
        block.add("y", "norm", dtype="bf16", flops=1.0, inputs=[a], labels=["p"], out_bytes=5.0)
        block.add("z", "norm", dtype="bf16", flops=1.0, inputs=[a], out_bytes=3.0)
    builder.order = [0]
    machine = device(mapping={"fusion": [["p"]]})
    priced = price(Placer(machine, machine.mapping()).place(builder.build()), machine)
    assert priced.placed.names == ("a", "x+y", "z")
    np.testing.assert_allclose(priced.bytes[:, 0, 0], [1010, 1012, 1003])


def test_weights_in_two_memories_load_two_ports_at_once():
    mapping = {"place": {"weight": {"in": {"dev.hbm": 0.75, "dev.ddr": 0.25}}}}
    m, n, k = 4, 1024, 1024
    priced = demand(device(mapping=mapping), gemm(m, n, k))
    weights, others = 2.0 * n * k, 2.0 * (m * k + m * n)
    assert on(priced, "dev.hbm.phy") == 0.75 * weights + others
    assert on(priced, "dev.ddr.bus") == 0.25 * weights
    slow, fast = 0.25 * weights / DDR, (0.75 * weights + others) / (HBM * HBM_SHARE)
    assert slow > fast
    assert priced.duration[0, 0] == pytest.approx(LAUNCH + HBM_LATENCY + slow, rel=1e-12)


HOST = {
    "host": {
        "memory": {
            "dram": {
                "capacity": "1 TiB",
                "ports": {
                    "bus": {"bandwidth": "400 GB/s", "latency": "0.2 us", "energy": "12 pJ/bit"}
                },
            }
        }
    }
}


def offloaded(topology, count, tp, **link):
    links = {
        "pcie": {
            "ends": ["host", "dev"],
            "topology": topology,
            "bandwidth": "32 GB/s",
            "energy": "10 pJ/bit",
            **link,
        }
    }
    mapping = {
        "place": {"weight": {"in": {"host.dram": 1.0}}},
        "parallel": {"all": {"group": "all", "tp": tp}},
    }
    return device(parts=HOST, links=links, count=count, mapping=mapping)


@pytest.mark.parametrize(("topology", "count", "tp"), [("bus", 8, 8), ("point-to-point", 8, 8)])
def test_remote_weights_cross_memory_and_link(topology, count, tp):
    priced = demand(offloaded(topology, count, tp), gemm(1, 1024, 1024))
    weights = 2.0 * 1024 * 1024
    assert on(priced, "host.dram.bus") == weights
    assert on(priced, "pcie") == weights
    assert on(priced, "dev.hbm.phy") == 2.0 * 2 * 1024
    # One host memory for eight devices; a bus is one link for all, the other is one for each.
    memory, link = weights / (400e9 / tp), weights / (32e9 / (tp if topology == "bus" else 1))
    assert priced.duration[0, 0] == pytest.approx(LAUNCH + HBM_LATENCY + max(memory, link))


def test_devices_that_do_not_run_take_no_share_of_a_bus():
    alone = demand(offloaded("bus", 1, 1), gemm(1, 1024, 1024))
    one_of_eight = demand(offloaded("bus", 8, 1), gemm(1, 1024, 1024))
    assert one_of_eight.duration[0, 0] == alone.duration[0, 0]
    assert alone.duration[0, 0] > 2.0 * 1024 * 1024 / 32e9


def test_the_way_over_a_link_costs_its_latency():
    near = demand(offloaded("bus", 1, 1), gemm(1, 1024, 1024))
    far = demand(offloaded("bus", 1, 1, latency="5 us"), gemm(1, 1024, 1024))
    assert near.latency[0, 0] == pytest.approx(LAUNCH + HBM_LATENCY, rel=1e-12)
    assert far.latency[0, 0] == pytest.approx(LAUNCH + 0.2e-6 + 5e-6, rel=1e-12)
    bound = demand(offloaded("bus", 1, 1, latency="5 us"), gemm(1, 1024, 1024), ideal=True)
    assert bound.latency[0, 0] == 0


def test_one_unit_that_serves_eight_devices_takes_eight_times_as_long():
    parts = {
        "host": {
            **HOST["host"],
            "units": {
                "cpu": {
                    "kind": "vector",
                    "at": "dram.bus",
                    "vector": "4 TFLOP/s",
                    "launch": {"hardware": "1 us"},
                }
            },
        }
    }
    links = {"pcie": {"ends": ["host", "dev"], "bandwidth": "32 GB/s"}}
    mapping = {"run": [{"ops": "norm", "unit": "host.cpu"}, {"ops": "all", "unit": "dev.core"}]}
    machine = device(parts=parts, links=links, count=8, mapping=mapping)
    priced = demand(machine, gemm(1, 8, 8), ("norm", "norm", {"flops": 1e9, "out_bytes": 8.0}))
    assert priced.compute[1, 0] == pytest.approx(8 * 1e9 / 4e12, rel=1e-12)
    assert priced.compute[0, 0] == pytest.approx(2 * 64 / (PEAK * EFFICIENCY), rel=1e-12)


# -- energy --------------------------------------------------------------------------------


def test_energy_is_operations_and_bytes_by_hand():
    priced = demand(device(), *CHAIN)
    products = 2 * 64 * 512 * 256 * 2
    moved = 2.0 * 2 * 256 * 512 + 2.0 * 64 * 256 + 2e5 + 2 * (2.0 * 64 * 512 + 3e5)
    joules = products * 0.5e-12 + 1e6 * 2e-12 + moved * 8 * 4e-12
    assert priced.joules.sum() == pytest.approx(joules, rel=1e-12)


def test_on_chip_bytes_of_a_unit_at_an_sram_cost_its_energy():
    machine = device(unit={"kind": "dataflow", "at": "l2.fabric"}, mapping={"fusion": "layer"})
    priced = demand(machine, *CHAIN)
    products, inside = 2 * 64 * 512 * 256 * 2, 2 * (2.0 * 64 * 512 + 3e5)
    outside = 2.0 * 2 * 256 * 512 + 2.0 * 64 * 256 + 2e5
    joules = products * 0.5e-12 + 1e6 * 2e-12
    joules += outside * 8 * 4e-12 + (outside + inside) * 8 * 0.25e-12
    assert priced.joules.sum() == pytest.approx(joules, rel=1e-12)
    assert on(priced, "dev.l2.fabric") == outside + inside


@pytest.mark.parametrize(
    ("path", "value"),
    [("dev.hbm.phy.energy", None), ("dev.core.energy", {"vector": "2 pJ/FLOP"})],
)
def test_energy_that_nobody_gave_is_never_zero(path, value):
    machine = device().replace({path: value})
    result = simulate(machine, {"kind": "gemm", "m": 64, "n": 64, "k": 64})
    assert result.seconds > 0
    for metric in ("joules", "watts", "joules_per_token"):
        with pytest.raises(UncoveredError, match=f"small: '{metric}' needs a parameter"):
            getattr(result, metric)


def test_static_power_flows_as_long_as_the_work_takes():
    work = {"kind": "gemm", "m": 64, "n": 64, "k": 64}
    machine = device(count=2)
    base, warm = (
        simulate(machine, work),
        simulate(machine.replace({"dev.static_power": "7 W"}), work),
    )
    assert warm.joules - base.joules == pytest.approx(2 * 7 * base.seconds, rel=1e-9)
    assert warm.watts == pytest.approx(warm.joules / warm.seconds, rel=1e-12)


# -- fused operators -----------------------------------------------------------------------


def fused(rows, *, sram="16 MiB"):
    """Price rows as one operator of a dataflow unit at an SRAM, of which tiles take half."""
    unit = {"kind": "dataflow", "at": "l2.fabric"}
    memory = {
        "l2": {
            "kind": "sram",
            "capacity": sram,
            "ports": {"fabric": {"bandwidth": "20 TB/s", "energy": "0.25 pJ/bit"}},
        }
    }
    return demand(device(unit=unit, memory=memory, mapping={"fusion": "layer"}), *rows)


def test_a_fused_operator_reads_the_blocks_input_once_and_other_tensors_each():
    rows = (
        ("norm", "norm", {"flops": 1e6, "in_bytes": 1e6, "out_bytes": 2e6}),
        ("add", "norm", {"flops": 1e6, "in_bytes": 1e6, "side_bytes": 5e5, "out_bytes": 3e6}),
    )
    moved = fused(rows).placed.moved
    assert moved["activation"][:, 0] == pytest.approx([1e6 + 5e5 + 3e6])
    # What stays inside is written and read.
    assert moved["internal"][:, 0] == pytest.approx([2 * 2e6])


def test_weights_pass_once_per_buffer_full_of_what_is_live_inside():
    tokens, hidden, wide = 4096, 1024, 4096
    rows = (
        gemm(tokens, wide, hidden),
        ("down", "gemm", {"m": tokens, "n": hidden, "k": wide, "weight": 2.0 * hidden * wide,
                          "out_bytes": 2.0 * tokens * hidden}),
    )  # fmt: skip
    weights = 2 * 2.0 * hidden * wide
    live = 2.0 * tokens * hidden + 2.0 * tokens * wide
    small = fused(rows, sram="16 MiB")
    passes = np.ceil(live / (8 * MIB))
    assert weights > 8 * MIB
    assert small.moved["weight", "re-read"].sum() == pytest.approx((passes - 1) * weights)
    # Where the weights fit, they are read once however many tokens pass.
    assert ("weight", "re-read") not in fused(rows, sram="40 MiB").moved


def test_score_matrices_are_streamed_and_do_not_crowd_the_buffer():
    tokens = 4096
    score = {"m": tokens, "n": tokens, "k": 128, "groups": 8, "out_bytes": 2.0 * 8 * tokens**2}
    context = {"m": tokens, "n": 128, "k": tokens, "groups": 8, "out_bytes": 2.0 * 8 * tokens * 128}
    rows = (
        gemm(tokens, 1024, 1024, in_bytes=1e6, out_bytes=1e6, weight=9e6),
        ("score", "score", score),
        ("softmax", "softmax", {"flops": 1e6, "out_bytes": 2.0 * 8 * tokens**2}),
        ("context", "context", context),
    )
    assert ("weight", "re-read") not in fused(rows).moved


def test_weights_of_groups_stream_by_in_a_fused_operator():
    one = gemm(4096, 4096, 1024, weight=9e6)
    many = gemm(4096, 4096, 1024, weight=9e6, groups=64.0)
    tail = ("add", "norm", {"flops": 1e6, "out_bytes": 1e6})
    assert fused((one, tail)).moved["weight", "re-read"].sum() > 0
    assert ("weight", "re-read") not in fused((many, tail)).moved


def test_a_collective_on_its_own_reads_and_writes_memory():
    net = {"net": {"ends": ["dev", "dev"], "topology": "switch", "bandwidth": "100 GB/s"}}
    rows = (
        ("norm", "norm", {"flops": 1e6, "in_bytes": 1e6, "out_bytes": 4e6}),
        ("reduce", "all_reduce", {"flops": 0.0, "payload": 4e6, "participants": 2,
                                  "out_bytes": 4e6}),
    )  # fmt: skip
    priced = demand(device(links=net, count=2), *rows)
    column = priced.placed.resources.index("dev.hbm.phy")
    assert priced.bytes[:, column, 0] == pytest.approx([1e6 + 4e6, 4e6 + 4e6])


def test_packed_formats_compute_in_the_first_fallback_that_a_unit_has():
    ternary = demand(device(unit={"peak": {"bf16": "100 TFLOP/s"}}), gemm(64, 64, 64, dtype="t2"))
    plain = demand(device(unit={"peak": {"bf16": "100 TFLOP/s"}}), gemm(64, 64, 64))
    assert ternary.compute[0, 0] == plain.compute[0, 0]
