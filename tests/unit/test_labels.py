"""Are labels of mappings those that operators have, and is a word that none has told?"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.labels import LABELS, is_label
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.op_trace import save_ops
from opbyte.workloads.works import work_from

ROOT = Path(__file__).parents[2]
MODELS = sorted(path.stem for path in (ROOT / "workloads/catalog").glob("*.yaml"))
MACHINES = sorted(path.stem for path in (ROOT / "hw_models/catalog/machines").glob("*.yaml"))
DECODE = {"kind": "decode", "model": "llama-3.2-1b", "batch": 1, "context": 128}
TRAIN = {"kind": "train", "model": "llama-3.2-1b", "batch": 1, "sequence": 128}


def mapping(word, **others):
    return {
        "groups": {"gpus": "gpu"}, "launch": "graph", **others,
        "run": [{"ops": word, "unit": "gpu.sm"}, {"ops": "all", "unit": "gpu.sm"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("work", "word", "near"),
    [
        (TRAIN, "optimiser", "optimizer"), (DECODE, "attention_decod", "attention_decode"),
        (DECODE, "weight-t16", "weight-bf16"), (DECODE, "experts", "expert"),
    ],
)  # fmt: skip
def test_a_word_that_no_operator_has_is_told(work, word, near):
    with pytest.raises(ConfigError) as error:
        ob.simulate("a100-sxm-80gb", work, mapping(word))
    text = str(error.value)
    assert text.startswith(f"mapping.run.0.ops: no operator has this label, got {word}. ")
    assert f"Did you mean '{near}'? Labels, this work has: activation, " in text
    assert ("optimizer, " in text.split(" has: ")[1]) == (work is TRAIN)


def test_every_list_of_labels_is_checked():
    wrong = mapping(["gemm", "gemmm"], fusion=[["norm", "elementwize"]])
    with pytest.raises(ConfigError, match=r"run\.0\.ops: .*\n.*fusion\.0: .*'elementwise'"):
        ob.simulate("a100-sxm-80gb", DECODE, wrong)
    assist = load_machine("dgx-attacc-bank").mapping("decode_assisted")
    assert ("assist.ops", "ffn") in assist.words
    assist = assist.model_copy(
        update={"assist": assist.assist.model_copy(update={"ops": ("fnn",)})}
    )
    with pytest.raises(ConfigError, match=r"assist\.ops: .*'ffn'"):
        ob.simulate("dgx-attacc-bank", DECODE, assist)


def test_what_is_served_has_no_operators_before_it_runs():
    trace = pd.DataFrame({"arrival_s": [0.0], "input_tokens": [8], "output_tokens": [2]})
    work = ob.Serve("llama-3.2-1b", trace=trace)
    with pytest.raises(ConfigError, match=r"'expert'\? Labels, among all: adapter, "):
        ob.simulate("a100-sxm-80gb", work, mapping("expertt"))


@pytest.mark.parametrize("word", ["expert", "optimizer", "lm_head", "weight-int4", "score.decode1"])
def test_a_label_of_other_works_does_nothing(word):
    plain, named = (ob.simulate("a100-sxm-80gb", DECODE, mapping(w)) for w in ("all", word))
    assert named.seconds == plain.seconds


def test_a_trace_has_labels_of_its_own(tmp_path):
    (phase,) = work_from(DECODE).lower(Parallel())
    own = tuple(words | {"mine"} for words in phase.table.labels)
    save_ops(replace(phase.table, labels=own), tmp_path / "ops.parquet")
    trace = {"kind": "ops", "path": str(tmp_path / "ops.parquet")}
    assert ob.simulate("a100-sxm-80gb", trace, mapping("mine")).seconds > 0.0
    with pytest.raises(ConfigError, match="no operator has this label, got mine"):
        ob.simulate("a100-sxm-80gb", DECODE, mapping("mine"))


@pytest.mark.parametrize("model", MODELS)
def test_all_operators_have_labels_of_the_vocabulary(model):
    loaded, found = load_model(model), set[str]()
    step = {"batch": 4, "micro_batch": 1, "sequence": 64, "recompute": "full"}
    works = [
        ("prefill", {"batch": 2, "input": 64}),
        ("mixed", {"chunks": [[32, 10]], "decodes": 3, "context": 50}),
        ("decode", {"batch": 2, "context": 64}),
        ("train", {**step, "dropout": True}),
        ("train", {**step, "lora": {"rank": 4}}),
    ]
    for kind, fields in works:
        for parallel in (Parallel(), Parallel(tp=2, ep=2), Parallel(pp=2)):
            try:
                work = work_from({"kind": kind, "model": loaded, **fields})
                tables = [phase.table for phase in work.lower(parallel)]
                if kind == "train":
                    plan = work.plan(parallel, fused=False)
                    tables += [t for t in (plan.forward, plan.recompute, plan.backward) if t]
            except OpbyteError:
                continue  # no such work of this model
            found = found.union(*(words for table in tables for words in table.labels))
    assert found
    assert [word for word in found if not is_label(word)] == []


@pytest.mark.parametrize("machine", MACHINES)
def test_mappings_of_the_catalog_use_labels_of_the_vocabulary(machine):
    for chosen in load_machine(machine).config.mappings.values():
        assert [word for _, word in chosen.words if not is_label(word)] == []


def test_a_typo_is_no_label():
    for word in ("optimiser", "gem", "experts", "attention_", "weight-int44", "kv-", "_dx", ""):
        assert not is_label(word), word
    assert all(is_label(f"{word}_dx") and is_label(f"{word}.decode0") for word in LABELS)
