"""CENT's published simulator: every row of every split of 7B and 13B, all contexts at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import yaml

import opbyte as ob
from opbyte.core.mapping import load_mapping
from opbyte.sim.simulate import evaluate
from opbyte.sweeps.validation import load_published, validate_source
from opbyte.sweeps.validation.facts import fact_of
from opbyte.sweeps.validation.published import Point
from opbyte.workloads.phases import Decode

PUBLISHED, DOCUMENT = load_published("cent")
ROWS = {p.id: p for p in PUBLISHED.points if p.experiment.mapping and p.over}
#: Mean and worst relative error, which the switch `artifact` must keep.
BARS = {"thr": (0.02, 0.05), "lat": (0.02, 0.05), "e": (0.03, 0.06)}
CONTEXTS = np.arange(128.0, 4097.0, 128.0)
TOKENS = {"prefill": 512, "decoding": 3584, "end2end": 4096}


@cache
def metrics(setup: str) -> dict[str, np.ndarray]:
    """Return what a split of a model has at every context."""
    point = next(p for p in ROWS.values() if key(p) == setup)
    machine, work = str(point.experiment.machine), point.experiment.workload
    model = ob.load_model(str(work["model"]))
    decode = Decode(model, batch=float(work["batch"]), context=CONTEXTS)
    mapping = load_mapping(point.experiment.mapping)
    return evaluate(ob.load_machine(machine), decode, mapping).metrics


def key(point: Point) -> str:
    """Return what says model, split and switch."""
    model, pp, tp, _, _, *switch = point.id.split(".")
    return ".".join((model, pp, tp, *switch))


def ours(point: Point) -> float:
    """Return the number of a row."""
    phase, metric = point.id.split(".")[3:5]
    found = metrics(key(point))
    mine = np.isin(CONTEXTS, point.over["context"])
    if metric == "thr":
        return float(found["tokens_per_s"][mine].mean())
    if metric == "lat":
        return float(found["tpot"][mine].mean()) * TOKENS[phase]
    return float(found["joules_per_token"][mine].mean()) * 1e3


def artifact() -> list[Point]:
    """Return the rows with the simulator's conventions."""
    return [p for p in ROWS.values() if not p.id.endswith(".physical")]


def test_every_split_phase_and_metric_is_there_with_its_physical_value() -> None:
    splits = {tuple(p.id.split(".")[:3]) for p in artifact()}
    assert len(splits) == 12
    assert len(artifact()) == 12 * 3 * 3
    assert {p.id + ".physical" for p in artifact()} < set(ROWS)


@pytest.mark.parametrize("metric", BARS)
def test_the_simulators_rows(metric: str) -> None:
    mine = [p for p in artifact() if p.id.endswith(f".{metric}")]
    errors = {p.id: abs(ours(p) / p.value - 1.0) for p in mine}
    mean, worst = BARS[metric]
    assert np.mean(list(errors.values())) <= mean
    assert max(errors.values()) <= worst, max(errors, key=errors.__getitem__)


def test_physical_values_are_slower_and_take_more_energy() -> None:
    """Refresh alone takes a tenth; standby of all channels up to as much as the commands."""
    for point in artifact():
        metric = point.id.split(".")[4]
        change = ours(ROWS[point.id + ".physical"]) / ours(point)
        low, high = {"thr": (0.6, 0.975), "lat": (1.025, 1.7), "e": (1.2, 2.1)}[metric]
        assert low < change < high, point.id


def test_a_row_is_the_number_that_validation_gives() -> None:
    """Context by context, as `opbyte validate` does it, and all at once are the same."""
    from opbyte.sweeps.validation.model import comparison

    for name in (
        "7B.pp1.tp8.prefill.e",
        "7B.pp2.tp4.prefill.lat",
        "7B.pp1.tp8.prefill.thr.physical",
    ):
        value = comparison(PUBLISHED, DOCUMENT, ROWS[name]).values({})[0]
        assert value == pytest.approx(ours(ROWS[name]), rel=1e-9)


def test_the_rows_are_those_of_the_facts(reference) -> None:
    raw = yaml.safe_load((reference / "published" / "cent.yaml").read_text())["results"]
    facts = {entry["id"]: float(entry["value"]) for entry in raw}
    for point in PUBLISHED.points:
        found = fact_of("cent", point, facts)
        assert found is not None, point.id
        assert found[1] == point.value, point.id


@pytest.mark.proof
def test_validation_of_all_rows() -> None:
    verdicts = {v.id: v for v in validate_source("cent")}
    assert all(v.ok for v in verdicts.values())
    for point in artifact():
        assert verdicts[point.id].evidence == "predicted"
        assert verdicts[point.id + ".physical"].evidence == "open"
    # GPU kernels are fitted on the A100, so no agreement with it is evidence.
    assert {v.evidence for n, v in verdicts.items() if n.startswith("gpu.")} == {
        "calibrated",
        "open",
    }
