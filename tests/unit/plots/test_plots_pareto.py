"""Figures: the front, what it leaves out, and who is named on it."""

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps import plots
from opbyte.sweeps.plots._pareto import front_mask, knee
from tests.unit.plots.figures import assert_readable, legend_texts, points_frame


def step_line(ax):
    (line,) = [x for x in ax.lines if x.get_drawstyle().startswith("steps")]
    return line


def test_front_is_a_step_line_through_the_points_that_nothing_beats():
    ax = plots.pareto(points_frame(), "tpot", "joules_per_token")
    line = step_line(ax)
    np.testing.assert_array_equal(line.get_xdata(), [1e-3, 2e-3, 4e-3, 8e-3])
    np.testing.assert_array_equal(line.get_ydata(), [8.0, 3.0, 1.0, 0.9])
    # Between 1 ms and 2 ms only the point at 1 ms is in reach: its energy holds.
    assert line.get_drawstyle() == "steps-post"
    assert_readable(ax)


def test_steps_of_a_maximised_axis_run_the_other_way():
    frame = pd.DataFrame({"tokens_per_s": [1.0, 2.0, 3.0], "joules": [1.0, 2.0, 4.0]})
    line = step_line(plots.pareto(frame, "tokens_per_s", "joules"))
    # More than 1 token/s needs the next point already: its energy holds to the left of it.
    assert line.get_drawstyle() == "steps-pre"
    np.testing.assert_array_equal(line.get_ydata(), [1.0, 2.0, 4.0])


def test_infeasible_and_missing_points_are_told_apart_in_the_legend():
    texts = legend_texts(plots.pareto(points_frame(), "tpot", "joules_per_token"))
    assert "breaks a constraint" in texts
    assert "1 of 7 points has no result" in texts
    assert "front (4 points)" in texts


def test_an_infeasible_point_is_never_on_the_front():
    frame = points_frame()
    free = frame.assign(status="ok")
    mask = front_mask(free, {"tpot": "min", "joules_per_token": "min"}, np.arange(7) < 6)
    assert mask[5], "without its status it would win"
    ax = plots.pareto(frame, "tpot", "joules_per_token")
    assert 0.5e-3 not in step_line(ax).get_xdata()


def test_a_point_beyond_a_constraint_is_drawn_but_not_on_the_front():
    frame = points_frame().assign(violation=[0.0, 0.0, 3.0, 0.0, 0.0, 0.0, np.nan])
    ax = plots.pareto(frame, "tpot", "joules_per_token")
    np.testing.assert_array_equal(step_line(ax).get_xdata(), [1e-3, 2e-3, 8e-3])
    assert "breaks a constraint" in legend_texts(ax)


def test_known_designs_and_the_knee_are_named():
    ax = plots.pareto(points_frame(), "tpot", "joules_per_token", label="known")
    names = [t.get_text() for t in ax.texts]
    assert "SN40L" in names
    assert_readable(ax)
    unnamed = plots.pareto(points_frame(), "tpot", "joules_per_token")
    assert any(t.get_text().startswith("knee: ") for t in unnamed.texts)


def test_colour_by_name_gives_each_name_its_marker():
    ax = plots.pareto(points_frame(), "tpot", "joules_per_token", color="machine")
    texts = legend_texts(ax)
    assert {"a", "b"} <= set(texts)
    assert_readable(ax)


def test_colour_by_many_numbers_gives_a_colour_bar():
    frame = pd.DataFrame(
        {
            "workload.batch": 2.0 ** np.arange(9),
            "tokens_per_s": 100.0 * 2.0 ** np.arange(9),
            "tpot": np.linspace(1e-3, 9e-3, 9),
        }
    )
    ax = plots.pareto(frame, "tpot", "tokens_per_s", color="batch")
    assert [a.get_ylabel() for a in ax.figure.axes] == ["Throughput (tokens/s)", "Batch size"]
    assert_readable(ax)


def test_objectives_beyond_the_two_axes_keep_points_on_the_front():
    frame = points_frame().assign(price_usd=[1, 1, 1, 1, 0.5, 1, 1.0])
    both = {"tpot": "min", "joules_per_token": "min"}
    fine = (frame["status"] == "ok").to_numpy()
    assert front_mask(frame, both, fine).sum() == 4
    assert front_mask(frame, {**both, "price_usd": "min"}, fine).sum() == 5


def test_of_very_many_points_the_front_and_known_designs_are_all_drawn():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"tpot": rng.uniform(1, 2, 50_000), "joules": rng.uniform(1, 2, 50_000)})
    frame["known"] = ""
    frame.loc[31, "known"] = "mine"
    ax = plots.pareto(frame, "tpot", "joules", label="known")
    offsets = np.concatenate([c.get_offsets() for c in ax.collections])
    assert len(offsets) < 10_000
    front = front_mask(frame, {"tpot": "min", "joules": "min"}, np.ones(50_000, bool))
    for row in [31, *np.flatnonzero(front)]:
        assert (offsets == frame.loc[row, ["tpot", "joules"]].to_numpy(float)).all(axis=1).any()
    assert_readable(ax)


def test_knee_is_the_point_farthest_from_the_chord():
    xs, ys = np.array([0.0, 0.1, 0.5, 1.0]), np.array([1.0, 0.2, 0.1, 0.0])
    # Distances from y = 1 - x times sqrt(2): 0, 0.7, 0.4, 0.
    assert knee(xs, ys) == 1
    assert knee(xs[:2], ys[:2]) is None
    assert knee(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])) is None
    # On logarithmic axes 1/x is straight.
    xs = np.array([1.0, 2.0, 4.0, 8.0])
    assert knee(xs, 8 / xs) is not None
    assert knee(xs, 8 / xs, log=(True, True)) is None


def test_unknown_column_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'joules_per_token'"):
        plots.pareto(points_frame(), "tpot", "joules_per_tokn")


def test_no_points_is_an_error():
    with pytest.raises(ConfigError, match="at least one design point"):
        plots.pareto(points_frame()[:0], "tpot", "joules_per_token")


def test_results_can_be_drawn_directly(coe):
    ax = plots.pareto(coe, "seconds", "joules_per_token", color="name")
    assert {"SN40L", "DGX H100"} <= set(legend_texts(ax))
