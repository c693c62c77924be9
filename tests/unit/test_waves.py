"""Waves of thread blocks: fill, tiles by hand, points, and what the rule does not promise."""

import math

import numpy as np
import pytest
from handmade import demand, device, gemm
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.compute.waves import DEPTH, EDGES, fill, tile_fill

KIB = 1024
#: Of the handmade device: 2 TB/s at 75 %, 100 TFLOP/s at 80 %, launch 3 us.
RATE, PEAK = 1.5e12, 80e12


def machine(**unit):
    return device(unit={"kind": "waves", "instances": 100, "local": "192 KiB", **unit})


def plain(m, n, k, groups, size, local, units):
    """Return the share by a search written from the rule alone."""
    found = []
    for edge_m in EDGES:
        for edge_n in EDGES:
            a, b = min(edge_m, m), min(edge_n, n)
            if (a * DEPTH + b * DEPTH + a * b) * size > local:
                continue
            down, across = math.ceil(m / a), math.ceil(n / b)
            blocks = down * across * groups
            share = blocks / (units * math.ceil(blocks / units))
            found.append(((across * m * k + down * n * k + m * n) / share**2, share))
    return min(found, key=lambda pair: pair[0])[1]


def test_whole_waves_fill_and_one_block_more_does_not():
    assert fill(108.0, 108) == 1.0
    assert fill(216.0, 108) == 1.0
    assert fill(12.0, 108) == pytest.approx(1 / 9)
    assert fill(109.0, 108) == pytest.approx(109 / 216)


@given(
    *(st.integers(1, 20000) for _ in range(3)),
    st.integers(1, 300),
    st.sampled_from([108, 132, 16]),
    st.sampled_from([32, 192, 256]),
)
def test_the_tile_is_the_one_of_the_rule(m, n, k, groups, units, kib):
    sizes = (float(m), float(n), float(k), float(groups))
    expected = plain(m, n, k, groups, 2.0, kib * KIB, units)
    assert tile_fill(*sizes, 2.0, kib * KIB, units) == pytest.approx(expected, rel=1e-12)


def test_attention_of_twelve_heads_draws_twelve_hundredths_of_the_bandwidth():
    n, k, heads = 2048, 128, 12
    cached = 2.0 * heads * n * k
    row = ("score", "score", {"m": 1, "n": n, "k": k, "groups": heads, "kv_read": cached})
    streamed = 2.0 * heads * (k + n * k)
    priced = demand(machine(), row)
    assert priced.compute[0, 0] == pytest.approx(streamed / RATE / 0.12, rel=1e-12)


def test_a_softmax_has_the_blocks_of_its_scores():
    scores = 2.0 * 12 * 2048
    priced = demand(
        machine(),
        ("score", "score", {"m": 1, "n": 2048, "k": 128, "groups": 12, "out_bytes": scores}),
        ("softmax", "softmax", {"flops": 5 * scores / 2, "out_bytes": scores}),
    )
    assert priced.compute[1, 0] == pytest.approx(2 * scores / RATE / 0.12, rel=1e-12)


def test_a_large_product_takes_its_operations_over_what_its_tiles_fill():
    m = n = 6400
    share = plain(m, n, 4096, 1, 2.0, 192 * KIB, 100)
    priced = demand(machine(), gemm(m, n, 4096))
    assert priced.compute[0, 0] == pytest.approx(2 * m * n * 4096 / PEAK / share, rel=1e-12)


def test_points_cost_what_they_cost_alone():
    sizes = np.array([1.0, 17.0, 300.0, 5000.0])
    together = demand(machine(), gemm(sizes, 4608, 12288)).duration[0]
    alone = [demand(machine(), gemm(m, 4608, 12288)).duration[0, 0] for m in sizes]
    np.testing.assert_allclose(together, alone, rtol=1e-14)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_faster_memory_and_arithmetic_never_slow_a_product_down(m, n, k):
    rates = np.geomspace(1e11, 1e15, 5)
    for path in ("dev.core.peak.bf16", "dev.hbm.phy.bandwidth"):
        priced = demand(machine().with_values({path: rates}), gemm(m, n, k))
        assert (np.diff(priced.duration[0]) <= 0).all()
    ideal, real = (demand(machine(), gemm(m, n, k), ideal=x).duration[0, 0] for x in (True, False))
    assert real >= ideal


def test_more_rows_can_take_less_time():
    """The rule prefers little traffic, not little time; the tool that has it shows the same."""
    wide = machine(instances=132, local="256 KiB", peak={"bf16": "1000 TFLOP/s"})
    few, many = (demand(wide, gemm(m, 4608, 12288)).compute[0, 0] for m in (64, 96))
    assert many < 0.7 * few


def test_without_local_memory_or_inside_a_fused_operator_products_are_padded():
    bare = demand(device(unit={"kind": "waves"}), gemm(64, 64, 64)).compute[0, 0]
    assert bare == pytest.approx(2 * 64**3 / PEAK, rel=1e-12)
    fused = device(
        unit={"kind": "waves", "local": "192 KiB", "instances": 100}, mapping={"fusion": "layer"}
    )
    both = demand(fused, gemm(64, 64, 64), ("act", "activation", {"flops": 5e6}))
    assert both.compute[0, 0] == pytest.approx(bare + 1e-6, rel=1e-12)


def test_a_unit_at_an_sram_alone_is_refused():
    with pytest.raises(UncoveredError, match=r"dev.core.*no port of a DRAM"):
        demand(machine(at="l2.fabric"), gemm(8, 8, 8))
