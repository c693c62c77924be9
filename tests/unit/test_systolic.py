"""Systolic arrays against arrays simulated cycle by cycle, and memory stalls worked out by hand."""

import numpy as np
import pytest
from handmade import demand, device, gemm
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.compute.systolic import Supply, array_cycles, memory_waits
from opbyte.spi import check_unit

FLOWS = ("os", "ws", "is")
flows = pytest.mark.parametrize("dataflow", FLOWS)
ARRAY = {"kind": "systolic", "array": [8, 16], "clock": "1 GHz", "peak": {}, "dtypes": ["bf16"]}


def machine(**more):
    return device(unit={**ARRAY, "efficiency": None, "buffer": None, "buffer_share": None, **more})


def padded(x, rows, columns):
    return np.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))


def stationary_output_tile(a, b):
    """Run one os tile: a enters on the left, b on top, one hop each cycle."""
    (rows, k), columns = a.shape, b.shape[1]
    left, top = np.zeros((rows, columns)), np.zeros((rows, columns))
    total, seen = np.zeros((rows, columns)), np.zeros((rows, columns), int)
    valid = np.zeros((rows, columns), bool)
    cycle = 0
    while (seen < k).any():
        left[:, 1:], top[1:], valid[:, 1:] = (
            left[:, :-1].copy(),
            top[:-1].copy(),
            valid[:, :-1].copy(),
        )
        for r in range(rows):
            valid[r, 0] = 0 <= cycle - r < k
            left[r, 0] = a[r, cycle - r] if valid[r, 0] else 0.0
        for c in range(columns):
            top[0, c] = b[cycle - c, c] if 0 <= cycle - c < k else 0.0
        total += left * top
        seen += valid
        cycle += 1
    return total, cycle


def stationary_weight_tile(a, b):
    """Run one ws tile: b shifts in from the top, then a from the left, sums leave at the bottom."""
    moving, (rows, columns) = a.shape[0], b.shape
    weights = np.zeros((rows, columns))
    cycle = 0
    for r in reversed(range(rows)):
        weights[1:] = weights[:-1].copy()
        weights[0] = b[r]
        cycle += 1
    inputs, sums = np.zeros((rows, columns)), np.zeros((rows, columns))
    result, left, start = np.zeros((moving, columns)), moving * columns, cycle
    while left:
        t = cycle - start
        inputs[:, 1:] = inputs[:, :-1].copy()
        for r in range(rows):
            inputs[r, 0] = a[t - r, r] if 0 <= t - r < moving else 0.0
        sums[1:] = sums[:-1].copy()
        sums[0] = 0.0
        sums += weights * inputs
        for c in range(columns):
            i = t - (rows - 1) - c
            if 0 <= i < moving:
                result[i, c] = sums[-1, c]
                left -= 1
        cycle += 1
    return result, cycle


def simulated(a, b, array, dataflow):
    """Return the product and the cycles of all tiles, one after the other."""
    if dataflow == "is":  # stationary inputs are stationary weights of the transposed product
        result, cycles = simulated(b.T, a.T, array, "ws")
        return result.T, cycles
    rows, columns = array
    (m, k), n = a.shape, b.shape[1]
    result, total = np.zeros((m, n)), 0
    for j in range(0, n, columns):
        for i in range(0, m if dataflow == "os" else k, rows):
            strip = b[:, j : j + columns]
            if dataflow == "os":
                edge = a[i : i + rows]
                out, cycles = stationary_output_tile(
                    padded(edge, rows, k), padded(strip, k, columns)
                )
                result[i : i + rows, j : j + columns] = out[: len(edge), : strip.shape[1]]
            else:
                out, cycles = stationary_weight_tile(
                    padded(a[:, i : i + rows], m, rows), padded(strip[i : i + rows], rows, columns)
                )
                result[:, j : j + columns] += out[:, : strip.shape[1]]
            total += cycles
    return result, total


sizes = st.integers(1, 13)


@flows
@given(m=sizes, n=sizes, k=sizes, rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_closed_form_is_the_simulated_array(dataflow, m, n, k, rows, columns):
    random = np.random.default_rng(1)
    a, b = random.integers(-4, 5, (m, k)) * 1.0, random.integers(-4, 5, (k, n)) * 1.0
    result, cycles = simulated(a, b, (rows, columns), dataflow)
    np.testing.assert_array_equal(result, a @ b)
    mine = array_cycles(m, n, k, (rows, columns), dataflow)
    assert isinstance(mine, int)
    assert mine == cycles


# Printed by SCALE-Sim 3.0.0 (scalesim on PyPI), no bandwidth limit: rows, columns, m, n, k, cycles.
SCALE_SIM = {
    "os": [(4, 4, 5, 9, 11, 101), (4, 7, 12, 8, 16, 149), (8, 3, 3, 20, 6, 104)],
    "ws": [
        (4, 4, 5, 9, 11, 134),
        (4, 4, 12, 8, 16, 175),
        (4, 7, 5, 9, 11, 107),
        (4, 7, 3, 20, 6, 95),
        (8, 3, 5, 9, 11, 131),
        (8, 3, 1, 1, 1, 17),
    ],
    "is": [
        (4, 4, 5, 9, 11, 113),
        (4, 4, 12, 8, 16, 215),
        (4, 7, 12, 8, 16, 167),
        (4, 7, 3, 20, 6, 65),
        (8, 3, 5, 9, 11, 103),
        (8, 3, 3, 20, 6, 36),
    ],
}


@flows
def test_closed_form_is_one_more_than_the_last_cycle_that_scale_sim_prints(dataflow):
    for rows, columns, m, n, k, last in SCALE_SIM[dataflow]:
        assert array_cycles(m, n, k, (rows, columns), dataflow) - 1 == last


@flows
def test_an_edge_tile_takes_as_long_as_a_whole_one(dataflow):
    whole = array_cycles(16, 16, 16, (8, 8), dataflow)
    assert (
        array_cycles(*((16, 9, 16) if dataflow != "is" else (9, 16, 16)), (8, 8), dataflow) == whole
    )
    assert array_cycles(17, 17, 17, (8, 8), dataflow) > whole


@flows
def test_many_sizes_at_once_are_the_sizes_one_by_one(dataflow):
    m = np.array([1.0, 7.0, 8.0, 9.0, 1000.0])
    together = array_cycles(m, 40.0, 24.0, (8, 16), dataflow)
    assert list(together) == [array_cycles(int(x), 40, 24, (8, 16), dataflow) for x in m]


def waits(m=256.0, n=512.0, k=128.0, dataflow="os", **supply):
    return memory_waits(m, n, k, (16, 16), dataflow, 2.0, Supply(**{"capacity": 1e9, **supply}))


def test_a_buffer_that_holds_everything_moves_every_tensor_once():
    tensors = 2.0 * (256 * 128 + 512 * 128 + 256 * 512)
    assert waits(feed=8.0).stream == tensors / 8
    assert waits(fill=8.0).stream == (tensors - 2.0 * 256 * 512) / 8


def test_stripes_are_counted_as_they_fit():
    """Two strips of the moving operand and stripes of the other, each beside its outputs."""
    strip, outputs = 2.0 * 16 * 128, 2.0 * 16 * 16
    inputs, weights, result = 2.0 * 256 * 128, 2.0 * 512 * 128, 2.0 * 256 * 512
    for stripes, passes in ((16, 1), (15, 2), (8, 2), (7, 3), (1, 16)):
        capacity = 2 * strip + stripes * (strip + outputs)
        # Inputs have 16 strips and weights have 32: the better of the two stays.
        other = weights + inputs * -(-32 // stripes)
        expected = min(inputs + weights * passes, other) + result
        assert waits(capacity=capacity, feed=1.0).stream == expected
    assert waits(capacity=1.0, feed=1.0).stream == inputs + 16 * weights + result


def test_the_array_waits_for_its_first_tile_or_for_what_stays():
    assert waits(feed=4.0).exposed == 2.0 * (16 + 16) * 16 / 4
    assert waits(feed=4.0, fill=2.0).exposed == 2.0 * (16 + 16) * 16 / 2
    inputs, weights = 2.0 * 256 * 128, 2.0 * 512 * 128
    assert waits(feed=4.0, preload=True).exposed == (inputs + weights) / 4
    assert waits(feed=4.0, preload=True, capacity=2e5).exposed == inputs / 4
    assert waits(feed=4.0, preload=True, dataflow="ws").exposed == inputs / 4
    assert waits(feed=4.0, preload=True, dataflow="is").exposed == weights / 4


def test_a_port_that_is_slower_than_the_edges_slows_the_array():
    assert waits(read=64.0).total(1e6) == waits().total(1e6) == 1e6
    assert waits(read=16.0).total(1e6) == 4e6
    assert waits(read=16.0, dataflow="ws").total(1e6) == 2e6
    assert waits(read=16.0).total(1e6, cycle=5.0) == 5e6


@flows
@given(data=st.data())
def test_more_buffer_or_bandwidth_is_never_slower_and_more_work_never_faster(dataflow, data):
    size = st.integers(1, 3000)
    m, n, k = (float(data.draw(size)) for _ in range(3))
    supply = {
        "capacity": data.draw(st.floats(1e3, 1e7)),
        "feed": data.draw(st.floats(1, 1e3)),
        "fill": data.draw(st.floats(1, 1e3)),
        "read": data.draw(st.floats(1, 1e3)),
    }

    def total(m, n, k, supply):
        alone = array_cycles(m, n, k, (16, 32), dataflow)
        return memory_waits(m, n, k, (16, 32), dataflow, 1.0, Supply(**supply)).total(alone)

    base = total(m, n, k, supply)
    assert base >= array_cycles(m, n, k, (16, 32), dataflow)
    for name, value in supply.items():
        assert total(m, n, k, {**supply, name: 1.7 * value}) <= base * (1 + 1e-12), name
    for more in ((m + 37, n, k), (m, n + 37, k), (m, n, k + 37)):
        assert total(*more, supply) >= base * (1 - 1e-12), more


@flows
def test_seconds_are_cycles_over_the_clock(dataflow):
    unit = machine(dataflow=dataflow)
    real = demand(unit, gemm(33, 65, 127)).compute[0, 0]
    assert real == pytest.approx(array_cycles(33, 65, 127, (8, 16), dataflow) / 1e9, rel=1e-12)
    # Grouped products run one after the other; four arrays share them.
    many = demand(unit, gemm(33, 65, 127, groups=6)).compute[0, 0]
    assert many == pytest.approx(6 * real, rel=1e-12)
    four = demand(machine(dataflow=dataflow, instances=4), gemm(33, 65, 127, groups=8))
    assert four.compute[0, 0] == pytest.approx(2 * real, rel=1e-12)


def test_the_bound_is_the_multipliers_at_the_clock_and_never_more():
    for dataflow in FLOWS:
        for preload in (False, True):
            unit = machine(dataflow=dataflow, buffer="l2", preload=preload)
            for size in ((1, 1, 1), (8, 16, 8), (100, 300, 500), (1, 4096, 4096)):
                bound = demand(unit, gemm(*size), ideal=True)
                assert bound.compute[0, 0] == pytest.approx(np.prod(size) / (8 * 16 * 1e9))
                real = demand(unit, gemm(*size))
                assert bound.compute[0, 0] < real.compute[0, 0]
                assert bound.duration[0, 0] < real.duration[0, 0]


def test_a_causal_product_takes_its_share():
    whole = demand(machine(), gemm(64, 64, 64)).compute[0, 0]
    half = demand(machine(), gemm(64, 64, 64, flops=64.0**3)).compute[0, 0]
    assert half == pytest.approx(whole / 2)


def test_half_the_peak_takes_two_clocks_each_cycle():
    rated = machine(peak={"bf16": "256 GFLOP/s", "int8": "512 GOP/s"})
    slow = demand(rated, gemm(50, 60, 70)).compute[0, 0]
    assert slow == pytest.approx(demand(machine(), gemm(50, 60, 70)).compute[0, 0])
    fast = demand(rated, gemm(50, 60, 70, dtype="int8")).compute[0, 0]
    assert fast == pytest.approx(slow / 2)


def test_memory_behind_the_buffer_counts_at_its_port():
    """HBM gives 0.75 * 2 TB/s, 1500 bytes each cycle, to tiles of 16 rows."""
    real = demand(machine(buffer="l2", buffer_share=0.5, dataflow="os"), gemm(4096, 4096, 16))
    moved = 2.0 * (2 * 4096 * 16 + 4096 * 4096)
    alone = array_cycles(4096, 4096, 16, (8, 16), "os") + 2.0 * (8 + 16) * 16 / 1500
    assert real.compute[0, 0] == pytest.approx(max(alone, moved / 1500) / 1e9, rel=1e-12)
    slow = machine(buffer="l2", dataflow="os").with_values({"dev.hbm.phy.bandwidth": 1e9})
    assert demand(slow, gemm(4096, 4096, 16)).compute[0, 0] == pytest.approx(moved / 0.75e9)


@flows
def test_the_conformance_check_passes(dataflow):
    check_unit(machine(dataflow=dataflow), "dev.core")
    check_unit(machine(dataflow=dataflow, buffer="l2"), "dev.core")


@pytest.mark.parametrize(("name", "example"), [("array", "128, 128"), ("clock", "1 GHz")])
def test_without_array_or_clock_it_is_refused(name, example):
    with pytest.raises(UncoveredError, match=f"'dev.core' has no `{name}`.*{example}"):
        demand(machine(**{name: None}), gemm(8, 8, 8))


def test_a_dtype_that_the_array_lacks_is_refused():
    with pytest.raises(UncoveredError, match=r"no arithmetic for int8\. It has: bf16"):
        demand(machine(), gemm(8, 8, 8, dtype="int8"))


def test_an_array_without_rows_is_a_located_error():
    with pytest.raises(ConfigError, match="array"):
        machine(array=[0, 8])
    with pytest.raises(ConfigError, match="dataflow"):
        machine(dataflow="rs")


def test_points_with_nothing_to_do_take_no_time():
    m = np.array([0.0, 5.0])
    priced = demand(machine(buffer="l2"), gemm(m, 64, 64, weight=8192.0))
    one = demand(machine(buffer="l2"), gemm(5, 64, 64)).compute[0, 0]
    assert priced.compute[0].tolist() == [0.0, pytest.approx(one)]
