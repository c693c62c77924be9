"""Do exchanges of replicas, sends of stages and sums of a tied embedding cost their energy?"""

import numpy as np
import pytest

from opbyte.core.mapping import load_mapping
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import evaluate
from opbyte.sim.training.step import Training
from opbyte.workloads.works import work_from

MACHINE = load_machine("dgx-a100-64x8")
PICO = 1e-12
#: Bytes of an element of gradients, and of what is trained.
GRADIENT, ELEMENT = 4.0, 2.0


def mapping(part="node.gpu", **split):
    return load_mapping(
        {
            "groups": {"gpus": part},
            "parallel": {"all": {"group": "gpus", **split}},
            "run": [{"ops": "all", "unit": f"{part}.sm"}],
            "fusion": "attention",
            "launch": "graph",
        }
    )


def work(model="llama-3.2-1b", **fields):
    return work_from({"kind": "train", "model": model, "batch": 32, "sequence": 512, **fields})


def joules(on, step, split, ideal=False):
    training = Training(on, step, split, ideal)
    return float(training.exchanges.joules(training.many)[0])


def bytes_on(resource, step, split):
    """Return the bytes that cross a link, or a port, by what a dearer one costs more."""
    name = f"{resource}.energy"
    dearer = MACHINE.with_values({name: MACHINE.values[name] + PICO})
    return (joules(dearer, step, split) - joules(MACHINE, step, split)) / (8 * PICO)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_replicas_cost_what_their_bytes_cross(zero):
    dp, many = 4, 8
    split = mapping(tp=2, dp=dp, zero=zero)
    step = work()
    plan = step.plan(split.degrees)
    trained, weights = float(np.sum(plan.trained)), float(np.sum(plan.weights))
    part = (dp - 1) / dp
    # A ring's halves, of the buffer's type and of the weights'.
    reduced, gathered = GRADIENT * trained * part, ELEMENT * trained * part
    each = {
        0: 2 * reduced, 1: reduced + gathered, 2: many * reduced + gathered,
        3: many * (reduced + 2 * weights * part),
    }[zero]  # fmt: skip
    assert float(step.microbatches(split.degrees)) == many
    assert bytes_on("nvlink", step, split) == pytest.approx(2 * dp * each, rel=1e-6)
    assert bytes_on("infiniband", step, split) == 0.0


def test_memories_are_read_and_written_once():
    dp, step = 4, work()
    split = mapping(dp=dp)
    buffer = GRADIENT * float(np.sum(step.plan(split.degrees).trained))
    assert bytes_on("node.gpu.hbm.phy", step, split) == pytest.approx(dp * 2 * buffer, rel=1e-6)
    split = mapping(dp=dp, zero=1)
    parts = (dp + 1) * buffer * (1 + ELEMENT / GRADIENT)
    assert bytes_on("node.gpu.hbm.phy", step, split) == pytest.approx(parts, rel=1e-6)


@pytest.mark.parametrize(("tp", "dp", "crossing"), [(8, 4, 32), (1, 16, 2), (2, 8, 4), (4, 2, 0)])
def test_rings_cross_the_border_of_nodes_as_often_as_they_must(tp, dp, crossing):
    step, split = work(batch=16), mapping(tp=tp, dp=dp)
    passed = 2 * (dp - 1) / dp * GRADIENT * float(np.sum(step.plan(split.degrees).trained))
    far, near = bytes_on("infiniband", step, split), bytes_on("nvlink", step, split)
    assert far == pytest.approx(crossing * passed, rel=1e-6)
    assert near == pytest.approx((tp * dp - crossing) * passed, rel=1e-6, abs=1.0)


@pytest.mark.parametrize(
    ("tp", "pp", "interleave", "sequence", "borders"),
    [(1, 4, 1, False, 0), (2, 4, 2, True, 0), (2, 4, 1, False, 0), (4, 4, 1, True, 1),
     (8, 2, 2, True, 3)],
)  # fmt: skip
def test_sends_cost_what_they_cross(tp, pp, interleave, sequence, borders):
    step = work(model="llama-3.1-8b", micro_batch=2)  # whose embedding is not tied
    split = mapping(tp=tp, pp=pp, interleave=interleave, sequence=sequence)
    hidden, many = 2 * 512 * 4096 * ELEMENT, 16
    sends = pp * interleave - 1
    near = hidden * (sends - borders)
    if not sequence:
        near += hidden * (tp - 1) * sends
    assert bytes_on("infiniband", step, split) == pytest.approx(2 * many * hidden * borders)
    assert bytes_on("nvlink", step, split) == pytest.approx(2 * many * near, abs=1.0)


def test_a_tied_embedding_is_summed_once_a_step():
    step, split = work(), mapping(pp=4, dp=2)
    alone = work(model="llama-3.1-8b")
    model = step.model
    assert model.tied
    assert not alone.model.tied
    sends = 2 * 16 * 3 * 2 * 512 * model.hidden * ELEMENT
    replicas = float(np.sum(step.plan(split.degrees).of_stages(step.plan(split.degrees).trained)))
    replicas *= 2 * GRADIENT
    tied = model.vocab * model.hidden * GRADIENT * 2 * 2
    assert bytes_on("nvlink", step, split) == pytest.approx(sends + replicas + tied, rel=1e-6)


@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_a_step_holds_the_energy_of_its_exchanges(fidelity):
    step, split = work(), mapping(tp=2, dp=4, pp=2, zero=1, sequence=True)
    more = 40 * PICO
    dearer = MACHINE.with_values({"infiniband.energy": MACHINE.values["infiniband.energy"] + more})
    ideal = fidelity == "bound"
    added = joules(dearer, step, split, ideal) - joules(MACHINE, step, split, ideal)
    whole = [
        float(evaluate(m, step, split, fidelity=fidelity).metrics["joules"][0])
        for m in (MACHINE, dearer)
    ]
    assert added > 0
    assert whole[1] - whole[0] == pytest.approx(added, rel=1e-6)


def test_one_device_sends_nothing_and_a_bound_is_never_dearer():
    assert joules(MACHINE, work(), mapping()) == 0.0
    split = mapping(dp=8, zero=3)
    assert joules(MACHINE, work(), split, ideal=True) <= joules(MACHINE, work(), split)
    # A switch that adds takes fewer bytes than a ring.
    server, here = load_machine("dgx-h100"), mapping("gpu", dp=8)
    bound, analytic = (Training(server, work(), here, ideal) for ideal in (True, False))
    assert bound.exchanges.joules(bound.many) <= analytic.exchanges.joules(analytic.many)
    least = 9 / 8 * GRADIENT * float(np.sum(bound.plan.trained)) / server.values["nvlink.bandwidth"]
    assert float(bound.timed().after[0]) == pytest.approx(least, rel=1e-6)


def test_points_equal_single_ones():
    split = mapping(dp=16, pp=2, zero=2)
    values = np.array([1.0, 5.0]) * MACHINE.values["infiniband.energy"]
    both = MACHINE.with_values({"infiniband.energy": values})
    training = Training(both, work(), split, ideal=False)
    single = [joules(MACHINE.with_values({"infiniband.energy": v}), work(), split) for v in values]
    assert training.exchanges.joules(training.many) == pytest.approx(single)
