"""Decode attention on a group of devices of its own: closed forms, conservation, laws, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.mapping import load_mapping
from opbyte.core.mapping_file import Pipeline
from opbyte.core.ops import TRANSFER
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.hw_models.price import price
from opbyte.sim.attention_group import pooled_phases
from opbyte.sim.engine import run_dag
from opbyte.sim.event import event_step
from opbyte.sim.place import Placer
from opbyte.sim.simulate import evaluate

MACHINE = "lamina-70b"
MAPPINGS = ("serial", "lamina", "staggered")
MHA, GQA = "llama-65b", "llama-3-70b"


def decode(model: str = GQA, batch: Any = 32, context: int = 2048) -> Any:
    return ob.Decode(model, batch=batch, context=context)


def mapped(name: str = "serial", **changes: object) -> Any:
    return load_machine(MACHINE).mapping(name).model_copy(update=changes)


# -- what crosses --------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "per_kv_head"), [(MHA, 1), (GQA, 8)])
@pytest.mark.parametrize("mapping", MAPPINGS[:2])
def test_a_layer_sends_the_papers_bytes(model: str, per_kv_head: int, mapping: str) -> None:
    (phase,) = pooled_phases(decode(model), mapped(mapping))
    table = phase.table
    sent = np.array([k == TRANSFER for k in table.kinds])
    total = (table["payload"][sent] * table["participants"][sent]).sum()
    assert total == pytest.approx((2 + 2 / per_kv_head) * 2 * 8192 * 32, rel=1e-12)
    assert sent.sum() == (2 if mapping == "serial" else 3)


@pytest.mark.parametrize("model", [GQA, "qwen3-8b", "gpt-3-13b", "falcon-7b"])
@pytest.mark.parametrize("mapping", MAPPINGS[:2])
def test_operations_and_bytes_are_those_of_both_lowerings(mapping: str, model: str) -> None:
    work = decode(model)
    (joined,) = pooled_phases(work, mapped(mapping))
    first, attention = (work.lowered(Parallel(tp=d))[0].table for d in (2, 4))
    cached = [k in ("kv_append", "score", "softmax", "context") for k in first.kinds]
    table = joined.table
    here = np.array([k in ("kv_append", "score", "softmax", "context") for k in table.kinds])
    for column in ("flops", "weight", "kv_read", "kv_write"):
        of_model = (first[column] * first.repeats[:, None])[~np.array(cached)].sum()
        of_attention = (attention[column] * attention.repeats[:, None])[np.array(cached)].sum()
        ours = table[column] * table.repeats[:, None]
        assert ours[~here].sum() == pytest.approx(of_model, rel=1e-12)
        assert ours[here].sum() == pytest.approx(of_attention, rel=1e-12)


def four_h20(kernel: Any) -> dict[str, Any]:
    mapping = {
        "groups": {"all": "gpu"},
        "parallel": {"all": {"group": "all", "tp": 4}},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
        "fusion": "attention",
        "launch": "graph",
    }
    return {
        "kind": "machine",
        "name": "four-h20",
        "parts": {"gpu": {"like": "h20.gpu", "count": 4, "units": {"sm": {"kernel": kernel}}}},
        "links": {"nvlink": {"like": "h20.nvlink"}},
        "mappings": {"default": mapping},
    }


# A kernel reads its cache in a known time; a roofline counts activations too, and reads of a
# message of q, k and v both what it needs and what it does not: a thousandth at most.
@pytest.mark.parametrize(("kernel", "rel"), [({"like": "a100-sxm-80gb"}, 1e-12), (None, 1e-3)])
@pytest.mark.parametrize("model", [MHA, GQA])
def test_attention_costs_what_four_devices_with_tensor_parallelism_pay(
    model: str, kernel: Any, rel: float
) -> None:
    operator = "score+softmax+context"
    machine = load_machine(MACHINE).replace({"h20.sm.kernel": kernel})
    alone = ob.simulate(four_h20(kernel), decode(model)).breakdown.set_index("operator")
    pool = ob.simulate(machine, decode(model), mapping="serial").breakdown.set_index("operator")
    assert pool.loc[operator, "unit"] == "h20.sm"
    seconds = alone.loc[operator, "seconds"]
    assert pool.loc[operator, "seconds"] == pytest.approx(seconds, rel=rel)


def test_without_overlap_everything_follows_each_other() -> None:
    result = ob.simulate(MACHINE, decode(), mapping="serial")
    rows = result.breakdown
    assert result.tpot == pytest.approx(rows["seconds"].sum(), rel=1e-9)
    sent = rows[rows["operator"].str.startswith("send")]
    layer = 33.0e-6 + (2.25 * 2 * 8192 * 32) / (2 * 45.7e9)
    assert sent["seconds"].sum() == pytest.approx(80 * layer, rel=1e-9)
    event = ob.simulate(MACHINE, decode(), mapping="serial", fidelity="event")
    assert event.tpot == pytest.approx(result.tpot, rel=1e-9)


def test_joules_and_memory_bytes_count_all_devices_of_each_group() -> None:
    result = ob.simulate(MACHINE, decode(), mapping="serial")
    rows = result.breakdown
    at = {name: rows[f"{name}_bytes"].sum() for name in ("h100.hbm.phy", "h20.hbm.phy")}
    moved = 2 * at["h100.hbm.phy"] + 4 * at["h20.hbm.phy"]
    assert result.flops / result.op_per_byte == pytest.approx(moved, rel=1e-9)
    link = 8 * 40e-12 * (2.25 * 2 * 8192 * 32) * 80
    assert rows[rows["operator"].str.startswith("send")]["joules"].sum() > link


# -- laws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize(
    ("model", "batch", "context"), [(MHA, 6, 2048), (GQA, 64, 512), (GQA, 128, 8192)]
)
def test_the_fidelities_are_ordered(mapping: str, model: str, batch: int, context: int) -> None:
    work = decode(model, batch, context)
    bound, analytic, event = (
        ob.simulate(MACHINE, work, mapping=mapping, fidelity=f).seconds
        for f in ("bound", "analytic", "event")
    )
    assert 0 < bound <= analytic <= event * (1 + 1e-9)
    # One round of events has a tail in which the last of two batches is alone.
    assert event < (1.3 if mapping == "staggered" else 1.01) * analytic


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_compiled_kernel_equals_its_readable_twin(microbatches: int) -> None:
    machine, mapping = load_machine(MACHINE), mapped("lamina")
    (phase,) = pooled_phases(decode("qwen3-8b", 8, 128), mapping)
    demand = price(Placer(machine, mapping).place(phase.table), machine)
    _, timeline = event_step(demand, microbatches)
    np.testing.assert_allclose(timeline.end, run_dag(demand, microbatches), rtol=1e-9)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("path", ["roce.bandwidth", "roce.latency", "h20.hbm.phy.bandwidth"])
def test_better_hardware_does_not_hurt(mapping: str, path: str) -> None:
    machine = load_machine(MACHINE)
    factor = 0.5 if path.endswith("latency") else 2.0
    better = machine.with_values({path: machine.values[path] * factor})
    times = [ob.simulate(m, decode(), mapping=mapping).seconds for m in (machine, better)]
    # Staggered batches wait for the model group here, whatever the rest does.
    assert times[1] == times[0] if mapping == "staggered" else times[1] < times[0]


def test_queries_first_hide_transfers_behind_attention() -> None:
    slow, fast = (ob.simulate(MACHINE, decode(MHA), mapping=m) for m in ("serial", "lamina"))
    assert 0.8 * slow.tpot < fast.tpot < slow.tpot
    assert fast.flops == pytest.approx(slow.flops, rel=1e-12)
    ends = {name: ob.simulate(MACHINE, decode(MHA), mapping=name, fidelity="event").tpot
            for name in ("serial", "lamina")}  # fmt: skip
    assert ends["lamina"] < ends["serial"]


def test_staggered_batches_take_the_longer_of_chain_and_busiest_resource() -> None:
    for batch in (2, 64, 256):
        whole = ob.simulate(MACHINE, decode(batch=batch, context=1024), mapping="staggered")
        half = ob.simulate(MACHINE, decode(batch=batch // 2, context=1024), mapping="lamina")
        busiest = half.resources["busy_s"].max()
        assert whole.tpot == pytest.approx(max(half.tpot, 2 * busiest), rel=1e-9)
        assert whole.flops == pytest.approx(2 * half.flops, rel=1e-9)


@pytest.mark.parametrize("fidelity", ["bound", "analytic", "event"])
@pytest.mark.parametrize("batch", [1, 7])
def test_batches_that_take_turns_share_equally(batch: int, fidelity: Any) -> None:
    with pytest.raises(WorkloadError, match=f"multiple of the 2 batches.*got {batch}"):
        ob.simulate(MACHINE, decode(batch=batch), mapping="staggered", fidelity=fidelity)


def test_the_known_anomaly_of_staggered_events() -> None:
    """Law 4: the event kernel decides anew which batch goes first, so less latency may cost time.

    Graham's anomaly (1969): the order changes, and the tail grows. The analytic time does not.
    """
    config = {
        "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 1024,
        "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": 8000, "max_position_embeddings": 200000,
    }  # fmt: skip
    model = {"kind": "model", "name": "x", "source": "made up", "config": config}
    work = {"kind": "decode", "model": model, "batch": 32, "context": 5000}
    slow, fast = (
        load_machine("lamina-33b").replace({"roce.latency": t}) for t in ("16.5 us", "1 us")
    )
    events = [ob.simulate(m, work, "staggered", fidelity="event").seconds for m in (slow, fast)]
    steady = [ob.simulate(m, work, "staggered").seconds for m in (slow, fast)]
    assert 1.0 < events[1] / events[0] < 1.15
    assert steady[1] <= steady[0]


def test_more_replicas_share_the_batches() -> None:
    machine = load_machine(MACHINE).replace({"h100.count": 4})
    three = mapped("staggered", pipeline=pipeline(3))
    two = ob.simulate(machine, decode(batch=96), mapping=mapped("staggered"))
    many = ob.simulate(machine, decode(batch=96), mapping=three)
    assert many.tokens_per_s > two.tokens_per_s
    # Each batch is at one model replica; the three keep two of them busy.
    half = ob.simulate(machine, decode(batch=32), mapping="lamina")
    busy = half.resources.set_index("resource")["busy_s"]
    assert many.tpot == pytest.approx(max(half.tpot, 1.5 * busy["h100.sm"], 3 * busy["h20.sm"]))
    with pytest.raises(UncoveredError, match="2 replicas"):
        ob.simulate(machine, decode(batch=96), mapping=three, fidelity="event")
    with pytest.raises(ConfigError, match=r"4 devices, but lamina-70b has 2 of 'h100'"):
        ob.simulate(MACHINE, decode(), mapping=three)


def pipeline(batches: int) -> Any:
    return Pipeline(kind="staggered", batches=batches, replicas=batches - 1)


def test_points_together_are_points_alone() -> None:
    work = decode(batch=np.array([4.0, 32.0, 78.0]), context=np.array([512.0, 4096.0, 100.0]))
    machine = load_machine(MACHINE)
    for name in MAPPINGS:
        together = evaluate(machine, work, machine.mapping(name)).metrics["seconds"]
        alone = [
            ob.simulate(machine, decode(batch=int(b), context=int(c)), mapping=name).seconds
            for b, c in zip(work.batch, work.context, strict=True)
        ]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


# -- capacity ------------------------------------------------------------------------------


def test_the_cache_fills_the_attention_group_and_weights_the_model_group() -> None:
    result = ob.simulate(MACHINE, decode(batch=64, context=4096), mapping="lamina")
    assert result.occupancy["h20.hbm"] == 64 * 4096 * 80 * 2 * 8 * 128 * 2 / 4
    weights = ob.load_model(GQA).parameters
    assert weights < result.occupancy["h100.hbm"] < 1.01 * weights
    with pytest.raises(CapacityError) as caught:
        ob.simulate(MACHINE, decode(batch=400, context=4096), mapping="lamina")
    assert caught.value.tier == "h20.hbm"
    small = load_machine(MACHINE).replace({"h100.hbm.capacity": "40 GB"})
    with pytest.raises(CapacityError) as caught:
        ob.simulate(small, decode(), mapping="lamina")
    assert caught.value.tier == "h100.hbm"


@pytest.mark.parametrize(
    ("machine", "mapping", "step"),
    [(MACHINE, "lamina", 1), (MACHINE, "staggered", 2), ("h100-x4", None, 1)],
)
def test_the_largest_batch_fits_and_no_larger_one(
    machine: str, mapping: str | None, step: int
) -> None:
    most = ob.simulate(machine, decode(batch="max", context=4000), mapping=mapping)
    batch = int(most.batch_max)
    same = ob.simulate(machine, decode(batch=batch, context=4000), mapping=mapping)
    assert (same.batch_max, same.tokens_per_s) == (batch, most.tokens_per_s)
    assert batch % step == 0
    with pytest.raises(CapacityError):
        ob.simulate(machine, decode(batch=batch + step, context=4000), mapping=mapping)


def test_a_batch_that_never_fits_is_a_capacity_error() -> None:
    small = load_machine(MACHINE).replace({"h20.hbm.capacity": "100 MB"})
    with pytest.raises(CapacityError, match=r"h20\.hbm"):
        ob.simulate(small, decode(batch="max"), mapping="lamina")


def test_only_a_batch_may_be_max() -> None:
    with pytest.raises(ob.WorkloadError, match="context must be a whole number"):
        ob.Decode(GQA, batch=1, context="max")  # type: ignore[arg-type]


# -- what is refused -----------------------------------------------------------------------


def test_latent_attention_has_no_product_to_cut() -> None:
    machine = load_machine(MACHINE).replace({"h100.hbm.capacity": "2 TB"})
    with pytest.raises(UncoveredError):
        ob.simulate(machine, decode("deepseek-v3", 8, 512), mapping="lamina")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline": {"kind": "staggered", "batches": 3, "replicas": 1}}, "2 replicas busy"),
        ({"pipeline": {"kind": "staggered", "batches": 1, "replicas": 0}}, "pipeline.batches"),
    ],
)
def test_a_pipeline_that_keeps_nobody_busy_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_mapping({"run": [{"ops": "all", "unit": "x.y"}], **changes})


def test_groups_must_differ_and_have_their_devices() -> None:
    split = mapped().parallel
    more = {**split, "attention_decode": split["attention_decode"].model_copy(update={"heads": 8})}
    with pytest.raises(ConfigError, match="heads = 8 devices, but lamina-70b has 4 of 'h20'"):
        ob.simulate(MACHINE, decode(), mapping=mapped(parallel=more))
    one = {"model": "h100", "attention": "h100"}
    with pytest.raises(ConfigError, match="group of another part"):
        ob.simulate(MACHINE, decode(), mapping=mapped(groups=one))
    deep = {**split, "all": split["all"].model_copy(update={"pp": 2, "tp": 1})}
    with pytest.raises(UncoveredError, match="beside a group for attention"):
        ob.simulate(MACHINE, decode(), mapping=mapped(parallel=deep))


def test_the_default_mapping_runs_on_the_model_group_alone() -> None:
    machine: Machine = load_machine(MACHINE)
    result = ob.simulate(
        machine, {"kind": "prefill", "model": "llama-33b", "batch": 1, "input": 64}
    )
    assert set(result.breakdown["unit"]) <= {"h100.sm", ""}
