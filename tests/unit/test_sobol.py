"""Sobol indices: closed forms, and what they say of a machine."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps.sobol import design, indices

WORK = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 4096}


def test_ishigami_has_its_closed_form():
    """Ishigami and Homma, 1990, a = 7 and b = 0.1: variance and indices are known."""
    x = (2 * design(3, 4096, 0) - 1) * np.pi
    values = np.sin(x[0]) + 7 * np.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * np.sin(x[0])
    v1 = 0.5 * (1 + 0.1 * np.pi**4 / 5) ** 2
    v2, v13 = 49 / 8, 0.01 * np.pi**8 * 8 / 225
    v = v1 + v2 + v13
    found = indices(values, 3)
    assert found.deviation**2 == pytest.approx(v, rel=0.01)
    assert found.first == pytest.approx([v1 / v, v2 / v, 0], abs=0.02)
    assert found.total == pytest.approx([(v1 + v13) / v, v2 / v, v13 / v], abs=0.02)


def test_a_sum_has_indices_in_proportion_to_variances_and_no_interaction():
    x = design(4, 1024, 1)
    found = indices(3 + x[0] + 2 * x[1] + 3 * x[2], 4)
    assert found.first == pytest.approx([1 / 14, 4 / 14, 9 / 14, 0], abs=0.01)
    assert found.total == pytest.approx(found.first, abs=0.01)
    assert found.first[3] == 0.0
    assert (found.first_error < 0.05).all()
    assert (found.total_error > 0).tolist() == [True, True, True, False]


def test_the_product_of_g_functions_interacts():
    """Sobol's g-function: V_i = 1 / (3 (1 + a_i)^2), V = prod(1 + V_i) - 1."""
    a = np.array([0.0, 1.0, 9.0])
    x = design(3, 8192, 0)
    values = np.prod((np.abs(4 * x - 2) + a[:, None]) / (1 + a[:, None]), axis=0)
    part = 1 / (3 * (1 + a) ** 2)
    whole = np.prod(1 + part) - 1
    total = part * (np.prod(1 + part) / (1 + part)) / whole
    found = indices(values, 3)
    assert found.first == pytest.approx(part / whole, abs=0.02)
    assert found.total == pytest.approx(total, abs=0.02)


def test_what_does_not_vary_has_no_indices():
    found = indices(np.full(8 * 4, 2.5), 2)
    assert found.total.tolist() == [0.0, 0.0]
    assert found.mean == 2.5


def test_indices_of_a_machine_agree_with_its_tornado():
    frame = ob.sobol_indices("sn40l-node", WORK, "carbon_g_per_mtoken", samples=128)
    assert list(frame.columns) == [
        "parameter", "first", "total", "first_error", "total_error", "source"
    ]  # fmt: skip
    assert (frame["total"] >= -1e-12).all()
    assert frame["total"].is_monotonic_decreasing
    assert 0.6 < frame["first"].sum() < 1.1, "the grid's carbon is multiplied by the overhead"
    tornado = ob.sensitivity("sn40l-node", WORK, "carbon_g_per_mtoken")
    ranged = tornado[tornado["parameter"].isin(frame["parameter"])]
    assert frame["parameter"][0] == ranged["parameter"].iloc[0]
    still = set(frame["parameter"]) - set(tornado["parameter"])
    assert frame[frame["parameter"].isin(still)]["first"].abs().max() < 0.05


def test_indices_do_not_depend_on_anything_but_the_seed():
    one, two, other = (
        ob.sobol_indices("sn40l-node", WORK, "price_usd", samples=32, seed=s) for s in (0, 0, 1)
    )
    assert one.equals(two)
    assert not one.equals(other)


@pytest.mark.parametrize("samples", [0, 7, 100])
def test_samples_are_a_power_of_two(samples):
    with pytest.raises(ConfigError, match="power of two"):
        ob.sobol_indices("sn40l-node", WORK, "tpot", samples=samples)


def test_a_metric_that_the_work_lacks_is_refused():
    with pytest.raises(ConfigError, match="no such metric"):
        ob.sobol_indices("sn40l-node", WORK, "ttft")
