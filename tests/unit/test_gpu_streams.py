"""Vector kernels against their twin, kernels that can be worked out by hand, and the laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.hw_models.compute.gpu import kernel, streams

STREAM, PIN, PORT, SHARED, CLOCK, FILL = 8e11, 1e12, 1e11, 2e11, 1e9, 1e-6
NAMES = streams.STREAM_KERNELS.names()


def facts(**changes):
    """Four SMs, ports of 0.1 TB/s, L1 of 0.2 TB/s, HBM of 0.8 TB/s, an L2 that holds nothing."""
    column = np.ones(streams.STREAM_FACTS)
    column[kernel.SMS], column[kernel.PORT], column[kernel.SHARED] = 4, PORT, SHARED
    column[kernel.L2_RATE], column[kernel.L2_BYTES], column[kernel.L2_SHARE] = 4e12, 1.0, 1.0
    column[kernel.PIN_RATE], column[kernel.STREAM] = PIN, STREAM
    column[kernel.FILL], column[kernel.OVERLAP] = FILL, 2.0
    column[streams.CLOCK], column[streams.THREADS], column[streams.L1_BYTES] = CLOCK, 2048, 1e5
    for name, value in changes.items():
        column[getattr(streams if hasattr(streams, name) else kernel, name)] = value
    return column


def run(name, rows, read, written, elements, fill=streams.fill_seconds, rules=None, **changes):
    sizes = np.array([rows, read, written, elements], np.float64)[:, None, None]
    seconds = np.empty((1, 1))
    declared = streams.STREAM_KERNELS.lookup(name).rules if rules is None else rules
    fill(seconds, sizes, facts(**changes)[None], declared[None])
    return float(seconds[0, 0])


# -- by hand -------------------------------------------------------------------------------


def test_a_long_sum_takes_its_bytes():
    seconds = run("elementwise", 0, 2e9, 1e9, 5e8, PORT=1e15, THREADS=1e12)
    assert seconds == pytest.approx(FILL + 3e9 / STREAM)


def test_ports_join_the_memory_imperfectly():
    seconds = run("elementwise", 0, 2e9, 1e9, 5e8, THREADS=1e12)
    assert seconds == pytest.approx(FILL + math.hypot(3e9 / STREAM, 3e9 / (4 * PORT)))


def test_one_row_has_one_sm_and_the_bytes_its_threads_have_in_flight():
    """1,024 threads of 16 bytes have 16 KiB in flight; a row of 64 KiB takes four trips."""
    seconds = run("rotary", 1, 65536, 65536, 32768, STREAM=1e30, PIN_RATE=1e30, PORT=1e15)
    assert seconds == pytest.approx(FILL + 4 * FILL, rel=1e-6)
    wide = replace(streams.STREAM_KERNELS.lookup("rotary"), width=1e9).rules
    port = run("rotary", 1, 65536, 65536, 32768, rules=wide, STREAM=1e30, PIN_RATE=1e30)
    assert port == pytest.approx(FILL + 131072 / PORT)
    narrow = replace(streams.STREAM_KERNELS.lookup("rotary"), width=4.0).rules
    slow = run("rotary", 1, 65536, 65536, 32768, rules=narrow, STREAM=1e30, PIN_RATE=1e30)
    assert slow == pytest.approx(FILL + 16 * FILL)


def test_softmax_reads_a_row_again_twice_and_takes_two_exponentials():
    """Rows of 4,096 elements: 512 threads, four rows of 8 KiB on an SM are in L1."""
    rows, elements = 1000, 4096e3
    moved = 2 * elements
    wide = {"PORT": 1e15, "THREADS": 2048}
    memory = 2 * moved / STREAM
    flight = moved / (4 * 2048 * 16) * FILL
    after = 2 * moved / (4 * 1e15) + 2 * elements / (4 * 16 * CLOCK)
    seconds = run("softmax", rows, moved, moved, elements, **wide)
    assert seconds == pytest.approx(3 * FILL + math.hypot(memory, flight) + after)


@pytest.mark.parametrize(("l1", "rate"), [(4 * 8192, SHARED), (4 * 8192 - 1, PORT)])
def test_a_row_that_l1_does_not_hold_is_read_again_through_the_port(l1, rate):
    moved, far = 2 * 4096e3, {"STREAM": 1e30, "L2_RATE": 1e30, "PIN_RATE": 1e30, "FILL": 0.0}
    seconds = run("norm", 1000, moved, moved, 4096e3, L1_BYTES=l1, **far)
    assert seconds == pytest.approx(2 * moved / (4 * PORT) + moved / (4 * rate))


def test_exponentials_hide_under_the_memory_where_nothing_waits_for_a_row():
    far = {"PORT": 1e30, "FILL": 0.0}
    specials = 2 * 1e9 / (4 * 16 * CLOCK)
    seconds = run("activation", 0, 2e9, 2e9, 1e9, **far)
    assert seconds == pytest.approx(math.hypot(4e9 / STREAM, specials))


def test_what_is_in_l2_is_faster_but_never_than_the_pins():
    cold = run("elementwise", 0, 2e6, 1e6, 5e5, THREADS=1e12)
    warm = run("elementwise", 0, 2e6, 1e6, 5e5, THREADS=1e12, L2_BYTES=1e9)
    assert warm < cold
    free = {"PORT": 1e30, "FILL": 0.0, "L2_BYTES": 1e9, "L2_RATE": 1e30}
    assert run("elementwise", 0, 2e6, 1e6, 5e5, **free) == 3e6 / PIN


# -- the laws ------------------------------------------------------------------------------

RATES = ("PORT", "SHARED", "L2_RATE", "L2_BYTES", "CLOCK", "L1_BYTES")
shapes = st.tuples(st.integers(1, 5000), st.integers(1, 40000))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(shape=shapes, what=st.sampled_from((*RATES, "FILL", "HBM", "SMS")), by=st.floats(1.01, 8))
def test_nothing_gets_slower_on_a_better_machine(name, shape, what, by):
    rows, width = shape
    elements = rows * width
    work = (rows if name in ("softmax", "norm") else 0, 2 * elements, 2 * elements, elements)
    before = run(name, *work, L2_BYTES=1e7)
    changes = {"L2_BYTES": 1e7}
    if what == "HBM":
        changes |= {"STREAM": STREAM * by, "PIN_RATE": PIN * by}
    elif what == "SMS":
        changes["SMS"] = math.ceil(4 * by)
    elif what == "L2_BYTES":
        changes["L2_BYTES"] = 1e7 * by
    else:
        column = facts()[getattr(streams if hasattr(streams, what) else kernel, what)]
        changes[what] = column / by if what == "FILL" else column * by
    assert run(name, *work, **changes) <= before * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(shape=shapes)
def test_no_kernel_beats_the_pins(name, shape):
    rows, width = shape
    moved = 4 * rows * width
    seconds = run(name, rows, moved / 2, moved / 2, rows * width, FILL=0.0, L2_BYTES=1e30)
    assert seconds >= moved / PIN


def test_no_work_takes_no_time_and_no_rate_for_ever():
    assert run("softmax", 4, 0, 0, 0) == 0.0
    assert run("softmax", 4, 8, 8, 4, STREAM=0.0) == math.inf


# -- the compiled loop ---------------------------------------------------------------------


def test_the_compiled_loop_equals_its_plain_twin():
    rng = np.random.default_rng(0)
    n = 200
    names = [NAMES[i] for i in rng.integers(0, len(NAMES), n)]
    rules = np.stack([streams.STREAM_KERNELS.lookup(name).rules for name in names])
    rows, width = np.ceil(2.0 ** rng.uniform(0, 14, (2, n)))
    rows_of = np.where(rng.random(n) < 0.5, rows, 0.0)
    sizes = np.array([rows_of, 2 * rows * width, 2 * rows * width, rows * width])[:, :, None]
    points = np.stack([facts(), facts(SMS=108.0, L2_BYTES=4e7)])
    answers = []
    for fill in (streams.compiled(), streams.fill_seconds):
        seconds = np.empty((n, 2))
        fill(seconds, sizes, points, rules)
        answers.append(seconds)
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-12)
    assert (answers[0] > 0).all()
