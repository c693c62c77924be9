"""Do policies place tensors as published, within rooms, and never faster than the bound?"""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, SimulationError, UncoveredError
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.misses import hit_share
from opbyte.sim.simulate import evaluate
from opbyte.sim.training.allocation import (
    ORDER,
    POLICIES,
    Problem,
    Tier,
    cut,
    decided,
    problem_of,
)
from opbyte.sim.training.balanced import Times
from opbyte.sim.training.optimal import LIMIT_S, Pass, StepModel, solve
from opbyte.sim.training.optimizer import passes, read_pct
from opbyte.sim.training.run import model_of
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.train import TrainStep

GIB = 2.0**30
MIB = 2.0**20
NAMES = ("local_only", "naive_interleave", "cxl_aware", "balanced", "optimal")


def sizes_of(parameters, kept):
    """Tensors of ZeRO-Offload: states of 4 bytes, weights and gradients of 2."""
    states = dict.fromkeys(ORDER[:4], 4.0 * parameters)
    return states | {"weight": 2.0 * parameters, "gradient": 2.0 * parameters, "activation": kept}


def problem(parameters, local, beyond, instances=1, kept=1e9, model=None):
    tensors = cut(sizes_of(parameters, kept), 256 * MIB)
    ends = Tier("cpu.dram", local), Tier("aic.dram", beyond, instances)
    return Problem(tensors, *ends, model)


# -- the published allocation ----------------------------------------------------------------------


def test_the_published_allocation_of_100_and_256_gib():
    # arXiv 2507.03305, artifact, usage_tutorial.md: LFM2.5-8B-A1B, one sequence of 4,096 tokens.
    model = load_model("lfm2-8b-a1b")
    kept = 2.0 * 4096 * 2048 * 24
    shares = decided("cxl_aware", problem(model.parameters, 100 * GIB, 256 * GIB, kept=kept))
    masks = {n: [i for i, s in enumerate((x, 1.0 - x)) if s > 0.0] for n, x in shares.items()}
    assert masks == {
        "momentum": [0],
        "variance": [0],
        "master_gradient": [0],
        "master_weight": [0, 1],
        "weight": [1],
        "activation": [1],
        "gradient": [1],
    }
    naive = decided("naive_interleave", problem(model.parameters, 100 * GIB, 256 * GIB, kept=kept))
    assert all(0.0 < x < 1.0 for x in naive.values())
    local = decided("local_only", problem(model.parameters, 256 * GIB, 256 * GIB, kept=kept))
    assert set(local.values()) == {1.0}


def test_the_published_allocation_in_a_step():
    # The same from the model's own tensors: 100 GiB hold three states and a part of the fourth.
    fields = {"recompute": "full", "chunked_loss": True, "gradient": "bf16", "clip": False}
    step = TrainStep(load_model("lfm2-8b-a1b"), batch=1, sequence=4096, micro_batch=1, **fields)
    found = evaluate(host(), step, ob.load_mapping(chosen("cxl_aware"))).metrics
    kept = {n: float(found[f"{n}_local"][0]) for n in ORDER}
    assert [kept[n] for n in ORDER[:3]] == [1.0, 1.0, 1.0]
    assert 0.0 < kept["master_weight"] < 1.0
    assert [kept[n] for n in ORDER[4:]] == [0.0, 0.0, 0.0]


def test_what_does_not_fit_is_named():
    with pytest.raises(CapacityError) as error:
        decided("local_only", problem(8e9, 100 * GIB, 256 * GIB))
    assert error.value.tier == "cpu.dram"
    assert error.value.available_bytes == 100 * GIB
    with pytest.raises(CapacityError, match=r"aic\.dram"):
        decided("cxl_aware", problem(30e9, 100 * GIB, 256 * GIB))
    with pytest.raises(ConfigError, match="Did you mean 'cxl_aware'"):
        decided("cxl-aware2", problem(8e9, 100 * GIB, 256 * GIB))


def test_a_plug_in_that_forgets_a_tensor_is_told():
    @POLICIES.register("forgetful")
    def forgetful(given):
        return {t.name: 0 for t in given.tensors[1:]}

    try:
        with pytest.raises(SimulationError, match="'momentum' has"):
            decided("forgetful", problem(1e9, 100 * GIB, 256 * GIB))
    finally:
        POLICIES._entries.pop("forgetful")


@given(
    st.floats(1e8, 2e10), st.floats(0, 400), st.floats(0, 400), st.integers(1, 4),
    st.floats(0, 5e10),
)  # fmt: skip
def test_policies_fill_no_room_twice(parameters, local, beyond, instances, kept):
    for name in NAMES[:3]:
        one = problem(parameters, local * GIB, beyond * GIB, instances, kept)
        try:
            shares = decided(name, one)
        except CapacityError:
            continue
        near = sum(shares[t.name] * t.size for t in one.tensors)
        assert near <= one.local.room * (1 + 1e-9)
        assert sum(t.size for t in one.tensors) - near <= one.beyond.room * (1 + 1e-9)
        # Whole chunks.
        for t in one.tensors:
            assert shares[t.name] * t.chunks == pytest.approx(round(shares[t.name] * t.chunks))


# -- the bound -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_no_policy_beats_the_bound(seed, instances):
    rng = np.random.default_rng(seed)
    sizes = {n: float(x) for n, x in zip(ORDER, rng.uniform(0.1, 20, len(ORDER)), strict=True)}
    tensors = cut({n: x * GIB for n, x in sizes.items()}, GIB)
    need = sum(t.size for t in tensors)

    def loads(resources):
        return {
            r: {t.name: float(x) for t, x in zip(tensors, rng.uniform(0, 1, 7), strict=True)}
            for r in resources
        }

    model = StepModel(
        tensors,
        tuple(
            Pass(
                float(rng.uniform(0, 3)), float(rng.choice([0.0, 1.0, rng.uniform(0, 0.5)])),
                float(rng.integers(1, 4)), loads("ab"), loads("ac"), {"a": 0.1}, 0.01,
            )
            for _ in range(3)
        ),
    )  # fmt: skip
    rooms = float(rng.uniform(0.2, 1.2)) * need, float(rng.uniform(0.9, 1.5)) * need
    ends = Tier("near", rooms[0]), Tier("far", rooms[1], instances)
    one = Problem(tensors, *ends, lambda: model)
    best = solve(one)
    assert best.bound <= best.seconds * (1 + 1e-9)
    assert best.seconds <= best.bound * 1.001 + 1e-6
    times, shares = Times(model), rng.uniform(0, 1, (5, 7))
    for x, seconds in zip(shares, times(shares), strict=True):
        expected = model.seconds({t.name: float(v) for t, v in zip(tensors, x, strict=True)})
        assert seconds == pytest.approx(expected, rel=1e-12)
    drawn = [{t.name: int(rng.integers(0, t.chunks + 1)) for t in tensors} for _ in range(20)]
    for n, kept in enumerate(drawn):
        near = sum(kept[t.name] * t.chunk for t in tensors)
        if near > rooms[0] or need - near > rooms[1]:
            continue
        shares = {t.name: drawn[n][t.name] / t.chunks for t in tensors}
        assert model.seconds(shares) >= best.bound * (1 - 1e-9)
    found = {}
    for name in NAMES[:4]:
        try:
            found[name] = model.seconds(decided(name, one))
        except CapacityError:
            continue
        assert found[name] >= best.bound * (1 - 1e-9)
    # Balancing begins at the published placement, and only what is faster replaces it.
    assert ("balanced" in found) == ("cxl_aware" in found)
    if "cxl_aware" in found:
        assert found["balanced"] <= found["cxl_aware"] * (1 + 1e-12)


# -- in a step -------------------------------------------------------------------------------------


def host(**changes):
    big = {"aic.dram.expander": {"capacity": "256 GiB"}, "aic.dram.capacity": "256 GiB"}
    return load_machine("cxl-host").replace({**big, **changes})


def chosen(policy, budget="100 GiB", **block):
    limit = {} if policy == "local_only" else {"budget": {"cpu.dram": budget}}
    return {
        "groups": {"gpus": "gpu"},
        "parallel": {"all": {"group": "gpus"}},
        "allocate": {"policy": policy, "local": "cpu.dram", "beyond": "aic.dram", **limit, **block},
        "run": [{"ops": "optimizer", "unit": "cpu.cores"}, {"ops": "all", "unit": "gpu.sm"}],
        "fusion": "attention",
        "launch": "graph",
        "overlap": "copy",
    }


def work(batch=16, sequence=4096, model=None, **fields):
    kept = {"recompute": "full", "chunked_loss": True, "gradient": "bf16", "clip": False}
    fields = {"batch": batch, "sequence": sequence, "micro_batch": batch} | kept | fields
    return TrainStep(model or load_model("qwen2.5-7b"), **fields)


@pytest.mark.parametrize(
    "case",
    [(16, 4096, {}), (1, 4096, {"aic.count": 2}), (1, 4096, {"dma.in_flight": "16 KiB"})],
)
def test_policies_are_priced_as_the_bound_counts(case):
    batch, sequence, changes = case
    machine, step = host(**changes), work(batch, sequence)
    mapping = ob.load_mapping(chosen("optimal"))
    one = problem_of(machine, step, mapping, model_of(machine, step, mapping, ideal=False))
    best, model = solve(one), one.model()
    for name in NAMES[1:]:
        r = ob.simulate(machine, step, chosen(name))
        counted = model.seconds(decided(name, one))
        # Simulation adds the latency of first bytes, microseconds.
        assert counted <= r.seconds * (1 + 1e-12)
        assert counted == pytest.approx(r.seconds, rel=1e-4)
        assert best.bound <= r.seconds
        assert r.occupancy["cpu.dram"] <= 100 * GIB
    assert best.seconds == pytest.approx(best.bound, rel=2e-4)


@pytest.mark.parametrize("policy", ["cxl_aware", "optimal"])
def test_an_array_of_one_point_is_that_point(policy):
    machine, mapping = host(), ob.load_mapping(chosen(policy))
    alone = evaluate(machine, work(), mapping).metrics
    rate = np.array([machine.values["aic.dram.cxl.bandwidth"]])
    room = np.array([machine.values["cpu.dram.capacity"]])
    arrays = machine.with_values({"aic.dram.cxl.bandwidth": rate, "cpu.dram.capacity": room})
    one = evaluate(arrays, work(np.array([16.0])), mapping).metrics
    assert one["seconds"] == pytest.approx(alone["seconds"], rel=1e-12)


def test_striping_over_two_devices_halves_what_each_holds_and_its_time():
    place = {n: {"in": {"aic.dram": 1.0}, "interleave": "4 KiB"} for n in ORDER}
    mapping = {n: x for n, x in chosen("cxl_aware").items() if n != "allocate"} | {"place": place}
    step = work(1, 4096)
    one, two = (ob.simulate(host(**{"aic.count": n}), step, mapping) for n in (1, 2))
    assert two.occupancy["aic.dram"] == pytest.approx(one.occupancy["aic.dram"] / 2)
    assert two.metrics["optimizer_s"] == pytest.approx(one.metrics["optimizer_s"] / 2, rel=1e-2)


@pytest.mark.parametrize("model", ["qwen2.5-7b", "mistral-nemo-12b"])
def test_balanced_is_close_to_the_bound_on_the_published_cases(model):
    worst = {}
    for channels, devices in ((8, 1), (8, 2), (16, 1), (16, 2)):
        machine = host(**{"cpu.dram.channels": channels, "aic.count": devices})
        for batch, sequence in ((1, 4096), (16, 4096), (3, 32768)):
            step = work(batch, sequence, model=load_model(model))
            mapping = ob.load_mapping(chosen("balanced"))
            one = problem_of(machine, step, mapping, model_of(machine, step, mapping, ideal=False))
            began = time.process_time()
            best = solve(one)
            assert time.process_time() - began < LIMIT_S
            for name in ("cxl_aware", "balanced"):
                ratio = one.model().seconds(decided(name, one)) / best.bound
                assert ratio >= 1.0 - 1e-9
                worst[name] = max(worst.get(name, 1.0), ratio)
    assert worst["balanced"] < 1.05
    # What the published order loses with few tokens: all three passes of Adam and the copies wait
    # for one memory each.
    assert worst["cxl_aware"] > 1.15


def test_balanced_evens_out_what_memories_take():
    # One pass over one class at rates 3 and 1: three quarters of it local, as far as chunks allow.
    (tensor,) = cut({"momentum": 100 * GIB}, GIB)
    only = Pass(
        0.0, exposed=0.0, times=1.0, fixed={},
        local={"a": {"momentum": 1 / 3}}, beyond={"b": {"momentum": 1.0}},
    )  # fmt: skip
    model = StepModel((tensor,), (only,))
    ends = Tier("near", 200 * GIB), Tier("far", 200 * GIB)
    assert decided("balanced", Problem((tensor,), *ends, lambda: model)) == {"momentum": 0.75}
    # A room that is smaller binds.
    less = Problem((tensor,), Tier("near", 60 * GIB), ends[1], lambda: model)
    assert decided("balanced", less) == {"momentum": 0.6}


def test_balanced_needs_a_step():
    with pytest.raises(SimulationError, match="needs a training step"):
        decided("balanced", problem(8e9, 100 * GIB, 256 * GIB))


def test_what_place_names_stays_and_takes_room():
    mapping = chosen("cxl_aware")
    mapping["place"] = {"activation": {"in": {"gpu.hbm": 1.0}}}
    machine, step = host(), work(1, 4096)
    one = problem_of(machine, step, ob.load_mapping(mapping))
    assert "activation" not in {t.name for t in one.tensors}
    mapping["place"] = {"weight": {"in": {"cpu.dram": 1.0}, "interleave": "4 KiB"}}
    less = problem_of(machine, step, ob.load_mapping(mapping))
    assert one.local.room - less.local.room == pytest.approx(2 * 7615616512)
    mapping["allocate"] = {"policy": "cxl_aware", "local": "cpu.dram", "beyond": "aic.dram"}
    free = problem_of(machine, step, ob.load_mapping(mapping))
    assert free.local.room == pytest.approx(512 * GIB - 2 * 7615616512, rel=1e-6)


def test_states_under_one_name_take_the_room_that_they_take_under_their_own():
    server, step = host(**{"cpu.dram.capacity": "100 GB"}), work(1, gradient="fp32")
    found = []
    for names in (("momentum", "variance", "master_weight"), ("optimizer",)):
        mapping = chosen("cxl_aware")
        mapping["place"] = {name: {"in": {"cpu.dram": 1.0}} for name in names}
        found.append(ob.simulate(server, step, mapping))
    assert found[0].seconds == found[1].seconds
    assert found[0].occupancy == found[1].occupancy


@pytest.mark.parametrize("policy", ["cxl_aware", "naive_interleave", "optimal"])
def test_a_policy_that_fills_the_gpu_leaves_room_for_what_works_there(policy):
    mapping = chosen(policy)
    mapping["allocate"] = {"policy": policy, "local": "gpu.hbm", "beyond": "cpu.dram"}
    r = ob.simulate(host(), work(1, gradient="fp32"), mapping)
    assert r.occupancy["gpu.hbm"] <= host().values["gpu.hbm.capacity"]
    # Three more GPUs, which do nothing, make no more room.
    idle = ob.simulate(host(**{"gpu.count": 4}), work(1, gradient="fp32"), mapping)
    assert idle.occupancy["gpu.hbm"] == r.occupancy["gpu.hbm"]


def test_what_no_policy_decides_is_refused():
    mapping = chosen("cxl_aware")
    decode = {"kind": "decode", "model": "llama-3.2-1b", "batch": 1, "context": 128}
    with pytest.raises(UncoveredError, match="allocate"):
        ob.simulate(host(), decode, mapping)
    two = {**chosen("optimal"), "parallel": {"all": {"group": "gpus", "dp": 2}}}
    with pytest.raises(UncoveredError, match="one GPU"):
        ob.simulate("cxl-host-2x2", work(2, 4096, micro_batch=1), two)
    with pytest.raises(ConfigError, match=r"cpu\.drum"):
        ob.simulate(host(), work(1, 4096), chosen("cxl_aware", local="cpu.drum"))


# -- the optimizer on cores ------------------------------------------------------------------------


def test_reads_and_writes_of_a_step():
    todo = passes(2.0, 2.0, scaled=False, clip=False, upcast=True, fused=True)
    # Read 2 + 16, written 4 + 14 + 2.
    assert read_pct(todo) == round(100 * 18 / 38)


def test_a_working_set_in_the_cache_pays_nothing_for_cxl():
    # A few million elements fit in 60 MB; 7B do not, and the ratio is that of both memories.
    mapping = {n: x for n, x in chosen("cxl_aware").items() if n != "allocate"}

    def seconds(tier, **fields):
        place = {n: {"in": {tier: 1.0}, "interleave": "4 KiB"} for n in ORDER}
        r = ob.simulate(host(), work(1, 1024, **fields), mapping | {"place": place})
        return r.metrics["optimizer_s"]

    small = {"lora": {"rank": 4, "targets": ["q_proj"]}}
    near, far = seconds("cpu.dram", **small), seconds("aic.dram", **small)
    elements = 4 * (3584 + 3584) * 28
    assert hit_share(38.0 * elements, 60e6, "random") == 1.0
    assert far == pytest.approx(near, rel=0.05)
    assert seconds("aic.dram") > 2.0 * seconds("cpu.dram")


# -- what is given ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [12e9, 40e9])
def test_a_given_rate_is_the_same_alone_and_as_a_column(rate):
    # It is one under the port's own mix; Adam's mix changes it as it changes the technology's.
    machine = load_machine("cxl-host")
    port = "aic.dram.cxl.bandwidth"
    mapping = machine.mapping("train-cxl")
    alone = evaluate(machine.replace({port: f"{rate / 1e9} GB/s"}), work(), mapping)
    column = evaluate(machine.with_values({port: np.array([rate])}), work(), mapping)
    for name in ("seconds", "optimizer_s", "communication_s"):
        assert alone.metrics[name][0] == pytest.approx(column.metrics[name][0], rel=1e-12)


def test_a_given_share_is_the_same_alone_and_as_a_column():
    machine = load_machine("cxl-host")
    port = "cpu.dram.imc.efficiency"
    mapping = machine.mapping("train-cxl")
    alone = evaluate(machine.replace({port: 0.5}), work(), mapping)
    column = evaluate(machine.with_values({port: np.array([0.5])}), work(), mapping)
    assert alone.metrics["seconds"][0] == pytest.approx(column.metrics["seconds"][0], rel=1e-12)


@pytest.mark.parametrize("port", ["aic.dram.cxl.bandwidth", "cpu.dram.imc.bandwidth"])
def test_a_rate_of_nothing_takes_for_ever(port):
    machine = load_machine("cxl-host").replace({port: "0 GB/s"})
    with pytest.raises(SimulationError, match="takes for ever: a rate that it needs is 0"):
        ob.simulate(machine, work(), machine.mapping("train-cxl"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chunk": "0 B"}, "`chunk` must be above 0, got 0 B"),
        ({"beyond": "cpu.dram"}, "`local` and `beyond` are two memories, got cpu.dram for both"),
        ({"budget": {"cpu.dramm": "1 GiB"}}, "`budget` is of `local` or `beyond`.* got cpu.dramm"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(change, words):
    block = {"policy": "cxl_aware", "local": "cpu.dram", "beyond": "aic.dram"} | change
    with pytest.raises(ConfigError, match=words):
        ob.load_mapping({"kind": "mapping", "groups": {"gpus": "gpu"}, "allocate": block})


def test_a_tensor_that_fills_the_memory_beyond_goes_on_in_dram():
    # 150 GiB round DRAM and one expander would be 75 each, and the expander has 60.
    tensors = cut({"momentum": 150 * GIB}, 256 * MIB)
    some = Problem(tensors, Tier("cpu.dram", 100 * GIB), Tier("aic.dram", 60 * GIB))
    assert decided("cxl_aware", some) == {"momentum": 0.6}


@settings(max_examples=60, deadline=None)
@given(st.floats(1e9, 2e10), st.floats(0.05, 1.0), st.integers(1, 4), st.floats(1e8, 1e11))
def test_what_fits_at_all_is_placed(parameters, part, instances, kept):
    sizes = sizes_of(parameters, kept)
    need = sum(sizes.values())
    # A chunk of each class of room to spare: chunks are whole.
    room = len(sizes) * 256 * MIB
    some = problem(parameters, part * need + room, (1 - part) * need + room, instances, kept)
    for policy in ("naive_interleave", "cxl_aware"):
        assert set(decided(policy, some)) == set(sizes)
