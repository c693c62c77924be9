"""An NPU that loads weights in tiles of columns, and IANUS made of it: closed forms and laws."""

from math import ceil

import numpy as np
import pytest
from handmade import HBM, HBM_SHARE, demand, device, gemm

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.hw_models.machine import load_machine

PEAK, EFFICIENCY, LAUNCH = 100e12, 0.8, 3e-6
RATE = HBM * HBM_SHARE
UNIT = {"kind": "npu", "tile": [128, 64, 4], "columns": 64, "instances": 4, "vector_units": 8}


def npu(**more):
    return device(unit={**UNIT, **more})


def by_hand(m, n, k, columns=64, cores=4):
    """Algorithm 1 of IANUS, nothing loaded ahead."""
    tiles = ceil(n / (columns * cores))
    padded = 2.0 * ceil(m / 128) * 128 * ceil(n / 64) * 64 * ceil(k / 4) * 4
    tile, load = padded / (PEAK * EFFICIENCY) / tiles, 2.0 * n * k / RATE / tiles
    return tile + load + tiles * max(tile, load)


@pytest.mark.parametrize("shape", [(1, 1536, 1536), (1, 1536, 6144), (512, 4096, 4096), (1, 64, 8)])
def test_a_product_is_tiles_of_columns_loaded_beside_those_before(shape):
    priced = demand(npu(), gemm(*shape))
    assert priced.compute[0, 0] == pytest.approx(by_hand(*shape), rel=1e-12)
    assert priced.duration[0, 0] > 2.0 * shape[1] * shape[2] / RATE


def test_fewer_columns_fill_faster():
    wide, narrow = (demand(npu(columns=c), gemm(1, 4096, 4096)).compute[0, 0] for c in (256, 64))
    whole = max(2 * 4096**2 / RATE, 2 * 128 * 4096**2 / (PEAK * EFFICIENCY))
    assert whole < narrow < wide
    assert narrow - whole == pytest.approx((wide - whole) / 4, rel=1e-9)


def test_the_first_tile_is_loaded_while_the_vector_units_run():
    """What runs before hides at most the first tile, and no more than it takes itself."""
    alone = demand(npu(), gemm(1, 4096, 4096)).compute[0, 0]
    first = 2 * 4096**2 / RATE / 16
    for flops in (1.0, 1e5, 1e9):
        row = ("norm", "norm", {"flops": flops, "out_bytes": 2.0})
        chained = gemm(1, 4096, 4096)
        chained[2]["inputs"] = (0,)
        both = demand(npu(), row, chained)
        before = both.compute[0, 0] + LAUNCH
        assert both.compute[1, 0] == pytest.approx(alone - min(first, before), rel=1e-9)


def test_a_row_that_is_reduced_runs_on_one_vector_processor():
    def seconds(kind, rows, units):
        row = ("v", kind, {"flops": 1e6 * rows, "groups": rows})
        return demand(npu(vector_units=units), row).compute[0, 0]

    lone = 1e6 / (5e12 / 8)
    assert seconds("norm", 1, 8) == pytest.approx(lone)
    assert seconds("norm", 8, 8) == pytest.approx(lone)
    assert seconds("softmax", 9, 8) == pytest.approx(2 * lone)
    assert seconds("activation", 1, 8) == pytest.approx(lone / 8)


def test_points_are_as_single_points():
    rates = np.array([0.5e12, 2e12, 8e12])
    many = demand(npu().with_values({"dev.hbm.phy.bandwidth": rates}), gemm(7, 300, 500)).compute
    for i, rate in enumerate(rates):
        one = npu().with_values({"dev.hbm.phy.bandwidth": float(rate)})
        assert many[0, i] == demand(one, gemm(7, 300, 500)).compute[0, 0]


# -- IANUS ------------------------------------------------------------------------------------

XL, STEPS = "gpt-2-xl-24-heads", 255


def steps(mapping, **changes):
    quiet = {f"device.{u}.launch.synchronised": "0 s" for u in ("npu", "pim")}
    machine = load_machine("ianus").replace({**quiet, **changes})
    work = {"kind": "decode", "model": XL, "batch": 1, "context": 256}
    frame = ob.simulate(machine, work, mapping=mapping).breakdown
    frame["operator"] = frame.operator.str.partition("@")[0]
    return frame.set_index("operator").seconds


def test_pim_takes_a_row_and_a_buffer_for_each_tile():
    """36 tiles of 128 outputs for q, k and v: 1024 and 512 inputs of 1536, in nanoseconds."""
    whole, half = 64 + 16 + 36 + 64 + 16, 32 + 16 + 36 + 32 + 16
    assert steps("pim")["qkv"] == pytest.approx(48 * 36 * (whole + half + 1) * 1e-9, rel=1e-9)
    assert steps("pim")["down"] == pytest.approx(48 * 12 * (6 * whole + 1) * 1e-9, rel=1e-9)


def test_two_fcs_and_the_ffn_are_near_the_paper():
    alone, both = steps("npu-mem"), steps("default")
    fcs = STEPS * (alone["qkv"] + alone["out"])
    assert fcs == pytest.approx(0.890, rel=0.10)
    ffn = ["up", "activation", "down", "ffn_add"]
    assert alone[ffn].sum() / both[ffn].sum() == pytest.approx(5.1, rel=0.10)


@pytest.mark.parametrize("model", ["gpt-2-medium", XL, "gpt-2-2.5b"])
def test_each_fc_runs_where_it_takes_less(model):
    """Few tokens on PIM, many on the matrix unit; never slower than either alone."""
    precision = {"weight": "bf16", "kv": "bf16", "activation": "bf16"}
    for tokens in (1, 2, 16, 128):
        work = {"kind": "prefill", "model": model, "batch": 1, "input": tokens,
                "precision": precision}  # fmt: skip
        frames = {m: ob.simulate("ianus", work, mapping=m) for m in ("default", "pim", "npu-mem")}
        best = frames["default"]
        assert best.seconds <= min(frames["pim"].seconds, frames["npu-mem"].seconds) * (1 + 1e-9)
        used = set(best.breakdown.query("seconds > 0").operator)
        assert ("up@pim" in used) == (tokens < 16)


def test_time_on_pim_grows_with_tokens_and_on_the_matrix_unit_it_does_not():
    def seconds(mapping, tokens):
        gemm = ob.Gemm(m=tokens, n=4096, k=1024, dtype="bf16")
        return ob.simulate("ianus", gemm, mapping=mapping).seconds - 1.93e-6

    assert seconds("pim", 8) == pytest.approx(8 * seconds("pim", 1), rel=0.01)
    assert seconds("npu-mem", 128) == pytest.approx(seconds("npu-mem", 1), rel=1e-9)


def test_half_of_the_units_take_twice_as_long():
    half = {"device.pim.pim.organisation.channels": 4, "device.pim.peak.bf16": "2.048 TFLOP/s"}
    assert steps("pim", **half)["up"] == pytest.approx(2 * steps("pim")["up"], rel=1e-6)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ianus", "gddr6-aim", "hbm-pim", "pim-gpt"])
def test_pim_refuses_what_it_can_not_do(name):
    machine = load_machine(name)
    dtype = next(iter(next(u for u in machine.units.values() if u.config.pim).config.peak))
    mapping = "pim" if name == "ianus" else "default"
    good = ob.Gemm(m=1, n=256, k=256, dtype=dtype)
    assert ob.simulate(machine, good, mapping=mapping).seconds > 0
    with pytest.raises(UncoveredError, match="no arithmetic for fp32"):
        ob.simulate(machine, ob.Gemm(m=1, n=256, k=256, dtype="fp32"), mapping=mapping)
    with pytest.raises(CapacityError, match="not fit"):
        ob.simulate(machine, ob.Gemm(m=1, n=10**6, k=10**5, dtype=dtype), mapping=mapping)
    unit = next(path for path, u in machine.units.items() if u.config.pim)
    with pytest.raises(ConfigError, match="banks"):
        machine.replace({f"{unit}.pim.organisation.banks": 0})


@pytest.mark.parametrize("name", ["ianus", "pim-gpt", "neupims"])
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_the_bound_is_below_the_rest_and_the_event_fidelity_above(name, kind):
    dtype = "fp16" if name == "neupims" else "bf16"
    work = {"kind": kind, "model": "gpt-2-medium", "batch": 1,
            **({"context": 512} if kind == "decode" else {"input": 64}),
            "precision": {"weight": dtype, "kv": dtype, "activation": dtype}}  # fmt: skip
    bound, analytic, event = (
        ob.simulate(name, work, fidelity=f).seconds for f in ("bound", "analytic", "event")
    )
    assert 0 < bound <= analytic <= event * (1 + 1e-9)


@pytest.mark.parametrize(
    "model",
    ["gpt-2", "gpt-2-medium", "gpt-2-large", "gpt-2-xl"]
    + [f"gpt-3-{size}" for size in ("125m", "350m", "760m", "1.3b")],
)
def test_pim_gpt_runs_its_eight_models(model):
    """Weights come once through the banks at no more than their rate; 1024 tokens in one run."""
    bf16 = {"weight": "bf16", "kv": "bf16", "activation": "bf16"}
    work = {"kind": "generate", "model": model, "batch": 1, "input": 8, "output": 1016,
            "precision": bf16}  # fmt: skip
    result = ob.simulate("pim-gpt", work)
    weights = 2 * ob.load_model(model).active_parameters
    assert 1 < result.tpot / (weights / 4.096e12) < 4
    assert result.joules > 0


def test_sub_batches_take_turns_and_one_row_buffer_serialises():
    machine = load_machine("neupims")
    work = {"kind": "decode", "model": "gpt-3-6.7b", "batch": 512, "context": 228}
    serial = ob.simulate(machine, work, mapping="serial").seconds
    turns = ob.simulate(machine, work).seconds
    assert 1.2 < serial / turns < 2.0
    blocked = machine.replace({"device.hbm.sharing.rule": "exclusive"})
    assert ob.simulate(blocked, work).seconds > turns
