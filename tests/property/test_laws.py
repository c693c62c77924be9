"""The seven laws of the design, over random machines and random work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import machines, tables

from opbyte.core.errors import CapacityError, UncoveredError
from opbyte.core.ops import BYTE_COLUMNS, CLASS_OF, OpTable, OpTableBuilder
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.hw_models.price import Demand, price
from opbyte.sim.analytic import analytic_step
from opbyte.sim.engine import run_dag
from opbyte.sim.event import event_step, replay
from opbyte.sim.place import Placer
from opbyte.sim.simulate import simulate

ROUNDING = 1e-9


def priced(machine: Machine, table: OpTable, *, ideal: bool = False) -> Demand:
    return price(Placer(machine, machine.mapping()).place(table), machine, ideal=ideal)


# -- 1: the fidelities are ordered ---------------------------------------------------------


@given(machines(), tables())
def test_bound_is_at_most_analytic_is_at_most_event(machine: Machine, table: OpTable) -> None:
    bound = analytic_step(priced(machine, table, ideal=True)).seconds[0]
    demand = priced(machine, table)
    analytic = analytic_step(demand).seconds[0]
    event = event_step(demand)[0].seconds[0]
    assert 0 < bound <= analytic * (1 + ROUNDING)
    assert analytic <= event * (1 + ROUNDING)


@given(machines(), tables(chain=True))
def test_a_dependency_chain_takes_the_same_analytically_and_by_events(
    machine: Machine, table: OpTable
) -> None:
    demand = priced(machine, table)
    event = event_step(demand)[0].seconds[0]
    assert event == pytest.approx(analytic_step(demand).seconds[0], rel=ROUNDING)


@given(machines(), st.lists(st.integers(1, 2048), min_size=1, max_size=6))
def test_one_resource_that_is_never_idle_takes_the_same(machine: Machine, sizes: list[int]) -> None:
    builder = OpTableBuilder()
    with builder.block("independent") as block:
        for i, n in enumerate(sizes):
            block.add(f"g{i}", "gemm", dtype="bf16", m=n, n=n, k=n, weight=2.0 * n * n)
    builder.order = [0]
    demand = priced(machine, builder.build())
    event = event_step(demand)[0].seconds[0]
    assert event == pytest.approx(analytic_step(demand).seconds[0], rel=ROUNDING)
    assert event == pytest.approx(demand.duration.sum(), rel=ROUNDING)


@given(machines(), tables(stages=3), st.integers(1, 4))
def test_pipelines_keep_the_order_too(machine: Machine, table: OpTable, micro: int) -> None:
    demand = priced(machine, table)
    analytic = analytic_step(demand, micro)
    event, _ = event_step(demand, micro)
    assert analytic.seconds[0] <= event.seconds[0] * (1 + ROUNDING)
    if micro == 1:
        assert analytic_step(demand).seconds[0] == analytic.seconds[0]


@settings(max_examples=40)
@given(machines(), tables(), st.integers(1, 3))
def test_the_compiled_kernel_equals_its_readable_twin(
    machine: Machine, table: OpTable, micro: int
) -> None:
    demand = priced(machine, table)
    _, timeline = event_step(demand, micro)
    np.testing.assert_allclose(timeline.end, run_dag(demand, micro), rtol=1e-9, atol=0)


# -- 2: bytes are conserved ----------------------------------------------------------------


@given(machines(), tables())
def test_compulsory_bytes_equal_the_tables_and_no_cause_is_negative(
    machine: Machine, table: OpTable
) -> None:
    demand = priced(machine, table)
    for column in BYTE_COLUMNS:
        moved = demand.moved[column, "compulsory"]
        assert moved.sum() == pytest.approx(table[column].sum(), rel=1e-12)
    assert all((v >= 0).all() for v in demand.moved.values())


@given(machines(), tables())
def test_without_fusion_activations_move_as_the_closed_form_says(
    machine: Machine, table: OpTable
) -> None:
    mapping = machine.mapping().model_copy(update={"fusion": "none"})
    demand = price(Placer(machine, mapping).place(table), machine)
    runs = demand.placed.repeats[:, None]
    moved = (demand.moved["activation", "compulsory"] * runs).sum()
    assert moved == pytest.approx(table.compulsory_bytes()["activation"][0], rel=1e-12)
    assert not demand.moved["internal", "compulsory"].any()


@given(machines(), tables())
def test_resources_carry_what_the_placement_says(machine: Machine, table: OpTable) -> None:
    demand = priced(machine, table)
    placed = demand.placed
    mapping = machine.mapping()
    owned = np.bincount(placed.op_of[placed.collective_link < 0], minlength=len(placed)) > 0
    for tier, share in mapping.place["weight"].in_.items():
        port = f"{tier}.phy"
        if port not in placed.resources or tier == "dev.hbm":
            continue
        expected = sum(v for (c, _), v in demand.moved.items() if CLASS_OF.get(c) == "weight")
        carried = demand.bytes[:, placed.resources.index(port)]
        assert carried[owned].sum() == pytest.approx(share * expected[owned].sum(), rel=1e-9)


# -- 3: nothing exceeds its peak -----------------------------------------------------------


@given(machines(), tables(), st.integers(1, 3))
def test_grants_stay_below_the_peak_and_units_serve_one(
    machine: Machine, table: OpTable, micro: int
) -> None:
    demand = priced(machine, table)
    _, line = event_step(demand, micro)
    assert (line.peak_share <= 1 + 1e-9).all()
    for unit in range(len(demand.placed.units)):
        mine = np.flatnonzero(demand.placed.unit_of[line.op] == unit)
        mine = mine[np.lexsort((line.end[mine], line.start[mine]))]
        assert (line.start[mine][1:] >= line.end[mine][:-1] - 1e-15).all()
    assert (line.start >= line.ready).all()
    assert (line.end >= line.start).all()


# -- 4: better hardware does not hurt ------------------------------------------------------

RATES = ("bandwidth", "peak.bf16", "vector", "clock", "kernel.matrix", "kernel.l2", "dev.power")
RATES += ("net.efficiency", "collectives.ll", "ll128", "own_copy", "nvls", "direct")
TIMES = ("latency", "kernel.fill", "kernel.epilogue", "kernel.split")
TIMES += (".call", ".crowd", "_start", "_step")


@given(machines(), tables(), st.data())
def test_faster_parts_delay_no_completion_in_a_replayed_order(
    machine: Machine, table: OpTable, data: st.DataObject
) -> None:
    demand = priced(machine, table)
    _, line = event_step(demand)
    before = replay(line, demand)
    changed = {}
    for path, value in machine.values.items():
        if path.endswith(RATES) and data.draw(st.booleans()):
            changed[path] = value * data.draw(st.floats(1.0, 10.0))
        if path.endswith(TIMES) or ".launch." in path:
            changed[path] = value * data.draw(st.floats(0.0, 1.0))
    after = replay(line, priced(machine.with_values(changed), table))
    assert (after <= before * (1 + ROUNDING)).all()


@given(machines(), tables(), st.floats(1.0, 100.0))
def test_more_capacity_never_raises_the_analytic_time(
    machine: Machine, table: OpTable, factor: float
) -> None:
    more = {p: v * factor for p, v in machine.values.items() if p.endswith("capacity")}
    small = analytic_step(priced(machine, table)).seconds[0]
    large = analytic_step(priced(machine.with_values(more), table)).seconds[0]
    assert large <= small * (1 + ROUNDING)


def test_anomaly_a_wider_tile_can_be_slower() -> None:
    small = simulate("mi210", {"kind": "gemm", "m": 4096, "n": 4100, "k": 4096})
    wide = load_machine("mi210").replace({"gpu.sm.tile": [128, 256, 64]})
    assert simulate(wide, {"kind": "gemm", "m": 4096, "n": 4100, "k": 4096}).seconds > small.seconds


def test_anomaly_more_chips_can_be_slower() -> None:
    machine = load_machine("sn40l-16").replace({"p2p.latency": "30 us", "p2p.topology": "ring"})
    work = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 128}
    spread = simulate(machine, work).seconds
    assert simulate(machine, work, mapping=_with_tp(machine, 2)).seconds < spread


def _with_tp(machine: Machine, tp: int) -> dict[str, object]:
    mapping = machine.mapping().model_dump(by_alias=True)
    mapping["parallel"]["all"]["tp"] = tp
    return mapping


def test_anomaly_first_come_first_served_can_punish_a_shorter_operator() -> None:
    # Graham 1969: when the unit decides anew, an operator that ends earlier lets a long one go
    # first, and the critical chain behind the other one waits.
    def end(first: float) -> float:
        latency = np.zeros(5)
        work = np.array([first, 2.0, 10.0, 1.0, 10.0])
        unit = np.array([0, 1, 2, 2, 3])
        from opbyte.sim.kernels.fluid import run_blocks

        start = np.array([0, 1, 2, 2, 3, 3])
        to = np.array([2, 3, 4])
        waits = np.array([0, 0, 1, 1, 1])
        first_op = np.array([0, 5])
        zero = np.zeros(1, np.int64)
        _, _, ends, _ = run_blocks(
            latency, work, np.zeros((5, 1)), unit, first_op, start, to, waits, zero, zero, 1
        )
        return float(ends.max())

    assert end(3.0) < end(1.0)


# -- 5 (bit-identical sweeps) is tested with the sweeps ------------------------------------
# -- 6: what does not fit is refused by name -----------------------------------------------


@settings(max_examples=25)
@given(st.floats(1.0, 14.0))
def test_a_model_that_does_not_fit_is_refused_with_sizes(gigabytes: float) -> None:
    machine = load_machine("a100-sxm-80gb").replace({"gpu.hbm.capacity": f"{gigabytes} GB"})
    work = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 128}
    with pytest.raises(CapacityError) as caught:
        simulate(machine, work)
    error = caught.value
    assert error.tier == "gpu.hbm"
    assert error.available_bytes == pytest.approx(gigabytes * 1e9)
    assert error.needed_bytes > 16e9
    assert "weight" in error.tensors


# -- 7: a price is finite and positive, or refused -----------------------------------------


@given(machines(), tables())
def test_prices_are_finite_and_positive(machine: Machine, table: OpTable) -> None:
    demand = priced(machine, table)
    assert np.isfinite(demand.duration).all()
    assert (demand.duration > 0).all()
    assert np.isfinite(demand.joules).all()


@pytest.mark.parametrize(
    ("change", "work", "word"),
    [
        ({}, {"kind": "gemm", "m": 1, "n": 1, "k": 1, "dtype": "fp8"}, "fp8"),
        ({"gpu.hbm.phy.bandwidth": None}, {"kind": "gemm", "m": 1, "n": 1, "k": 1}, "bandwidth"),
        ({"gpu.sm.launch": {"other": "1 us"}}, {"kind": "gemm", "m": 1, "n": 1, "k": 1}, "launch"),
        (
            {"gpu.sm.kind": "analog_array", "gpu.sm.kernel": None},
            {"kind": "gemm", "m": 1, "n": 1, "k": 1},
            "analog_array",
        ),
    ],
)
def test_what_no_model_covers_is_refused_by_name(
    change: dict[str, object], work: dict[str, object], word: str
) -> None:
    machine = load_machine("a100-sxm-80gb").replace(change)
    with pytest.raises(UncoveredError, match=word):
        simulate(machine, work)


@given(machines(), tables())
def test_energy_is_the_sum_over_operators(machine: Machine, table: OpTable) -> None:
    demand = priced(machine, table)
    assume(len(demand.placed) > 1)
    assert (demand.joules >= 0).all()
    assert demand.joules.sum() > 0
