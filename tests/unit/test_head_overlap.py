"""Heads that follow each other through two groups, and products that both groups share."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import evaluate

MACHINE = "dgx-attacc-bank"
CHAIN = ("qkv", "send_qkv", "kv_append..context", "send_out", "out")


def decode(batch=8, context=1024, model="gpt-3-175b"):
    return ob.Decode(model, batch=batch, context=context)


def frame(mapping, **changes):
    machine = load_machine(MACHINE).replace({"attacc.hbm.capacity": "1 PB", **changes})
    result = ob.simulate(machine, decode(), mapping=mapping)
    return result, result.breakdown[result.breakdown.block.str.startswith("layer")]


@pytest.mark.parametrize("rate", ["300 GB/s", "0.1 GB/s"])
@pytest.mark.parametrize("clock", ["1.3003901 GHz", "2 MHz"])
def test_the_longest_of_units_and_links_hides_all_but_a_part_of_the_others(rate, clock):
    changes = {"to_attacc.bandwidth": rate, "attacc.gemv.clock": clock}
    serial, rows = frame("decode", **changes)
    overlapped, _ = frame("head", **changes)
    seconds = rows.set_index("operator").seconds
    gpu, send, attend, back = (
        seconds["qkv"] + seconds["out"], seconds["send_qkv"], seconds["kv_append..context"],
        seconds["send_out"],
    )  # fmt: skip
    parts = [gpu, send, attend, back]
    hidden = sum(parts) - max(parts)
    assert serial.tpot - overlapped.tpot == pytest.approx(hidden * (1 - 1 / 12), rel=1e-9)


def test_overlap_changes_neither_work_nor_energy_nor_what_is_busy():
    (serial, one), (overlapped, two) = frame("decode"), frame("head")
    assert overlapped.tpot < serial.tpot
    for column in ("seconds", "joules", "flops"):
        np.testing.assert_array_equal(one[column], two[column])


def test_prompts_run_as_without_it_and_answers_behind_them_overlap():
    machine = load_machine(MACHINE).replace({"attacc.hbm.capacity": "1 PB"})
    prompts = ob.Prefill("gpt-3-175b", batch=8, input=256)
    whole = ob.Generate("gpt-3-175b", batch=8, input=256, output=8)
    plain, head = (
        [ob.simulate(machine, w, m) for w in (prompts, whole)] for m in ("decode", "head")
    )
    assert head[0].seconds == plain[0].seconds
    assert head[1].seconds < plain[1].seconds
    assert head[1].seconds > head[0].seconds


def test_other_layers_are_refused():
    with pytest.raises(UncoveredError, match="overlap: head"):
        ob.simulate(load_machine(MACHINE), decode(model="bitnet-b1.58-3b"), mapping="head")


# -- assisted products -----------------------------------------------------------------------


def assisted(batch=8, **changes):
    machine = load_machine(MACHINE).replace({"attacc.hbm.capacity": "1 PB", **changes})
    work = decode(batch)
    return (ob.simulate(machine, work, mapping=m) for m in ("decode", "decode_assisted"))


def test_both_ends_of_a_shared_product_end_together():
    """t = x + (1 - s) (p + y), by hand for the first product of eight sequences."""
    machine = load_machine(MACHINE)
    alone, shared = assisted()
    columns, hidden, batch = 6144, 12288, 8
    t = alone.breakdown.set_index("operator").seconds["up"] / 96
    took = shared.breakdown.set_index("operator").seconds["up"] / 96
    # 5 tiles of 1280 outputs, 512 elements of each at a time: 8 columns a tile, 40 of 32 in a row.
    chunks = batch * hidden / 512
    clocks = chunks * (38 * 6 + 2 * 46)
    p = clocks / 1.3003901e9 * 5070 / (5070 - 502)
    link = machine.values["to_attacc.bandwidth"]
    x, y = 2 * batch * hidden / link, 2 * batch * columns / link
    assert took == pytest.approx(t * (x + p + y) / (t + p + y), rel=0.02)


def test_help_is_worth_less_for_more_sequences_and_is_never_harmful():
    gains = []
    for batch in (1, 8, 64):
        alone, shared = assisted(batch)
        gains.append(alone.tpot / shared.tpot)
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] >= 1.0
    alone, shared = assisted(8, **{"to_attacc.bandwidth": "1 GB/s"})
    assert shared.tpot == alone.tpot


def test_copies_of_weights_take_room():
    machine = load_machine(MACHINE)
    work = decode()
    plain, copied = (
        evaluate(machine, work, machine.mapping(m)).occupancy["attacc.hbm"].max()
        for m in ("decode", "decode_assisted")
    )
    weights = 96 * 2 * 2 * 12288 * 6144
    assert plain < copied < plain + weights
    tight = machine.replace({"attacc.hbm.capacity": f"{plain * 1.01:.0f} B"})
    with pytest.raises(CapacityError, match="copies of weights"):
        ob.simulate(tight, work, mapping="decode_assisted")


def test_only_idle_units_of_the_attention_group_assist():
    machine = load_machine(MACHINE)
    mapping = machine.mapping("decode").model_dump(by_alias=True, exclude_none=True)
    gpu = {**mapping, "assist": {"ops": "ffn", "unit": "gpu.sm"}}
    with pytest.raises(ConfigError, match="group of decode attention"):
        ob.simulate(machine, decode(), mapping=gpu)
    default = machine.mapping().model_dump(by_alias=True, exclude_none=True)
    with pytest.raises(UncoveredError, match="assist without a group"):
        ob.simulate(machine, decode(), mapping={**default, "assist": gpu["assist"]})
