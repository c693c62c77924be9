"""Figures: served traces."""

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps import plots


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
