"""How the cache of a sequence grows: precision, windows whose past is freed, budgets of tokens."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.place import Placer
from opbyte.sim.serving.blocks import BlockPool
from opbyte.sim.serving.memory import growth_of, kv_blocks, token_bytes
from opbyte.sim.serving.server import Server

FREED = {"windows": "freed", "prefix_cache": False}


def frame(*rows):
    names = ["arrival_s", "input_tokens", "output_tokens"]
    return pd.DataFrame(rows, columns=names)


def served(work, **changes):
    machine = load_machine("a100-sxm-80gb")
    server = replace(Server.of(machine, work, machine.mapping()), **changes)
    return server, server.serve(work.trace)


def ceil(tokens):
    return -(-tokens // 16)


@pytest.mark.parametrize(
    ("name", "window", "near", "far"),
    [("gemma-3-12b", 1024, 40, 8), ("gemma-3-27b", 1024, 52, 10), ("gpt-oss-20b", 128, 12, 12)],
)
def test_windows_take_their_share_of_a_block_until_they_are_full(name, window, near, far):
    work = ob.Serve(name, "sample-chat", scheduler=FREED)
    growth = growth_of(work, Parallel())
    assert sum(g.size for g in growth) == 64 * token_bytes(work, Parallel())
    pool = BlockPool(0, 16, remember=False, growth=growth)
    for tokens in (0, 1, 16, 17, window - 1, window, window + 1, window + 16, 5000, 131_072):
        shares = near * ceil(min(tokens, window)) + far * ceil(tokens)
        assert pool.needed(tokens) == -(-shares // (near + far))
    # What the model itself says it keeps, rounded up to a block.
    block = 16 * work.model.kv_bytes_per_token
    for tokens in (16, window, 4096, 131_072):
        exact = work.model.kv_bytes(tokens) / block
        assert exact <= pool.needed(tokens) < exact + 1.0
    # Kept, every layer keeps all, as without windows.
    assert growth_of(ob.Serve(name, "sample-chat"), Parallel()) == ()


def test_more_long_chats_run_at_once_where_the_past_of_windows_is_freed():
    """12 of 24 layers keep 128 tokens: nearly twice as many sequences of 2,000 tokens fit."""
    rows = frame(*[(0.0, 2000, 40) for _ in range(30)])
    size = {"kv_blocks": 8 * ceil(2039), "max_batched_tokens": 2000, "max_sequences": 30}
    most = {}
    for windows in ("kept", "freed"):
        given = {**size, "prefix_cache": False, "windows": windows}
        _, result = served(ob.Serve("gpt-oss-20b", rows, scheduler=given))
        most[windows] = result.series[2].max()
    each = -(-(12 * ceil(128) + 12 * ceil(2039)) // 24)
    assert most == {"kept": 8, "freed": 8 * ceil(2039) // each}


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "continuous", "depth": 2}, {"kind": "static"}, {"kind": "shortest"},
        {"kind": "layered"}, {"kind": "continuous", "reserve": False},
        {"kind": "continuous", "speculate": {"draft": None, "tokens": 2, "acceptance": 0.6}},
    ],
)  # fmt: skip
def test_both_ways_through_free_alike(more):
    more = dict(more)
    speculate = more.pop("speculate", None)
    rng = np.random.default_rng(3)
    n = 60
    rows = pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.02, n)),
            "input_tokens": rng.integers(20, 900, n),
            "output_tokens": rng.integers(20, 300, n),
        }
    )
    size = {"kv_blocks": 330, "max_batched_tokens": 1024, "max_sequences": 32}
    work = ob.Serve("gpt-oss-20b", rows, scheduler=FREED | size | more, speculate=speculate)
    machine = load_machine("h100-sxm-80gb")
    server = Server.of(machine, work, machine.mapping())
    assert server.loops(work.trace)
    one = server.serve(work.trace)
    other = replace(server, compiled=False).serve(work.trace)
    assert one.times == pytest.approx(other.times, rel=1e-12)
    assert one.preempted.tolist() == other.preempted.tolist()
    assert one.series[4].tolist() == other.series[4].tolist()
    assert one.series[4, -1] == 330
    assert one.preempted.sum() > 0 or more["kind"] == "static"


def test_a_cache_of_eight_bits_holds_twice_as_much_and_is_read_in_half_the_bytes():
    machine = load_machine("h100-sxm-80gb")
    blocks, read = {}, {}
    for kv in ("bf16", "fp8"):
        model = ob.load_model("llama-3.1-8b").with_precision(kv=kv)
        work = ob.Serve(model, "sample-chat")
        blocks[kv] = kv_blocks(Placer(machine, machine.mapping()), work)
        server = Server.of(machine, work, machine.mapping())
        assert server.blocks == blocks[kv]
        cost = server.prices.cost
        far, near = (cost(decodes=64, context=64 * n).busy["gpu.hbm.phy"] for n in (8192, 4096))
        read[kv] = far - near
    assert blocks["fp8"] in (2 * blocks["bf16"], 2 * blocks["bf16"] + 1)
    assert read["fp8"] == pytest.approx(read["bf16"] / 2, rel=1e-6)


def test_a_budget_bounds_memory_and_keeps_later_tokens_as_fast():
    rows = frame((0.0, 100, 3000))
    given = {"kv_budget": 512, "prefix_cache": False, "max_batched_tokens": 512}
    server, result = served(ob.Serve("llama-3.1-8b", rows, scheduler=given))
    ends, free = result.series[0], result.series[4]
    assert result.steps == 3000
    # Full after 412 tokens of the answer, and no block more from then on.
    assert set(server.blocks - free[412:-1]) == {32}
    steps = np.diff(ends)
    full = server.prices.cost(decodes=1, context=512).seconds
    assert steps[411:] == pytest.approx(full, rel=1e-9)
    for i in (0, 100, 300):
        assert steps[i] == pytest.approx(server.prices.cost(decodes=1, context=101 + i).seconds)
    _, whole = served(ob.Serve("llama-3.1-8b", rows, scheduler=given | {"kv_budget": None}))
    assert np.diff(whole.series[0])[-1] > full
    assert whole.series[4].min() == server.blocks - ceil(3099)


def test_a_budget_serves_what_would_not_fit():
    rows = frame((0.0, 2000, 500))
    given = {"prefix_cache": False, "kv_blocks": 40, "max_batched_tokens": 512}
    _, refused = served(ob.Serve("llama-3.1-8b", rows, scheduler=given))
    assert refused.reasons == {0: "needs 157 KV blocks of 40"}
    work = ob.Serve("llama-3.1-8b", rows, scheduler=given | {"kv_budget": 640})
    server, result = served(work)
    assert result.served.all()
    assert result.tokens == 2499
    # A piece of a prompt attends to what is kept of those before it.
    pieces = [(512, 0), (512, 512), (512, 640), (464, 640)]
    first = sum(server.prices.cost([piece]).seconds for piece in pieces)
    assert result.times[1, 0] == pytest.approx(first)


def test_windows_and_budgets_together_keep_the_smaller():
    work = ob.Serve("gpt-oss-20b", "sample-chat", scheduler=FREED | {"kv_budget": 1000})
    assert [g.limit for g in growth_of(work, Parallel())] == [128, 1000]


@pytest.mark.parametrize("what", [{"windows": "freed"}, {"kv_budget": 100}])
def test_blocks_that_lose_tokens_can_not_be_found_again(what):
    with pytest.raises(ob.ConfigError, match="set prefix_cache to false"):
        ob.Serve("gpt-oss-20b", "sample-chat", scheduler=what)


def test_guesses_within_a_budget_are_refused():
    given = {"kv_budget": 100, "prefix_cache": False}
    speculate = {"draft": None, "tokens": 2, "acceptance": 0.5}
    work = ob.Serve("llama-3.1-8b", "sample-chat", scheduler=given, speculate=speculate)
    with pytest.raises(ob.UncoveredError, match="kv_budget"):
        served(work)
