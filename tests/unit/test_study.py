"""Study files: what they mean, and every mistake at once before anything runs."""

import copy

import numpy as np
import pytest

from opbyte.core.config import parse_document
from opbyte.core.errors import ConfigError
from opbyte.sweeps.study import STUDIES, load_study, parse_settings

BASE = {
    "kind": "study",
    "base": {
        "machine": "sn40l-node",
        "workload": {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096},
    },
    "axes": {"workload.batch": {"log2": [1, 8]}},
}
BANDWIDTH = "machine.rdu.hbm.phy.bandwidth"


def study(**changes):
    return load_study({**copy.deepcopy(BASE), **changes}).plan


def problems(**changes):
    with pytest.raises(ConfigError) as caught:
        study(**changes)
    return [str(p) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"values": ["1 TB/s", "1.5 TB/s"]}, [1e12, 1.5e12]),
        (["1 TB/s", "2000 GB/s"], [1e12, 2e12]),
        ({"range": ["1 TB/s", "4 TB/s"], "steps": 4}, [1e12, 2e12, 3e12, 4e12]),
        ({"range": ["1 TB/s", "4 TB/s"], "steps": 3, "scale": "log"}, [1e12, 2e12, 4e12]),
        ({"log2": ["1 TB/s", "5 TB/s"]}, [1e12, 2e12, 4e12]),
    ],
)
def test_forms_of_an_axis(form, expected):
    (axis,) = study(axes={BANDWIDTH: form}).axes
    assert axis.numbers.tolist() == pytest.approx(expected)
    assert axis.target.kind == "value"


def test_counts_of_a_range_are_whole_numbers():
    (axis,) = study(axes={"workload.batch": {"range": [1, 10], "steps": 4}}).axes
    assert axis.numbers.tolist() == [1.0, 4.0, 7.0, 10.0]
    (axis,) = study(axes={"workload.batch": {"range": [1, 4], "steps": 100}}).axes
    assert axis.numbers.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_numbers_are_arrays_and_structure_is_not():
    axes = {BANDWIDTH: ["1 TB/s"], "mapping.fusion": ["none", "layer"], "workload.batch": [1]}
    plan = study(axes=axes)
    assert plan.slow == {"mapping.fusion"}
    assert [a.target.kind for a in plan.axes] == ["value", "structure", "field"]


def test_a_short_path_is_the_parameter_that_it_means():
    (axis,) = study(axes={"machine.hbm.phy.bandwidth": ["1 TB/s"]}).axes
    assert axis.target.key == BANDWIDTH


def test_a_path_may_mean_another_part_on_each_machine():
    axes = {"machine": ["sn40l-node", "dgx-h100"], "machine.hbm.phy.bandwidth": ["1 TB/s"]}
    assert study(axes=axes).points().count == 2


def test_an_axis_that_structure_follows_from_is_taken_one_by_one():
    base = {**BASE["base"], "mapping": "default"}
    axes = {"workload.batch": [1, 2, 4], BANDWIDTH: ["1 TB/s"]}
    plan = study(base=base, axes=axes, derive={"mapping.parallel.all.tp": "workload.batch"})
    assert plan.slow == {"workload.batch"}


def test_strategies_count_their_points():
    two = {"workload.batch": [1, 2, 4], BANDWIDTH: ["1 TB/s", "2 TB/s", "3 TB/s"]}
    assert study(axes=two).points().count == 9
    assert study(axes=two, strategy={"kind": "zip"}).points().count == 3
    assert study(axes=two, strategy={"kind": "random", "points": 17}).points().count == 17
    assert study(axes=two, strategy={"kind": "sobol", "points": 5}).points().count == 5
    points = [
        {"workload.batch": 2, BANDWIDTH: "1 TB/s"},
        {"workload.batch": 1, BANDWIDTH: "1 TB/s"},
    ]
    plan = study(axes={}, strategy={"kind": "list", "points": points})
    codes = plan.points().codes(np.arange(2))
    assert plan.by_path["workload.batch"].number(codes["workload.batch"]).tolist() == [2.0, 1.0]


def test_a_study_without_axes_is_one_point():
    assert study(axes={}).points().count == 1


def test_every_problem_of_a_file_at_once():
    found = problems(
        axes={"machine.rdu.hbm.phy.bandwith": ["1 TB/s"], "workload.bath": [1], "speed": [1]},
    )
    assert any("'speed'" in p or "speed" in p for p in found)
    found = problems(
        axes={BANDWIDTH: ["1 TB", "3"], "machine.rdu.hbn.capacity": ["1 GiB"]},
        derive={"machine.rdu.pcu.peak.bf16": "2 * machine.rdu.nothing"},
        objectives={"tokens_per_sec": "max"},
        constraints=["tpot <= 3 GiB", "ttft <= 1 s", "what"],
    )
    text = "\n".join(found)
    for word in (
        "bandwidth", "'hbn'", "'hbm'", "nothing", "tokens_per_s", "tpot", "ttft", "constraint",
    ):  # fmt: skip
        assert word in text, word
    assert len(found) >= 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objectives": {"ttft": "min"}}, ["ttft", "decode", "tpot"]),
        ({"objectives": {"speedup": "max"}}, ["speedup", "baseline"]),
        ({"baseline": {"machine": "dgx-h10"}}, ["dgx-h100"]),
        ({"strategy": {"kind": "gird"}}, ["grid"]),
        ({"axes": {"workload.batch": {"range": [1, 2]}}}, ["steps"]),
        ({"axes": {"workload.batch": {"values": []}}}, ["values"]),
        ({"axes": {"workload.batch": {"values": [1], "log2": [1, 2]}}}, ["exactly one"]),
        ({"axes": {"workload.batch": [1, 1]}}, ["once"]),
        ({"axes": {BANDWIDTH: {"log2": ["0 TB/s", "4 TB/s"]}}}, ["above 0"]),
        ({"axes": {"workload.batch": ["many"]}}, ["many"]),
        ({"axes": {"mapping.fusion": ["none", "layers"]}}, ["layers"]),
        ({"axes": {BANDWIDTH: ["1 TB/s"], "machine.hbm.phy.bandwidth": ["1 TB/s"]}}, ["same"]),
        ({"axes": {BANDWIDTH: [1e12]}}, ["unit", "1.8 TB/s"]),
        ({"derive": {"workload.batch": "2"}}, ["axis"]),
        (
            {"derive": {BANDWIDTH: "machine.p2p.bandwidth", "machine.p2p.bandwidth": BANDWIDTH}},
            ["circle"],
        ),
        ({"name": "../up"}, ["name"]),
        ({"base": {"workload": BASE["base"]["workload"]}}, ["machine"]),
        ({"base": {"machine": "sn40l-node", "workload": {"kind": "decod"}}}, ["decode"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(changes, words):
    text = "\n".join(problems(**changes))
    for word in words:
        assert word in text


def test_a_problem_has_the_place_in_the_file():
    text = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
axes:
  workload.batch: [1, 2]
objectives: {tokens: max}
constraints: ["tpot < = 2"]
"""
    with pytest.raises(ConfigError) as caught:
        load_study(parse_document(text, "s.yaml"))
    places = sorted(p.where for p in caught.value.problems)
    assert [p.rpartition(":")[0] for p in places] == ["s.yaml:7", "s.yaml:8"]


SET = """\
kind: study
base:
  machine: sn40l-node
  workload: {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}
  set:
    machine.rdu.hbm.phy.bandwith: 2 TB/s
    workload.bach: 2
axes:
  workload.batch: [1, 2]
"""


def test_a_mistake_in_set_has_its_place_in_the_file():
    with pytest.raises(ConfigError) as caught:
        load_study(parse_document(SET, "s.yaml"))
    places = {p.where: str(p) for p in caught.value.problems}
    assert "'bandwidth'" in places["s.yaml:6:5"]
    assert "'batch'" in places["s.yaml:7:5"]


def test_a_mistake_on_the_command_line_has_its_place_there():
    good = SET.replace("bandwith", "bandwidth").replace("    workload.bach: 2\n", "")
    with pytest.raises(ConfigError) as caught:
        load_study(parse_document(good, "s.yaml"), {BANDWIDTH: "3 TB"})
    assert caught.value.problems[0].where.startswith("--set rdu.hbm.phy.bandwidth")


def test_settings_reach_base_axes_and_strategy():
    settings = parse_settings(
        [
            "workload.context=128",
            f"{BANDWIDTH}=3 TB/s",
            "fidelity=bound",
            "axes.workload.batch={values: [4]}",
        ]
    )
    plan = load_study(BASE, settings).plan
    design = plan.side.build({})
    assert design.work.context == 128
    assert design.machine.values["rdu.hbm.phy.bandwidth"] == 3e12
    assert plan.study.fidelity == "bound"
    assert plan.by_path["workload.batch"].numbers.tolist() == [4.0]


def test_a_setting_of_nothing_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="hbm"):
        load_study(BASE, {"machine.rdu.hbn.phy.bandwidth": "1 TB/s"})
    with pytest.raises(ConfigError, match="is an axis"):
        load_study(BASE, {"workload.batch": 3})
    with pytest.raises(ConfigError, match="path=value"):
        parse_settings(["workload.batch"])


@pytest.mark.parametrize("name", STUDIES.names())
def test_shipped_studies_load_and_describe_themselves(name):
    loaded = load_study(name)
    assert loaded.name == name
    assert len(loaded.plan.study.description) > 30
    assert loaded.plan.study.objectives


def test_a_machine_may_be_written_in_the_study_or_beside_it(tmp_path):
    fast = {"rdu": {"memory": {"hbm": {"ports": {"phy": {"bandwidth": "9 TB/s"}}}}}}
    inline = {"extends": "sn40l-node", "name": "fast", "parts": fast}
    plan = study(base={**BASE["base"], "machine": inline})
    assert plan.side.build({}).machine.values["rdu.hbm.phy.bandwidth"] == 9e12
    (tmp_path / "machines").mkdir()
    (tmp_path / "machines" / "slow.yaml").write_text("extends: sn40l-node\nname: slow\n")
    file = tmp_path / "s.yaml"
    file.write_text(
        "kind: study\nbase: {machine: machines/slow.yaml, workload: {kind: decode, "
        "model: llama-3.1-8b, batch: 1, context: 64}}\n"
    )
    assert load_study(file).plan.side.build({}).machine.name == "slow"


def test_a_folder_of_results_hides_no_shipped_study_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()
    assert load_study("quick").plan.name == "quick"
    with pytest.raises(ConfigError, match="this is a folder"):
        load_study("./quick")
