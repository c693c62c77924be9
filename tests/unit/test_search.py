"""The search against the whole grid, which is enumerated here."""

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.pareto import costs, feasible, front_of, hypervolume
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study

NAME = "sn40l_search"
SHARE = 0.05


def enumerated(folder):
    return run_plan(load_study(NAME, {"strategy": {"kind": "grid"}}).plan, Options(out=folder))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    results = enumerated(tmp_path_factory.mktemp("grid"))
    return results.columns(), results.objectives


def share_of_volume(columns, grid):
    """Return the hypervolume as a share of the grid's: reference at the nadir plus 10 %."""
    whole, objectives = grid
    best = costs(whole, objectives)[front_of(whole, objectives)]
    low, high = best.min(axis=0), best.max(axis=0)
    reference = np.full(len(low), 1.1)
    found = costs(columns, objectives)[front_of(columns, objectives)]
    volumes = [hypervolume((x - low) / (high - low), reference) for x in (found, best)]
    return volumes[0] / volumes[1]


def test_the_grid_is_large_and_its_front_is_not_trivial(grid):
    columns, objectives = grid
    assert len(columns["point"]) >= 10_000
    assert len(front_of(columns, objectives)) >= 20
    assert {"ok", "infeasible"} <= set(columns["status"])
    assert feasible(columns).sum() < (columns["status"] == "ok").sum()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.proof) for seed in range(1, 10))]
)
def test_a_twentieth_of_the_points_finds_the_front(grid, tmp_path, seed):
    plan = load_study(NAME, {"strategy.seed": seed}).plan
    results = run_plan(plan, Options(out=tmp_path, workers=1))
    columns = results.columns()
    assert len(columns["point"]) <= SHARE * len(grid[0]["point"])
    assert share_of_volume(columns, grid) >= 0.95


def test_the_same_seed_gives_the_same_front_on_one_and_two_workers(tmp_path):
    settings = {"strategy.trials": 300, "strategy.seed": 3}
    frames = []
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        plan = load_study(NAME, settings).plan
        frames.append(run_plan(plan, Options(out=tmp_path / name, workers=workers)).frame())
    assert len(frames[0]) == 300
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], check_exact=True)
    other = load_study(NAME, {**settings, "strategy.seed": 4}).plan
    points = run_plan(other, Options(out=tmp_path / "other")).frame()["point"]
    assert points.tolist() != frames[0]["point"].tolist()


def test_a_search_uses_what_a_sweep_has_stored(tmp_path, grid):
    """Searching the enumerated grid's folder adds nothing; a search goes on where it stopped."""
    plan = load_study(NAME, {"strategy.trials": 200}).plan
    first = run_plan(plan, Options(out=tmp_path / "a"))
    parts = first.parts
    again = run_plan(plan, Options(out=tmp_path / "a"))
    assert again.parts == parts
    more = load_study(NAME, {"strategy.trials": 260}).plan
    longer = run_plan(more, Options(out=tmp_path / "a")).frame()
    fresh = run_plan(more, Options(out=tmp_path / "b")).frame()
    pd.testing.assert_frame_equal(longer, fresh, check_exact=True)


def test_stored_rows_are_those_of_the_grid(tmp_path, grid):
    frame = run_plan(load_study(NAME, {"strategy.trials": 100}).plan, Options(out=tmp_path)).frame()
    whole = grid[0]
    at = np.searchsorted(whole["point"], frame["point"])
    for name in ("workload.batch", "tokens_per_s", "price_usd", "status", "violation"):
        expected = pd.Series(whole[name][at], name=name)
        pd.testing.assert_series_equal(frame[name], expected, check_exact=True, check_dtype=False)


BASE = {
    "kind": "study",
    "base": {
        "machine": "sn40l-node",
        "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096},
    },
    "axes": {"workload.batch": {"log2": [1, 128]}, "mapping.fusion": ["none", "layer"]},
    "objectives": {"tokens_per_s": "max"},
    "strategy": {"kind": "optuna", "trials": 100, "population": 4},
}


def test_a_small_space_is_exhausted_and_the_search_ends(tmp_path):
    frame = run_plan(load_study(BASE).plan, Options(out=tmp_path)).frame()
    assert sorted(frame["point"]) == list(range(16))


def test_a_budget_below_a_generation_is_kept(tmp_path):
    plan = load_study(BASE, {"strategy.trials": 3}).plan
    assert len(run_plan(plan, Options(out=tmp_path)).frame()) == 3


def test_continuous_axes_are_searched(tmp_path):
    axes = {
        "machine.rdu.hbm.phy.bandwidth": {"range": ["1 TB/s", "4 TB/s"]},
        "workload.batch": {"range": [1, 500]},
    }
    data = {**BASE, "axes": axes, "strategy": {"kind": "optuna", "trials": 60, "population": 10}}
    frame = run_plan(load_study(data).plan, Options(out=tmp_path)).frame()
    assert len(frame) == 60
    assert frame["workload.batch"].eq(frame["workload.batch"].round()).all()
    best = frame.loc[frame["tokens_per_s"].idxmax()]
    assert best["machine.rdu.hbm.phy.bandwidth"] == 4e12
    assert best["workload.batch"] == 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"objectives": {}}, "objectives"), ({"axes": {}}, "axes")],
)
def test_what_a_search_needs(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_plan(load_study({**BASE, **changes}).plan, Options(out=tmp_path))


def test_where_nothing_fits_the_search_ends_without_a_front(tmp_path):
    base = {**BASE["base"], "machine": "rtx-4090"}
    base["workload"] = {**base["workload"], "model": "llama-3.1-405b"}
    data = {**BASE, "base": base, "axes": {"workload.batch": {"log2": [1, 128]}}}
    results = run_plan(load_study(data).plan, Options(out=tmp_path))
    assert set(results.frame()["status"]) == {"infeasible"}
