"""Offloaded experts: copies by hand for every policy, capacity, refusals, and both fidelities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import device
from offloaded import (
    COPY,
    DENSE,
    EXPERTS,
    HIDDEN,
    LAYERS,
    MODEL,
    PICKS,
    SIZE,
    START,
    WIDTH,
    decode,
    layers_of,
    machine,
    plain,
)

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.sim.result import Result
from opbyte.sim.simulate import evaluate, simulate
from opbyte.sim.timeline import write_perfetto
from opbyte.workloads.model import Attention, Layer, Model, MoeFfn
from opbyte.workloads.phases import Decode, Generate, Prefill
from opbyte.workloads.routing import Routing


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
def test_on_demand_waits_for_every_copy(fidelity: Any) -> None:
    result, resident = simulate(machine(), decode(), fidelity=fidelity), plain()
    assert result.seconds == pytest.approx(resident.seconds + LAYERS * PICKS * COPY, rel=1e-9)
    _, lead, rest = layers_of(resident)
    assert result.block_s == pytest.approx(lead + rest + PICKS * COPY, rel=1e-9)
    assert result.copied_bytes == LAYERS * PICKS * SIZE
    assert result.hit_rate == 0
    assert result.tpot == result.seconds


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
@pytest.mark.parametrize("fill", [1e9, 20e9, 1e12])
def test_pre_gated_hides_all_copies_but_the_first_block_s(fill: float, fidelity: Any) -> None:
    result = simulate(machine("next_block_gate", fill=fill), decode(), fidelity=fidelity)
    resident = plain()
    dense, lead, rest = layers_of(resident)
    # DDR's port gives 100 GB/s.
    serial = PICKS * (START + SIZE / min(fill, 100e9))
    waits = serial + (LAYERS - 1) * max(0.0, serial - (rest + dense + lead))
    assert result.seconds == pytest.approx(resident.seconds + waits, rel=1e-9)
    assert result.block_s == pytest.approx(lead + rest + waits / LAYERS, rel=1e-9)


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
def test_prefetching_all_takes_as_long_as_the_link(fidelity: Any) -> None:
    result = simulate(machine("all"), decode(), fidelity=fidelity)
    assert result.seconds == pytest.approx(LAYERS * EXPERTS * COPY, rel=1e-9)
    assert result.copied_bytes == LAYERS * EXPERTS * SIZE


@pytest.mark.parametrize("fidelity", ["bound", "analytic", "event"])
def test_a_cache_in_the_home_of_the_experts_copies_nothing(fidelity: Any) -> None:
    place = {
        "weight": {"in": {"dev.hbm": 1.0}},
        "expert.weight": {"in": {"dev.hbm": 1.0}, "cache": {"tier": "dev.hbm"}},
    }
    result = simulate(device(mapping={"place": place}), decode(), fidelity=fidelity)
    hbm = {"weight": {"in": {"dev.hbm": 1.0}}}
    resident = simulate(device(mapping={"place": hbm}), decode(), fidelity=fidelity)
    assert result.seconds == pytest.approx(resident.seconds, rel=1e-12)
    assert result.joules == pytest.approx(resident.joules, rel=1e-12)
    assert (result.copied_bytes, result.hit_rate) == (0, 1)
    assert result.occupancy == resident.occupancy


def test_copies_cost_the_energy_of_both_ports_and_the_link() -> None:
    result, resident = simulate(machine(), decode()), plain()
    each = SIZE * 8 * (12e-12 + 1e-12 + 4e-12)
    assert result.joules - resident.joules == pytest.approx(LAYERS * PICKS * each, rel=1e-9)


def test_a_generation_is_its_phases() -> None:
    m = machine("next_block_gate")
    whole = simulate(m, Generate(MODEL, 1, 32, 9))
    first = simulate(m, Prefill(MODEL, 1, 32))
    assert whole.ttft == pytest.approx(first.seconds, rel=1e-12)
    assert whole.seconds == pytest.approx(whole.ttft + 8 * whole.tpot, rel=1e-12)
    # 32 tokens visit 16 (1 - (7/8)^32) experts of a layer.
    distinct = EXPERTS * (1 - (1 - PICKS / EXPERTS) ** 32)
    assert first.copied_bytes == pytest.approx(LAYERS * distinct * SIZE, rel=1e-12)
    assert whole.copied_bytes == pytest.approx(first.copied_bytes + 8 * LAYERS * PICKS * SIZE)


# -- caches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("evict", ["lru", "belady"])
@pytest.mark.parametrize("fidelity", ["analytic", "event"])
def test_with_room_for_all_nothing_is_copied(evict: str, fidelity: Any) -> None:
    m = machine(evict=evict, residents=LAYERS * EXPERTS + 2)
    result = simulate(m, decode(batch=4), fidelity=fidelity)
    assert result.hit_rate == 1
    assert result.seconds == pytest.approx(plain(decode(batch=4)).seconds, rel=1e-9)


@pytest.mark.parametrize("residents", [8, 16, 32, 48])
@pytest.mark.parametrize("locality", [0.0, 0.6])
def test_lru_hits_as_often_as_expected(residents: int, locality: float) -> None:
    work = decode(routing=Routing("zipf", 0.8, locality=locality))
    expected = simulate(machine(evict="lru", residents=residents), work)
    events = simulate(machine(evict="lru", residents=residents), work, fidelity="event")
    assert expected.hit_rate == pytest.approx(events.hit_rate, abs=0.02)
    assert expected.hit_rate >= locality - 0.01
    best = simulate(machine(evict="belady", residents=residents), work, fidelity="event")
    assert best.hit_rate > events.hit_rate
    assert best.seconds < events.seconds


def test_uniform_lru_of_one_pick_hits_by_its_share() -> None:
    one = Model(
        "one", HIDDEN, 1000, (Layer(Attention(4, 4, 64), MoeFfn(EXPERTS, 1, WIDTH)),), (0,) * 4
    )
    m, work = machine(evict="lru", residents=4 * 5), Decode(one, 1, 64)
    held = work.footprint(m.mapping().degrees)
    beside = sum(float(np.max(v)) for k, v in held.items() if k != "expert")
    slots = (m.values["dev.hbm.capacity"] - beside) // SIZE
    assert simulate(m, work).hit_rate == pytest.approx(slots / (4 * EXPERTS), abs=0.01)
    assert simulate(m, work, fidelity="event").hit_rate == pytest.approx(slots / 64, abs=0.01)


def test_a_reserve_takes_room_from_the_cache() -> None:
    m = machine(evict="lru", residents=40)
    mapping = m.mapping()
    place = dict(mapping.place)
    expert = place["expert.weight"]
    assert expert.cache is not None
    from opbyte.core.mapping_file import Placement

    place["expert.weight"] = Placement.model_validate(
        {"in": {"dev.ddr": 1.0},
         "cache": {"tier": "dev.hbm", "via": "fill", "reserve": f"{20 * SIZE} B"}}
    )  # fmt: skip
    less = simulate(m, decode(), mapping.model_copy(update={"place": place}))
    more = simulate(m, decode())
    assert more.peak_fast_bytes - less.peak_fast_bytes == pytest.approx(20 * SIZE)
    assert less.hit_rate < more.hit_rate


def small_room(evict: str, fidelity: Any, locality: float, seed: int = 0) -> Result:
    """Two layers of which a few experts fit; sixteen sequences choose from eight."""
    layer = Layer(Attention(4, 4, 64), MoeFfn(8, PICKS, WIDTH))
    work = Decode(
        Model("two", HIDDEN, 1000, (layer,), (0,) * 2), 16, 64,
        routing=Routing("zipf", 1.5, locality=locality),
    )  # fmt: skip
    made = machine(evict=evict)
    held = work.footprint(made.mapping().degrees)
    beside = sum(float(np.max(v)) for k, v in held.items() if k != "expert")
    made = made.with_values({"dev.hbm.capacity": beside + 8.5 * SIZE})
    return simulate(made, work, fidelity=fidelity, seed=seed)


@pytest.mark.parametrize("locality", [0.0, 0.5, 0.9, 1.0])
def test_no_policy_hits_more_than_belady_at_either_fidelity(locality: float) -> None:
    for fidelity in ("analytic", "event"):
        lru, best = (small_room(e, fidelity, locality) for e in ("lru", "belady"))
        assert 0.0 <= lru.hit_rate <= best.hit_rate <= 1.0
        assert best.seconds <= lru.seconds * (1 + 1e-9)


def test_one_first_draw_does_not_decide_where_tokens_stay() -> None:
    times = [small_room("none", "event", 1.0, seed).seconds for seed in range(6)]
    expected = small_room("none", "analytic", 1.0).seconds
    assert max(times) < 1.15 * min(times)
    assert np.mean(times) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
@pytest.mark.parametrize("residents", [36, 40, 52, 60])
def test_prefetching_all_hits_what_a_scan_leaves(residents: int, fidelity: Any) -> None:
    result = simulate(machine("all", "lru", residents=residents), decode(), fidelity=fidelity)
    missing = min(EXPERTS, LAYERS * EXPERTS - residents)
    assert result.hit_rate == pytest.approx(1 - missing / EXPERTS, abs=1e-12)


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
@pytest.mark.parametrize("evict", ["lru", "belady"])
def test_a_prompt_finds_an_empty_cache(evict: str, fidelity: Any) -> None:
    m = machine(evict=evict, residents=LAYERS * EXPERTS + 2)
    first = simulate(m, Prefill(MODEL, 1, 32), fidelity=fidelity)
    assert first.hit_rate == 0
    whole = simulate(m, Generate(MODEL, 1, 32, 9), fidelity=fidelity)
    assert whole.copied_bytes == pytest.approx(first.copied_bytes)


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
@pytest.mark.parametrize("prefetch", ["none", "next_block_gate", "all"])
def test_the_breakdown_has_a_row_of_copies(prefetch: str, fidelity: Any) -> None:
    result = simulate(machine(prefetch), decode(), fidelity=fidelity)
    rows = result.breakdown
    assert rows["seconds"].sum() == pytest.approx(result.seconds, rel=1e-9)
    copies = rows[rows["operator"] == "copies of experts"].iloc[0]
    assert copies["dev.hbm.phy_bytes"] == copies["fill_bytes"] == result.copied_bytes
    each = SIZE * 8 * (12e-12 + 1e-12 + 4e-12)
    assert copies["joules"] == pytest.approx(result.copied_bytes / SIZE * each, rel=1e-9)
    assert copies["bound_by"] == "fill"
    assert not rows.isna().any().any()
    assert "copies of experts" not in set(plain().breakdown["operator"])


# -- capacity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefetch", "working"),
    [("none", PICKS), ("next_block_gate", 2 * PICKS), ("all", 2 * EXPERTS)],
)
def test_the_experts_of_two_blocks_must_fit(prefetch: str, working: int) -> None:
    result = simulate(machine(prefetch, residents=working), decode())
    held = decode().footprint(machine().mapping().degrees)
    beside = sum(float(np.max(v)) for k, v in held.items() if k != "expert")
    assert result.peak_fast_bytes == pytest.approx(beside + working * SIZE, rel=1e-12)
    with pytest.raises(CapacityError) as caught:
        simulate(machine(prefetch, residents=working - 1), decode())
    assert caught.value.tier == "dev.hbm"
    assert "expert.weight" in caught.value.tensors


@pytest.mark.parametrize("evict", ["none", "lru", "belady"])
def test_a_reserve_that_does_not_fit_is_no_room(evict: str) -> None:
    m = machine(evict=evict, residents=PICKS + 4)
    place = dict(m.mapping().place)
    cache = place["expert.weight"].cache
    assert cache is not None

    def leaving(experts: float) -> Result:
        from opbyte.core.mapping_file import Placement

        kept = {"tier": "dev.hbm", "evict": evict, "via": "fill", "reserve": f"{experts * SIZE} B"}
        place["expert.weight"] = Placement.model_validate({"in": {"dev.ddr": 1.0}, "cache": kept})
        return simulate(m, decode(), m.mapping().model_copy(update={"place": place}))

    assert leaving(4).occupancy["dev.hbm"] <= m.values["dev.hbm.capacity"]
    for experts in (5, 1e6):
        with pytest.raises(CapacityError) as caught:
            leaving(experts)
        assert "the cache's reserve" in caught.value.tensors


def test_experts_must_fit_in_their_home() -> None:
    m = machine().with_values({"dev.ddr.capacity": LAYERS * EXPERTS * SIZE * 0.99})
    with pytest.raises(CapacityError) as caught:
        simulate(m, decode())
    assert caught.value.tier == "dev.ddr"


# -- many points, timelines, refusals --------------------------------------------------------------


@pytest.mark.parametrize("evict", ["none", "lru", "belady"])
@pytest.mark.parametrize("prefetch", ["none", "next_block_gate", "all"])
def test_many_points_are_the_points_one_by_one(prefetch: str, evict: str) -> None:
    batches, rooms = np.array([1.0, 3.0, 8.0, 3.0]), np.array([64.0, 40.0, 50.0, 64.0])
    made = machine(prefetch, evict, residents=64)
    base = float(made.values["dev.hbm.capacity"])
    capacity = base - (64 - rooms) * SIZE
    together = evaluate(
        made.with_values({"dev.hbm.capacity": capacity}), decode(batch=batches), made.mapping()
    )
    for i, batch in enumerate(batches):
        one = evaluate(
            made.with_values({"dev.hbm.capacity": capacity[i]}),
            decode(batch=float(batch)),
            made.mapping(),
        )
        for name, value in one.metrics.items():
            got = np.broadcast_to(together.metrics[name], 4)[i]
            assert got == pytest.approx(value[0], rel=1e-12, nan_ok=True), name


def test_events_draw_a_timeline(tmp_path: Path) -> None:
    result = simulate(machine("next_block_gate"), decode(), fidelity="event", seed=1)
    frame = result.outcome.detail["steps"]["decode"]
    np.testing.assert_allclose(frame["start_s"][1:], frame["end_s"][:-1], rtol=1e-12)
    trace = json.loads(write_perfetto(result, tmp_path / "t.json").read_text())["traceEvents"]
    assert {"operators", "copies"} <= {e["args"].get("name") for e in trace if e["ph"] == "M"}


def test_seeds_give_draws() -> None:
    m, work = machine(evict="lru", residents=20), decode()
    first, again, other = (
        simulate(m, work, fidelity="event", seed=s).copied_bytes for s in (0, 0, 1)
    )
    assert first == again
    assert first != other


def refusal(mapping: dict[str, Any], work: Any = None) -> str:
    links = {"fill": {"ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": "50 GB/s"}}
    with pytest.raises(UncoveredError) as caught:
        simulate(device(links=links, count=2, mapping=mapping), work or decode())
    return str(caught.value)


def cached(**cache: Any) -> dict[str, Any]:
    return {"in": {"dev.ddr": 1.0}, "cache": {"tier": "dev.hbm", "via": "fill", **cache}}


def test_what_is_not_covered_is_refused() -> None:
    one = {"parallel": {"all": {"group": "all", "tp": 1}}}
    place = {"place": {"expert.weight": cached()}}
    split = {"expert.weight": {**cached(), "in": {"dev.ddr": 0.5, "dev.hbm": 0.5}}}
    assert "live in one memory" in refusal({**one, "place": split})
    ep = {"parallel": {"all": {"group": "all", "tp": 2, "ep": 2}}}
    assert "pp = ep = microbatches = 1" in refusal({**ep, **place})
    dense = Model("dense", HIDDEN, 1000, (DENSE,), (0,) * 2)
    assert "no kinds of them" in refusal({**one, **place}, Decode(dense, 1, 64))
    spilled = {"place": {"expert.weight": cached(), "kv": {"in": {"dev.ddr": 1.0}}}}
    assert "both use 'dev.ddr.bus'" in refusal({**one, **spilled})
    drawn = decode(routing=Routing("balanced"))
    assert "routing 'uniform' or 'zipf'" in refusal({**one, **place}, drawn)
    other = {"place": {"kv": cached()}}
    assert "no model of the cache of kv" in refusal({**one, **other})
    both = {"place": {"kv": cached(prefetch="all"), "expert.weight": cached()}}
    assert "no model of the cache of kv" in refusal({**one, **both})


def test_copies_over_a_link_between_devices_are_refused() -> None:
    links = {
        "fill": {"ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": "50 GB/s"},
        "peer": {"ends": ["dev", "dev"], "bandwidth": "300 GB/s"},
    }
    place = {"expert.weight": cached(evict="none", via="peer")}
    with pytest.raises(ConfigError, match=r"joins 'dev.ddr' and 'dev.hbm'.*peer.*fill"):
        simulate(device(links=links, mapping={"place": place}), decode())


def test_balanced_routing_needs_no_draw_without_a_cache() -> None:
    result = simulate(machine(), decode(batch=4, routing=Routing("balanced")))
    assert result.copied_bytes == LAYERS * 8 * SIZE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"locality": 1.5}, r"locality must lie in \[0, 1\], got 1.5"),
        ({"kind": "balanced", "locality": 0.5}, "locality belongs to the kinds"),
    ],
)
def test_localities_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        Routing(**fields)


def test_unknown_policies_are_refused_with_the_known_ones() -> None:
    place = {"expert.weight": cached(prefetch="next_gate")}
    with pytest.raises(ConfigError, match="next_block_gate"):
        device(mapping={"place": place})


def test_an_expert_per_device_is_its_share() -> None:
    place = {"expert.weight": cached(evict="none")}
    links = {
        "fill": {"ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": "50 GB/s"},
        "peer": {"ends": ["dev", "dev"], "bandwidth": "100 GB/s"},
    }
    two = simulate(device(links=links, count=2, mapping={"place": place}), decode())
    assert two.copied_bytes == LAYERS * PICKS * SIZE / 2
