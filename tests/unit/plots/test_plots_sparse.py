"""The figure of what pages leave of sparse attention's saving."""

from __future__ import annotations

import pytest

import opbyte as ob


def test_curves_start_at_independent_tokens_and_end_near_the_ideal():
    ax = ob.plot.sparse_gain(2048, pages=(4096,), longest=1e5)
    curve = ax.get_lines()[0]
    runs, gains = curve.get_xdata(), curve.get_ydata()
    assert runs[0] == pytest.approx(8 / 7)
    assert gains[0] == pytest.approx(ob.sparse_pages(2048).gain, rel=0.01)
    assert gains[-1] == pytest.approx(16 / 3, rel=0.01)
    assert list(gains) == sorted(gains)
    assert "16 tokens" in curve.get_label()
    assert ax.get_xlabel().startswith("Mean run")
