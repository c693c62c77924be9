"""The band of a front: laws of its probabilities, and what it is told of."""

import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import simulate
from opbyte.sweeps import plots
from opbyte.sweeps.cli import main
from opbyte.sweeps.drawn_costs import is_cost
from opbyte.sweeps.front_bands import front_band
from opbyte.sweeps.pareto import front
from opbyte.sweeps.plots._band import attained
from opbyte.sweeps.store import Results
from opbyte.sweeps.study import load_study

WORK = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096}
STUDY = {
    "kind": "study",
    "name": "few",
    "base": {"workload": WORK},
    "axes": {
        "machine": {"values": ["h100-sxm-80gb", "a100-sxm-80gb", "rtx-pro-6000", "h200-sxm-141gb"]},
        "workload.batch": {"log2": [1, 64]},
    },
    "objectives": {"tokens_per_s": "max", "price_usd": "min"},
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return load_study(STUDY).run(out=tmp_path_factory.mktemp("few"), workers=1)


def without_ranges(machine):
    """The document of a machine with no range anywhere."""

    def stripped(node):
        if isinstance(node, dict):
            return {k: stripped(v) for k, v in node.items() if k != "range" or "value" not in node}
        return [stripped(v) for v in node] if isinstance(node, list) else node

    return stripped(load_machine(machine).document.data)


@pytest.mark.parametrize("parameters", ["costs", "all"])
def test_without_ranges_the_band_has_no_width_and_nothing_is_in_doubt(tmp_path, parameters):
    machines = [without_ranges(n) for n in ("h100-sxm-80gb", "a100-sxm-80gb")]
    data = {**STUDY, "axes": {**STUDY["axes"], "machine": {"values": machines}}}
    results = load_study(data).run(out=tmp_path / "r", workers=1)
    band = front_band(results, parameters=parameters, samples=16)
    for name in STUDY["objectives"]:
        assert np.array_equal(band.frame[f"{name}_low"], band.frame[name])
        assert np.array_equal(band.frame[f"{name}_high"], band.frame[name])
    assert set(band.frame["probability"]) == {0.0, 1.0}
    assert (band.frame["probability"] == band.frame["on_front"]).all()


@pytest.mark.parametrize("parameters", ["costs", "all"])
def test_the_first_draw_is_the_stored_front(few, parameters):
    band = front_band(few, parameters=parameters, samples=64)
    stored = front(few.frame(), STUDY["objectives"])
    found = band.frame[band.frame["on_front"]]
    assert sorted(found["point"]) == sorted(stored["point"])
    for name in STUDY["objectives"]:
        assert (band.frame[f"{name}_low"] <= band.frame[f"{name}_high"]).all()


def test_probabilities_add_up_to_the_mean_size_of_fronts(few):
    band = front_band(few, samples=256)
    sizes = band.on_front[1:].sum(axis=1)
    assert (sizes >= 1).all()
    assert band.frame["probability"].sum() == pytest.approx(sizes.mean())
    assert band.frame["probability"].between(0, 1).all()


def test_a_draw_holds_for_all_points(few):
    # Batches of one machine cost the same in each draw, so a doubt of prices never decides.
    band = front_band(few, samples=128)
    prices = band.draws["price_usd"]
    rows = few.frame()
    order = {point: i for i, point in enumerate(_looked_at(few, band))}
    for _, group in rows[rows["status"] == "ok"].groupby("machine"):
        columns = [order[p] for p in group["point"] if p in order]
        assert np.ptp(prices[:, columns], axis=1).max() == 0.0
    small = band.frame[(band.frame["workload.batch"] < 64)]
    assert (small["probability"] == 0.0).all()


def _looked_at(results, band):
    """Points in the order of the columns of draws."""
    stored = results.frame().set_index("point")["tokens_per_s"]
    frame = stored[stored.isin(band.draws["tokens_per_s"][0])]
    by_value = {v: p for p, v in frame.items()}
    return [by_value[v] for v in band.draws["tokens_per_s"][0]]


def test_costs_move_costs_alone_and_all_moves_the_rest(few):
    costs, everything = (front_band(few, parameters=p, samples=64) for p in ("costs", "all"))
    assert np.ptp(costs.draws["tokens_per_s"], axis=0).max() == 0.0
    assert np.ptp(everything.draws["tokens_per_s"], axis=0).min() > 0.0
    assert everything.simulated
    assert not costs.simulated


def test_a_drawn_price_is_that_of_a_machine_with_those_values(tmp_path):
    data = {**STUDY, "axes": {"workload.batch": {"values": [8]}}}
    data = {**data, "base": {"machine": "h100-sxm-80gb", "workload": WORK}}
    data["objectives"] = {"tco_usd_per_mtoken": "min", "carbon_g_per_mtoken": "min"}
    results = load_study(data).run(out=tmp_path / "r", workers=1)
    band = front_band(results, samples=8, seed=3)
    again = front_band(results, samples=8, seed=3)
    # Prices of energy up, all else as it is: the law of the metric.
    machine = load_machine("h100-sxm-80gb")
    one = simulate(machine, {**WORK, "batch": 8})
    for name in data["objectives"]:
        assert band.draws[name][0, 0] == pytest.approx(getattr(one, name))
        assert np.array_equal(band.draws[name], again.draws[name])
        assert (band.draws[name] > 0).all()


def test_what_an_axis_sets_is_not_drawn(tmp_path):
    data = {**STUDY, "base": {"machine": "h100-sxm-80gb", "workload": WORK}}
    path = "machine.gpu.hbm.price"
    data["axes"] = {path: {"values": ["7 USD/GB", "20 USD/GB"]}}
    data["objectives"] = {"tokens_per_s": "max", "price_usd": "min"}
    results = load_study(data).run(out=tmp_path / "r", workers=1)
    band = front_band(results, samples=64)
    prices = band.draws["price_usd"]
    # The dearer memory costs more in every draw.
    assert (prices.max(axis=1) > prices.min(axis=1)).all()
    assert band.frame["probability"].tolist() == [1.0, 0.0]


def test_constraints_hold_in_each_draw(tmp_path):
    data = {**STUDY, "constraints": ["price_usd <= 2500 USD"]}
    results = load_study(data).run(out=tmp_path / "r", workers=1)
    band = front_band(results, samples=256)
    beyond = band.draws["price_usd"] > 2500
    assert beyond.any()
    assert not (band.on_front & beyond).any()


def limited(folder, *constraints, **changes):
    data = {**STUDY, "constraints": list(constraints), **changes}
    return load_study(data).run(out=folder, workers=1)


@pytest.mark.parametrize("constraint", ["price_usd <= 2400 USD", "usd_per_mtoken <= 0.008 USD"])
def test_every_ok_point_is_judged_in_every_draw(few, tmp_path, constraint):
    """As if each draw were a study of its own: of all points that keep the constraint in it."""
    objectives = {"tokens_per_s": "max", "price_usd": "min", "usd_per_mtoken": "min"}
    free = front_band(few, objectives=objectives, samples=128)
    band = front_band(limited(tmp_path, constraint), objectives=objectives, samples=128)
    assert free.left_out == band.left_out == 0
    name, _, limit, _ = constraint.split()
    found = dict(zip(band.frame["point"], band.frame["probability"], strict=True))
    wanted = dict.fromkeys(free.frame["point"], 0)
    rows = {n: free.draws[n][:, np.argsort(order_of(free))] for n in objectives}
    points = sorted(free.frame["point"])
    for i in range(1, 128):
        draw = pd.DataFrame({n: rows[n][i] for n in objectives}).assign(point=points)
        for point in front(draw[draw[name] <= float(limit)], objectives)["point"]:
            wanted[point] += 1
    assert {p: n / 127 for p, n in wanted.items() if n} == pytest.approx(
        {p: share for p, share in found.items() if share}
    )
    broken = band.frame[band.frame["violation"] > 0]
    assert (broken["probability"] > 0).any(), "a point that breaks it as stored"
    assert (broken["probability"] < 1).all()
    assert not broken["on_front"].any()


def order_of(band):
    """Return the points of a band's draws, in their order there."""
    at = [np.flatnonzero(band.draws["price_usd"][0] == p) for p in band.frame["price_usd"]]
    rate = band.draws["tokens_per_s"][0]
    pairs = zip(at, band.frame["tokens_per_s"], band.frame["point"], strict=True)
    place = {int(a[rate[a] == r][0]): point for a, r, point in pairs}
    return np.array([place[i] for i in range(len(place))])


def test_what_no_draw_can_mend_is_not_looked_at(tmp_path):
    results = limited(tmp_path, "price_usd <= 2400 USD", "tpot <= 12 ms")
    band = front_band(results, samples=64)
    assert (band.frame["tpot"] <= 12e-3).all()
    assert (band.draws["price_usd"].min(axis=0) <= 2400).all()
    with pytest.raises(ConfigError, match="keeps every constraint"):
        front_band(limited(tmp_path / "none", "price_usd <= 1 USD"), samples=64)


def test_a_time_that_is_drawn_may_keep_its_constraint(tmp_path, few):
    frame = few.frame()
    fast = frame[frame["machine"] == "h200-sxm-141gb"]["tpot"].min()
    results = limited(tmp_path, f"tpot <= {0.98 * fast * 1e3} ms")
    with pytest.raises(ConfigError, match="keeps every constraint"):
        front_band(results, samples=64)
    band = front_band(results, parameters="all", samples=64)
    assert 0.0 < band.frame["probability"].max() < 1.0
    assert not band.frame["on_front"].any()


def test_the_most_points_are_those_that_fewest_fronts_are_before(few):
    all_of_them, some = front_band(few, samples=16), front_band(few, samples=16, most=4)
    assert len(some.frame) == 4
    assert some.left_out == len(all_of_them.frame) - 4
    assert set(some.frame["point"][some.frame["on_front"]]) <= set(all_of_them.frame["point"])


def test_hundreds_of_points_and_a_thousand_draws_take_seconds(tmp_path):
    data = {**STUDY, "base": {"machine": "h100-sxm-80gb", "workload": WORK}}
    data["axes"] = {
        "machine.gpu.hbm.capacity": {"range": ["64 GB", "256 GB"], "steps": 40},
        "workload.batch": {"log2": [1, 16]},
    }
    results = load_study(data).run(out=tmp_path / "r", workers=1)
    began = time.process_time()
    band = front_band(results, samples=1000, most=200)
    assert band.on_front.shape == (1000, 200)
    assert time.process_time() - began < 10.0


def test_costs_are_told_from_what_takes_time():
    known = load_machine("h100-sxm-80gb").parameters
    costs = {p for p in known if is_cost(p, known[p])}
    assert {"gpu.hbm.price", "gpu.area", "site.grid", "making.interposer.bond"} <= costs
    assert not {"gpu.hbm.phy.efficiency", "gpu.sm.energy.bf16", "gpu.static_power"} & costs


def test_what_can_not_be_banded_is_refused(few, tmp_path):
    with pytest.raises(ConfigError, match="no column"):
        front_band(few, objectives={"latency_s": "min"})
    with pytest.raises(ConfigError, match="2 to 100,000 draws"):
        front_band(few, samples=1)
    study = {**few.meta["study"], "base": {"workload": WORK, "set": {}}, "objectives": {}}
    with pytest.raises(ConfigError, match="no objectives"):
        front_band(Results(few.folder, {**few.meta, "study": study}))


def test_points_stored_with_other_prices_are_refused(few):
    study = {**few.meta["study"]}
    study["base"] = {**study["base"], "set": {"machine.site.busy": 0.5}}
    front_band(Results(few.folder, {**few.meta, "study": study}), samples=4)
    study["base"] = {**study["base"], "set": {"machine.making.wafers": 2.0}}
    with pytest.raises(ConfigError, match="--fresh"):
        front_band(Results(few.folder, {**few.meta, "study": study}), samples=4)


def test_the_front_lies_inside_of_its_band(few):
    band = front_band(few, samples=256)
    grid, low, high = attained(band, "tokens_per_s", "price_usd")
    here = np.isfinite(low) & np.isfinite(high)
    assert (low[here] <= high[here]).all()
    # Less throughput is never dearer.
    assert (np.diff(low[here]) >= 0).all()
    assert (np.diff(high[here]) >= 0).all()
    assert grid[0] < grid[-1]


def test_the_figure_and_the_command_tell_of_the_band(few, tmp_path, capsys):
    band = front_band(few, samples=64)
    ax = plots.pareto(few, "tokens_per_s", "price_usd", band=band)
    texts = [t.get_text() for t in ax.figure.legends[0].get_texts()]
    assert "front in 5 to 95 % of draws" in texts
    with pytest.raises(ConfigError, match="no such objective"):
        plots.pareto(few, "tpot", "price_usd", band=band)
    plt.close("all")
    assert main(["front", str(few.folder), "--samples", "64", "--plot", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "probability" in printed
    assert "64 draws of what decides costs" in printed
    assert (tmp_path / "b.png").exists()
    assert not plt.get_fignums(), "figures are closed"
    assert main(["front", str(few.folder), "--samples", "64", "--json", "--all"]) == 0
    import json

    answer = json.loads(capsys.readouterr().out)
    assert answer["simulated"] is True
    assert {p["machine"] for p in answer["points"]} <= set(STUDY["axes"]["machine"]["values"])


def test_a_stored_value_that_its_axis_does_not_have_is_named(tmp_path, capsys):
    results = load_study(STUDY).run(out=tmp_path, workers=1)
    (part,) = results.parts
    table = pq.read_table(part)
    at = table.column_names.index("machine")
    other = pa.array(["tpu"] * len(table))
    said = table.schema.metadata
    table = table.remove_column(at).add_column(at, "machine", other)
    pq.write_table(table.replace_schema_metadata(said), part)
    assert main(["front", str(tmp_path), "--samples", "4"]) == 2
    error = capsys.readouterr().err
    for word in ("study.json", "machine", "none of its axis", "tpu", "--fresh"):
        assert word in error
