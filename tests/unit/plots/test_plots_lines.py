"""Figures: a metric over what was varied."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import same_color

from opbyte.sweeps import plots
from opbyte.sweeps.plots._study import _tied, varied
from opbyte.sweeps.plots._style import DASHES, PALETTE
from opbyte.sweeps.study import load_study
from tests.unit.plots.figures import assert_readable, legend_texts


def coe_frame():
    rows = []
    for machine, most, base in (("sn40l-node", 900, 0.3), ("dgx-a100", 150, 0.6)):
        for batch in (1, 8):
            for count in (10, 50, 100, 150, 300, 850):
                fits = count < most
                rows.append(
                    {
                        "machine": machine,
                        "workload.batch": batch,
                        "workload.experts.count": count,
                        "seconds": base * batch * (1 + count / 100) if fits else np.nan,
                        "status": "ok" if fits else "infeasible",
                    }
                )
    return pd.DataFrame(rows)


def test_lines_are_drawn_for_each_name_on_logarithmic_axes():
    frame = coe_frame()
    ax = plots.lines(frame[frame["workload.batch"] == 8], "experts.count", "seconds", by="machine")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    drawn = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in drawn] == [6, 3]
    np.testing.assert_allclose(drawn[1].get_ydata(), 0.6 * 8 * np.array([1.1, 1.5, 2.0]))
    assert_readable(ax)


def test_what_does_not_fit_is_a_cross_at_the_top_edge():
    frame = coe_frame()
    ax = plots.lines(frame[frame["workload.batch"] == 8], "experts.count", "seconds", by="machine")
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert sorted(float(c.get_xdata()[0]) for c in crosses) == [150, 300, 850]
    assert all(c.get_ydata()[0] == 1.0 for c in crosses)
    assert all(same_color(c.get_color(), PALETTE[1]) for c in crosses)
    assert "does not fit" in legend_texts(ax)


def test_many_points_carry_few_markers_and_few_crosses():
    counts = np.arange(10, 860, 10.0)
    fits = counts <= 160
    frame = pd.DataFrame({"count": counts, "seconds": counts, "status": "ok"})
    frame.loc[~fits, ["seconds", "status"]] = [np.nan, "infeasible"]
    ax = plots.lines(frame, "count", "seconds")
    crosses = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "x"]
    assert min(crosses) == 170, "the first count that does not fit is marked"
    assert len(crosses) < 30
    assert len(ax.lines[0].get_xdata()) == fits.sum(), "the line itself keeps every point"


def test_a_second_name_gives_dashes():
    ax = plots.lines(coe_frame(), "experts.count", "seconds", by=["machine", "batch"])
    assert len({str(line.get_linestyle()) for line in ax.lines[:4]}) == 2
    assert len(DASHES) >= 2
    assert {"1", "8", "Batch size:", "Machine:"} <= set(legend_texts(ax))
    assert_readable(ax)


def test_the_best_of_several_rows_is_drawn():
    frame = pd.DataFrame(
        {"batch": [1, 1, 2, 2], "tokens_per_s": [3.0, 5.0, 9.0, 7.0], "tpot": [3.0, 5, 9, 7]}
    )
    most = plots.lines(frame, "batch", "tokens_per_s")
    np.testing.assert_array_equal(most.lines[0].get_ydata(), [5, 9])
    least = plots.lines(frame, "batch", "tpot")
    np.testing.assert_array_equal(least.lines[0].get_ydata(), [3, 7])


def test_varied_axes_are_those_with_several_values():
    frame = pd.DataFrame({"workload.batch": [1, 2], "machine": ["a", "a"], "context": [1, 2]})
    study = {"axes": {"workload.batch": {"log2": [1, 2]}, "machine": {"values": ["a"]}}}
    assert varied(frame, study) == ["workload.batch"]
    assert varied(frame, {"columns": ["context", "absent"]}) == ["context"]


def test_numbers_that_a_list_ties_to_x_are_no_lines_of_their_own():
    frame = pd.DataFrame({"pp": [1, 2, 4], "tp": [4, 2, 1], "machine": ["a", "b", "a"]})
    listed = {"strategy": {"kind": "list"}}
    assert _tied(frame, listed, "pp", "tp")
    assert not _tied(frame, listed, "pp", "machine")
    assert not _tied(frame, {"strategy": {"kind": "grid"}}, "pp", "tp")
    several = pd.DataFrame({"pp": [1, 1], "tp": [4, 2]})
    assert not _tied(several, listed, "pp", "tp")


def test_lines_of_a_study_leave_no_machine_out_for_an_axis_of_another(tmp_path):
    axes = {
        "machine": ["dgx-h100", "h100-x2"],
        "mapping.parallel.all.tp": {"values": [2, 4, 8], "when": {"machine": "dgx-h100"}},
        "mapping.fusion": {"values": ["none", "attention"], "when": {"machine": "dgx-h100"}},
        "workload.batch": {"log2": [1, 8]},
    }
    base = {"workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096}}
    study = {"kind": "study", "base": base, "axes": axes, "objectives": {"tokens_per_s": "max"}}
    (drawn,) = plots.study_figures(load_study(study).run(tmp_path, workers=1))
    assert {"dgx-h100", "h100-x2"} <= set(legend_texts(drawn.ax))
    assert len(drawn.ax.lines) == 2
    assert "best over" in drawn.caption.lower()
    plt.close("all")
