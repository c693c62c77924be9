"""A library's collective calls: protocols, who chooses them, and what they cost, by hand."""

import numpy as np
import pytest
from handmade import LAUNCH, demand, device
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.link.calls import Caller, Network
from opbyte.hw_models.link.libraries import LIBRARIES, LL, LL128, NVLS, SIMPLE
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.machine_file import Link

KIB, MIB = 1024, 1024**2
RATE, HOP, EFFICIENCY = 300e9, 1e-6, 0.7
BLOCK = {
    "library": "nccl-ampere",
    "tuned_rate": "240 GB/s",
    "call": "6 us",
    "crowd": 0.25,
    "ll": 0.4,
    "ll128_start": "7 us",
    "ll128_step": "2 us",
    "ll128": 0.6,
    "simple_start": "15 us",
    "simple_step": "4 us",
    "own_copy": 2.0,
}
HOPPER = {
    **BLOCK,
    "library": "nccl-hopper",
    "tuned_rate": "360 GB/s",
    "nvls_step": "3 us",
    "nvls": 0.6,
}


def link(block=None, **more):
    return {
        "ends": ["dev", "dev"],
        "topology": "switch",
        "bandwidth": "300 GB/s",
        "efficiency": EFFICIENCY,
        "latency": "1 us",
        "energy": "2 pJ/bit",
        "collectives": BLOCK if block is None else block,
        **more,
    }


def machine(block=None, count=8, mapping=None, **more):
    return device(links={"net": link(block, **more)}, count=count, mapping=mapping)


def caller(block=None, rate=RATE, network=None, direct=False, values=None, **more):
    made = machine(block, **more)
    known = {**made.values, **{f"net.{k}": v for k, v in (values or {}).items()}}
    return Caller(
        made.config.links["net"],
        lambda word, default: known.get(f"net.{word}", default),
        np.asarray(rate),
        network,
        direct,
    )


def cost(kind, payload, participants, **more):
    made = caller(**more).cost(kind, np.array([float(payload)]), np.array([float(participants)]))
    return made.seconds.item(), made.busy.item(), made.wire_bytes.item()


def chosen(kind, payload, participants, library="nccl-ampere", rate=240e9, adds=True):
    sizes, counts = np.array([float(payload)]), np.array([float(participants)])
    return LIBRARIES.lookup(library).choose(kind, sizes, counts, rate, adds=adds).item()


# -- who chooses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "participants", "last", "then"),
    [
        # Largest power of two with the protocol before, as rows of NCCL 2.27 on A100 jump.
        ("all_reduce", 2, 512 * KIB, (LL, SIMPLE)),
        ("all_gather", 2, 1 * MIB, (LL, SIMPLE)),
        ("reduce_scatter", 4, 1 * MIB, (LL, SIMPLE)),
        ("all_gather", 8, 2 * MIB, (LL, LL128)),
        ("all_gather", 8, 8 * MIB, (LL128, SIMPLE)),
        ("all_reduce", 4, 1 * MIB, (LL, LL128)),
        ("all_reduce", 4, 4 * MIB, (LL128, SIMPLE)),
        ("all_to_all", 8, 4 * MIB, (LL, SIMPLE)),
        ("send", 2, 512 * KIB, (LL, SIMPLE)),
    ],
)
def test_the_library_switches_where_its_constants_say(kind, participants, last, then):
    assert (chosen(kind, last, participants), chosen(kind, 2 * last, participants)) == then


def test_the_estimates_cross_where_a_hand_calculation_says():
    # 6.6 + 2 * 0.6 us + s / 87.7 GB/s = 8.4 + 2 * 3.4 us + s / 240 GB/s
    cross = 7.4e-6 / (1 / 87.7e9 - 1 / 240e9)
    assert chosen("all_reduce", 0.999 * cross, 2) == LL
    assert chosen("all_reduce", 1.001 * cross, 2) == SIMPLE


def test_a_switch_that_adds_takes_large_all_reduces_of_more_than_two():
    assert chosen("all_reduce", MIB, 8, "nccl-hopper", 370.8e9) == LL
    assert chosen("all_reduce", 2 * MIB, 8, "nccl-hopper", 370.8e9) == NVLS
    assert chosen("all_reduce", 64 * MIB, 2, "nccl-hopper", 370.8e9) == SIMPLE
    assert chosen("all_gather", 64 * MIB, 8, "nccl-hopper", 370.8e9) == SIMPLE
    assert chosen("all_reduce", 64 * MIB, 8, "nccl-hopper", 370.8e9, adds=False) == SIMPLE


def test_without_nvlink_there_is_no_ll128():
    sizes = np.geomspace(1e3, 1e9, 200)
    made = LIBRARIES.lookup("nccl-pcie").choose(
        "all_reduce", sizes, np.full(200, 8.0), 24e9, adds=True
    )
    assert set(made) == {LL, SIMPLE}


# -- what a call costs -----------------------------------------------------------------------


def test_a_small_call_is_its_start_and_its_steps():
    payload, p = 4096, 8
    wire = 2 * payload * 7 / 8
    crowd = 1 + 0.25 * (512 / 4096) ** 2 / (1 + (512 / 4096) ** 2)
    assert cost("all_reduce", payload, p) == pytest.approx(
        ((6e-6 + 14 * HOP) * crowd, wire / (0.4 * RATE), wire), rel=1e-12
    )


def test_a_large_call_has_slower_steps_a_better_rate_and_a_copy():
    payload, p = 256 * MIB, 4
    wire, own = payload * 3 / 4, payload / 4
    assert cost("all_gather", payload, p) == pytest.approx(
        (21e-6 + 3 * (HOP + 4e-6) + own / (2 * RATE), wire / (EFFICIENCY * RATE), wire), rel=1e-12
    )


def test_a_call_in_between_has_flags_in_its_lines():
    payload, p = 4 * MIB, 8
    wire, own = 2 * payload * 7 / 8, payload / 8
    assert cost("all_reduce", payload, p) == pytest.approx(
        (13e-6 + 14 * (HOP + 2e-6) + own / (2 * RATE), wire / (0.6 * RATE), wire), rel=1e-12
    )


def test_all_to_all_takes_the_steps_of_a_tree_or_one():
    small = 64
    crowd = 1 + 0.25 * (8 / 4096) ** 2 / (1 + (8 / 4096) ** 2)
    assert cost("all_to_all", small, 8)[0] == pytest.approx((6e-6 + 6 * HOP) * crowd, rel=1e-12)
    large = 64 * MIB
    copy = large / 8 / (2 * RATE)
    assert cost("all_to_all", large, 8)[0] == pytest.approx(21e-6 + 5e-6 + copy, rel=1e-12)


def test_a_switch_that_adds_takes_each_byte_once():
    payload, p = 64 * MIB, 8
    wire = payload * 9 / 8
    assert cost("all_reduce", payload, p, block=HOPPER) == pytest.approx(
        (6e-6 + 8 * 3e-6, wire / (0.6 * RATE), wire), rel=1e-12
    )


@pytest.mark.parametrize(
    ("payload", "p", "rounds", "wire"),
    [
        (4 * MIB, 2, 2, 4 * MIB),
        (256 * KIB, 4, 3, 3 * 256 * KIB),
        (512 * KIB, 4, 9, 1.5 * 512 * KIB),
        (128 * KIB, 8, 4, 7 * 128 * KIB),
        (256 * KIB, 8, 12, 1.75 * 256 * KIB),
    ],
)
def test_direct_all_reduces_take_one_shot_or_two(payload, p, rounds, wire):
    block = {**BLOCK, "direct": 0.5}
    assert cost("all_reduce", payload, p, block=block, direct=True) == pytest.approx(
        (rounds * HOP, wire / (0.5 * RATE), wire), rel=1e-12
    )


def test_direct_kernels_leave_large_calls_other_kinds_and_odd_groups_to_the_library():
    block = {**BLOCK, "direct": 0.5}
    for kind, payload, p in (
        ("all_reduce", 8 * MIB, 8),
        ("all_reduce", KIB, 3),
        ("all_gather", KIB, 8),
    ):
        library = cost(kind, payload, p)
        assert cost(kind, payload, p, block=block, direct=True) == library
    with pytest.raises(UncoveredError, match=r"`collectives.direct`.*all_reduce: library"):
        caller(direct=True)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "all_to_all", "send"])
def test_nothing_to_send_takes_no_time(kind):
    assert cost(kind, 0, 8) == (0, 0, 0)
    if kind != "send":
        assert cost(kind, MIB, 1) == (0, 0, 0)


def test_half_duplex_halves_the_rate_but_a_bus_carries_bytes_once():
    full = cost("all_reduce", 64 * MIB, 8)
    half = cost("all_reduce", 64 * MIB, 8, duplex="half")
    assert half[1] == pytest.approx(2 * full[1], rel=1e-12)
    assert half[2] == full[2]
    bus = cost("all_reduce", 64 * MIB, 8, duplex="half", topology="bus")
    assert bus == pytest.approx(full, rel=1e-12)


def test_without_peer_to_peer_the_host_leaves_a_share():
    block = {**BLOCK, "p2p": False, "through_host": 0.2}
    seconds, busy, wire = cost("all_reduce", 64 * MIB, 8)
    assert cost("all_reduce", 64 * MIB, 8, block=block) == pytest.approx(
        (seconds, 5 * busy, wire), rel=1e-12
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p2p": False}, "through_host"),
        ({"p2p": False, "through_host": 0.2, "direct": 0.5}, "peer-to-peer"),
        ({"nvls": 0.5}, "nvls_step"),
        ({"ll": 1.2}, "at most 1"),
        ({"lll": 0.2}, "ll"),
    ],
)
def test_a_block_that_contradicts_itself_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        machine({**BLOCK, **change})


def test_an_unknown_library_is_named():
    with pytest.raises(ConfigError, match=r"nccl-ampre.*Did you mean 'nccl-ampere'"):
        cost("all_reduce", 1e6, 8, block={**BLOCK, "library": "nccl-ampre"})


def test_a_point_to_point_link_joins_two():
    assert cost("all_reduce", 4096, 2, topology="point-to-point")[2] == 4096
    with pytest.raises(UncoveredError, match="point-to-point"):
        cost("all_reduce", 4096, 4, topology="point-to-point")


# -- between nodes ---------------------------------------------------------------------------


def network(local=4, rate=20e9, latency=5e-6):
    return Network(local, np.asarray(rate), np.asarray(latency))


def test_inside_one_node_the_network_changes_nothing():
    assert cost("all_reduce", MIB, 4, network=network()) == cost("all_reduce", MIB, 4)


def test_large_all_reduces_between_two_nodes_leave_each_node_once():
    payload = 1024 * MIB
    made = caller(network=network()).cost("all_reduce", np.array([payload * 1.0]), np.array([8.0]))
    # Two trees, each for half of the bytes: up from one node, down to the other.
    assert made.net_busy.item() == pytest.approx(payload / 20e9, rel=1e-12)
    assert made.net_bytes.item() == pytest.approx(payload / 4, rel=1e-12)
    assert made.net_busy.item() > made.busy.item()


def test_a_small_all_reduce_between_nodes_pays_few_far_steps():
    made = caller(network=network()).cost("all_reduce", np.array([64.0]), np.array([16.0]))
    crowd = 1 + 0.25 * (4 / 4096) ** 2
    near, far = (6e-6 + 6 * HOP) * crowd, 2 * 2 * 5e-6
    assert made.seconds.item() == pytest.approx(near + far, rel=1e-6)


def test_all_to_all_sends_what_leaves_the_node():
    payload = 64 * MIB
    made = caller(network=network()).cost("all_to_all", np.array([payload * 1.0]), np.array([8.0]))
    assert made.wire_bytes.item() == pytest.approx(payload * 3 / 8)
    assert made.net_bytes.item() == pytest.approx(payload / 2)
    assert made.net_busy.item() == pytest.approx(4 * payload / 2 / 20e9)


def two_nodes(block=BLOCK, tp=8):
    rack = machine().document.data
    dev = {**rack["parts"]["dev"], "count": 4}
    inner = {**link(block), "ends": ["node.dev", "node.dev"]}
    if block is None:
        del inner["collectives"]
    between = {"ends": ["node", "node"], "bandwidth": "20 GB/s", "latency": "5 us"}
    mapping = {
        "groups": {"all": "node.dev"},
        "parallel": {"all": {"group": "all", "tp": tp}},
        "place": {"weight": {"in": {"node.dev.hbm": 1.0}}},
        "run": [{"ops": "all", "unit": "node.dev.core"}],
    }
    return load_machine(
        {
            "name": "two",
            "parts": {"node": {"count": 2, "parts": {"dev": dev}}},
            "links": {"net": inner, "far": {**between, "energy": "10 pJ/bit"}},
            "mappings": {"default": mapping},
        }
    )


def reduce(payload, p):
    return ("ar", "all_reduce", {"payload": float(payload), "participants": p})


def test_a_machine_with_nodes_sends_over_both_links():
    payload = 1024 * MIB
    priced = demand(two_nodes(), reduce(payload, 8))
    far = priced.placed.resources.index("far")
    assert priced.bytes[0, far, 0] == pytest.approx(payload / 4)
    assert priced.busy[0, far, 0] == pytest.approx(payload / 20e9)
    least = demand(two_nodes(), reduce(payload, 8), ideal=True)
    assert least.busy[0, far, 0] == pytest.approx(payload / 20e9)
    near = demand(two_nodes(), reduce(payload, 4))
    assert near.placed.resources == ("node.dev.hbm.phy", "net")


def test_nodes_need_a_block_inside_too():
    with pytest.raises(UncoveredError, match=r"over 'far' need a `collectives` block.*'net'"):
        demand(two_nodes(block=None), reduce(MIB, 8))


# -- in a price ------------------------------------------------------------------------------


def test_a_call_on_its_own_is_launch_seconds_and_the_busy_link():
    priced = demand(machine(), reduce(256 * MIB, 8))
    seconds, busy, wire = cost("all_reduce", 256 * MIB, 8)
    assert priced.latency[0, 0] == pytest.approx(LAUNCH + seconds, rel=1e-12)
    assert priced.duration[0, 0] == pytest.approx(LAUNCH + seconds + busy, rel=1e-12)
    assert priced.joules[0, 0] == pytest.approx(wire * 8 * 2e-12)


def test_a_mapping_takes_direct_kernels():
    made = machine({**BLOCK, "direct": 0.5}, mapping={"all_reduce": "direct"})
    priced = demand(made, reduce(128 * KIB, 8))
    assert priced.latency[0, 0] == pytest.approx(LAUNCH + 4 * HOP, rel=1e-12)
    bare = device(
        links={"net": {k: v for k, v in link().items() if k != "collectives"}},
        count=8,
        mapping={"all_reduce": "direct"},
    )
    with pytest.raises(UncoveredError, match="no `collectives` block"):
        demand(bare, reduce(128 * KIB, 8))


def test_at_best_a_call_is_its_fewest_bytes_at_the_peak():
    for block, share in ((BLOCK, 7 / 4), (HOPPER, 9 / 8)):
        priced = demand(machine(block), reduce(64 * MIB, 8), ideal=True)
        assert priced.duration[0, 0] == pytest.approx(share * 64 * MIB / RATE, rel=1e-12)


def test_points_of_a_link_are_priced_one_by_one():
    made = machine()
    rates = np.array([100e9, 300e9, 900e9])
    together = demand(made.with_values({"net.bandwidth": rates}), reduce(MIB, 8)).duration[0]
    each = [
        demand(made.with_values({"net.bandwidth": float(r)}), reduce(MIB, 8)).duration[0, 0]
        for r in rates
    ]
    np.testing.assert_allclose(together, each, rtol=1e-13)


# -- laws ------------------------------------------------------------------------------------

KINDS = st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"])
SIZES = st.floats(0.0, 9.5).map(lambda x: 10.0**x)
COUNTS = st.integers(2, 16)
NETWORKS = st.sampled_from([None, network(), network(8, 400e9, 1e-6)])
BLOCKS = st.sampled_from([BLOCK, HOPPER, {**BLOCK, "direct": 0.5}])


def total(kind, payload, p, block, net, **more):
    made = caller(block=block, network=net, direct="direct" in block, **more)
    return made.cost(kind, np.array([payload]), np.array([float(p)])).total.item()


@given(KINDS, SIZES, COUNTS, BLOCKS, NETWORKS, st.floats(1.0, 10.0))
def test_a_faster_link_or_a_shorter_step_is_never_slower(kind, payload, p, block, net, factor):
    before = total(kind, payload, p, block, net)
    assert total(kind, payload, p, block, net, rate=factor * RATE) <= before * (1 + 1e-12)
    quick = {"latency": HOP / factor, "collectives.call": 6e-6 / factor}
    assert total(kind, payload, p, block, net, values=quick) <= before * (1 + 1e-12)
    if net is not None:
        better = Network(net.local, net.rate * factor, net.latency / factor)
        assert total(kind, payload, p, block, better) <= before * (1 + 1e-12)


@given(KINDS, SIZES, COUNTS, BLOCKS, NETWORKS)
def test_no_call_is_faster_than_its_fewest_bytes(kind, payload, p, block, net):
    made = caller(block=block, network=net, direct="direct" in block)
    sizes, counts = np.array([payload]), np.array([float(p)])
    wire, out = made.least_bytes(kind, sizes, counts)
    call = made.cost(kind, sizes, counts)
    assert call.total.item() > wire.item() / RATE
    assert call.wire_bytes.item() >= wire.item() * (1 - 1e-12)
    if net is not None:
        assert call.net_bytes.item() >= out.item() * (1 - 1e-12)
        assert call.net_busy.item() >= out.item() * net.local / net.rate * (1 - 1e-12)


@given(st.lists(st.tuples(SIZES, COUNTS), min_size=1, max_size=20), KINDS, BLOCKS, NETWORKS)
def test_arrays_cost_what_each_call_costs(calls, kind, block, net):
    made = caller(block=block, network=net)
    sizes = np.array([s for s, _ in calls])
    counts = np.array([float(p) for _, p in calls])
    many = made.cost(kind, sizes, counts)
    each = [made.cost(kind, sizes[i : i + 1], counts[i : i + 1]).total for i in range(len(calls))]
    np.testing.assert_allclose(many.total, np.concatenate(each), rtol=1e-13)


def test_a_link_without_the_block_can_not_call():
    with pytest.raises(UncoveredError, match="no `collectives` block"):
        Caller(
            Link(ends=("a", "a"), bandwidth="1 GB/s"), lambda _, default: default, np.asarray(1e9)
        )
