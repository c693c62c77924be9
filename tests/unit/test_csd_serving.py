"""Traces on computational drives: expected pages, lost drives, capacity, what flash is written."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.hw_models.compute.csd.layout import Layout
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.serving.fleet.server import server_of
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.simulate import evaluate
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.traces import RequestTrace

CONFIG = {
    "model_type": "llama", "torch_dtype": "float16", "hidden_size": 2560,
    "intermediate_size": 5120, "num_hidden_layers": 3, "num_attention_heads": 20,
    "num_key_value_heads": 20, "vocab_size": 32000, "max_position_embeddings": 8192,
}  # fmt: skip
MODEL = load_model({"kind": "model", "name": "small", "config": CONFIG})
#: Tokens of a page, and bytes of a token in all heads and layers.
GROUP, TOKEN = 16, MODEL.kv_bytes_per_token
SMALL = {"max_batched_tokens": 64, "max_sequences": 8, "prefix_cache": False}
PAGES = Layout(4096.0, 128.0, 2.0)


def trace(count: int = 12) -> RequestTrace:
    i = np.arange(count)
    return RequestTrace(0.01 * i, 20 + 15 * i, 4 + 5 * i)


def mapped(machine: Machine, **changes: Any) -> Any:
    return machine.mapping("instinfer").model_copy(update=changes).on(machine.counts)


@cache
def server(name: str, options: tuple[tuple[str, Any], ...] = (), *, faults: bool = False) -> Any:
    """Return an engine; prices of each number of drives are built once for all tests."""
    machine = load_machine(name)
    work = ob.Serve(MODEL, trace(), scheduler=SMALL | dict(options), faults={} if faults else None)
    return server_of(machine, work, mapped(machine))


# -- expected pages ------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "width"), [(1, 2048.0), (2, 1024.0), (16, 128.0), (25, 80.0)])
def test_lengths_over_a_whole_page_read_exactly_what_is_expected(group: int, width: float) -> None:
    layout = Layout(4096.0, width, 2.0)
    lengths = np.arange(5 * group + 1, 9 * group + 1)
    assert layout.tokens == group
    exact = layout.by_token(lengths).mean()
    assert layout.spread(lengths.mean()) == pytest.approx(exact, rel=1e-12)


DRAWN = {
    "uniform": lambda rng, n: rng.integers(1, 4000, n),
    "geometric": lambda rng, n: rng.geometric(1 / 300, n),
    "lognormal": lambda rng, n: np.ceil(rng.lognormal(5.5, 1.0, n)),
    "two": lambda rng, n: np.where(rng.random(n) < 0.5, 40, 2000) + rng.integers(0, 400, n),
}


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("count", [1, 8, 64, 4096])
def test_drawn_lengths_read_what_is_expected(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    # A page less than another, over the square root of 12: the deviation of one sequence.
    deviation = np.sqrt((GROUP**2 - 1) / 12.0) / GROUP
    for _ in range(20):
        lengths = DRAWN[kind](rng, count)
        pages = PAGES.by_token(lengths).mean() / 4096
        error = abs(PAGES.spread(lengths.mean()) / 4096 - pages)
        # Whatever the lengths are, a sequence is off by half a page at most.
        assert error <= (GROUP - 1) / (2 * GROUP) + 1e-9
        assert error <= 5.0 * deviation / np.sqrt(count) + 0.002


def test_steps_of_one_context_are_exact_and_spread_ones_expected() -> None:
    machine = load_machine("a6000-csd-2")
    decode, mixed, spread = (
        ob.simulate(machine, work, mapping="instinfer")
        for work in (
            ob.Decode(MODEL, 8, 1001), ob.Mixed(MODEL, (), 8, 1001),
            ob.Mixed(MODEL, (), 8, 1001, spread=True),
        )
    )  # fmt: skip
    assert mixed.seconds == decode.seconds
    size = 8 * 2 * 20 / 2 * 3

    def read(result: Any) -> float:
        frame = result.breakdown
        name = frame.operator.str.startswith("score")
        return float(frame[name]["csd.flash.inside_bytes"].sum())

    assert read(decode) == size * PAGES.by_token(1001)
    assert read(spread) == pytest.approx(size * PAGES.spread(1001), rel=1e-12)


# -- prices --------------------------------------------------------------------------------


@cache
def prices(name: str, overlap: str) -> tuple[Machine, Any, StepPrices]:
    machine = load_machine(name)
    mapping = mapped(machine, overlap=overlap)
    found = StepPrices.build(machine, MODEL, mapping, max_tokens=300, max_sequences=40)
    return machine, mapping, found


SHAPES = st.tuples(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 900)), max_size=3),
    st.integers(0, 30), st.integers(1, 3000),
)  # fmt: skip


@seed(3)
@settings(max_examples=40, deadline=None)
@given(SHAPES)
@pytest.mark.parametrize("name", ["a6000-csd", "a6000-csd-20"])
@pytest.mark.parametrize("overlap", ["kv_write", "none"])
def test_a_table_is_the_direct_price(name: str, overlap: str, shape: Any) -> None:
    chunks, decodes, context = shape
    if not chunks and not decodes:
        decodes = 1
    machine, mapping, table = prices(name, overlap)
    assert table.linear_error < 1e-9
    work = ob.Mixed(MODEL, tuple(chunks), decodes, context if decodes else 1, spread=True)
    step = evaluate(machine, work, mapping).phases[0].step
    cost = table.cost(chunks, decodes, decodes * context)
    assert cost.seconds == pytest.approx(float(step.seconds[0]), rel=1e-9)
    for resource, busy in step.busy.items():
        assert cost.busy[resource] == pytest.approx(float(busy[0]), rel=1e-9)


def test_prompts_are_written_behind_the_next_layer() -> None:
    behind, serial = (
        prices("a6000-csd", overlap)[2].cost([(256, 0)]).seconds for overlap in ("kv_write", "none")
    )
    assert behind < 0.9 * serial


# -- both engines --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), (("kv_blocks", 12),), (("depth", 2),)])
def test_both_engines_serve_alike(options: tuple[tuple[str, Any], ...]) -> None:
    one, two = (
        replace(server("a6000-csd-2", options), compiled=c).serve(trace(9)) for c in (True, False)
    )
    assert one.served.all() or options
    assert one.times == pytest.approx(two.times, rel=1e-12, nan_ok=True)
    assert (one.steps, one.tokens, one.reasons) == (two.steps, two.tokens, two.reasons)
    assert one.busy == pytest.approx(two.busy, rel=1e-9)
    assert one.joules == pytest.approx(two.joules, rel=1e-9)


# -- lost drives ---------------------------------------------------------------------------


def faulty(name: str, faults: Any, *, compiled: bool = True, **options: Any) -> Any:
    whole = server(name, tuple(sorted(options.items())), faults=True)
    work = ob.Serve(MODEL, trace(), scheduler=SMALL | options, faults=faults)
    return replace(whole, work=work, compiled=compiled).serve(work.trace)


@pytest.mark.parametrize("name", ["a6000-csd-2", "a6000-csd-20"])
@pytest.mark.parametrize("policy", ["recompute", "fail"])
@pytest.mark.parametrize("away", [{}, {"for": "0.05 s"}])
def test_a_lost_drive_leaves_nobody_waiting(name: str, policy: str, away: Any) -> None:
    faults = {"devices": [{"device": 1, "at": "0.1 s", **away}], "policy": policy}
    # Two TB of flash in each of twenty drives would be a table of 73 million blocks.
    one, two = (faulty(name, faults, compiled=c, kv_blocks=4000) for c in (True, False))
    frame = one.requests
    counts = frame["status"].value_counts()
    assert counts["served"] + counts["rejected"] + counts["failed"] == len(trace())
    assert one.losses == 1
    if policy == "fail":
        assert counts["failed"] > 0
        assert frame["reason"].str.contains("KV cache went with device 1 of 'csd'").sum() > 0
    else:
        assert counts["served"] == len(trace())
        assert one.preempted.sum() > 0
        computed = (trace().input_tokens + trace().output_tokens - 1).sum()
        assert one.tokens > computed
    assert one.times == pytest.approx(two.times, rel=1e-12, nan_ok=True)
    assert (one.reasons, one.failed, one.tokens) == (two.reasons, two.failed, two.tokens)


def test_fewer_drives_hold_less_and_are_slower() -> None:
    whole = server("a6000-csd-2", faults=True)
    assert whole.left(1).blocks == pytest.approx(whole.left(2).blocks / 2, abs=1)
    twenty = server("a6000-csd-20", faults=True)
    # Twenty heads: one of nineteen drives has two.
    assert twenty.left(19).blocks == pytest.approx(twenty.left(20).blocks / 2, abs=1)
    times = [whole.left(n).prices.cost((), 8, 8 * 3000.0).seconds for n in (2, 1)]
    assert 1.5 < times[1] / times[0] < 2.0
    late = {"devices": [{"device": 0, "at": "0 s"}]}
    slow, fast = faulty("a6000-csd-2", late), faulty("a6000-csd-2", {})
    assert np.nanmax(slow.times[2]) > np.nanmax(fast.times[2])


def test_without_drives_requests_end_with_a_reason() -> None:
    both = {"devices": [{"device": d, "at": "0.1 s"} for d in (0, 1)]}
    frame = faulty("a6000-csd-2", both).requests
    assert set(frame["status"]) <= {"served", "failed", "rejected"}
    lost = frame[frame["status"] != "served"]
    assert len(lost) > 0
    assert lost["reason"].str.contains("0 of 2 devices of 'csd' work").all()


# -- capacity ------------------------------------------------------------------------------


def test_a_cache_larger_than_flash_is_a_counted_rejection() -> None:
    machine = load_machine("a6000-csd-2").replace({"csd.flash.capacity": "8 MB"})
    scheduler = SMALL | {"memory": 1.0}
    long = RequestTrace(np.zeros(3), np.array([20, 900, 30]), np.array([5, 20, 5]))
    result = ob.simulate(machine, ob.Serve(MODEL, long, scheduler=scheduler), mapping="instinfer")
    blocks = result.outcome.detail["blocks"]
    assert blocks == 8e6 // (TOKEN / 2 * GROUP)
    assert result.requests["status"].tolist() == ["served", "rejected", "served"]
    assert result.requests["reason"][1] == f"needs 58 KV blocks of {blocks}"
    assert result.rejected == 1
    given_ = ob.Serve(MODEL, long, scheduler=SMALL | {"kv_blocks": blocks + 1})
    with pytest.raises(CapacityError, match=r"kv do not fit in csd\.flash"):
        ob.simulate(machine, given_, mapping="instinfer")
    with pytest.raises(CapacityError, match=r"kv.* csd\.flash"):
        ob.simulate(machine, ob.Decode(MODEL, 3, 900), mapping="instinfer")


def test_new_tokens_of_all_sequences_need_room() -> None:
    held = GROUP * TOKEN / 2
    machine = load_machine("a6000-csd-2").replace({"csd.dram.capacity": f"{10 * held / 1e6} MB"})
    for sequences, share in ((9, 0.9), (10, 1.0)):
        scheduler = SMALL | {"max_sequences": sequences, "memory": share}
        server_of(machine, ob.Serve(MODEL, trace(), scheduler=scheduler), mapped(machine))
        more = ob.Serve(MODEL, trace(), scheduler=scheduler | {"max_sequences": sequences + 1})
        with pytest.raises(CapacityError, match=r"fill no page.* csd\.dram"):
            server_of(machine, more, mapped(machine))


# -- endurance -----------------------------------------------------------------------------


def test_whole_pages_are_written() -> None:
    machine = load_machine("a6000-csd-2")
    work = ob.Serve(MODEL, trace(), scheduler=SMALL)
    result = ob.simulate(machine, work, mapping="instinfer")
    lasts, asked = result.endurance(), trace()
    lengths = asked.input_tokens + asked.output_tokens - 1
    assert lasts.device == "instattention-csd"
    assert lasts.held_tokens == (lengths % GROUP).sum()
    pages = (lengths // GROUP).sum() * 2 * 20 / 2 * 3
    assert lasts.written_bytes == pytest.approx(pages * 4096, rel=1e-12)
    assert lasts.bytes_per_day == pytest.approx(lasts.written_bytes / result.seconds * 86400)
    drive = ob.flash("instattention-csd").device
    assert drive.cycles == 3000
    rated = drive.physical_pages * 4096 * 3000 / lasts.write_amplification
    assert lasts.rated_bytes == pytest.approx(rated)


def test_what_a_lost_drive_had_is_written_again() -> None:
    machine = load_machine("a6000-csd-2")
    faults = {"devices": [{"device": 1, "at": "0.1 s"}]}
    plain, lost = (
        ob.simulate(machine, ob.Serve(MODEL, trace(), scheduler=SMALL, faults=f), "instinfer")
        for f in (None, faults)
    )
    again = lost.endurance()
    assert again.again_tokens > 0
    more = again.again_tokens * TOKEN / 2
    assert again.written_bytes - plain.endurance().written_bytes == pytest.approx(more, rel=1e-9)


# -- refusals ------------------------------------------------------------------------------


def test_what_no_model_serves_is_refused() -> None:
    machine = load_machine("a6000-csd-2")
    work = ob.Serve(MODEL, trace(), scheduler=SMALL)
    with pytest.raises(UncoveredError, match="stored by channel"):
        ob.simulate(machine, work, mapping="instinfer-sparf")
    sparf = machine.mapping("instinfer-sparf").kv_select
    with pytest.raises(UncoveredError, match="kv_select: sparf"):
        ob.simulate(machine, work, mapping=mapped(machine, kv_select=sparf))
    step = ob.Mixed(MODEL, (), 8, 1000, spread=True)
    with pytest.raises(UncoveredError, match="sequences of spread lengths"):
        ob.simulate(machine, step, mapping="instinfer-sparf")
    with pytest.raises(ConfigError, match=r"block_tokens: must be a multiple of the 16.*write 16"):
        ob.simulate(
            machine, ob.Serve(MODEL, trace(), scheduler=SMALL | {"block_tokens": 8}), "instinfer"
        )
    with pytest.raises(UncoveredError, match="swap"):
        ob.simulate(
            machine, ob.Serve(MODEL, trace(), scheduler=SMALL | {"preempt": "swap"}), "instinfer"
        )
