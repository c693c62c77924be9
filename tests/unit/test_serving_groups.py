"""Serving where decode attention has devices of its own: prices, laws, memory, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping_file import Pipeline, Placement, Run
from opbyte.core.ops import TRANSFER
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.attention_group import pooled_phases
from opbyte.sim.serving.fleet.server import server_of
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.graph_table import GraphTable
from opbyte.sim.serving.server import Server
from opbyte.sim.simulate import evaluate
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.traces import load_trace

MACHINE = "lamina-70b"
TOKENS, SEQUENCES = 600, 48


def small(**changed: Any) -> Model:
    """Return a small dense model; the same shapes cost the same for every run of a layer."""
    config = {
        "model_type": "llama", "torch_dtype": "float16", "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 3, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192, **changed,
    }  # fmt: skip
    return load_model({"kind": "model", "name": "small", "config": config})


def windowed() -> Model:
    return small(
        model_type="gemma3_text", head_dim=64, sliding_window=64, sliding_window_pattern=3,
        torch_dtype="bfloat16",
    )  # fmt: skip


def flash(machine: Machine) -> Machine:
    """Return the machine with FlashAttention on the attention group, a kernel by its tiles."""
    return machine.replace({"h20.sm.kernel": {"like": "a100-sxm-80gb"}})


CASES = {
    "serial": (lambda: load_machine(MACHINE), small, "serial"),
    "queries first": (lambda: load_machine(MACHINE), small, "lamina"),
    "windows": (lambda: load_machine(MACHINE), windowed, "serial"),
    "experts": (lambda: load_machine(MACHINE), lambda: load_model("mixtral-8x7b"), "lamina"),
    "kernel": (lambda: flash(load_machine(MACHINE)), small, "serial"),
}


@cache
def priced(case: str) -> tuple[Machine, Model, Any, StepPrices]:
    machine, model, name = CASES[case]
    loaded, whole = machine(), model()
    mapping = loaded.mapping(name)
    prices = StepPrices.build(loaded, whole, mapping, max_tokens=TOKENS, max_sequences=SEQUENCES)
    return loaded, whole, mapping, prices


@cache
def staggered(batches: int = 2, replicas: int = 1) -> tuple[Machine, Model, Any, StepPrices]:
    machine, model = load_machine(MACHINE), small()
    if replicas > 1:
        machine = machine.replace({"h100.count": 2 * replicas})
    pipeline = Pipeline(kind="staggered", batches=batches, replicas=replicas)
    mapping = machine.mapping("staggered").model_copy(update={"pipeline": pipeline})
    prices = StepPrices.build(machine, model, mapping, max_tokens=TOKENS, max_sequences=SEQUENCES)
    return machine, model, mapping, prices


@st.composite
def shapes(draw: Any) -> tuple[list[tuple[int, int]], list[int]]:
    """Draw the pieces of an iteration and the contexts of its decodes."""
    count = draw(st.integers(0, 3))
    pieces = [(draw(st.integers(1, 150)), draw(st.sampled_from([0, 1, 77, 4000])))] * count
    # Of a few tokens the arithmetic of units without tiles of their own is not linear.
    few = st.lists(st.integers(16, 6000), min_size=0 if pieces else 1, max_size=40)
    return pieces, draw(few)


def direct(machine: Machine, model: Model, mapping: Any, pieces: Any, contexts: Any) -> Any:
    """Return seconds, joules and busy seconds of an iteration as `evaluate` prices it."""
    work = Mixed(model, tuple(pieces), contexts=tuple((1, c) for c in contexts))
    with np.errstate(all="ignore"):
        (run,) = evaluate(machine, work, mapping).phases
    placed = run.demand.placed
    joules = (run.demand.joules * (placed.copies * placed.repeats)[:, None]).sum()
    return float(run.step.seconds[0]), float(joules), run.step.busy


# -- the table is the direct price ---------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(shapes())
def test_a_table_is_the_direct_price(case: str, shape: Any) -> None:
    machine, model, mapping, prices = priced(case)
    pieces, contexts = shape
    seconds, joules, busy = direct(machine, model, mapping, pieces, contexts)
    cost = prices.cost(pieces, len(contexts), contexts)
    assert cost.seconds == pytest.approx(seconds, rel=1e-9)
    assert cost.joules == pytest.approx(joules, rel=1e-9)
    for name, value in busy.items():
        assert cost.busy[name] == pytest.approx(float(value[0]), rel=1e-9, abs=1e-15)


def test_the_stated_error_is_that_of_rounding_where_kernels_attend() -> None:
    errors = {case: priced(case)[3].linear_error for case in CASES}
    assert errors.pop("kernel") < 1e-11
    assert max(errors.values()) < 1e-3


def test_the_tables_of_lamina_are_the_direct_price() -> None:
    model = load_model("llama-3-70b")
    for name in ("serial", "lamina"):
        prices = StepPrices.build(MACHINE, model, name, max_tokens=TOKENS, max_sequences=SEQUENCES)
        assert prices.linear_error < 1e-12


@pytest.mark.parametrize(("batches", "replicas"), [(2, 1), (3, 2)])
def test_whole_batches_cost_what_simulate_says(batches: int, replicas: int) -> None:
    machine, model, mapping, prices = staggered(batches, replicas)
    for each in (1, 5, 12):
        work = ob.Decode(model, batch=batches * each, context=900)
        with np.errstate(all="ignore"):
            (run,) = evaluate(machine, work, mapping).phases
        cost = prices.cost((), batches * each, batches * each * 900)
        assert cost.seconds == pytest.approx(float(run.step.seconds[0]), rel=1e-9)
        for name, value in run.step.busy.items():
            assert cost.busy[name] == pytest.approx(float(value[0]), rel=1e-9)


@cache
def _one_batch(batches: int, replicas: int) -> StepPrices:
    machine, model, mapping, _ = staggered(batches, replicas)
    alone = mapping.model_copy(update={"pipeline": None})
    return StepPrices.build(machine, model, alone, max_tokens=TOKENS, max_sequences=SEQUENCES)


@settings(max_examples=25, deadline=None)
@given(shapes(), st.sampled_from([(2, 1), (3, 2)]))
def test_batches_are_as_equal_as_they_can_be_and_one_has_the_prompts(shape: Any, many: Any) -> None:
    prices = staggered(*many)[3]
    pieces, contexts = shape
    batches, replicas = many
    one = _one_batch(*many)
    mean = float(np.mean(contexts)) if contexts else 0.0
    sizes = [len(contexts) // batches + (i < len(contexts) % batches) for i in range(batches)]
    sizes.sort()
    parts = [
        one.cost(pieces if i == 0 else (), n, n * mean)
        for i, n in enumerate(sizes) if n or (i == 0 and pieces)
    ]  # fmt: skip
    shared = {"h100": replicas, "nvlink": replicas, "roce": min(2 * replicas, 4) / 2}
    busy = {
        name: sum(p.busy[name] for p in parts) / shared.get(name.split(".")[0], 1)
        for name in one.resources
    }
    cost = prices.cost(pieces, len(contexts), contexts)
    longest = max(p.seconds for p in parts)
    assert cost.joules == pytest.approx(sum(p.joules for p in parts), rel=1e-9)
    assert cost.busy == pytest.approx(busy, rel=1e-9)
    # A batch is no shorter than its busiest resource, which is no less than its share.
    assert cost.seconds == pytest.approx(max(longest, *busy.values()), rel=1e-9)


def test_decodes_may_attend_on_a_unit_of_their_own() -> None:
    config = load_machine("h100-sxm-80gb").config.model_dump(by_alias=True, exclude_unset=True)
    units = config["parts"]["gpu"]["units"]
    units["near"] = units["sm"]
    machine = load_machine(config)
    base = machine.mapping("default")
    rule = base.run[-1].model_copy(update={"ops": ("attention_decode",), "unit": "gpu.near"})
    mapping = base.model_copy(update={"run": (rule, *base.run)})
    prices = StepPrices.build(machine, small(), mapping, max_tokens=TOKENS, max_sequences=SEQUENCES)
    assert isinstance(prices.table, GraphTable)
    # Kernels of either read the activations of all tokens, and the others' cost them time.
    assert prices.linear_error < 1e-11
    pieces, contexts = [(200, 300)], [700] * 9
    seconds, _, busy = direct(machine, small(), mapping, pieces, contexts)
    cost = prices.cost(pieces, 9, contexts)
    assert cost.seconds == pytest.approx(seconds, rel=1e-9)
    assert cost.busy["gpu.near"] == pytest.approx(float(busy["gpu.near"][0]), rel=1e-9)
    assert cost.busy["gpu.near"] > 0.0


@cache
def in_memory(name: str, rule: str) -> tuple[Machine, Any, StepPrices]:
    """Return a machine whose decodes attend at another port of its one memory, and prices."""
    machine = load_machine(name).replace({"device.hbm.sharing.rule": rule})
    units = sorted(machine.units, key=lambda path: path.endswith("xpu"))
    run = (Run(ops=("attention_decode",), unit=units[0]), Run(ops=("all",), unit=units[1]))
    mapping = machine.mapping("default").model_copy(update={"run": run})
    prices = StepPrices.build(machine, small(), mapping, max_tokens=TOKENS, max_sequences=SEQUENCES)
    return machine, mapping, prices


@pytest.mark.parametrize("rule", ["exclusive", "sum"])
@pytest.mark.parametrize("name", ["bank-pim-x4", "duplex-x4"])
@settings(max_examples=12, deadline=None)
@given(shapes())
def test_cells_that_ports_share_are_as_busy_as_their_ports(
    name: str, rule: str, shape: Any
) -> None:
    machine, mapping, prices = in_memory(name, rule)
    pieces, contexts = shape
    seconds, joules, busy = direct(machine, small(), mapping, pieces, contexts)
    cost = prices.cost(pieces, len(contexts), contexts)
    assert cost.seconds == pytest.approx(seconds, rel=1e-9)
    assert cost.joules == pytest.approx(joules, rel=1e-9)
    for resource, value in busy.items():
        assert cost.busy[resource] == pytest.approx(float(value[0]), rel=1e-9, abs=1e-15)
    ports = [n for n in cost.busy if n.startswith("device.hbm.")]
    if rule == "exclusive":
        total = sum(cost.busy[n] for n in ports)
        assert cost.busy["device.hbm"] == pytest.approx(total, rel=1e-9)


def test_attention_whose_unit_is_chosen_each_time_is_refused() -> None:
    machine, how = load_machine("duplex-x4"), {"max_tokens": TOKENS, "max_sequences": SEQUENCES}
    with pytest.raises(UncoveredError, match="rule names one unit for it"):
        StepPrices.build(machine, small(), machine.mapping("default"), **how)


def test_kernels_beside_a_port_that_shares_cells_are_refused() -> None:
    config = load_machine("h100-sxm-80gb").config.model_dump(by_alias=True, exclude_unset=True)
    gpu = config["parts"]["gpu"]
    ports = gpu["memory"]["hbm"]["ports"]
    ports["bank"] = ports["phy"]
    gpu["units"]["near"] = {**gpu["units"]["sm"], "at": "hbm.bank"}
    machine = load_machine(config)
    base = machine.mapping("default")
    rule = base.run[-1].model_copy(update={"ops": ("attention_decode",), "unit": "gpu.near"})
    mapping = base.model_copy(update={"run": (rule, *base.run)})
    with pytest.raises(UncoveredError, match=r"ports of 'gpu\.hbm' share its cells"):
        StepPrices.build(machine, small(), mapping, max_tokens=TOKENS, max_sequences=SEQUENCES)


# -- laws ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(shapes(), st.sampled_from(["roce.bandwidth", "h20.hbm.phy.bandwidth", "roce.latency"]))
def test_faster_parts_never_cost_time(shape: Any, changed: str) -> None:
    values = {
        "roce.bandwidth": ("10 GB/s", "50 GB/s", "400 GB/s"),
        "roce.latency": ("40 us", "16.5 us", "1 ns"),
        "h20.hbm.phy.bandwidth": ("1 TB/s", "4 TB/s", "8 TB/s"),
    }[changed]
    times = [changed_prices(changed, v).cost(*_given(shape)).seconds for v in values]
    assert all(slow >= fast for slow, fast in pairwise(times))


@cache
def changed_prices(name: str, value: str) -> StepPrices:
    machine = load_machine(MACHINE).replace({name: value})
    return StepPrices.build(
        machine, small(), "lamina", max_tokens=TOKENS, max_sequences=SEQUENCES
    )  # fmt: skip


def _given(shape: Any) -> Any:
    pieces, contexts = shape
    return pieces, len(contexts), contexts


@pytest.mark.parametrize("batch", [1, 16, 48])
def test_equal_groups_cost_what_one_costs_and_the_transfers(batch: int) -> None:
    machine = load_machine(MACHINE)
    machine = machine.replace({"h20": {"like": "h100-sxm-80gb.gpu", "count": 2}})
    split = machine.mapping("serial").parallel
    heads = {**split, "attention_decode": split["attention_decode"].model_copy(update={"heads": 2})}
    mapping = machine.mapping("serial").model_copy(update={"parallel": heads})
    work = Mixed(small(), decodes=batch, context=3000)
    two = ob.simulate(machine, work, mapping=mapping)
    one = ob.simulate(machine, work, mapping="default")
    rows = two.breakdown.set_index("operator")["seconds"]
    sent = rows[[name for name in rows.index if name.startswith("send")]].sum()
    assert sent > 0.0
    # The append reads v from what was sent, and from the rotated k and q of its own group not.
    assert two.seconds == pytest.approx(one.seconds + sent, rel=1e-5)


# -- what crosses --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["serial", "lamina"])
def test_prompts_send_their_cache_and_fetch_their_past(name: str) -> None:
    mapping = load_machine(MACHINE).mapping(name)
    pieces = ((100, 700), (40, 0))
    table = pooled_phases(Mixed(small(), pieces, decodes=7, context=50), mapping)[0].table
    sent = {
        n: table["payload"][r, 0] * table["participants"][r, 0]
        for r, n in enumerate(table.names) if table.kinds[r] == TRANSFER
    }  # fmt: skip
    token = 2 * 8 * 64 * 2
    assert sent.pop("send_prompts") == pytest.approx(140 * token, rel=1e-12)
    assert sent.pop("fetch_past") == pytest.approx(700 * token, rel=1e-12)
    # Decodes send what they send alone: the paper's (2 + 2 / G) e d B.
    assert sum(sent.values()) == pytest.approx((2 + 2 / 4) * 2 * 2048 * 7, rel=1e-12)


def test_a_prompt_without_a_past_fetches_nothing() -> None:
    mapping = load_machine(MACHINE).mapping("serial")
    table = pooled_phases(Mixed(small(), ((64, 0),)), mapping)[0].table
    assert "fetch_past" not in table.names
    assert "send_prompts" in table.names
    cost = priced("serial")[3].cost([(64, 0)])
    assert cost.busy["roce.back"] == pytest.approx(0.0, abs=1e-15)


# -- serving -------------------------------------------------------------------------------


def trace(requests: int = 60) -> Any:
    given = {
        "kind": "trace", "requests": requests, "seed": 3,
        "arrivals": {"kind": "poisson", "rate": "400 requests/s"},
        "lengths": {
            "input": {"kind": "uniform", "least": 1, "most": 900},
            "output": {"kind": "uniform", "least": 1, "most": 60},
        },
    }  # fmt: skip
    return load_trace(given)


def serve(
    machine: str | Machine = MACHINE, mapping: str = "lamina", **changed: Any
) -> tuple[Any, Any]:
    """Serve the trace through the plug-in; return the server and what came of it."""
    limits = {"max_batched_tokens": 512, "max_sequences": 40}
    loaded = load_machine(machine)
    work = ob.Serve(small(), trace(), **{"scheduler": limits, **changed})
    server = server_of(loaded, work, loaded.mapping(mapping))
    if isinstance(server, Server):
        server = replace(server, compiled=False)
    else:
        server = replace(server, engine=replace(server.engine, compiled=False))
    return server, server.serve(work.trace)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["serial", "lamina", "staggered"])
def test_a_trace_is_served_alike_by_loop_and_plug_in(name: str) -> None:
    machine = load_machine(MACHINE)
    limits = {"max_batched_tokens": 512, "max_sequences": 40, "kv_blocks": 150}
    work = ob.Serve(small(), trace(), scheduler=limits)
    server = Server.of(machine, work, machine.mapping(name))
    assert isinstance(server.prices.table, GraphTable)
    assert server.loops(work.trace)
    fast = server.serve(work.trace)
    slow = replace(server, compiled=False).serve(work.trace)
    assert np.array_equal(fast.times, slow.times)
    assert fast.joules == pytest.approx(slow.joules, rel=1e-12)
    assert fast.busy == pytest.approx(slow.busy, rel=1e-9)
    assert fast.preempted.sum() > 0, "a cache that is too large tests nothing"
    assert fast.served.all()
    # Every token of an answer is a step's, and so is every token of a prompt at least.
    assert fast.tokens >= work.trace.input_tokens.sum() + work.trace.output_tokens.sum() - len(
        work.trace
    )


def test_caches_fill_the_attention_group() -> None:
    server, serving = serve()
    assert serving.served.all()
    each = 3 * 2 * 8 * 64 * 2 * 16 / 4
    capacity = load_machine(MACHINE).values["h20.hbm.capacity"]
    assert server.blocks == int(0.9 * capacity // each)


def test_sinks_do_not_cross_the_link() -> None:
    machine, model = load_machine(MACHINE), load_model("gpt-oss-20b")
    for name in ("serial", "lamina"):
        mapping = machine.mapping(name)
        (run,) = evaluate(machine, ob.Decode(model, batch=4, context=500), mapping).phases
        placed = run.demand.placed
        over = [i for i, r in enumerate(placed.resources) if r.startswith("roce")]
        mine = [u >= 0 and placed.units[u] == "h20.sm" for u in placed.unit_of]
        assert any(mine)
        assert not run.demand.bytes[mine][:, over].any()
    # Decodes have them alone; beside prompts these have them.
    prices = StepPrices.build(machine, model, mapping, max_tokens=TOKENS, max_sequences=SEQUENCES)
    assert prices.linear_error < 1e-4


def test_shared_prompts_come_back_over_the_link() -> None:
    given = {"requests": 40, "lengths": {"input": 600, "output": 4}, "kind": "trace",
             "arrivals": {"kind": "poisson", "rate": "50 requests/s"},
             "prefix": {"texts": 1, "tokens": 512, "block_tokens": 16}}  # fmt: skip
    whole = {"chunk": False, "max_batched_tokens": 4096, "max_sequences": 40}
    found = []
    for shared in (True, False):
        work = ob.Serve(small(), load_trace(given), scheduler={**whole, "prefix_cache": shared})
        server = Server.of(load_machine(MACHINE), work, load_machine(MACHINE).mapping("serial"))
        # Another kind of loop takes a minute to compile.
        found.append(replace(server, compiled=False).serve(work.trace))
    token = 3 * 2 * 8 * 64 * 2
    machine = load_machine(MACHINE)
    rate = 2 * machine.values["roce.bandwidth"] * machine.values["roce.efficiency"]
    more = found[0].busy["roce.back"] - found[1].busy["roce.back"]
    fetched = found[0].hits["cache"] * token / rate
    outputs = 3 * 40 * 4 * 2 * 2048 / rate
    assert found[0].hits["cache"] >= 39 * 512
    assert more == pytest.approx(fetched, abs=outputs)


def test_two_engines_have_groups_of_their_own() -> None:
    machine = load_machine(MACHINE)
    two = machine.replace({"h100.count": 4, "h20.count": 8})
    fleet = {"replicas": 2}
    several, one = serve(two, fleet=fleet)[1], serve()[1]
    assert several.served.all()
    assert np.mean(several.times[2] - several.arrival) < np.mean(one.times[2] - one.arrival)
    with pytest.raises(ConfigError, match=r"2 engines of 4 devices need 8 of 'h20'"):
        serve(machine.replace({"h100.count": 4}), fleet=fleet)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scheduler": "layered"}, "steps divided by layers"),
        ({"scheduler": {"preempt": "swap"}}, "memory below"),
        ({"speculate": {"draft": None, "tokens": 2, "acceptance": 0.7}}, "guesses"),
    ],
)
def test_what_no_model_joins_is_refused(changed: Any, words: str) -> None:
    with pytest.raises(UncoveredError, match=words):
        serve(**changed)


def test_batches_that_take_turns_copy_no_experts() -> None:
    machine = load_machine(MACHINE)
    mapping = machine.mapping("staggered")
    cached = {"in": {"h20.hbm": 1.0}, "cache": {"tier": "h100.hbm", "via": "roce"}}
    place = {**mapping.place, "expert.weight": Placement.model_validate(cached)}
    work = ob.Serve("mixtral-8x7b", trace())
    with pytest.raises(UncoveredError, match="take turns and copies of experts"):
        server_of(machine, work, mapping.model_copy(update={"place": place}))
