"""Every published number: inside its tolerance, with the class that its parameters give it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from opbyte.core.config import load_document
from opbyte.core.errors import ConfigError
from opbyte.sweeps.validation import Verdict, load_published, sources_of, validate_source
from opbyte.sweeps.validation.facts import fact_of, read_facts, section_facts, with_facts
from opbyte.sweeps.validation.published import CLASSES
from opbyte.workloads.model_loader import load_model

#: Sources of many rows, or of works that are played in time, take a minute and have own tests.
PLAYED = {"layered_prefill", "cent"}
#: Sources whose facts are sections of others.yaml.
SECTIONS = {
    "t_mac", "tellme_v1", "tellme_v2", "flexgen", "powerinfer2", "smallthinker",
    "powerinfer_cpu_points", "memo", "fuyou", "horizon_lm", "memascend",
}  # fmt: skip
#: Sources that are not among the collected facts.
OWN = {"mpt"}
NAMES = [name for name in sources_of() if name not in PLAYED]
VERDICTS = {(name, v.id): v for name in NAMES for v in validate_source(name)}


@pytest.mark.parametrize("key", list(VERDICTS), ids=lambda k: f"{k[0]}.{k[1]}")
def test_a_number_is_inside_its_tolerance_or_open_with_its_missing_input(
    key: tuple[str, str],
) -> None:
    verdict = VERDICTS[key]
    assert verdict.ok, verdict.reason
    assert verdict.evidence in CLASSES
    assert math.isfinite(verdict.simulated)
    if verdict.evidence == "open":
        assert verdict.closing
        assert all(c.why for c in verdict.closing)
    else:
        assert abs(verdict.error) <= verdict.tolerance


def sn40l(name: str) -> Verdict:
    return VERDICTS["sn40l", name]


def test_the_sn40l_rows_that_must_hold() -> None:
    assert sn40l("coe.dgx_spill_point").simulated == 47
    assert sn40l("coe.footprint").simulated == 19
    assert {sn40l(f"coe.switch.{g}").evidence for g in ("a100", "h100")} == {"internal"}
    predicted = [v for v in VERDICTS.values() if v.evidence == "predicted"]
    assert len(predicted) >= 5


@pytest.mark.parametrize("row", ["bs1.t20.a100", "bs1.t20.h100", "bs8.t20.a100", "bs8.t20.h100"])
def test_table_v_is_within_a_quarter_or_names_what_would_close_it(row: str) -> None:
    verdict = sn40l(f"coe.overall.{row}")
    if abs(verdict.error) > 0.25:
        assert verdict.evidence == "open"
        assert any(c.value for c in verdict.closing)


def pregated(name: str) -> Verdict:
    return VERDICTS["pregated_moe", name]


def test_copies_of_experts_rest_on_the_rate_of_another_server_and_kernels_are_open() -> None:
    for model in ("base-8", "base-64", "base-128", "base-256", "large-128"):
        verdict = pregated(f"raw.block.prefetch.{model}")
        assert verdict.evidence == "assumed", model
        assert "machine.pcie.efficiency" in verdict.reason
        assert verdict.low < verdict.published < verdict.high  # type: ignore[operator]
    # Products of sizes that the source gives.
    for name in ("expert_bytes.base", "expert_bytes.large", "oom.large-128"):
        assert pregated(name).evidence == "internal"
    for name in (
        "block_latency_vs_gpuonly.ratio",
        "block_latency_vs_ondemand.avg",
        "block_latency_vs_prefetch.max",
        "raw.block.gpu-only.base-128",
        "raw.block.on-demand.base-128",
        "throughput_base.pregated",
        "throughput_base.gpu_only",
        "e2e_ratios.vs_gpu_only",
    ):
        verdict = pregated(name)
        assert verdict.evidence == "open", name
        kernels = next(c for c in verdict.closing if c.input == "kernels")
        assert kernels.parameter == "machine.gpu.sm.launch.software"
        assert kernels.value.endswith("us")
    # A ratio of two policies rises and falls with the kernels' time.
    both = pregated("block_latency_vs_ondemand.avg").closing[0].value.split(", ")
    assert [float(v.split()[0]) for v in both] == pytest.approx([9.3, 37.0], rel=0.02)


def test_a_number_that_agrees_because_errors_cancel_is_no_evidence() -> None:
    for name in ("raw.throughput.pre-gated.large-128", "raw.block.pre-gated.large-128"):
        verdict = pregated(name)
        assert abs(verdict.error) < verdict.tolerance
        assert verdict.evidence == "open"


POLICY = {"machine": "a100-sxm-host", "mapping": "prefetch-all"}
STEP = {"kind": "decode", "batch": 1, "context": 128, "input": 256}


@pytest.mark.parametrize(("reduce", "wanted"), [("mean", 68.0), ("geomean", 32.0), ("max", 128.0)])
def test_a_number_may_sum_up_several_models(tmp_path: Path, reduce: str, wanted: float) -> None:
    point = {
        "id": "sum",
        "metric": "copied_bytes",
        "value": 1.0,
        "tolerance": 1e9,
        "experiment": {**POLICY, "workload": STEP},
        "baseline": {"mapping": "on-demand"},
        "ratio": "ours/baseline",
        "over": {"model": ["switch-base-8", "switch-base-128"]},
        "reduce": reduce,
    }
    # Of 8 and of 128 experts, all against one.
    assert _verdict(tmp_path, point).simulated == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("over", [{"model": ["switch-base-8"]}, {"model": [1, 2], "batch": [1, 2]}])
def test_a_sum_of_one_or_over_two_fields_is_refused(tmp_path: Path, over: object) -> None:
    point = {"id": "x", "metric": "seconds", "value": 1.0, "tolerance": 0.1, "over": over}
    with pytest.raises(ConfigError, match="one field of the workload with two values"):
        _verdict(tmp_path, point)


IANUS = {"machine": "ianus", "mapping": "default"}
TOKEN = {"kind": "decode", "model": "gpt-2-xl-24-heads", "batch": 1, "context": 256}
BLOCK = ("norm", "qkv", "kv_append", "score+softmax+context", "out", "add")
REST = ("ffn_norm", "up", "activation", "down", "ffn_add", "final_norm", "lm_head")


def test_seconds_of_operators_are_a_metric(tmp_path: Path) -> None:
    """Operators of a chain add up to its time, copies of one for several units included."""

    def seconds(*names: str, of: str = "operator_seconds") -> float | None:
        point = {"id": "x", "metric": of, "value": 1.0, "tolerance": 1e9,
                 "operators": list(names), "experiment": {**IANUS, "workload": TOKEN}}  # fmt: skip
        return _verdict(tmp_path, point).simulated

    whole = seconds("up", of="seconds")
    parts = [seconds(*names) for names in (BLOCK, REST, ("embedding", "position"))]
    assert sum(parts) == pytest.approx(whole, rel=1e-9)  # type: ignore[arg-type]
    assert seconds("up") == pytest.approx(seconds("up@pim"))
    assert "no operator is called so, got sideways" in str(_failed(tmp_path, "sideways"))


def _failed(folder: Path, operator: str) -> str:
    point = {"id": "x", "metric": "operator_seconds", "value": 1.0, "tolerance": 1e9,
             "operators": [operator], "experiment": {**IANUS, "workload": TOKEN}}  # fmt: skip
    return _verdict(folder, point).reason


def ianus(name: str) -> Verdict:
    return VERDICTS["ianus", name]


def test_ianus_bars_rest_on_its_table_and_times_on_one_fitted_latency() -> None:
    for name in ("fc2.npumem", "ffn.sp"):
        assert ianus(name).evidence in ("predicted", "assumed"), name
        assert abs(ianus(name).error) < 0.10, name
    assert ianus("fc2.ianus").evidence == "assumed"
    for name in ("lat.m.64", "lat.l.64", "lat.2.5b.64", "lat.2.5b.512"):
        assert ianus(name).evidence == "calibrated", name
        assert abs(ianus(name).error) < 0.10, name
    slow = ianus("sp.m.128_512").closing[0]
    assert slow.parameter == "baseline.gpu.sm.launch.software"
    # The counts of channels and banks are no numbers that a tenth can be added to.
    assert "organisation" not in ianus("ffn.sp").reason


def lamina(name: str) -> Verdict:
    return VERDICTS["lamina", name]


def test_lamina_rows_have_the_classes_that_their_inputs_give() -> None:
    classes = {id_: v.evidence for (source, id_), v in VERDICTS.items() if source == "lamina"}
    gains = {id_: c for id_, c in classes.items() if id_.startswith("gain.")}
    assert len(gains) == 13
    assert {id_ for id_, c in gains.items() if c == "open"} == {
        "gain.33b.azure-conv", "gain.33b.kimi-conv", "gain.70b.azure-conv", "gain.largest",
    }  # fmt: skip
    inputs = {"fhbn_latency", "fhbn_bw", "nccl_latency", "nccl_bw"}
    assert {id_ for id_, c in classes.items() if c == "internal"} == inputs
    assumed = {"batch_ratio", "nonattn_mfu", "attn_mbu", "overlap_65b", "throughput_gain"}
    assert {classes[id_] for id_ in assumed} == {"assumed"}
    # A card or all of them: the reading decides.
    assert classes["min_bw"] == "open"


@pytest.mark.parametrize("name", ["attn_mbu", "overlap_65b", "min_bw"])
def test_lengths_that_the_paper_does_not_name_are_assumed_over_a_range(name: str) -> None:
    verdict = lamina(name)
    assert {p for p, *_ in verdict.matters} & {"workload.context", "workload.kv_tokens"}
    assert verdict.low < verdict.simulated < verdict.high


def test_the_kernel_that_the_paper_leaves_out_belongs_to_the_range() -> None:
    verdict = lamina("throughput_gain")
    found = {path: change for path, _, change in verdict.matters}
    # 15.3 % with our own kernel, 20.8 % without.
    assert found["alternatives.flash-attention"] == pytest.approx(0.265, abs=0.02)
    assert "alternatives.flash-attention" in verdict.reason
    assert verdict.low < 15.4


def test_lamina_is_ahead_at_similar_cost_and_more_so_at_long_contexts() -> None:
    models = ("33b", "65b", "70b")
    gain = {
        t: [lamina(f"gain.{m}.{t}").simulated for m in models]
        for t in ("azure-conv", "azure-code", "kimi-conv", "kimi-ta")
    }
    assert all(g > 0 for each in gain.values() for g in each)
    assert sum(gain["kimi-conv"]) > sum(gain["azure-conv"])
    # The exception: of LLaMA-33B only eight such sequences fit, four in each staggered batch.
    assert gain["kimi-conv"][1:] > gain["azure-conv"][1:]


def test_the_memory_that_vllm_leaves_free_decides_the_batch_ratio() -> None:
    verdict = lamina("batch_ratio")
    assert verdict.low < 2.39 < verdict.high
    assert max(verdict.matters, key=lambda m: m[2])[0] == "baseline.gpu.hbm.capacity"


def test_long_context_rows_and_the_one_that_counts_attention_otherwise() -> None:
    mine = {id_: v for (source, id_), v in VERDICTS.items() if source == "longctx_peak_fu"}
    assert {id_ for id_, v in mine.items() if v.evidence == "open"} == {
        "prefill.ctx50k", "concurrency.ctx4k",
    }  # fmt: skip
    # A faster GPU would close it, and is no explanation.
    assert not any(c.parameter for c in mine["prefill.ctx50k"].closing)
    assert {v.evidence for id_, v in mine.items() if id_.startswith("kv_bytes")} == {"assumed"}
    assert mine["concurrency.ctx50k"].simulated == 1
    assert mine["concurrency.ctx4k"].simulated == 17


def test_a_number_may_be_the_mean_of_several_experiments(tmp_path: Path) -> None:
    def point(name: str, **more: object) -> dict[str, object]:
        metric = "value: flops / seconds / gpu.sm.peak.bf16"
        return {"id": name, "metric": metric, "value": 0.5, "tolerance": 1.0, **more}

    def setup(m: int) -> dict[str, object]:
        work = {"kind": "gemm", "m": m, "n": 4096, "k": 4096, "dtype": "bf16"}
        return {"machine": "a100-sxm-80gb", "workload": work, "fidelity": "bound"}

    each = [_verdict(tmp_path, point("x", experiment=setup(m))).simulated for m in (64, 4096)]
    assert each[0] < 0.5 < each[1] == pytest.approx(1.0)
    mean = point("x", mean=[{"experiment": setup(64)}, {"experiment": setup(4096)}])
    assert _verdict(tmp_path, mean).simulated == pytest.approx(sum(each) / 2)
    geomean = point("x", experiment=setup(64), over={"m": [64, 4096]}, reduce="geomean")
    assert _verdict(tmp_path, geomean).simulated == pytest.approx((each[0] * each[1]) ** 0.5)
    # One part's size has a source and so counts; the others keep their own.
    sourced = {"workload": {"m": {"value": 64, "source": "assumed: drawn", "range": [64, 128]}}}
    parts = [{"experiment": sourced}, {"experiment": setup(4096)}]
    ranged = _verdict(tmp_path, point("x", experiment=setup(64), mean=parts))
    assert ranged.simulated == pytest.approx(sum(each) / 2)
    ends = [(e + each[1]) / 2 for e in (each[0], 2 * each[0])]
    assert (ranged.low, ranged.high) == pytest.approx(ends, rel=0.05)
    most = point("x", experiment=setup(64), over={"m": [64, 4096]}, reduce="max")
    assert _verdict(tmp_path, most).simulated == pytest.approx(each[1])
    with pytest.raises(ConfigError, match="two values or more"):
        _verdict(tmp_path, point("x", experiment=setup(64), over={"m": [64]}))
    source = {"gaps": {"rate": "unknown"}}
    gap = {
        "input": "rate",
        "parameter": "machine.gpu.sm.peak.bf16",
        "range": ["10 TFLOP/s", "1 PFLOP/s"],
    }
    far = mean | {
        "metric": "value: flops / seconds / 1e12",
        "value": 100,
        "tolerance": 0.01,
        "gap": gap,
    }
    assert _verdict(tmp_path, far, **source).closing[0].value.endswith("TFLOP/s")
    slow = {"workload": setup(64)["workload"]}
    base = {"experiment": setup(4096), "baseline": slow, "metric": "value: flops / seconds"}
    gain = _verdict(tmp_path, point("x", **base, ratio="gain") | base).simulated
    cut = _verdict(tmp_path, point("x", ratio="cut") | base).simulated
    assert gain == pytest.approx(100 * (each[1] / each[0] - 1))
    assert cut == -gain


def test_a_number_that_rests_on_a_fitted_parameter_is_calibrated() -> None:
    verdict = sn40l("hc24.switch_llama31_8b")
    assert verdict.evidence == "calibrated"
    assert any("fill.bandwidth" in path for path, _, _ in verdict.matters)


def test_open_expert_rows_say_which_launch_gap_would_close_them() -> None:
    for row in ("a100", "h100"):
        verdict = sn40l(f"coe.expert.bs1.t20.{row}")
        assert verdict.evidence == "open"
        assert any(
            c.parameter == "baseline.gpu.sm.launch.graph" and c.value for c in verdict.closing
        )


def test_a_number_that_rests_on_assumptions_gives_its_range() -> None:
    verdict = sn40l("coe.expert.bs1.t20.h100")
    assert verdict.low < verdict.simulated < verdict.high


def test_a_closing_value_closes_the_row(tmp_path: Path) -> None:
    verdict = sn40l("llama31.8b")
    closing = next(c for c in verdict.closing if c.parameter == "machine.p2p.latency")
    point = {
        "id": "closed",
        "metric": "tokens_per_s",
        "value": verdict.published,
        "tolerance": 0.02,
        "experiment": {
            "machine": "sn40l-16",
            "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 8192},
            "set": {"p2p.latency": {"value": closing.value, "source": "assumed: to close"}},
        },
    }
    assert _verdict(tmp_path, point).ok


def test_a_written_class_only_lowers(tmp_path: Path) -> None:
    point = {
        "id": "ridge",
        "metric": "value: gpu.sm.peak.bf16 / gpu.hbm.phy.bandwidth",
        "value": 153.0,
        "tolerance": 0.01,
        "experiment": {"machine": "a100-sxm-80gb"},
    }
    assert _verdict(tmp_path, point).evidence == "predicted"
    lowered = {**point, "at_most": "internal", "reason": "both numbers are one"}
    assert _verdict(tmp_path, lowered).evidence == "internal"
    assumed = {"set": {"gpu.hbm.phy.bandwidth": {"value": "2.039 TB/s", "source": "assumed: x"}}}
    raised = {
        **point,
        "at_most": "predicted",
        "reason": "wishful",
        "experiment": {"machine": "a100-sxm-80gb", **assumed},
    }
    assert _verdict(tmp_path, raised).evidence == "assumed"


def test_a_number_that_drifts_is_not_ok(tmp_path: Path) -> None:
    point = {
        "id": "ridge",
        "metric": "value: gpu.sm.peak.bf16 / gpu.hbm.phy.bandwidth",
        "value": 100.0,
        "tolerance": 0.05,
        "experiment": {"machine": "a100-sxm-80gb"},
    }
    verdict = _verdict(tmp_path, point)
    assert not verdict.ok
    assert verdict.error == pytest.approx(0.53, abs=0.01)


def test_a_point_that_can_not_run_is_not_ok_and_says_why(tmp_path: Path) -> None:
    point = {
        "id": "typo",
        "metric": "seconds",
        "value": 1.0,
        "tolerance": 0.1,
        "experiment": {"machine": "a100-sxm-80g", "workload": {"kind": "gemm"}},
    }
    verdict = _verdict(tmp_path, point)
    assert not verdict.ok
    assert "a100-sxm-80gb" in verdict.reason


def test_an_open_point_without_a_gap_is_refused(tmp_path: Path) -> None:
    point = {"id": "x", "metric": "seconds", "value": 1.0, "tolerance": 0.1, "at_most": "open"}
    with pytest.raises(ConfigError, match="missing input"):
        _verdict(tmp_path, point)


def _verdict(folder: Path, point: dict[str, object], **more: object) -> Verdict:
    import yaml

    data = {"kind": "published", "source": {"title": "t", "target": "reported"}, "points": [point]}
    data |= more
    path = folder / "one.yaml"
    path.write_text(yaml.safe_dump(data))
    return validate_source(str(path))[0]


RIDGE = {"id": "ridge", "metric": "value: gpu.sm.peak.bf16 / gpu.hbm.phy.bandwidth", "value": 153.0}


def test_an_assumption_of_nothing_counts_over_its_range(tmp_path: Path) -> None:
    skew = {"value": 0.0, "source": "assumed: uniform", "range": [0.0, 1.2]}
    serve = {
        "kind": "serve", "model": "qwen3-30b-a3b", "routing": {"kind": "zipf", "skew": skew},
        "trace": {
            "kind": "trace", "requests": 8, "lengths": {"input": 1, "output": 8},
            "arrivals": {"kind": "poisson", "rate": "1000000000 requests/s"},
        },
        "scheduler": {"kind": "continuous", "max_batched_tokens": 512},
    }  # fmt: skip
    point = {
        "id": "x", "metric": "expert_bytes_per_token", "value": 1.0, "tolerance": 1e12,
        "experiment": {"machine": "h100-x2", "workload": serve},
    }  # fmt: skip
    verdict = _verdict(tmp_path, point)
    assert verdict.evidence == "assumed"
    assert "workload.routing.skew" in verdict.reason
    # Uneven choices load fewer experts.
    assert verdict.low < 0.9 * verdict.simulated
    assert verdict.high == verdict.simulated


def test_an_assumption_that_a_tenth_hardly_moves_counts_over_its_range(tmp_path: Path) -> None:
    work = {"kind": "attention_decode", "batch": 20, "heads": 64, "kv_heads": 8, "dtype": "fp16"}
    metric = "value: batch * kv_tokens * 4096 / seconds / gpu.hbm.phy.bandwidth"

    def classed(**more: object) -> set[str]:
        tokens = {"value": 4096, "source": "assumed: x", **more}
        run = {"machine": "h100-sxm-80gb", "workload": {**work, "kv_tokens": tokens}}
        point = {"id": "x", "metric": metric, "value": 1, "tolerance": 9, "experiment": run}
        return {path for path, *_ in _verdict(tmp_path, point).matters}

    assert "workload.kv_tokens" not in classed(range=[4000, 4200])
    assert "workload.kv_tokens" in classed(range=[1024, 8192])


def test_an_alternative_widens_the_range_and_is_named(tmp_path: Path) -> None:
    point = {**RIDGE, "tolerance": 0.01, "experiment": {"machine": "a100-sxm-80gb"}}
    other = {"set": {"gpu.hbm.phy.bandwidth": "1.0 TB/s"}, "source": "assumed: slower stacks"}
    verdict = _verdict(tmp_path, {**point, "alternatives": ["slow"]}, alternatives={"slow": other})
    assert verdict.evidence == "assumed"
    assert verdict.reason == "rests on alternatives.slow"
    assert (verdict.low, verdict.high) == (pytest.approx(153.0, rel=1e-3), 312.0)
    assert verdict.ok
    # Where it changes nothing it is not named.
    same = {**other, "set": {"gpu.hbm.capacity": "60 GB"}}
    assert not _verdict(
        tmp_path, {**point, "alternatives": ["slow"]}, alternatives={"slow": same}
    ).reason
    with pytest.raises(ConfigError, match=r"no alternative is called 'slw'. Known: slow"):
        _verdict(tmp_path, {**point, "alternatives": ["slw"]}, alternatives={"slow": other})


def test_facts_keep_what_they_do_not_name_and_map_names_units_and_pairs(tmp_path: Path) -> None:
    facts = tmp_path / "pregated_moe.yaml"
    facts.write_text(
        "results:\n- {id: block_latency_vs_gpuonly, value: 20}\n"
        "- {id: pair, value: {down: [1018.75, 712.84], up: [12, 39]}}\n"
    )
    assert read_facts(facts) == {
        "block_latency_vs_gpuonly": 20.0, "pair.down.1": 1018.75, "pair.down.2": 712.84,
        "pair.up": (12.0, 39.0),
    }  # fmt: skip
    ours, _ = load_published("pregated_moe")
    theirs, missing = with_facts("pregated_moe", ours, read_facts(facts))
    assert [p.id for p in theirs.points] == [p.id for p in ours.points]
    values = {p.id: p.value for p in theirs.points}
    assert values["block_latency_vs_gpuonly.ratio"] == pytest.approx(1.2)
    assert values["throughput_base.pregated"] == 111
    assert missing == ["pair.down.1", "pair.down.2", "pair.up"]


def test_values_of_few_numbers_are_those_of_a_section(reference: Path) -> None:
    others = reference / "published" / "others.yaml"
    facts = section_facts(others, "t_mac")
    assert facts is not None
    published, _ = load_published("t_mac")
    found = [fact_of("t_mac", p, facts) for p in published.points]
    assert sorted(fact[0] for fact in found if fact) == sorted(facts)
    assert [fact and fact[1] for fact in found] == [p.value for p in published.points]
    verdicts = validate_source("t_mac", reference / "published")
    assert [v.published for v in verdicts] == [p.value for p in published.points]
    # Their rates are in sentences.
    assert section_facts(others, "tellme_v1") == {}
    assert section_facts(others, "tellme") is None


def test_our_published_values_are_those_of_the_collected_facts(reference: Path) -> None:
    for name in NAMES:
        path = reference / "published" / f"{name}.yaml"
        if name in SECTIONS | OWN:
            continue
        facts = read_facts(path)
        published, _ = load_published(name)
        of_point = {p.id: fact_of(name, p, facts) for p in published.points}
        found = {id_: fact[1] for id_, fact in of_point.items() if fact is not None}
        shared = [p for p in published.points if p.id in found]
        # What PrIM and its successors time on UPMEM has no kernel here, only rates.
        least = {"sn40l": 15, "pregated_moe": 14, "lamina": 8, "ianus": 8, "upmem": 0}
        assert len(shared) >= least.get(name, 1)
        for point in shared:
            fact = found[point.id]
            if isinstance(fact, tuple) or isinstance(point.value, tuple):
                ours = point.value if isinstance(point.value, tuple) else (point.value,) * 2
                theirs = fact if isinstance(fact, tuple) else (fact,) * 2
                ends = zip(ours, theirs, strict=True)
                assert any(a == b for a, b in ends), point.id
            else:
                assert point.value == pytest.approx(fact, rel=1e-12), point.id
        document = load_document(path, any_keys=True)
        citation = document.data["citation"]
        assert citation.get("venue") or citation["title"]


def test_flexgens_values_are_those_of_its_section(reference: Path) -> None:
    facts = load_document(reference / "published" / "others.yaml", any_keys=True).data["flexgen"]
    rates, batches = facts["throughput_tok_s"], facts["effective_batch"]
    names = {"": "FlexGen", ".compressed": "FlexGen_c", "deepspeed.": "DeepSpeed_ZeRO_Inference"}
    published, _ = load_published("flexgen")
    for point in published.points:
        model = point.id.removeprefix("deepspeed.").removesuffix(".compressed")
        who = names[point.id.replace(model, "")]
        key = model.upper()
        assert point.value == rates[who][key], point.id
        batch = batches[who.removesuffix("_ZeRO_Inference")][key]
        assert point.experiment.workload.get("batch", 2) == batch, point.id


MPT_PARAMETERS = {
    ("125m", 2048): 125311488, ("350m", 2048): 355985408, ("760m", 2048): 760470528,
    ("1b", 2048): 1315950592, ("3b", 1024): 2649216000, ("3b", 2048): 2651837440,
    ("7b", 1024): 6654664704, ("7b", 2048): 6658859008, ("7b", 4096): 6667247616,
    ("7b", 32768): 6784688128, ("13b", 1024): 12848711680, ("13b", 2048): 12853954560,
    ("13b", 4096): 12864440320, ("30b", 512): 29964204032, ("30b", 1024): 29967874048,
    ("30b", 2048): 29975214080, ("30b", 4096): 29989894144, ("70b", 2048): 64862437376,
}  # fmt: skip


def test_the_models_of_mpt_have_the_published_parameters() -> None:
    published, _ = load_published("mpt")
    seen = set()
    for point in published.points:
        _, size, tokens = point.id.split(".")[:3]
        key = (size, int(tokens))
        seen.add(key)
        assert load_model(point.experiment.workload["model"]).parameters == MPT_PARAMETERS[key]
    assert seen == set(MPT_PARAMETERS)


def test_mpt_holds_on_a100_where_layers_are_recomputed() -> None:
    """From 7B to 30B and up to 4,096 tokens; every other row is too fast."""
    of_mpt = {id_: v for (source, id_), v in VERDICTS.items() if source == "mpt"}
    held = {f"a100.30b.{n}" for n in (512, 1024, 2048, 4096)}
    held |= {f"a100.{size}.{n}" for size in ("7b", "13b") for n in (1024, 4096)}
    assert {id_ for id_, v in of_mpt.items() if v.evidence != "open"} == held
    assert min(v.error for id_, v in of_mpt.items() if id_ not in held) > 0.0


def test_mpts_gradients_have_the_bits_of_their_mode() -> None:
    """The column MP Mode is DEFAULT, sums of 32 bits, but for 70B on A100: PURE, of 16."""
    published, _ = load_published("mpt")
    narrow = {p.id: p.experiment.workload.get("gradient") for p in published.points}
    assert {id_ for id_, dtype in narrow.items() if dtype == "bf16"} == {"a100.70b.2048.x64"}
    assert set(narrow.values()) == {None, "bf16"}


def test_flexgen_is_reproduced_where_nothing_unpublished_decides() -> None:
    for model in ("opt-6.7b", "opt-30b", "opt-175b"):
        verdict = VERDICTS["flexgen", model]
        assert verdict.evidence == "assumed"
        assert abs(verdict.error) < 0.25
    # What kernels that unpack reach of the memory's rate is not published.
    assert {VERDICTS["flexgen", f"{m}.compressed"].evidence for m in ("opt-6.7b", "opt-175b")} == {
        "open"
    }


def test_what_rests_on_the_fitted_command_of_the_ssd_is_no_evidence() -> None:
    mine = {id_: v for (name, id_), v in VERDICTS.items() if name == "llm_in_a_flash"}
    # Bytes that follow from the popularity of another model's neurons rest on that alone.
    assumed = {"v1.windowing.read.popularity", "v1.windowing.dram.popularity"}
    assert {k for k, v in mine.items() if v.evidence == "assumed"} == assumed
    assert {v.evidence for k, v in mine.items() if k not in assumed} == {
        "calibrated", "internal", "open",
    }  # fmt: skip
    for row in ("rate.8KiB", "v1.windowing.io", "cpu_all.io", "cpu_speedup", "rtx_speedup"):
        assert mine[row].evidence == "calibrated", row
    assert {mine[f"v1.{row}.io"].evidence for row in ("naive", "hybrid")} == {"internal"}


def test_nothing_of_instinfer_is_predicted_and_the_inferred_rate_calibrates() -> None:
    mine = {id_: v for (name, id_), v in VERDICTS.items() if name == "instinfer"}
    assert {v.evidence for v in mine.values()} == {"assumed", "calibrated", "internal", "open"}
    for row in ("dense_vs_flexgen_bs64", "kv_time_reduction.insti_2csd", "kv_share.flexgen_dense"):
        assert mine[row].evidence == "calibrated", row
    assert mine["dense_vs_deepspeed_bs16"].evidence == "assumed"
    # The derived host path rests on how many threads copy, one to eight, which nothing publishes.
    derived = mine["dense_vs_flexgen_bs64.derived"]
    assert derived.evidence == "open"
    assert derived.low < 1.5
    assert derived.high > 8.0
    threads = "baseline.mapping.routes.kv.software.threads"
    assert {path: change for path, _, change in derived.matters}[threads] > 0.9
    assert threads in mine["kv_time_reduction.insti_1csd.derived"].reason
    for row in ("kv_share.insti_1csd", "scale20_dense"):
        assert any(c.value for c in mine[row].closing), row


def test_every_fact_of_instinfer_is_a_row(reference: Path) -> None:
    facts = read_facts(reference / "published" / "instinfer.yaml")
    published, _ = load_published("instinfer")
    _, missing = with_facts("instinfer", published, facts)
    assert missing == []
