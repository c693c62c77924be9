"""The attention kernel against its twin, laws, and calls that can be worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.compute.gpu import appends
from opbyte.hw_models.compute.gpu import attention as a
from opbyte.hw_models.compute.gpu.attention_libraries import ATTENTION_LIBRARIES as LIBRARIES
from opbyte.hw_models.compute.gpu.kv_parts import searched_parts, shared_parts
from opbyte.hw_models.compute.gpu.norms import joined
from opbyte.sim.batch import simulate_batch

HUGE = 1e30
START, TURN, EMPTY, SMALL, COPY, LAUNCH = 1e-6, 2e-6, 0.25e-6, 3e-6, 0.5e-6, 4e-6
COMBINE, WRITE, STREAM = 0.125e-6, 5e-6, 8e11
FA2 = LIBRARIES.lookup("ampere")
FA3 = LIBRARIES.lookup("hopper")
#: 64 queries by 128 keys of 128 elements, twice, at 1 TFLOP/s; 8192 scores at 2 operations of
#: 0.5 T a second, and their exponents.
PRODUCTS = 4 * 64 * 128 * 128 / 1e12
SOFTMAX = 64 * 128 * (2 * 2 / 1e12 + 1 / (16 * 1e9))
ALONE, SHARED = PRODUCTS + SOFTMAX, math.hypot(PRODUCTS, SOFTMAX)
FIELDS = ("SEQUENCES", "KV_HEADS", "GROUP", "NEW", "READS", "PAIRS", "WINDOWED")


def facts(**changes):
    """Four SMs of 1 TFLOP/s behind wires that do not count; softmax of 2 operations a score."""
    column = np.zeros(a.FACTS)
    values = {
        "SMS": 4, "PEAK": 4e12, "LANES": 4e12, "CLOCK": 1e9, "PORT": HUGE, "SHARED": HUGE,
        "SHARED_BYTES": 164 * 1024, "THREADS": 2048, "L2_RATE": HUGE, "L2_BYTES": HUGE,
        "PIN_RATE": HUGE, "STREAM": HUGE, "LAUNCH": LAUNCH, "MATRIX": 1.0, "LATENCY": 0.0,
        "L2_SHARE": 1.0, "OVERLAP": 64.0, "SOFTMAX": 2.0, "PAIRING": 2.0, "START": START,
        "TURN": TURN, "EMPTY": EMPTY, "TAIL": 0.5, "SMALL": SMALL, "COPY": COPY,
        "COMBINE": COMBINE, "WRITE": WRITE,
    }  # fmt: skip
    for name, value in {**values, **changes}.items():
        column[getattr(a, name)] = value
    return column[None, :]


def row(sequences, kv_heads, group, new, reads, pairs=None, **more):
    x = np.zeros(a.COLUMNS)
    causal = new * (reads - new) + new * (new + 1) / 2
    values = (sequences, kv_heads, group, new, reads, causal if pairs is None else pairs)
    for name, value in {
        **dict(zip(FIELDS, values, strict=False)),
        "DIM": 128, "VALUE_DIM": 128, "B_QUERY": 2, "B_KV": 2, **more,
    }.items():  # fmt: skip
        x[getattr(a, name)] = value
    return x


def run(*rows, library=FA2, calls=None, **changes):
    """Return the seconds of each row, which are of one call unless `calls` says otherwise."""
    seconds = np.empty((len(rows), 1))
    ids = np.zeros(len(rows), np.int64) if calls is None else np.array(calls)
    sizes = np.array(rows)[:, None]
    tiles = library.tiles
    a.fill_seconds(seconds, sizes, ids, facts(**changes), library.rules, tiles, a.new_memo(tiles))
    return seconds[:, 0]


# -- by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize(("reads", "blocks"), [(1, 1), (128, 1), (129, 2), (1280, 10)])
def test_one_token_of_one_head_walks_over_blocks_of_128_keys(reads, blocks):
    assert run(row(1, 1, 1, 1, reads)) == pytest.approx(START + TURN + blocks * ALONE)


@pytest.mark.parametrize(
    ("ctas", "seconds"),
    [
        (4, 10 * ALONE + TURN),
        (5, 2 * (10 * SHARED + TURN)),
        (8, 2 * (10 * SHARED + TURN)),
        (9, 2 * (10 * SHARED + TURN) + 10 * ALONE + TURN),
        (16, 4 * (10 * SHARED + TURN)),
    ],
)
def test_equal_ctas_run_in_rounds_two_on_an_sm(ctas, seconds):
    assert run(row(ctas, 1, 1, 1, 1280)) == pytest.approx(START + seconds)


def test_a_small_shared_memory_holds_one_cta():
    alone = START + 3 * (10 * ALONE + TURN)
    assert run(row(9, 1, 1, 1, 1280), SHARED_BYTES=100 * 1024) == pytest.approx(alone)


def test_causal_tiles_take_all_their_work_and_the_tail_of_the_longest():
    # 16 tiles of 64 queries: 1, 1, 2, 2, ... 8, 8 blocks; four for each SM.
    busy = 4 * (4.5 * SHARED + TURN)
    longest = 8 * ALONE + TURN
    listed = max(longest, busy + 0.5 * longest)
    seconds = START + listed + (busy - listed) / 8
    assert run(row(1, 1, 1, 1024, 1024)) == pytest.approx(seconds)


def test_a_causal_triangle_takes_half_and_a_window_its_width():
    big = {"TURN": 0.0, "START": 0.0, "TAIL": 0.0, "EMPTY": 0.0}
    n = 64 * 512
    full = run(row(1, 8, 1, n, n, n * n), **big)
    causal = run(row(1, 8, 1, n, n), **big)
    window = run(row(1, 8, 1, n, n, n * 1024 - 1024 * 1023 / 2), **big)
    assert causal / full == pytest.approx(0.5, rel=0.01)
    assert window / full == pytest.approx((1024 + 64) / n, rel=0.15)


def test_new_tokens_behind_a_past_walk_over_both():
    # 512 new tokens of one head behind 4096: eight tiles, from 33 to 36 blocks each.
    seconds = run(row(1, 1, 1, 512, 4608), TAIL=0.0)
    low, high = (START + 2 * (n * SHARED + TURN) for n in (33, 36))
    assert low < seconds < high


def test_heads_of_a_group_share_a_tile_in_a_call_of_single_tokens():
    packed = run(row(8, 1, 8, 1, 128))
    # As one head, and a copy of the results; permuted where there are several KV heads.
    assert packed == pytest.approx(run(row(8, 1, 1, 1, 128)) + COPY)
    several = run(row(4, 2, 8, 1, 128))
    assert several == pytest.approx(run(row(8, 1, 1, 1, 128)) + 2 * (LAUNCH + SMALL))
    apart = run(row(8, 1, 8, 1, 128, WINDOWED=1))
    assert apart == pytest.approx(run(row(64, 1, 1, 1, 128)))


def test_a_packed_call_with_few_tiles_splits_its_keys():
    # One tile and eight slots: seven parts (0.875 of them) of 12 of 80 blocks, two on an SM.
    seconds = run(row(1, 1, 8, 1, 10240))
    ctas = 2 * (12 * SHARED + TURN)
    assert seconds == pytest.approx(START + ctas + COPY + LAUNCH + SMALL + 7 * COMBINE)
    assert run(row(1, 1, 1, 1, 10240)) == pytest.approx(START + TURN + 80 * ALONE)


@pytest.mark.parametrize(
    ("ctas", "slots", "blocks", "parts"),
    [
        (1, 216, 1, 1),
        (1, 216, 2, 2),
        (173, 216, 64, 1),
        (1, 216, 128, 128),
        (8, 216, 64, 22),
        (48, 216, 64, 4),
    ],
)
def test_flash_attention_2_takes_the_fewest_parts_that_fill_85_percent(ctas, slots, blocks, parts):
    assert searched_parts(ctas, slots, blocks) == parts


@given(st.integers(1, 400), st.integers(2, 400), st.integers(1, 2000))
@settings(max_examples=300, deadline=None)
def test_the_search_for_parts_skips_none_that_is_eligible(ctas, slots, blocks):
    most = min(128, slots, blocks)
    fill = {}
    for n in range(1, most + 1):
        if n == 1 or math.ceil(blocks / n) != math.ceil(blocks / (n - 1)):
            fill[n] = ctas * n / slots / math.ceil(ctas * n / slots)
    best = max(fill.values())
    expected = next(n for n, f in fill.items() if f >= 0.85 * best)
    assert searched_parts(ctas, slots, blocks) == (1 if ctas >= 0.8 * slots else expected)


def test_flash_attention_3_gives_each_sm_an_equal_share_of_blocks():
    assert shared_parts(8, 1, 4, 4, 132) == 1
    assert shared_parts(8, 1, 64, 64, 132) == 13  # 564 of 132: shares of 5
    assert shared_parts(8, 1, 6400, 6400, 132) == 15  # shares of 427
    assert shared_parts(8, 64, 64, 64, 132) == 1
    assert shared_parts(106, 1, 64, 64, 132) == 1


def test_hbm_bounds_many_keys_and_the_bound_counts_them_once():
    x = row(64, 8, 1, 1, 4096)
    read = 64 * 8 * 4096 * 512
    others = 64 * 8 * 512
    free = {"PEAK": HUGE, "LANES": HUGE, "CLOCK": HUGE, "TURN": 0.0, "START": 0.0}
    assert run(x, STREAM=STREAM, **free) == pytest.approx((read + others) / STREAM)
    assert run(x, PIN_RATE=1e12, **free) == pytest.approx((read + others) / 1e12)


def test_heads_of_a_group_read_keys_again_when_too_few_of_them_run_together():
    free = {"PEAK": HUGE, "LANES": HUGE, "CLOCK": HUGE, "TURN": 0.0, "START": 0.0, "EMPTY": 0.0}
    x = row(16, 1, 4, 1, 4096, WINDOWED=1)
    small = {"STREAM": STREAM, "L2_BYTES": 1.0, **free}
    read, others = 16 * 4096 * 512, 16 * 4 * 512
    assert run(x, **small) == pytest.approx((4 * read + others) / STREAM)
    # Eight CTAs run together: two heads of four sequences.
    x[a.SEQUENCES] = 4
    assert run(x, **small) == pytest.approx((2 * read + others) / 4 / STREAM)
    assert run(x, **{**small, "L2_BYTES": HUGE}) == pytest.approx((read + others) / 4 / STREAM)


def test_new_keys_and_values_are_written_by_a_kernel_of_their_own():
    width, moved = 128.0, 2.0 * 4096 * 512
    took = appends.append_seconds(4096.0, width, moved, facts()[0])
    # 128 threads each: 64 tokens on an SM.
    assert took == pytest.approx(SMALL + 4096 * 128 / (4 * 2048) * WRITE)
    took = appends.append_seconds(4096.0, width, moved, facts(STREAM=1e9, WRITE=0.0)[0])
    assert took == pytest.approx(SMALL + moved / 1e9)


def test_compiled_writes_equal_their_twin():
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.integers(0, 20, (3, 50, 1))
    sizes[2, 0] = 0.0
    answers = []
    for fill in (appends.compiled(), appends.fill_seconds):
        seconds = np.empty((50, 1))
        fill(seconds, sizes, A100)
        answers.append(seconds)
    np.testing.assert_allclose(*answers, rtol=1e-12)
    assert answers[0][0, 0] == 0.0
    stopped = A100.copy()
    stopped[0, a.STREAM] = 0.0
    appends.compiled()(seconds, sizes, stopped)
    assert np.isinf(seconds[1:]).all()


def test_other_widths_have_other_tiles():
    wide = run(row(1, 1, 1, 1, 1280, DIM=256, VALUE_DIM=256))
    # 20 blocks of 64 keys: as many products, half of the scores each.
    assert wide == pytest.approx(START + TURN + 20 * (PRODUCTS + SOFTMAX / 2))
    padded = run(row(1, 1, 1, 1, 1280, DIM=192, VALUE_DIM=128))
    assert padded == pytest.approx(START + TURN + 20 * (0.75 * PRODUCTS + SOFTMAX / 2))
    own = run(row(1, 1, 1, 1, 960, DIM=192, VALUE_DIM=128), library=FA3)
    block = math.hypot(2 * 128 * 96 * 320 / 1e12, 128 * 96 * SOFTMAX / 8192)
    parts = shared_parts(1, 1, 10, 10, 4)
    assert parts == 4
    assert own == pytest.approx(START + 3 * block + 4 * COMBINE + LAUNCH + SMALL)


# -- calls ---------------------------------------------------------------------------------


def test_a_mixed_call_adds_work_and_has_one_tail():
    prefill, decode = row(1, 8, 4, 2048, 2048), row(64, 8, 4, 1, 4096)
    together = run(prefill, decode).sum()
    # 32 heads; 256 and 512 CTAs on each SM: from 1 to 16 blocks, and 32.
    busy = 256 * (8.5 * SHARED + TURN) + 512 * (32 * SHARED + TURN)
    listed = busy + 0.5 * (32 * ALONE + TURN)
    # 31 of 32 tiles in height find nothing to do for each sequence and head that decodes.
    idle = 64 * 32 * 31 / 4 * EMPTY
    work = listed + (busy - listed) / 32
    assert together == pytest.approx(START + work + idle)
    # The rows of other calls have nothing to do with it.
    apart = run(prefill, decode, calls=[0, 1])
    assert apart[0] == pytest.approx(run(prefill)[0])
    assert apart[1] == pytest.approx(run(decode)[0])
    assert run(prefill)[0] < together


def test_equal_rows_of_one_call_are_one_row():
    for library, more in ((FA2, {}), (FA2, {"WINDOWED": 1}), (FA3, {})):
        both = run(row(3, 2, 8, 1, 10240, **more), row(1, 2, 8, 1, 10240, **more), library=library)
        one = run(row(4, 2, 8, 1, 10240, **more), library=library)
        # Each row has small kernels of its own.
        beside = LAUNCH + SMALL
        assert one[0] <= both.sum() + 1e-15
        assert both.sum() == pytest.approx(one[0], abs=4 * beside)
        assert both[0] > both[1] > 0.0


def test_nothing_takes_no_time_and_a_rate_of_nothing_for_ever():
    for gone in ("SEQUENCES", "KV_HEADS", "GROUP", "NEW", "READS", "PAIRS"):
        assert run(row(1, 1, 1, 16, 64, **{gone: 0})) == 0.0
    some, none = run(row(1, 1, 1, 16, 64), row(0, 1, 1, 16, 64))
    assert some == run(row(1, 1, 1, 16, 64))[0]
    assert none == 0.0
    some, none = run(row(1, 1, 1, 16, 64), row(0, 1, 1, 16, 64), STREAM=0.0)
    assert some == np.inf
    assert none == 0.0


# -- machines ------------------------------------------------------------------------------

A100 = facts(
    SMS=108, PEAK=312e12, LANES=19.5e12, CLOCK=1.41e9, PORT=62e9, SHARED=180e9, L2_RATE=5e12,
    L2_BYTES=40 * 2**20, PIN_RATE=2.039e12, STREAM=1.68e12, LAUNCH=2.2e-6, MATRIX=0.94,
    LATENCY=1.26e-6, L2_SHARE=0.45, OVERLAP=3.3, SOFTMAX=7.2, PAIRING=1.5, START=0.7e-6,
    TURN=1.3e-6, TAIL=0.65,
)  # fmt: skip


def many(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.zeros((count, 1, a.COLUMNS))
    new = np.where(rng.random(count) < 0.5, 1.0, np.floor(2.0 ** rng.uniform(0, 12, count)))
    past = np.floor(2.0 ** rng.uniform(0, 15, count)) - 1
    columns = {
        "SEQUENCES": np.floor(2.0 ** rng.uniform(0, 8, count)),
        "KV_HEADS": 2.0 ** rng.integers(0, 4, count),
        "GROUP": rng.integers(1, 9, count),
        "NEW": new,
        "READS": past + new,
        "PAIRS": new * past + new * (new + 1) / 2,
        "DIM": rng.choice([64, 96, 128, 192, 256], count),
        "VALUE_DIM": rng.choice([64, 128, 256], count),
        "B_QUERY": 2,
        "B_KV": rng.choice([1, 2], count),
        "WINDOWED": rng.choice([0, 1], count),
    }
    calls = np.sort(rng.integers(0, count, count))
    # Rows of one call are of one layer.
    first = np.searchsorted(calls, calls)
    own = ("SEQUENCES", "NEW", "READS", "PAIRS")
    for name, value in columns.items():
        column = np.broadcast_to(value, count)
        sizes[:, 0, getattr(a, name)] = column if name in own else column[first]
    return sizes, calls


@pytest.mark.parametrize("name", LIBRARIES.names())
def test_the_compiled_kernel_equals_its_plain_twin(name):
    library = LIBRARIES.lookup(name)
    sizes, calls = many(400)
    answers = []
    for fill in (a.compiled(), a.fill_seconds):
        seconds = np.empty((400, 1))
        fill(seconds, sizes, calls, A100, library.rules, library.tiles, a.new_memo(library.tiles))
        answers.append(seconds)
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-12)
    assert (answers[0] > 0).all()
    assert np.isfinite(answers[0]).all()


@pytest.mark.parametrize("name", LIBRARIES.names())
def test_what_earlier_calls_left_changes_nothing(name):
    library = LIBRARIES.lookup(name)
    sizes, _ = many(400, 2)
    rows, args = sizes[:, 0].copy(), (A100[0], library.rules, library.tiles)
    own = [a.SEQUENCES, a.NEW, a.READS, a.PAIRS]
    layer = np.delete(np.arange(a.COLUMNS), own)
    rows[:, layer] = rows[0, layer]
    left = a.new_memo(library.tiles)
    for row in rows:
        afresh, after = np.zeros(1), np.zeros(1)
        a.call_seconds(afresh, row[None], *args, a.new_memo(library.tiles))
        a.call_seconds(after, row[None], *args, left)
        assert after[0] == afresh[0] > 0


@pytest.mark.parametrize("name", LIBRARIES.names())
def test_no_row_undercuts_the_bound(name):
    library = LIBRARIES.lookup(name)
    sizes, calls = many(2000, 1)
    seconds = np.empty((2000, 1))
    memo = a.new_memo(library.tiles)
    a.compiled()(seconds, sizes, calls, A100, library.rules, library.tiles, memo)
    bounds = [a.bound_seconds(x, A100[0]) for x in sizes[:, 0]]
    assert (seconds[:, 0] >= np.array(bounds) * (1 - 1e-12)).all()


def test_points_cost_what_they_cost_alone():
    sizes, calls = many(50, 2)
    points = np.repeat(A100, 3, axis=0)
    points[:, a.STREAM] = [1e11, 1e12, 1.6e12]
    together = np.empty((50, 3))
    memo = a.new_memo(FA2.tiles)
    a.compiled()(together, sizes, calls, points, FA2.rules, FA2.tiles, memo)
    for point in range(3):
        alone = np.empty((50, 1))
        a.compiled()(alone, sizes, calls, points[point : point + 1], FA2.rules, FA2.tiles, memo)
        np.testing.assert_array_equal(together[:, point], alone[:, 0])


# -- through the whole call ------------------------------------------------------------------


def calls_of(machine="a100-sxm-80gb", **changes):
    work = {"kind": "attention_decode", "batch": 64, "kv_tokens": 8192, "heads": 32, "kv_heads": 8}
    frame = pd.DataFrame([{**work, **changes}])
    return simulate_batch(machine, frame)["seconds"].item()


@pytest.mark.parametrize(
    "machine", ["a100-sxm-80gb", "rtx-4090", "h100-sxm-80gb", "b200-sxm-180gb"]
)
@pytest.mark.parametrize("tokens", [1, 1024])
def test_narrower_keys_are_never_slower(machine, tokens):
    if tokens > 1:
        work = {"kind": "attention_prefill", "batch": 1, "q_tokens": tokens, "kv_tokens": 4096}
    else:
        work = {}
    took = [calls_of(machine, kv_dtype=d, **work) for d in ("int4", "mxfp4", "fp8")]
    assert took == sorted(took)


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        ("a100-sxm-80gb", {"head_dim": 257}, ["FlashAttention 2", "head_dim", "256", "257"]),
        ("h100-sxm-80gb", {"head_dim": 512}, ["FlashAttention 3", "256", "512"]),
        ("a100-sxm-80gb", {"dtype": "fp64"}, ["FlashAttention 2", "fp16, bf16", "fp64"]),
        ("a100-sxm-80gb", {"dtype": "fp32"}, ["FlashAttention 2", "fp32"]),
        ("a100-sxm-80gb", {"dtype": "int4"}, ["FlashAttention 2", "int4"]),
        ("h100-sxm-80gb", {"dtype": "int8"}, ["FlashAttention 3", "fp16, bf16, fp8", "int8"]),
        ("rtx-4090", {"dtype": "fp8"}, ["FlashAttention 2", "fp8"]),
    ],
)
def test_what_the_library_has_no_kernel_for_is_refused(machine, changes, words):
    with pytest.raises(UncoveredError) as refused:
        calls_of(machine, **changes)
    for word in (*words, "fusion: none"):
        assert word in str(refused.value)


def test_half_precision_and_fp8_are_served():
    for machine, dtype in (("a100-sxm-80gb", "fp16"), ("h100-sxm-80gb", "fp8")):
        assert 0 < calls_of(machine, dtype=dtype) <= calls_of(machine)


# -- the norm ------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(1, 1e9))
def test_times_that_overlap_take_the_longer_at_least_and_their_sum_at_most(x, y, p):
    both = joined(x, y, p)
    assert max(x, y) <= both <= (x + y) * (1 + 1e-12)
    assert both == joined(y, x, p)


def test_one_adds_and_nothing_with_nothing_is_nothing():
    assert joined(3.0, 4.0, 1.0) == 7.0
    assert joined(3.0, 4.0, 2.0) == pytest.approx(5.0)
    assert joined(0.0, 0.0, 2.0) == 0.0
    assert joined(0.0, 4.0, 2.0) == 4.0


FASTER = (
    "PEAK", "LANES", "CLOCK", "PORT", "SHARED", "SHARED_BYTES", "THREADS", "L2_RATE", "L2_BYTES",
    "PIN_RATE", "STREAM", "MATRIX", "L2_SHARE", "PAIRING", "OVERLAP",
)  # fmt: skip
SLOWER = (
    "LAUNCH", "LATENCY", "SOFTMAX", "START", "TURN", "EMPTY", "TAIL", "SMALL", "COPY", "COMBINE",
    "WRITE",
)  # fmt: skip


@pytest.mark.parametrize("name", ["ampere", "ada", "hopper"])
@pytest.mark.parametrize("column", FASTER + SLOWER)
@given(seed=st.integers(0, 2**16), factor=st.floats(1.0, 100.0))
@settings(max_examples=20, deadline=None)
def test_nothing_gets_slower_when_a_rate_rises_or_a_latency_falls(name, column, seed, factor):
    library = LIBRARIES.lookup(name)
    sizes, calls = many(60, seed)
    points = np.repeat(A100, 2, axis=0)
    rng = np.random.default_rng(seed)
    points *= 2.0 ** rng.uniform(-2, 2, a.FACTS)
    points[:, a.SMS] = np.ceil(points[:, a.SMS])
    # Of a norm, 1 adds.
    points[:, [a.PAIRING, a.OVERLAP]] = np.maximum(points[:, [a.PAIRING, a.OVERLAP]], 1.0)
    points[1, getattr(a, column)] *= factor
    seconds = np.empty((60, 2))
    a.compiled()(
        seconds, sizes, calls, points, library.rules, library.tiles, a.new_memo(library.tiles)
    )
    # The rows of a call share it; only their sum is the call's.
    before, after = (np.bincount(calls, seconds[:, i], 60) for i in range(2))
    if column in SLOWER:
        before, after = after, before
    assert (after <= before * (1 + 1e-9)).all()


def test_more_work_never_takes_less():
    sizes, _ = many(300, 3)
    calls = np.arange(300)
    seconds = {}
    for key, column in ((None, 0), ("more", a.SEQUENCES)):
        more = sizes.copy()
        if key:
            more[:, 0, column] *= 2
        seconds[key] = np.empty((300, 1))
        a.compiled()(seconds[key], more, calls, A100, FA3.rules, FA3.tiles, a.new_memo(FA3.tiles))
    # Fewer parts of a split may be combined: what that saves is bounded.
    assert (seconds["more"] > 0.8 * seconds[None]).all()


def test_a_library_that_no_one_declared_is_refused():
    with pytest.raises(ConfigError, match="ampere"):
        LIBRARIES.lookup("amper")


@pytest.mark.parametrize("name", LIBRARIES.names())
def test_each_library_declares_what_the_kernel_reads(name):
    library = LIBRARIES.lookup(name)
    assert library.rules.shape == (a.RULES,)
    assert library.source
    dims, _, _, rows, keys, warp, stages, ctas = library.tiles.T
    assert dims.max() >= 256
    assert (rows % warp == 0).all()
    assert (np.minimum(np.minimum(keys, stages), ctas) >= 1).all()
