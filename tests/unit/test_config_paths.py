"""Do dotted paths mean what users expect, and are wrong ones explained?"""

from typing import Any

import pytest

from opbyte.core.config import (
    Document,
    parse_assignment,
    parse_document,
    resolve_path,
    set_values,
)
from opbyte.core.errors import ConfigError

MACHINE = """
parts:
  host: {memory: {dram: {ports: {bus: {bandwidth: 400 GB/s}}}}}
  rdu:
    count: 8
    memory:
      hbm: {capacity: 64 GiB, ports: {phy: {bandwidth: 1.8 TB/s}}}
      ddr: {capacity: 1.5 TiB, ports: {phy: {bandwidth: 200 GB/s}}}
    units: {pcu: {peak: {bf16: 638 TFLOP/s, t1.6: 1 POP/s}}}
links: {fill: {bandwidth: 125 GB/s}}
place: {expert.weight: {in: {rdu.ddr: 1.0}}, kv: {in: {rdu.hbm: 1.0}}}
run: [{ops: all, unit: rdu.pcu}]
"""


@pytest.fixture
def machine() -> Document:
    return parse_document(MACHINE, "m.yaml")


def failure(data: dict[str, Any], path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_path(data, path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("rdu.hbm.phy.bandwidth", "parts rdu memory hbm ports phy bandwidth"),
        ("parts.rdu.memory.hbm.ports.phy.bandwidth", "parts rdu memory hbm ports phy bandwidth"),
        ("rdu.memory.hbm.phy.bandwidth", "parts rdu memory hbm ports phy bandwidth"),
        ("rdu.pcu.peak.bf16", "parts rdu units pcu peak bf16"),
        ("rdu.pcu.peak.t1.6", "parts rdu units pcu peak t1.6"),
        ("fill.bandwidth", "links fill bandwidth"),
        ("rdu", "parts rdu"),
        ("parts", "parts"),
        ("place.expert.weight.in.rdu.ddr", "place expert.weight in rdu.ddr"),
        ("place.kv.in", "place kv in"),
        ("run.0.unit", "run 0 unit"),
        # Absent last words: the schema judges them.
        ("rdu.hbm.phy.latency", "parts rdu memory hbm ports phy latency"),
        ("rdu.pcu.peak.fp8", "parts rdu units pcu peak fp8"),
        ("fidelity", "fidelity"),
    ],
)
def test_words_may_be_left_out(machine: Document, path: str, full: str) -> None:
    assert resolve_path(machine.data, path) == tuple(full.split())


def test_other_words_may_be_transparent(machine: Document) -> None:
    path = resolve_path({"a": {"x": {"b": 1}}}, "a.b", transparent={"x"})
    assert path == ("a", "x", "b")
    with pytest.raises(ConfigError):
        resolve_path(machine.data, "rdu.hbm.phy.bandwidth", transparent=())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("rdu.hmb.phy.bandwidth", ["nothing is called 'hmb' in rdu", "Did you mean 'hbm'"]),
        ("rdx.hbm.phy.bandwidth", ["nothing is called 'rdx' here", "Did you mean 'rdu'"]),
        ("rdu.hbm.ph.bandwidth", ["'ph' in rdu.hbm", "Did you mean 'phy'", "capacity, phy"]),
        ("rdu.count.x", ["rdu.count has no parts of its own", "Set rdu.count as a whole"]),
        ("run.1.unit", ["nothing is called '1' in run", "Known: 0"]),
        ("run.-1.unit", ["nothing is called '-1' in run"]),
        ("", ["not a path"]),
        ("a..b", ["not a path"]),
        (".a", ["not a path"]),
        ("a" * 1000, ["not a path"]),
    ],
)
def test_unknown_paths_are_explained(machine: Document, path: str, words: list[str]) -> None:
    message = failure(machine.data, path)
    for word in words:
        assert word in message


def test_ambiguous_paths_list_what_they_may_mean() -> None:
    data = {"rdu": {"memory": {"x": {"rate": 1}}, "units": {"x": {"rate": 2}}}}
    message = failure(data, "rdu.x.rate")
    assert "rdu.x.rate: the path means 2 entries" in message
    assert "Write one of: rdu.memory.x.rate, rdu.units.x.rate." in message
    assert resolve_path(data, "rdu.units.x.rate") == ("rdu", "units", "x", "rate")
    assert "rdu.memory.x.absent, rdu.units.x.absent" in failure(data, "rdu.x.absent")


def test_a_path_in_full_means_itself() -> None:
    data = {"hbm": 1, "memory": {"hbm": 2}}
    assert resolve_path(data, "hbm") == ("hbm",)
    assert resolve_path(data, "memory.hbm") == ("memory", "hbm")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("machine.rdu.hbm.phy.bandwidth=2.4 TB/s", ("machine.rdu.hbm.phy.bandwidth", "2.4 TB/s")),
        ("workload.batch=8", ("workload.batch", 8)),
        ("a=1e12", ("a", 1e12)),
        ("a = [1, 2]", ("a", [1, 2])),
        ("a={b: 1}", ("a", {"b": 1})),
        ("a=no", ("a", "no")),
        ("a='5'", ("a", "5")),
        ("a=null", ("a", None)),
        ("a=~", ("a", None)),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_assignments(text: str, expected: tuple[str, object]) -> None:
    assert parse_assignment(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "must be path=value"),
        ("=5", "must be path=value"),
        ("", "must be path=value"),
        ("a=", "needs a value"),
        ("a=[1", "not closed"),
        ("a={b: 1, b: 2}", "given twice"),
        ("a=!x 1", "tag"),
        ("a=\x00", "U+0000"),
        ("a=# x", "must hold"),
    ],
)
def test_wrong_assignments_are_located(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignment(text)
    assert str(caught.value).startswith("--set ")
    assert words in str(caught.value)


def test_values_are_set_in_a_copy_and_know_where_they_come_from(machine: Document) -> None:
    changed = set_values(machine, {"rdu.hbm.phy.bandwidth": "2.4 TB/s", "run.0.unit": "x", "n": 1})
    full = ("parts", "rdu", "memory", "hbm", "ports", "phy", "bandwidth")
    assert changed.value(full) == "2.4 TB/s"
    assert machine.value(full) == "1.8 TB/s"
    assert changed.where(full) == "--set rdu.hbm.phy.bandwidth=2.4 TB/s"
    assert changed.where(full[:-1]) == machine.where(full[:-1])
    assert changed.data["run"] == [{"ops": "all", "unit": "x"}]
    assert changed.where(("run", 0, "unit")) == "--set run.0.unit=x"
    assert changed.data["n"] == 1
    assert machine.data == parse_document(MACHINE).data


def test_a_mapping_that_is_replaced_takes_its_places_along(machine: Document) -> None:
    changed = set_values(machine, {"place.kv": {"in": {"host.dram": 1.0}}})
    assert changed.data["place"]["kv"] == {"in": {"host.dram": 1.0}}
    assert changed.where(("place", "kv", "in")).startswith("--set place.kv=")


def test_a_value_set_under_one_alias_leaves_the_other() -> None:
    document = parse_document("a: &x {b: 1}\nc: *x\nd: [*x]")
    assert set_values(document, {"c.b": 2}).data == {"a": {"b": 1}, "c": {"b": 2}, "d": [{"b": 1}]}


def test_the_given_value_is_copied(machine: Document) -> None:
    value = {"in": [1]}
    changed = set_values(machine, {"place.kv": value})
    value["in"].append(2)
    assert changed.data["place"]["kv"] == {"in": [1]}


def test_all_wrong_paths_come_at_once(machine: Document) -> None:
    with pytest.raises(ConfigError) as caught:
        set_values(
            machine,
            {"rdx.count": 1, "rdu.count": 2, "parts.rdu.count": 3, "a..b": 4},
            origin="axes",
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["axes rdx.count", "axes parts.rdu.count",
                                                      "axes a..b"]  # fmt: skip
    assert "the same entry" in lines[1]
