"""Collectives: bytes on the wire and latency steps against hand-made schedules."""

import numpy as np
import pytest
from handmade import HBM_LATENCY, LAUNCH, demand, device, gemm

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.link.collectives import collective_cost


def cost(kind, topology, payload, participants):
    made = collective_cost(
        kind, topology, np.array([float(payload)]), np.array([float(participants)])
    )
    return made.steps.item(), made.wire_bytes.item()


def ring_all_to_all_bytes(payload, participants):
    """Return what one link carries when every chunk is passed on from neighbour to neighbour."""
    carried = [0.0] * participants
    for source in range(participants):
        for target in range(participants):
            at = source
            while at != target:
                carried[at] += payload / participants
                at = (at + 1) % participants
    assert max(carried) == pytest.approx(min(carried))
    return max(carried)


@pytest.mark.parametrize("p", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("topology", ["ring", "bus"])
def test_a_ring_passes_chunks_on(topology, p):
    payload = 1e6
    assert cost("all_reduce", topology, payload, p) == pytest.approx(
        (2 * (p - 1), 2 * payload * (p - 1) / p)
    )
    for kind in ("all_gather", "reduce_scatter"):
        assert cost(kind, topology, payload, p) == pytest.approx((p - 1, payload * (p - 1) / p))


@pytest.mark.parametrize("p", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("topology", ["switch", "all-to-all"])
def test_where_all_reach_all_the_bytes_are_the_same_in_few_steps(topology, p):
    payload = 1e6
    assert cost("all_reduce", topology, payload, p) == pytest.approx((2, 2 * payload * (p - 1) / p))
    for kind in ("all_gather", "reduce_scatter", "all_to_all"):
        assert cost(kind, topology, payload, p) == pytest.approx((1, payload * (p - 1) / p))


@pytest.mark.parametrize("p", [2, 3, 4, 8, 16])
def test_all_to_all_on_a_ring_is_passed_on_by_those_between(p):
    steps, wire = cost("all_to_all", "ring", 1e6, p)
    assert steps == p - 1
    assert wire == pytest.approx(ring_all_to_all_bytes(1e6, p))


def test_all_to_all_over_a_bus_crosses_it_once():
    assert cost("all_to_all", "bus", 1e6, 8) == pytest.approx((7, 1e6 * 7 / 8))


@pytest.mark.parametrize("topology", ["ring", "switch", "bus", "all-to-all", "point-to-point"])
def test_send_is_one_step_of_everything(topology):
    assert cost("send", topology, 12345, 2) == (1, 12345)


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
@pytest.mark.parametrize("topology", ["ring", "switch", "bus", "all-to-all"])
def test_alone_there_is_nothing_to_send(kind, topology):
    assert cost(kind, topology, 1e6, 1) == (0, 0)


def test_two_devices_need_no_topology():
    assert cost("all_reduce", "point-to-point", 1e6, 2) == pytest.approx((2, 1e6))
    with pytest.raises(UncoveredError, match=r"point-to-point.*all_reduce of 3 devices"):
        cost("all_reduce", "point-to-point", 1e6, 3)


def test_an_unknown_collective_is_named():
    with pytest.raises(
        UncoveredError, match=r"no collective is called 'gossip'. Known: all_reduce"
    ):
        cost("gossip", "ring", 1.0, 2)


def test_arrays_over_points_cost_what_each_point_costs():
    payload, p = np.array([1e3, 2e6, 5e5]), np.array([2.0, 5.0, 8.0])
    for kind in ("all_reduce", "all_to_all", "send"):
        many = collective_cost(kind, "ring", payload, p)
        each = [cost(kind, "ring", s, n) for s, n in zip(payload, p, strict=True)]
        np.testing.assert_allclose(many.steps, [e[0] for e in each], rtol=1e-15)
        np.testing.assert_allclose(many.wire_bytes, [e[1] for e in each], rtol=1e-15)


# -- inside kernels --------------------------------------------------------------------------


def reduced(kind, fusion):
    links = {
        "net": {
            "ends": ["dev", "dev"],
            "topology": "ring",
            "bandwidth": "100 GB/s",
            "efficiency": 0.5,
            "latency": "2 us",
            "energy": "5 pJ/bit",
        }
    }
    machine = device(unit={"kind": kind}, links=links, count=4, mapping={"fusion": fusion})
    payload = 4e6
    return demand(
        machine,
        gemm(8, 64, 64),
        ("ar", "all_reduce", {"payload": payload, "participants": 4, "out_bytes": payload}),
    )


WIRE, STEPS = 2 * 4e6 * 3 / 4 / (0.5 * 100e9), 6 * 2e-6


def test_a_collective_on_its_own_is_a_kernel_with_steps_and_wire():
    for kind in ("gpu", "dataflow"):
        priced = reduced(kind, "none")
        assert priced.placed.unit_of.tolist() == [0, -1]
        assert priced.duration[1, 0] == pytest.approx(LAUNCH + STEPS + WIRE, rel=1e-12)


def test_inside_a_dataflow_kernel_a_collective_runs_beside_the_stream():
    priced = reduced("dataflow", "layer")
    assert len(priced.placed) == 1
    assert priced.latency[0, 0] == pytest.approx(LAUNCH + HBM_LATENCY, rel=1e-12)
    assert priced.floor[0, 0] == pytest.approx(STEPS, rel=1e-12)
    assert priced.duration[0, 0] == pytest.approx(
        LAUNCH + HBM_LATENCY + max(STEPS, WIRE), rel=1e-12
    )


def test_inside_another_fused_kernel_its_steps_come_first():
    priced = reduced("gpu", "layer")
    assert priced.duration[0, 0] == pytest.approx(LAUNCH + HBM_LATENCY + STEPS + WIRE, rel=1e-12)
