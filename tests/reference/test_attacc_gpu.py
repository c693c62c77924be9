"""The AttAcc simulator's GPU systems: its times from our engine, lowering and a machine file.

Decode is the plain work. Prefill is compared without a causal mask, which that tool does not know.
Only the capacity is lifted (it prices what does not fit), the context length of GPT-3 (2,048), and
the number of GPUs.
"""

import csv
import dataclasses
import functools

import pytest

from opbyte.core.mapping import load_mapping
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import simulate
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.phases import Decode, Prefill

MACHINES = {"A100a": "attacc-dgx-a100a", "H100": "attacc-dgx-h100"}
FC = ("qkv", "out", "up", "down")


@pytest.fixture(scope="module")
def rows(reference):
    path = reference / "reference" / "pim" / "attacc_system_reference.csv"
    if not path.is_file():
        pytest.skip(f"no reference rows: {path} is not a file")
    with path.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["system"] == "dgx" and r["hw"] == "NONE"]
    assert len(rows) == 47
    assert {(r["gpu"], r["ngpu"]) for r in rows} == {("A100a", "8"), ("A100a", "16"), ("H100", "8")}
    return rows


@functools.cache
def gpus(name, count):
    machine = load_machine(MACHINES[name]).replace({"gpu.count": count, "gpu.hbm.capacity": "1 PB"})
    mapping = machine.mapping().model_dump(by_alias=True, exclude_none=True)
    mapping["parallel"]["all"]["tp"] = count
    return machine, load_mapping(mapping)


@functools.cache
def gpt(*, causal=True):
    model = dataclasses.replace(load_model("gpt-3-175b"), max_context=0)
    (layer,) = model.layers
    mixer = dataclasses.replace(layer.mixer, causal=causal)
    return dataclasses.replace(model, layers=(dataclasses.replace(layer, mixer=mixer),))


def decode(row):
    """Return the step of mean length: that tool averages the steps after the first token."""
    context = int(row["Lin"]) + int(row["Lout"]) / 2
    return run(row, Decode(gpt(), int(row["bs"]), context))


def run(row, work):
    machine, mapping = gpus(row["gpu"], int(row["ngpu"]))
    return simulate(machine, work, mapping=mapping)


def layers(result):
    """Return the breakdown of the layers: that tool has no embedding and no head."""
    frame = result.breakdown
    return frame[frame.block.str.startswith("layer")]


def test_every_decode_step_is_within_half_a_percent(rows):
    for row in rows:
        seconds = layers(decode(row)).seconds.sum()
        assert seconds == pytest.approx(float(row["g_time (ms)"]) / 1e3, rel=0.005), row


def test_what_that_tool_does_not_count_only_adds(rows):
    """Embedding, head and the gathering of its result: at most 1.2 % of a step."""
    for row in rows:
        result = decode(row)
        assert layers(result).seconds.sum() < result.tpot < 1.012 * float(row["g_time (ms)"]) / 1e3


def test_parts_of_a_decode_step_agree(rows):
    for row in rows:
        frame = layers(decode(row))
        took = frame.seconds.groupby(frame.operator).sum() * 1e3
        parts = {
            "g_fc": (took[list(FC)].sum(), 5e-4),
            "g_matmul": (took[["score", "context"]].sum(), 1e-9),
            "g_softmax": (took["softmax"], 1e-9),
            "g_lnorm": (took[["norm", "ffn_norm"]].sum(), 5e-4),
            "g_comm": (took[["all_reduce+add", "ffn_all_reduce+ffn_add"]].sum(), 1e-5),
            # That tool's line runs faster than its memory; ours does not.
            "g_act": (took["activation"], 0.1),
        }
        for name, (milliseconds, tolerance) in parts.items():
            assert milliseconds == pytest.approx(float(row[name]), rel=tolerance), (name, row)


def test_every_prefill_without_a_mask_is_within_a_percent(rows):
    for row in rows:
        work = Prefill(gpt(causal=False), int(row["bs"]), int(row["Lin"]))
        assert run(row, work).ttft == pytest.approx(float(row["s_time"]) / 1e3, rel=0.01), row


def test_the_mask_alone_makes_a_long_prefill_shorter(rows):
    longest = max(rows, key=lambda r: (r["gpu"] == "H100", int(r["Lin"]), -int(r["bs"])))
    assert (longest["gpu"], longest["Lin"], longest["bs"]) == ("H100", "2047", "1")
    ttft = run(longest, Prefill(gpt(), 1, 2047)).ttft
    assert 0.77 < ttft / (float(longest["s_time"]) / 1e3) < 0.83


def test_energy_of_a_decode_step_is_near(rows):
    for row in rows:
        frame, devices = layers(decode(row)), int(row["ngpu"])
        joules = frame.joules.sum()
        assert joules == pytest.approx(float(row["g_energy (nJ)"]) / 1e9, rel=0.04), row
        # 28.72 pJ of a byte are DRAM's; residual sums and cache writes are bytes of ours alone.
        dram = frame["gpu.hbm.phy_bytes"].sum() * devices * 28.72e-12
        assert 1.0 < dram / (float(row["g_dram_energy"]) / 1e9) < 1.08, row


def test_the_gpus_of_our_catalog_answer_otherwise(rows):
    """The same work and engine: what differs is what the machine files say."""
    alone = next(r for r in rows if (r["gpu"], r["ngpu"], r["bs"], r["Lin"]) == KEY)
    measured = load_machine("dgx-a100").replace({"gpu.hbm.phy.bandwidth": "3.352 TB/s"})
    ratio = simulate(measured, Decode(gpt(), 1, 2048)).tpot / (float(alone["g_time (ms)"]) / 1e3)
    assert 0.9 < ratio < 0.95


KEY = ("A100a", "8", "1", "2047")
