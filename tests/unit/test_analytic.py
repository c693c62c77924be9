"""Analytic time against hand-made grids, and events against it."""

import itertools

import numpy as np
import pytest
from handmade import HBM_LATENCY, LAUNCH, device

from opbyte.core.ops import OpTableBuilder
from opbyte.hw_models.price import price
from opbyte.sim.analytic import analytic_step
from opbyte.sim.event import event_step
from opbyte.sim.place import Placer

VECTOR = 5e12
OVERHEAD = LAUNCH + HBM_LATENCY


def stages(chains, order=None):
    """Return a table with one chain of vector operators for each stage, given in seconds."""
    builder = OpTableBuilder()
    for s, chain in enumerate(chains):
        with builder.block(f"stage{s}", s) as block:
            for i, seconds in enumerate(chain):
                block.add(
                    f"op{i}",
                    "norm",
                    dtype="bf16",
                    flops=(seconds - OVERHEAD) * VECTOR,
                    inputs=[i - 1 + sum(map(len, chains[:s]))] if i else [],
                    in_bytes=0.0 if i else 1.0,
                    out_bytes=1.0,
                )
    builder.order = list(range(len(chains))) if order is None else order
    return builder.build()


def priced(table, machine=None, **options):
    machine = machine or device()
    return price(Placer(machine, machine.mapping()).place(table), machine, **options)


def grid(stage_seconds, microbatches):
    """Return the end of a pipeline: a cell waits for its left and its upper neighbour."""
    ends = np.zeros((microbatches + 1, len(stage_seconds) + 1))
    for i, j in itertools.product(range(microbatches), range(len(stage_seconds))):
        ends[i + 1, j + 1] = max(ends[i, j + 1], ends[i + 1, j]) + stage_seconds[j]
    return ends[-1, -1]


CHAINS = [
    [[1.0]],
    [[1.0], [1.0]],
    [[1.0], [3.0], [0.5]],
    [[2.0, 1.0], [0.5, 0.25], [1.5]],
    [[4.0], [1.0], [1.0], [1.0]],
    [[1.0], [1.0], [1.0, 3.0]],
]


@pytest.mark.parametrize("chains", CHAINS, ids=str)
@pytest.mark.parametrize("microbatches", [1, 2, 5, 16])
def test_a_pipeline_takes_what_the_grid_takes(chains, microbatches):
    demand = priced(stages(chains))
    by_hand = grid([sum(c) for c in chains], microbatches)
    assert analytic_step(demand, microbatches).seconds[0] == pytest.approx(by_hand, rel=1e-9)
    event, _ = event_step(demand, microbatches)
    assert event.seconds[0] == pytest.approx(by_hand, rel=1e-9)


def test_the_busiest_stage_decides_how_busy_a_unit_is():
    step = analytic_step(priced(stages([[1.0], [3.0]])), 4)
    assert step.busy["dev.core"][0] == pytest.approx(12)
    assert step.path[0] == pytest.approx(4)
    assert step.seconds[0] == pytest.approx(1 + 12)


def test_blocks_that_repeat_add_up():
    table = stages([[1.0, 2.0], [0.5]], order=[0, 0, 1, 0])
    table = type(table)(**{**vars(table), "stage": np.zeros(2, np.int64)})
    demand = priced(table)
    assert analytic_step(demand).seconds[0] == pytest.approx(3 * 3.0 + 0.5, rel=1e-9)
    assert event_step(demand)[0].seconds[0] == pytest.approx(9.5, rel=1e-9)


def diamond(left, right):
    """Return a, then two branches on two units, then d; in seconds."""
    builder = OpTableBuilder()
    with builder.block("b") as block:

        def op(name, seconds, inputs, label):
            return block.add(
                name,
                "norm",
                dtype="bf16",
                flops=(seconds - OVERHEAD) * VECTOR,
                inputs=inputs,
                labels=[label],
                in_bytes=0.0 if inputs else 1.0,
                out_bytes=1.0,
            )

        a = op("a", 1.0, [], "one")
        b = op("b", left, [a], "one")
        c = op("c", right, [a], "two")
        op("d", 1.0, [b, c], "one")
    builder.order = [0]
    return builder.build()


def two_units():
    """Return a device whose operators labelled `two` have a unit of their own."""
    document = device().document.data
    rules = [{"ops": "two", "unit": "dev.other"}, {"ops": "all", "unit": "dev.core"}]
    return device().replace(
        {
            "parts.dev.units.other": document["parts"]["dev"]["units"]["core"],
            "mappings.default.run": rules,
        }
    )


@pytest.mark.parametrize(("left", "right"), [(2.0, 3.0), (3.0, 2.0), (1.0, 1.0)])
def test_branches_on_one_unit_add_up(left, right):
    demand = priced(diamond(left, right))
    step = analytic_step(demand)
    assert step.path[0] == pytest.approx(2 + max(left, right))
    assert step.seconds[0] == pytest.approx(2 + left + right)
    assert event_step(demand)[0].seconds[0] == pytest.approx(2 + left + right, rel=1e-9)


@pytest.mark.parametrize(("left", "right"), [(2.0, 3.0), (3.0, 2.0)])
def test_branches_on_two_units_run_side_by_side(left, right):
    demand = priced(diamond(left, right), two_units())
    assert analytic_step(demand).seconds[0] == pytest.approx(2 + max(left, right))
    assert event_step(demand)[0].seconds[0] == pytest.approx(2 + max(left, right), rel=1e-9)


def test_two_units_that_stream_from_one_port_share_it():
    # Two independent reads of 1.5 GB over 1.5 TB/s: 1 ms each alone, together the port needs 2 ms.
    builder = OpTableBuilder()
    with builder.block("b") as block:
        for label in ("one", "two"):
            block.add(label, "norm", dtype="bf16", flops=1.0, labels=[label], kv_read=1.5e9)
    builder.order = [0]
    demand = priced(builder.build(), two_units())
    assert demand.duration[:, 0] == pytest.approx([OVERHEAD + 1e-3] * 2)
    step = analytic_step(demand)
    assert step.path[0] == pytest.approx(OVERHEAD + 1e-3)
    assert step.seconds[0] == pytest.approx(2e-3)
    event, line = event_step(demand)
    assert event.seconds[0] == pytest.approx(OVERHEAD + 2e-3, rel=1e-9)
    np.testing.assert_allclose(line.end, OVERHEAD + 2e-3, rtol=1e-9)
    assert line.peak_share.max() == pytest.approx(1.0)


def test_points_are_priced_as_if_alone():
    machine = device()
    rates = np.array([1e12, 2e12, 8e12])
    many = analytic_step(
        priced(stages([[1.0], [3.0]]), machine.with_values({"dev.core.vector": rates})), 3
    )
    for i, rate in enumerate(rates):
        alone = analytic_step(
            priced(stages([[1.0], [3.0]]), machine.with_values({"dev.core.vector": float(rate)})), 3
        )
        assert many.seconds[i] == alone.seconds[0]
        assert many.path[i] == alone.path[0]
        assert many.busy["dev.core"][i] == alone.busy["dev.core"][0]
