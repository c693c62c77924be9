"""Composition of Experts: copies and runs by hand, and in expectation as they happen."""

import numpy as np
import pytest
from handmade import device

from opbyte.core.errors import CapacityError, UncoveredError
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.simulate import evaluate, resolve_mapping, simulate
from opbyte.workloads.coe import CompositionOfExperts
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.phases import Generate, Prefill

LAYER = Layer(Attention(4, 4, 64), DenseFfn(1024))
SMALL = Model("small", 256, 1000, (LAYER,), (0,) * 4)
SPARSE = Model("sparse", 256, 1000, (Layer(Attention(4, 4, 64), MoeFfn(8, 2, 512)),), (0,) * 4)
FILL = 50e9


def machine(residents: float, *, model: Model = SMALL, overlap: str = "none") -> Machine:
    """A device whose HBM holds router, cache and `residents` experts."""
    beside = work(model=model).footprint(mapping_of().degrees)
    rest = sum(float(np.max(v)) for k, v in beside.items() if k != "expert.weight")
    links = {
        "fill": {"ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": "50 GB/s", "energy": "1 pJ/b"}
    }
    place = {
        "router.weight": {"in": {"dev.hbm": 1.0}},
        "expert.weight": {
            "in": {"dev.ddr": 1.0},
            "cache": {"tier": "dev.hbm", "evict": "lru", "via": "fill"},
        },
        "kv": {"in": {"dev.hbm": 1.0}},
    }
    made = device(links=links, mapping={"place": place, "overlap": overlap})
    return made.with_values({"dev.hbm.capacity": rest + (residents + 0.5) * model.weight_bytes})


def mapping_of():
    return device().mapping()


def work(model: Model = SMALL, **fields) -> CompositionOfExperts:
    given = {"count": 40, "batch": 4, "input": 64, "output": 8, "requests": 400}
    return CompositionOfExperts(router=SMALL, experts=model, **{**given, **fields})


def parts(m: Machine, model: Model = SMALL) -> tuple[float, float, float]:
    """Return router, copy and expert seconds from the works that they are made of."""
    hbm = {"groups": {"all": "dev"}, "run": [{"ops": "all", "unit": "dev.core"}]}
    roomy = m.with_values({"dev.hbm.capacity": 1e15})
    router = simulate(roomy, Prefill(SMALL, 4, 64), hbm).seconds
    expert = simulate(roomy, Generate(model, 1, 64, 8), hbm).seconds
    return router, 0.5e-6 + model.weight_bytes / FILL, expert


@pytest.mark.parametrize("residents", [1, 8, 20])
def test_latency_of_a_batch_by_hand(residents: int) -> None:
    m = machine(residents)
    result = simulate(m, work())
    router, copy, expert = parts(m)
    assert result.switch_one_s == pytest.approx(copy, rel=1e-12)
    assert result.expert_one_s == pytest.approx(expert, rel=1e-12)
    # Four prompts, each of which finds its expert with probability residents / 40; distinct
    # experts of a batch bound the copies.
    distinct = 40 * (1 - (39 / 40) ** 4)
    misses = min(distinct, 4 * (1 - residents / 40))
    assert result.misses == pytest.approx(misses, rel=1e-12)
    assert result.hit_rate == pytest.approx(1 - misses / distinct, abs=1e-12)
    assert result.seconds == pytest.approx(router + misses * copy + 4 * expert, rel=1e-12)
    assert result.models_max == 512 * 2**30 // SMALL.weight_bytes
    assert result.router_s + result.switch_s + result.expert_s == pytest.approx(result.seconds)


def test_energy_of_a_copy_is_both_ports_and_the_link() -> None:
    m = machine(1)
    few, many = simulate(m, work(batch=1, count=2)), simulate(m, work(batch=1, count=4))
    each = SMALL.weight_bytes * 8 * (12e-12 + 1e-12 + 4e-12)
    assert many.joules - few.joules == pytest.approx((0.75 - 0.5) * each, rel=1e-9)


@pytest.mark.parametrize("choose", [{}, {"choose": "zipf", "skew": 1.1}])
@pytest.mark.parametrize("overlap", ["none", "copy"])
def test_when_all_experts_fit_both_fidelities_agree_exactly(choose, overlap) -> None:
    m = machine(40, overlap=overlap)
    analytic, event = simulate(m, work(**choose)), simulate(m, work(**choose), fidelity="event")
    router, _, expert = parts(m)
    assert analytic.misses == event.misses == 0
    assert analytic.hit_rate == event.hit_rate == 1
    assert event.seconds == pytest.approx(analytic.seconds, rel=1e-9)
    assert analytic.seconds == pytest.approx(router + 4 * expert, rel=1e-12)


def test_when_every_batch_names_the_only_expert_there_is() -> None:
    m = machine(1)
    one = work(count=1, batch=3)
    assert simulate(m, one, fidelity="event").seconds == pytest.approx(
        simulate(m, one).seconds, rel=1e-9
    )


def test_every_batch_of_an_event_run_is_copies_and_runs() -> None:
    m = machine(5)
    event = simulate(m, work(), fidelity="event", seed=3)
    router, copy, expert = parts(m)
    frame = event.requests
    assert len(frame) == 400
    np.testing.assert_allclose(
        frame["latency_s"], router + frame["misses"] * copy + 4 * expert, rtol=1e-9
    )
    np.testing.assert_allclose(frame["start_s"][1:], frame["end_s"][:-1], rtol=1e-12)
    assert (frame["misses"] <= frame["distinct"]).all()
    assert event.seconds == pytest.approx(frame["latency_s"].mean(), rel=1e-12)


@pytest.mark.parametrize("residents", [4, 10, 30])
@pytest.mark.parametrize("batch", [1, 4])
def test_copies_happen_as_often_as_expected(residents: int, batch: int) -> None:
    # Prompts are independent, and the set of residents has always the same size: copies are
    # binomial. Four standard deviations.
    m = machine(residents)
    given = work(batch=batch, requests=2000)
    event = simulate(m, given, fidelity="event", seed=11)
    prompts, miss = 2000 * batch, 1 - residents / 40
    error = 4 * np.sqrt(prompts * miss * (1 - miss))
    assert event.misses * 2000 == pytest.approx(prompts * miss, abs=error)
    expected = simulate(m, given)
    assert event.misses == pytest.approx(expected.misses, abs=error / 2000)


@pytest.mark.parametrize("skew", [0.8, 1.2])
def test_popular_experts_stay_and_are_hit_by_prompts_not_by_batches(skew: float) -> None:
    m = machine(10)
    given = work(batch=8, choose="zipf", skew=skew, requests=3000)
    event, expected = simulate(m, given, fidelity="event", seed=5), simulate(m, given)
    # Che's error of about 0.01 a prompt, and the binomial error of 24000 prompts.
    assert event.misses == pytest.approx(expected.misses, abs=8 * (0.01 + 4 * 0.5 / 24000**0.5))


def test_an_event_run_repeats_with_its_seed() -> None:
    m = machine(5)
    same = [simulate(m, work(), fidelity="event", seed=s).seconds for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("fidelity", ["bound", "analytic", "event"])
@pytest.mark.parametrize("residents", [1, 6, 20])
def test_copying_beside_the_runs_is_never_slower(fidelity: str, residents: int) -> None:
    after = simulate(machine(residents), work(), fidelity=fidelity, seed=2)
    beside = simulate(machine(residents, overlap="copy"), work(), fidelity=fidelity, seed=2)
    assert beside.seconds <= after.seconds * (1 + 1e-9)
    assert beside.misses == after.misses
    assert beside.seconds >= max(after.switch_s, after.expert_s) * (1 - 1e-9)
    assert beside.seconds < after.seconds


def test_experts_that_are_mixtures_run_from_the_fast_tier_too() -> None:
    m = machine(3, model=SPARSE)
    result = simulate(m, work(SPARSE))
    assert result.expert_one_s == pytest.approx(parts(m, SPARSE)[2], rel=1e-12)
    assert "dev.ddr.bus_bytes" not in result.breakdown.columns


def test_without_a_cache_experts_run_from_where_they_live() -> None:
    place = {"expert.weight": {"in": {"dev.ddr": 1.0}}, "router.weight": {"in": {"dev.hbm": 1.0}}}
    m = device(mapping={"place": place})
    result = simulate(m, work())
    hbm = {"groups": {"all": "dev"}, "run": [{"ops": "all", "unit": "dev.core"}]}
    ddr = {**hbm, "place": {"weight": {"in": {"dev.ddr": 1.0}}}}
    assert result.misses == 0
    assert result.switch_s == 0
    assert result.expert_one_s == pytest.approx(
        simulate(m, Generate(SMALL, 1, 64, 8), ddr).seconds, rel=1e-12
    )
    assert result.router_s == pytest.approx(
        simulate(m, Prefill(SMALL, 4, 64), hbm).seconds, rel=1e-12
    )


@pytest.mark.parametrize("fidelity", ["analytic", "event"])
def test_what_does_not_fit_is_refused_by_tier(fidelity: str) -> None:
    with pytest.raises(CapacityError) as caught:
        simulate(machine(1), work(count=1e6), fidelity=fidelity)
    assert caught.value.tier == "dev.ddr"
    assert caught.value.needed_bytes == pytest.approx(1e6 * SMALL.weight_bytes)
    assert "expert.weight" in caught.value.tensors
    with pytest.raises(CapacityError) as caught:
        simulate(machine(0), work(), fidelity=fidelity)
    assert caught.value.tier == "dev.hbm"


def test_a_tier_that_holds_no_model_at_all_takes_infinitely_many_nodes() -> None:
    m = machine(0).with_values({"dev.hbm.capacity": 0.5 * SMALL.weight_bytes})
    outcome = evaluate(m, work(), m.mapping())
    assert outcome.infeasible is not None
    assert outcome.infeasible.all()
    assert outcome.metrics["models_in_fast"] == 0
    assert outcome.metrics["nodes_fast"] == np.inf
    assert np.isnan(outcome.metrics["seconds"])


def test_experts_spread_over_memories_are_refused() -> None:
    place = {"expert.weight": {"in": {"dev.ddr": 0.5, "dev.hbm": 0.5}}}
    with pytest.raises(UncoveredError, match=r"live in one memory.*dev.ddr, dev.hbm"):
        simulate(device(mapping={"place": place}), work())


def test_models_and_nodes_of_the_published_machines_by_hand() -> None:
    llama = load_model("llama-2-7b")
    given = {"kind": "coe", "router": "llama-2-7b", "experts": "llama-2-7b", "count": 850}
    size = llama.weight_bytes
    node = simulate("sn40l-node", given)
    assert node.models_in_fast == pytest.approx(8 * 64 * 2**30 // size, abs=1)
    assert node.models_max == pytest.approx(8 * 1.5 * 2**40 // size, abs=1)
    assert node.nodes_max == 1
    dgx = load_machine("dgx-a100")
    outcome = evaluate(
        dgx,
        CompositionOfExperts(llama, llama, 850, 1, 256, 20),
        resolve_mapping(dgx, None, "coe"),
    )
    assert outcome.metrics["nodes_fast"] == np.ceil(850 / (640e9 // size))
    # One link of 32 GB/s for all eight; DDR to HBM of the node is eight times 125 GB/s.
    assert outcome.metrics["switch_one_s"] == pytest.approx(size / 32e9, rel=0.01)
    assert node.switch_one_s == pytest.approx(size / 1e12, rel=0.01)


def test_one_socket_of_a_node_has_its_own_memories_only() -> None:
    node, socket = load_machine("sn40l-node"), load_machine("sn40l-socket")
    mapping = socket.mapping("coe")
    given = {"kind": "coe", "router": "llama-2-7b", "experts": "llama-2-7b", "count": 100}
    alone, one = simulate(socket, given, mapping), simulate(node, given, mapping)
    for metric in ("seconds", "models_in_fast", "models_max", "switch_one_s", "misses"):
        assert getattr(one, metric) == getattr(alone, metric)
