"""Serving with experts in a slow memory: prices, laws, memory, refusals."""

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
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.expert_offload import Experts, reading
from opbyte.sim.metrics import static_watts
from opbyte.sim.place import Placer
from opbyte.sim.residency import lru_iteration_misses
from opbyte.sim.serving.experts import served_experts
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.offload_table import PREFETCH, OffloadTable
from opbyte.sim.serving.server import Server
from opbyte.sim.simulate import evaluate
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.routing import Routing
from opbyte.workloads.traces import load_trace

TOKENS, SEQUENCES = 300, 40
LIMITS = {"max_batched_tokens": TOKENS, "max_sequences": SEQUENCES}


def mixture(**changed: Any) -> Model:
    config = {
        "model_type": "mixtral", "torch_dtype": "bfloat16", "hidden_size": 1024,
        "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 8192, "max_position_embeddings": 8192,
        "num_local_experts": 16, "num_experts_per_tok": 2, **changed,
    }  # fmt: skip
    return load_model({"kind": "model", "name": "mixture", "config": config})


def mapped(prefetch: str = "none", evict: str = "none", **changed: Any) -> Mapping:
    base = load_machine("a100-sxm-host").mapping("on-demand")
    place = dict(base.place)
    kept = place["expert.weight"]
    assert kept.cache is not None
    more = {"prefetch": prefetch, "evict": evict}
    place["expert.weight"] = kept.model_copy(update={"cache": kept.cache.model_copy(update=more)})
    fast = {"place": place, "fusion": "attention", "launch": "graph"}
    return base.model_copy(update={**fast, **changed})


def machine(**changed: Any) -> Machine:
    return load_machine("a100-sxm-host").replace(changed)


def served(work: ob.Serve, mapping: Mapping, loaded: Machine | None = None) -> Experts:
    experts = served_experts(Placer(loaded or machine(), mapping), work, divides=False)
    assert experts is not None
    return experts


@cache
def priced(
    prefetch: str, bandwidth: str = "32 GB/s", evict: str = "none", locality: float = 0.0,
    blocks: int = 2000, room: str = "80 GiB",
) -> StepPrices:  # fmt: skip
    loaded = machine(**{"pcie.bandwidth": bandwidth, "gpu.hbm.capacity": room})
    mapping = mapped(prefetch, evict)
    how = Routing(kind="zipf", skew=0.8, locality=locality) if evict != "none" else Routing()
    limits = {**LIMITS, "kv_blocks": blocks} if evict != "none" else LIMITS
    work = ob.Serve(mixture(), "sample-chat", scheduler=limits, routing=how)
    experts = served(work, mapping, loaded)
    fast = reading(Placer(loaded, mapping), experts.copy.fast).mapping
    return StepPrices.build(
        loaded, mixture(), fast, max_tokens=TOKENS, max_sequences=SEQUENCES, routing=how,
        experts=experts,
    )  # fmt: skip


@st.composite
def shapes(draw: Any) -> tuple[list[tuple[int, int]], list[int]]:
    """Draw the pieces of an iteration and the contexts of its decodes."""
    pieces = [(draw(st.integers(1, 80)), draw(st.sampled_from([0, 1, 77, 4000])))]
    pieces *= draw(st.integers(0, 3))
    few = st.lists(st.integers(1, 6000), min_size=0 if pieces else 1, max_size=30)
    return pieces, draw(few)


# -- the table is the direct price ---------------------------------------------------------


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("bandwidth", ["32 GB/s", "2 TB/s"])
@settings(max_examples=10, deadline=None)
@given(shapes())
def test_a_table_is_the_direct_price(prefetch: str, bandwidth: str, shape: Any) -> None:
    pieces, contexts = shape
    prices, loaded = priced(prefetch, bandwidth), machine(**{"pcie.bandwidth": bandwidth})
    work = Mixed(mixture(), tuple(pieces), contexts=tuple((1, c) for c in contexts))
    with np.errstate(all="ignore"):
        outcome = evaluate(loaded, work, mapped(prefetch))
    seconds = float(outcome.metrics["seconds"][0])
    cost = prices.cost(pieces, len(contexts), contexts)
    assert cost.seconds == pytest.approx(seconds, rel=1e-9)
    joules = float(outcome.metrics["joules"][0]) - float(np.max(static_watts(loaded))) * seconds
    assert cost.joules == pytest.approx(joules, rel=1e-8)
    for name, value in outcome.phases[0].step.busy.items():
        assert cost.busy[name] == pytest.approx(float(value[0]), rel=1e-9, abs=1e-15)


def test_copies_that_cost_nothing_leave_the_price_without_them() -> None:
    free = priced("none", "1e9 TB/s")
    table = free.table
    assert isinstance(table, OffloadTable)
    free = StepPrices(
        table._replace(copy=np.zeros(2), busy=np.zeros_like(table.busy)), free.resources, TOKENS,
        SEQUENCES, 0.0, 0.0, None,
    )  # fmt: skip
    loaded = machine()
    fast = reading(Placer(loaded, mapped()), "gpu.hbm").mapping
    plain = StepPrices.build(loaded, mixture(), fast, max_tokens=TOKENS, max_sequences=SEQUENCES)
    for pieces, contexts in (([], [90] * 9), ([(64, 0)], []), ([(80, 900), (7, 0)], [5, 4000])):
        one, other = (p.cost(pieces, len(contexts), contexts) for p in (free, plain))
        assert one.seconds == pytest.approx(other.seconds, rel=1e-9)
        assert one.joules == pytest.approx(other.joules, rel=1e-9)


# -- laws ----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(shapes(), st.sampled_from(PREFETCH))
def test_a_faster_link_never_costs_time(shape: Any, prefetch: str) -> None:
    pieces, contexts = shape
    rates = ("8 GB/s", "32 GB/s", "2 TB/s")
    times = [priced(prefetch, r).cost(pieces, len(contexts), contexts).seconds for r in rates]
    assert all(slow >= fast for slow, fast in pairwise(times))


@settings(max_examples=15, deadline=None)
@given(shapes())
def test_a_copy_that_starts_early_never_ends_later(shape: Any) -> None:
    pieces, contexts = shape
    late, early = (
        priced(p).cost(pieces, len(contexts), contexts) for p in ("none", "next_block_gate")
    )
    assert early.seconds <= late.seconds * (1 + 1e-12)
    assert early.busy["pcie"] == pytest.approx(late.busy["pcie"], rel=1e-12)


def test_a_cache_misses_what_its_expectation_says() -> None:
    small = priced("none", evict="lru", blocks=6000, locality=0.5, room="1 GB")
    table = small.table
    assert isinstance(table, OffloadTable)
    work = ob.Serve(mixture(), "sample-chat", scheduler={**LIMITS, "kv_blocks": 6000},
                    routing=Routing(kind="zipf", skew=0.8, locality=0.5))  # fmt: skip
    experts = served(work, mapped("none", "lru"), machine(**{"gpu.hbm.capacity": "1 GB"}))
    assert 16 < experts.slots[0] < 64, "a cache for all or for none tests nothing"
    visit = Routing(kind="zipf", skew=0.8).hit_probability(16, 2)
    for tokens in (1, 4, 16):
        for row, locality in ((0, 0.0), (1, 0.5)):
            due = lru_iteration_misses(
                visit, np.full(4, float(tokens)), float(experts.slots[0]), locality
            )
            assert table.misses[row, tokens] == pytest.approx(due, rel=1e-12)
    # A step of decodes finds what the one before took.
    alone, mixed = small.cost([], 4, [9] * 4), small.cost([(1, 8)], 3, [9] * 3)
    assert 0.0 < alone.busy["pcie"] < mixed.busy["pcie"]


def test_what_all_fits_is_never_copied() -> None:
    whole = priced("none", evict="lru", blocks=100)
    assert whole.cost([(50, 0)], 4, [100] * 4).busy["pcie"] == 0.0


# -- serving -------------------------------------------------------------------------------


def trace() -> Any:
    given = {
        "kind": "trace", "requests": 40, "seed": 3,
        "arrivals": {"kind": "poisson", "rate": "40 requests/s"},
        "lengths": {
            "input": {"kind": "uniform", "least": 1, "most": 500},
            "output": {"kind": "uniform", "least": 1, "most": 40},
        },
    }  # fmt: skip
    return load_trace(given)


@pytest.mark.proof
@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_a_trace_is_served_alike_by_loop_and_plug_in(prefetch: str) -> None:
    work = ob.Serve(mixture(), trace(), scheduler={**LIMITS, "kv_blocks": 100})
    server = Server.of(machine(), work, mapped(prefetch))
    assert server.loops(work.trace)
    fast = server.serve(work.trace)
    slow = replace(server, compiled=False).serve(work.trace)
    assert np.array_equal(fast.times, slow.times)
    assert fast.busy == pytest.approx(slow.busy, rel=1e-9)
    assert fast.preempted.sum() > 0
    assert fast.served.all()
    assert fast.busy_shares["pcie"] <= 1.0 + 1e-9


def test_what_an_iteration_needs_is_no_room_for_caches() -> None:
    work = ob.Serve(mixture(), trace(), scheduler=LIMITS)
    with_copies = Server.of(machine(), work, mapped("next_block_gate")).blocks
    one = 3 * 1024 * 2048 * 2
    block = 16 * 4 * 2 * 4 * 64 * 2
    without = Server.of(machine(), work, mapped("none")).blocks
    # 16 experts of one layer more, those of the next one.
    assert without - with_copies == pytest.approx(16 * one / block, abs=1.0)


def test_a_model_that_does_not_fit_is_served_slowly() -> None:
    work = ob.Serve("mixtral-8x7b", trace(), scheduler={**LIMITS, "max_sequences": 16})
    with pytest.raises(CapacityError):
        ob.simulate("a100-sxm-host", work, mapping="gpu-only")
    server = Server.of(machine(), work, machine().mapping("served"))
    serving = replace(server, compiled=False).serve(work.trace)
    assert serving.served.all()
    # All tokens are a step's, and the link is what the steps wait for.
    assert serving.tokens == (work.trace.input_tokens + work.trace.output_tokens - 1).sum()
    assert serving.busy_shares["pcie"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("changed", "evict", "error", "words"),
    [
        ({"scheduler": "layered"}, "none", UncoveredError, "divided by layers"),
        ({"scheduler": {"preempt": "swap"}}, "none", UncoveredError, "memory below"),
        ({"scheduler": LIMITS}, "lru", ConfigError, "kv_blocks"),
        ({"scheduler": LIMITS}, "belady", UncoveredError, "knows the future"),
    ],
)
def test_what_no_model_joins_is_refused(changed: Any, evict: str, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        ob.simulate(
            machine(), ob.Serve(mixture(), trace(), **changed), mapping=mapped("none", evict)
        )


def test_no_table_leaves_out_the_copies() -> None:
    how = {"max_tokens": TOKENS, "max_sequences": SEQUENCES}
    with pytest.raises(UncoveredError, match="copies experts when they are needed"):
        StepPrices.build(machine(), mixture(), mapped(), **how)
