"""Figures: where time goes, and what memories hold."""

import math

import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps import plots
from tests.unit.plots.figures import assert_readable, legend_texts


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


def test_operators_that_do_not_run_are_no_part_of_a_bar():
    """Candidates of a split by Op/B of which only some run."""
    work = {
        "kind": "continuous", "model": "mixtral-8x7b", "batch": 16, "input": 64, "output": 4,
        "routing": {"kind": "uniform", "fullest": True},
    }  # fmt: skip
    result = ob.simulate("duplex-x4", work, "pe-et")
    placed = [run.demand.placed for run in result.outcome.phases]
    assert any(p.runs is not None and (p.runs[:, 0] == 0).any() for p in placed)
    ax = plots.breakdown(result)
    drawn = sum(bar.get_width() for bar in ax.patches)
    assert drawn == pytest.approx(result.breakdown["seconds"].sum())
