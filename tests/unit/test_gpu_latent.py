"""Latent decode kernels against their twin, calls that can be worked out by hand, and the laws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.hw_models.compute.gpu import kernel, latent
from opbyte.hw_models.compute.gpu.generations import GENERATIONS

STREAM, PIN, PORT, CLOCK = 8e11, 1e12, 1e11, 1e9
FILL, GAP, TRIP, START, SINGLE = 1e-6, 2e-6, 3e-6, 4e-6, 50e-6
WIDTH, LATENT = 576, 512
KERNELS = ("ampere", "hopper", "blackwell")


def facts(**changes):
    """Four SMs of 1 TFLOP/s, each port 0.1 TB/s, HBM of 0.8 TB/s, no power limit."""
    column = np.ones(latent.LATENT_FACTS)
    column[kernel.SMS], column[kernel.PEAK], column[kernel.MATRIX] = 4, 4e12, 1.0
    column[kernel.PORT], column[kernel.L2_RATE], column[kernel.REUSE] = PORT, 4e12, 1e6
    column[kernel.PIN_RATE], column[kernel.STREAM] = PIN, STREAM
    column[kernel.ROOM], column[kernel.ENERGY] = 1e30, 0.0
    column[kernel.FILL], column[kernel.OVERLAP] = FILL, 2.0
    column[latent.CLOCK], column[latent.GAP] = CLOCK, GAP
    column[latent.TRIP], column[latent.START], column[latent.SINGLE] = TRIP, START, SINGLE
    for name, value in changes.items():
        column[getattr(latent if hasattr(latent, name) else kernel, name)] = value
    return column


def run(name, sequences, heads, kv, new=1, fill=latent.fill_seconds, b_kv=2.0, **changes):
    sizes = np.array([sequences, heads, new, kv, LATENT, WIDTH - LATENT], np.float64)
    seconds = np.empty((1, 1))
    rules = latent.LATENT_KERNELS.lookup(name).rules
    fill(seconds, sizes[:, None, None], 2.0, b_kv, facts(**changes)[None], rules)
    return float(seconds[0, 0])


# -- by hand -------------------------------------------------------------------------------

#: A step of 32 tokens on an A100: keys of 576 and values of 512 loaded, 36 products in a chain of
#: 33 cycles, the products with the values.
LOADS = 32 * (576 + 512) * 2 / PORT
STEP = TRIP + LOADS + 36 * 33 / CLOCK + 2 * 16 * 32 * 512 / 1e12


def copies(queries, result):
    return 3 * (GAP + FILL) + (2 * queries + result) / STREAM


def join(parts, result, rate=4e12):
    return GAP + FILL + parts / rate + result / STREAM


def test_one_sequence_is_cut_in_four_whatever_its_length():
    """Sixteen heads, 256 tokens: four CTAs on four SMs walk over 64 tokens each, in two steps."""
    out, queries, result = 16 * 4 * 513 * 4, 16 * 576 * 2, 16 * 512 * 2
    sm = START + 2 * STEP + out / STREAM
    memory = (256 * 576 * 2 + queries + out) / STREAM + FILL
    expected = math.hypot(sm, memory) + join(out, result) + copies(queries, result)
    assert run("ampere", 1, 16, 256) == pytest.approx(expected)


def test_parts_without_tokens_do_not_run():
    """Two tokens are two parts of one token; a step then loads one token."""
    out, queries, result = 16 * 2 * 513 * 4, 16 * 576 * 2, 16 * 512 * 2
    step = STEP - LOADS + LOADS / 32
    sm = START + step + out / STREAM
    memory = (2 * 576 * 2 + queries + out) / STREAM + FILL
    expected = math.hypot(sm, memory) + join(out, result) + copies(queries, result)
    assert run("ampere", 1, 16, 2) == pytest.approx(expected)


def test_one_cta_more_than_sms_is_a_round_more():
    """One CTA an SM: 4 CTAs of one sequence are one round, 8 of two are two."""
    slow = {"STREAM": 1e30, "L2_RATE": 1e30, "PIN_RATE": 1e30, "FILL": 0.0, "GAP": 0.0}
    one, two = (run("ampere", n, 16, 4096, **slow) for n in (1, 2))
    assert one == pytest.approx(START + 32 * STEP)
    assert two == pytest.approx(2 * one)
    assert run("ampere", 1, 16, 4096, SMS=3, PEAK=3e12, **slow) == pytest.approx(2 * one)
    # 33 heads are three blocks in four parts: twelve CTAs on ten SMs.
    assert run("ampere", 1, 33, 4096, SMS=10, PEAK=1e13, **slow) == pytest.approx(2 * one)
    assert run("ampere", 1, 3, 4096, **slow) == pytest.approx(one)


def test_a_sequence_that_waits_for_its_other_heads_is_read_again():
    """Sequences come first in the grid: 2 blocks of heads of 8 sequences never run together."""
    cached = 8 * 4096 * 576 * 2
    slow = {"TRIP": 0.0, "START": 0.0, "PORT": 1e30, "CLOCK": 1e30, "PEAK": 4e30, "OVERLAP": 64.0}
    slow["L2_RATE"] = STREAM
    once = run("ampere", 8, 32, 4096, REUSE=1e30, **slow)
    twice = run("ampere", 8, 32, 4096, REUSE=1e6, **slow)
    assert twice - once == pytest.approx(cached / STREAM)


def test_one_head_has_a_kernel_of_its_own_on_the_a100_only():
    plain = {"STREAM": 1e30, "L2_RATE": 1e30, "PIN_RATE": 1e30, "FILL": 0.0, "GAP": 0.0}
    assert run("ampere", 1, 1, 4096, **plain) == pytest.approx(START + 16 * SINGLE)
    assert run("hopper", 1, 1, 4096) == run("hopper", 1, 1, 4096, SINGLE=1.0)


def test_loads_that_run_ahead_leave_the_longest_of_a_step():
    """Sixty-four heads on Hopper: 128 tokens in one, two or four parts, the products decide."""
    plain = {"STREAM": 1e30, "L2_RATE": 1e30, "PIN_RATE": 1e30, "FILL": 0.0, "TRIP": 0.0}
    products = 2 * 64 * 64 * (576 + 512) / 1e12
    assert run("hopper", 4, 64, 128, PORT=1e30, **plain) == pytest.approx(START + 2 * products)
    loads = 64 * 576 * 2 / 1e9
    assert run("hopper", 4, 64, 128, PORT=1e9, **plain) == pytest.approx(START + 2 * loads)
    plain["TRIP"] = 1.0
    assert run("hopper", 4, 64, 128, **plain) == pytest.approx(START + 2 * 0.5)


def test_hopper_cuts_a_lone_sequence_and_packs_new_tokens():
    alone = run("hopper", 1, 64, 65536)
    assert alone < 0.5 * run("hopper", 4, 64, 65536)
    assert run("hopper", 4, 16, 4096, new=4) == run("hopper", 4, 64, 4096)
    assert run("ampere", 4, 16, 4096, new=4) == run("ampere", 16, 16, 4096)


def test_hopper_takes_the_number_of_parts_that_is_fastest():
    """Two sequences on four SMs: two parts each; four are no faster and leave more to join."""
    plain = {"STREAM": 1e30, "PIN_RATE": 1e30, "FILL": 0.0, "TRIP": 0.0, "PORT": 1e30}
    products = 2 * 64 * 64 * (576 + 512) / 1e12
    assert run("hopper", 2, 64, 512, **plain) == pytest.approx(START + 4 * products + GAP)


def test_a_board_at_its_power_limit_runs_slower_by_the_root():
    free = run("hopper", 8, 128, 4096)
    drawn = 2 * 8 * 128 * 4096 * (576 + 512) / free * 1e-12
    assert run("hopper", 8, 128, 4096, ENERGY=1e-12, ROOM=drawn / 4) == pytest.approx(2 * free)


# -- the laws ------------------------------------------------------------------------------

calls = st.tuples(
    st.integers(1, 300), st.integers(1, 128), st.integers(1, 20000), st.integers(1, 3)
)
RATES = ("PORT", "L2_RATE", "CLOCK", "REUSE", "MATRIX")
LATENCIES = ("TRIP", "START", "SINGLE", "GAP", "FILL")


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=60, deadline=None)
@given(call=calls, what=st.sampled_from((*RATES, *LATENCIES, "HBM", "SMS")), by=st.floats(1.01, 8))
def test_nothing_gets_slower_on_a_better_machine(name, call, what, by):
    sequences, heads, kv, new = call
    before = run(name, sequences, heads, kv, new)
    if what == "HBM":
        changes = {"STREAM": STREAM * by, "PIN_RATE": PIN * by}
    elif what == "SMS":
        sms = math.ceil(4 * by)
        changes = {"SMS": sms, "PEAK": 1e12 * sms}
    else:
        column = facts()[getattr(latent if hasattr(latent, what) else kernel, what)]
        changes = {what: column * by if what in RATES else column / by}
    assert run(name, sequences, heads, kv, new, **changes) <= before * (1 + 1e-12)


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=60, deadline=None)
@given(call=calls)
def test_no_call_beats_the_peak_or_the_pins(name, call):
    sequences, heads, kv, new = call
    free = dict.fromkeys(LATENCIES, 0.0)
    seconds = run(name, sequences, heads, kv, new, **free, PORT=1e30, L2_RATE=1e30, REUSE=1e30)
    rows = sequences * heads * new
    operations = 2 * rows * kv * (WIDTH + LATENT)
    moved = 2 * (sequences * kv * WIDTH + rows * (WIDTH + LATENT))
    assert seconds >= max(operations / 4e12, moved / PIN) * (1 - 1e-12)


@pytest.mark.parametrize("what", ["sequences", "heads", "kv", "new"])
def test_no_work_takes_no_time(what):
    call = {"sequences": 4, "heads": 16, "kv": 100, "new": 1, what: 0}
    assert run("ampere", **call) == 0.0


@pytest.mark.parametrize("rate", ["PEAK", "PORT", "L2_RATE", "STREAM", "CLOCK"])
def test_a_rate_of_nothing_takes_for_ever(rate):
    assert run("ampere", 4, 16, 100, **{rate: 0.0}) == math.inf


# -- the compiled loop ---------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_the_compiled_loop_equals_its_plain_twin(name):
    rng = np.random.default_rng(0)
    ones = np.ones(200)
    sizes = np.array(
        [*np.ceil(2.0 ** rng.uniform(0, 7, (2, 200))), np.ceil(3 * rng.random(200)),
         np.ceil(2.0 ** rng.uniform(0, 17, 200)), LATENT * ones, (WIDTH - LATENT) * ones]
    )  # fmt: skip
    points = np.stack([facts(), facts(SMS=108.0, PEAK=1e14, STREAM=2e12, PIN_RATE=3e12)])
    answers = []
    for fill in (latent.compiled(), latent.fill_seconds):
        seconds = np.empty((200, 2))
        rules = latent.LATENT_KERNELS.lookup(name).rules
        fill(seconds, sizes[:, :, None], 2.0, 1.0, points, rules)
        answers.append(seconds)
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-12)
    assert (answers[0] > 0).all()


def test_every_gpu_generation_declares_a_kernel():
    assert set(latent.LATENT_KERNELS.names()) == set(GENERATIONS.names())


@pytest.mark.parametrize("name", ["ampere", "ampere-ga10x", "ada"])
def test_a_waiting_kernels_buffers_fit_in_the_shared_memory_of_its_generation(name):
    """One buffer of keys and values of 32 tokens, and 16 queries, in 16 bits."""
    declared = latent.LATENT_KERNELS.lookup(name)
    buffers = 2 * (declared.tokens * (576 + 512) + declared.block * 576)
    assert declared.ctas * buffers <= GENERATIONS.lookup(name).shared_bytes
    assert (declared.ctas + 1) * buffers > GENERATIONS.lookup(name).shared_bytes
