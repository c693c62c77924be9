"""Do tensors of a step come and go as often as they should, and do their holes count?"""

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import evaluate
from opbyte.sim.training.caching_allocator import replayed
from opbyte.sim.training.pipeline import order_of
from opbyte.workloads.train import gathered
from opbyte.workloads.training.lifetimes import lifetimes

MACHINE = "dgx-a100"
GIB = 2**30


def step(model="llama-3.2-1b", **fields):
    fields = {"batch": 16, "sequence": 2048, "micro_batch": 1, **fields}
    return ob.TrainStep(model, **fields)


def mapping(allocator=None, fusion="attention", **split):
    chosen = {
        "groups": {"gpus": "gpu"},
        "parallel": {"all": {"group": "gpus", **split}},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
        "fusion": fusion,
        "launch": "graph",
    }
    return chosen | ({"allocator": allocator} if allocator else {})


# -- tensors that come and go ----------------------------------------------------------------------

JOBS = {
    "kept": ({}, {"recompute": "none"}),
    "recomputed": ({}, {"recompute": "full"}),
    "dense": ({}, {"recompute": "dense"}),
    "split in three": ({"dp": 8, "zero": 3}, {"recompute": "full"}),
    "split in two": ({"dp": 4, "zero": 2}, {"micro_batch": 4, "chunked_loss": True}),
    "tensors and tokens": ({"tp": 4, "sequence": True}, {"micro_batch": 4}),
    "tensors": ({"tp": 4}, {"micro_batch": 4, "recompute": "full"}),
    "stages": ({"pp": 4}, {"recompute": "full"}),
    "chunks": ({"pp": 4, "interleave": 2}, {"recompute": "none"}),
    "probabilities": ({"tp": 2, "sequence": True}, {"recompute": "selective", "dropout": True}),
    "adapters": ({}, {"lora": {"rank": 16}, "recompute": "full"}),
    "adapters of untied": ({"pp": 2}, {"model": "opt-6.7b", "lora": {"rank": 16}}),
    "experts": ({"tp": 2, "ep": 2}, {"model": "qwen3-30b-a3b", "recompute": "full"}),
}


def played(name):
    split, fields = JOBS[name]
    work, parallel = step(**fields), Parallel(**split)
    plan = work.plan(parallel, fused=name != "probabilities")
    for stage, held in enumerate(work.held(plan)):
        many = min(int(np.max(work.microbatches(parallel))), 2 * parallel.pp)
        order = order_of(parallel.pp, parallel.interleave, many, stage)
        yield lifetimes(plan, stage, order, (4.0, 4.0, 4.0), lambda _: 1.0), held, plan


def most(found):
    """Return the most bytes of tensors at a time."""
    events, sizes = found.arrays()
    return np.cumsum(np.sign(events) * sizes[np.abs(events) - 1]).max()


@pytest.mark.parametrize("name", JOBS)
def test_each_tensor_comes_once_and_goes_once_or_stays(name):
    for found, held, plan in played(name):
        events, sizes = found.arrays()
        come, gone = events[events > 0] - 1, -events[events < 0] - 1
        assert come.tolist() == list(range(len(sizes)))
        assert len(set(gone)) == len(gone)
        when = {int(e): i for i, e in enumerate(events)}
        assert all(when[-t - 1] > when[t + 1] for t in gone.tolist())
        stay = sizes[np.setdiff1d(come, gone)].sum()
        lasting = ("weight", "gradient", "momentum", "variance", "master_weight")
        known = sum(float(np.max(held[n])) for n in lasting) - gathered(plan)
        assert stay == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("name", JOBS)
def test_tensors_at_the_peak_are_about_those_of_the_classes(name):
    """Two ways to count: one tensor at a time, and the sums of classes.

    Classes have room for the largest row of all stages, and for logits twice; they have none for
    the sum of a layer's gradients of which a device keeps a part.
    """
    for found, held, _ in played(name):
        assert 0.75 < most(found) / float(np.max(sum(held.values()))) < 1.05


@pytest.mark.parametrize("name", [n for n in JOBS if not n.startswith(("stages", "chunks"))])
def test_what_a_forward_pass_leaves_is_what_the_tape_says(name):
    split, fields = JOBS[name]
    plan = step(**fields).plan(Parallel(**split), fused=name != "probabilities")
    left = []
    for order in ([], [(0, 0, 0)]):  # two steps, and nothing runs backward
        events, sizes = lifetimes(plan, 0, order, (), lambda _: 1.0).arrays()
        left.append((np.sign(events) * sizes[np.abs(events) - 1]).sum())
    assert left[1] - left[0] == pytest.approx(2 * float(np.max(plan.kept[0])), rel=1e-6)


def test_scores_inside_one_kernel_are_no_tensors():
    """One sequence of 8,192 tokens: 32 heads of 8,192^2 scores of 16 bits, half of them masked."""

    def largest(fused):
        plan = step(sequence=8192, chunked_loss=True).plan(Parallel(), fused=fused)
        found = lifetimes(plan, 0, [(0, 0, 0), (1, 0, 0)], (), lambda _: 1.0)
        return found.arrays()[1][2 * len(plan.order) :].max()  # behind weights and gradients

    assert largest(fused=False) == 32 * 8192**2 * 2
    assert largest(fused=True) == 2 * 8192 * 8192 * 2  # gate and up


def test_what_attention_keeps_of_queries_and_keys_is_what_was_made():
    plan = step().plan(Parallel())
    layer = plan.tapes[plan.order[1]]
    rotary = next(i for i, node in enumerate(layer.nodes) if node.kind == "rotary")
    forward = lifetimes(plan, 0, [(0, 0, 0)], (), lambda _: 1.0).arrays()[1]
    assert np.count_nonzero(forward == layer.size(rotary)) == 2 * sum(plan.layers)  # two steps


# -- holes -----------------------------------------------------------------------------------------


def test_holes_are_a_class_of_what_a_device_holds():
    plain, caching = (
        ob.simulate(MACHINE, step(recompute="full"), mapping(a, dp=8, zero=3))
        for a in (None, "caching")
    )
    assert plain.fragmentation_bytes == 0.0
    assert 0.01 < caching.fragmentation_bytes / caching.peak_bytes < 0.2
    assert caching.peak_bytes == pytest.approx(plain.peak_bytes + caching.fragmentation_bytes)
    assert caching.seconds == plain.seconds
    assert "fragmentation" not in plain.memory
    assert (caching.memory["fragmentation"] == caching.fragmentation_bytes).all()
    assert caching.memory["total"].max() == pytest.approx(caching.peak_bytes, rel=0.02)


def test_segments_that_tensors_of_no_class_need_count():
    """An embedding of 256,000 words is gathered whole: more than the two layers of the classes."""
    split, work = {"dp": 8, "zero": 3}, step("gemma-2-2b", recompute="full", chunked_loss=True)
    plan = work.plan(Parallel(**split))
    found = lifetimes(plan, 0, order_of(1, 1, 2, 0), (4.0,) * 3, lambda _: 1.0)
    segments = replayed(*found.arrays())
    held = ob.simulate(MACHINE, work, mapping("caching", **split))
    assert segments.asked > held.peak_bytes - held.fragmentation_bytes
    assert held.peak_bytes == pytest.approx(segments.reserved)


def test_each_point_has_its_own_holes():
    chosen = load_mapping(mapping("caching", dp=8, zero=3))
    machine = load_machine(MACHINE)
    sizes = np.array([1.0, 2.0, 4.0])
    names = ("fragmentation_bytes", "peak_bytes")

    def metrics(micro_batch, on=machine):
        found = evaluate(on, step(batch=32, micro_batch=micro_batch), chosen).metrics
        return [found[name] for name in names]

    together = metrics(sizes)
    alone = [metrics(size) for size in sizes]
    for i in range(2):
        np.testing.assert_array_equal(together[i], [one[i][0] for one in alone])
    # Capacities alone change what is given back, not what a tensor takes.
    swept = machine.with_values({"gpu.hbm.capacity": np.array([80e9, 40e9])})
    np.testing.assert_array_equal(metrics(2.0, swept)[0], np.broadcast_to(alone[1][0], 2))


def test_a_memory_that_is_nearly_full_gets_back_what_is_free():
    work, split = step(recompute="full", micro_batch=4), {}

    def held(capacity):
        machine = load_machine(MACHINE).replace({"gpu.hbm.capacity": f"{capacity} B"})
        return ob.simulate(machine, work, mapping("caching", **split))

    roomy = held(80 * GIB)
    tensors = roomy.peak_bytes - roomy.fragmentation_bytes
    tight = held(int(roomy.peak_bytes) - GIB // 4)
    assert tensors < tight.peak_bytes <= roomy.peak_bytes - GIB // 4
    with pytest.raises(CapacityError, match="fragmentation"):
        held(int(tensors) + 2**20)
    fits = mapping(None, **split)
    machine = load_machine(MACHINE).replace({"gpu.hbm.capacity": f"{int(tensors) + 2**20} B"})
    assert ob.simulate(machine, work, fits).peak_bytes == pytest.approx(tensors)


def test_tensors_that_live_elsewhere_leave_no_holes():
    chosen = mapping("caching")
    far = {"place": {"optimizer": {"in": {"host.dram": 1.0}}}}
    work = step(batch=8)
    near, away = (ob.simulate("dgx-a100", work, chosen | p) for p in ({}, far))
    assert away.peak_bytes == pytest.approx(near.peak_bytes, rel=0.02)
    on_device = away.memory.drop(columns=["momentum", "variance", "master_weight"])
    assert away.fragmentation_bytes < on_device["total"].max()


FAR, BOTH = {"host.dram": 1.0}, {"gpu.hbm": 0.5, "host.dram": 0.5}


@pytest.mark.parametrize(
    ("work", "more", "word"),
    [
        (step(), {"swap": 0.5}, "an allocator beside a share that is swapped"),
        (step(), {"place": {"activation": {"in": FAR}}}, "`activation` lives in host.dram"),
        (step(), {"place": {"activation": {"in": BOTH}}}, "lives in gpu.hbm, host.dram"),
        (ob.Decode("llama-3.2-1b", batch=1, context=64), {}, "allocator"),
    ],
)
def test_an_allocator_that_has_no_model_is_refused(work, more, word):
    with pytest.raises(UncoveredError, match=word):
        ob.simulate(MACHINE, work, mapping("caching") | more)


def test_an_allocator_of_a_cpu_is_refused():
    chosen = load_machine("cxl-server").mapping("default")
    chosen = chosen.model_copy(update={"allocator": "caching"})
    with pytest.raises(UncoveredError, match=r"'cpu\.cores' is a CPU"):
        ob.simulate("cxl-server", step(), chosen)


def test_activations_may_be_placed_where_they_are_anyway():
    chosen = mapping("caching")
    place = {"place": {"activation": {"in": {"gpu.hbm": 1.0}}}}
    said, left_out = (ob.simulate(MACHINE, step(batch=8), chosen | p) for p in (place, {}))
    assert said.fragmentation_bytes == left_out.fragmentation_bytes > 0.0
