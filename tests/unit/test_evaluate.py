"""Points as arrays agree with points one by one, and failures are rows."""

import math

import numpy as np
import pandas as pd
import pytest

from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import simulate
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study

WORKLOAD = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096}


def study(axes, machine="sn40l-node", workload=WORKLOAD, **more):
    base = {"machine": machine, "workload": workload}
    return load_study({"kind": "study", "base": base, "axes": axes, **more})


def run(loaded, folder, **options):
    return run_plan(loaded.plan, Options(out=folder, **options))


@pytest.mark.parametrize("machine", ["sn40l-node", "dgx-h100"])
def test_every_number_of_a_machine_gives_the_same_as_an_array_and_as_a_new_machine(
    machine, tmp_path
):
    """Each parameter at other values: the array path against `Machine.replace`."""
    loaded = load_machine(machine)
    for path, parameter in loaded.parameters.items():
        # Factors may have 1 as their least.
        parts = (1.1, 1.05) if parameter.dimension == "factor" else (0.9, 0.95)
        values = [part * parameter.value for part in parts]
        written = [type(parameter)(v, parameter.dimension) for v in values]
        texts = [_written(p) for p in written]
        results = run(study({f"machine.{path}": texts}, machine), tmp_path / path, fresh=True)
        frame = results.frame()
        for i, text in enumerate(texts):
            expected = simulate(loaded.replace({path: text}), WORKLOAD).metrics
            for name in ("seconds", "joules", "area_m2", "price_usd"):
                assert frame[name][i] == pytest.approx(expected[name], rel=1e-12, nan_ok=True), (
                    path,
                    name,
                )


def _written(parameter):
    from opbyte.core.parameters import _written as written

    return written(parameter)


def test_work_fields_give_the_same_as_one_by_one(tmp_path):
    axes = {"workload.batch": [1, 7, 64], "workload.context": [100, 5000]}
    frame = run(study(axes), tmp_path).frame()
    assert len(frame) == 6
    for row in frame.itertuples(index=False):
        work = {**WORKLOAD, "batch": int(row[1]), "context": int(row[2])}
        expected = simulate("sn40l-node", work).metrics
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-12, nan_ok=True), name


def test_derived_parameters_follow_their_axis(tmp_path):
    link = {"machine.rdu.pcu.peak.bf16": "350 * machine.rdu.hbm.phy.bandwidth"}
    axes = {"machine.rdu.hbm.phy.bandwidth": ["1 TB/s", "2 TB/s"], "workload.batch": [512]}
    frame = run(study(axes, derive=link), tmp_path).frame()
    assert frame["machine.rdu.pcu.peak.bf16"].tolist() == [350e12, 700e12]
    for rate, peak, seconds in zip((1, 2), (350, 700), frame["seconds"], strict=True):
        machine = load_machine("sn40l-node").replace(
            {"rdu.hbm.phy.bandwidth": f"{rate} TB/s", "rdu.pcu.peak.bf16": f"{peak} TFLOP/s"}
        )
        expected = simulate(machine, {**WORKLOAD, "batch": 512}).seconds
        assert seconds == pytest.approx(expected, rel=1e-12)


def test_a_derived_split_is_a_design_of_its_own(tmp_path):
    axes = {"workload.batch": [1, 2, 8]}
    loaded = study(axes, derive={"mapping.parallel.all.tp": "workload.batch"})
    frame = run(loaded, tmp_path).frame()
    for tp, seconds in zip((1, 2, 8), frame["seconds"], strict=True):
        mapping = load_machine("sn40l-node").document.data["mappings"]["default"]
        mapping = {**mapping, "parallel": {"all": {**mapping["parallel"]["all"], "tp": tp}}}
        work = {**WORKLOAD, "batch": tp}
        assert seconds == pytest.approx(simulate("sn40l-node", work, mapping).seconds, rel=1e-12)


def test_an_impossible_derived_value_is_a_failed_row_and_its_neighbours_are_not(tmp_path):
    axes = {"workload.batch": [1, 2, 3, 4]}
    link = {"machine.rdu.hbm.phy.bandwidth": "1e12 * (workload.batch - 2.5)"}
    frame = run(study(axes, derive=link), tmp_path).frame()
    assert frame["status"].tolist() == ["failed", "failed", "ok", "ok"]
    assert "derived" in frame["reason"][0]
    expected = study(axes={"workload.batch": [3, 4]}, derive=link)
    alone = run(expected, tmp_path / "alone").frame()
    assert frame["seconds"][2:].tolist() == alone["seconds"].tolist()


def test_what_does_not_fit_is_a_row_that_says_what_and_by_how_much(tmp_path):
    axes = {"machine.rdu.hbm.capacity": ["1 GiB", "64 GiB"], "workload.batch": [1, 64]}
    frame = run(study(axes), tmp_path).frame()
    assert frame["status"].tolist() == ["infeasible", "infeasible", "ok", "ok"]
    assert "rdu.hbm" in frame["reason"][0]
    assert (frame["needed_bytes"][:2] > frame["available_bytes"][:2]).all()
    assert frame["available_bytes"][0] == 2.0**30
    assert frame["seconds"].isna().tolist() == [True, True, False, False]


def test_a_point_that_makes_no_sense_is_a_failed_row_alone(tmp_path):
    axes = {"workload.context": [1000, 10**6, 2000, 10**7]}
    frame = run(study(axes), tmp_path).frame()
    assert frame["status"].tolist() == ["ok", "failed", "ok", "failed"]
    assert "context" in frame["reason"][1]
    alone = run(study({"workload.context": [1000, 2000]}), tmp_path / "alone").frame()
    assert frame["seconds"][[0, 2]].tolist() == alone["seconds"].tolist()


def test_speedup_compares_with_the_baseline_at_the_same_workload(tmp_path):
    axes = {"machine.rdu.hbm.phy.bandwidth": ["1 TB/s", "2 TB/s"], "workload.batch": [1, 32]}
    frame = run(study(axes, baseline={"machine": "dgx-h100"}), tmp_path).frame()
    for batch, part in frame.groupby("workload.batch"):
        expected = simulate("dgx-h100", {**WORKLOAD, "batch": int(batch)}).seconds
        assert part["baseline_seconds"].tolist() == pytest.approx([expected] * 2, rel=1e-12)
        assert (part["speedup"] * part["seconds"]).tolist() == pytest.approx([expected] * 2)


def test_speedup_is_per_token_where_other_numbers_of_sequences_fit(tmp_path):
    axes = {"machine.gpu.hbm.capacity": {"values": ["80 GB", "120 GB"]}}
    more = {"baseline": {"machine": "dgx-a100"}}
    more["objectives"] = {"tokens_per_s": "max"}
    frame = run(study(axes, "dgx-a100", {**WORKLOAD, "batch": "max"}, **more), tmp_path).frame()
    assert frame["batch_max"].is_monotonic_increasing
    assert frame["speedup"].iloc[0] == pytest.approx(1.0)
    expected = frame["tokens_per_s"] / frame["baseline_tokens_per_s"].iloc[0]
    assert frame["speedup"].tolist() == pytest.approx(expected.tolist())
    assert frame["speedup"].iloc[1] > 1.0


def test_a_baseline_that_does_not_fit_has_a_status_and_no_speedup(tmp_path):
    work = {**WORKLOAD, "model": "llama-3.1-70b"}
    loaded = study({"workload.batch": [1]}, workload=work, baseline={"machine": "rtx-4090"})
    (row,) = run(loaded, tmp_path).frame().itertuples(index=False)
    assert (row.status, row.baseline_status) == ("ok", "infeasible")
    assert math.isnan(row.speedup)


def test_violation_is_the_relative_excess(tmp_path):
    loaded = study({"workload.batch": [1, 64]}, constraints=["tpot <= 1 ms", "tokens_per_s >= 1"])
    frame = run(loaded, tmp_path).frame()
    expected = np.maximum(frame["tpot"] / 1e-3 - 1.0, 0.0)
    assert frame["violation"].tolist() == pytest.approx(expected.tolist())
    assert expected.max() > 0


MIXED = {
    "machine": ["sn40l-node", "dgx-h100"],
    "machine.hbm.phy.bandwidth": {"range": ["1 TB/s", "3 TB/s"], "steps": 7},
    "machine.hbm.capacity": ["2 GiB", "24 GiB", "60 GiB"],
    "workload.context": [64, 4096, 100000, 300000],
    "workload.batch": {"log2": [1, 256]},
}


def test_the_frame_is_bit_identical_for_any_chunk_worker_count_and_shard(tmp_path):
    loaded = study(MIXED, baseline={"machine": "dgx-a100"}, objectives={"tokens_per_s": "max"})
    whole = run(loaded, tmp_path / "whole").frame()
    assert set(whole["status"]) == {"ok", "infeasible", "failed"}
    for name, options in {
        "small": {"chunk": 13},
        "two": {"workers": 2, "chunk": 100},
    }.items():
        frame = run(loaded, tmp_path / name, **options).frame()
        pd.testing.assert_frame_equal(frame, whole, check_exact=True)
    for part in (1, 2, 3):
        run(loaded, tmp_path / "shards", shard=(part, 3))
    frame = run(loaded, tmp_path / "shards").frame()
    pd.testing.assert_frame_equal(frame, whole, check_exact=True)


def test_one_point_alone_has_the_bits_that_it_has_among_others(tmp_path):
    axes = {"workload.batch": [1, 2, 3, 5, 8, 13]}
    frame = run(study(axes), tmp_path / "all").frame()
    for batch, seconds, joules in zip(
        axes["workload.batch"], frame["seconds"], frame["joules"], strict=True
    ):
        one = run(study({"workload.batch": [batch]}), tmp_path / str(batch)).frame()
        assert (one["seconds"][0], one["joules"][0]) == (seconds, joules)


COE = {
    "kind": "coe", "router": "llama-2-7b", "experts": {"model": "llama-2-7b", "count": 100},
    "batch": 4, "input": 64, "output": 4, "requests": 5,
}  # fmt: skip


def test_event_points_have_seeds_of_their_own_whatever_runs_them(tmp_path):
    axes = {"workload.count": [60, 100, 140], "machine.fill.bandwidth": ["100 GB/s", "200 GB/s"]}
    loaded = study(axes, workload=COE, fidelity="event")
    one = run(loaded, tmp_path / "one", workers=1).frame()
    two = run(loaded, tmp_path / "two", workers=2, chunk=1).frame()
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert one["misses"].nunique() > 1
    other = run(study(axes, workload=COE, fidelity="event", seed=1), tmp_path / "seed").frame()
    assert other["misses"].tolist() != one["misses"].tolist()
