"""`kernel: {like: NAME}`: what is carried, from whom, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import Machine, load_machine

CATALOG = Path(__file__).parents[2] / "hw_models" / "catalog" / "machines"


def like(tmp_path: Path, name: str, relative: str, **kernel: Any) -> Path:
    """Return an H100 whose parameters come from a relative, beside its own."""
    data = yaml.safe_load((CATALOG / "h100-sxm-80gb.yaml").read_text())
    data["name"] = name
    data["parts"]["gpu"]["units"]["sm"]["kernel"] = {"like": relative, **kernel}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_relative_of_a_relative(tmp_path):
    far = load_machine(like(tmp_path, "far", "h20", energy="1 pJ/FLOP"))
    near = load_machine(like(tmp_path, "near", "a100-sxm-80gb", energy="1 pJ/FLOP"))
    of = {k: v for k, v in near.values.items() if ".kernel." in k}
    assert of
    assert {k: v for k, v in far.values.items() if ".kernel." in k} == of


def test_every_value_is_carried_with_a_wider_range(tmp_path):
    a100 = load_machine("a100-sxm-80gb")
    machine = load_machine(like(tmp_path, "near", "a100-sxm-80gb"))
    carried = [k for k in a100.values if ".kernel." in k]
    assert "gpu.sm.kernel.energy" in carried
    for key in carried:
        value, ends = machine.values[key], machine.parameters[key].range
        assert value == a100.values[key]
        assert ends is not None
        assert ends[0] == pytest.approx(value / 1.5, rel=1e-3) or key.endswith("pairing")
        assert ends[1] == pytest.approx(value * 1.5, rel=1e-3) or ends[1] == 1.0
        assert "nearest relative" in machine.parameters[key].source


@pytest.mark.parametrize("written", ["0.683us", "0.683 us", "683 ns", "6.83e-7 s"])
def test_quantities_are_carried_as_they_are_written(tmp_path, written):
    middle = like(tmp_path, "middle", "a100-sxm-80gb", fill=written, matrix="94 %")
    machine = load_machine(like(tmp_path, "last", str(middle)))
    assert machine.values["gpu.sm.kernel.fill"] == pytest.approx(0.683e-6)
    assert machine.values["gpu.sm.kernel.matrix"] == pytest.approx(0.94)
    assert machine.parameters["gpu.sm.kernel.matrix"].range[1] == pytest.approx(1.0)
    assert machine.parameters["gpu.sm.kernel.attention.pairing"].range[0] == 1.0


def test_relatives_in_a_circle_are_refused(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    like(tmp_path, "first", str(second))
    like(tmp_path, "second", str(first))
    with pytest.raises(ob.ConfigError, match="circle"):
        load_machine(first)


@pytest.mark.parametrize(
    ("name", "says"), [("a100-sxm-8gb", "a100-sxm-80gb"), ("sn40l-socket", "kernel"), (3, "name")]
)
def test_what_is_no_relative_is_refused(tmp_path, name, says):
    with pytest.raises(ob.ConfigError, match=says):
        load_machine(like(tmp_path, "lost", name))


# -- parts and links of another machine ------------------------------------------------------


def joined(**changes: Any) -> Machine:
    part = {"like": "h20.gpu", "count": 3, "memory": {"hbm": {"capacity": "64 GB"}}}
    link = {"like": "h20.nvlink", "ends": ["card", "card"]}
    data = {"kind": "machine", "name": "x", "parts": {"card": part}, "links": {"wire": link}}
    return load_machine(data | changes)


def test_a_part_and_a_link_are_those_of_another_machine_with_changes_on_top() -> None:
    machine, original = joined(), load_machine("h20")
    assert machine.counts == {"card": 3}
    assert machine.values["card.hbm.capacity"] == 64e9
    own = {"card.hbm.capacity"}
    for path, parameter in original.parameters.items():
        there = path.replace("gpu.", "card.", 1).replace("nvlink.", "wire.", 1)
        assert there in own or machine.parameters[there] == parameter
    assert machine.config.links["wire"].ends == ("card", "card")


def test_a_part_inside_a_part_may_be_another_machines_too() -> None:
    nodes, one = load_machine("duplex-2x8"), load_machine("duplex-x8")
    assert nodes.counts["node.device"] == 2 * one.counts["device"]
    for path, value in one.values.items():
        assert nodes.values[path.replace("device.", "node.device.", 1)] == value


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ("h20", "names a part or a link as machine.name"),
        ("h20.gpus", "h20 has none of this name in parts, got gpus. known: gpu"),
        ("h21.gpu", "h20"),
    ],
)
def test_a_part_that_does_not_exist_is_said(like: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        joined(parts={"card": {"like": like}})
