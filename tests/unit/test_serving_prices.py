"""Prices of serving iterations: the table says what a direct simulation of `Mixed` says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import pytest

from opbyte.core.errors import SimulationError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.phases import total
from opbyte.sim.result import PhaseRun
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.prices.step import flat_cost
from opbyte.sim.serving.prices.step_table import step_cost
from opbyte.sim.serving.stamped import compiled, stamped_files
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.routing import Routing

TOKENS, SEQUENCES = 8192, 260
LLAMA = "llama-3.1-8b"
#: Attention is a kernel of the GPU: one device, four and eight, windows, chunks, shared caches.
EXACT = (
    ("a100-sxm-80gb", LLAMA, None),
    ("h100-sxm-80gb", LLAMA, None),
    ("dgx-h100", "mixtral-8x7b", 8),
    ("dgx-h100", "mixtral-8x7b", 4),
    ("h100-sxm-80gb", "gemma-2-9b", None),
    ("dgx-h100", "llama-4-scout", 8),
)
#: Without tiles all is linear, scans too.
LINEAR = (
    ("sn40l-node", LLAMA, None),
    ("sn40l-node", "nemotron-h-8b", None),
    ("h100-sxm-80gb", "nemotron-h-8b", None),
    ("h100-sxm-80gb", "lfm2-1.2b", None),
)
#: Tiles pad keys.
TILED = (("mi210", LLAMA, None),)


@cache
def setting(machine: str, model: str, tp: int | None) -> tuple[Machine, Model, object]:
    loaded = load_machine(machine)
    mapping = resolve_mapping(loaded, None, "mixed")
    if tp is not None:
        split = mapping.parallel["all"].model_copy(update={"tp": tp})
        mapping = mapping.model_copy(update={"parallel": {"all": split}})
    return loaded, load_model(model), mapping


@cache
def prices(machine: str, model: str, tp: int | None) -> StepPrices:
    return StepPrices.build(
        *setting(machine, model, tp), max_tokens=TOKENS, max_sequences=SEQUENCES
    )


@dataclass
class Drawn:
    """Iterations: (pieces, points) and (points,)."""

    new: Array
    past: Array
    decodes: Array
    context: Array

    def direct(self, case: tuple[str, str, int | None], fidelity: str = "analytic") -> PhaseRun:
        machine, model, mapping = setting(*case)
        chunks = tuple(zip(self.new, self.past, strict=True))
        if self.decodes.any():
            work = Mixed(model, chunks, self.decodes, self.context / self.decodes)
        else:
            work = Mixed(model, chunks)
        return evaluate(machine, work, mapping, fidelity).phases[0]

    def table(self, case: tuple[str, str, int | None]) -> tuple[Array, Array, Array]:
        """Return seconds, joules and busy seconds of each resource, (points, ...)."""
        of = prices(*case)
        points = self.new.shape[1] if len(self.new) else len(self.decodes)
        seconds, joules = np.zeros(points), np.zeros(points)
        busy = np.zeros((points, len(of.resources)))
        new, past = (np.ascontiguousarray(x.T) for x in (self.new, self.past))
        for i in range(points):
            batch = Batch(new[i], past[i], len(self.new), self.decodes[i], self.context[i])
            seconds[i], joules[i] = compiled(flat_cost)(of.table, busy[i], *batch)
        return seconds, joules, busy


def draw(
    seed: int, pieces: int, points: int, *, decoding: bool = True, longest: int = 32768
) -> Drawn:
    """Pieces of 1 to 2048 tokens over 0 to 30k of past, beside 1 to 256 decodes of up to 32k."""
    rng = np.random.default_rng((seed, pieces))
    new = np.floor(np.exp(rng.uniform(0.0, np.log(2048.9), (pieces, points))))
    past = np.floor(rng.uniform(0, longest - 2047, (pieces, points)))
    past *= rng.integers(0, 2, (pieces, points))
    decodes = np.floor(np.exp(rng.uniform(0.0, np.log(256.9), points))) if decoding else 0.0
    decodes = np.broadcast_to(decodes, points) * np.ones(points)
    context = decodes + np.floor(decodes * rng.uniform(0, longest - 1.0, points))
    over = np.flatnonzero(new.sum(axis=0) + decodes > TOKENS)
    new[:, over] = np.ceil(new[:, over] / 2)
    return Drawn(new, past, decodes, context)


def check(case: tuple[str, str, int | None], drawn: Drawn, tolerance: float = 1e-9) -> None:
    seconds, joules, busy = drawn.table(case)
    run, of = drawn.direct(case), prices(*case)
    np.testing.assert_allclose(seconds, run.step.seconds, rtol=tolerance)
    assert set(of.resources) == set(run.step.busy)
    for r, name in enumerate(of.resources):
        np.testing.assert_allclose(busy[:, r], run.step.busy[name], rtol=10 * tolerance, atol=1e-15)
    devices = setting(*case)[2].degrees.devices
    np.testing.assert_allclose(joules, devices * total(run.demand, run.demand.joules), rtol=1e-9)


# -- equality with the direct price ------------------------------------------------------------


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_equals_the_direct_price_of_thousands_of_iterations(case):
    points = 2000 if case[1] == LLAMA else 400
    for pieces in range(5):
        check(case, draw(1, pieces, points, longest=8192 if "gemma" in case[1] else 32768))
    for pieces in range(1, 4):
        drawn = draw(2, pieces, 100, decoding=False, longest=8192)
        check(case, drawn)


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_equals_the_direct_price_where_all_is_linear(case):
    assert prices(*case).linear_error < 1e-12
    for pieces in range(5):
        check(case, draw(3, pieces, 200, longest=8192))
    check(case, draw(3, 2, 100, decoding=False, longest=8192))


def test_operators_of_each_segment_are_exact_where_all_is_linear():
    """Nothing is fused: score, softmax and context of each piece are operators of their own."""
    machine, model = load_machine("sn40l-node"), load_model(LLAMA)
    mapping = machine.mapping("unfused")
    of = StepPrices.build(machine, model, mapping, max_tokens=2048, max_sequences=64)
    assert len(of.table.lanes) == 6
    for chunks, decodes in (([(100, 0), (7, 3000)], 9), ([(900, 900)], 0), ([], 33)):
        work = Mixed(model, tuple(chunks), decodes, 400)
        run = evaluate(machine, work, mapping).phases[0]
        cost = of.cost(chunks, decodes, 400 * decodes)
        assert cost.seconds == pytest.approx(run.step.seconds[0], rel=1e-9)
        assert cost.busy == pytest.approx({k: v[0] for k, v in run.step.busy.items()}, rel=1e-9)
        assert cost.joules == pytest.approx(8 * total(run.demand, run.demand.joules)[0], rel=1e-9)


@pytest.mark.parametrize("routing", ["balanced", "zipf_0.8", "power_law_1.2"])
def test_routing_is_that_of_each_number_of_tokens(routing):
    machine, model, how = (
        load_machine("dgx-h100"),
        load_model("mixtral-8x7b"),
        Routing.named(routing),
    )
    of = StepPrices.build(machine, model, max_tokens=400, max_sequences=99, routing=how)
    mapping = resolve_mapping(machine, None, "mixed")
    for chunks, decodes in (([(100, 0)], 31), ([(256, 300)], 0), ([], 77)):
        work = Mixed(model, tuple(chunks), decodes, 700, routing=how)
        seconds = evaluate(machine, work, mapping).phases[0].step.seconds[0]
        assert of.cost(chunks, decodes, 700 * decodes).seconds == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("model", ["gpt-2-xl", "gpt-oss-20b"])
def test_short_contexts_and_models_of_other_kinds_are_exact(model):
    machine = load_machine("h100-sxm-80gb")
    loaded = load_model(model).with_precision(weight="bf16", activation="bf16", kv="bf16")
    of = StepPrices.build(machine, loaded, max_tokens=600, max_sequences=9)
    mapping = resolve_mapping(machine, None, "mixed")
    for chunks, decodes in (([(100, 0), (7, 900)], 3), ([(500, 500)], 0), ([], 5)):
        work = Mixed(loaded, tuple(chunks), decodes, 700)
        seconds = evaluate(machine, work, mapping).phases[0].step.seconds[0]
        assert of.cost(chunks, decodes, 700 * decodes).seconds == pytest.approx(seconds, rel=1e-9)


@pytest.mark.parametrize("case", [*EXACT[:1], *LINEAR[:1]], ids=str)
def test_every_number_of_tokens_is_exact(case):
    """Tile steps: 1 to 1030 decodes have as many tokens, one piece any number."""
    tokens = np.arange(1.0, 2050.0)
    check(case, Drawn(tokens[None], 0.0 * tokens[None], 0.0 * tokens, 0.0 * tokens))
    few = np.arange(1.0, SEQUENCES + 1.0)
    check(case, Drawn(np.zeros((0, SEQUENCES)), np.zeros((0, SEQUENCES)), few, 700.0 * few))


@pytest.mark.parametrize("case", TILED, ids=str)
def test_padded_keys_stay_within_the_stated_error(case):
    stated = prices(*case).linear_error
    assert 0.0 < stated < 0.03
    worst = 0.0
    for pieces in range(4):
        drawn = draw(4, pieces, 100)
        worst = max(worst, np.abs(drawn.table(case)[0] / drawn.direct(case).step.seconds - 1).max())
    assert worst < 1.5 * stated


# -- what a price must be ----------------------------------------------------------------------


@pytest.mark.parametrize("case", [*EXACT, *LINEAR], ids=str)
def test_never_below_the_bound(case):
    for pieces in range(3):
        drawn = draw(5, pieces, 50, longest=8192)
        bound = drawn.direct(case, "bound").step.seconds
        assert (drawn.table(case)[0] >= bound * (1 - 1e-12)).all()


@pytest.mark.parametrize("case", [EXACT[0], *LINEAR[:1], *TILED], ids=str)
@pytest.mark.parametrize("decodes", [1.0, 7.0, 64.0, 256.0])
def test_more_kv_never_takes_less(case, decodes):
    """Decodes beside a piece of a prompt; FlashAttention 3 cuts KV by a rule that can misjudge."""
    of, steps = prices(*case), np.arange(1, 60) * 512.0
    times = np.array([of.cost([(100, 0)], decodes, decodes * c).seconds for c in steps])
    assert (np.diff(times) >= -1e-12).all()
    assert times[-1] > times[0]
    pasts = np.array([of.cost([(256, p)], decodes, decodes * 300.0).seconds for p in steps])
    assert (np.diff(pasts) >= -1e-12).all()


def test_decodes_beside_a_piece_attend_longer_than_alone():
    """A call with a prompt's piece pads the one query row of each decode to a tile."""
    of = prices(*EXACT[0])
    calls = []
    for chunks, decodes in (([(512, 512)], 64), ([(512, 512)], 0), ([], 64)):
        of.cost(chunks, decodes, 2000 * decodes)
        calls.append(of.table.features[0, -1])
    both, piece, alone = calls
    assert both - piece > 1.5 * alone


def test_the_twin_is_the_compiled_function():
    for case in (EXACT[0], EXACT[4], LINEAR[1], LINEAR[2]):
        of, drawn = prices(*case), draw(6, 2, 12, longest=8192)
        seconds, joules, busy = drawn.table(case)
        for i in range(len(seconds)):
            held = np.zeros(len(of.resources))
            batch = Batch(drawn.new[:, i], drawn.past[:, i], 2, drawn.decodes[i], drawn.context[i])
            assert step_cost(of.table, batch, held) == pytest.approx((seconds[i], joules[i]), 1e-13)
            np.testing.assert_allclose(held, busy[i], rtol=1e-13)
            assert step_cost(of.table, batch, held)[0] == pytest.approx(seconds[i], 1e-13)
            np.testing.assert_allclose(held, 2 * busy[i], rtol=1e-13)


def test_a_compiled_loop_may_call_it():
    @numba.njit(error_model="numpy")
    def loop(table, new, past, busy, times):
        seconds = 0.0
        for i in range(times):
            batch = Batch(new, past, 1, 4.0, 400.0 + i, 0.0, 0, 0)
            seconds += step_cost(table, batch, busy)[0]
        return seconds

    of, busy = prices(*EXACT[0]), np.zeros(2)
    total_seconds = loop(of.table, np.array([64.0]), np.zeros(1), busy, 3)
    each = [of.cost([(64, 0)], 4, 400 + i) for i in range(3)]
    assert total_seconds == pytest.approx(sum(c.seconds for c in each), 1e-13)
    assert busy[1] == pytest.approx(sum(c.busy["gpu.sm"] for c in each), 1e-13)


def test_only_so_many_entries_are_pieces():
    of, held = prices(*EXACT[0]), np.zeros(2)
    one = step_cost(of.table, Batch(np.array([64.0]), np.zeros(1), 1, 4.0, 400.0), held)[0]
    more = np.array([64.0, 9.0, 5.0])
    assert step_cost(of.table, Batch(more, more, 0, 4.0, 400.0), held)[0] < one
    past = np.array([0.0, 7.0, 7.0])
    assert step_cost(of.table, Batch(more, past, 1, 4.0, 400.0), held)[0] == one


def test_a_cost_names_its_resources():
    cost = prices(*EXACT[0]).cost([(512, 0)], 64, 64_000)
    assert set(cost.busy) == {"gpu.hbm.phy", "gpu.sm"}
    assert cost.seconds == pytest.approx(cost.busy["gpu.sm"], rel=1e-9)
    assert 0.0 < cost.busy["gpu.hbm.phy"] < cost.seconds
    assert cost.joules > 0.0
    assert prices(*EXACT[0]).static_watts > 0.0


def test_a_host_that_issues_kernels_is_waited_for():
    issues = load_mapping({"host": "9 ms", "run": [{"ops": "all", "unit": "gpu.sm"}]})
    mapping = load_machine("a100-sxm-80gb").mapping("default")
    of = build(mapping=mapping.model_copy(update={"host": issues.host}), **MANY)
    for context in (10, 64_000, 4_000_000):
        device = prices(*EXACT[0]).cost([], 128, context)
        cost = of.cost([], 128, context)
        assert cost.seconds == max(device.seconds, 9e-3)
        assert cost.busy == device.busy
    assert device.seconds > 9e-3


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "decodes"), [([], 0), ([(TOKENS + 1, 0)], 0), ([(8, 0)], SEQUENCES)]
)
def test_an_iteration_outside_the_table_is_refused(chunks, decodes):
    of = prices(*EXACT[0])
    with pytest.raises(ValueError, match="more tokens or sequences than its table"):
        of.cost(chunks, decodes, 100 * decodes)
    new, past = (np.array([c[i] for c in chunks], np.float64) for i in (0, 1))
    with pytest.raises(ValueError, match="more tokens or sequences than its table"):
        step_cost(of.table, Batch(new, past, len(chunks), float(decodes), 1.0), np.zeros(2))


MANY = {"max_tokens": TOKENS, "max_sequences": SEQUENCES}


def build(machine="a100-sxm-80gb", model=LLAMA, mapping=None, **most):
    most = {"max_tokens": 8, "max_sequences": 8, **most}
    return StepPrices.build(machine, load_model(model), mapping, **most)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"max_tokens": 0}, "must be at least 1"),
        ({"max_sequences": 0}, "must be at least 1"),
        ({"model": "t5-3b"}, "encoder.* prefill and decode instead"),
        ({"mapping": "eager", **MANY}, "not linear.* by [0-9]+%. use a mapping that fuses"),
        ({"machine": "dgx-h100", "model": "deepseek-v3.2"}, "picks tokens by an index"),
        ({"machine": "dgx-h100", "mapping": "coe"}, "cache of"),
    ],
)
def test_what_tables_do_not_cover_is_refused(asked, why):
    with pytest.raises(UncoveredError, match=why):
        build(**asked)


@pytest.mark.parametrize(
    ("degrees", "why"),
    [
        ({"pp": 2, "tp": 4}, "2 pipeline stages.* use a mapping with pp=1"),
        ({"dp": 2, "tp": 4}, "one replica.* got 2.* several replicas"),
    ],
)
def test_stages_and_replicas_are_refused(degrees, why):
    mapping = load_machine("dgx-h100").mapping("default")
    split = mapping.parallel["all"].model_copy(update=degrees)
    with pytest.raises(UncoveredError, match=why):
        build("dgx-h100", mapping=mapping.model_copy(update={"parallel": {"all": split}}))


def test_several_machines_at_once_are_refused():
    machine = load_machine("a100-sxm-80gb")
    machine = machine.with_values({"gpu.hbm.phy.bandwidth": np.array([1e12, 2e12])})
    with pytest.raises(UncoveredError, match="several design points"):
        build(machine)


def test_a_rate_of_nothing_is_refused():
    machine = load_machine("sn40l-node").with_values({"rdu.hbm.phy.bandwidth": 0.0})
    with pytest.raises(SimulationError, match="takes for ever"):
        build(machine)


def test_the_stamp_of_compiled_loops_covers_what_is_compiled_into_them():
    files = {"/".join(path.parts[-2:]) for path in stamped_files()}
    loops = {"compiled/steps.py", "compiled/loop.py", "prices/step.py", "prices/step_table.py"}
    assert loops | {"gpu/attention.py", "schedulers/fair.py"} <= files
