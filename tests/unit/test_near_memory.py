"""Compute inside a stacked DRAM: rates of its ports, Duplex and its baselines."""

import numpy as np
import pytest
from handmade import device

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.hw_models.cost.area import area_table
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import evaluate
from opbyte.workloads.works import work_from

STACK = {
    "clock": "1 GHz", "channels": 10, "access": "32 B", "columns": 32, "row_switch": 46,
    "refresh": 456, "interval": 5070, "source": "a preset",
}  # fmt: skip
FULLEST = {"kind": "uniform", "fullest": True}


def stacked(stream=None, port=None, **changes):
    ports = {
        "phy": {"stream": {"banks": 1, "step": 2, "rows": "hidden"}},
        "near": {
            "stream": {"banks": 8, "step": 4, "rows": "exposed", **(stream or {})}, **(port or {})
        },
    }  # fmt: skip
    stack = {**STACK, **changes}
    return device(memory={"hbm": {"capacity": "64 GiB", "ports": ports, "stack": stack}}).values


# -- rates ---------------------------------------------------------------------------------


def test_a_port_reads_its_banks_every_step():
    values = stacked()
    assert values["dev.hbm.phy.bandwidth"] == pytest.approx(10 * 32 * 1e9 / 2)
    assert values["dev.hbm.near.bandwidth"] == pytest.approx(10 * 32 * 1e9 * 8 / 4)


def test_row_switches_and_refresh_take_their_share():
    values = stacked()
    refresh = 1 - 456 / 5070
    assert values["dev.hbm.phy.efficiency"] == pytest.approx(refresh)
    row = 32 * 4 / (31 * 4 + 46)
    assert row == pytest.approx(0.753, abs=1e-3)
    assert values["dev.hbm.near.efficiency"] == pytest.approx(row * refresh)


def test_a_switch_shorter_than_a_step_costs_nothing():
    assert stacked(row_switch=3, refresh=0)["dev.hbm.near.efficiency"] == 1.0


def test_what_is_given_stands_beside_what_follows():
    values = stacked(port={"bandwidth": "3 TB/s"})
    assert values["dev.hbm.near.bandwidth"] == 3e12
    assert values["dev.hbm.near.efficiency"] < 0.7


def test_rates_follow_when_the_clocks_are_changed():
    machine = load_machine("duplex-x4")
    assert not any(".stack." in path for path in machine.values)
    faster = machine.replace({"device.hbm.stack.clock": "2618.75 MHz"})
    for port in ("interposer", "tsv"):
        path = f"device.hbm.{port}.bandwidth"
        assert faster.values[path] == pytest.approx(2 * machine.values[path])
    assert machine.parameters["device.hbm.tsv.efficiency"].source.startswith("Duplex simulator")


@pytest.mark.parametrize(
    ("stream", "changes", "rule"),
    [
        ({"banks": 0}, {}, "must be at least 1"),
        ({}, {"channels": 0}, "must be at least 1"),
        ({}, {"refresh": 6000}, "refresh takes 6000 of every 5070 clocks"),
        ({"rows": "open"}, {}, "hidden"),
    ],
)
def test_a_stack_that_makes_no_sense_is_refused(stream, changes, rule):
    with pytest.raises(ConfigError, match=rule):
        stacked(stream, **changes)


def test_a_stream_needs_a_stack():
    port = {"phy": {"stream": {"banks": 1, "step": 2, "rows": "hidden"}}}
    with pytest.raises(ConfigError, match="has a `stream`, which needs a `stack`"):
        device(memory={"hbm": {"capacity": "64 GiB", "ports": port}})


# -- machines ------------------------------------------------------------------------------


def test_duplex_is_as_published():
    values = load_machine("duplex-x4").values
    assert values["device.hbm.interposer.bandwidth"] == pytest.approx(3.352e12)
    assert values["device.hbm.tsv.bandwidth"] == pytest.approx(4 * 3.352e12)
    bank = load_machine("bank-pim-x4").values
    assert bank["device.hbm.bank.bandwidth"] == pytest.approx(16 * 3.352e12)
    for name, opb in (("bank-pim-x4", 1), ("bank-group-pim-x4", 8)):
        values = load_machine(name).values
        port = "bank" if opb == 1 else "bank_group"
        peak = values["device.pim.peak.fp16"]
        assert peak / values[f"device.hbm.{port}.bandwidth"] == pytest.approx(opb, rel=1e-3)


def test_area_on_the_logic_dies_is_as_published():
    base = load_machine("duplex-gpu-x4")
    dies = sum(i.each for i in area_table(load_machine("duplex-x4")))
    added = dies - sum(i.each for i in area_table(base))
    assert added == pytest.approx(5 * 17.8e-6, rel=0.01)


def decode(batch, context=2048, model="mixtral-8x7b"):
    return {
        "kind": "decode",
        "model": model,
        "batch": batch,
        "context": context,
        "routing": FULLEST,
    }


@pytest.mark.parametrize("batch", [1, 16, 64, 256])
def test_more_units_and_freer_mappings_are_no_slower(batch):
    gpu = ob.simulate("duplex-gpu-x4", decode(batch)).seconds
    plain = ob.simulate("duplex-x4", decode(batch), mapping="plain").seconds
    both = ob.simulate("duplex-x4", decode(batch), mapping="pe").seconds
    assert both <= plain * (1 + 1e-9) <= gpu * (1 + 1e-9)


def test_events_play_what_the_path_says():
    work = decode(64)
    for mapping in ("plain", "pe", "pe-et"):
        analytic = ob.simulate("duplex-x4", work, mapping=mapping).seconds
        event = ob.simulate("duplex-x4", work, mapping=mapping, fidelity="event").seconds
        assert event == pytest.approx(analytic, rel=1e-9)


def test_decode_attention_runs_near_memory_and_prefill_does_not():
    work = {
        "kind": "mixed", "model": "mixtral-8x7b", "chunks": [[1024, 0]], "decodes": 32,
        "context": 2048,
    }  # fmt: skip
    table = ob.simulate("duplex-x4", work).breakdown
    units = {row.operator: row.unit for row in table.itertuples() if "softmax" in row.operator}
    (near,) = [u for op, u in units.items() if "decode" in op]
    (far,) = [u for op, u in units.items() if "prefill" in op]
    assert (near, far) == ("device.lpim", "device.xpu")


def test_a_swept_unit_changes_who_runs_what():
    machine = load_machine("duplex-x4")
    peaks = np.array([1e12, 1e14, 1e16])
    swept = machine.with_values({"device.lpim.peak.bf16": peaks})
    work = work_from(decode(64))
    mapping = machine.mapping("plain")
    together = evaluate(swept, work, mapping).metrics["seconds"]
    each = [
        evaluate(machine.with_values({"device.lpim.peak.bf16": float(p)}), work, mapping)
        .metrics["seconds"][0] for p in peaks
    ]  # fmt: skip
    np.testing.assert_allclose(together, each, rtol=1e-12)
    assert (np.diff(together) < 0).all()


def test_what_a_unit_does_not_have_or_hold_is_refused():
    only = {"run": [{"ops": "all", "unit": "device.pim"}], "launch": "graph"}
    gemm = {"kind": "gemm", "m": 1, "n": 4096, "k": 4096, "dtype": "fp8"}
    with pytest.raises(UncoveredError, match=r"device.pim' has no arithmetic for fp8"):
        ob.simulate("bank-pim-x4", gemm, mapping=only)
    big = {"kind": "gemm", "m": 1, "n": 400000, "k": 400000, "dtype": "fp16"}
    with pytest.raises(CapacityError, match=r"device.hbm"):
        ob.simulate("bank-pim-x4", big, mapping=only)


def test_experts_of_a_group_that_has_all_tokens_need_no_dispatch():
    names = list(ob.simulate("duplex-gpu-x4", decode(8)).breakdown.operator)
    assert "ffn_all_reduce" in names
    assert not {"dispatch", "return"} & set(names)
    sent = {**load_machine("duplex-gpu-x4").mapping().model_dump(by_alias=True)}
    sent["parallel"]["all"]["dispatch"] = True
    both = list(ob.simulate("duplex-gpu-x4", decode(8), mapping=sent).breakdown.operator)
    assert {"dispatch", "return", "ffn_all_reduce"} <= set(both)


# -- two nodes -----------------------------------------------------------------------------


def grok(batch):
    return {"kind": "decode", "model": "grok-1", "batch": batch, "context": 1024}


@pytest.mark.parametrize("mapping", ["plain", "pe-et"])
def test_experts_of_two_nodes_are_held_once(mapping):
    work = work_from(grok(32))
    degrees = load_machine("duplex-2x8").mapping(mapping).degrees
    assert degrees.devices == 16
    held = work.footprint(degrees)["expert"] * 16
    assert held == pytest.approx(work.footprint(Parallel())["expert"], rel=1e-12)


def test_nodes_send_each_other_half_of_the_picks_over_their_own_link():
    machine = load_machine("duplex-2x8")
    table = ob.simulate(machine, grok(64)).breakdown.set_index("operator")
    sent = table.infiniband_bytes["dispatch"] / table.runs["dispatch"]
    # 32 requests of a node, two picks each, 6,144 elements of 2 bytes, half of them there already.
    assert sent * 8 == pytest.approx(32 * 2 * 6144 * 2 / 2)
    assert table.nvlink_bytes["dispatch"] == 0
    rate = machine.values["infiniband.bandwidth"] / 8
    one = 0.5e-6 + sent / rate
    assert table.seconds["dispatch"] / table.runs["dispatch"] == pytest.approx(one)
    assert table.infiniband_bytes["all_reduce"] == 0


def test_experts_that_do_not_fill_their_devices_are_refused():
    machine = load_machine("duplex-2x8")
    mapping = machine.mapping().model_dump(by_alias=True, exclude_none=True)
    mapping["parallel"]["all"]["expert_tp"] = 3
    with pytest.raises(WorkloadError, match=r"expert_tp=3.*do not fill replicas of tp=8"):
        ob.simulate(machine, grok(64), mapping=mapping)


def test_replicas_that_share_a_node_are_refused():
    machine = load_machine("duplex-2x8")
    mapping = machine.mapping().model_dump(by_alias=True, exclude_none=True)
    mapping["parallel"]["all"] |= {"tp": 4, "dp": 4, "expert_tp": 4}
    with pytest.raises(UncoveredError, match=r"replicas of 4 devices share a 'node' of 8"):
        ob.simulate(machine, grok(64), mapping=mapping)
