"""Figures: what runs when."""

import itertools
import math

import pytest

import opbyte as ob
from opbyte.core.errors import SimulationError
from opbyte.sweeps import plots
from tests.unit.plots.figures import COE, assert_readable


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
