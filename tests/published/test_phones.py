"""PowerInfer-2, SmallThinker and PowerInfer's CPU rows: facts, classes, and what decides them."""

from __future__ import annotations

from pathlib import Path

import pytest

from opbyte.core.config import load_document
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import simulate
from opbyte.sweeps.validation import Verdict, load_published, validate_source

SOURCES = ("powerinfer2", "smallthinker", "powerinfer_cpu_points")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Verdict]:
    return {v.id: v for source in SOURCES for v in validate_source(source)}


def test_every_fact_is_a_row(reference: Path) -> None:
    others = load_document(reference / "published" / "others.yaml", any_keys=True).data
    values: dict[str, float] = dict(others["powerinfer_cpu_points"]["results"])
    for source in SOURCES[:2]:
        for fact in others[source]["results"]:
            several = fact["value"] if isinstance(fact["value"], dict) else {"": fact["value"]}
            values |= {f"{fact['id']}.{k}".rstrip("."): v for k, v in several.items()}
    found = {}
    for source in SOURCES:
        for point in load_published(source)[0].points:
            if point.fact is not None:
                found[point.fact.id] = point.value
    assert found.keys() == values.keys()
    for name, value in found.items():
        assert value == values[name] or value == (values[name], None), name


def test_classes_and_what_is_open_says_why(verdicts: dict[str, Verdict]) -> None:
    for verdict in verdicts.values():
        assert verdict.ok, verdict.reason
        assert verdict.evidence != "open" or all(c.why for c in verdict.closing)
    # The rate of the PC's memory was raised after its dense rows were seen.
    assert all(v.evidence == "calibrated" for k, v in verdicts.items() if k.startswith("Relu"))
    assert verdicts["sparse.ratio"].evidence == "assumed"
    assert verdicts["sparse.ratio"].simulated == pytest.approx(1.588, rel=0.02)
    assert verdicts["mixtral47b_19GB"].evidence == "assumed"
    assert verdicts["card.i9.4b.1GB"].evidence == "open", "two errors may cancel"


def test_quantiles_of_other_models_span_both_sizes_of_memory() -> None:
    work = {
        "kind": "decode", "model": "turbosparse-mixtral-47b", "batch": 1, "context": 256,
        "precision": {"weight": "q4.5", "activation": "fp16", "kv": "fp16"},
    }  # fmt: skip
    machine = load_machine("oneplus-12")
    for name, measured in (("clusters", 11.68), ("clusters-7gb", 2.13)):
        mapping = machine.mapping(name)
        assert mapping.neurons is not None
        assert mapping.neurons.popularity is not None
        rates = []
        for top in (0.17, 0.43):
            one = mapping.neurons.popularity
            popularity = one.model_copy(update={"top": type(one.top)(top, one.top.dimension)})
            neurons = mapping.neurons.model_copy(update={"popularity": popularity})
            chosen = mapping.model_copy(update={"neurons": neurons})
            rates.append(simulate(machine, work, chosen).tokens_per_s)
        assert rates[1] < measured < rates[0]
