"""Laws of offloaded experts, over random sequences, machines and policies."""

from __future__ import annotations

from typing import Any

import numpy as np
from handmade import device
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from strategies import logs

from opbyte.core.mapping_file import Cache
from opbyte.core.ops import Array
from opbyte.sim.copies import Copy
from opbyte.sim.expert_blocks import Blocks
from opbyte.sim.expert_waits import block_waits
from opbyte.sim.residency import LruSet, belady_misses
from opbyte.sim.result import Result
from opbyte.sim.simulate import simulate
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.phases import Decode
from opbyte.workloads.routing import Routing
from opbyte.workloads.token_draws import drawn_steps

EXPERTS = 8
SPARSE = Layer(Attention(4, 4, 64), MoeFfn(EXPERTS, 2, 256))
DENSE = Layer(Attention(4, 4, 64), DenseFfn(512))
MODEL = Model("sparse", 256, 500, (DENSE, SPARSE), (0, 1, 1))
FEW = settings(max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate])
POLICIES = ("none", "next_block_gate", "all")


@st.composite
def needs(draw: st.DrawFn) -> list[list[int]]:
    names = st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True)
    return draw(st.lists(names, min_size=1, max_size=60))


@given(needs(), st.integers(4, 14))
def test_belady_never_misses_more_than_lru(sequence: list[list[int]], capacity: int) -> None:
    cache = LruSet(capacity)
    for names in sequence[: len(sequence) // 3]:
        cache.need(names)
    rest = sequence[len(sequence) // 3 :]
    best = belady_misses(rest, capacity, tuple(cache.entries))
    assert sum(best) <= sum(cache.need(names) for names in rest)


@given(needs(), st.integers(4, 14))
def test_more_room_never_misses_more(sequence: list[list[int]], capacity: int) -> None:
    assert sum(belady_misses(sequence, capacity + 1)) <= sum(belady_misses(sequence, capacity))
    small, large = LruSet(capacity), LruSet(capacity + 1)
    assert sum(map(large.need, sequence)) <= sum(map(small.need, sequence))


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    count = draw(st.integers(1, 5))
    times = st.lists(logs(1e-6, 1e-2), min_size=count, max_size=count).map(np.array)
    before, lead, rest = (draw(times)[:, None] for _ in range(3))
    ones = np.ones((count, 1))
    ahead, work = (draw(st.floats(0.0, 1.0)) for _ in range(2))
    after = np.array([draw(logs(1e-6, 1e-2))])
    return Blocks(before, lead, ahead * lead, rest, work * rest, after, ones, EXPERTS * ones)


def waiting(
    b: Blocks, misses: Array, prefetch: str, waits: str = "block", each: float = 1.0
) -> Array:
    """Return the waits of blocks that miss some of eight experts, whose copies take `each`."""
    one = np.ones(1)
    copy = Copy("slow", "fast", (), one, each * one, one, {})
    cache = Cache.model_validate({"tier": "fast", "prefetch": prefetch, "waits": waits})
    return block_waits(b, misses[:, None], np.full((len(misses), 1), EXPERTS), copy, cache)


@given(blocks(), st.data())
def test_early_copies_are_never_later_at_equal_bytes(b: Blocks, data: Any) -> None:
    size = len(b.lead)
    serial = data.draw(st.lists(logs(1e-7, 1e-1), min_size=size, max_size=size).map(np.array))
    waits = [waiting(b, serial, policy) for policy in POLICIES]
    on_demand, gated, early = waits
    assert (gated <= on_demand).all()
    assert (early <= gated).all()
    for policy, wait in zip(POLICIES, waits, strict=True):
        assert (waiting(b, 1.1 * serial, policy) >= wait).all()


@given(blocks(), st.data())
def test_a_router_before_attention_and_experts_one_by_one_never_wait_longer(
    b: Blocks, data: Any
) -> None:
    size = len(b.lead)
    misses = data.draw(st.lists(st.floats(0.0, 8.0), min_size=size, max_size=size).map(np.array))
    late, early = (waiting(b, misses, p, each=1e-3) for p in ("none", "pre_attention"))
    assert (early <= late).all()
    assert (late - early <= b.lead + 1e-12).all()
    for prefetch, whole in (("none", late), ("pre_attention", early)):
        apart = waiting(b, misses, prefetch, "expert", 1e-3)
        # A share of a miss waits as one does: never less than as a share of its time.
        assert (apart <= np.maximum(whole, 1e-3 * np.minimum(misses, 1.0)[:, None]) + 1e-12).all()
        assert (whole - apart <= b.work + 1e-12).all() or (misses < 1.0).any()
        assert (waiting(b, 1.1 * misses, prefetch, "expert", 1e-3) >= apart - 1e-12).all()


def run(
    prefetch: str, evict: str, fill: float, residents: int, routing: Routing, fidelity: Any
) -> Result:
    links = {"fill": {"ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": f"{fill} B/s"}}
    size = 3 * 256 * 256 * 2
    cache = {
        "tier": "dev.hbm", "evict": evict, "via": "fill", "prefetch": prefetch,
        "reserve": f"{64 * 2**30 - 20 * 2**20 - residents * size} B",
    }  # fmt: skip
    place = {"expert.weight": {"in": {"dev.ddr": 1.0}, "cache": cache}}
    return simulate(
        device(links=links, mapping={"place": place}), Decode(MODEL, 2, 64, routing=routing),
        fidelity=fidelity, seed=3,
    )  # fmt: skip


@FEW
@given(
    st.sampled_from(POLICIES),
    st.sampled_from(["none", "lru", "belady"]),
    logs(1e8, 1e11),
    st.integers(1, 20),
    st.floats(0, 1),
    st.floats(0, 1.5),
)
def test_laws_of_a_played_device(
    prefetch: str, evict: str, fill: float, residents: int, locality: float, skew: float
) -> None:
    routing = Routing("zipf", skew, locality=locality)
    one = run(prefetch, evict, fill, residents, routing, "event")
    # The slow port gives 100 GB/s; a faster link delays nothing.
    faster = run(prefetch, evict, min(2 * fill, 99e9), residents, routing, "event")
    if 2 * fill <= 99e9:
        assert faster.seconds <= one.seconds * (1 + 1e-9)
    assert faster.copied_bytes == one.copied_bytes
    # The link is never busier than it can be, and no copy makes operators faster.
    assert one.copied_bytes / min(fill, 100e9) <= one.seconds * (1 + 1e-9)
    resident = simulate(device(), Decode(MODEL, 2, 64, routing=routing))
    assert one.seconds >= resident.seconds * (1 - 1e-9)
    assert 0 <= one.hit_rate <= 1
    if evict == "lru":
        best = run(prefetch, "belady", fill, residents, routing, "event")
        assert best.hit_rate >= one.hit_rate - 1e-12
        assert best.copied_bytes <= one.copied_bytes * (1 + 1e-12)


@FEW
@given(
    st.floats(0, 1.5), st.floats(0, 1), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31)
)
def test_drawn_experts_follow_popularity_and_locality(
    skew: float, locality: float, tokens: int, picks: int, seed: int
) -> None:
    routing = Routing("zipf", skew, locality=locality)
    rng = np.random.default_rng(seed)
    steps = drawn_steps(routing, EXPERTS, picks, tokens, 30, rng)
    for chosen in steps:
        assert picks <= len(chosen) <= min(EXPERTS, picks * tokens)
        assert len(set(chosen.tolist())) == len(chosen)
    if locality == 1:
        assert all(np.array_equal(steps[0], chosen) for chosen in steps)


def test_draws_hit_experts_as_often_as_the_routing_says() -> None:
    routing = Routing("zipf", 1.0)
    steps = drawn_steps(routing, EXPERTS, 3, 1, 20_000, np.random.default_rng(0))
    share = np.bincount(np.concatenate(steps), minlength=EXPERTS) / len(steps)
    np.testing.assert_allclose(share, routing.hit_probability(EXPERTS, 3), atol=0.015)
    many = drawn_steps(routing, EXPERTS, 3, 5, 5_000, np.random.default_rng(1))
    mean = np.mean([len(chosen) for chosen in many])
    assert abs(mean - float(routing.distinct(EXPERTS, 3, 5.0))) < 0.05
