"""Bit-serial arrays: closed-form cycles, passes by stored bits, re-reads, the bound, refusals."""

import math

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.dtypes import bytes_of, lookup
from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.hw_models.price import price
from opbyte.sim.place import Placer

HIDDEN, FFN, LAYERS, KEYS, VOCAB = 4096, 14336, 32, 1024, 128256
BUFFER = 512 * 1024


def model(weight="bitmod4"):
    return ob.load_model("llama-3-8b").with_precision(weight=weight, activation="fp16", kv="fp16")


def seconds(result, operator):
    frame = result.breakdown
    return float(frame.loc[frame.operator == operator, "seconds"].iloc[0])


def demand(name, work):
    machine = ob.load_machine(name)
    placer = Placer(machine, machine.config.mappings["default"])
    (phase,) = work.lower(Parallel())
    return price(placer.place(phase.table), machine)


def cycles(m, n, k, passes, shapes=((32, 32), (64, 16)), dot=4):
    tiles = min(math.ceil(n / r) * math.ceil(m / c) for r, c in shapes)
    return math.ceil(k / dot) * tiles * passes


@pytest.mark.parametrize(
    ("weight", "passes"),
    [("bitmod3", 2), ("bitmod4", 2), ("bitmod6", 3), ("int8", 4), ("fp16", 8), ("q5", 3)],
)
def test_cycles_of_a_product_follow_from_the_bits_of_its_weights(weight, passes):
    result = ob.simulate("bitmod", ob.Prefill(model(weight), 1, 256))
    expected = LAYERS * cycles(256, HIDDEN, HIDDEN, passes)
    frame = result.breakdown.set_index("operator")
    streamed = LAYERS * (
        (2 * 256 * HIDDEN * 2 + bytes_of(weight, float(HIDDEN * HIDDEN)) * 4) / 32  # 4 buffers-full
    )
    compute = max(expected, streamed)
    assert frame.loc["out", "seconds"] * 1e9 == pytest.approx(compute, rel=1e-9)


def test_baselines_take_one_cycle_for_each_weight():
    result = ob.simulate("bitmod-fp16", ob.Prefill(model("fp16"), 1, 256))
    bytes_cycles = (2 * 256 * HIDDEN * 2 + HIDDEN * HIDDEN * 2 * 4) / 32
    expected = max(cycles(256, HIDDEN, HIDDEN, 1, ((32, 24), (64, 12)), 1), bytes_cycles)
    assert seconds(result, "out") * 1e9 == pytest.approx(LAYERS * expected)


def test_decoding_streams_weights_once_at_the_bits_they_are_stored_in():
    result = ob.simulate("bitmod", ob.Decode(model("bitmod3"), 1, 256))
    stored = HIDDEN * 2 * FFN * 3.0625 / 8
    assert seconds(result, "gate_up") == pytest.approx(
        LAYERS * (stored + 2 * (HIDDEN + 2 * FFN)) / 32e9, rel=1e-9
    )


def test_what_neither_buffer_holds_is_read_again_the_cheaper_way():
    moved = demand("bitmod-fp16", ob.Prefill(model("fp16"), 1, 256)).moved
    weights = sum(
        n * k * 2 * (math.ceil(256 * k * 2 / BUFFER) - 1)
        for n, k in (
            (HIDDEN + 2 * KEYS, HIDDEN),
            (HIDDEN, HIDDEN),
            (2 * FFN, HIDDEN),
            (HIDDEN, FFN),
        )
    )
    assert moved["weight", "re-read"].sum() == pytest.approx(weights)
    assert moved["activation", "re-read"].sum() == 0.0


def test_what_is_read_again_counts_as_what_it_is():
    long = {"heads": 1, "kv_heads": 1, "head_dim": 256, "dtype": "fp16", "batch": 1}
    work = {"kind": "attention_prefill", "q_tokens": 4096, "kv_tokens": 4096, **long}
    for causal, kept in ((True, "kv_read"), (False, "activation")):
        moved = (
            ob.simulate("bitmod-fp16", {**work, "causal": causal}).outcome.phases[0].demand.moved
        )
        again = {c for (c, cause), v in moved.items() if cause == "re-read" and v.any()}
        assert again <= {kept, "activation"}
        assert again


def test_small_products_are_read_once():
    moved = demand("bitmod", ob.Gemm(m=64, n=512, k=512, dtype="fp16")).moved
    assert not any(v.any() for (_, cause), v in moved.items() if cause == "re-read")


@pytest.mark.parametrize("machine", ["bitmod", "bitmod-fp16", "bitmod-ant", "bitmod-olive"])
@pytest.mark.parametrize("work", [ob.Prefill, ob.Decode])
def test_the_bound_is_no_more_than_the_analytic_answer(machine, work):
    for weight in ("fp16", "int8", "bitmod3"):
        run = [
            ob.simulate(machine, work(model(weight), 2, 100), fidelity=fidelity).seconds
            for fidelity in ("bound", "analytic", "event")
        ]
        assert run[0] <= run[1] <= run[2] * (1 + 1e-9)


def test_fewer_bits_are_never_slower_and_cost_no_more_energy():
    for work in (ob.Prefill, ob.Decode):
        results = [
            ob.simulate("bitmod", work(model(w), 1, 256))
            for w in ("bitmod3", "bitmod4", "bitmod6", "int8", "fp16")
        ]
        assert np.all(np.diff([r.seconds for r in results]) >= 0)
        assert np.all(np.diff([r.joules for r in results]) > 0)


def test_energy_is_that_of_the_array_at_every_fidelity_and_in_fused_operators():
    work = ob.Decode(model("bitmod3"), 1, 256)
    joules = [ob.simulate("bitmod", work, fidelity=f).joules for f in ("bound", "analytic")]
    assert joules[0] == pytest.approx(joules[1], rel=1e-3)
    own = ob.load_machine("bitmod").mapping()
    fused = ob.simulate("bitmod", work, own.model_copy(update={"fusion": "attention"}))
    # Scores stay on the chip.
    assert 0.99 * joules[1] < fused.joules < joules[1]


def test_a_product_with_weights_takes_passes_by_its_weights_whatever_it_reads_from_the_cache():
    mla = ob.load_model("deepseek-v3").with_precision(weight="int4", activation="fp16", kv="fp16")
    fast = {"chip.dram.capacity": "2 TB", "chip.dram.phy.bandwidth": "100 TB/s"}
    machine = ob.load_machine("bitmod").replace(fast)
    rate = [
        seconds(ob.simulate(machine, ob.Prefill(mla, 1, tokens)), "kv_up") / tokens
        for tokens in (256, 16384)
    ]
    assert rate[0] == pytest.approx(rate[1])


def test_artifact_counts_attention_heads_times_in_prefill_and_too_few_keys_in_decoding():
    for work, more in ((ob.Prefill, True), (ob.Decode, False)):
        parts = {
            mapping: ob.simulate("bitmod", work(model(), 1, 256), mapping=mapping)
            for mapping in ("artifact", "default")
        }
        score = {name: seconds(result, "score") for name, result in parts.items()}
        assert (score["artifact"] > 4 * score["default"]) is more
        assert (score["artifact"] < score["default"]) is not more
        linear = {name: seconds(result, "down") for name, result in parts.items()}
        assert linear["artifact"] == linear["default"]


def test_the_artifact_knows_no_fused_attention():
    own = ob.load_machine("bitmod").mapping("artifact").model_copy(update={"fusion": "attention"})
    with pytest.raises(UncoveredError, match="counts attention as single products"):
        ob.simulate("bitmod", ob.Decode(model(), 1, 256), own)


def test_all_positions_may_be_scored():
    last, every = (
        ob.simulate("bitmod", ob.Prefill(model(), 1, 256, logits=which)).breakdown
        for which in ("last", "all")
    )
    flops = [f.set_index("operator").loc["lm_head", "flops"] for f in (last, every)]
    assert flops[0] == 2 * HIDDEN * VOCAB
    assert flops[1] == 256 * flops[0]
    with pytest.raises(WorkloadError, match="one of last, all"):
        ob.Prefill(model(), 1, 256, logits="some")
    with pytest.raises(WorkloadError, match="encoder"):
        ob.Prefill(ob.load_model("t5-small"), 1, 64, logits="all")


def test_mean_widths_are_formats():
    assert lookup("q4.5").bits_per_element == 4.5
    assert lookup("q4.5").compute == "bf16"
    assert bytes_of("q3.875", 8.0) == 3.875
    for wrong in ("q0.5", "q17"):
        with pytest.raises(ConfigError, match="1 to 16 bits"):
            lookup(wrong)
    with pytest.raises(ConfigError):
        lookup("q4.12345")


def test_refusals_name_what_is_missing():
    machine = ob.load_machine("bitmod")
    with pytest.raises(UncoveredError, match="no arithmetic for"):
        ob.simulate(machine, ob.Gemm(m=8, n=64, k=64, dtype="fp64"))
    bare = machine.replace({"chip.array.serial": None})
    with pytest.raises(UncoveredError, match="no `serial` block"):
        ob.simulate(bare, ob.Gemm(m=8, n=64, k=64, dtype="fp16"))
    for path, value in (("dot", 0), ("shapes", [[0, 16]]), ("bits", "0")):
        with pytest.raises(ConfigError):
            machine.replace({f"chip.array.serial.{path}": value})
