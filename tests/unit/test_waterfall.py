"""A waterfall: changes on top of each other, of one configuration or of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError

WORK = {"kind": "decode", "model": "opt-13b", "batch": 16, "context": 1024}
EXPERIMENT: dict[str, Any] = {
    "name": "data sheet", "machine": "a6000-csd", "mapping": "flexgen", "fidelity": "bound",
    "workload": WORK,
}  # fmt: skip
SOFTWARE = "mapping.routes.kv"


def route(**software: Any) -> dict[str, Any]:
    return {"via": ["nvme"], "software": software}


def value(fidelity: Any = "analytic", mapping: Any = "flexgen", **work: Any) -> float:
    return ob.simulate("a6000-csd", {**WORK, **work}, mapping, fidelity).tokens_per_s


def test_each_row_is_a_simulation_of_all_changes_so_far() -> None:
    changes = {
        "analytic": {"fidelity": "analytic"},
        "gds": {"mapping": "flexgen-gds"},
        "batch": {"workload.batch": 32},
    }
    frame = ob.waterfall(EXPERIMENT, changes, "tokens_per_s")
    expected = [value("bound"), value(), value(mapping="flexgen-gds"),
                value(mapping="flexgen-gds", batch=32)]  # fmt: skip
    assert list(frame["step"]) == ["data sheet", "analytic", "gds", "batch"]
    assert list(frame["value"]) == expected
    assert frame["change"].sum() == pytest.approx(expected[-1] - expected[0])
    assert frame["factor"][1:].prod() == pytest.approx(expected[-1] / expected[0])
    assert frame.attrs == {"metric": "tokens_per_s", "ratio": False}


def test_a_new_mapping_forgets_what_was_set_inside_the_one_before() -> None:
    capped = {SOFTWARE: route(cap="1 GB/s")}
    changes = {"cap": {"fidelity": "analytic", **capped}, "gds": {"mapping": "flexgen-gds"}}
    frame = ob.waterfall(EXPERIMENT, changes, "tokens_per_s")
    assert frame["value"][1] < value() < frame["value"][2]
    assert frame["value"][2] == value(mapping="flexgen-gds")


def test_a_baseline_follows_hardware_and_work_and_has_a_mapping_of_its_own() -> None:
    changes = {
        "analytic": {"fidelity": "analytic"},
        "slower disk": {"machine.disk.flash.nvme.bandwidth": "3.5 GB/s"},
        "file system": {"baseline.mapping": "flexgen"},
        "own": {"mapping": "deepspeed"},
    }
    experiment = {**EXPERIMENT, "mapping": "flexgen-gds"}
    baseline = {"mapping": "flexgen-gds"}
    frame = ob.waterfall(experiment, changes, "tokens_per_s", baseline=baseline)
    assert list(frame["value"][:3]) == [1.0, 1.0, 1.0]
    slow = {**EXPERIMENT, "fidelity": "analytic",
            "set": {"machine.disk.flash.nvme.bandwidth": "3.5 GB/s"}}  # fmt: skip
    ours = ob.waterfall({**slow, "mapping": "deepspeed"}, {}, "tokens_per_s")["value"][0]
    theirs = ob.waterfall(slow, {}, "tokens_per_s")["value"][0]
    assert frame["value"][4] == pytest.approx(ours / theirs, rel=1e-12)
    assert frame.attrs["ratio"]


def test_an_experiment_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(
        "kind: experiment\nmachine: a6000-csd\nmapping: flexgen\n"
        "workload: {kind: decode, model: opt-13b, batch: 16, context: 1024}\n"
    )
    frame = ob.waterfall(file, {}, "tokens_per_s")
    assert list(frame["step"]) == ["start"]
    assert frame["value"][0] == value()


@pytest.mark.parametrize(
    ("changes", "metric", "text"),
    [
        (
            {"x": {"fusion": "none"}},
            "seconds",
            "begins with machine, mapping, workload or fidelity",
        ),
        ({"x": {"baseline.mapping": "gds"}}, "seconds", "no baseline to change"),
        ({"x": {"mapping": "flexgen-gsd"}}, "seconds", "flexgen-gds"),
        ({}, "token_per_s", "did you mean 'tokens_per_s'"),
    ],
)
def test_what_does_not_exist_is_refused(changes: Any, metric: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ob.waterfall(EXPERIMENT, changes, metric)


def test_a_step_that_does_not_fit_says_so() -> None:
    large = {"batch": {"workload": {**WORK, "kind": "generate", "batch": 128, "input": 1024,
                                    "output": 8}}}  # fmt: skip
    del large["batch"]["workload"]["context"]
    with pytest.raises(CapacityError, match=r"scores do not fit in gpu\.gddr"):
        ob.waterfall(EXPERIMENT, large, "seconds")


def test_a_waterfall_is_drawn_with_a_bar_for_each_step_and_the_whole() -> None:
    changes = {"analytic": {"fidelity": "analytic"}, "gds": {"mapping": "flexgen-gds"}}
    frame = ob.waterfall(EXPERIMENT, changes, "tokens_per_s")
    ax = ob.plot.waterfall(frame)
    assert [t.get_text() for t in ax.get_yticklabels()] == [*frame["step"], "all of it"]
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx([*frame["value"], frame["value"][2]])
    assert "tokens/s" in ax.get_xlabel()
    assert isinstance(ax.get_figure(), Figure)
    with pytest.raises(ConfigError, match=r"a frame of `opbyte\.waterfall` is due"):
        ob.plot.waterfall(pd.DataFrame({"a": [1]}))
