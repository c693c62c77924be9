"""Routers before attention and experts that run as they arrive: closed forms, both fidelities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from offloaded import COPY, LAYERS, PICKS, SIZE, START, decode, layers_of, machine, plain

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping_file import Placement
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import simulate
from opbyte.workloads.phases import Generate
from opbyte.workloads.serve import Serve


def mapped(made: Machine, **changes: Any) -> Any:
    """The machine's mapping with changes of the experts' cache, and of itself."""
    mapping = made.mapping()
    cache = {"tier": "dev.hbm", "evict": "none", "via": "fill", **changes.pop("cache", {})}
    place = dict(mapping.place)
    place["expert.weight"] = Placement.model_validate({"in": {"dev.ddr": 1.0}, "cache": cache})
    return mapping.model_copy(update={"place": place, **changes})


def parts() -> tuple[float, float, float]:
    """Return seconds from a router before attention to the experts, of experts, and to the end."""
    frame = plain().breakdown
    mine = frame[frame["block"] == "layer.full.moe"].set_index("operator")
    each = mine["seconds"] / mine["runs"]
    _, lead, rest = layers_of(plain())
    work = each["expert_gate_up"] + each["expert_activation"] + each["expert_down"]
    return lead - each["router"] - each["top_k"], work, rest


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
@pytest.mark.parametrize("fill", [1e9, 20e9, 1e12])
def test_a_router_before_attention_hides_copies_behind_the_mixer(
    fill: float, fidelity: Any
) -> None:
    made = machine(fill=fill)
    ahead, _, _ = parts()
    serial = PICKS * (START + SIZE / min(fill, 100e9))
    waits = LAYERS * max(0.0, serial - ahead)
    found = simulate(made, decode(), mapped(made, cache={"prefetch": "pre_attention"}), fidelity)
    assert found.seconds == pytest.approx(plain().seconds + waits, rel=1e-9)
    assert found.copied_bytes == LAYERS * PICKS * SIZE


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
@pytest.mark.parametrize("prefetch", ["none", "pre_attention"])
@pytest.mark.parametrize("fill", [1e9, 20e9, 50e9, 1e12])
def test_experts_that_run_as_they_arrive_hide_copies_behind_each_other(
    fill: float, prefetch: str, fidelity: Any
) -> None:
    made = machine(fill=fill)
    ahead, work, _ = parts()
    hidden = ahead if prefetch == "pre_attention" else 0.0
    copy, piece = START + SIZE / min(fill, 100e9), work / PICKS
    wait = max(0.0, copy - hidden, PICKS * copy - hidden - (PICKS - 1) * piece)
    cache = {"prefetch": prefetch, "waits": "expert"}
    found = simulate(made, decode(), mapped(made, cache=cache), fidelity)
    assert found.seconds == pytest.approx(plain().seconds + LAYERS * wait, rel=1e-6)


def test_what_is_kept_runs_first_and_hides_more() -> None:
    made = machine(evict="lru", residents=40)
    times = {
        waits: simulate(
            made, decode(), mapped(made, cache={"evict": "lru", "waits": waits}), "event"
        )
        for waits in ("block", "expert")
    }
    assert times["expert"].hit_rate == times["block"].hit_rate > 0.3
    assert times["expert"].seconds < times["block"].seconds
    expected = simulate(made, decode(), mapped(made, cache={"evict": "lru", "waits": "expert"}))
    assert expected.seconds == pytest.approx(times["expert"].seconds, rel=0.05)


def test_a_cache_of_so_many_slots() -> None:
    made = machine(evict="lru", residents=40)
    few, many = (
        simulate(made, decode(), mapped(made, cache={"evict": "lru", "slots": n})) for n in (10, 30)
    )
    assert many.peak_fast_bytes - few.peak_fast_bytes == pytest.approx(20 * SIZE)
    # Uniform choices hit by the share of what is kept, less what a layer itself has just taken.
    assert few.hit_rate == pytest.approx((10 - PICKS) / (16 * LAYERS), abs=0.02)
    assert many.hit_rate == pytest.approx((30 - PICKS) / (16 * LAYERS), abs=0.02)


def test_software_on_the_way_bounds_copies_and_only_the_first_waits_for_latency() -> None:
    made = machine()
    routes = {"expert.weight": {"via": ["fill"], "software": {"cap": "2 GB/s"}}}
    from opbyte.core.routes import Route

    routed = {name: (Route.model_validate(r),) for name, r in routes.items()}
    found = simulate(made, decode(), mapped(made, routes=routed))
    wait = START + PICKS * SIZE / 2e9
    assert found.seconds == pytest.approx(plain().seconds + LAYERS * wait, rel=1e-9)
    events = simulate(made, decode(), mapped(made, routes=routed), "event")
    assert events.seconds == pytest.approx(found.seconds, rel=1e-9)
    bound = simulate(made, decode(), mapped(made, routes=routed), "bound")
    assert bound.seconds < found.seconds - LAYERS * wait + LAYERS * PICKS * COPY * 1.01
    for wrong, text in (
        ({"kv": {"via": ["fill"], "software": {"cap": "2 GB/s"}}}, "class with a `cache`"),
        ({"expert.weight": {"via": ["pcie"], "software": {"cap": "2 GB/s"}}}, "links that copies"),
        ({"expert.weight": {"via": ["fill"]}}, "says what software does"),
    ):
        bad = {name: (Route.model_validate(r),) for name, r in wrong.items()}
        with pytest.raises(ConfigError, match=text):
            simulate(made, decode(), mapped(made, routes=bad))


# -- experts with gates that name their neurons -------------------------------------------------


def gated(used: float) -> Any:
    from opbyte.core.routes import Neurons

    return Neurons.model_validate({"used": used, "known_by": "gate"})


def test_a_gate_runs_in_full_and_the_others_by_their_share() -> None:
    made = machine(fill=1e12)
    full, some = (
        simulate(made, decode(), mapped(made, neurons=gated(u), cache={})) for u in (1.0, 0.4)
    )
    assert full.seconds == pytest.approx(simulate(made, decode(), mapped(made)).seconds, rel=1e-12)
    sparse = {"expert_gate_up": 0.7, "expert_down": 0.4, "gate_up": 0.7, "down": 0.4, "qkv": 1.0}
    for name, share in sparse.items():
        of = [r.breakdown.set_index("operator")["flops"][name] for r in (full, some)]
        assert np.max(of[1]) == pytest.approx(share * np.max(of[0]), rel=1e-9), name
    # Copies are of whole experts.
    assert some.copied_bytes == full.copied_bytes


def test_neurons_of_a_token_run_for_one_sequence() -> None:
    made = machine()
    with pytest.raises(UncoveredError, match="one sequence, got decode"):
        simulate(made, decode(batch=2), mapped(made, neurons=gated(0.4)))
    work = Generate(decode().model, 1, 8, 4)
    with pytest.raises(UncoveredError, match="got generate"):
        simulate(made, work, mapped(made, neurons=gated(0.4)))
    hot = gated(0.4).model_copy(update={"bundle": True})
    with pytest.raises(UncoveredError, match=r"neurons\.bundle is of neurons that are read"):
        simulate(made, decode(), mapped(made, neurons=hot))


@pytest.mark.parametrize("prefetch", ["all", "next_block_gate"])
def test_experts_of_the_next_block_do_not_run_as_they_arrive(prefetch: str) -> None:
    with pytest.raises(ValueError, match="are those of the block at work"):
        Placement.model_validate(
            {"in": {"a": 1.0}, "cache": {"tier": "b", "waits": "expert", "prefetch": prefetch}}
        )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cache": {"prefetch": "pre_attention"}}, "no model of prefetch: pre_attention"),
        ({"cache": {"waits": "expert"}}, "no model of waits: expert"),
        ({"cache": {"slots": 8}}, "no model of slots of a cache"),
        ({"neurons": gated(0.4)}, "no model of neurons"),
    ],
)
def test_a_server_refuses_what_its_tables_do_not_have(changes: dict[str, Any], text: str) -> None:
    machine = load_machine("a100-sxm-host")
    mapping = machine.mapping("served")
    place = dict(mapping.place)
    cache = {"tier": "gpu.hbm", "via": "pcie", "evict": "none", **changes.pop("cache", {})}
    place["expert.weight"] = Placement.model_validate({"in": {"host.dram": 1.0}, "cache": cache})
    work = Serve("mixtral-8x7b", "sample-chat", rate=0.05)  # type: ignore[arg-type]
    with pytest.raises(UncoveredError, match=text):
        simulate(machine, work, mapping.model_copy(update={"place": place, **changes}))
