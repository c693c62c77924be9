"""The GPU product kernel against its twin and against products that can be worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu import kernel
from opbyte.hw_models.compute.gpu.generations import GENERATIONS
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.hw_models.machine import CATALOG, load_machine
from opbyte.sim.batch import simulate_batch
from opbyte.sim.simulate import simulate

HUGE = 1e30
FILL, EPILOGUE, SPLIT, STREAM, PORT = 1e-6, 2e-6, 0.5e-6, 8e11, 1e15
#: 64 x 64 results, k-steps of 32, no CTA beside another.
TILES = np.array([[64, 64, 32, 1, 1, 64, 64, 0]], np.float64)
STEP = 2 * 64 * 64 * 32 / 1e12
RULES = np.array([0, 1, 1, 0], np.float64)


def facts(**changes):
    """Four SMs of 1 TFLOP/s behind wires that do not count, and HBM of 0.8 TB/s."""
    column = np.empty(kernel.FACTS)
    column[kernel.SMS], column[kernel.PEAK] = 4, 4e12
    column[kernel.SHARED] = column[kernel.L2_RATE] = column[kernel.REUSE] = HUGE
    column[kernel.PORT], column[kernel.L2_BYTES] = PORT, 1.0
    column[kernel.PIN_RATE], column[kernel.STREAM] = 1e12, STREAM
    column[kernel.ROOM], column[kernel.LANES], column[kernel.ENERGY] = HUGE, 1.0, 0.0
    column[kernel.MATRIX], column[kernel.LATENCY], column[kernel.TAIL] = 1.0, 0.0, 0.0
    column[kernel.FILL], column[kernel.EPILOGUE], column[kernel.SPLIT] = FILL, EPILOGUE, SPLIT
    column[kernel.L2_SHARE], column[kernel.OVERLAP] = 1.0, 2.0
    for name, value in changes.items():
        column[getattr(kernel, name)] = value
    return column


def product(m, n, k, groups=1.0):
    sizes = groups * m * k * 2.0, groups * n * k * 2.0, groups * m * n * 2.0
    return kernel.Product(float(m), float(n), float(k), groups, 2.0, 2.0, 2.0, *sizes)


def run(x, rules=RULES, tiles=TILES, **changes):
    return kernel.product_seconds(x, facts(**changes), rules, tiles)


def joined(sm, memory):
    return math.hypot(sm, memory)


def store(tiles=1, bytes_=2):
    return 64 * 64 * bytes_ / PORT + tiles * 64 * 64 * bytes_ / STREAM


# -- by hand -------------------------------------------------------------------------------


def test_one_tile_takes_its_steps_one_fill_and_one_epilogue():
    seconds, tile, parts = run(product(64, 64, 320), SPLIT=1.0)
    memory = 2 * (2 * 64 * 320 + 64 * 64) / STREAM + FILL
    assert (tile, parts) == (0, 1)
    assert seconds == pytest.approx(joined(10 * STEP + FILL + EPILOGUE + store(), memory))


def test_an_edge_tile_computes_whole_and_stores_what_exists():
    seconds, _, _ = run(product(40, 64, 320), SPLIT=1.0)
    end = 40 * 64 * 2 * (1 / PORT + 1 / STREAM)
    memory = 2 * (40 * 320 + 64 * 320 + 40 * 64) / STREAM + FILL
    assert seconds == pytest.approx(joined(10 * STEP + FILL + EPILOGUE + end, memory))


@pytest.mark.parametrize(("columns", "rounds", "left"), [(4, 1, 0), (5, 1, 1), (8, 2, 0)])
def test_waves_are_whole_and_a_wave_stores_together(columns, rounds, left):
    seconds, _, _ = run(product(64, 64 * columns, 320), SPLIT=1.0)
    sm = rounds * (10 * STEP + FILL + EPILOGUE + store(4))
    sm += (10 * STEP + FILL + EPILOGUE + store(left)) if left else 0.0
    memory = 2 * (64 * 320 + 64 * columns * 320 + 64 * 64 * columns) / STREAM + FILL
    assert seconds == pytest.approx(joined(sm, memory))


def test_persistent_kernels_hide_fill_and_epilogue_of_all_rounds_but_the_last():
    rules = RULES.copy()
    rules[kernel.PERSISTENT] = 1
    seconds, _, _ = run(product(64, 64 * 8, 3200), rules, SPLIT=1.0)
    sm = 2 * 100 * STEP + FILL + EPILOGUE + store(4)
    memory = 2 * (64 * 3200 + 512 * 3200 + 64 * 512) / STREAM + FILL
    assert seconds == pytest.approx(joined(sm, memory))


def test_one_tile_with_a_long_k_is_split_over_the_idle_sms():
    k = 32 * 1000
    seconds, _, parts = run(product(64, 64, k))
    assert parts == 4
    sm = 250 * STEP + FILL + EPILOGUE + store(4, 4)
    memory = 2 * (2 * 64 * k + 64 * 64) / STREAM + FILL
    added = SPLIT + 2 * (64 * 64 * 4 * 4) / HUGE
    assert seconds == pytest.approx(joined(sm, memory) + added)
    assert run(product(64, 64, k), SPLIT=1.0)[2] == 1


SHARING = np.array([0, 1, 1, 1], np.float64)


@pytest.mark.parametrize(("epilogue", "ctas"), [(2e-6, 4), (3e-3, 2)])
def test_each_cta_that_a_tile_is_summed_from_hands_on_its_sum_in_turn(epilogue, ctas):
    """Fewer CTAs than slots share the steps where a hand-over is dear."""
    k = 32 * 1000
    wires = {"SPLIT": 1.0, "PORT": 1e9, "L2_RATE": 8e9, "EPILOGUE": epilogue}
    seconds, _, parts = run(product(64, 64, k), SHARING, **wires)
    assert parts == 0
    loads = 2 * 64 * 32 * 2
    loop = 1000 / ctas * loads / 1e9
    handed = epilogue + 2 * 64 * 64 * 4 / 1e9
    end = epilogue + 64 * 64 * 2 * (1 / 1e9 + 1 / STREAM)
    memory = 2 * (2 * 64 * k + 64 * 64) / STREAM + FILL
    expected = joined(loop + 2 * FILL + end + (ctas - 1) * handed, memory)
    assert seconds == pytest.approx(expected)


def test_steps_are_shared_across_the_ends_of_tiles():
    """Five tiles on four SMs: no round that one tile has alone."""
    k = 32 * 1000
    x = product(64, 64 * 5, k)
    seconds, _, parts = run(x, SHARING, SPLIT=1.0)
    assert parts == 0
    end = EPILOGUE + store(4)
    sm = 1250 * STEP + 2 * FILL + end + EPILOGUE + 64 * 64 * 8 / PORT
    assert seconds == pytest.approx(joined(sm, (x.a + x.w + x.out) / STREAM + FILL))


@pytest.mark.parametrize("m", [1, 16, 64, 128, 256, 512])
@pytest.mark.parametrize("k", [1024, 4096, 16384])
def test_one_column_more_is_no_cliff_down(m, k):
    frame = pd.DataFrame({"kind": "gemm", "m": m, "n": np.arange(16, 1200), "k": k})
    seconds = simulate_batch("h100-sxm-80gb", frame)["seconds"].to_numpy()
    assert (seconds[1:] >= 0.93 * seconds[:-1]).all()


def test_an_hbm_bound_product_takes_its_bytes():
    x = product(1, 4096, 4096)
    seconds, _, _ = run(x, STREAM=1e9, PIN_RATE=1.25e9, OVERLAP=64.0)
    assert seconds == pytest.approx((x.a + x.w + x.out) / 1e9, rel=1e-3)


def test_the_latency_of_a_step_is_hidden_by_the_stages():
    tiles = TILES.copy()
    tiles[0, kernel.STAGES] = 4
    times = [run(product(64, 64, 320), tiles=t, LATENCY=4e-6, SPLIT=1.0)[0] for t in (TILES, tiles)]
    memory = 2 * (2 * 64 * 320 + 64 * 64) / STREAM + FILL
    for seconds, latency in zip(times, (4e-6, 1e-6), strict=True):
        sm = 10 * latency + FILL + EPILOGUE + store()
        assert seconds == pytest.approx(joined(sm, memory))


def test_activations_in_l2_save_time_but_never_undercut_the_bound():
    x = product(64, 64, 320)
    warm, _, _ = run(x, L2_BYTES=HUGE, SPLIT=1.0)
    assert warm < run(x, SPLIT=1.0)[0]
    free = {"FILL": 0.0, "EPILOGUE": 0.0, "STREAM": HUGE, "PORT": HUGE, "L2_BYTES": HUGE}
    bound = max(2 * 64 * 64 * 320 / 4e12, (x.a + x.w + x.out) / 1e9)
    assert run(x, **free, PIN_RATE=1e9)[0] == bound


def test_a_board_at_its_power_limit_runs_slower_by_the_root():
    x = product(64 * 64, 64 * 64, 320)
    free = run(x, SPLIT=1.0)[0]
    drawn = 2 * x.m * x.n * x.k / free * 1e-12
    assert run(x, SPLIT=1.0, ENERGY=1e-12, ROOM=drawn / 4)[0] == pytest.approx(2 * free)
    assert run(x, SPLIT=1.0, ENERGY=1e-12, ROOM=drawn * 1.01)[0] == free


# -- the machine ---------------------------------------------------------------------------

WITH_KERNEL = [
    (name, path)
    for name in CATALOG.names()
    for path, unit in load_machine(name).units.items()
    if unit.config.kernel
]


def view(name, path="gpu.sm"):
    found = GpuView.of(UnitView(load_machine(name), path))
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-sxm-80gb", "rtx-a6000"])
@pytest.mark.parametrize("groups", [1.0, 8.0])
def test_the_compiled_kernel_equals_its_plain_twin(name, groups):
    gpu = view(name)
    rng = np.random.default_rng(0)
    m, n, k = np.ceil(2.0 ** rng.uniform(0, 14, (3, 200)))
    sizes = np.array([m, n, k, np.full(200, groups), 2 * groups * n * k])[:, :, None]
    answers = []
    for fill in (kernel.compiled(), kernel.fill_seconds):
        seconds = np.empty((200, 1))
        fill(
            seconds, sizes, 2.0, 2.0, gpu.facts("bf16"), gpu.generation.rules, gpu.generation.tiles
        )
        answers.append(seconds)
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-12)
    assert (answers[0] > 0).all()


@pytest.mark.parametrize(("name", "path"), WITH_KERNEL)
def test_the_facts_of_a_machine_fill_every_column(name, path):
    gpu = view(name, path)
    for dtype in ("bf16", "fp32", "int8"):
        columns = gpu.facts(dtype)
        assert columns.shape == (1, kernel.FACTS)
        assert (columns[:, : kernel.MATRIX] > 0).all()
    values = load_machine(name).values
    assert columns[0, kernel.TAIL] == values[f"{path}.kernel.tail"]
    assert columns[0, kernel.MATRIX] == values[f"{path}.kernel.matrix"]


@pytest.mark.parametrize("name", GENERATIONS.names())
def test_the_stages_of_resident_ctas_fit_in_shared_memory(name):
    generation = GENERATIONS.lookup(name)
    tm, tn, bk, stages, ctas = generation.tiles[:, :5].T
    assert (ctas >= 1).all()
    assert (ctas * stages * (tm + tn) * bk * 2 <= generation.shared_bytes).all()
    smaller = replace(generation, shared_bytes=generation.shared_bytes // 2)
    assert smaller.tiles[:, 4].sum() < generation.tiles[:, 4].sum()


def test_points_cost_what_they_cost_alone_and_parameters_are_swept():
    machine = load_machine("a100-sxm-80gb")
    fill = np.array([0.1e-6, 1e-6, 10e-6])
    work = {"kind": "gemm", "m": 300, "n": 4096, "k": 1024}
    from opbyte.sim.simulate import evaluate
    from opbyte.workloads.phases import Gemm

    together = evaluate(
        machine.with_values({"gpu.sm.kernel.fill": fill}), Gemm(300, 4096, 1024), machine.mapping()
    ).metrics["seconds"]
    alone = [
        simulate(machine.replace({"gpu.sm.kernel.fill": f"{f * 1e6} us"}), work).seconds
        for f in fill
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert (np.diff(together) > 0).all()


def test_a_kernel_is_launched_once_and_does_not_wait_for_hbm_again():
    machine = load_machine("a100-sxm-80gb")
    work = {"kind": "gemm", "m": 8, "n": 4096, "k": 4096}
    plain = simulate(machine, work).seconds
    slow = machine.replace({"gpu.hbm.phy.latency": "50 us"})
    assert simulate(slow, work).seconds == plain
    late = machine.replace({"gpu.sm.launch.graph": "12.22 us"})
    assert simulate(late, work).seconds == pytest.approx(plain + 10e-6, rel=1e-9)


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ({"m": 8, "n": 8, "k": 8, "dtype": "fp8"}, UncoveredError, "no arithmetic for fp8"),
        ({"m": 8, "n": 8, "k": 0, "dtype": "bf16"}, WorkloadError, "k"),
        ({"m": -1, "n": 8, "k": 8, "dtype": "bf16"}, WorkloadError, "m"),
        ({"m": 2**20, "n": 2**20, "k": 8, "dtype": "bf16"}, CapacityError, "gpu.hbm"),
    ],
)
def test_a_batch_refuses_what_no_gpu_can_run(row, error, words):
    frame = pd.DataFrame([{"kind": "gemm", "m": 8, "n": 8, "k": 8, "dtype": "bf16"}])
    frame = pd.concat([frame, pd.DataFrame([{"kind": "gemm", **row}])], ignore_index=True)
    with pytest.raises(error, match=words):
        simulate_batch("a100-sxm-80gb", frame)


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("overlap", {"kind": "gemm", "m": 8, "n": 8, "k": 8}),
        (
            "attention.pairing",
            {"kind": "attention_decode", "batch": 8, "kv_tokens": 80, "heads": 8, "kv_heads": 8},
        ),
    ],
)
def test_an_exponent_below_one_is_refused_on_the_fast_path_too(name, work):
    machine = load_machine("a100-sxm-80gb")
    path = f"gpu.sm.kernel.{name}"
    with pytest.raises(UncoveredError, match=rf"{path} must be at least 1, got 0\.5"):
        simulate(machine.with_values({path: np.array([2.0, 0.5])}), work)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"gpu.sm.generation": "amper"}, ConfigError, "ampere"),
        ({"gpu.sm.generation": None}, ConfigError, "generation"),
        ({"gpu.sm.clock": None}, UncoveredError, "`clock`"),
        ({"gpu.sm.vector": None}, UncoveredError, "`vector`"),
        ({"gpu.sm.kernel.overlap": 0}, ConfigError, "at least 1, got 0"),
        ({"gpu.sm.kernel.overlap": 0.99}, ConfigError, "at least 1, got 0.99"),
        ({"gpu.sm.kernel.attention.pairing": 0.5}, ConfigError, "at least 1, got 0.5"),
        ({"gpu.sm.buffer": None}, UncoveredError, "`buffer`"),
        ({"gpu.l2.sm.bandwidth": None}, UncoveredError, "gpu.l2.sm.bandwidth"),
    ],
)
def test_a_kernel_block_names_what_it_needs_beside(change, error, words):
    with pytest.raises(error, match=words):
        simulate(
            load_machine("a100-sxm-80gb").replace(change),
            {"kind": "gemm", "m": 8, "n": 8, "k": 8},
        )


def test_packed_weights_save_their_bytes_and_cost_lanes() -> None:
    """8192 x 8192 weights: 134 MB in bf16, 34 MB in int4, unpacked beside the products."""
    frame = pd.DataFrame({"kind": "gemm", "m": 1, "n": 8192, "k": 8192, "dtype": "bf16",
                          "weight_dtype": ["bf16", "int4"]})  # fmt: skip
    plain, packed = simulate_batch("a100-sxm-80gb", frame)["seconds"]
    assert 2.5 < plain / packed < 4.0
    slow = load_machine("a100-sxm-80gb").replace({"gpu.sm.vector": "2 TFLOP/s"})
    tenth = simulate_batch(slow, frame)["seconds"]
    assert tenth[0] < 1.2 * plain
    # 1.5 instructions for each of 67 million weights, at half of 2 TFLOP/s, are 101 us.
    assert tenth[1] > 100e-6
