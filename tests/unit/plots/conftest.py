"""Results that several tests of figures draw."""

import matplotlib.pyplot as plt
import pytest

import opbyte as ob
from tests.unit.plots.figures import COE, DECODE


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def decode():
    return ob.simulate("sn40l-node", DECODE)


@pytest.fixture(scope="module")
def decode_events():
    return ob.simulate("dgx-h100", DECODE, fidelity="event")


@pytest.fixture(scope="module")
def coe():
    return {
        "SN40L": ob.simulate("sn40l-node", COE),
        "DGX H100": ob.simulate("dgx-h100", COE),
    }
