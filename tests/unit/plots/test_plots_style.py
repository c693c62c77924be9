"""Figures: names, units and colours, and files that are equal each time."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from opbyte.sweeps import plots
from opbyte.sweeps.plots._quantities import quantity, show
from opbyte.sweeps.plots._style import PALETTE, series_style
from tests.unit.plots.figures import points_frame


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
    from opbyte.sim.metrics import COMMON

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


def test_metrics_of_caches_have_units_and_capacities_keep_theirs():
    for name in ("kv_bytes", "peak_fast_bytes", "copied_bytes", "block_s", "batch_max"):
        assert quantity(name).unit
    assert show(141e9, "machine.gpu.hbm.capacity") == "141 GB"
    assert show(80 * 2**30, "machine.gpu.hbm.capacity") == "80 GiB"
    assert show(1.5 * 2**30, "kv_bytes") == "1.5 GiB"


def test_save_writes_png_and_pdf_with_equal_bytes_each_time(tmp_path):
    ax = plots.pareto(points_frame(), "tpot", "joules_per_token")
    png, pdf = plots.save(ax, tmp_path / "a.b" / "front.png")
    assert (png.name, pdf.name) == ("front.png", "front.pdf")
    first = (png.read_bytes(), pdf.read_bytes())
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")
    plots.save(ax, tmp_path / "a.b" / "front")
    assert (png.read_bytes(), pdf.read_bytes()) == first


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
