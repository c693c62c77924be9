"""The steady state of continuous batching."""

import math

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.workloads.continuous import Continuous
from opbyte.workloads.works import work_from

MODEL = "llama-3.2-1b"


def work(batch=64, given=256, output=256, model=MODEL):
    return Continuous(model, batch, given, output)


@pytest.mark.parametrize(("batch", "output"), [(1, 2), (64, 256), (128, 64), (500, 100)])
def test_chances_are_a_binomial_that_sums_to_one(batch, output):
    chances = work(batch, output=output).chances[:, 0]
    assert chances.sum() == pytest.approx(1.0, abs=1e-12)
    for k in range(min(len(chances) - 1, batch)):
        exact = math.comb(batch, k) * (1 / output) ** k * (1 - 1 / output) ** (batch - k)
        assert chances[k] == pytest.approx(exact, rel=1e-9)


def test_as_many_prompts_are_read_as_requests_end():
    chances = work(64, output=256).chances[:, 0]
    prompts = 256 * (np.arange(len(chances)) * chances).sum()
    assert prompts == pytest.approx(64, rel=1e-3)


def test_every_slot_yields_a_token_in_every_iteration():
    one = work()
    assert one.tokens == 64 * 256
    phases = one.lower(Parallel())
    assert sum(p.repeats for p in phases) == pytest.approx(256)
    for k, phase in enumerate(phases):
        head = phase.table.names.index("lm_head")
        assert phase.table["m"][head, 0] == 64
        row = phase.table.names.index("qkv")
        assert phase.table["m"][row, 0] == 64 - k + 256 * k


def test_decodes_attend_to_the_mean_of_their_answer():
    (first, *_) = work().lower(Parallel())
    score = first.table.names.index("score")
    assert first.table["n"][score, 0] == pytest.approx(256 + 256 / 2)


def test_times_between_tokens_are_those_of_its_iterations():
    r = ob.simulate("h100-sxm-80gb", work())
    times = np.array([p.step.seconds[0] for p in r.outcome.phases])
    chances = work().chances[:, 0]
    assert r.tpot == pytest.approx((times * chances).sum())
    assert r.seconds == pytest.approx(256 * r.tpot)
    assert r.tbt_p50 == times[0]
    assert r.tbt_p99 == times[np.searchsorted(chances.cumsum(), 0.99)]
    assert r.tokens_per_s == pytest.approx(64 / r.tpot)


def test_points_of_one_evaluation_equal_each_alone():
    batches = np.array([1.0, 8.0, 100.0])
    from opbyte.hw_models.machine import load_machine
    from opbyte.sim.simulate import evaluate

    machine = load_machine("duplex-gpu-x4")
    together = evaluate(machine, work(batches), machine.mapping()).metrics
    for i, batch in enumerate(batches):
        alone = ob.simulate(machine, work(float(batch)))
        assert together["tbt_p50"][i] == pytest.approx(alone.tbt_p50, rel=1e-12)
        assert together["seconds"][i] == pytest.approx(alone.seconds, rel=1e-12)
        assert together["tpot"][i] == pytest.approx(alone.tpot, rel=1e-12)


def test_what_points_hold_is_what_each_holds_alone():
    parallel = Parallel()
    batches = np.array([1.0, 8.0, 100.0, 300.0])
    together = work(batches).footprint(parallel)
    for i, batch in enumerate(batches):
        for name, size in work(float(batch)).footprint(parallel).items():
            held = np.broadcast_to(together[name], batches.shape)
            assert held[i] == pytest.approx(size, rel=1e-12), name


def test_an_idle_server_decodes_a_request_after_the_other():
    r = ob.simulate("duplex-gpu-x4", work(1, 100, 50))
    one = ob.simulate("duplex-gpu-x4", ob.Generate(MODEL, batch=1, input=100, output=50))
    assert r.seconds == pytest.approx(one.seconds, rel=0.02)


def test_a_file_writes_it_with_its_kind():
    built = work_from({"kind": "continuous", "model": MODEL, "batch": 4, "input": 8, "output": 8})
    assert isinstance(built, Continuous)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"output": 1}, "output.*at least 2"),
        ({"batch": 0}, "batch.*at least 1"),
        ({"given": 200000}, "allows a context"),
        ({"model": "t5-base", "given": 64, "output": 64}, "has an encoder"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, rule):
    with pytest.raises(WorkloadError, match=rule):
        work(**fields)


def test_thousands_of_prompts_at_once_are_refused():
    with pytest.raises(WorkloadError, match="more than 64 prompts"):
        work(1000, output=2).lower(Parallel())
