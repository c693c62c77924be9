"""Decode attention on some of the tokens, and heads that follow each other through units."""

from __future__ import annotations

import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.kv_select import selected
from opbyte.sweeps.validation import validate_source

CHIP = load_machine("vitallm")
MODEL = ob.load_model("bitnet-b1.58-3b").with_precision(
    weight="t1.6", activation="int8", kv="int8", head="int8"
)
HEADS, LAYERS = 32, 26


def mapping(name="overlapped", **more):
    return CHIP.config.mappings[name].model_copy(update=more)


def select(keep, bits=4.0, work=0.25):
    chosen = {"kind": "lop", "keep": keep, "bits": bits, "work": work}
    return load_mapping({"run": [{"ops": "all", "unit": "x"}], "kv_select": chosen}).kv_select


def decode(context=512):
    (phase,) = ob.Decode(MODEL, 1, context).lower(Parallel())
    return phase.table


@pytest.mark.parametrize("keep", [0.0625, 0.25, 1.0])
@pytest.mark.parametrize("bits", [0.0, 4.0])
def test_keys_and_values_are_read_as_often_as_they_are_kept(keep, bits):
    table = decode()
    chosen = selected(table, select(keep, bits))
    score, context = table.kinds.index("score"), table.kinds.index("context")
    assert chosen["kv_read"][score] == pytest.approx(table["kv_read"][score] * (keep + bits / 8))
    assert chosen["kv_read"][context] == pytest.approx(table["kv_read"][context] * keep)
    assert chosen["flops"][score] == pytest.approx(table["flops"][score] * (keep + 0.25))
    for row in (context, table.kinds.index("softmax")):
        assert chosen["flops"][row] == pytest.approx(table["flops"][row] * keep)
    others = [r for r in range(len(table)) if "attention" not in table.labels[r]]
    assert (chosen["flops"][others] == table["flops"][others]).all()


def test_without_prediction_all_tokens_are_the_same_work():
    table = decode()
    chosen = selected(table, select(1.0, 0.0, 0.0))
    for column in ("flops", "kv_read", "n", "k", "out_bytes"):
        assert chosen[column] == pytest.approx(table[column])


def test_prefill_is_exact():
    work = ob.Prefill(MODEL, 1, 64)
    plain = ob.simulate(CHIP, work, mapping=mapping("prefill"))
    pruned = ob.simulate(CHIP, work, mapping=mapping("prefill", kv_select=mapping().kv_select))
    assert plain.seconds == pruned.seconds


def test_overlap_hides_all_but_a_head_of_the_shorter_units():
    plain, over = (
        ob.simulate(CHIP, ob.Decode(MODEL, 1, 128), mapping=mapping("lop", overlap=overlap))
        for overlap in ("none", "dependency")
    )
    frame = plain.breakdown
    layer = frame[frame.block == "layer.full"]
    held = layer.groupby("unit").seconds.sum()
    hidden = (held.sum() - held.max()) * (1 - 1 / HEADS)
    assert plain.seconds - over.seconds == pytest.approx(hidden, rel=1e-9)


@pytest.mark.parametrize("context", [64, 512, 2000])
def test_laws(context):
    work = ob.Decode(MODEL, 1, context)
    times = {
        (name, fidelity): ob.simulate(CHIP, work, mapping=name, fidelity=fidelity).seconds
        for name in ("default", "lop", "overlapped")
        for fidelity in ("bound", "analytic")
    }
    for name in ("default", "lop", "overlapped"):
        assert times[name, "bound"] <= times[name, "analytic"]
    assert times["overlapped", "analytic"] < times["lop", "analytic"] < times["default", "analytic"]
    for name in ("default", "lop"):
        event = ob.simulate(CHIP, work, mapping=name, fidelity="event").seconds
        assert times[name, "analytic"] <= event * (1 + 1e-9)


def test_fewer_kept_tokens_are_never_slower():
    select_of = mapping().kv_select
    times = [
        ob.simulate(
            CHIP,
            ob.Decode(MODEL, 1, 2000),
            mapping=mapping(kv_select=select_of.model_copy(
                update={"keep": select(keep).keep})),
        ).seconds
        for keep in (0.05, 0.2, 0.5, 1.0)
    ]  # fmt: skip
    assert times == sorted(times)


def test_refusals():
    with pytest.raises(UncoveredError, match="heads that follow each other"):
        ob.simulate(CHIP, ob.Decode(MODEL, 1, 64), mapping="overlapped", fidelity="event")
    sparse = ob.load_model("deepseek-v3.2")
    (phase,) = ob.Decode(sparse, 1, 64).lower(Parallel())
    with pytest.raises(UncoveredError, match="chooses tokens itself"):
        selected(phase.table, select(0.25))
    for keep in (0.0, 1.5):
        with pytest.raises(ConfigError):
            select(keep)
    with pytest.raises(ConfigError):
        select(0.5, bits=-1)


def test_vitallm_decodes_within_a_tenth_bound_by_ternary_products():
    rows = {v.id: v for v in validate_source("vitallm")}
    assert {rows[i].evidence for i in ("decode_tcasai", "decode_iscas", "prefill_iscas")} == {
        "assumed"
    }
    assert abs(rows["decode_tcasai"].error) < 0.10
    assert rows["fom"].evidence == "internal"
    assert rows["area_tcasai"].evidence == "open"
    frame = ob.simulate(CHIP, ob.Decode(MODEL, 1, 128), mapping="overlapped").breakdown
    ternary = frame[frame.unit == "chip.tint"]
    assert set(ternary.bound_by) == {"compute"}
    assert ternary.seconds.sum() > 0.8 * frame.seconds.sum()
