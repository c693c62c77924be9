"""simulate() and evaluate(): names, refusals, parallel mappings, and many points at once."""

from typing import Any

import numpy as np
import pytest

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.mapping import Mapping, load_mapping
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.systolic import peak_rate
from opbyte.hw_models.machine import CATALOG, Machine, load_machine
from opbyte.sim.metrics import COMMON, metrics_of
from opbyte.sim.simulate import evaluate, resolve_mapping, simulate
from opbyte.workloads.coe import CompositionOfExperts
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.works import work_from

LLAMA = load_model("llama-3.1-8b")
LLAMA2 = load_model("llama-2-7b")
DECODE = {"kind": "decode", "model": "llama-3.1-8b", "batch": 4, "context": 2048}

# -- many points equal each point ----------------------------------------------------------

VECTORS: dict[str, dict[str, Any]] = {
    "decode": {"model": LLAMA, "batch": [1, 7, 64, 3], "context": [100, 4096, 131, 9000]},
    "prefill": {
        "model": LLAMA,
        "batch": [1, 2, 8, 3],
        "input": [1, 1000, 4096, 17],
        "past": [0, 5, 100, 0],
    },
    "generate": {
        "model": LLAMA,
        "batch": [1, 2, 8, 3],
        "input": [1, 1000, 4096, 17],
        "output": [1, 2, 100, 7],
    },
    "mixed": {
        "model": LLAMA,
        "chunks": [[512, 0], [100, 2000]],
        "decodes": [1, 5, 100, 3],
        "context": [10, 999, 4096, 50],
    },
    "gemm": {
        "m": [1, 100, 8192, 65536],
        "n": [1, 4096, 8192, 2048],
        "k": [7, 4096, 28672, 4096],
        "groups": [1, 3, 1, 1],
    },
    "coe": {
        "router": LLAMA2,
        "experts": LLAMA2,
        "count": [10, 150, 40, 90],
        "batch": [1, 8, 3, 64],
        "input": [16, 256, 1000, 99],
        "output": [1, 20, 100, 7],
    },
}
FACTORS = np.array([0.5, 1.0, 1.7, 6.0])


def machine_and_mapping(name: str, mapping: str | None, kind: str) -> tuple[Machine, Mapping]:
    machine = load_machine(name)
    if kind == "coe":
        return machine, machine.mapping("coe")
    return machine, machine.mapping(mapping)


def numeric(machine: Machine) -> list[str]:
    """Return parameters that time, energy or capacity may depend on, whatever the machine."""
    words = ("bandwidth", "latency", "vector", "capacity")
    inner = (".peak.", ".launch.", ".energy")
    return [p for p in machine.values if p.endswith(words) or any(w in p for w in inner)]


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize(
    ("name", "mapping"),
    [("sn40l-node", "default"), ("sn40l-node", "unfused"), ("dgx-a100", "default")],
)
@pytest.mark.parametrize("fidelity", ["analytic", "bound"])
def test_arrays_over_points_equal_the_points(
    kind: str, name: str, mapping: str, fidelity: str
) -> None:
    machine, chosen = machine_and_mapping(name, mapping, kind)
    changed = {
        path: machine.values[path] * np.roll(FACTORS, i) for i, path in enumerate(numeric(machine))
    }
    assert len(changed) > 10
    fields = {
        k: np.array(v, float) if isinstance(v, list) and not isinstance(v[0], list) else v
        for k, v in VECTORS[kind].items()
    }
    cls = type(work_from({"kind": kind, **_plain(VECTORS[kind], 0)}))
    many = evaluate(machine.with_values(changed), cls(**fields), chosen, fidelity)
    assert many.infeasible is None or many.infeasible.shape in ((4,), (1,))
    for point in range(4):
        alone = evaluate(
            machine.with_values({p: float(v[point]) for p, v in changed.items()}),
            work_from({"kind": kind, **_plain(VECTORS[kind], point)}),
            chosen,
            fidelity,
        )
        assert many.metrics.keys() == alone.metrics.keys()
        for metric, values in many.metrics.items():
            np.testing.assert_allclose(
                np.broadcast_to(values, 4)[point],
                alone.metrics[metric][0],
                rtol=1e-12,
                err_msg=f"{metric} of point {point}",
            )


def _plain(fields: dict[str, Any], point: int) -> dict[str, Any]:
    return {
        k: v[point] if isinstance(v, list) and not isinstance(v[0], list) else v
        for k, v in fields.items()
    }


def test_points_that_do_not_fit_are_marked_and_the_others_are_not() -> None:
    machine = load_machine("a100-sxm-80gb")
    work = work_from({"kind": "decode", "model": LLAMA, "batch": [1, 500, 2, 400], "context": 4096})
    outcome = evaluate(machine, work, machine.mapping())
    assert outcome.infeasible is not None
    held = np.array([1, 500, 2, 400]) * 4096 * LLAMA.kv_bytes_per_token + LLAMA.weight_bytes
    np.testing.assert_array_equal(outcome.infeasible, held > 80 * 2**30)
    assert "gpu.hbm" in outcome.reasons[0]
    np.testing.assert_array_equal(np.isnan(outcome.metrics["seconds"]), outcome.infeasible)
    assert not np.isnan(outcome.metrics["area_m2"]).any()


# -- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: simulate("dgx-a10", DECODE), ["dgx-a10", "dgx-a100"]),
        (lambda: simulate("dgx-a100", DECODE, "defalt"), ["defalt", "default"]),
        (lambda: simulate("dgx-a100", {**DECODE, "model": "llama-3.1-8"}), ["llama-3.1-8b"]),
        (lambda: simulate("dgx-a100", {**DECODE, "kind": "decod"}), ["decod", "decode"]),
        (lambda: simulate("dgx-a100", {**DECODE, "contxt": 1}), ["contxt", "context"]),
        (
            lambda: simulate("dgx-a100", DECODE, fidelity="evnt"),  # type: ignore[arg-type]
            ["fidelity", "evnt", "bound, analytic, event"],
        ),
        (lambda: metrics_of("decod"), ["decod", "decode"]),
        (
            lambda: simulate("dgx-a100", DECODE, {"run": [{"ops": "all", "unit": "gpu.sn"}]}),
            ["gpu.sn", "gpu.sm"],
        ),
        (
            lambda: simulate("dgx-a100", DECODE, _split("dgx-a100", tp=16)),
            ["tp * pp * dp = 16", "8 of 'gpu'"],
        ),
    ],
)
def test_unknown_names_are_met_with_the_nearest(call: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_a_metric_that_the_work_lacks_lists_what_it_has() -> None:
    result = simulate("dgx-a100", DECODE)
    with pytest.raises(AttributeError, match=r"decode has no metric 'ttft'. It has: seconds"):
        _ = result.ttft
    assert result.tpot == result.seconds


@pytest.mark.parametrize("kind", VECTORS)
def test_a_result_has_exactly_the_metrics_that_its_kind_promises(kind: str) -> None:
    result = simulate("dgx-a100", {"kind": kind, **_plain(VECTORS[kind], 2)})
    assert set(metrics_of(kind)) == set(result.metrics)
    assert set(COMMON) <= set(result.metrics)


def test_machine_work_and_mapping_in_any_form_are_the_same() -> None:
    machine = load_machine("dgx-a100")
    seconds = simulate("dgx-a100", DECODE).seconds
    mapping = machine.mapping().model_dump(by_alias=True)
    assert simulate(machine, work_from(DECODE), "default").seconds == seconds
    assert simulate(machine.document.data, DECODE, mapping).seconds == seconds
    assert resolve_mapping(machine, None, "coe") is machine.mapping("coe")


def test_tokens_and_energy_per_second_follow_from_the_rest() -> None:
    result = simulate("dgx-a100", DECODE)
    assert result.tokens_per_s == pytest.approx(4 / result.seconds, rel=1e-12)
    assert result.watts == pytest.approx(result.joules / result.seconds, rel=1e-12)
    assert result.joules_per_token == pytest.approx(result.joules / 4, rel=1e-12)
    three_years = 3 * 365.25 * 24 * 3600
    assert result.usd_per_mtoken == pytest.approx(
        result.price_usd / three_years / result.tokens_per_s * 1e6, rel=1e-12
    )


def test_generation_is_prefill_and_steps() -> None:
    result = simulate("dgx-a100", {"kind": "generate", "model": LLAMA, "batch": 2, "input": 500,
                                   "output": 11})  # fmt: skip
    assert result.seconds == pytest.approx(result.ttft + 10 * result.tpot, rel=1e-12)
    prefill = simulate("dgx-a100", {"kind": "prefill", "model": LLAMA, "batch": 2, "input": 500})
    assert result.ttft == prefill.ttft == prefill.seconds


# -- splits --------------------------------------------------------------------------------


def _split(machine: str, mapping: str = "default", **degrees: int) -> dict[str, Any]:
    made = load_machine(machine).mapping(mapping).model_dump(by_alias=True)
    made["parallel"]["all"].update({"tp": 1, **degrees})
    return made


def flops(work: dict[str, Any], **degrees: int) -> float:
    return simulate("dgx-h100", work, _split("dgx-h100", **degrees)).flops


@pytest.mark.parametrize(
    "degrees",
    [{"pp": 2}, {"pp": 8}, {"dp": 4}, {"pp": 2, "dp": 2}, {"pp": 4, "microbatches": 8},
     {"dp": 2, "microbatches": 4}],
)  # fmt: skip
@pytest.mark.parametrize("fidelity", ["analytic", "event"])
def test_pipelines_and_replicas_do_the_same_work(degrees: dict[str, int], fidelity: Any) -> None:
    # Batches of 32 sequences of equal length divide evenly; no device computes twice.
    work = {"kind": "decode", "model": LLAMA, "batch": 32, "context": 1024}
    one = simulate("dgx-h100", work, _split("dgx-h100"))
    made = simulate("dgx-h100", work, _split("dgx-h100", **degrees), fidelity)
    assert made.flops == pytest.approx(one.flops, rel=1e-12)
    assert 0 < made.seconds < np.inf


def test_tensor_parallel_splits_matrices_and_repeats_norms_only() -> None:
    work = {"kind": "decode", "model": LLAMA, "batch": 32, "context": 1024}
    one, eight = flops(work), flops(work, tp=8)
    # Norms and residual sums of 65 x 5 and 64 x 1 operations an element run on every device.
    again = 7 * 32 * 4096 * (65 * 4 + 64)
    assert eight - one == pytest.approx(again, rel=1e-6)


def test_experts_are_split_over_devices() -> None:
    work = {"kind": "decode", "model": "qwen3-30b-a3b", "batch": 64, "context": 1024}
    whole = simulate("dgx-h100", work, _split("dgx-h100", tp=8))
    split = simulate("dgx-h100", work, _split("dgx-h100", tp=8, ep=8))
    assert split.flops == pytest.approx(whole.flops, rel=1e-2)
    names = set(split.breakdown["operator"])
    assert {"dispatch", "return"} <= names
    assert "dispatch" not in set(whole.breakdown["operator"])


@pytest.mark.parametrize(
    "degrees",
    [{"tp": 8}, {"pp": 4, "microbatches": 4}, {"tp": 2, "dp": 4}, {"tp": 4, "pp": 2}],
)
def test_the_breakdown_adds_up_to_the_dynamic_energy(degrees: dict[str, int]) -> None:
    machine = load_machine("dgx-h100")
    work = {"kind": "generate", "model": LLAMA, "batch": 32, "input": 100, "output": 5}
    result = simulate(machine, work, _split("dgx-h100", **degrees))
    static = machine.values["static_power"] + 8 * machine.values["gpu.static_power"]
    dynamic = result.joules - static * result.seconds
    assert result.breakdown["joules"].sum() == pytest.approx(dynamic, rel=1e-9)


def test_a_chain_takes_the_sum_of_its_breakdown() -> None:
    result = simulate("a100-sxm-80gb", {**DECODE, "model": "gpt-2", "context": 999}, "eager")
    assert result.breakdown["seconds"].sum() == pytest.approx(result.seconds, rel=1e-6)


@pytest.mark.parametrize(
    "model", ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "nemotron-h-8b", "lfm2-8b-a1b",
              "gemma-3-27b"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_mixtures_hybrids_and_latent_attention_run(model: str, kind: str) -> None:
    fields = {"context": 1024} if kind == "decode" else {"input": 1024}
    work = {"kind": kind, "model": model, "batch": 2, **fields}
    machine = load_machine("dgx-h100").with_values({"gpu.hbm.capacity": 1e12})
    times = [simulate(machine, work, fidelity=f).seconds for f in ("bound", "analytic", "event")]  # type: ignore[arg-type]
    assert 0 < times[0] <= times[1] <= times[2] * (1 + 1e-9) < 10


# -- every machine -------------------------------------------------------------------------

WITHOUT_BF16 = (
    *("t4", "t4-host", "m1-max", "hbm-pim", "neupims", "upmem-2556", "vitallm"),
    *("m2-ultra-cpu", "agx-orin-cpu", "raspberry-pi-5", "surface-book-3"),
    *("oneplus-12", "oneplus-13", "oneplus-ace-2", "i9-13900k", "i9-14900"),
)
#: Machines whose memory does not hold the model.
SMALL = {
    "gddr6-aim": "chip.dram",
    "ianus": "device.dram",
    "pim-gpt": "device.dram",
    "lut-generator": "chip.lpddr",
    "lut-dgx-host": "chip.lpddr",
    "tellme-kv260": "fpga.ddr4",
}


@pytest.mark.parametrize("fidelity", ["bound", "analytic", "event"])
@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("name", CATALOG.names())
def test_every_machine_prices_llama_or_says_why_not(name: str, kind: str, fidelity: Any) -> None:
    fields = {"context": 4096} if kind == "decode" else {"input": 1024}
    work = {"kind": kind, "model": LLAMA, "batch": 1, **fields}
    if name in WITHOUT_BF16:
        with pytest.raises(UncoveredError, match=rf"{name}.*bf16"):
            simulate(name, work, fidelity=fidelity)
        return
    if name == "lut-tile":
        with pytest.raises(UncoveredError, match="multiplies ternary weights"):
            simulate(name, work, fidelity=fidelity)
        return
    if name in SMALL:
        with pytest.raises(CapacityError, match=SMALL[name]):
            simulate(name, work, fidelity=fidelity)
        return
    result = simulate(name, work, fidelity=fidelity)
    machine = load_machine(name)
    unit = next(u for u in machine.units.values() if u.config.peak or u.config.array)
    devices = machine.mapping().degrees.devices
    port = next(m for m in machine.memories if m.endswith((".hbm", ".gddr", ".dram")))
    if machine.mapping().default and machine.mapping().default.together:
        devices = machine.memory(port).count
        unit = next(u for u in machine.units.values() if u.part == machine.memory(port).part)
    rate = next(v for p, v in machine.values.items() if p.startswith(port) and "bandw" in p)
    peak = machine.values.get(f"{unit.path}.peak.bf16")
    if peak is None:
        passes = 16.0 / (machine.values.get(f"{unit.path}.serial.bits") or 16.0)
        peak = peak_rate(UnitView(machine, unit.path), "bf16") / passes
    # Each weight that is used is read once, and each parameter multiplies once for each token.
    tokens = 1 if kind == "decode" else 1024
    weights = 2 * (LLAMA.parameters - LLAMA.vocab * LLAMA.hidden) / (devices * rate)
    products = 2 * tokens * (LLAMA.parameters - 2 * LLAMA.vocab * LLAMA.hidden) / (devices * peak)
    assert result.seconds > max(weights, products)
    assert result.joules > 0
    if unit.config.kind in ("waves", "aim") or name == "dgx-h100-csd":
        # One block for all query heads of a KV head: most SMs wait while attention runs. A stage
        # of banks works alone while one query is there. Drives read the cache from flash.
        return
    assert result.seconds < 6 * max(weights, products) + 5e-3


def test_a_model_that_is_too_large_is_refused_by_name_and_size() -> None:
    with pytest.raises(CapacityError) as caught:
        simulate("a100-sxm-80gb", {**DECODE, "model": "llama-3.1-405b"})
    assert caught.value.tier == "gpu.hbm"
    assert caught.value.needed_bytes > 2 * 405e9
    assert caught.value.available_bytes == 80 * 2**30
    assert "weight" in caught.value.tensors


def test_senseless_work_is_refused_before_anything_is_priced() -> None:
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        simulate("dgx-a100", {**DECODE, "batch": 0})
    with pytest.raises(WorkloadError, match="allows a context of at most"):
        simulate("dgx-a100", {**DECODE, "context": 10**9})


def test_a_bare_product_runs_on_one_device_of_a_node():
    one = simulate("a100-sxm-80gb", {"kind": "gemm", "m": 512, "n": 512, "k": 512})
    node = simulate("dgx-a100", {"kind": "gemm", "m": 512, "n": 512, "k": 512})
    assert node.flops == 2 * 512**3
    assert node.seconds == one.seconds


def test_kernels_count_every_microbatch():
    machine = load_machine("sn40l-node")
    mapping = machine.mapping().model_dump(by_alias=True)
    work = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 64}
    mapping["parallel"]["all"] = {"group": "node", "tp": 4, "pp": 2, "microbatches": 1}
    once = simulate(machine, work, mapping=mapping)
    mapping["parallel"]["all"]["microbatches"] = 4
    assert simulate(machine, work, mapping=mapping).kernels == 4 * once.kernels


def test_a_composition_of_experts_takes_arrays_in_a_pipeline():
    machine = load_machine("sn40l-node")
    mapping = machine.mapping("coe").model_dump(by_alias=True)
    mapping["parallel"]["all"] = {"group": "node", "tp": 4, "pp": 2}
    model = load_model("llama-2-7b")
    work = CompositionOfExperts(model, model, np.array([10.0, 20.0]), 2, np.array([16.0, 300.0]), 5)
    both = evaluate(machine, work, load_mapping(mapping)).metrics["seconds"]
    alone = [
        simulate(machine, CompositionOfExperts(model, model, c, 2, i, 5), mapping=mapping).seconds
        for c, i in ((10, 16), (20, 300))
    ]
    np.testing.assert_allclose(both, alone, rtol=1e-12)
