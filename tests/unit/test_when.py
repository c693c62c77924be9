"""Axes that mean something only at some values of another: points, rows and mistakes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.search.board import settled
from opbyte.sweeps.space import Line, active, folded, grid_space
from opbyte.sweeps.study import load_study


@st.composite
def spaces(draw):
    """Return lines, some of which depend on some before them."""
    lines = []
    for i in range(draw(st.integers(1, 5))):
        when = []
        for earlier in lines:
            if draw(st.booleans()) and draw(st.booleans()):
                places = draw(st.sets(st.integers(0, earlier.size - 1), min_size=1))
                when.append((earlier.path, tuple(sorted(places))))
        lines.append(Line(f"workload.x{i}", draw(st.integers(1, 4)), when=tuple(when)))
    return tuple(lines)


def twin_points(lines):
    """Return all points that differ in an axis that means something."""
    found = set()
    for point in itertools.product(*(range(line.size) for line in lines)):
        codes, used = {}, {}
        for line, code in zip(lines, point, strict=True):
            used[line.path] = all(used[p] and codes[p] in places for p, places in line.when)
            codes[line.path] = code if used[line.path] else 0
        found.add(tuple(codes.values()))
    return found


@settings(max_examples=80, deadline=None)
@given(spaces(), st.integers(1, 50), st.sets(st.integers(0, 4)))
def test_a_grid_has_every_point_that_differs_once(lines, most, slow):
    space = grid_space(lines)
    expected = twin_points(lines)
    assert space.count == len(expected)
    named = frozenset(f"workload.x{i}" for i in slow)
    ids = np.concatenate([np.zeros(0, np.int64), *space.portions(named, most)])
    assert len(np.unique(ids)) == len(ids) == space.count
    codes = space.codes(ids)
    rows = zip(*(codes[line.path].tolist() for line in lines), strict=True)
    assert set(rows) == expected


@settings(max_examples=50, deadline=None)
@given(spaces(), st.integers(0, 2**32 - 1))
def test_folding_points_and_one_point_agree(lines, seed):
    rng = np.random.default_rng(seed)
    codes = {line.path: rng.integers(0, line.size, 20) for line in lines}
    whole = folded(lines, codes)
    for i in range(20):
        one = settled(lines, tuple(float(codes[line.path][i]) for line in lines))
        assert one == tuple(float(whole[line.path][i]) for line in lines)
    again = folded(lines, whole)
    assert all((again[p] == whole[p]).all() for p in whole)
    used = active(lines, whole)
    assert set(used) == {line.path for line in lines if line.when}


STUDY = {
    "kind": "study",
    "base": {
        "machine": "sn40l-node",
        "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 4, "context": 1024},
    },
    "axes": {
        "machine": ["sn40l-node", "dgx-h100"],
        "machine.rdu.hbm.phy.bandwidth": {
            "values": ["1.8 TB/s", "3.6 TB/s"],
            "when": {"machine": "sn40l-node"},
        },
        "mapping.fusion": {"values": ["none", "layer"], "when": {"machine": ["sn40l-node"]}},
        "workload.batch": {"values": [2, 8], "when": {"machine": "dgx-h100"}},
    },
    "objectives": {"tokens_per_s": "max", "price_usd": "min"},
}


def test_rows_hold_what_was_simulated(tmp_path):
    """A part of one machine alone is an axis there; elsewhere its cell is empty."""
    frame = run_plan(load_study(STUDY).plan, Options(out=tmp_path, workers=1)).frame()
    assert len(frame) == 2 * 2 + 2
    assert (frame["status"] == "ok").all()
    here = frame["machine"] == "sn40l-node"
    assert frame.loc[here, "workload.batch"].isna().all()
    assert frame.loc[~here, "machine.rdu.hbm.phy.bandwidth"].isna().all()
    assert (frame.loc[~here, "mapping.fusion"] == "").all()
    alone = load_study(
        {**STUDY, "axes": {"mapping.fusion": ["none", "layer"],
                           "machine.rdu.hbm.phy.bandwidth": ["1.8 TB/s", "3.6 TB/s"]}}
    ).plan  # fmt: skip
    plain = run_plan(alone, Options(out=tmp_path / "plain", workers=1)).frame()
    np.testing.assert_allclose(
        np.sort(frame.loc[here, "tokens_per_s"]), np.sort(plain["tokens_per_s"]), rtol=1e-12
    )


@pytest.mark.parametrize("kind", ["random", "sobol"])
def test_samples_are_folded_too(tmp_path, kind):
    plan = load_study({**STUDY, "strategy": {"kind": kind, "points": 16}}).plan
    frame = run_plan(plan, Options(out=tmp_path, workers=1)).frame()
    assert (frame["workload.batch"].isna() == (frame["machine"] == "sn40l-node")).all()


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3", "tpe", "qmc", "gp", "random"])
def test_every_sampler_searches_a_conditional_space(tmp_path, sampler):
    strategy = {"kind": "optuna", "trials": 6, "population": 4, "sampler": sampler}
    frames = [
        run_plan(load_study({**STUDY, "strategy": strategy}).plan, Options(out=out, workers=1))
        .frame().to_csv()
        for out in (tmp_path / "a", tmp_path / "b")
    ]  # fmt: skip
    assert frames[0] == frames[1]
    assert frames[0].count("\n") == 7


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"values": [1, 2], "when": {"workload.contxt": 5}}, "stands before workload.batch"),
        ({"values": [1, 2], "when": {"machine": "dgx-a100"}}, "never has this value.*sn40l-node"),
        ({"values": [1, 2], "when": {}}, "at least 1 entries"),
    ],
)
def test_wrong_conditions(axis, message):
    axes = {**STUDY["axes"], "workload.batch": axis}
    with pytest.raises(ConfigError, match=message):
        load_study({**STUDY, "axes": axes})


def test_all_wrong_conditions_are_told_at_once():
    axes = {
        **STUDY["axes"],
        "workload.batch": {
            "values": [1],
            "when": {"machine": ["x", "y"], "mapping.fusoin": "none"},
        },
    }
    with pytest.raises(ConfigError) as caught:
        load_study({**STUDY, "axes": axes})
    assert len(caught.value.problems) == 3
    assert "mapping.fusion" in str(caught.value)


def test_what_must_mean_something_everywhere():
    objectives = {"workload.batch": "max", "tokens_per_s": "max"}
    links = {"workload.context": "workload.batch * 64"}
    with pytest.raises(ConfigError) as caught:
        load_study({**STUDY, "objectives": objectives, "derive": links})
    text = str(caught.value)
    assert "an objective must mean something at every point" in text
    assert "can not read an axis that has a `when`" in text
