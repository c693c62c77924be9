"""What docs/studies.md says of six shipped studies, at a small scale: directions, not digits."""

import numpy as np
import pytest

from opbyte.sweeps.budget import contest
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study


def swept(folder, study, settings):
    results = run_plan(load_study(study, settings).plan, Options(out=folder, workers=1))
    assert results.counts.get("failed") is None
    return results


def test_three_tiers_want_bandwidth_before_capacity_and_capacity_before_faster_copies(tmp_path):
    settings = {
        "axes.machine.rdu.hbm.capacity": {"values": ["64 GiB", "128 GiB"]},
        "axes.machine.rdu.hbm.phy.bandwidth": {"values": ["1.8 TB/s", "3.6 TB/s"]},
        "axes.machine.fill.bandwidth": {"values": ["125 GB/s", "250 GB/s"]},
    }
    frame = swept(tmp_path, "three_tiers", settings).frame()
    keys = ["workload.output", "machine.rdu.hbm.capacity", "machine.rdu.hbm.phy.bandwidth"]
    rate = frame.set_index([*keys, "machine.fill.bandwidth"])["tokens_per_s"]
    size = 2**30
    for output in (20.0, 200.0):
        here = rate.loc[output]
        base = here.loc[64 * size, 1.8e12, 125e9]
        faster = here.loc[64 * size, 3.6e12, 125e9] / base
        larger = here.loc[128 * size, 1.8e12, 125e9] / base
        copies = here.loc[64 * size, 1.8e12, 250e9] / base
        assert faster > 1.2 * larger
        assert larger > copies > 1.0
        assert here.loc[128 * size, 1.8e12, 250e9] > here.loc[128 * size, 1.8e12, 125e9]
    cost = frame.groupby("machine.rdu.hbm.capacity")["price_usd"].first()
    assert cost.diff().iloc[1] == pytest.approx(8 * 64 * size * 7e-9, rel=0.5)


def test_cxl_holds_more_sequences_and_hbm_answers_more_of_them(tmp_path):
    settings = {
        "axes.workload.context": {"values": [32768]},
        "axes.machine.gpu.hbm.capacity": {"values": ["80 GB", "141 GB"]},
    }
    frame = swept(tmp_path, "cxl_or_hbm", settings).frame()
    frame["share"] = frame["mapping.place.kv.in"].str.extract(r"gpu.hbm': ([\d.]+)").astype(float)
    small = frame[(frame["machine.gpu.hbm.capacity"] == 80e9) & (frame["machine.aic.count"] == 4)]
    small = small.sort_values("share")
    assert (np.diff(small["batch_max"]) <= 0).all()
    assert (small["batch_max"].iloc[0] - 14) >= 14
    half = small.iloc[0]
    beside = small.iloc[-1]
    assert half["tokens_per_s"] < beside["tokens_per_s"] / 10
    best = frame.loc[frame["usd_per_mtoken"].idxmin()]
    assert best["share"] == 1.0


def test_a_larger_budget_of_logic_is_worth_less_the_larger_the_batch(tmp_path):
    settings = {
        "axes.machine.device.lpim.peak.bf16": {"values": ["34 TFLOP/s", "85 TFLOP/s"]},
        "axes.machine.device.hbm.tsv.bandwidth": {"values": ["3.352 TB/s", "13.408 TB/s"]},
        "axes.workload.batch": {"values": [16, 128]},
    }
    frame = swept(tmp_path, "logic_pim", settings).frame()
    best = {}
    for batch, rows in frame.groupby("workload.batch"):
        here = rows.sort_values("area_m2")
        best[batch] = here["speedup"].max() / here["speedup"].iloc[0]
    assert best[16] > best[128] > 1.0


def test_one_core_of_tables_beats_many_at_its_best_mu(tmp_path):
    settings = {
        "axes.machine.tile.core.lut.mu": {"values": [2, 3]},
        "axes.machine.tile.core.instances": {"values": [1, 16]},
    }
    frame = swept(tmp_path, "lut_cores", settings).frame()
    frame["product"] = frame["seconds"] * frame["area_m2"]
    for activation, mu in (("int8", 2), ("fp16", 3)):
        rows = frame[frame["machine.tile.core.lut.activation"] == activation]
        best = rows.loc[rows["product"].idxmin()]
        assert best["machine.tile.core.lut.mu"] == mu
        assert best["machine.tile.core.instances"] == 1


def test_more_drives_are_cheaper_for_a_token_and_wider_engines_are_not(tmp_path):
    settings = {
        "axes.machine.csd.count": {"values": [1, 5, 20]},
        "axes.machine.csd.flash.inside.bandwidth": {"values": ["11.2 GB/s"]},
        "axes.machine.csd.attn.csd.width": {"values": [16, 192]},
        "axes.machine.p2p.bandwidth": {"values": ["3.5 GB/s", "14 GB/s"]},
    }
    frame = swept(tmp_path, "csd", settings).frame()
    cost = frame.groupby("machine.csd.count")["usd_per_mtoken"].min()
    assert (np.diff(cost) < 0).all()
    rate = frame.groupby("machine.csd.count")["tokens_per_s"].max()
    assert 15 < rate.loc[20] / rate.loc[1] < 20
    one = frame[frame["machine.csd.count"] == 20].groupby("machine.csd.attn.csd.width")
    wide = one["tokens_per_s"].max()
    assert wide.loc[192] / wide.loc[16] < 1.01


@pytest.mark.parametrize(
    ("study", "batches", "winners", "refused"),
    [
        ("one_budget_long", [8, 12], {"dgx-h100-logic-pim"}, {"dgx-h100-csd"}),
        ("one_budget_prompts", [16, 24], {"dgx-h100"}, {"dgx-h100-csd"}),
        ("one_budget_ternary", [3072, 12288], {"dgx-h100-logic-pim"}, {"dgx-h100-csd"}),
    ],
)
def test_one_budget_has_another_winner_for_another_work(tmp_path, study, batches, winners, refused):
    settings = {"axes.workload.batch": {"values": batches}}
    frame = contest(swept(tmp_path, study, settings), samples=33)
    money = frame[frame["within"] == "price_usd"]
    assert set(money[money["wins"] > 0.5]["machine"]) == winners
    assert set(frame.attrs["refused"]) == refused
    assert (frame["evidence"].str.startswith("assumed")).all()
    assert set(frame[frame["built"]]["machine"]) == {"dgx-h100"}
    assert ((frame["low"] >= 0) & (frame["low"] <= frame["high"])).all()


def test_no_machine_is_forced_to_split_what_one_device_holds(tmp_path):
    settings = {"axes.workload.batch": {"values": [4096]}}
    results = swept(tmp_path, "one_budget_ternary", settings)
    frame = results.frame()
    frame = frame[(frame["status"] == "ok") & (frame["machine"] == "dgx-h100")]
    by_group = frame.groupby("mapping.parallel.all.tp")["tokens_per_s"].max()
    # Eight devices of one group copy the model's five heads of keys.
    assert by_group[1] > 1.5 * by_group[8]
    rows = contest(results, samples=17)
    rows = rows[rows["machine"].isin(["dgx-h100", "dgx-h100-logic-pim", "sn40l-dgx-host"])]
    assert rows["design"].str.contains("tp 1, dp 8").all()
