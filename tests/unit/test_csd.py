"""Attention behind the channels of computational drives: closed forms, bytes, laws, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.kv_select import KvSelect
from opbyte.core.mapping import load_mapping
from opbyte.core.routes import Route, Software
from opbyte.hw_models.compute.csd.layout import Layout, touched
from opbyte.hw_models.machine import load_machine
from opbyte.sim.attention_group import pooled_phases
from opbyte.sim.metrics import metrics_of
from opbyte.sim.simulate import evaluate

ONE = load_machine("a6000-csd")
MACHINES = {1: "a6000-csd", 2: "a6000-csd-2", 20: "a6000-csd-20"}
MAPPINGS = ("instinfer", "instinfer-sparf")
LAYERS, HEADS, WIDTH = 40, 40, 128
ATTENTION = "score+softmax+context"
#: Bytes of keys, or values, of a token in a layer, and rates, bytes/s.
TOKEN = HEADS * WIDTH * 2
STREAM = 11.2e9 * ONE.values["csd.flash.inside.efficiency"]
DRAM = 19.2e9 * 0.8


def decode(batch=64, context=1536):
    return ob.Decode("opt-13b", batch=batch, context=context)


def mapped(name="instinfer", machine=ONE, **changes):
    return machine.mapping(name).model_copy(update=changes)


def sparse(**fields):
    return KvSelect.model_validate({"kind": "sparf", "keep": 0.125, "channels": 0.125, **fields})


def operator(result, name):
    frame = result.breakdown
    (row,) = frame[frame.operator == name].to_dict("records")
    return row


# -- sizes ---------------------------------------------------------------------------------


def test_caches_have_the_papers_sizes_in_binary_units():
    small = ob.load_model("opt-13b").kv_bytes_per_token
    assert 2048 * 128 * small / 2**30 == 200
    assert 4096 * 32 * small / 2**30 == 100


@pytest.mark.parametrize(("name", "copies"), [("instinfer", 2), ("instinfer-sparf", 3)])
def test_keys_stored_twice_take_room_twice(name, copies):
    found = ob.simulate("a6000-csd-2", decode(), mapping=name).occupancy
    assert found["csd.flash"] == copies * 64 * 1536 * TOKEN * LAYERS / 2
    assert found["csd.dram"] == 16 * 2 * 64 * TOKEN * LAYERS / 2


def test_a_cache_larger_than_flash_does_not_fit():
    small = ONE.replace({"csd.flash.capacity": "100 GB"})
    ob.simulate(small, decode(), mapping="instinfer")
    for batch, mapping in ((128, "instinfer"), (64, "instinfer-sparf")):
        with pytest.raises(CapacityError, match=r"kv.* csd\.flash"):
            ob.simulate(small, decode(batch), mapping=mapping)


def test_new_tokens_need_room_until_their_page_is_full():
    with pytest.raises(CapacityError, match=r"fill no page.* csd\.dram"):
        ob.simulate(ONE, decode(batch=320), mapping="instinfer")
    ob.simulate(ONE, decode(batch=256), mapping="instinfer")


# -- number of drives ----------------------------------------------------------------------


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("count", [1, 3, 20, 27, 40])
def test_heads_are_split_over_all_drives_that_there_are(mapping, count):
    machine = ONE.replace({"csd.count": count})
    found = ob.simulate(machine, decode(), mapping=mapping)
    split = machine.mapping(mapping).parallel
    split = {
        **split, "attention_decode": split["attention_decode"].model_copy(update={"heads": count})
    }  # fmt: skip
    written = ob.simulate(machine, decode(), mapping=mapped(mapping, machine, parallel=split))
    assert found.metrics == pytest.approx(written.metrics, rel=0, nan_ok=True)
    # The drive with most heads decides what fits.
    copies = {"instinfer": 2, "instinfer-sparf": 3}[mapping]
    heads = np.ceil(HEADS / count)
    assert found.occupancy["csd.flash"] == copies * 64 * 1536 * heads * WIDTH * 2 * LAYERS
    assert evaluate(machine, decode(), machine.mapping(mapping)).metrics["seconds"] == found.seconds


def test_more_drives_than_heads_are_refused():
    with pytest.raises(ob.WorkloadError, match="41 does not divide 40"):
        ob.simulate(ONE.replace({"csd.count": 41}), decode(), mapping="instinfer")


def test_a_study_varies_the_number_of_drives(tmp_path):
    study = {
        "kind": "study",
        "name": "drives",
        "base": {
            "machine": "a6000-csd",
            "mapping": "instinfer",
            "workload": {"kind": "decode", "model": "opt-13b", "batch": 64, "context": 1536},
        },
        "axes": {"machine.csd.count": {"values": [1, 2, 20]}},
        "objectives": {"tokens_per_s": "max"},
    }
    found = ob.load_study(study).run(tmp_path, workers=1).frame()
    for count, speed in zip(found["machine.csd.count"], found["tokens_per_s"], strict=True):
        one = ob.simulate(MACHINES[int(count)], decode(), mapping="instinfer")
        assert speed == pytest.approx(one.tokens_per_s, rel=1e-12)


@pytest.mark.parametrize("heads", [0, "every", 2.5])
def test_heads_are_a_number_or_all(heads):
    split = {"attention_decode": {"group": "csds", "heads": heads}}
    with pytest.raises(ConfigError, match=r"parallel\.attention_decode\.heads: must be .*'all'"):
        load_mapping(
            {"groups": {"csds": "csd"}, "parallel": split, "run": [{"ops": "all", "unit": "x.y"}]}
        )


def test_all_of_a_part_that_is_not_there_is_refused():
    elsewhere = mapped(groups={"gpu": "gpu", "csds": "csb"})
    with pytest.raises(ConfigError, match="did you mean 'csd'"):
        ob.simulate(ONE, decode(), mapping=elsewhere)


# -- seconds -------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [1536, 1537])
def test_dense_attention_takes_its_pages_and_a_head_of_the_rest(context):
    row = operator(ob.simulate(ONE, decode(context=context), mapping="instinfer"), ATTENTION)
    groups, scores = 64 * HEADS, 64 * HEADS * context
    pages = 2 * groups * np.ceil(context / 16) * 4096
    stages = [
        pages / STREAM,
        pages / (8 * 8 * 285e6),
        2 * scores * WIDTH / (2 * 192 * 285e6),
        scores / (2 * 8 * 285e6),
        2 * 2 * scores / DRAM,
    ]
    kernel = 45e-6 + max(stages) + (sum(stages) - max(stages)) / groups
    # A start, and the first access to the DRAM with queries and results.
    assert row["seconds"] == pytest.approx(LAYERS * (kernel + 2.2e-6), rel=1e-9)
    assert row["csd.flash.inside_bytes"] == LAYERS * pages


def test_the_formula_is_what_heads_take_one_after_the_other():
    rng = np.random.default_rng(5)
    for _ in range(20):
        heads, used = int(rng.integers(1, 200)), rng.random(int(rng.integers(1, 6)))
        free = np.zeros(len(used))
        for _ in range(heads):
            ready = 0.0
            for stage, seconds in enumerate(used / heads):
                ready = free[stage] = max(free[stage], ready) + seconds
        expected = used.max() + (used.sum() - used.max()) / heads
        assert free[-1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("run", [None, 16.0, 1000.0])
def test_sparse_attention_reads_channels_then_pages_of_kept_tokens(run):
    select = sparse(run=run)
    row = operator(
        ob.simulate(ONE, decode(context=2048), mapping=mapped("instinfer-sparf", kv_select=select)),
        ATTENTION,
    )
    kept = touched(2048, 0.125, 16, run)
    # 16 channels of 128, and the pages of 64 of 128 new tokens which are not there by channel.
    pages = 2 * kept + 16 + 4
    assert row["csd.flash.inside_bytes"] == pytest.approx(LAYERS * 64 * HEADS * pages * 4096)


def test_without_keys_by_channel_the_first_look_reads_all_of_them():
    plain = mapped("instinfer-sparf").place["kv"].model_copy(update={"copies": None})
    place = {**mapped("instinfer-sparf").place, "kv": plain}
    once = mapped("instinfer-sparf", place=place)
    row = operator(ob.simulate(ONE, decode(context=2048), mapping=once), ATTENTION)
    pages = 128 + 2 * touched(2048, 0.125, 16)
    assert row["csd.flash.inside_bytes"] == pytest.approx(LAYERS * 64 * HEADS * pages * 4096)


def test_longer_runs_are_faster_down_to_less_than_dense():
    times = [
        ob.simulate(
            ONE, decode(context=2048), mapping=mapped("instinfer-sparf", kv_select=sparse(run=run))
        ).seconds
        for run in (None, 2.0, 8.0, 32.0, 1e6)
    ]
    assert times == sorted(times, reverse=True)
    dense = ob.simulate(ONE, decode(context=2048), mapping="instinfer").seconds
    assert times[0] > dense > times[3]
    # Pages at random places come at 5.2 GB/s and not at 9.4.
    assert 2.0 < dense / times[4] < 16 / 3


def test_an_append_is_held_then_programmed():
    written = 64 * 2 * TOKEN
    row = operator(ob.simulate(ONE, decode(), mapping="instinfer"), "kv_append")
    writes = 256 * 4096 / (400e-6 + 3.5e-3 / 512)
    stages = (2 * written / DRAM, written / writes)
    kernel = max(stages) + min(stages) / 64 / HEADS
    assert row["seconds"] == pytest.approx(LAYERS * (kernel + 2e-6), rel=0.01)


def test_a_command_costs_for_each_drive_there_and_back():
    for count, name in MACHINES.items():
        machine = load_machine(name)
        free = mapped(machine=machine, routes={})
        costs = ob.simulate(machine, decode(), mapping="instinfer").seconds
        less = ob.simulate(machine, decode(), mapping=free).seconds
        assert costs - less == pytest.approx(2 * LAYERS * count * 10e-6, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_drives_have_lanes_of_their_own_and_share_the_slot(count):
    frame = ob.simulate(MACHINES[count], decode(), mapping="instinfer").breakdown
    there, back = 3 * 64 * TOKEN * LAYERS, 64 * TOKEN * LAYERS
    assert frame["slot_bytes"].sum() == pytest.approx(there)
    assert frame["slot.back_bytes"].sum() == pytest.approx(back)
    assert frame["p2p_bytes"].sum() == pytest.approx(there / count)
    assert frame["p2p.back_bytes"].sum() == pytest.approx(back / count)


# -- writing behind the next layer ---------------------------------------------------------


def prefill_seconds(**changes):
    work = ob.Generate("opt-13b", batch=16, input=1024, output=2)
    result = ob.simulate(ONE, work, mapping=mapped(**changes))
    frame = result.breakdown
    return result.ttft, frame[frame.phase == "prefill"]


def test_caches_are_written_while_the_next_layer_runs():
    behind, frame = prefill_seconds()
    serial, _ = prefill_seconds(overlap="none")
    layer = frame[frame.runs == LAYERS].set_index("operator").seconds / LAYERS
    send, write = layer["send_prompts"], layer["prompts_append"]
    before = layer["norm"] + layer["qkv"]
    rest = layer.sum() - send - write
    once = frame[frame.runs == 1].seconds.sum()
    assert write > rest
    assert serial == pytest.approx(once + LAYERS * max(rest, before + send + write))
    # A chain of stages with room between them, layer by layer.
    ready = sent = written = 0.0
    for _ in range(LAYERS):
        sent = max(sent, ready + before) + send
        written = max(written, sent) + write
        ready += rest
    assert behind == pytest.approx(max(written, ready + once), rel=1e-9)
    assert behind < 0.9 * serial


def test_decode_steps_are_the_same_and_events_refuse_what_is_left_behind():
    steps = [
        ob.simulate(ONE, decode(), mapping=mapped(overlap=o)).seconds for o in ("none", "kv_write")
    ]
    assert steps[0] == steps[1]
    with pytest.raises(UncoveredError, match="kv_write"):
        ob.simulate(ONE, ob.Generate("opt-13b", 4, 64, 4), mapping="instinfer", fidelity="event")


# -- laws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", MACHINES)
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_bound_analytic_event(count, mapping):
    for batch, context in ((4, 300), (64, 2048)):
        bound, analytic, event = (
            ob.simulate(
                MACHINES[count], decode(batch, context), mapping=mapping, fidelity=f
            ).seconds
            for f in ("bound", "analytic", "event")
        )
        assert bound <= analytic <= event * (1 + 1e-9)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_bytes_are_compulsory_and_whole_pages(mapping):
    work = decode(8, 1000)
    machine = load_machine("a6000-csd-2")
    chosen = machine.mapping(mapping).on(machine.counts)
    outcome = evaluate(machine, work, chosen)
    demand = outcome.phases[0].demand
    runs = demand.placed.repeats[:, None]
    (phase,) = pooled_phases(work, chosen)
    share = 1.0 if mapping == "instinfer" else 3 / 16
    read = (demand.moved["kv_read", "compulsory"] * runs).sum()
    assert read == pytest.approx(share * phase.table.total("kv_read").sum(), rel=1e-12)
    assert all((np.asarray(v) >= 0).all() for v in demand.moved.values())
    port = demand.placed.resources.index("csd.flash.inside")
    through = (demand.bytes[:, port] * runs).sum()
    assert through == pytest.approx(
        sum((v * runs).sum() for (c, _), v in demand.moved.items() if c in ("kv_read", "kv_write"))
    )


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("csd.attn.csd.width", [2.0, 8.0, 32.0, 192.0]),
        ("csd.attn.csd.filter", [1.0, 4.0, 8.0]),
        ("csd.attn.csd.sort", [0.05, 1.0, 8.0]),
        ("csd.attn.csd.exponentials", [0.01, 1.0, 8.0]),
        ("csd.attn.clock", [5e6, 285e6]),
        ("csd.dram.bus.bandwidth", [1e7, 1e9, 19e9]),
        ("p2p.bandwidth", [1e9, 7e9]),
    ],
)
def test_faster_parts_are_never_slower_and_points_equal_single_ones(path, values):
    machine = ONE.with_values({path: np.array(values)})
    work, mapping = decode(16, 500), mapped("instinfer-sparf")
    times = evaluate(machine, work, mapping).metrics["seconds"]
    assert (np.diff(times) <= 0).all()
    assert times[0] > times[-1]
    for value, time in zip(values, times, strict=True):
        alone = ONE.with_values({path: value})
        assert evaluate(alone, work, mapping).metrics["seconds"] == pytest.approx(time, rel=1e-12)


def test_more_drives_are_faster_by_less_than_their_number():
    times = {
        n: ob.simulate(name, decode(), mapping="instinfer").seconds for n, name in MACHINES.items()
    }
    assert 1.9 < times[1] / times[2] < 2
    assert 15 < times[1] / times[20] < 20


def test_the_share_of_the_cache_is_what_is_not_the_model():
    result = ob.simulate(ONE, decode(), mapping="instinfer")
    frame = result.breakdown
    model = frame[frame.unit == "gpu.sm"].seconds.sum()
    assert result.kv_s == pytest.approx(result.seconds - model, rel=1e-9)
    assert result.kv_share == pytest.approx(result.kv_s / result.seconds)
    assert {"kv_s", "kv_share"} <= set(metrics_of("decode", ONE.mapping("instinfer")))
    assert "kv_s" not in metrics_of("decode", ONE.mapping())


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"kind": "sparf", "keep": 0.1}, "channels"),
        ({"kind": "sparf", "keep": 0.1, "channels": 0.1, "bits": 4}, "of kind: lop"),
        ({"kind": "lop", "keep": 0.1, "run": 4}, "of kind: sparf"),
        ({"kind": "sparf", "keep": 0.9, "channels": 0.1, "run": 2}, "at most 0.667"),
        ({"kind": "sparf", "keep": 0.1, "channels": 0.1, "run": 0.5}, "must be at least 1"),
        ({"kind": "quest", "keep": 0.1}, "lop"),
    ],
)
def test_choices_that_contradict_themselves(fields, word):
    with pytest.raises(ConfigError, match=word):
        load_mapping({"run": [{"ops": "all", "unit": "x"}], "kv_select": fields})


def test_sparse_attention_asks_for_pages():
    kv = mapped().place["kv"].model_copy(update={"page": None})
    place = {**mapped().place, "kv": kv}
    with pytest.raises(UncoveredError, match=r"place\.kv\.page"):
        ob.simulate(ONE, decode(), mapping=mapped(place=place, kv_select=sparse()))
    # Dense attention without pages is a stream.
    ob.simulate(ONE, decode(), mapping=mapped(place=place))


def test_leading_ones_have_no_model_beside_a_group():
    lop = KvSelect.model_validate({"kind": "lop", "keep": 0.25})
    with pytest.raises(UncoveredError, match="kv_select: lop"):
        ob.simulate(ONE, decode(), mapping=mapped(kv_select=lop))


@pytest.mark.parametrize(
    ("route", "error", "word"),
    [
        (Route(via=("nvme",)), ConfigError, "slot, p2p"),
        (
            Route(via=("p2p",), software=Software(access="direct", request="4 KiB")),
            UncoveredError,
            "per_command",
        ),
        (Route(via=("p2p",), software=Software(cap="1 GB/s")), UncoveredError, "per_command"),
    ],
)
def test_routes_that_are_not_modelled(route, error, word):
    with pytest.raises(error, match=word):
        ob.simulate(ONE, decode(), mapping=mapped(routes={"kv": (route,)}))


def test_an_engine_needs_its_block_and_pages_a_device():
    data = ONE.document.data
    bare = yaml.safe_load(yaml.safe_dump(data))
    del bare["parts"]["csd"]["units"]["attn"]["csd"]
    with pytest.raises(UncoveredError, match="no `csd` block"):
        ob.simulate(bare, decode(), mapping="instinfer")
    named = yaml.safe_load(yaml.safe_dump(data))
    flash = named["parts"]["csd"]["memory"]["flash"]
    flash["technology"] = "nand-tlc"
    flash["ports"]["inside"]["bandwidth"] = "11.2 GB/s"
    with pytest.raises(UncoveredError, match="opbyte list flash"):
        ob.simulate(named, decode(), mapping="instinfer")


def test_attention_runs_on_units_of_its_group():
    machine = load_machine("a6000-csd")
    mapping = machine.mapping("instinfer-sparf")
    run = (mapping.run[0].model_copy(update={"unit": "gpu.sm"}), *mapping.run[1:])
    with pytest.raises(ConfigError, match=r"runs on its units, got gpu\.sm"):
        ob.simulate(machine, ob.Decode("opt-13b", 4, 512), mapping.model_copy(update={"run": run}))


# -- the sketch ----------------------------------------------------------------------------


def test_the_sketch_runs_once_its_parts_are_described():
    file = Path(__file__).parents[1] / "data" / "sketches" / "5_instinfer.yaml"
    data = yaml.safe_load(file.read_text())
    csd = data["parts"]["csd"]
    csd["memory"]["flash"]["technology"] = "instattention-csd"
    csd["units"]["attn"] |= {
        "csd": {"kernels": 2, "width": 192, "exponentials": 8, "filter": "8 B", "sort": 4},
        "launch": {"hardware": "2 us"},
    }
    sm = data["parts"]["gpu"]["units"]["sm"]
    sm |= {"vector": "38.7 TFLOP/s", "launch": {"hardware": "2 us"}}
    result = ob.simulate(data, decode())
    assert result.occupancy["csd.flash"] == 3 * 64 * 1536 * TOKEN * LAYERS / 2
    # Half of the heads at 11.2 GB/s, less what a stream loses.
    assert result.seconds > 64 * 1536 * TOKEN * LAYERS / 11.2e9


def test_layout_of_the_catalog_machine():
    page = mapped().place["kv"].page
    assert page is not None
    assert Layout(page.value, WIDTH, 2).tokens == 16
