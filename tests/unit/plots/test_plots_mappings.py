"""Axes whose values are mappings: short names in legends, titles and files, and none for two."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from opbyte.sweeps.plots import study_figures
from opbyte.sweeps.plots._frames import cell, names_of
from opbyte.sweeps.plots._style import figure_of
from opbyte.sweeps.stored_designs import StoredDesigns
from opbyte.sweeps.study import load_study
from tests.unit.plots.figures import assert_readable, legend_texts

WORK = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 4096}
PRECISIONS = [
    {"weight": "bf16", "activation": "bf16", "kv": "bf16", "head": "bf16"},
    {"weight": "fp8", "activation": "bf16", "kv": "bf16", "head": "bf16"},
    {"weight": "fp8", "activation": "fp8", "kv": "fp8", "head": "bf16"},
]
MACHINES = {"machine": {"values": ["dgx-h100", "h100-x2"]}}
PRECISION = {"workload.precision": {"values": PRECISIONS}}


def study(axes, **objectives):
    base = {"machine": "dgx-h100", "workload": WORK}
    return load_study(
        {"kind": "study", "name": "s", "base": base, "axes": axes, "objectives": objectives}
    )


def figures(results):
    found = list(study_figures(results))
    assert found
    for drawn in found:
        assert_readable(drawn.ax)
        assert not any("{" in text for text in [*legend_texts(drawn.ax), drawn.caption, drawn.name])
    plt.close("all")
    return {drawn.name: drawn for drawn in found}


def spaced(text):
    return " ".join(text.split())


def test_a_legend_says_what_differs(tmp_path):
    axes = {**PRECISION, **MACHINES, "workload.batch": {"log2": [1, 8]}}
    found = figures(study(axes, tokens_per_s="max", tpot="min").run(tmp_path, workers=1))
    for drawn in found.values():
        texts = [spaced(text) for text in legend_texts(drawn.ax)]
        assert "weight fp8, activation bf16, kv bf16" in texts
        # A narrow figure would be all legend.
        assert drawn.ax.get_position().width > 0.5 * (1 if "front" in drawn.name else 0.9)
    front = figure_of(found["front_tpot_tokens-per-s"].ax)
    (legend,) = front.legends
    assert legend.get_window_extent().width < front.get_figwidth() * front.dpi


def test_a_title_is_wrapped_beside_the_legend(tmp_path):
    axes = {**MACHINES, "mapping.fusion": {"values": ["none", "attention"]}, **PRECISION,
            "workload.batch": {"log2": [1, 8]}}  # fmt: skip
    found = figures(study(axes, tpot="min").run(tmp_path, workers=1))
    last = found["tpot_batch_precision-weight-fp8-activation-fp8-kv-fp8"]
    title = last.ax.get_title(loc="left") or last.ax.get_title()
    assert spaced(title) == "Precision weight fp8, activation fp8, kv fp8"
    assert max(map(len, title.split("\n"))) <= 40


def test_works_of_one_kind_are_told_apart_and_found_again(tmp_path):
    works = [WORK, {**WORK, "model": "llama-3.1-70b"}, {**WORK, "kind": "prefill", "input": 4096}]
    del works[2]["context"]
    axes = {"workload": {"values": works}, **MACHINES}
    results = study(axes, seconds="min").run(tmp_path, workers=1)
    found = figures(results)
    ranked = [tick.get_text() for tick in found["seconds_ranking"].ax.get_yticklabels()]
    assert len(set(ranked)) == 6
    columns = results.columns()
    assert sorted(set(columns["workload"])) == sorted([str(works[0]), str(works[1]), "prefill"])
    stored = StoredDesigns(results)
    for row, work in enumerate(columns["workload"]):
        model = "llama-3.1-70b" if "70b" in work else "llama-3.1-8b"
        assert stored.point(columns, row).work.model.name == model


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["{'a': 1, 'b': 2}", "{'a': 1, 'b': 3}", "none"], ["b 2", "b 3", "none"]),
        (["{}", "{'a': {'b': [1, 2]}}"], ["unchanged", "a (b [1, 2])"]),
        (["{'a': 1}"], ["a 1"]),
        (["{not a mapping}", "{1, 2}"], ["{not a mapping}", "{1, 2}"]),
        ([1, 2], ["1", "2"]),
    ],
)
def test_names(values, names):
    frame = pd.DataFrame({"workload.x": values})
    assert [spaced(n) for n in names_of(frame, "workload.x").values()] == names


def test_a_cell_says_all_of_a_mapping():
    assert cell("{'generation': 5, 'lanes': 4}", "machine.link") == "generation 5, lanes 4"
