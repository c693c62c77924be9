"""Where a search begins, and what it leaves for Optuna's dashboard."""

import json

import optuna
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.search.dashboard import export_dashboard
from opbyte.sweeps.study import load_study

STUDY = {
    "kind": "study",
    "name": "start",
    "base": {
        "machine": "sn40l-node",
        "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096},
    },
    "axes": {
        "machine.rdu.hbm.phy.bandwidth": {"range": ["1 TB/s", "4 TB/s"], "steps": 7},
        "mapping.fusion": ["none", "layer"],
        "workload.batch": {"log2": [1, 4096]},
    },
    "objectives": {"tokens_per_s": "max", "price_usd": "min"},
    "constraints": ["tpot <= 8 ms"],
    "strategy": {"kind": "optuna", "trials": 8, "population": 8},
}
DESIGN = {
    "machine.rdu.hbm.phy.bandwidth": "2.5 TB/s", "mapping.fusion": "layer", "workload.batch": 64,
}  # fmt: skip


def searched(folder, **strategy):
    data = {**STUDY, "strategy": {**STUDY["strategy"], **strategy}}
    return run_plan(load_study(data).plan, Options(out=folder, workers=1))


def test_a_given_design_is_played_first(tmp_path):
    frame = searched(tmp_path, trials=1, designs=[DESIGN]).frame()
    assert len(frame) == 1
    assert frame["workload.batch"][0] == 64
    assert frame["machine.rdu.hbm.phy.bandwidth"][0] == 2.5e12
    assert frame["mapping.fusion"][0] == "layer"


def test_a_given_design_is_played_first_at_two_levels(tmp_path):
    data = {**STUDY, "fidelity": "event"}
    data["strategy"] = {**STUDY["strategy"], "trials": 1, "designs": [DESIGN]}
    frame = run_plan(load_study(data).plan, Options(out=tmp_path, workers=1)).frame()
    assert frame["workload.batch"].tolist() == [64]


def test_a_search_begins_with_the_front_of_other_results(tmp_path):
    """Results of other steps: the nearest of ours."""
    axes = {**STUDY["axes"], "machine.rdu.hbm.phy.bandwidth": ["1.1 TB/s", "3.9 TB/s"]}
    grid = {**STUDY, "axes": axes, "strategy": {"kind": "grid"}}
    old = run_plan(load_study(grid).plan, Options(out=tmp_path / "old", workers=1)).frame()
    best = old[(old["status"] == "ok") & (old["violation"] == 0)]["tokens_per_s"].max()
    new = searched(tmp_path / "new", trials=4, results=[str(tmp_path / "old")]).frame()
    assert set(new["machine.rdu.hbm.phy.bandwidth"]) <= {1e12, 4e12}
    fine = new[(new["status"] == "ok") & (new["violation"] == 0)]
    assert fine["tokens_per_s"].max() >= best


def test_everything_wrong_with_a_start_is_told_at_once(tmp_path):
    designs = [
        {**DESIGN, "workload.batch": 3},
        {"workload.btach": 1, "mapping.fusion": "none", "workload.batch": 1},
    ]
    with pytest.raises(ConfigError) as caught:
        searched(tmp_path / "x", designs=designs, results=[str(tmp_path / "nowhere")])
    text = str(caught.value)
    for part in (
        "strategy.designs.0.workload.batch: the axis never has this value, got 3. It has 1, 2, 4",
        "Did you mean 'workload.batch'",
        "machine.rdu.hbm.phy.bandwidth is missing",
        "`machine.rdu.hbm.phy.bandwidth: 1 TB/s`",
        "strategy.results.0",
    ):
        assert part in text, text
    assert not (tmp_path / "x").exists()


def test_the_dashboard_holds_every_point(tmp_path):
    results = searched(tmp_path / "out", trials=40)
    frame = results.frame()
    assert {"ok", "infeasible"} <= set(frame["status"])
    file = tmp_path / "points.log"
    assert export_dashboard(results, file) == len(frame)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    study = optuna.load_study(study_name="start", storage=storage)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(study.trials) == len(frame)
    for trial, (_, row) in zip(study.trials, frame.iterrows(), strict=True):
        if row["status"] == "ok":
            assert trial.values == [row["tokens_per_s"], row["price_usd"]]
            assert trial.params["workload.batch"] == row["workload.batch"]
            assert trial.user_attrs["tpot"] == row["tpot"]
        else:
            assert trial.state.name == "FAIL"
            assert trial.user_attrs["reason"] == row["reason"]
    broken = (frame["violation"] > 0).sum()
    assert broken > 0
    kept = frame[(frame["status"] == "ok") & (frame["violation"] == 0)]
    assert max(t.values[0] for t in study.best_trials) == kept["tokens_per_s"].max()
    with pytest.raises(ConfigError, match="exists already"):
        export_dashboard(results, file)


def test_the_folder_says_how_the_search_went(tmp_path):
    searched(tmp_path)
    about = json.loads((tmp_path / "search.json").read_text())
    assert about == {"screen": "none", "played": 8, "budget": 8}
