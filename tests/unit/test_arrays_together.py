"""Arrays of several chips that work together as one device."""

import pytest
import yaml

import opbyte as ob
from opbyte.core.errors import UncoveredError
from opbyte.hw_models.machine import CATALOG


def board(name):
    chip = yaml.safe_load(CATALOG.path(name).read_text())["parts"]["chip"]
    parts = {"board": {"parts": {"chip": {**chip, "count": 4}}}}
    return ob.load_machine({"kind": "machine", "name": "board", "parts": parts})


def mapping(unit, *, together, **more):
    return {
        "groups": {"all": "board.chip"}, "launch": "hardware",
        "parallel": {"all": {"group": "all", "tp": 1, "tensor": "outputs", "together": together}},
        "place": {c: {"in": {"board.chip.dram": 1.0}} for c in ("weight", "kv", "activation")},
        "run": [{"ops": "all", "unit": f"board.chip.{unit}"}], **more,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "unit"), [("bitmod", "array"), ("flat-cloud", "pe")])
@pytest.mark.parametrize("fidelity", ["bound", "analytic"])
def test_four_chips_take_a_quarter_of_the_time(name, unit, fidelity):
    work = ob.Gemm(m=4096, n=4096, k=4096, dtype="fp16")
    one, four = (
        ob.simulate(board(name), work, mapping(unit, together=t, fusion="none"), fidelity).seconds
        for t in (False, True)
    )
    assert four == pytest.approx(one / 4)


def test_a_cascade_is_planned_for_one_array():
    work = {
        "kind": "attention_prefill", "batch": 1, "q_tokens": 256, "kv_tokens": 256, "heads": 4,
        "kv_heads": 4, "head_dim": 64, "dtype": "fp16",
    }  # fmt: skip
    einsums = {"cascade": "one-pass"}
    for together in (False, True):
        chosen = mapping("pe", together=together, fusion="attention", einsums=einsums)
        if together:
            with pytest.raises(UncoveredError, match="work together as one device"):
                ob.simulate(board("flat-cloud"), work, chosen)
        else:
            assert ob.simulate(board("flat-cloud"), work, chosen).seconds > 0
