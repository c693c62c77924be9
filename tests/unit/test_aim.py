"""AiM channels and their controller: commands in closed form, sets of channels, links, refusals."""

from __future__ import annotations

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import Mapping, load_mapping
from opbyte.hw_models.compute.aim.channels import Channels
from opbyte.hw_models.compute.aim.links import Wire
from opbyte.hw_models.compute.aim.products import context, matrix, score
from opbyte.hw_models.compute.aim.vectors import Controller
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.sim.groups import Groups
from opbyte.workloads.phases import Decode

WORK = {"kind": "decode", "model": "llama-2-7b", "batch": 8, "context": 2048}


def split(machine: str = "cent-8", *, artifact: bool = False, **degrees: int) -> Mapping:
    """Return a mapping of sets of channels."""
    written = ob.load_machine(machine).document.data["mappings"]["default"]
    all_ = {"group": "all", "tensor": "outputs", "together": True, **degrees}
    changes = {"name": "", "parallel": {"all": all_}, "artifact": "cent" if artifact else None}
    return load_mapping({**written, **changes})


def channels(
    span: float = 8.0, parts: int = 1, guests: int = 4, *, artifact: bool = False
) -> Channels:
    """Return channels of cent-8 without refresh."""
    unit = UnitView(ob.load_machine("cent-8"), "device.channel.mac")
    device = PimDevice.of(unit, "bf16")
    assert device is not None
    return Channels(unit, device, span, parts, guests, artifact, 32)


# -- commands ------------------------------------------------------------------------------


def test_a_product_with_weights_has_the_commands_that_its_rows_need() -> None:
    """(4096, 4096) on 128 banks: 32 outputs a bank, each of 4 rows."""
    done = matrix(channels(), 4096.0, 4096.0)
    rows = 32 * 4
    assert done.counts["ACT16"] == done.counts["PREA"] == rows * 8
    assert done.counts["MAC16"] == rows * 64 * 8
    assert done.counts["WRGB"] == 4 * 64 * 8
    assert done.counts["WRMAC16"] == done.counts["RDMAC16"] == rows * 8
    # Of a row: precharge, activation, 64 columns a nanosecond apart and the way to precharge.
    row = 32 + 56 + 63 * 2 + 12
    once = 4 * (64 * 2 + 32 * (2 + 3) + 2 * 32)
    assert done.clocks == pytest.approx(rows * row + once + 2 * 32, rel=0.003)
    assert done.shut == rows * 32


def test_odd_widths_are_padded_to_whole_outputs_of_a_bank_and_whole_columns() -> None:
    done = matrix(channels(), 13824.0, 1030.0)
    outputs = -(-13824 // 128)
    assert done.counts["MAC16"] == 8 * outputs * (64 + 1)
    assert done.counts["ACT16"] == 8 * outputs * 2


def test_outputs_of_few_banks_leave_channels_idle() -> None:
    """1000 outputs on 128 banks: 8 in each of 125 banks, which are 8 channels; 40 are 3."""
    assert matrix(channels(), 1000.0, 1024.0).counts["MAC16"] == 8 * 8 * 64
    assert matrix(channels(), 40.0, 1024.0).counts["MAC16"] == 3 * 64


def test_a_function_is_looked_up_once_for_each_output_at_half_the_accumulators() -> None:
    c = channels()
    plain, looked = matrix(c, 11008.0, 4096.0), matrix(c, 11008.0, 4096.0, function=True)
    assert looked.counts["AF16"] == looked.counts["RDAF16"] == 86 * 8
    assert looked.counts["MAC16"] == plain.counts["MAC16"]
    # Six groups of accumulators instead of three; each result takes two switches.
    assert looked.counts["ACT16"] - plain.counts["ACT16"] == 6 * 8
    assert looked.clocks > plain.clocks + 86 * 2 * 32


def test_keys_of_several_heads_share_a_row_and_query_heads_share_it_again() -> None:
    """32 heads of 128: 8 a row; 2048 tokens on 128 banks are 16 turns of 4 rows."""
    one = score(channels(), 32.0, 1.0, 128.0, 2048.0)
    assert one.counts["ACT16"] == 8 * 16 * 4
    assert one.counts["MAC16"] == 8 * 16 * 32 * 8
    assert one.counts["RDMAC16"] == 8 * 16 * 32
    eight = score(channels(), 32.0, 8.0, 128.0, 2048.0)
    assert eight.counts["ACT16"] == one.counts["ACT16"]
    assert eight.counts["MAC16"] == 8 * one.counts["MAC16"]
    assert eight.clocks < 8 * one.clocks


def test_values_of_a_head_are_in_one_channel() -> None:
    """2048 tokens are two rows, 128 elements eight turns of 16 banks, 32 heads four a channel."""
    done = context(channels(), 32.0, 1.0, 128.0, 2048.0)
    assert done.counts["ACT16"] == 8 * 4 * 2 * 8
    assert done.counts["MAC16"] == 8 * 4 * 2 * 8 * 64
    assert context(channels(32.0, guests=1), 8.0, 1.0, 128.0, 2048.0).clocks == pytest.approx(
        context(channels(32.0, guests=1), 32.0, 1.0, 128.0, 2048.0).clocks
    )


def test_the_softmax_stages_all_scores_six_times() -> None:
    c = channels()
    controller = Controller(c, UnitView(c.unit.machine, "device.pnm"))
    task = controller.softmax(32.0, 2304.0)
    access = 144 * 32
    assert task.shared.counts["WR"] == 4 * access
    assert task.shared.counts["RD"] == 2 * access
    assert task.shared.clocks == 6 * access
    # 144 columns in three rows of each bank group, twice.
    assert task.own.counts["EWMUL16"] == 2 * 144 * 8
    assert task.own.counts["ACT16"] == 2 * 3 * 8
    scores = 32 * 2304 / 16 / 32
    assert task.cycles == pytest.approx(scores * (44 + 66) + 32 * 18.25)


def test_a_norm_is_two_products_around_four_copies() -> None:
    c = channels()
    controller = Controller(c, UnitView(c.unit.machine, "device.pnm"))
    task = controller.norm(4096.0)
    assert task.cycles == pytest.approx(4096 / 256 / 32 * 66 + 3 + 26)
    assert task.shared.counts["WR"] == 4 * 256
    assert task.shared.counts["RD"] == 256
    assert task.own.counts["RDCP"] == task.own.counts["WRCP"] == 4 * 8 * 8
    assert task.own.counts["EWMUL16"] == 2 * 8 * 8


def test_commands_over_points_are_those_of_each_point() -> None:
    tokens = np.array([1.0, 128.0, 1024.0, 1025.0, 4096.0])
    for kernel in (score, context):
        together = kernel(channels(), 40.0, 1.0, 128.0, tokens)
        for i, n in enumerate(tokens):
            alone = kernel(channels(), 40.0, 1.0, 128.0, float(n))
            assert together.clocks[i] == pytest.approx(alone.clocks, rel=1e-12)
            for name, count in alone.counts.items():
                mine = np.broadcast_to(together.counts[name], tokens.shape)[i]
                assert mine == pytest.approx(count, rel=1e-12), name


# -- links ---------------------------------------------------------------------------------


def test_a_vector_crosses_in_whole_flits() -> None:
    """43 flits of 256 bytes on 18 lanes of 4 GiB/s after 180 ns: 322.4 ns, as published."""
    wire = Wire.between(ob.load_machine("cent-8"), "device", 8)
    assert wire.broadcast(8192.0).seconds == pytest.approx(322.4e-9, rel=1e-3)
    gathered = wire.gather(8192.0)
    assert gathered.seconds == pytest.approx(180e-9 + 7 * 6 * 256 / (72 * 2**30), rel=1e-9)
    assert gathered.bits == 8 * 8192 * 7 / 8


def test_what_a_stage_sends_on_has_the_headers_of_flits() -> None:
    sent = ob.simulate("cent-8", WORK).breakdown.query("operator == 'send'").iloc[0]
    assert sent["seconds"] / sent["runs"] == pytest.approx(180e-9 + 8192 / (0.75 * 72 * 2**30))


def test_several_devices_need_a_link_with_multicast() -> None:
    machine = ob.load_machine("cent-8").replace({"cxl.multicast": False})
    with pytest.raises(UncoveredError, match="no multicast"):
        ob.simulate(machine, {**WORK, "batch": 1}, "tensor")


# -- sets of channels ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "degrees", "span", "guests", "gathered"),
    [
        ("cent-8", {"pp": 32}, 8, 4, 1),
        ("cent-20", {"pp": 40}, 16, 2, 1),
        ("cent-32", {"pp": 80}, 10, 3, 1),
        ("cent-8", {"pp": 8}, 32, 1, 1),
        ("cent-8", {"pp": 2, "tp": 4}, 32, 1, 4),
    ],
)
def test_a_stage_is_a_set_of_channels(
    name: str, degrees: dict[str, int], span: int, guests: int, gathered: int
) -> None:
    groups = Groups.of(ob.load_machine(name), split(name, **degrees))
    assert (groups.span, groups.guests, groups.gathered) == (span, guests, gathered)
    assert groups.spanned("device.channel.dram") == span * gathered
    assert groups.spanned("device.pnm") == 1


def test_sets_that_do_not_work_are_refused() -> None:
    machine = ob.load_machine("cent-8")
    with pytest.raises(ConfigError, match="leave none"):
        Groups.of(machine, split(pp=300))
    with pytest.raises(ConfigError, match="over which outputs are split"):
        Groups.of(machine, split(pp=4, tp=4))


def test_a_stage_spreads_its_weights_over_its_channels() -> None:
    eight = ob.simulate("cent-8", WORK, split(pp=8)).occupancy["device.channel.dram"]
    # Four layers and the caches of eight sequences on 32 channels; embedding or head beside.
    model = ob.load_model("llama-2-7b")
    embedding = 32000 * 4096 * 2
    layers = (model.parameters * 2 - 2 * embedding) / 8
    cache = 8 * 2048 * model.kv_bytes_per_token / 8
    assert eight == pytest.approx((layers + cache + embedding) / 32, rel=0.001)
    one = ob.simulate("cent-8", {**WORK, "batch": 1}, split(pp=1, tp=8))
    assert one.occupancy["device.channel.dram"] < eight * 1.1


def test_units_at_two_ports_of_an_exclusive_memory_wait_for_each_other() -> None:
    result = ob.simulate("cent-8", {**WORK, "batch": 1})
    busy = result.resources.set_index("resource")["busy_s"]
    units = busy["device.pnm"] + busy["device.channel.mac"]
    assert busy["device.channel.dram"] == pytest.approx(units)


def test_a_continuous_pipeline_is_as_fast_as_its_slowest_stage_or_one_query() -> None:
    full = ob.simulate("cent-8", WORK)
    single = ob.simulate("cent-8", {**WORK, "batch": 1})
    stage = ob.simulate("cent-8", WORK).resources["busy_s"].max()
    assert full.seconds == pytest.approx(max(single.seconds, stage))
    assert full.tokens_per_s > 7 * single.tokens_per_s


def test_refresh_and_standby_are_the_difference_that_the_switch_makes() -> None:
    published = ob.simulate("cent-8", {**WORK, "batch": 32}, split(pp=32, artifact=True))
    ours = ob.simulate("cent-8", {**WORK, "batch": 32}, split(pp=32))
    assert ours.seconds > 1.05 * published.seconds
    assert ours.joules > 1.2 * published.joules


# -- laws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("artifact", [True, False])
@pytest.mark.parametrize(
    ("machine", "model", "degrees"),
    [
        ("cent-8", "llama-2-7b", {"pp": 32}),
        ("cent-20", "llama-2-13b", {"pp": 5, "tp": 4}),
        ("cent-32", "llama-2-70b", {"pp": 80}),
        ("cent-32", "llama-2-70b", {"pp": 1, "tp": 32}),
        ("cent-32", "qwen2.5-32b", {"pp": 32}),
    ],
)
def test_the_bound_is_below_and_longer_contexts_take_longer(
    machine: str, model: str, degrees: dict[str, int], artifact: bool
) -> None:
    from opbyte.sim.simulate import evaluate

    contexts = np.array([1.0, 100.0, 1024.0, 1025.0, 4000.0])
    work = Decode(ob.load_model(model), batch=float(degrees["pp"]), context=contexts)
    mapping = split(machine, artifact=artifact, **degrees)
    loaded = ob.load_machine(machine)
    best, real = (evaluate(loaded, work, mapping, f).metrics for f in ("bound", "analytic"))
    assert (best["seconds"] <= real["seconds"]).all()
    assert (np.diff(real["seconds"]) > 0).all()
    assert (np.diff(real["joules"]) > 0).all()


def test_faster_clocks_and_links_delay_nothing() -> None:
    machine, mapping = ob.load_machine("cent-8"), split(pp=2, tp=4)
    base = ob.simulate(machine, {**WORK, "batch": 2}, mapping).seconds
    for change in (
        {"device.channel.mac.pim.timing.rcd": 40},
        {"device.channel.mac.pim.timing.mode": 0},
        {"device.channel.mac.bank.rcd_multiply": 10},
        {"cxl.bandwidth": "144 GiB/s"},
        {"cxl.latency": "90 ns"},
        {"device.pnm.clock": "4 GHz"},
    ):
        faster = ob.simulate(machine.replace(change), {**WORK, "batch": 2}, mapping).seconds
        assert faster < base, change


def test_a_prompt_is_read_token_by_token() -> None:
    """Each operator takes what it takes in as many decode steps; the head runs once."""
    from opbyte.sim.simulate import evaluate

    machine, model = ob.load_machine("cent-8"), ob.load_model("llama-2-7b")
    mapping = split(pp=32)
    prompt = ob.simulate(machine, ob.Prefill(model, 32, 70, past=1000), mapping).breakdown
    contexts = np.arange(1001.0, 1071.0)
    steps = evaluate(machine, Decode(model, batch=32.0, context=contexts), mapping).phases[0].demand
    seconds = dict(zip(steps.placed.names, steps.duration, strict=True))
    joules = dict(zip(steps.placed.names, steps.joules, strict=True))
    once = prompt[prompt["block"] == "layer.full@0"].set_index("operator")
    for name in ("norm", "qkv", "kv_append", "score", "softmax", "context", "down"):
        assert once["seconds"][name] / 32 == pytest.approx(seconds[name].sum()), name
        assert once["joules"][name] / 32 == pytest.approx(joules[name].sum()), name


def test_prompts_and_answers_of_one_iteration_have_their_own_attention() -> None:
    """A piece of a prompt beside decodes: each score is that of its own sequences."""
    model = ob.load_model("llama-2-7b")
    mixed = ob.Mixed(model, chunks=((16, 500),), decodes=4, context=2000)
    rows = ob.simulate("cent-8", mixed).breakdown.groupby("operator")["seconds"].sum()
    prompt = ob.simulate("cent-8", ob.Prefill(model, 1, 16, past=500)).breakdown
    decode = ob.simulate("cent-8", ob.Decode(model, 4, 2000)).breakdown
    for name in ("score", "softmax", "context"):
        alone = [b.groupby("operator")["seconds"].sum()[name] for b in (prompt, decode)]
        found = sorted(v for n, v in rows.items() if n.split(".")[0] == name)
        assert found == pytest.approx(sorted(alone)), name


def test_a_generation_reads_its_prompt_and_writes_its_answer() -> None:
    work = {"kind": "generate", "model": "llama-2-7b", "batch": 8, "input": 128, "output": 100}
    result = ob.simulate("cent-8", work)
    step = ob.simulate("cent-8", {**WORK, "context": 178})
    assert result.tpot == pytest.approx(step.tpot, rel=0.02)
    assert 0.5 * 128 * step.tpot < result.ttft < 128 * step.tpot


# -- refusals ------------------------------------------------------------------------------


def test_what_has_no_commands_is_refused() -> None:
    with pytest.raises(UncoveredError, match="no commands for"):
        ob.simulate("cent-8", {**WORK, "model": "mixtral-8x7b"})
    with pytest.raises(UncoveredError, match="no arithmetic for fp8"):
        ob.simulate("cent-8", {"kind": "gemm", "m": 1, "n": 64, "k": 64, "dtype": "fp8"})
    fused = split(pp=8).model_copy(update={"fusion": "layer"})
    with pytest.raises(UncoveredError, match="fusion: none"):
        ob.simulate("cent-8", WORK, fused)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CapacityError, match="weight"):
        ob.simulate("cent-8", {**WORK, "model": "llama-2-70b"})
    with pytest.raises(CapacityError, match="weight"):
        ob.simulate("cent-8", {"kind": "gemm", "m": 1, "n": 4e6, "k": 4096, "dtype": "bf16"})


@pytest.mark.parametrize("count", ["device.channel.mac.pim.organisation.banks", "device.count"])
def test_zero_banks_or_devices_are_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=r"at least 1|above 0"):
        ob.load_machine("cent-8").replace({count: 0})


def test_blocks_need_their_kind_and_a_kind_its_blocks() -> None:
    machine = ob.load_machine("cent-8")
    with pytest.raises(ConfigError, match="`pnm` needs a unit of kind pnm"):
        machine.replace({"device.pnm.kind": "vector"})


def test_the_event_kernel_has_no_endless_pipeline() -> None:
    with pytest.raises(UncoveredError, match="continuous pipeline"):
        ob.simulate("cent-8", WORK, fidelity="event")
    alone = [ob.simulate("cent-8", {**WORK, "batch": 1}, fidelity=f) for f in ("analytic", "event")]
    assert alone[0].seconds == pytest.approx(alone[1].seconds, rel=1e-9)


def test_fewer_sequences_than_stages_are_fewer_batches() -> None:
    one, three, eight = (ob.simulate("cent-8", {**WORK, "batch": n}) for n in (1, 3, 8))
    assert three.joules_per_token < one.joules_per_token
    assert eight.joules_per_token < three.joules_per_token
    assert one.seconds <= three.seconds <= eight.seconds
    assert three.flops == pytest.approx(3 * one.flops)


@pytest.mark.parametrize("tensor", ["weight", "kv"])
def test_what_banks_hold_in_another_width_is_refused(tensor: str) -> None:
    model = ob.load_model("llama-2-7b").with_precision(**{tensor: "int8"})
    with pytest.raises(UncoveredError, match="2 bytes an element"):
        ob.simulate("cent-8", Decode(model, 8, 2048))


def test_a_vector_lies_in_one_bank_of_each_bank_group() -> None:
    """16 banks as four groups of four, and as two of eight: half of the banks hold it."""
    values = {"device.channel.mac.pim.organisation.bank_groups": 2.0,
              "device.channel.mac.pim.organisation.banks": 8.0}  # fmt: skip
    found = []
    for machine in (m := ob.load_machine("cent-8"), m.with_values(values)):
        unit = UnitView(machine, "device.channel.mac")
        device = PimDevice.of(unit, "bf16")
        assert device is not None
        of = Controller(
            Channels(unit, device, 8.0, 1, 4, artifact=False, stages=32),
            UnitView(machine, "device.pnm"),
        )
        found.append(of.result(4096.0).shared.counts)
    assert found[0] == {"RD": 8 * 4 * 8, "PRE": 8 * 4, "ACT": 8 * 4}
    assert found[1] == {"RD": 8 * 2 * 16, "PRE": 8 * 2, "ACT": 8 * 2}
