"""Spatial arrays: passes of cascades, cycles and traffic by hand, refusals, plans as simulated."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from handmade import demand, device, gemm

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.mapping_file import Einsums
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.spatial.apart import product_cycles
from opbyte.hw_models.compute.spatial.arrays import ARRAY, LANES, Shape, crossing
from opbyte.hw_models.compute.spatial.cascade import CASCADES, Cascade, cascade
from opbyte.hw_models.compute.spatial.unit import arrays_of, plan
from opbyte.hw_models.machine import load_machine

MIB = 2**20
DESIGNS = [
    ("flat-cloud", "unfused"), ("flat-cloud", "default"), ("flat-cloud", "two-pass"),
    ("fusemax-cascade-cloud", "default"), ("fusemax-cloud", "serial"),
    ("fusemax-cloud", "default"), ("flat-edge", "default"), ("fusemax-edge", "default"),
]  # fmt: skip
designs = pytest.mark.parametrize(("name", "mapping"), DESIGNS)


def attention(tokens, *, heads=12, width=64, batch=64, **more):
    return {
        "kind": "attention_prefill", "batch": batch, "q_tokens": tokens, "kv_tokens": tokens,
        "heads": heads, "kv_heads": heads, "head_dim": width, "dtype": "fp16", "causal": False,
        **more,
    }  # fmt: skip


def facts(name, **more):
    return dataclasses.replace(arrays_of(UnitView(load_machine(name), "chip.pe")), **more)


def streamed(arrays, shape, schedule="overlapped", tiles="divide"):
    return plan(Einsums(cascade="one-pass", schedule=schedule, tiles=tiles), arrays, shape, "b")


def by_rows(arrays, shape, name="three-pass"):
    return plan(Einsums(cascade=name), arrays, shape, "b")


# -- cascades ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "passes", "kept", "running"),
    [("three-pass", 3, 1, 0), ("two-pass", 2, 1, 0), ("one-pass", 1, 0, 3)],
)
def test_passes_and_what_lives_from_one_to_the_next(name, passes, kept, running):
    one = CASCADES[name]
    assert (one.passes, one.rows_kept, len(one.running)) == (passes, kept, running)


def test_a_softmax_without_its_maximum_takes_two_passes():
    plain = CASCADES["three-pass"]
    exp = dataclasses.replace(plain.einsums[2], reads=("QK",), does=("exp",))
    kept = [e for e in plain.einsums if e.name not in ("GM", "SN")]
    unstable = Cascade("unstable", "M", (kept[0], exp, *kept[1:]))
    assert unstable.pass_of == {"QK": 1, "SN": 1, "SD": 1, "A": 2, "AV": 2}
    assert unstable.rows_kept == 1


def test_scores_cross_the_buffer_where_they_change_array_or_pass():
    flat, fusemax = facts("flat-cloud"), facts("fusemax-cloud")
    # QK is written and read for maximum and exponential, SN written and read, A too.
    assert crossing(CASCADES["three-pass"], flat) == {"QK": 3, "SN": 2, "A": 2}
    assert crossing(CASCADES["two-pass"], flat) == {"QK": 3, "SN": 2}
    assert crossing(CASCADES["one-pass"], flat) == {"BQK": 3, "SLN": 2}
    assert crossing(CASCADES["one-pass"], fusemax) == {}


def test_an_unknown_cascade_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'two-pass'"):
        cascade("twopass")


def evaluated(einsums, tensors, before):
    """Compute Einsums on arrays whose axes are ranks in the order P, M, E, F.

    Args:
        tensors: Name -> (ranks, array); what is made is added.
        before: What the tile of keys before left.
    """

    def aligned(name, walks, source):
        ranks, array = source[name]
        order = [r for r in "PMEF" if r in walks]
        return array.reshape([array.shape[ranks.index(r)] if r in ranks else 1 for r in order])

    for e in einsums:
        walks = {"M" if r == "M0" else r for r in e.walks - {"M1"}}
        keeps = {"M" if r == "M0" else r for r in e.ranks - {"M1"}}
        given = [aligned(n, walks, tensors if n in tensors else before) for n in e.reads]
        if e.does == ("add", "exp"):
            # A correction reads one tensor twice: what it was and what it has become.
            first = aligned(e.reads[0], walks, before) if len(given) == 1 else given[0]
            value = np.exp(first - given[-1])
        else:
            joined = {"mac": np.multiply, "add": np.add, "max": np.maximum, "div": np.divide}
            value = functools.reduce(joined[e.does[-1]], given)
        if e.name in before and e.name in e.reads:
            value = np.maximum(aligned(e.name, walks, before), value)
        gone = tuple(i for i, r in enumerate(r for r in "PMEF" if r in walks) if r not in keeps)
        if gone:
            value = (value.max if e.does == ("max",) else value.sum)(axis=gone)
        tensors[e.name] = "".join(r for r in "PMEF" if r in keeps), value


@pytest.mark.parametrize("name", CASCADES)
def test_a_cascade_computes_attention(name):
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=s) for s in ((5, 4), (12, 4), (12, 3)))
    weights = np.exp(q @ k.T - (q @ k.T).max(axis=1, keepdims=True))
    right = weights / weights.sum(axis=1, keepdims=True) @ v
    one, tensors = CASCADES[name], {}
    loop = [e for e in one.einsums if one.keys in e.walks]
    if one.keys == "M":
        tensors = {"Q": ("PE", q), "K": ("ME", k), "V": ("MF", v)}
        evaluated(loop, tensors, {})
    else:
        shapes = {"RM": ("P", np.full(5, -1e9)), "RD": ("P", np.zeros(5))}
        before = {**shapes, "RNV": ("PF", np.zeros((5, 3)))}
        assert set(before) == {e.name for e in one.running}
        for m in range(0, 12, 4):
            tensors = {"Q": ("PE", q), "BK": ("ME", k[m : m + 4]), "BV": ("MF", v[m : m + 4])}
            evaluated(loop, tensors, before)
            before = {n: tensors[n] for n in before}
    evaluated([e for e in one.einsums if e not in loop], tensors, {})
    np.testing.assert_allclose(tensors["AV"][1], right, rtol=1e-12)


# -- one pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "width"), [(1024, 64), (4096, 128), (65536, 64), (2048, 96)])
def test_fusemax_takes_the_cycles_of_its_longer_array(tokens, width):
    one = streamed(facts("fusemax-cloud"), Shape(10.0, tokens, tokens, width, width))
    tiles = (tokens / 256) ** 2
    array = tiles * (width + 1 + 7 + 1 + width)
    # Maximum, correction (subtract, six multiply-adds), sums and outputs; a division at the end.
    lanes = tiles * (1 + 7 + 1 + 1 + width + width) + tokens / 256 * width
    assert one.taken(ARRAY) == pytest.approx(10 * array / 940e6, rel=1e-12)
    assert one.taken(LANES) == pytest.approx(10 * lanes / 940e6, rel=1e-12)
    assert one.seconds == pytest.approx(10 * max(array, lanes) / 940e6, rel=1e-12)
    assert one.utilisation(ARRAY) == pytest.approx(array / lanes, rel=1e-12)
    assert one.utilisation(LANES) == pytest.approx(1.0, rel=1e-12)


def test_a_tile_at_a_time_waits_for_the_maximum_through_all_rows():
    shape = Shape(1.0, 65536, 65536, 64, 64)
    one = streamed(facts("fusemax-cloud"), shape, "serial")
    # Scores, maximum and its 256 rows, running maximum, exponential and sum, outputs; then the
    # lanes add up denominator and output.
    each = 64 + 1 + 256 + 1 + 7 + 1 + 64 + 1 + 64
    assert one.seconds == pytest.approx(256**2 * each / 940e6, rel=1e-9)


def test_queries_on_the_chip_and_passes_over_keys_follow_from_the_buffer():
    arrays = facts("fusemax-cloud")
    # A query, its maximum, denominator and output; beside 256 keys and values.
    each, held = (64 + 64 + 2) * 2, 256 * 128 * 2
    most = (16 * MIB - held) // (each * 256)
    one = streamed(arrays, Shape(1.0, 2**18, 2**18, 64, 64))
    assert one.queries == 256 * 2 ** int(math.log2(most))
    assert one.footprint == held + each * one.queries <= one.capacity
    tensor = 2**18 * 64 * 2
    passes = 2**18 / one.queries
    assert one.traffic == {
        "Q": tensor, "K": passes * tensor, "V": passes * tensor, "AV": tensor,
    }  # fmt: skip
    uneven = streamed(arrays, Shape(1.0, 2**18, 2**18, 64, 64), tiles="uneven")
    assert uneven.traffic["K"] == math.ceil(1024 / most) * tensor < one.traffic["K"]


def test_scores_that_change_arrays_take_room_for_a_tile_of_keys():
    arrays = facts("fusemax-cascade-cloud")
    one = streamed(arrays, Shape(1.0, 16384, 16384, 64, 64))
    assert one.queries == 8192
    each = (64 + 256 + 1 + 256 + 1 + 64) * 2
    assert one.footprint == 256 * 128 * 2 + 8192 * each


def test_a_masked_half_takes_half_the_time_and_fewer_keys():
    arrays = facts("fusemax-cloud")
    full = streamed(arrays, Shape(8.0, 2**18, 2**18, 64, 64))
    half = streamed(arrays, Shape(8.0, 2**18, 2**18, 64, 64, share=0.5))
    assert half.taken(ARRAY) == pytest.approx(full.taken(ARRAY) / 2)
    # Eight tiles of queries see 1/8, 2/8 .. of the keys.
    assert half.traffic["K"] / full.traffic["K"] == pytest.approx((8 + 1) / 16)
    assert half.traffic["Q"] == full.traffic["Q"]


def test_edge_tiles_take_as_long_as_whole_ones_and_count_as_idle():
    arrays = facts("fusemax-cloud")
    whole, edge = (streamed(arrays, Shape(1.0, n, 256, 64, 64)) for n in (512, 257))
    assert edge.taken(ARRAY) == whole.taken(ARRAY)
    useful = 257 * 256 * (64 + 9 + 64) / (256 * 256 * 940e6)
    assert edge.utilisation(ARRAY) * edge.seconds == pytest.approx(useful)


def test_a_buffer_without_room_for_a_tile_is_refused():
    with pytest.raises(CapacityError, match="a tile of queries and one of keys do not fit in b"):
        streamed(facts("fusemax-cloud", buffer=100e3), Shape(1.0, 1024, 1024, 64, 64))
    with pytest.raises(CapacityError, match="tiles of inputs and results do not fit in b"):
        by_rows(facts("flat-cloud", buffer=100e3), Shape(1.0, 1024, 1024, 64, 64))
    small = load_machine("fusemax-cloud").replace({"chip.buffer.capacity": "100 KiB"})
    with pytest.raises(CapacityError, match=r"chip\.buffer"):
        ob.simulate(small, attention(1024))


# -- several passes ---------------------------------------------------------------------------


def test_flat_keeps_all_rows_of_a_head_while_they_fit_and_streams_the_rest():
    one = by_rows(facts("flat-cloud"), Shape(2.0, 1024, 1024, 64, 64))
    tensor = 2 * 1024 * 64 * 2
    assert (one.queries, one.spilled, one.choices["scores"]) == (1024, 0.0, "chip")
    assert one.traffic == {
        "Q": 4 * tensor, "K": 4 * tensor, "V": 4 * tensor, "AV": tensor, "scores": 0.0,
    }  # fmt: skip
    # Four operations of a score on 256 lanes: maximum, subtract and exponential, sum, division.
    assert one.seconds == pytest.approx(2 * 1024**2 * 4 / 256 / 940e6)
    assert one.utilisation(ARRAY) == pytest.approx(128 / 1024)


def test_flat_spills_what_its_rows_exceed_the_buffer_by():
    one = by_rows(facts("flat-cloud"), Shape(1.0, 4096, 4096, 64, 64))
    rows, staged = 4096 * 4096 * 2, 2 * 4 * 256 * 64 * 2
    assert one.footprint == rows + staged
    assert one.spilled == pytest.approx(1 - 32 * MIB / (rows + staged))
    assert one.traffic["scores"] == pytest.approx(7 * rows * one.spilled)


def test_flat_gives_up_fusion_where_spilling_moves_more():
    one = by_rows(facts("flat-cloud"), Shape(1.0, 2**18, 2**18, 64, 64))
    assert one.choices["scores"] == "memory"
    assert one.traffic["scores"] == 4 * 2**36 * 2
    assert one.seconds == pytest.approx(one.bytes / (400 * 2**30))


def test_a_larger_buffer_can_hurt_a_mapper_that_looks_at_the_products_alone():
    """Known anomaly of law 4: it fuses as soon as the products gain, and the softmax loses."""
    shape = Shape(1.0, 2**18, 2**18, 64, 64)
    moved = [by_rows(facts("fusemax-cloud", buffer=m * MIB), shape).bytes for m in (24, 40)]
    assert moved[1] > moved[0]


def test_a_row_that_does_not_fit_is_walked_through_memory():
    shape = Shape(1.0, 2**20, 2**20, 64, 64)
    one, two = (by_rows(facts("flat-cloud", buffer=m * MIB), shape) for m in (4, 1))
    assert one.traffic["scores"] == 4 * 2**40 * 2
    assert 4 * 2**40 * 2 < two.traffic["scores"] < 7 * 2**40 * 2


# -- products, and what is not fused ----------------------------------------------------------


def test_products_lay_any_two_ranks_across_the_array():
    rng = np.random.default_rng(7)
    for m, n, k, r, c in rng.integers(1, 700, (50, 5)):
        laid = [
            third * min(math.ceil(a / r) * math.ceil(b / c) for a, b in ((x, y), (y, x)))
            for third, x, y in ((k, m, n), (m, k, n), (n, k, m))
        ]
        assert product_cycles(float(m), float(n), float(k), (r, c)) == min(laid)


def test_a_whole_product_runs_at_the_peak():
    machine = load_machine("fusemax-cloud")
    r = ob.simulate(machine, ob.Gemm(m=65536, n=768, k=768, dtype="fp16"))
    assert r.seconds == pytest.approx(2 * 65536 * 768**2 / 123.20768e12)


def test_without_fusion_each_operator_takes_its_memory_or_its_array():
    work = attention(4096)
    r = ob.simulate("flat-cloud", work, "unfused")
    pairs, rate = 64 * 12 * 4096**2, 400 * 2**30
    product = (2 * pairs + 2 * 64 * 12 * 4096 * 64 * 2) / rate
    assert r.seconds == pytest.approx(2 * product + pairs * 4 / 256 / 940e6, rel=1e-9)


@designs
@pytest.mark.parametrize("tokens", [512, 4096, 2**17])
def test_a_plan_is_what_is_simulated(name, mapping, tokens):
    batch = 64 if "cloud" in name else 1
    work = attention(tokens, batch=batch)
    row = ob.attention_plan(name, work, mapping)[0].row()
    r = ob.simulate(name, work, mapping)
    assert row["seconds"] == pytest.approx(r.seconds, rel=1e-9)
    assert row["dram_bytes"] == pytest.approx(r.breakdown["chip.dram.phy_bytes"].sum(), rel=1e-9)
    assert row["joules"] == pytest.approx(r.joules, rel=1e-9)
    for array in ("2d", "1d"):
        assert 0 < row[f"utilisation_{array}"] <= 1 + 1e-12
    assert row["dram_bytes"] >= 4 * batch * 12 * tokens * 64 * 2 * (1 - 1e-12)
    for fidelity in ("bound", "event"):
        other = ob.simulate(name, work, mapping, fidelity).seconds
        if fidelity == "bound":
            assert 0 < other <= r.seconds * (1 + 1e-9)
        else:
            assert other == pytest.approx(r.seconds, rel=1e-9)


def test_spills_and_rereads_are_told_apart():
    machine = load_machine("flat-cloud")
    r = ob.simulate(machine, attention(4096))
    moved = r.outcome.phases[0].demand.moved
    tensor = 64 * 12 * 4096 * 64 * 2
    assert moved["kv_read", "re-read"].sum() == pytest.approx(2 * 15 * tensor)
    assert moved["activation", "re-read"].sum() == pytest.approx(15 * tensor)
    share = 1 - 128 / 129
    assert moved["activation", "spill"].sum() == pytest.approx(7 * share * 64 * 12 * 4096**2 * 2)


def test_many_buffers_at_once_are_many_single_ones():
    sizes = np.array([1.0, 4.0, 16.0, 64.0]) * MIB
    machine = load_machine("fusemax-cloud")
    from opbyte.sim.simulate import evaluate
    from opbyte.workloads.attention_calls import AttentionPrefill

    work = AttentionPrefill(
        batch=8, q_tokens=2**17, kv_tokens=2**17, heads=4, kv_heads=4, head_dim=64, dtype="fp16",
        causal=False,
    )  # fmt: skip
    many = evaluate(
        machine.with_values({"chip.buffer.capacity": sizes}), work, machine.mapping()
    ).metrics
    for i, size in enumerate(sizes):
        one = evaluate(
            machine.with_values({"chip.buffer.capacity": float(size)}), work, machine.mapping()
        ).metrics
        for metric in ("seconds", "joules"):
            assert many[metric][i] == pytest.approx(one[metric][0], rel=1e-15)
    assert (np.diff(many["joules"]) < 0).all()


def test_models_run_on_it_with_grouped_heads_and_decode():
    work = {"kind": "prefill", "model": "llama-3.2-1b", "batch": 1, "input": 4096}
    one = ob.attention_plan("fusemax-cloud", work)[0]
    assert one.shape.queries == 4 * 4096
    assert one.shape.share == pytest.approx(0.5, abs=1e-3)
    flat = ob.simulate("flat-cloud", work).seconds
    assert ob.simulate("fusemax-cloud", work).seconds < flat
    step = {"kind": "decode", "model": "llama-3.2-1b", "batch": 4, "context": 4096}
    assert ob.simulate("fusemax-edge", step).tpot > 0


def test_each_attention_of_a_model_has_a_plan_of_its_own():
    config = {
        "model_type": "t5", "d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 2048,
        "num_layers": 6, "vocab_size": 32128, "torch_dtype": "float16",
    }  # fmt: skip
    model = {"kind": "model", "name": "t5-half", "source": "handmade", "config": config}
    work = {"kind": "prefill", "model": model, "batch": 2, "input": 512}
    plans = {(p.block, p.operator): p for p in ob.attention_plan("fusemax-cloud", work)}
    assert len(plans) == 3
    (encoder,) = (p for (block, _), p in plans.items() if block.startswith("encoder"))
    assert (encoder.shape.queries, encoder.shape.keys, encoder.shape.share) == (512, 512, 1.0)
    rows = ob.simulate("fusemax-cloud", work).breakdown
    mine = rows[(rows["block"] == encoder.block) & (rows["operator"] == encoder.operator)]
    moved = mine["chip.dram.phy_bytes"] / mine["runs"]
    assert moved.iloc[0] == pytest.approx(encoder.plan.bytes)


# -- what is refused --------------------------------------------------------------------------


def test_a_fused_attention_needs_a_cascade():
    mapping = {"run": [{"ops": "all", "unit": "chip.pe"}], "fusion": "attention"}
    with pytest.raises(UncoveredError, match=r"give einsums: \{cascade: one-pass\}"):
        ob.simulate("fusemax-cloud", attention(1024), mapping)


def test_einsums_need_a_spatial_array():
    machine = load_machine("h100-sxm-80gb")
    mapping = machine.mapping().model_copy(update={"einsums": Einsums(cascade="one-pass")})
    with pytest.raises(UncoveredError, match="units of kind spatial_array, and it runs on none"):
        ob.simulate(machine, attention(1024, batch=1), mapping)
    with pytest.raises(UncoveredError, match="choose a machine that has one"):
        ob.attention_plan(machine, attention(1024, batch=1))


@pytest.mark.parametrize(
    ("einsums", "text"),
    [
        ({"cascade": "four-pass"}, "three-pass"),
        ({"cascade": "three-pass", "tiles": "uneven"}, "tiles are of cascade: one-pass"),
        ({"schedule": "serial"}, "cascade"),
        ({"cascade": "one-pass", "order": "x"}, "order"),
    ],
)
def test_bad_einsums(einsums, text):
    mapping = {"run": [{"ops": "all", "unit": "chip.pe"}], "einsums": einsums}
    with pytest.raises(ConfigError, match=text):
        ob.simulate("fusemax-cloud", attention(1024), mapping)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("chip.pe.spatial.array.exp", 0, "at least 1"),
        ("chip.pe.spatial.lanes.exp", None, "lanes must do all operations, got none of exp"),
        ("chip.pe.array", [0, 256], "array"),
        ("chip.pe.kind", "systolic", "`spatial` needs a unit of kind spatial_array"),
    ],
)
def test_bad_parameters(path, value, text):
    with pytest.raises(ConfigError, match=text):
        load_machine("fusemax-cloud").replace({path: value})


@pytest.mark.parametrize("lacking", ["array", "clock", "spatial", "buffer"])
def test_a_unit_without_what_a_plan_needs_is_refused(lacking):
    machine = load_machine("fusemax-cloud").replace({f"chip.pe.{lacking}": None})
    with pytest.raises(UncoveredError, match=f"has no `{lacking}`"):
        ob.simulate(machine, attention(1024))


def test_the_clock_is_the_one_rate_of_products_and_of_attention():
    slow = load_machine("fusemax-cloud").replace({"chip.dram.phy.bandwidth": "1 PB/s"})
    fast = slow.replace({"chip.pe.clock": "1880 MHz", "chip.pe.vector": "481.28 GFLOP/s"})
    for work in (attention(4096), ob.Gemm(m=4096, n=4096, k=4096, dtype="fp16")):
        for fidelity in ("bound", "analytic", "event"):
            seconds = [ob.simulate(m, work, fidelity=fidelity).seconds for m in (slow, fast)]
            assert seconds[1] == pytest.approx(seconds[0] / 2, rel=1e-6)


def test_a_peak_says_the_rate_of_its_dtype():
    machine = load_machine("fusemax-cloud")
    given = machine.replace(
        {
            "chip.pe.dtypes": [],
            "chip.pe.peak": {"fp16": "123.20768 TFLOP/s", "int8": "246.41536 TFLOP/s"},
        }
    )
    assert ob.simulate(given, attention(4096)).seconds == pytest.approx(
        ob.simulate(machine, attention(4096)).seconds
    )
    view = UnitView(given, "chip.pe")
    assert arrays_of(view, "int8").clock == pytest.approx(2 * arrays_of(view, "fp16").clock)


@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_arithmetic_that_the_array_has_not_is_refused_at_every_fidelity(fidelity):
    for dtype in ("fp32", "int8"):
        with pytest.raises(UncoveredError, match=f"no arithmetic for {dtype}"):
            ob.simulate("fusemax-cloud", attention(1024, dtype=dtype), fidelity=fidelity)


@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_several_arrays_are_refused(fidelity):
    machine = load_machine("fusemax-cloud").replace({"chip.pe.instances": 2})
    for work in (attention(1024), ob.Gemm(m=64, n=64, k=64, dtype="fp16")):
        with pytest.raises(UncoveredError, match="is one array, got instances: 2"):
            ob.simulate(machine, work, fidelity=fidelity)


def test_tensors_elsewhere_are_refused():
    machine = load_machine("fusemax-cloud")
    place = {"kv": {"in": {"chip.buffer": 1.0}}, "activation": {"in": {"chip.dram": 1.0}}}
    mapping = {
        "run": [{"ops": "all", "unit": "chip.pe"}], "fusion": "attention", "place": place,
        "einsums": {"cascade": "one-pass"},
    }  # fmt: skip
    with pytest.raises(UncoveredError, match="`kv` lives elsewhere"):
        ob.simulate(machine, attention(64, batch=1), mapping)


def test_a_window_is_causal():
    with pytest.raises(WorkloadError, match="a window is of causal attention"):
        ob.simulate("fusemax-cloud", attention(1024, window=128))


def test_an_unknown_energy_is_asked_for_not_guessed():
    machine = load_machine("fusemax-cloud").replace({"chip.pe.spatial.registers": None})
    r = ob.simulate(machine, attention(1024))
    assert r.seconds > 0
    with pytest.raises(UncoveredError):
        _ = r.joules


def test_an_array_without_a_spatial_block_still_multiplies():
    machine = device(unit={"kind": "spatial_array", "array": [16, 16], "clock": "1 GHz"})
    assert demand(machine, gemm(64, 64, 64)).compute[0, 0] > 0
