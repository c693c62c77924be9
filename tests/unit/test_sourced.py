"""Numbers of a mapping that say where they come from, as parameters of a published number."""

from __future__ import annotations

from pathlib import Path

import pytest

from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping, load_mapping
from opbyte.core.sourced import sourced, with_values
from opbyte.hw_models.machine import load_machine
from opbyte.sweeps.validation import Verdict, validate_source

#: How many threads copy is assumed; the block's source covers the request.
ROUTE = """
kind: mapping
name: copied
groups: {gpus: gpu}
place:
  weight: {in: {gpu.gddr: 1.0}}
  kv: {in: {disk.flash: 1.0}, cache: {tier: gpu.gddr, evict: none, prefetch: all}}
routes:
  kv:
    via: [nvme]
    software:
      access: mapped
      request: 128 KiB
      threads: {value: 2, source: "assumed: two queues have work", range: [1, 8]}
      staged: true
      source: its code
pipeline: {kind: zigzag, batches: 1}
run: [{ops: all, unit: gpu.sm}]
launch: software
"""


def test_numbers_with_a_source_of_their_own_or_of_their_block_are_found() -> None:
    found = sourced(load_mapping(ROUTE))
    threads = found["routes.kv.software.threads"]
    assert (threads.value, threads.range) == (2.0, (1.0, 8.0))
    assert threads.source == "assumed: two queues have work"
    assert found["routes.kv.software.request"].source == "its code"
    assert sourced(load_machine("t4-host").mapping("gpu")) == {}


def test_other_values_change_nothing_else() -> None:
    mapping = load_mapping(ROUTE)
    new = with_values(mapping, {"routes.kv.software.threads": 4.0})
    (route,) = new.routes["kv"]
    assert route.software is not None
    assert route.software.threads.value == 4.0
    assert with_values(new, {"routes.kv.software.threads": 2.0}) == mapping
    assert with_values(mapping, {}) == mapping


def test_one_parameter_of_two_routes_is_one() -> None:
    mapping = load_machine("t4-host").mapping("disk")
    threads = [name for name in sourced(mapping) if name.endswith("threads")]
    assert threads == ["routes.weight.software.threads"]
    new: Mapping = with_values(mapping, {threads[0]: 1.0})
    both = [new.routes[name][0].software for name in ("weight", "kv")]
    assert [s.threads.value for s in both if s is not None] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("threads", "rule"),
    [
        ("0", "must be at least 1"),
        ("2.5", "a count must be a whole number"),
        ("-1", "can not be negative"),
        ("{value: 2, range: [4, 8]}", "inside its own range"),
        ("{value: 2, sources: x}", "has no key 'sources'"),
    ],
)
def test_a_wrong_number_of_threads_is_one_clear_error(threads: str, rule: str) -> None:
    text = ROUTE.replace(
        '{value: 2, source: "assumed: two queues have work", range: [1, 8]}', threads
    )
    with pytest.raises(ConfigError, match=rule) as caught:
        load_mapping(text)
    assert "routes.kv.software.threads" in str(caught.value)
    # Its line, not that of the route around it.
    assert str(caught.value).startswith("mapping:14:")
    assert len(caught.value.problems) == 1


def validated(tmp_path: Path, mapping: str, point: str = "") -> Verdict:
    file = tmp_path / "paper.yaml"
    inner = mapping.replace("\n", "\n    ")
    file.write_text(
        f"""
kind: published
source: {{title: t, target: measured}}
experiment:
  machine: a6000-csd
  workload: {{kind: decode, model: opt-13b, batch: 16, context: 1024}}
  mapping:{inner}
gaps: {{threads: how many threads copy}}
points:
  - {{id: one, metric: tokens_per_s, value: 4.0, tolerance: 10.0{point}}}
"""
    )
    (verdict,) = validate_source(str(file))
    return verdict


def test_a_number_of_a_mapping_that_matters_counts_for_the_class(tmp_path: Path) -> None:
    verdict = validated(tmp_path, ROUTE)
    changes = {path: change for path, _, change in verdict.matters}
    # From two threads to one: half the rate of the only thing that matters.
    assert changes["mapping.routes.kv.software.threads"] > 0.4
    assert verdict.evidence == "assumed"
    assert "mapping.routes.kv.software.threads" in verdict.reason
    assert verdict.low < 0.6 * verdict.simulated
    fitted = ROUTE.replace("assumed: two queues have work", "calibrated: on this row")
    assert validated(tmp_path, fitted).evidence == "calibrated"


def test_a_missing_input_may_be_a_number_of_the_mapping(tmp_path: Path) -> None:
    gap = ", at_most: open, gap: {input: threads, parameter: mapping.routes.kv.software.threads"
    verdict = validated(tmp_path, ROUTE, gap + ", range: [1, 8]}")
    (closing,) = verdict.closing
    assert closing.range == "1 to 8"
    assert 1 < float(closing.value) < 8


def test_rows_whose_hidden_choices_were_seen_afterwards_say_so() -> None:
    cpu = {v.id: v for v in validate_source("powerinfer_cpu_points")}
    # All of the memory's rate was taken after the dense rows were seen; the ratio needs none.
    assert {v.evidence for v in cpu.values() if v.id != "sparse.ratio"} == {"calibrated"}
    assert cpu["sparse.ratio"].evidence == "assumed"
    flexgen = {v.id: v for v in validate_source("flexgen")}
    assert "mapping.routes.weight.software.threads" in flexgen["opt-175b"].reason
    assert flexgen["opt-175b"].low < 0.5 * flexgen["opt-175b"].simulated


@pytest.mark.parametrize("name", ["page", "interleave"])
def test_a_page_of_no_bytes_is_refused_and_not_divided_by(name: str) -> None:
    text = ROUTE.replace(
        "kv: {in: {disk.flash: 1.0}, ", f"kv: {{in: {{disk.flash: 1.0}}, {name}: 0 B, "
    )
    with pytest.raises(ConfigError, match=f"`{name}` has at least one byte, got 0 B") as caught:
        load_mapping(text)
    assert "place.kv" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("copies: 0", "counts every one"),
        ("copies: -1", "counts every one"),
        ("copies: {k: 0, v: 1}", "counts every one"),
        ("copies: {q: 2}", "are of k and of v"),
    ],
)
def test_copies_that_would_write_less_than_nothing_are_refused(wrong: str, rule: str) -> None:
    text = ROUTE.replace(
        "kv: {in: {disk.flash: 1.0}, ", f"kv: {{in: {{disk.flash: 1.0}}, {wrong}, "
    )
    with pytest.raises(ConfigError, match=rule):
        load_mapping(text)


def test_neurons_aligned_to_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="`align` has at least one byte"):
        load_mapping(ROUTE + "neurons: {used: 0.1, align: 0 B}\n")
