"""The report: what it says, that it opens offline, that nothing in it runs away."""

import builtins
import html.parser
import itertools
import json
import re
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.plots import study_plots
from opbyte.sweeps.plots._frames import frame_of
from opbyte.sweeps.report import report, write_report
from opbyte.sweeps.report._evidence import evidence, kind_of
from opbyte.sweeps.report._findings import findings
from opbyte.sweeps.store import open_results

BATCHES = [1, 2, 4, 8, 16]
RATES = [0.8e12, 1.6e12, 2.4e12, 3.2e12]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def store(folder, frame, study, axes):
    """Write results as a finished sweep leaves them."""
    (folder / "points").mkdir(parents=True)
    meta = {
        "name": study.get("name", folder.name), "key": "k" * 16, "code": "c" * 16,
        "version": "0.1.0", "study": study, "axes": axes, "units": {},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(meta))
    frame = frame.assign(point=range(len(frame)))
    frame.to_parquet(folder / "points" / "part-0.parquet", index=False)
    return folder


def grid():
    """Throughput doubles with the batch until 8, and is three times higher when fused."""
    rows = []
    for fusion, batch, rate in itertools.product(["none", "layer"], BATCHES, RATES):
        fits = not (fusion == "none" and batch == 16)
        speed = min(batch, 8) * rate / 1e9 * (3 if fusion == "layer" else 1)
        rows.append(
            {
                "mapping.fusion": fusion,
                "workload.batch": batch,
                "machine.rdu.hbm.phy.bandwidth": rate,
                "tokens_per_s": speed if fits else np.nan,
                "joules_per_token": 1 / batch + rate / 1e13 if fits else np.nan,
                "status": "ok" if fits else "infeasible",
                "reason": "" if fits else "kv does not fit in rdu.hbm",
            }
        )
    return pd.DataFrame(rows)


STUDY = {
    "kind": "study",
    "name": "three-axes",
    "base": {"machine": "sn40l-node", "workload": {"kind": "decode", "model": "llama-3.1-8b"}},
    "axes": {
        "mapping.fusion": {"values": ["none", "layer"]},
        "workload.batch": {"log2": [1, 16]},
        "machine.rdu.hbm.phy.bandwidth": {
            "values": ["0.8 TB/s", "1.6 TB/s", "2.4 TB/s", "3.2 TB/s"]
        },
    },
    "objectives": {"tokens_per_s": "max", "joules_per_token": "min"},
    "constraints": ["tpot <= 20 ms"],
}


@pytest.fixture
def results(tmp_path):
    return store(tmp_path / "three-axes", grid(), STUDY, list(STUDY["axes"]))


# -- figures of a study ---------------------------------------------------------------------------


def test_a_study_gets_its_figures_with_numbers_beside_them(results):
    paths = study_plots(results)
    names = {p.stem for p in paths}
    assert "front_joules-per-token_tokens-per-s" in names
    assert "tokens-per-s_batch" in names
    assert "joules-per-token_rdu-hbm-phy-bandwidth" in names
    for path in paths:
        assert path.parent == results / "plots"
        assert path.with_suffix(".pdf").stat().st_size > 2000
        numbers = pd.read_csv(path.with_suffix(".csv"))
        assert len(numbers) == 40, "infeasible points are in the numbers too"
    assert not plt.get_fignums(), "figures are closed"


def test_work_is_given_and_designs_are_chosen(tmp_path):
    """What is left over of the workload gets a figure for each value, never the best of them."""
    rows = [
        {"machine": m, "workload.count": c, "workload.batch": b, "workload.output": o,
         "tokens_per_s": float(c * b * o), "seconds": 1.0 / c, "status": "ok"}
        for m in "ab" for c in range(1, 6) for b in (1, 8) for o in (20, 200)
    ]  # fmt: skip
    axes = ["machine", "workload.count", "workload.batch", "workload.output"]
    study = {
        "base": {"workload": {"kind": "coe"}},
        "objectives": {"workload.count": "max", "tokens_per_s": "max"},
    }
    folder = store(tmp_path / "s", pd.DataFrame(rows), study, axes)
    names = {p.stem for p in study_plots(folder)}
    assert "tokens-per-s_count_output-20-tokens" in names
    assert "seconds_count_output-200-tokens" in names, "the latency of a Composition of Experts"
    assert not any(n.startswith("count_") for n in names), "an axis is not drawn against itself"
    numbers = pd.read_csv(folder / "plots" / "tokens-per-s_count_output-20-tokens.csv")
    assert numbers["tokens_per_s"].max() == 5 * 8 * 20
    text = "\n".join(findings(pd.DataFrame(rows), study, axes))
    assert "Highest number of experts: 5 at machine a" in text
    assert "<h2>The front</h2>" in write_report(folder).read_text()


def test_a_study_of_names_only_gets_bars(tmp_path):
    frame = pd.DataFrame(
        {"machine": ["a", "b", "c"], "tokens_per_s": [3.0, 9.0, 1.0], "status": "ok"}
    )
    study = {"objectives": {"tokens_per_s": "max"}, "axes": {"machine": {"values": ["a"]}}}
    (path,) = study_plots(store(tmp_path / "s", frame, study, ["machine"]))
    assert path.stem == "tokens-per-s_ranking"


@pytest.mark.parametrize("names", [["$\\frac$", "$x_{$"], ["$$", "5 $"], ["$ 5 to $ 9", "\\$"]])
@pytest.mark.parametrize("numbers", [(1.0,), (1.0, 2.0, 4.0)])
def test_dollars_in_names_are_no_formulas(tmp_path, names, numbers):
    rows = [{"machine": n, "workload.batch": b} for n in names for b in numbers]
    frame = pd.DataFrame(rows).assign(status="ok")
    frame["tokens_per_s"] = np.arange(len(frame)) + 1.0
    frame["tpot"] = 1.0 / frame["tokens_per_s"]
    axes = {"machine": {"values": names}, "workload.batch": {"values": list(numbers)}}
    study = {"objectives": {"tokens_per_s": "max", "tpot": "min"}, "axes": axes}
    folder = store(tmp_path / "s", frame, study, list(axes))
    assert study_plots(folder)
    assert names[0] in write_report(folder).read_text()


def test_a_study_without_a_feasible_point_has_no_figures_but_a_report(tmp_path):
    frame = grid().assign(tokens_per_s=np.nan, joules_per_token=np.nan, status="infeasible")
    folder = store(tmp_path / "s", frame, STUDY, list(STUDY["axes"]))
    assert study_plots(folder) == []
    page = write_report(folder).read_text()
    assert "0 of 40 points are feasible" in page


# -- findings -------------------------------------------------------------------------------------


def test_findings_give_the_numbers_of_the_grid():
    said = findings(grid(), STUDY, list(STUDY["axes"]))
    text = "\n".join(said)
    assert said[0] == (
        "36 of 40 points are feasible; 4 infeasible, most often because kv does not fit in "
        "rdu.hbm (4 points)."
    )
    # 8 * 3.2e12 / 1e9 * 3; batch 16 is as fast and takes less energy than 8.
    assert "Highest throughput: 76,800 tokens/s at fusion layer, batch size 16" in text
    # 1/16 + 0.08
    assert "Lowest energy per token: 142 mJ at fusion layer, batch size 16" in text
    assert "none: feasible up to batch size 8, not at 16." in text
    assert "Fusion layer, all else equal, beats none by a factor of 3 in throughput." in text
    assert "from 800 GB/s to 3.2 TB/s, all else equal: throughput changes by a factor of 4." in text


def test_of_points_that_cost_the_same_the_fastest_is_named():
    frame = pd.DataFrame(
        {
            "workload.batch": [1, 2, 4],
            "price_usd": [7.0, 7.0, 9.0],
            "tokens_per_s": [10.0, 20.0, 30.0],
            "status": "ok",
        }
    )
    study = {"objectives": {"tokens_per_s": "max", "price_usd": "min"}}
    text = "\n".join(findings(frame, study, ["workload.batch"]))
    assert "Lowest price: 7 USD at batch size 2" in text
    assert "Highest throughput: 30 tokens/s at batch size 4" in text


def test_points_beyond_a_constraint_are_counted_apart():
    frame = grid().assign(violation=lambda f: (f["tokens_per_s"] > 50_000) * 1.0)
    said = findings(frame_of(frame)[0], STUDY, list(STUDY["axes"]))
    # 8 * 3 * 3.2e3 and 8 * 3 * 2.4e3 are the only speeds above, at batch 8 and 16.
    assert said[0].startswith("32 of 40 points are feasible; 4 infeasible, 4 beyond a constraint")


def test_a_named_axis_of_a_minimised_metric_compares_the_right_way_round():
    frame = pd.DataFrame(
        {"machine": ["slow", "fast"] * 2, "workload.batch": [1, 1, 2, 2], "tpot": [4.0, 2, 12, 3],
         "status": "ok"}
    )  # fmt: skip
    study = {"objectives": {"tpot": "min"}}
    text = "\n".join(findings(frame, study, ["machine", "workload.batch"]))
    assert (
        "Machine fast, all else equal, beats slow by a factor of 2 to 4 (median 3) in time" in text
    )


def test_an_axis_without_effect_is_said_to_have_none():
    frame = pd.DataFrame({"workload.batch": [1, 2], "tpot": [1.0, 1.0], "status": "ok"})
    text = "\n".join(findings(frame, {"objectives": {"tpot": "min"}}, ["workload.batch"]))
    assert "stays within 1 %" in text


# -- evidence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("SN40L paper, Table II", "published"),
        ("assumed: unpublished; four stacks", "assumed"),
        ("calibrated: switch ratios of Table V", "calibrated"),
        ("recalled, not read again", "assumed"),
        (None, "unsourced"),
        ("", "unsourced"),
    ],
)
def test_sources_are_told_apart(source, kind):
    assert kind_of(source) == kind


def test_evidence_counts_every_parameter_once():
    from opbyte.hw_models.machine import load_machine

    (found,) = evidence(STUDY)
    kinds = ("published", "assumed", "calibrated", "unsourced")
    assert sum(len(found[k]) for k in kinds) == len(load_machine("sn40l-node").parameters)
    assert "fill.bandwidth" in found["calibrated"]
    assert "rdu.hbm.phy.bandwidth" in found["published"]


def test_evidence_names_every_machine_of_a_study_and_survives_a_lost_one():
    study = {
        "base": {"machine": "sn40l-node"},
        "axes": {"machine": {"values": ["dgx-h100", "sn40l-node", "gone.yaml"]}},
    }
    found = evidence(study)
    assert [e["name"] for e in found] == ["sn40l-node", "dgx-h100", "gone.yaml"]
    assert [bool(e["problem"]) for e in found] == [False, False, True]


# -- page -----------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Collects what a browser would load and run, and whether tags are closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})
    CDATA_CONTENT_ELEMENTS = ("script", "style")

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.scripts, self.tags = [], [], Counter(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.scripts[dict(attrs).get("type", "")] += tag == "script"
        self.scripts += Counter()
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "poster")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def test_the_page_loads_nothing_from_anywhere(results):
    page = parsed(write_report(results).read_text())
    assert page.loads
    assert all(v.startswith("data:image/png;base64,") for v in page.loads)
    assert "link" not in page.tags


def test_the_page_holds_question_front_figures_evidence_and_commands(results, tmp_path):
    out = write_report(results, tmp_path / "deep" / "page.html")
    assert out == tmp_path / "deep" / "page.html"
    text = out.read_text()
    for wanted in (
        "<h1>three-axes</h1>", "tpot &lt;= 20 ms", "max tokens_per_s", "36 of 40 points",
        "sn40l-node", "fill.bandwidth", "opbyte sweep study.yaml", "0.8 TB/s", "k" * 16,
    ):  # fmt: skip
        assert wanted in text, wanted
    names = {p.stem for p in study_plots(results)}
    assert {n for n in names if f'id="{n}"' in text} == names


def test_the_front_table_is_the_front(results):
    frame = open_results(results).frame()
    ok = frame[frame["status"] == "ok"]
    speed, energy = ok["tokens_per_s"].to_numpy(), ok["joules_per_token"].to_numpy()
    beats = [
        (((speed >= s) & (energy < e)) | ((speed > s) & (energy <= e))).any()
        for s, e in zip(speed, energy, strict=True)
    ]
    expected = len(ok) - sum(beats)
    text = write_report(results, designs=False).read_text()
    table = text[text.index("<h2>The front</h2>") :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    assert table.count("<tr>") == expected


def test_hostile_names_are_shown_and_not_run(tmp_path):
    evil = "<script>alert(1)</script>"
    frame = pd.DataFrame(
        {"machine": [evil, "b"], "tpot": [1.0, 2.0], "joules": [2.0, 1.0], "status": "ok"}
    )
    study = {
        "name": "s", "description": "<img src=x onerror=alert(1)>",
        "objectives": {"tpot": "min", "joules": "min"}, "axes": {"machine": {"values": [evil]}},
    }  # fmt: skip
    text = write_report(store(tmp_path / "s", frame, study, ["machine"])).read_text()
    assert evil not in text
    page = parsed(text)
    assert page.scripts == {"application/json": 1, "text/plain": 7, "": 1}, "and none of theirs"
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_without_the_extra_the_error_says_what_to_install(results, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "jinja2":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=re.escape("pip install 'opbyte[report]'")):
        write_report(results)


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no results in this folder"):
        write_report(tmp_path)


def test_designs_are_simulated_again_unless_not_wanted(tmp_path):
    workload = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 2048}
    study = {**STUDY, "base": {"machine": "sn40l-node", "workload": workload}}
    results = store(tmp_path / "s", grid(), study, list(STUDY["axes"]))
    text = write_report(results).read_text()
    # The points are made up: simulated again, the study answers otherwise, and the page says so.
    assert "Simulated again it answers otherwise than the store: Throughput: 76,800" in text
    assert "another version of the program" in text
    assert "Evidence class: <strong>" in text
    less = write_report(results, designs=False).read_text()
    assert "were not simulated again" in less
    assert len(less) < len(text)


def test_a_study_that_can_not_be_simulated_again_says_why(tmp_path):
    study = {**STUDY, "base": {**STUDY["base"], "machine": "gone.yaml"}}
    text = write_report(store(tmp_path / "s", grid(), study, list(STUDY["axes"]))).read_text()
    assert "The study could not be simulated again here: " in text
    assert "<h2>The front</h2>" in text


def test_a_folder_without_points_has_a_page(tmp_path):
    folder = store(tmp_path / "s", grid(), STUDY, list(STUDY["axes"]))
    for part in (folder / "points").iterdir():
        part.unlink()
    page = report(folder)
    text = page.path.read_text()
    parsed(text)
    assert (page.points, page.shown, page.front) == (0, 0, 0)
    assert "There is no point yet." in text
    assert "<h2>Explore</h2>" not in text


@pytest.mark.parametrize("objectives", [{}, {"tokens_per_s": "max"}])
def test_studies_of_no_and_of_one_objective_have_pages(tmp_path, objectives):
    study = {**STUDY, "objectives": objectives}
    page = report(store(tmp_path / "s", grid(), study, list(STUDY["axes"])))
    text = page.path.read_text()
    parsed(text)
    assert page.front == len(objectives)
    assert page.size == page.path.stat().st_size
    assert ("the study names no objective" in text) != bool(objectives)


def test_a_shipped_study_is_seen_into(tmp_path):
    """A real sweep: what is simulated again is what is stored, and has its timeline."""
    from opbyte.sweeps.study import load_study

    folder = tmp_path / "quick"
    study = {
        "kind": "study",
        "name": "quick",
        "base": {
            "machine": "sn40l-node",
            "workload": {"kind": "decode", "model": "llama-3.1-8b", "context": 1024},
        },
        "axes": {"workload.batch": [1, 4, 16, 64], "mapping.fusion": ["none", "layer"]},
        "objectives": {"tokens_per_s": "max", "tpot": "min"},
        "strategy": {"kind": "optuna", "trials": 8},
    }
    from opbyte.sweeps.runner import Options
    from opbyte.sweeps.search.run import search_plan

    search_plan(load_study(study).plan, Options(out=folder, executor="serial"))
    text = write_report(folder).read_text()
    for wanted in (
        "Hypervolume over the search", "Importance of the axes", "Its longest operators",
        "Its timeline", "Sobol indices", "Evidence class: <strong>assumed</strong>",
        "Time by operator",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "answers otherwise" not in text
    assert "another version" not in text
    assert "Could not be simulated" not in text


def test_a_page_says_what_the_budget_was(tmp_path):
    study = {**STUDY, "budget": {"machine": "dgx-h100", "count": 20}}
    page = write_report(store(tmp_path / "r", grid(), study, list(STUDY["axes"])), designs=False)
    assert "{machine: dgx-h100, count: 20}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 0.0, -1.0, 1e300])
def test_findings_survive_odd_numbers(odd):
    frame = grid()
    frame.loc[0, "tokens_per_s"] = odd
    assert findings(frame, STUDY, list(STUDY["axes"]))


def test_findings_leave_out_axes_that_mean_nothing_for_a_point():
    frame = grid().assign(**{"machine.csd.count": np.nan, "mapping": ""})
    said = " ".join(findings(frame, STUDY, [*STUDY["axes"], "machine.csd.count", "mapping"]))
    assert "fusion layer" in said
    assert "n/a" not in said
    assert "mapping ," not in said
