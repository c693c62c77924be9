"""Mapping policies: who runs what, and what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.ops import BYTE_COLUMNS, OpTableBuilder, Spread
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.price import price
from opbyte.sim.analytic import analytic_step
from opbyte.sim.engine import run_dag
from opbyte.sim.event import event_step
from opbyte.sim.place import Placer
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.simulate import simulate
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.phases import Mixed

FAR, NEAR = "dev.far", "dev.near"
RATES = {"far": (10.0, 100.0), "near": (1.0, 400.0)}  # TFLOP/s, GB/s


def machine(*, rule="partition", rates=None, serial=False, **run):
    """Return two units at two ports of one memory, and a mapping with one rule for experts."""
    units, ports = {}, {}
    for name, (peak, rate) in (rates or RATES).items():
        ports[name] = {"bandwidth": f"{rate} GB/s", "energy": "1 pJ/bit"}
        units[name] = {
            "kind": "matrix", "at": f"hbm.{name}", "peak": {"bf16": f"{peak} TFLOP/s"},
            "vector": "1 TFLOP/s", "launch": {"hardware": "0 s"},
            "energy": {"bf16": "1 pJ/FLOP", "vector": "1 pJ/FLOP"},
        }  # fmt: skip
    sharing = {"rule": rule, **({"partitions": 4} if rule == "partition" else {})}
    rules = [{"ops": ["expert", "swing"], **run}] if run else []
    return load_machine({
        "name": "pair",
        "parts": {"dev": {
            "memory": {"hbm": {"capacity": "64 GB", "ports": ports, "sharing": sharing}},
            "units": units,
        }},
        "mappings": {"default": {
            "run": [*rules, {"ops": "all", "unit": FAR}], "serial": serial,
        }},
    })  # fmt: skip


def split(by, **more):
    return {"split": {"between": [FAR, NEAR], "by": by, **more}}


def experts(counts, width=512, hidden=1024):
    """Return a table with one mixture of experts whose experts have so many tokens."""
    counts = np.asarray(counts, float).reshape(len(counts), -1)
    picks, hit = counts.sum(axis=0), np.maximum((counts > 0).sum(axis=0), 1e-9)
    spread = Spread(counts, picks, width)
    builder = OpTableBuilder()
    with builder.block("layer") as block:
        x = block.add("x", "norm", dtype="bf16", flops=1.0, in_bytes=1e3, out_bytes=1e3)
        up = block.add(
            "up", "grouped_gemm", dtype="bf16", inputs=[x], labels=["expert"], m=picks / hit,
            n=width, k=hidden, groups=hit, flops=2.0 * width * hidden * picks,
            expert=2.0 * width * hidden * hit, out_bytes=2.0 * picks * width,
        )  # fmt: skip
        act = block.add(
            "swing", "activation", dtype="bf16", inputs=[up], flops=picks * width,
            out_bytes=2.0 * picks * width,
        )  # fmt: skip
        down = block.add(
            "down", "grouped_gemm", dtype="bf16", inputs=[act], labels=["expert"], m=picks / hit,
            n=hidden, k=width, groups=hit, flops=2.0 * width * hidden * picks,
            expert=2.0 * width * hidden * hit, out_bytes=2.0 * picks * hidden,
        )  # fmt: skip
        block.add("y", "norm", dtype="bf16", inputs=[down], flops=1.0, out_bytes=1e3)
        block.spread(up, spread)
        block.spread(down, spread)
    builder.order = [0]
    return builder.build()


def products(*rows):
    """Return independent products of m rows with (n, k) matrices."""
    builder = OpTableBuilder()
    with builder.block("layer") as block:
        for i, (m, n, k) in enumerate(rows):
            tokens = np.atleast_1d(np.asarray(m, float))
            block.add(
                f"g{i}", "gemm", dtype="bf16", labels=["expert"], m=tokens, n=n, k=k,
                weight=2.0 * n * k, in_bytes=2.0 * tokens * k, out_bytes=2.0 * tokens * n,
            )  # fmt: skip
    builder.order = [0]
    return builder.build()


def demand(hardware, table, *, ideal=False):
    return price(Placer(hardware, hardware.mapping()).place(table), hardware, ideal=ideal)


def seconds(hardware, table):
    return analytic_step(demand(hardware, table)).seconds


def ran_on(priced):
    """Return the unit of each operator that runs, at one point."""
    placed = priced.placed
    return {
        placed.names[op].split("@")[0]: placed.units[placed.unit_of[op]]
        for op in range(len(placed)) if placed.runs[op].all()
    }  # fmt: skip


# -- which unit ----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["fastest", "op_per_byte"])
def test_few_operations_a_byte_run_near_memory_and_many_far_from_it(by):
    # Rooflines cross where 1 TFLOP/s and 100 GB/s meet: 10 operations per byte.
    table = products((1, 256, 256), (9, 1024, 1024), (12, 1024, 1024), (256, 256, 256))
    units = ran_on(demand(machine(**split(by)), table))
    assert units == {"g0": NEAR, "g1": NEAR, "g2": FAR, "g3": FAR}


def test_a_threshold_decides_instead_of_the_rooflines():
    table = products((4, 1024, 1024), (64, 1024, 1024))
    low = ran_on(demand(machine(**split("op_per_byte", threshold=2.0)), table))
    high = ran_on(demand(machine(**split("op_per_byte", threshold=200.0)), table))
    assert low == {"g0": FAR, "g1": FAR}
    assert high == {"g0": NEAR, "g1": NEAR}


def test_the_choice_is_made_at_every_design_point():
    table = products(([1.0, 64.0], 1024, 1024))
    priced = demand(machine(**split("fastest")), table)
    assert priced.placed.runs.tolist() == [[0, 1], [1, 0]]
    each = [demand(machine(**split("fastest")), products((m, 1024, 1024))) for m in (1, 64)]
    np.testing.assert_allclose(
        analytic_step(priced).seconds, [analytic_step(d).seconds[0] for d in each], rtol=1e-12
    )
    faster = machine(**split("fastest")).with_values({"dev.near.peak.bf16": np.array([1e12, 1e14])})
    assert demand(faster, products((64, 1024, 1024))).placed.runs.tolist() == [[1, 0], [0, 1]]


def test_equals_go_to_the_first_unit_that_is_named():
    rates = {"far": (1.0, 100.0), "near": (1.0, 100.0)}
    hardware = machine(rates=rates, **split("fastest"))
    assert ran_on(demand(hardware, products((4, 64, 64)))) == {"g0": FAR}


sizes = st.tuples(st.integers(1, 512), st.sampled_from([64, 256, 1024]), st.integers(16, 2048))
rates = st.tuples(st.floats(0.1, 100.0), st.floats(10.0, 10000.0))


@given(st.lists(sizes, min_size=1, max_size=5), rates, rates)
def test_fastest_is_no_slower_than_any_fixed_choice(rows, far, near):
    pair, table = {"far": far, "near": near}, products(*rows)
    best = demand(machine(rates=pair, **split("fastest")), table)
    took = best.duration[:, 0].reshape(-1, 2).sum(axis=1)
    for unit in (FAR, NEAR):
        fixed = demand(machine(rates=pair, unit=unit), table).duration[:, 0]
        assert (took <= fixed * (1 + 1e-12)).all()


# -- experts on two units ------------------------------------------------------------------

loads = st.lists(st.integers(0, 300), min_size=1, max_size=12).filter(any)


@given(loads, rates, rates)
def test_co_processing_is_no_slower_than_one_unit_and_no_faster_than_both_rates(counts, far, near):
    pair, table = {"far": far, "near": near}, experts(counts)
    both = seconds(machine(rates=pair, **split("greedy_tokens")), table)[0]
    each = [seconds(machine(rates=pair, unit=unit), table)[0] for unit in (FAR, NEAR)]
    assert both <= min(each) * (1 + 1e-9)
    moved, flops = table["expert"].sum(), table["flops"][table["m"][:, 0] > 0].sum()
    assert both >= moved / (1e9 * (far[1] + near[1])) * (1 - 1e-9)
    assert both >= flops / (1e12 * (far[0] + near[0])) * (1 - 1e-9)


@given(loads, st.sampled_from(["greedy_tokens", "fastest"]), rates, rates)
def test_what_experts_move_and_compute_is_conserved_over_the_split(counts, by, far, near):
    table = experts(counts)
    pair = {"far": far, "near": near}
    parted = demand(machine(rates=pair, **split(by)), table)
    whole = demand(machine(rates=pair, unit=FAR), table)
    for column in (*BYTE_COLUMNS, "activation"):
        key = column, "compulsory"
        assert parted.moved[key].sum() == pytest.approx(whole.moved[key].sum(), rel=1e-9)
    assert parted.flops.sum() == pytest.approx(whole.flops.sum(), rel=1e-9)


@given(loads, rates, rates)
def test_fastest_experts_one_unit_at_a_time_are_no_slower_than_either(counts, far, near):
    pair, table = {"far": far, "near": near}, experts(counts)
    serial = seconds(machine(rates=pair, serial=True, **split("fastest")), table)[0]
    each = [seconds(machine(rates=pair, serial=True, unit=u), table)[0] for u in (FAR, NEAR)]
    assert serial <= min(each) * (1 + 1e-9)
    both = seconds(machine(rates=pair, **split("greedy_tokens")), table)[0]
    assert both <= serial * (1 + 1e-9)


def test_experts_with_fewest_tokens_go_to_the_unit_near_memory():
    counts = [400, 1, 2, 300, 1, 0]
    placed = demand(machine(**split("greedy_tokens")), experts(counts)).placed
    kept = {
        placed.units[placed.unit_of[placed.op_of[row]]]: spread.counts[:, 0].tolist()
        for row, spread in placed.table.spreads.items()
    }
    assert kept[NEAR] == [0, 1, 2, 0, 1, 0]
    assert kept[FAR] == [400, 0, 0, 300, 0, 0]


def test_units_that_co_process_work_at_the_same_time():
    table = experts([40, 40, 40, 40, 2, 2, 2, 2])
    hardware = machine(**split("greedy_tokens"))
    priced = demand(hardware, table)
    step, line = event_step(priced)
    np.testing.assert_allclose(line.end, run_dag(priced), rtol=1e-9)
    assert step.seconds[0] == pytest.approx(analytic_step(priced).seconds[0], rel=1e-9)
    serial = machine(serial=True, **split("greedy_tokens"))
    assert seconds(serial, table)[0] == pytest.approx(priced.duration.sum(), rel=1e-9)


def test_cells_that_serve_one_port_at_a_time_leave_little_to_gain():
    table = experts([1] * 16)
    apart = seconds(machine(**split("greedy_tokens")), table)[0]
    alone = seconds(machine(rule="exclusive", **split("greedy_tokens")), table)[0]
    near = seconds(machine(rule="exclusive", unit=NEAR), table)[0]
    assert apart < alone <= near * (1 + 1e-9)


def test_units_of_one_port_share_what_it_delivers():
    base = machine(**split("greedy_tokens"))
    same = base.replace({"parts.dev.units.near.at": "hbm.far"})
    table = experts([1] * 16)
    near = {"far": (10.0, 100.0), "near": (1.0, 100.0)}
    each = [seconds(machine(rates=near, unit=unit), table)[0] for unit in (FAR, NEAR)]
    assert seconds(same, table)[0] == pytest.approx(min(each), rel=0.05)


def test_whole_kernels_of_gpus_are_divided_too():
    gpu = load_machine("h100-x4")
    unit = gpu.document.data["parts"]["gpu"]["units"]["sm"]
    mapping = gpu.mapping().model_dump(by_alias=True, exclude_none=True)
    between = {"between": ["gpu.sm", "gpu.other"], "by": "greedy_tokens"}
    rule = {"ops": ["expert", "expert_activation"], "split": between}
    both = gpu.replace({"parts.gpu.units.other": unit})
    work = {"kind": "decode", "model": "mixtral-8x7b", "batch": 32, "context": 1024}
    parted = simulate(both, work, mapping={**mapping, "run": [rule, *mapping["run"]]})
    whole = simulate(gpu, work).breakdown.set_index("operator")
    table = parted.breakdown.set_index("operator")
    for name in ("expert_gate_up", "expert_down"):
        halves = [table.seconds[f"{name}@{u}"] for u in ("sm", "other")]
        assert 0 < min(halves) <= max(halves) < whole.seconds[name]
        assert table.flops[[f"{name}@sm", f"{name}@other"]].sum() == pytest.approx(
            whole.flops[name]
        )


@settings(max_examples=30)
@given(st.lists(loads, min_size=2, max_size=4), st.sampled_from(["greedy_tokens", "fastest"]))
def test_points_decide_alone(loads, by):
    longest = max(map(len, loads))
    counts = np.array([load + [0] * (longest - len(load)) for load in loads], float).T
    hardware = machine(**split(by))
    each = [seconds(hardware, experts(c))[0] for c in counts.T]
    np.testing.assert_allclose(seconds(hardware, experts(counts)), each, rtol=1e-9)


@given(loads, st.sampled_from(["greedy_tokens", "fastest", "op_per_byte"]), st.booleans())
def test_points_decide_alone_which_unit_is_nearer(counts, by, limited):
    """The port that is the faster one at some points is the slower at others."""
    limit = {"threshold": 4.0} if limited and by == "op_per_byte" else {}
    hardware = machine(**split(by, **limit))
    rates = np.array([50e9, 400e9, 100.1e9])
    names = ("dev.hbm.near.bandwidth", "dev.hbm.far.bandwidth")
    values = dict(zip(names, (rates, rates[[1, 0, 2]]), strict=True))
    table = experts(counts)
    together = seconds(hardware.with_values(values), table)
    alone = [
        seconds(hardware.with_values({n: np.array([v[i]]) for n, v in values.items()}), table)[0]
        for i in range(3)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-9)


@given(loads, st.sampled_from(["greedy_tokens", "fastest", "op_per_byte"]))
def test_bound_analytic_and_event_keep_their_order(counts, by):
    hardware, table = machine(**split(by)), experts(counts)
    bound = analytic_step(demand(hardware, table, ideal=True)).seconds[0]
    analytic = analytic_step(demand(hardware, table)).seconds[0]
    event = event_step(demand(hardware, table))[0].seconds[0]
    assert 0 < bound <= analytic * (1 + 1e-9)
    assert analytic <= event * (1 + 1e-9)


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        ({"between": ["a"], "by": "fastest"}, "at least 2"),
        ({"between": ["a", "a"], "by": "fastest"}, "a unit occurs twice"),
        ({"between": ["a", "b"], "by": "luck"}, "fastest"),
        ({"between": ["a", "b"], "by": "fastest", "threshold": 8.0}, "belongs to by: op_per_byte"),
        ({"between": ["a", "b", "c"], "by": "greedy_tokens"}, "divides between two units, got 3"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(block, rule):
    with pytest.raises(ConfigError, match=rule):
        load_mapping({"run": [{"ops": "expert", "split": block}]})


def test_what_has_no_experts_is_not_divided():
    with pytest.raises(UncoveredError, match=r"'g0' has no experts.*use by: fastest"):
        demand(machine(**split("greedy_tokens")), products((1, 64, 64)))


def test_an_unknown_unit_is_named():
    hardware = machine()
    rules = [{"ops": "all", "split": {"between": [FAR, "dev.nearer"], "by": "fastest"}}]
    with pytest.raises(ConfigError, match=r"did you mean 'dev.near'"):
        Placer(hardware, load_mapping({"run": rules}))


def test_cached_experts_are_not_divided():
    base = load_machine("a100-sxm-host")
    mapping = base.mapping("on-demand").model_dump(by_alias=True, exclude_none=True)
    unit = base.document.data["parts"]["gpu"]["units"]["sm"]
    both = base.replace({"parts.gpu.units.other": unit})
    between = {"between": ["gpu.sm", "gpu.other"], "by": "greedy_tokens"}
    mapping["run"] = [{"ops": "expert", "split": between}, *mapping["run"]]
    work = {"kind": "decode", "model": "switch-base-8", "batch": 1, "context": 8, "input": 8}
    with pytest.raises(UncoveredError, match="not divided between units"):
        simulate(both, work, mapping=mapping)


# -- serving -------------------------------------------------------------------------------


def served(rules):
    hardware = load_machine("duplex-x4")
    mapping = hardware.mapping().model_dump(by_alias=True, exclude_none=True)
    mapping["run"] = [*rules, {"ops": "all", "unit": "device.xpu"}]
    return hardware, mapping


def between(ops, by):
    return {"ops": ops, "split": {"between": ["device.xpu", "device.lpim"], "by": by}}


def test_a_table_of_iterations_divides_experts_as_each_iteration_does():
    model = load_model("mixtral-8x7b")
    hardware, mapping = served([between(["expert", "expert_activation"], "greedy_tokens")])
    prices = StepPrices.build(hardware, model, mapping, max_tokens=300, max_sequences=32)
    for chunks, decodes in (((), 32), (((100, 0),), 16), (((50, 10), (200, 0)), 4)):
        cost = prices.cost(chunks, decodes, 500.0 * decodes)
        direct = simulate(hardware, Mixed(model, chunks, decodes, 500.0), mapping=mapping)
        assert cost.seconds == pytest.approx(direct.seconds, rel=1e-9)
        assert cost.joules == pytest.approx(direct.joules, rel=1e-9)


def test_attention_that_changes_units_has_no_table_of_iterations():
    hardware, mapping = served([between("attention", "fastest")])
    model = load_model("mixtral-8x7b")
    with pytest.raises(UncoveredError, match="no table of iteration prices"):
        StepPrices.build(hardware, model, mapping, max_tokens=300, max_sequences=32)
