"""What a report computes: columns that come back, the size of a page, importance, hypervolume."""

import base64
import json
import zlib

import numpy as np
import pandas as pd
import pytest
from budgets import FULL, budgeted
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opbyte.core.errors import ConfigError
from opbyte.sweeps.report._chosen import Chosen, choose
from opbyte.sweeps.report._columns import encoded
from opbyte.sweeps.report._contest import contested
from opbyte.sweeps.report._importance import importance
from opbyte.sweeps.report._linked import BUDGET, linked, script_json
from opbyte.sweeps.report._progress import progress
from opbyte.sweeps.search.order import read_order, write_order

KINDS = {"integers": "<i4", "wide": "<i8", "floats": "<f8"}


def raw(text, kind):
    """Decode as the page does: base64, zlib, bytes grouped by significance."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    width = np.dtype(kind).itemsize
    return np.ascontiguousarray(planes.reshape(width, -1).T).view(kind).ravel()


def width(count):
    return "u1" if count <= 256 else "<u2" if count <= 65536 else "<u4"


def decoded(column):
    if column["kind"] == "words":
        texts = np.array(column["texts"], dtype=object)
        return texts[raw(column["data"], width(len(texts)))]
    if column["kind"] == "codes":
        values = raw(column["values"], "<f8")
        return values[raw(column["data"], width(len(values)))]
    values = raw(column["data"], KINDS[column["kind"]])
    return values.cumsum(dtype=np.int64) if column["kind"] == "integers" else values


# -- columns --------------------------------------------------------------------------------------


@given(hnp.arrays(np.float64, st.integers(0, 60), elements=st.floats(width=64)))
def test_floats_come_back_bit_by_bit(values):
    back = decoded(encoded(pd.Series(values)))
    assert np.array_equal(back, values, equal_nan=True)
    known = ~np.isnan(values)
    assert np.array_equal(np.signbit(back[known]), np.signbit(values[known]))


@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(-(2**63), 2**63 - 1)))
def test_whole_numbers_come_back(values):
    assert np.array_equal(decoded(encoded(pd.Series(values))), values)


@given(st.lists(st.text(max_size=8), max_size=40))
def test_words_come_back(texts):
    back = decoded(encoded(pd.Series(texts, dtype=object)))
    assert back.tolist() == texts


@pytest.mark.parametrize("count", [255, 256, 257, 70_000])
def test_dictionaries_of_any_size_come_back(count):
    values = pd.Series(np.tile(np.arange(count) / 3, 5))
    column = encoded(values)
    assert column["kind"] == ("codes" if count <= 65_536 else "floats")
    assert np.array_equal(decoded(column), values)
    words = pd.Series([f"w{i}" for i in range(count)])
    assert decoded(encoded(words)).tolist() == words.tolist()


def test_missing_values_and_truths_are_kept_apart():
    assert decoded(encoded(pd.Series(["a", None, np.nan], dtype=object))).tolist() == ["a", "", ""]
    assert decoded(encoded(pd.Series([True, False]))).tolist() == ["True", "False"]


def test_few_values_take_little_room():
    values = pd.Series(np.tile([0.1, 0.2, 0.3, 0.4], 25_000))
    assert len(encoded(values)["data"]) < 2_000
    assert len(encoded(pd.Series(np.arange(100_000)))["data"]) < 2_000


# -- the linked views -----------------------------------------------------------------------------


def points(rows, metrics):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.random((rows, metrics)), columns=[f"m{i}" for i in range(metrics)])
    return frame.assign(point=np.arange(rows), status="ok")


def test_of_too_many_points_the_front_and_evenly_others_are_kept():
    frame = points(1000, 2)
    best = np.zeros(1000, bool)
    best[[3, 500, 998]] = True
    found = linked(frame, frame, {"m0": "min", "m1": "min"}, [], best, limit=100)
    assert (found.kept, found.total) == (100, 1000)
    at = next(c["element"] for c in found.spec["columns"] if c["name"] == "point")
    kept = raw(found.data[at], "<i4").cumsum()
    assert {3, 500, 998} <= set(kept.tolist())
    assert np.diff(kept).max() <= 12
    assert raw(found.data["front"], "u1").sum() == 3


def test_a_hundred_thousand_points_of_incompressible_metrics_fit_in_a_page():
    frame = points(100_000, 12)
    found = linked(frame, frame, {"m0": "min", "m1": "min"}, [], np.zeros(100_000, bool))
    assert found.kept == 100_000
    assert sum(map(len, found.data.values())) < BUDGET


def test_what_would_burst_a_page_is_thinned():
    frame = points(100_000, 24)
    found = linked(frame, frame, {"m0": "min", "m1": "min"}, [], np.zeros(100_000, bool))
    assert found.kept < found.total == 100_000
    assert 0.8 * BUDGET < sum(map(len, found.data.values())) <= BUDGET


def test_the_scatter_begins_with_two_objectives_else_with_a_numeric_axis():
    frame = points(20, 3).assign(machine=["a", "b"] * 10)
    best = np.zeros(20, bool)

    def pair(objectives, axes):
        return linked(frame, frame, objectives, axes, best).spec["scatter"]

    assert pair({"m0": "min", "m1": "max"}, ["machine", "m1"]) == ["m0", "m1"]
    assert pair({"m0": "min"}, ["machine", "m1"]) == ["m1", "m0"]
    assert pair({"m0": "min"}, ["machine"]) == ["machine", "m0"]
    assert pair({}, ["m1"]) == ["m1", "m0"]


def test_json_can_not_leave_its_script_element():
    spec = {"name": "</script><!--\u2028&'"}
    text = script_json(spec)
    assert not set("<>&'\u2028") & set(text)
    assert json.loads(text) == spec


# -- importance -----------------------------------------------------------------------------------


def test_importance_of_a_sum_is_its_share_of_the_variance():
    """y = a + 3 b over a full grid of -1, 1: shares 1/10 and 9/10 exactly, but for the noise."""
    a, b = np.meshgrid([-1.0, 1.0], [-1.0, 1.0])
    frame = pd.DataFrame({"a": np.tile(a.ravel(), 500), "b": np.tile(b.ravel(), 500)})
    frame = frame.assign(y=frame["a"] + 3 * frame["b"], status="ok")
    table = importance(frame, ["y"], ["a", "b"])
    assert list(table.index) == ["b", "a"]
    assert table["y"].to_numpy() == pytest.approx([0.9, 0.1], abs=1e-3)


def test_noise_is_not_important_however_many_values_it_takes():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"x": rng.integers(0, 16, 200), "z": rng.random(200)})
    frame = frame.assign(y=rng.normal(size=200), status="ok")
    assert importance(frame, ["y"], ["x", "z"]).to_numpy().max() < 0.08


def test_products_are_explained_by_logarithms_and_failed_points_left_out():
    a, b = np.meshgrid(2.0 ** np.arange(8), 4.0 ** np.arange(8))
    frame = pd.DataFrame({"a": a.ravel(), "b": b.ravel(), "y": (a * b).ravel(), "status": "ok"})
    frame = pd.concat([frame] * 20, ignore_index=True)
    frame.loc[len(frame)] = [1.0, 1.0, 1e9, "failed"]
    table = importance(frame, ["y"], ["a", "b"])
    assert table.loc["b", "y"] / table.loc["a", "y"] == pytest.approx(4.0, rel=0.05)


def test_what_does_not_vary_has_no_importance():
    frame = pd.DataFrame({"a": [1.0, 2.0] * 10, "y": 5.0, "status": "ok"})
    assert importance(frame, ["y"], ["a"]).empty


# -- hypervolume over time ------------------------------------------------------------------------


def test_hypervolume_grows_to_one_in_the_order_of_evaluation():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(rng.random((300, 2)), columns=["x", "y"]).assign(status="ok")
    order = rng.permutation(300)
    found = progress(frame, {"x": "min", "y": "max"}, order)
    assert (np.diff(found["share"]) >= -1e-12).all()
    assert found["share"].iloc[-1] == pytest.approx(1.0)
    assert found["points"].tolist()[0] == 1
    assert found["points"].tolist()[-1] == 300


def test_hypervolume_of_one_objective_is_the_way_to_the_best():
    frame = pd.DataFrame({"x": [4.0, 2.0, 3.0, 1.0], "status": "ok"})
    found = progress(frame, {"x": "min"}, np.arange(4))
    # From 10 % beyond the worst, (4 - 1) 1.1 above the best: 4 is 0.3 of 3.3 below it.
    assert found["share"].tolist() == pytest.approx([0.3 / 3.3, 2.3 / 3.3, 2.3 / 3.3, 1.0])


def test_points_without_a_result_add_nothing():
    frame = pd.DataFrame({"x": [np.nan, 1.0], "y": [np.nan, 1.0], "status": ["failed", "ok"]})
    found = progress(frame, {"x": "min", "y": "min"}, np.arange(2))
    assert found["share"].tolist() == [0.0, 1.0]
    failed = frame.assign(status="failed")
    assert progress(failed, {"x": "min", "y": "min"}, np.arange(2)).empty


def test_the_order_of_a_search_is_kept_and_a_damaged_one_is_none(tmp_path):
    assert read_order(tmp_path) is None
    write_order(tmp_path, [5, 2**62, 1])
    assert read_order(tmp_path).tolist() == [5, 2**62, 1]
    (tmp_path / "order.json").write_text("{")
    assert read_order(tmp_path) is None


# -- chosen designs -------------------------------------------------------------------------------


def test_the_knee_and_the_best_of_each_objective_are_chosen_once():
    frame = pd.DataFrame({"tpot": [1.0, 1.1, 5.0, 9.0], "joules": [9.0, 2.0, 1.5, 1.0]})
    objectives = {"tpot": "min", "joules": "min"}
    found = choose(frame, objectives, np.array([True, True, True, True]))
    assert found == [
        Chosen("Knee of time per output token and energy", 1),
        Chosen("Lowest time per output token", 0),
        Chosen("Lowest energy", 3),
    ]
    (only,) = choose(frame, {"tpot": "min"}, np.array([True, False, False, False]))
    assert only == Chosen("Lowest time per output token", 0)
    assert choose(frame, {}, np.zeros(4, bool)) == []


# -- the contest within a budget ------------------------------------------------------------------


def test_a_budget_names_its_winners_their_shares_and_what_it_is(tmp_path):
    about = contested(budgeted(tmp_path), "a chat")
    assert len(about["winners"]) == 4
    money, _, power, _ = about["winners"]
    # 10 H100 are 7 kW; the hungry twin takes 1.75 kW each.
    assert money.startswith("Money, ")
    assert power.startswith("Design power, 7 kW: h100-sxm-80gb does most, ")
    assert power.endswith("best in 100 % of the draws.")
    heads = [head for head, _ in about["heads"]]
    rows = [dict(zip(heads, row, strict=True)) for row in about["rows"]]
    assert [row["Within"] for row in rows if row["Within"]] == [
        "Money", "Die area", "Design power", "All three",
    ]  # fmt: skip
    hungry = [row for row in rows if row["Machine"] == "hungry"]
    assert [row["Copies"] for row in hungry] == ["10", "10", "4", "4"]
    assert hungry[2]["Best in"] == "0 %"
    for part in ("The work is a chat", "10 of h100-sxm-80gb", "256 draws", "7 kW of design power"):
        assert part in about["meaning"]
    assert about["aside"][0].startswith(f"{FULL} takes no part: ")


def test_where_another_is_best_more_often_the_winner_says_so(tmp_path):
    about = contested(budgeted(tmp_path, doubtful=True), "a chat")
    (power,) = (text for text in about["winners"] if text.startswith("Design power"))
    assert "doubtful does most" in power
    assert "; h100-sxm-80gb is best in " in power


def test_without_a_budget_there_is_no_contest_and_what_fails_is_said(tmp_path, monkeypatch):
    results = budgeted(tmp_path)

    def broken(_):
        raise ConfigError.one("machine.yaml", "", "the file is gone")

    monkeypatch.setattr("opbyte.sweeps.budget.contest", broken)
    about = contested(results, "a chat")
    assert "the file is gone" in about["problem"]
    assert not about["rows"]
    del results.meta["study"]["budget"]
    assert contested(results, "a chat") is None
