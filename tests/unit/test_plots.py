"""Figures: what is drawn where, readable text, files beside each other."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import opbyte as ob
from opbyte.core.errors import ConfigError, SimulationError
from opbyte.sweeps import plots
from opbyte.sweeps.plots._pareto import front_mask, knee
from opbyte.sweeps.plots._quantities import quantity, show
from opbyte.sweeps.plots._roofline import roofs_of
from opbyte.sweeps.plots._study import _tied, varied
from opbyte.sweeps.plots._style import DASHES, PALETTE, series_style

DECODE = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 4096}
COE = {
    "kind": "coe",
    "router": "llama-3.1-8b",
    "experts": {"model": "llama-3.1-8b", "count": 100},
    "batch": 8,
    "input": 256,
    "output": 20,
    "requests": 5,
}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def decode():
    return ob.simulate("sn40l-node", DECODE)


@pytest.fixture(scope="module")
def decode_events():
    return ob.simulate("dgx-h100", DECODE, fidelity="event")


@pytest.fixture(scope="module")
def coe():
    return {
        "SN40L": ob.simulate("sn40l-node", COE),
        "DGX H100": ob.simulate("dgx-h100", COE),
    }


def shown_texts(figure):
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9):
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def assert_readable(ax):
    """No text covers another or leaves the figure, and none is smaller than 6 points."""
    figure = ax.figure
    texts = shown_texts(figure)
    assert texts
    boxes = [text.get_window_extent().padded(-0.5) for text in texts]
    page = Bbox.from_bounds(0, 0, *(figure.get_size_inches() * figure.dpi)).padded(1.0)
    for i, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert text.get_fontsize() >= 6, text.get_text()
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, f"{text.get_text()!r} leaves the figure"
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, f"{text.get_text()!r} leaves the figure"
        for other, its in zip(texts[:i], boxes[:i], strict=True):
            assert not box.overlaps(its), f"{text.get_text()!r} covers {other.get_text()!r}"


def legend_texts(ax):
    return [t.get_text() for legend in ax.figure.legends for t in legend.get_texts()]


def points_frame():
    """Four points of a front, one dominated, one that breaks a constraint, one without result."""
    return pd.DataFrame(
        {
            "machine": ["a", "a", "b", "b", "a", "b", "b"],
            "tpot": [1e-3, 2e-3, 4e-3, 8e-3, 8e-3, 0.5e-3, np.nan],
            "joules_per_token": [8.0, 3.0, 1.0, 0.9, 5.0, 0.5, np.nan],
            "status": ["ok"] * 5 + ["infeasible"] * 2,
            "known": ["", "", "SN40L", "", "", "", ""],
        }
    )


# -- quantities -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (1.8e12, "machine.rdu.hbm.phy.bandwidth", "1.8 TB/s"),
        (64 * 2**30, "machine.rdu.hbm.capacity", "64 GiB"),
        (520 * 2**20, "rdu.sram.capacity", "520 MiB"),
        (0.0125, "tpot", "12.5 ms"),
        (8.14e-4, "area_m2", "814 mm²"),
        (638e12, "machine.rdu.pcu.peak.bf16", "638 TFLOP/s"),
        (20e-6, "machine.rdu.pcu.launch.software", "20 µs"),
        (64.0, "workload.batch", "64"),
        (12345.6, "tokens_per_s", "12,300 tokens/s"),
        (1024.0, "workload.batch", "1,024"),
        (2.5, "speedup", "2.5×"),
        (2.0, "speedup", "2×"),
        (math.nan, "tpot", "n/a"),
    ],
)
def test_values_are_shown_with_prefix_and_unit(value, column, text):
    assert show(value, column) == text


def test_every_common_metric_has_a_name_of_its_own():
    from opbyte.sim.simulate import COMMON

    labels = [quantity(metric).label for metric in COMMON]
    assert len(set(labels)) == len(labels)
    assert not set(labels) & set(COMMON)


def test_palette_is_okabe_ito_and_the_style_file_uses_it():
    with plots.styled():
        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
    assert [to_hex(c).upper() for c in cycle] == list(PALETTE)
    published = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(PALETTE) == published | {"#000000"}


def test_series_differ_in_more_than_colour():
    styles = [series_style(i) for i in range(56)]
    assert len(set(styles)) == 56
    assert len({marker for _, marker in styles[:8]}) == 8


def test_plotting_leaves_the_users_settings_alone():
    before = dict(plt.rcParams)
    plots.pareto(points_frame(), "tpot", "joules_per_token")
    assert dict(plt.rcParams) == before


# -- front ----------------------------------------------------------------------------------------


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
    assert "1 of 7 points have no result" in texts
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


# -- lines ----------------------------------------------------------------------------------------


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


# -- roofline -------------------------------------------------------------------------------------


def test_one_roof_for_each_tier_with_its_ridge(decode):
    machine = ob.load_machine("sn40l-node")
    roofs = roofs_of(machine, machine.mapping(), frozenset({"bf16"}))
    found = {r.name: (r.bandwidth, r.ridge) for r in roofs}
    assert found["rdu.hbm"] == (1.8e12, pytest.approx(638e12 / 1.8e12))
    assert found["rdu.ddr"] == (200e9, pytest.approx(638e12 / 200e9))
    assert found["rdu.sram"][0] == machine.values["rdu.sram.fabric.bandwidth"]
    ax = plots.roofline(machine, decode)
    texts = legend_texts(ax)
    assert {"rdu.hbm, 1.8 TB/s", "rdu.ddr, 200 GB/s"} <= set(texts)
    assert not any("host" in t for t in texts), "nothing uses the host's memory here"
    assert "ridge 354 FLOP/B" in [t.get_text() for t in ax.texts]
    assert_readable(ax)


def test_a_changed_bandwidth_moves_its_roof():
    machine = ob.load_machine("sn40l-node").replace({"rdu.hbm.phy.bandwidth": "3.6 TB/s"})
    roofs = {r.name: r for r in roofs_of(machine, machine.mapping(), frozenset({"bf16"}))}
    assert roofs["rdu.hbm"].ridge == pytest.approx(638e12 / 3.6e12)


def test_operators_stand_below_their_roof_at_their_intensity(decode):
    ax = plots.roofline("sn40l-node", decode)
    offsets = np.concatenate([c.get_offsets() for c in ax.collections])
    table = decode.breakdown
    layer = table[table["block"].str.startswith("layer")].iloc[0]
    intensity = layer["flops"] / layer["rdu.hbm.phy_bytes"]
    rate = layer["flops"] / layer["seconds"]
    assert np.isclose(offsets, [intensity, rate]).all(axis=1).any()
    assert (offsets[:, 1] <= 1.8e12 * offsets[:, 0] * (1 + 1e-9)).all()


def test_a_roofline_without_results_shows_the_machine_alone():
    ax = plots.roofline("h100-sxm-80gb")
    assert not ax.collections
    assert_readable(ax)


def test_a_roofline_simulates_works():
    ax = plots.roofline("dgx-h100", DECODE)
    assert ax.collections
    assert_readable(ax)


# -- bars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["operator", "resource", "phase"])
def test_bars_add_up_to_the_time(coe, by):
    ax = plots.breakdown(coe, by=by)
    assert_readable(ax)
    widths = {}
    for bar in ax.patches:
        middle = round(bar.get_y() + bar.get_height() / 2)
        widths[middle] = widths.get(middle, 0.0) + bar.get_width()
    assert widths[1] == pytest.approx(coe["SN40L"].seconds)
    assert widths[0] == pytest.approx(coe["DGX H100"].seconds)


def test_copies_of_experts_are_a_part_of_their_own(coe):
    ax = plots.breakdown(coe, by="phase")
    index = legend_texts(ax).index("copy of experts")
    bars = ax.containers[index]
    widths = [b.get_width() for b in bars]
    assert widths == pytest.approx([coe["SN40L"].switch_s, coe["DGX H100"].switch_s])


def test_unknown_grouping_is_an_error(decode):
    with pytest.raises(ConfigError, match="operator, resource, phase"):
        plots.breakdown(decode, by="colour")


def test_occupancy_compares_every_memory_with_its_capacity(coe):
    ax = plots.occupancy(coe["SN40L"])
    assert_readable(ax)
    texts = [t.get_text() for t in ax.texts]
    assert "nothing placed of 520 MiB" in texts
    used = coe["SN40L"].occupancy["rdu.ddr"]
    assert any(f"of 1.5 TiB, {100 * used / (1.5 * 2**40):.3g} %" in t for t in texts)
    assert ax.get_xscale() == "log"


def test_occupancy_as_a_share_ends_at_the_capacity(coe):
    ax = plots.occupancy(coe["SN40L"], scale="share")
    assert_readable(ax)
    widths = [bar.get_width() for bar in ax.patches]
    used = coe["SN40L"].occupancy["rdu.hbm"] / (64 * 2**30)
    assert widths.count(1.0) == 4
    assert any(math.isclose(w, used) for w in widths)


def test_occupancy_holds_a_result_against_its_own_machine():
    machine = ob.load_machine("sn40l-node").replace({"rdu.hbm.capacity": "32 GiB"})
    result = ob.simulate(machine, ob.Decode(ob.load_model("llama-3.1-8b"), 8, 4096))
    assert any("of 32 GiB" in t.get_text() for t in plots.occupancy(result).texts)
    other = plots.occupancy(result, "sn40l-node")
    assert any("of 64 GiB" in t.get_text() for t in other.texts)


# -- timeline -------------------------------------------------------------------------------------


def test_timeline_shows_units_and_resources(decode_events):
    ax = plots.timeline(decode_events)
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert {"gpu.sm", "gpu.hbm.phy", "nvlink", "collectives"} == set(rows)
    assert ax.get_title(loc="left").startswith("First ")
    assert_readable(ax)


def test_bars_of_a_unit_do_not_overlap(decode_events):
    ax = plots.timeline(decode_events, window=(0.0, 1e-4))
    rows = [t.get_text() for t in ax.get_yticklabels()]
    at = rows.index("gpu.sm")
    spans = sorted(
        (bar.get_x(), bar.get_x() + bar.get_width())
        for bar in ax.patches
        if math.isclose(bar.get_y(), at - 0.39)
    )
    assert len(spans) > 5
    assert all(a[1] <= b[0] + 1e-12 for a, b in itertools.pairwise(spans))


def test_timeline_needs_events(decode):
    with pytest.raises(SimulationError, match="fidelity 'event'"):
        plots.timeline(decode)


def test_timeline_of_a_composition_of_experts_has_copies():
    result = ob.simulate("dgx-h100", COE, fidelity="event")
    ax = plots.timeline(result)
    assert {"copy", "unit"} <= {t.get_text() for t in ax.get_yticklabels()}
    assert_readable(ax)


# -- files ----------------------------------------------------------------------------------------


def test_save_writes_png_and_pdf_with_equal_bytes_each_time(tmp_path):
    ax = plots.pareto(points_frame(), "tpot", "joules_per_token")
    png, pdf = plots.save(ax, tmp_path / "a.b" / "front.png")
    assert (png.name, pdf.name) == ("front.png", "front.pdf")
    first = (png.read_bytes(), pdf.read_bytes())
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")
    plots.save(ax, tmp_path / "a.b" / "front")
    assert (png.read_bytes(), pdf.read_bytes()) == first


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


def test_a_long_unit_stands_in_the_label_and_not_at_every_tick():
    peaks = np.geomspace(1e12, 2e14, 12)
    frame = pd.DataFrame({"machine.d.u.peak.bf16": peaks, "tpot": 1e9 / peaks, "status": "ok"})
    ax = plots.lines(frame, "machine.d.u.peak.bf16", "tpot")
    ax.figure.draw_without_rendering()
    assert ax.get_xlabel() == "d.u peak, bf16 (TFLOP/s)"
    ticks = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
    shown = [b for b in ticks if ax.bbox.x0 <= b.x0 <= ax.bbox.x1]
    assert len(shown) >= 3
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(shown))


@pytest.fixture(scope="module")
def served():
    """Two served traces: on one requests wait, on the other the limits are kept."""
    rows = pd.DataFrame(
        {
            "arrival_s": np.arange(30) * 0.02,
            "input_tokens": 600,
            "output_tokens": np.arange(30) % 11 + 40,
        }
    )
    return {
        name: ob.simulate(
            machine,
            ob.Serve("llama-3.1-8b", rows, scheduler={"max_sequences": 8}, slo={"ttft": "300 ms"}),
        )
        for name, machine in (("A100", "a100-sxm-80gb"), ("H100", "h100-sxm-80gb"))
    }


def test_a_served_trace_is_drawn_as_it_was(served):
    figure = plots.serving(served)
    ttft, tpot, running, waiting, kv = figure.axes
    limit, *_ = [x for x in ttft.lines if len(set(x.get_xdata())) == 1]
    assert limit.get_xdata()[0] == 0.3
    for line, result in zip(ttft.lines, served.values(), strict=False):
        frame = result.requests
        times = frame["first_token_s"] - frame["arrival_s"]
        x, y = line.get_xdata(), line.get_ydata()
        assert (x[0], x[-1]) == pytest.approx((times.min(), times.max()))
        for at in (0.2, 0.3, 0.5):
            share = np.interp(at, x, y, left=0.0, right=100.0)
            assert share == pytest.approx(100 * (times <= at).mean(), abs=100 / 29)
    for ax, mean in ((running, "running_mean"), (waiting, "waiting_mean")):
        for patch, result in zip(ax.patches, served.values(), strict=True):
            values, edges, _ = patch.get_data()
            # Stretches keep the mean of the whole, but for what ends with a step or waits in it.
            whole = (values * np.diff(edges)).sum() / edges[-1]
            assert whole == pytest.approx(result.metrics[mean], rel=0.08)
    assert "%" in kv.get_ylabel()
    assert "(s)" in kv.get_xlabel()
    assert "ms" in tpot.get_xlabel() + str([t.get_text() for t in tpot.get_xticklabels()])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["A100", "H100", "limit (slo)"]


def test_lines_of_served_traces_differ_without_colour(served):
    figure = plots.serving({str(i): served["A100"] for i in range(12)})
    looks = [(x.get_color(), str(x._dash_pattern)) for x in figure.axes[0].lines[:12]]
    assert len(set(looks)) == 12
    assert len({dashes for _, dashes in looks[:4]}) == 4


def test_what_was_not_served_is_no_served_trace(decode):
    with pytest.raises(ConfigError, match="no trace was served"):
        plots.serving(decode)
    with pytest.raises(ConfigError, match="at least one"):
        plots.serving({})


def test_answers_of_one_token_have_no_time_per_token():
    rows = pd.DataFrame({"arrival_s": [0.0, 1.0], "input_tokens": 9, "output_tokens": 1})
    figure = plots.serving(ob.simulate("a100-sxm-80gb", ob.Serve("llama-3.1-8b", rows)))
    assert "one token" in figure.axes[1].texts[0].get_text()


def test_metrics_of_caches_have_units_and_capacities_keep_theirs():
    for name in ("kv_bytes", "peak_fast_bytes", "copied_bytes", "block_s", "batch_max"):
        assert quantity(name).unit
    assert show(141e9, "machine.gpu.hbm.capacity") == "141 GB"
    assert show(80 * 2**30, "machine.gpu.hbm.capacity") == "80 GiB"
    assert show(1.5 * 2**30, "kv_bytes") == "1.5 GiB"
