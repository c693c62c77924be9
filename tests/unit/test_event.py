"""The event kernel against schedules that are worked out by hand."""

import numpy as np
import pytest

from opbyte.sim.kernels.fluid import fair_speeds, run_blocks

NONE = np.zeros((0, 2), np.int64)


def run(latency, work, share, unit, *, edges=NONE, blocks=None, order=None, stage=None, micro=1):
    """Run operators; by default all of them in one block on one stage."""
    latency, work = np.array(latency, float), np.array(work, float)
    share = np.array(share, float).reshape(len(work), -1)
    ops = len(work)
    edges = np.array(edges, np.int64).reshape(-1, 2)
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    blocks = np.array([0, ops] if blocks is None else blocks, np.int64)
    order = np.arange(len(blocks) - 1) if order is None else np.array(order)
    stage = np.zeros(len(blocks) - 1, np.int64) if stage is None else np.array(stage)
    return run_blocks(
        latency,
        work,
        share,
        np.array(unit, np.int64),
        blocks,
        np.searchsorted(edges[:, 0], np.arange(ops + 1)).astype(np.int64),
        np.ascontiguousarray(edges[:, 1]),
        np.bincount(edges[:, 1], minlength=ops).astype(np.int64),
        order.astype(np.int64),
        stage.astype(np.int64),
        micro,
    )


def test_a_unit_serves_in_order_of_arrival():
    # Three independent operators on one unit, each 1 + work seconds.
    _, start, end, _ = run([1, 1, 1], [2, 3, 4], np.zeros((3, 1)), [0, 0, 0])
    np.testing.assert_allclose(start, [0, 3, 7])
    np.testing.assert_allclose(end, [3, 7, 12])


def test_who_arrives_later_waits_even_if_it_is_short():
    # Unit 0 frees operator 2 at t = 2; unit 1 is busy until 5, and 3 (ready at 3) comes after 2.
    _, start, _, _ = run(
        [0] * 5, [2, 3, 1, 0.1, 5], np.zeros((5, 1)), [0, 2, 1, 1, 1], edges=[(0, 2), (1, 3)]
    )
    np.testing.assert_allclose(start[[4, 2, 3]], [0, 5, 6])


def test_two_streams_share_a_port_in_equal_relative_speed():
    # Shares 0.9 and 0.6 ask for 1.5: both run at 2/3. The first (2 s alone) ends at 3; the second
    # has done 2 of its 4 seconds and finishes alone at 5.
    _, _, end, peak = run([0, 0], [2, 4], [[0.9], [0.6]], [0, 1])
    np.testing.assert_allclose(end, [3, 5])
    np.testing.assert_allclose(peak, [1.0])


def test_a_stream_that_fits_beside_the_others_is_not_slowed():
    # 0.5 + 0.4 of one port leaves room; the peak share is their sum.
    _, _, end, peak = run([0, 0], [2, 4], [[0.5], [0.4]], [0, 1])
    np.testing.assert_allclose(end, [2, 4])
    np.testing.assert_allclose(peak, [0.9])


def test_a_stream_stopped_by_another_port_leaves_its_part_to_others():
    # a and b fill port 0 (speed 1/2 each); c needs port 1 and half of port 0's rest: none is left,
    # so c rises only as long as port 0 does: 1 / (1 + 1 + 0.5) = 0.4 for all.
    speed = np.zeros(3)
    share = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    fair_speeds(share, np.arange(3), 3, speed)
    np.testing.assert_allclose(speed, 0.4)
    # Without the link to port 0, c is alone on its port.
    fair_speeds(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.arange(3), 3, speed)
    np.testing.assert_allclose(speed, [0.5, 0.5, 1.0])


def test_latency_takes_nobodys_bandwidth():
    # The second streams alone for 3 s while the first waits, then both share: 1 s each at half.
    _, _, end, _ = run([3, 0], [1, 4], [[1.0], [1.0]], [0, 1])
    np.testing.assert_allclose(end, [5, 5])


def test_blocks_run_one_after_the_other():
    ready, _, end, _ = run([0, 0], [2, 3], np.zeros((2, 1)), [0, 1], blocks=[0, 1, 2], order=[1, 0])
    np.testing.assert_allclose(ready, [0, 3])
    np.testing.assert_allclose(end, [3, 5])


@pytest.mark.parametrize(("stages", "micro"), [(2, 2), (4, 3), (8, 8), (3, 1)])
@pytest.mark.parametrize("chain", [1, 3])
def test_equal_stages_take_stages_plus_microbatches_less_one(stages, micro, chain):
    # Chains of operators in each stage: a stage must finish one microbatch before the next, or
    # the first stage delivers all of them at its very end and the pipeline is none.
    ops = stages * chain
    edges = [(i, i + 1) for i in range(ops - 1) if (i + 1) % chain]
    _, _, end, _ = run(
        [0.25] * ops,
        [0.75] * ops,
        np.zeros((ops, 1)),
        [0] * ops,
        edges=edges,
        blocks=list(range(0, ops + 1, chain)),
        stage=list(range(stages)),
        micro=micro,
    )
    assert end.max() == pytest.approx((stages + micro - 1) * chain)


def test_an_uneven_pipeline_by_hand():
    # Stages of 1 and 3 seconds, three microbatches: the second stage runs from 1 to 10.
    _, start, end, _ = run(
        [0, 0], [1, 3], np.zeros((2, 1)), [0, 0], blocks=[0, 1, 2], stage=[0, 1], micro=3
    )
    np.testing.assert_allclose(start, [0, 1, 1, 4, 2, 7])
    np.testing.assert_allclose(end, [1, 4, 2, 7, 3, 10])
