"""Every model of the catalog lowers, and what it holds is what its description counts."""

import pytest

from opbyte.core.parallel import Parallel
from opbyte.workloads.model_loader import load_model, model_catalog
from opbyte.workloads.phases import Decode, Generate, Mixed

ONE = Parallel()
MATRIX = ("gemm", "grouped_gemm")


@pytest.mark.parametrize("name", model_catalog().names())
def test_model_lowers_and_adds_up(name):
    model = load_model(name)
    source = {"input": 20} if model.encoder else {}
    work = Decode(model, 2, 40, **source)
    held = work.footprint(ONE)
    assert held["weight"] + held["expert"] == pytest.approx(model.weight_bytes, rel=1e-12)
    assert held["state"] == pytest.approx(2 * model.state_bytes, rel=1e-12)
    cross = 20 * model.cross_kv_bytes_per_token if model.encoder else 0
    assert held["kv"] == pytest.approx(2 * (model.kv_bytes(40) + cross), rel=1e-12)
    (phase,) = work.lower(ONE)
    table = phase.table
    gathered = [kind == "embedding" for kind in table.kinds]
    read = (table["weight"][:, 0] * table.repeats)[[not g for g in gathered]].sum()
    assert read <= held["weight"] * (1 + 1e-12)
    for phase in Generate(model, 2, 20, 5).lower(ONE):
        assert phase.table.total("flops")[0] > 0
    if not model.encoder:
        Mixed(model, ((16, 4),), 2, 30).lower(ONE)


def decoders():
    """Half of an encoder-decoder model does not run in a decode step."""
    return [n for n in model_catalog().names() if not n.startswith(("t5", "switch"))]


@pytest.mark.parametrize("name", decoders())
def test_arithmetic_is_about_twice_the_active_parameters(name):
    """A token multiplies every active matrix once; a short context adds little."""
    model = load_model(name)
    (phase,) = Decode(model, 1, 1).lower(ONE)
    table = phase.table
    kinds = [kind in MATRIX for kind in table.kinds]
    flops = float((table["flops"][:, 0] * table.repeats * kinds).sum())
    looked_up = 0 if model.tied or model.moe_layers else model.head_parameters
    expected = 2 * (model.active_parameters - looked_up)
    assert flops == pytest.approx(expected, rel=0.02)
