"""Layered prefill against its published numbers: served traces, played one point at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import yaml

from opbyte.sweeps.validation import Verdict, load_published, validate_source
from opbyte.sweeps.validation.facts import fact_of, read_facts
from opbyte.sweeps.validation.model import comparison
from opbyte.sweeps.validation.played import Memory

PUBLISHED, DOCUMENT = load_published("layered_prefill")
POINTS = {point.id: point for point in PUBLISHED.points}
MEMORY = Memory()


@cache
def value(name: str) -> float:
    """Return our value of a point, without what it rests on."""
    return float(comparison(PUBLISHED, DOCUMENT, POINTS[name], MEMORY).values({})[0])


def test_steps_with_prompts_are_faster_than_measured_and_layers_still_gain() -> None:
    """Open: the engines' MoE kernels at prefill are not ours. The order is the paper's."""
    for metric in ("ttft", "tpot", "e2e"):
        chunked, layered = (value(f"readme.{s}.{metric}_mean") for s in ("chunked", "layered"))
        assert layered < chunked
        assert chunked < POINTS[f"readme.chunked.{metric}_mean"].value
        assert value(f"readme.cut.{metric}_mean") == pytest.approx(100 * (1 - layered / chunked))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("ttft_max", 0, 70.5), ("e2e_max", 0, 41.5), ("expert_load.gpt.arxiv", 12, 39)],
)
def test_gains_inside_the_published_ranges(name: str, low: float, high: float) -> None:
    assert low <= value(name) <= high


def test_long_prompts_gain_most_in_bytes_of_experts() -> None:
    assert value("expert_load") > value("expert_load.qwen.sharegpt") > 0.0
    assert value("expert_load.gpt.arxiv") > value("expert_load.gpt.sharegpt") > 0.0


def test_a_batch_of_32_decodes_loads_what_uniform_routing_says() -> None:
    assert value("decode_sparsity") == pytest.approx(100 * (1 - (1 - 8 / 128) ** 32), rel=0.01)


def test_values_are_those_of_the_collected_facts(reference: Path) -> None:
    facts = read_facts(reference / "published" / "layered_prefill.yaml")
    found = {name: fact_of("layered_prefill", point, facts) for name, point in POINTS.items()}
    matched = {name: fact for name, fact in found.items() if fact is not None}
    assert {"ttft_max", "e2e_max", "expert_load", "decode_sparsity"} <= matched.keys()
    # Both engines' times of the README, a pair each: first token, later tokens, end to end.
    readme = {name for name in matched if name.startswith("readme.")}
    assert len(readme) >= 16
    for name, (_, value) in matched.items():
        ours = POINTS[name].value
        if isinstance(value, tuple):
            assert ours == value, name
        else:
            assert ours == pytest.approx(value, rel=1e-12), name
    rest = facts.keys() - {key for key, _ in matched.values()}
    assert all(".itl_" in key for key in rest), rest


def served(folder: Path, **over: object) -> Verdict:
    """Return the verdict of a made-up number of a small model."""
    workload = {
        "kind": "serve", "model": "llama-3.2-1b",
        "trace": {
            "kind": "trace", "requests": 20,
            "arrivals": {"kind": "poisson", "rate": "20 requests/s"},
            "lengths": {
                "input": {
                    "kind": "lognormal", "cv": 0.5,
                    "mean": {"value": 300, "source": "assumed: a guess", "range": [200, 400]},
                },
                "output": 16,
            },
        },
        "scheduler": {"kind": "layered", "max_batched_tokens": 1024, "groups": 4},
    }  # fmt: skip
    point = {
        "id": "one", "metric": "ttft_mean", "tolerance": 0.1,
        "experiment": {"machine": "h100-sxm-80gb", "workload": workload}, **over,
    }  # fmt: skip
    data = {
        "kind": "published", "source": {"title": "t", "target": "reported"}, "points": [point],
        "gaps": {"lengths": "lengths of prompts"},
    }  # fmt: skip
    path = folder / "one.yaml"
    path.write_text(yaml.safe_dump(data))
    return validate_source(str(path))[0]


def test_a_served_trace_names_what_it_rests_on(tmp_path: Path) -> None:
    verdict = served(tmp_path, value=0.01)
    matters = {path for path, *_ in verdict.matters}
    assert "workload.trace.lengths.input.mean" in matters
    assert all("source" not in path for path in matters)
    assert verdict.evidence == "assumed"
    assert verdict.low < verdict.simulated < verdict.high


def test_lengths_that_would_close_a_row_close_it(tmp_path: Path) -> None:
    gap = {
        "input": "lengths", "parameter": "workload.trace.lengths.input.mean", "range": [50, 3000],
    }  # fmt: skip
    first = served(tmp_path, value=0.01, gap=gap)
    target = 1.5 * first.simulated
    verdict = served(tmp_path, value=target, gap=gap)
    assert verdict.evidence == "open"
    (closing,) = verdict.closing
    assert float(closing.value) > 300


@pytest.mark.proof
def test_classes_and_what_would_close_the_open_rows() -> None:
    verdicts = {v.id: v for v in validate_source("layered_prefill")}
    assert all(v.ok for v in verdicts.values()), [v.reason for v in verdicts.values() if not v.ok]
    assumed = {name for name, v in verdicts.items() if v.evidence == "assumed"}
    assert assumed == {"ttft_max", "e2e_max", "expert_load.gpt.arxiv"}
    assert {v.evidence for v in verdicts.values()} == {"assumed", "open"}
    # One rate of the MoE kernels would close all rows of the README.
    rates = [
        float(c.value.split()[0])
        for name, v in verdicts.items()
        for c in v.closing
        if name.startswith("readme") and ".itl_" not in name and c.input == "kernels"
    ]
    readme = [n for n in verdicts if n.startswith("readme")]
    assert len(rates) == len([n for n in readme if ".itl_" not in n])
    assert 9.0 < min(rates) < max(rates) < 20.0
    # Uniform choices are an assumption, which every share of experts rests on.
    loads = [v for name, v in verdicts.items() if name.startswith(("expert_load", "decode_"))]
    assert all("workload.routing.skew" in {p for p, *_ in v.matters} for v in loads)
    # The abstract names no rate.
    assert verdicts["e2e_max"].low < 30 < 41 < verdicts["e2e_max"].high
    # One skew would close the share of experts of 32 decodes, and the ShareGPT row.
    skews = [verdicts[n].closing[0].value for n in ("decode_sparsity", "expert_load.qwen.sharegpt")]
    assert [float(s) for s in skews] == pytest.approx([1.1, 1.1], abs=0.15)
