"""One budget, every machine: copies, who takes part, bands, and what the table says."""

import json

import numpy as np
import pytest
from budgets import ONE, variant
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.metrics import COSTS
from opbyte.sim.simulate import simulate
from opbyte.sweeps.budget import WITHIN, contest, copies
from opbyte.sweeps.commands._study import Request, run_study
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study

WORK = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 1024}


def study(machines, **changes):
    return {
        "kind": "study",
        "name": "some",
        "base": {"workload": WORK},
        "budget": {"machine": ONE, "count": 10},
        "axes": {"machine": machines, "workload.batch": [8, 16]},
        "objectives": {"usd_per_mtoken": "min"},
        **changes,
    }


def run(folder, data, settings=None):
    return run_plan(load_study(data, settings).plan, Options(out=folder, workers=1))


def of(frame, within):
    return frame[frame["within"] == within].set_index("machine")


@given(st.floats(1.0, 1e6), st.integers(1, 1000), st.floats(0.01, 100.0))
def test_a_budget_buys_whole_machines(cost, count, other):
    costs = {"price_usd": np.array(cost), "area_m2": np.array(other), "tdp_w": np.array(7.0)}
    budget = {name: value * count for name, value in costs.items()}
    for within in WITHIN:
        assert copies(costs, budget, within) == count
    dearer = {**costs, "price_usd": np.array(cost * 1.001)}
    assert copies(dearer, budget, "price_usd") == np.floor(count / 1.001)
    assert copies(dearer, budget, "all") == copies(dearer, budget, "price_usd")
    assert copies(dearer, budget, "area_m2") == count


def test_copies_multiply_the_rate_and_each_cost_ends_its_own_budget(tmp_path):
    hungry = variant("hungry", power="1750 W")
    frame = contest(run(tmp_path, study([ONE, hungry])), samples=16)
    one = simulate(ONE, {**WORK, "batch": 16})
    for within in WITHIN:
        assert of(frame, within).loc[ONE, "copies"] == 10
        assert of(frame, within).loc[ONE, "tokens_per_s"] == pytest.approx(10 * one.tokens_per_s)
        expected = 4 if within in ("tdp_w", "all") else 10  # 7000 W / 1750 W
        assert of(frame, within).loc["hungry", "copies"] == expected
    assert frame.attrs["budget"]["tdp_w"] == pytest.approx(7000.0)
    machine = load_machine(ONE)
    assert frame.attrs["budget"]["price_usd"] == pytest.approx(10 * COSTS["price_usd"](machine))
    assert frame.iloc[0]["within"] == WITHIN[0]
    assert frame.iloc[0]["design"] == "batch 16"


def test_equal_machines_have_equal_bands_for_what_they_share_moves_together(tmp_path):
    twin = {"extends": ONE, "name": "twin"}
    slow = variant("slow", memory={"hbm": {"ports": {"phy": {"bandwidth": "3.2 TB/s"}}}})
    frame = contest(run(tmp_path, study([ONE, twin, slow])), samples=64)
    for within in WITHIN:
        rows = of(frame, within)
        numbers = ["tokens_per_s", "low", "high", "wins"]
        assert rows.loc[ONE, numbers].tolist() == rows.loc["twin", numbers].tolist()
        assert rows.loc[ONE, "wins"] == 1.0  # both, in every draw
        # Independent draws would let the slower one win sometimes.
        assert rows.loc["slow", "wins"] == 0.0
        assert rows.loc["slow", "high"] > rows.loc[ONE, "low"]
    again = contest(run(tmp_path, study([ONE, twin, slow])), samples=64)
    assert again.equals(frame)


def test_a_draw_that_keeps_no_constraint_serves_nothing_or_less(tmp_path):
    rate = {"value": "3.2 TB/s", "source": "assumed: a test", "range": ["0.5 TB/s", "3.2 TB/s"]}
    doubtful = variant("doubtful", memory={"hbm": {"ports": {"phy": {"bandwidth": rate}}}})
    free = of(contest(run(tmp_path / "free", study([ONE, doubtful])), samples=64), "tdp_w")
    assert 0 < free.loc["doubtful", "low"] < 0.5 * free.loc["doubtful", "tokens_per_s"]
    one = simulate(ONE, {**WORK, "batch": 16})
    close = study([ONE, doubtful], constraints=[f"tpot <= {2e3 * one.metrics['tpot']} ms"])
    bound = of(contest(run(tmp_path / "close", close), samples=64), "tdp_w")
    assert bound.loc["doubtful", "low"] == 0.0
    assert bound.loc["doubtful", "high"] == pytest.approx(free.loc["doubtful", "high"])


def test_a_slow_draw_serves_a_smaller_batch_where_that_keeps_the_constraint(tmp_path):
    rate = {"value": "3.2 TB/s", "source": "assumed: a test", "range": ["2.4 TB/s", "3.2 TB/s"]}
    doubtful = variant("doubtful", memory={"hbm": {"ports": {"phy": {"bandwidth": rate}}}})
    work = {**WORK, "context": 65536, "batch": 8}
    limit = 1.001e3 * simulate(ONE, work).metrics["tpot"] * 3.35 / 3.2
    data = study([ONE, doubtful], base={"workload": work}, constraints=[f"tpot <= {limit} ms"])
    data["axes"]["workload.batch"] = [4, 8]
    rows = of(contest(run(tmp_path / "two", data), samples=64), "tdp_w")
    assert rows.loc["doubtful", "design"] == "batch 8"
    data["axes"]["workload.batch"] = [8]
    alone = of(contest(run(tmp_path / "one", data), samples=64), "tdp_w")
    assert alone.loc["doubtful", "low"] == 0.0
    assert 0 < rows.loc["doubtful", "low"] < 0.8 * rows.loc["doubtful", "tokens_per_s"]


def test_what_can_not_be_compared_takes_no_part_and_says_why(tmp_path):
    small = variant("small", memory={"hbm": {"capacity": "8 GiB"}})
    gift = variant("gift", node_nm=None)
    frame = contest(run(tmp_path, study([ONE, small, gift, "sn40l-socket"])), samples=8)
    assert set(frame["machine"]) == {ONE, "sn40l-socket"}
    refused = frame.attrs["refused"]
    assert "fit" in refused["small"]
    assert refused["gift"] == "one of its costs is not known"
    ternary = {"base.workload.model": "bitnet-b1.58-2b-4t"}
    frame = contest(run(tmp_path / "t", study([ONE, "sn40l-socket"]), ternary), samples=8)
    assert "no arithmetic for int8" in frame.attrs["refused"]["sn40l-socket"]
    assert frame.attrs["uncovered"] == {"sn40l-socket": 2}
    late = study([ONE, "sn40l-socket"], constraints=["tpot <= 9 ms"])
    frame = contest(run(tmp_path / "l", late), samples=8)
    assert frame.attrs["refused"] == {"sn40l-socket": "no point keeps tpot <= 9 ms"}


def test_a_row_says_what_it_rests_on_and_whether_the_machine_was_built(tmp_path):
    made_up = {**variant("made-up"), "source": "assumed: nobody built it"}
    frame = of(contest(run(tmp_path, study([ONE, made_up])), samples=8), "all")
    assert frame["built"].to_dict() == {ONE: True, "made-up": False}
    assert all(e.startswith("assumed (") for e in frame["evidence"])


def test_a_budget_only_chooses_among_points_that_stay_stored(tmp_path):
    results = run(tmp_path, study([ONE, "sn40l-socket"]))
    more = run(tmp_path, study([ONE, "sn40l-socket"], budget={"machine": "dgx-h100", "count": 3}))
    assert more.meta["key"] == results.meta["key"]
    assert contest(more, samples=8).attrs["budget"]["tdp_w"] == pytest.approx(3 * 8500.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budget": {"machine": "dgx-h101", "count": 3}}, "dgx-h100"),
        ({"budget": {"machine": ONE, "count": 0}}, "count"),
        ({"axes": {"workload.batch": [8]}, "base": {"workload": WORK, "machine": ONE}}, "machine"),
        ({"budget": {"machine": "rtx-5090", "count": 1}}, "rtx"),
    ],
)
def test_a_budget_that_means_nothing_is_an_error_before_anything_runs(changes, says):
    with pytest.raises(ConfigError, match=says):
        load_study(study([ONE, "sn40l-socket"], **changes))


def test_a_study_without_a_budget_has_no_contest(tmp_path):
    data = study([ONE, "sn40l-socket"])
    del data["budget"]
    with pytest.raises(ConfigError, match="needs a study with a `budget`"):
        contest(run(tmp_path, data))


def request(folder, **changes):
    return Request(
        study="one_budget", out=folder, workers=1, executor="process", shard=None, fidelity=None,
        settings=["axes.workload.batch={values: [8, 512]}"], fresh=False, plots=False,
        quiet=False, **changes,
    )  # fmt: skip


def test_a_sweep_prints_the_contest(tmp_path, capsys):
    assert run_study(request(tmp_path, json=True)) == 0
    told = json.loads(capsys.readouterr().out)["budget"]
    assert {row["within"] for row in told["rows"]} == set(WITHIN)
    best = {row["within"]: row for row in reversed(told["rows"])}
    assert all(row["low"] < row["high"] for row in told["rows"])
    # Of the machines here the DGX is the only one that stands somewhere.
    assert {row["machine"] for row in told["rows"] if row["built"]} == {"dgx-h100"}
    assert best["price_usd"]["machine"] == "dgx-h100-logic-pim"
    assert run_study(request(tmp_path, json=False)) == 0
    text = capsys.readouterr().out
    assert "Within one budget" in text
    assert "(not built)" in text
