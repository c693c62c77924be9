"""The grouped product against its twin and against products that can be worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu import grouped, kernel
from opbyte.hw_models.compute.gpu.generations import GENERATIONS
from opbyte.hw_models.compute.gpu.grouped_libraries import GROUPED_LIBRARIES
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.hw_models.machine import load_machine
from opbyte.sim.batch import simulate_batch
from opbyte.sim.simulate import evaluate
from opbyte.workloads.phases import Decode
from opbyte.workloads.routing import Routing

HUGE = 1e30
FILL, EPILOGUE, STREAM, PORT = 1e-6, 2e-6, 8e11, 1e15
#: 64 x 64 results, k-steps of 64, no CTA beside another, row tiles do not wait for each other.
TILES = np.array([[64, 64, 64, 1, 1, 64, 64, 1]], np.float64)
STEP = 2 * 64 * 64 * 64 / 1e12
RULES = np.array([1, 0], np.float64)
OWN = np.array([1.0, 0.0, 1.0])


def facts(**changes):
    """Four SMs of 1 TFLOP/s behind wires that do not count, and HBM of 0.8 TB/s."""
    column = np.zeros(kernel.FACTS)
    column[kernel.SMS], column[kernel.PEAK] = 4, 4e12
    column[kernel.SHARED] = column[kernel.L2_RATE] = column[kernel.REUSE] = HUGE
    column[kernel.PORT], column[kernel.L2_BYTES] = PORT, 1.0
    column[kernel.PIN_RATE], column[kernel.STREAM] = 1e12, STREAM
    column[kernel.ROOM], column[kernel.MATRIX] = HUGE, 1.0
    column[kernel.FILL], column[kernel.EPILOGUE] = FILL, EPILOGUE
    column[kernel.L2_SHARE], column[kernel.OVERLAP] = 1.0, 2.0
    for name, value in changes.items():
        column[getattr(kernel, name)] = value
    return column


def sizes(counts, n=64, k=640, **changes):
    s = np.zeros(grouped.SIZES)
    total = float(np.sum(counts))
    s[grouped.N], s[grouped.K], s[grouped.WEIGHT] = n, k, 2.0 * n * k
    s[grouped.TOKENS] = s[grouped.SOURCE] = total
    s[grouped.EXPERTS] = len(counts)
    s[grouped.TUNED] = 1.0
    for name, value in changes.items():
        s[getattr(grouped, name)] = value
    return s


def run(counts, rules=RULES, tiles=TILES, own=OWN, size=None, **changes):
    counts = np.array(counts, np.float64)
    s = sizes(counts, **(size or {}))
    return grouped.grouped_seconds(s, counts, 2.0, 2.0, facts(**changes), own, rules, tiles)


def one_round(tiles, rows, steps=10, n=64):
    """Fill, k-steps, epilogue and the stores of the tiles that run together."""
    tile = rows * n * 2
    return FILL + steps * STEP + EPILOGUE + tile / PORT + tiles * tile / STREAM


def memory(hit, rows, n=64, k=640):
    return 2 * (hit * n * k + rows * k + rows * n) / STREAM + FILL


# -- by hand -------------------------------------------------------------------------------


def test_an_expert_with_one_token_takes_a_whole_tile():
    assert run([1, 1]) == pytest.approx(math.hypot(one_round(2, 1), memory(2, 2)))


def test_tokens_are_padded_expert_by_expert():
    """65 and 63 tokens are three tiles; 64 and 64 are two."""
    three = math.hypot(one_round(3, 128 / 3), memory(2, 128))
    assert run([65, 63]) == pytest.approx(three)
    assert run([64, 64]) == pytest.approx(math.hypot(one_round(2, 64), memory(2, 128)))


def test_experts_without_tokens_cost_nothing():
    assert run([64, 0, 64, 0]) == run([64, 64])


def test_waves_are_whole():
    """Five tiles on four SMs: a full round and one that is not."""
    sm = one_round(4, 64) + one_round(1, 64)
    assert run([64] * 5) == pytest.approx(math.hypot(sm, memory(5, 320)))


def test_later_row_tiles_read_the_weights_again_unless_they_fit_in_l2():
    """One SM takes two row tiles one by one."""
    alone = {"SMS": 1, "PEAK": 1e12}
    once = math.hypot(2 * one_round(1, 64), memory(1, 128))
    twice = math.hypot(2 * one_round(1, 64), memory(2, 128))
    assert run([128], **alone) == pytest.approx(once)
    assert run([128], **alone, REUSE=1.0) == pytest.approx(twice)
    together = TILES.copy()
    together[0, grouped.TOGETHER] = 4
    # The second tile is a quarter of a group.
    quarter = memory(1.25, 128)
    expected = math.hypot(2 * one_round(1, 64), quarter)
    assert run([128], tiles=together, **alone, REUSE=1.0) == pytest.approx(expected)


def test_rows_gathered_from_beyond_l2_delay_a_step():
    own = np.array([1.0, 3.0, 1.0])
    # Half of the source is in L2: 1 + 3 / 2 times the latency.
    latency = {"LATENCY": 4e-6, "L2_BYTES": 0.5 * 64 * 640 * 2, "L2_SHARE": 1e-9}
    sm = one_round(1, 64) - 10 * STEP + 10 * 4e-6 * 2.5
    assert run([64], own=own, **latency) == pytest.approx(math.hypot(sm, memory(1, 64)))


def test_narrow_steps_and_unaligned_rows_slow_what_is_read():
    own = np.array([1.0, 0.0, 0.5])
    fast = {"PEAK": 4e20, "FILL": 0.0, "EPILOGUE": 0.0, "OVERLAP": 64.0}
    read, written = 2 * (64 * 640 + 64 * 640), 2 * 64 * 64
    assert run([64], own=own, **fast) == pytest.approx((read + written) / STREAM, rel=1e-3)
    narrow = TILES.copy()
    narrow[0, grouped.BK] = 32
    slow = (2 * read + written) / STREAM
    assert run([64], own=own, tiles=narrow, **fast) == pytest.approx(slow, rel=1e-3)
    read = 2 * (64 * 648 + 64 * 648)
    slow = (2 * read + written) / STREAM
    assert run([64], own=own, size={"k": 648}, **fast) == pytest.approx(slow, rel=1e-3)


def test_unaligned_rows_have_one_load_in_flight():
    tiles = TILES.copy()
    tiles[0, grouped.FLIGHT] = 2
    slow = {"LATENCY": 1e-3}
    assert run([64], tiles=tiles, **slow) == pytest.approx(5e-3, rel=2e-3)
    assert run([64], tiles=tiles, size={"k": 648}, **slow) == pytest.approx(11e-3, rel=2e-3)


def test_the_default_tile_follows_the_tokens_and_a_table_takes_the_fastest():
    tiles = np.concatenate([TILES, TILES, TILES])
    tiles[0, grouped.TM], tiles[1, grouped.FLIGHT], tiles[2, grouped.FLIGHT] = 16, 1, 8
    size, slow = {"TUNED": 0.0}, {"LATENCY": 1e-5}

    def default(counts, tokens):
        return run(counts, tiles=tiles, size={**size, "TOKENS": tokens}, **slow)

    assert default([32, 32], 2) == run([32, 32], tiles=tiles[:1], **slow)
    assert default([32, 32], 3) == run([32, 32], tiles=tiles[1:2], **slow)
    assert run([32, 32], tiles=tiles, **slow) == run([32, 32], tiles=tiles[2:], **slow)


def test_chunks_follow_each_other():
    rules = np.array([1, 128], np.float64)
    halves = 2 * run([64, 64]) + run([32, 32])
    assert run([160, 160], rules=rules) == pytest.approx(halves)


def test_a_board_at_its_power_limit_runs_slower_by_the_root():
    free = run([64, 64])
    drawn = 2 * 128 * 64 * 640 / free * 1e-12
    assert run([64, 64], ENERGY=1e-12, ROOM=drawn / 4) == pytest.approx(2 * free)
    assert run([64, 64], ENERGY=1e-12, ROOM=drawn * 1.01) == free


# -- libraries -----------------------------------------------------------------------------


def test_every_generation_has_a_library_whose_tiles_fit():
    for name in GENERATIONS.names():
        generation = GENERATIONS.lookup(name)
        tiles = GROUPED_LIBRARIES.lookup(name).tiles(generation)
        need = tiles[:, grouped.FLIGHT] * tiles[:, grouped.CTAS] * tiles[:, grouped.BK] * 2
        need *= tiles[:, grouped.TM] + tiles[:, grouped.TN]
        assert (need <= generation.shared_bytes).all()
        # The defaults of few and of many tokens come first.
        np.testing.assert_array_equal(tiles[:2, :3], [[16, 32, 64], [64, 64, 32]])


def test_shapes_with_a_table():
    ampere = GROUPED_LIBRARIES.lookup("ampere")
    assert ampere.tuned(8, 7168)
    assert not ampere.tuned(8, 14336)
    assert not ampere.tuned(8.5, 7168)
    assert not GROUPED_LIBRARIES.lookup("ampere-ga10x").tuned(8, 7168)


# -- twin and laws -------------------------------------------------------------------------


def a100():
    view = GpuView.of(UnitView(load_machine("a100-sxm-80gb"), "gpu.sm"))
    assert view is not None
    return view.facts("bf16")[0]


A100 = a100()
AMPERE, GENERATION = GROUPED_LIBRARIES.lookup("ampere"), GENERATIONS.lookup("ampere")
FITTED = np.array([0.72, 1.1, 0.71])


@st.composite
def products(draw):
    experts = draw(st.integers(1, 12))
    top = draw(st.sampled_from([1, 40, 3000, 40000]))
    counts = np.array(
        draw(st.lists(st.integers(0, top), min_size=experts, max_size=experts)), np.float64
    )
    picks = draw(st.integers(1, 4))
    tokens = max(float(np.ceil(counts.sum() / picks)), counts.max())
    n, k = 16 * draw(st.integers(1, 400)), 8 * draw(st.integers(1, 900))
    down = draw(st.booleans())
    s = sizes(
        counts,
        n,
        k,
        TOKENS=tokens,
        SOURCE=counts.sum() if down else tokens,
        TUNED=float(draw(st.booleans())),
    )
    return s, counts


def fill(fill_seconds, rows, of_points, own):
    starts = np.cumsum([0, *(len(c) for _, c in rows)])
    seconds = np.empty((len(rows), of_points.shape[0]))
    table = np.stack([s for s, _ in rows], axis=1)[:, :, None]
    counts = np.concatenate([c for _, c in rows])[:, None]
    rules, tiles = AMPERE.rules(GENERATION), AMPERE.tiles(GENERATION)
    fill_seconds(seconds, table, counts, starts, 2.0, 2.0, of_points, own, rules, tiles)
    return seconds


def seconds_of(product, of_point=A100, own=FITTED):
    return fill(grouped.compiled(), [product], of_point[None], own[None])[0, 0]


@settings(deadline=None)
@given(st.lists(products(), min_size=1, max_size=3))
def test_compiled_equals_the_twin(rows):
    points = np.stack([A100, A100 * np.where(np.arange(kernel.FACTS) == kernel.STREAM, 0.7, 1.0)])
    own = np.stack([FITTED, FITTED])
    compiled = fill(grouped.compiled(), rows, points, own)
    np.testing.assert_allclose(compiled, fill(grouped.fill_seconds, rows, points, own), rtol=1e-12)


@settings(deadline=None)
@given(products())
def test_never_below_the_bound(product):
    s, counts = product
    took = seconds_of(product)
    hit = np.count_nonzero(counts)
    operations = 2 * counts.sum() * s[grouped.N] * s[grouped.K]
    moved = hit * s[grouped.WEIGHT] + 2 * counts.sum() * s[grouped.N]
    assert took >= 0.999999 * max(operations / A100[kernel.PEAK], moved / A100[kernel.PIN_RATE])
    assert (took == 0.0) == (hit == 0)


RISES = ["PEAK", "SHARED", "PORT", "L2_RATE", "L2_BYTES", "REUSE", "PIN_RATE", "STREAM", "ROOM"]
FALLS = ["FILL", "LATENCY", "EPILOGUE", "ENERGY"]


@settings(deadline=None)
@given(products(), st.sampled_from(RISES + FALLS), st.floats(1.01, 3.0))
def test_nothing_slows_when_a_rate_rises_or_a_latency_falls(product, name, factor):
    better = A100.copy()
    better[getattr(kernel, name)] *= factor if name in RISES else 1 / factor
    assert seconds_of(product, better) <= seconds_of(product) * (1 + 1e-9)


@settings(deadline=None)
@given(products(), st.sampled_from(["MATRIX", "GATHER", "NARROW"]))
def test_nothing_slows_when_a_parameter_improves(product, name):
    better = FITTED.copy()
    better[getattr(grouped, name)] *= 1.3 if name in ("MATRIX", "NARROW") else 0.7
    assert seconds_of(product, own=better) <= seconds_of(product) * (1 + 1e-9)


@settings(deadline=None)
@given(products(), st.integers(1, 100))
def test_nothing_slows_on_more_sms(product, more):
    """Each with its matrix units; the board feeds them."""
    larger = A100.copy()
    larger[kernel.SMS] += more
    larger[kernel.PEAK] *= larger[kernel.SMS] / A100[kernel.SMS]
    assert seconds_of(product, larger) <= seconds_of(product) * (1 + 1e-9)


def test_a_rate_of_nothing_takes_for_ever():
    product = sizes(np.ones(2)), np.ones(2)
    stopped = A100.copy()
    stopped[kernel.STREAM] = 0.0
    assert seconds_of(product, stopped) == np.inf


# -- routings, through the whole call --------------------------------------------------------

ROUTINGS = ("balanced", "power_law_0", "uniform", "zipf_0.5", "zipf_1")


def layers(machine="a100-sxm-80gb", **changes):
    """Return the seconds of a layer of 64 experts, 6 of them picked."""
    work = {"kind": "moe", "hidden": 4096, "ffn": 1408, "experts": 64, "top_k": 6} | changes
    longest = max(np.size(v) for v in changes.values())
    frame = pd.DataFrame({name: np.broadcast_to(v, longest) for name, v in work.items()})
    return simulate_batch(machine, frame)["seconds"].to_numpy()


@pytest.mark.parametrize("machine", ["a100-sxm-80gb", "h100-sxm-80gb", "rtx-4090"])
def test_random_picks_run_the_kernel_of_drawn_ones(machine):
    """Once all experts are hit uniform picks differ from drawn ones by the padding alone."""
    tokens = np.array([64.0, 128, 512, 1024, 4096, 16384])
    of = {name: layers(machine, tokens=tokens, routing=name) for name in ROUTINGS}
    assert (of["uniform"] >= of["balanced"] * (1 - 1e-3)).all()
    np.testing.assert_allclose(of["uniform"], of["power_law_0"], rtol=0.07)


def test_few_random_picks_read_fewer_experts():
    balanced, uniform, skewed = (
        layers(tokens=8.0, routing=name)[0] for name in ("balanced", "uniform", "zipf_1")
    )
    hit = Routing().distinct(64, 6, 8) / 48
    assert uniform / balanced == pytest.approx(hit, rel=0.05)
    assert skewed < uniform


def test_skewed_picks_wait_for_the_fullest_device():
    tokens = np.array([1024.0, 4096, 16384])
    of = [layers(tokens=tokens, ep_size=8, routing=name) for name in ROUTINGS]
    balanced, _, uniform, half, one = of
    for less, more in ((balanced, uniform), (uniform, half), (half, one)):
        assert (more > less).all()


def test_one_batch_is_as_many_calls():
    tokens = np.array([3.0, 700, 17, 20000])
    together = layers(tokens=tokens, routing="zipf_0.8")
    each = [layers(tokens=t, routing="zipf_0.8")[0] for t in tokens]
    assert together.tolist() == each


# -- chunks ----------------------------------------------------------------------------------

CHUNK = 16384


@settings(deadline=None, max_examples=30)
@given(
    whole=st.integers(1, 3),
    more=st.integers(1, CHUNK - 1),
    routing=st.sampled_from(["balanced", "uniform", "zipf_0.8"]),
)
def test_a_chunk_more_takes_its_own_time(whole, more, routing):
    chunk, part, both = layers(tokens=[CHUNK, more, whole * CHUNK + more], routing=routing)
    assert both > whole * chunk * (1 - 1e-3)
    assert both == pytest.approx(whole * chunk + part, rel=0.02)


def test_a_part_of_a_token_in_the_last_chunk_is_none():
    """Mean tokens of a device are no whole number; what is rounded away has no tiles."""
    counts = np.full(4, CHUNK / 4)
    whole, more = ((sizes(counts, TOKENS=CHUNK + part), counts) for part in (0.0, 0.4))
    assert seconds_of(more) == pytest.approx(seconds_of(whole), rel=1e-3)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 400), min_size=1, max_size=70),
    share=st.floats(1e-4, 1.0),
    rows=st.sampled_from([16.0, 64.0]),
)
def test_a_chunk_has_whole_tokens(counts, share, rows):
    counts = np.array(counts, np.float64)
    load = grouped._load(counts, share, rows)
    assert load.picks == np.rint(counts.sum() * share)
    assert load.hit <= load.picks
    assert load.hit <= np.count_nonzero(counts)
    assert load.hit <= load.tiles <= load.hit + load.picks / rows


def test_experts_after_rows_of_one_value_are_priced_over_many_contexts() -> None:
    machine, contexts = load_machine("a100-sxm-80gb"), np.array([16.0, 64.0, 200.0])
    mapping = machine.mapping("eager")
    together = evaluate(machine, Decode("switch-base-8", 1, contexts, 256), mapping)
    for i, context in enumerate(contexts):
        one = evaluate(machine, Decode("switch-base-8", 1, context, 256), mapping)
        assert together.metrics["seconds"][i] == pytest.approx(one.metrics["seconds"][0], rel=1e-12)
