"""Shares of devices: tensor, data, expert and pipeline parallelism, and what each must hold."""

import numpy as np
import pytest

from opbyte.core.ops import BYTE_COLUMNS, COLLECTIVES
from opbyte.core.parallel import Parallel
from opbyte.workloads.model import (
    Attention,
    DenseFfn,
    LatentAttention,
    Layer,
    Mamba,
    Model,
    MoeFfn,
    ShortConv,
)
from opbyte.workloads.phases import Decode, Generate, Mixed, Prefill
from opbyte.workloads.routing import Routing

ONE = Parallel()
DENSE = Layer(Attention(16, 4, 32, qk_norm=64), DenseFfn(512))
SLIDING = Layer(Attention(16, 4, 32, window=20), DenseFfn(512))
MOE = Layer(Attention(16, 8, 32), MoeFfn(16, 4, 64, shared_width=128))
LATENT = Layer(LatentAttention(16, 64, 32, 16, 8, 16), DenseFfn(512))
SPARSE = Layer(LatentAttention(16, 64, 32, 16, 8, 16, 4, 16, 24), MoeFfn(16, 4, 64))
MAMBA = Layer(Mamba(16, 32, 16, 8, 4), None, norms=1)
CONV = Layer(ShortConv(512, 3), DenseFfn(512))
LAYERS = (DENSE, SLIDING, MOE, LATENT, SPARSE, MAMBA, CONV)
MODEL = Model("zoo", 512, 1024, LAYERS, (0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1))
WORKS = {
    "prefill": Prefill(MODEL, 8, 40, past=8),
    "decode": Decode(MODEL, 8, 50),
    "mixed": Mixed(MODEL, ((16, 8), (3, 0)), 8, 30),
    "generate": Generate(MODEL, 8, 24, 9),
}


def tables(work, parallel=ONE):
    return [phase.table for phase in work.lower(parallel)]


SPLIT_KINDS = ("gemm", "score", "context", "softmax", "scan")
#: Rows that every tensor-parallel device computes whole.
WHOLE = {"router", "q_down", "kv_down", "index_q", "index_k", "index_weight", "shared_gate"}


def summed(t, column, keep):
    rows = np.array([keep(i) for i in range(len(t))])
    return float((t[column][:, 0] * t.repeats * rows).sum())


def split_row(t, row):
    is_index = "index" in t.labels[row]
    return t.kinds[row] in SPLIT_KINDS and t.names[row] not in WHOLE and not is_index


@pytest.mark.parametrize("name", ["prefill", "decode"])
@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_parallel_devices_add_up(name, tp):
    (alone,), (each,) = tables(WORKS[name]), tables(WORKS[name], Parallel(tp=tp))
    for column in ("flops", "weight"):
        whole = summed(alone, column, lambda i: split_row(alone, i))
        parts = summed(each, column, lambda i: split_row(each, i))
        # Mamba's 8 groups and all heads divide; in a scan, B C^T is computed once for a group.
        assert tp * parts == pytest.approx(whole, rel=1e-12)
    experts, all_experts = each.total("expert")[0], alone.total("expert")[0]
    assert tp * experts == pytest.approx(all_experts, rel=1e-12)
    for row in WHOLE & set(each.names):
        assert each["flops"][each.names.index(row)] == alone["flops"][alone.names.index(row)]


def test_key_value_heads_are_split_and_then_replicated():
    model = Model("m", 512, 1024, (Layer(Attention(16, 4, 32), DenseFfn(512)),), (0,))
    whole = tables(Decode(model, 2, 9))[0].total("kv_read")[0]
    for tp, copies in ((2, 1), (4, 1), (8, 2), (16, 4)):
        each = tables(Decode(model, 2, 9), Parallel(tp=tp))[0].total("kv_read")[0]
        assert tp * each == copies * whole


def test_latent_cache_is_replicated():
    model = Model("m", 512, 1024, (LATENT,), (0,))
    for column in ("kv_read", "kv_write"):
        whole = tables(Decode(model, 2, 9))[0].total(column)
        assert tables(Decode(model, 2, 9), Parallel(tp=8))[0].total(column) == whole


def test_data_parallel_replicas_add_up():
    for name in ("prefill", "decode"):
        (alone,), (each,) = tables(WORKS[name]), tables(WORKS[name], Parallel(dp=4))
        for column in ("flops", "kv_read", "kv_write", "state_read", "state_write", "out_bytes"):
            rows = {"grouped_gemm"} if column == "out_bytes" else set()
            whole = summed(alone, column, lambda i, t=alone, r=rows: t.kinds[i] not in r)
            parts = summed(each, column, lambda i, t=each, r=rows: t.kinds[i] not in r)
            assert 4 * parts == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    "parallel",
    [Parallel(ep=4, tp=4), Parallel(ep=4, dp=4), Parallel(tp=2, ep=4, dp=2), Parallel(tp=4, ep=2)],
)
def test_expert_parallel_devices_add_up(parallel):
    (alone,), (each,) = tables(WORKS["decode"]), tables(WORKS["decode"], parallel)
    devices = parallel.tp * parallel.dp
    for column in ("flops", "expert"):
        whole = summed(alone, column, lambda i: alone.kinds[i] == "grouped_gemm")
        parts = summed(each, column, lambda i: each.kinds[i] == "grouped_gemm")
        assert devices * parts == pytest.approx(whole, rel=1e-12)
    block = each.block_of[each.names.index("dispatch")]
    kinds = [each.kinds[i] for i in each.rows_of(block)]
    assert kinds.count("all_to_all") == 2
    dispatch = each.names.index("dispatch")
    assert each["participants"][dispatch] == parallel.ep
    # Every selected copy of every token is dispatched by one device.
    assert devices * each["payload"][dispatch, 0] == 8 * 4 * 512 * 2


def test_the_fullest_device_has_more_tokens_than_the_mean():
    mean = Decode(MODEL, 64, 50, routing=Routing("uniform"))
    full = Decode(MODEL, 64, 50, routing=Routing("uniform", fullest=True))
    (a,), (b,) = (tables(work, Parallel(tp=4, ep=4)) for work in (mean, full))
    row = a.names.index("expert_down")
    ratio = Routing().imbalance(16, 4, 64, 4)
    assert ratio > 1.05
    assert b["flops"][row, 0] == pytest.approx(ratio * a["flops"][row, 0], rel=1e-12)
    assert b["m"][row, 0] * b["groups"][row, 0] == pytest.approx(64 * 4 / 4 * ratio, rel=1e-12)


def test_heads_that_do_not_divide_are_rounded_up():
    model = Model("m", 512, 1024, (Layer(Attention(10, 5, 32), DenseFfn(500)),), (0,))
    (t,) = tables(Decode(model, 1, 8), Parallel(tp=4))
    assert t["k"][t.names.index("out"), 0] == 3 * 32
    assert t["groups"][t.names.index("score"), 0] == 2
    assert t["k"][t.names.index("down"), 0] == 125


def test_all_reduce_carries_the_hidden_vectors_of_all_tokens():
    (t,) = tables(WORKS["decode"], Parallel(tp=4))
    rows = [i for i, kind in enumerate(t.kinds) if kind == "all_reduce"]
    assert {t["payload"][i, 0] for i in rows} == {8 * 512 * 2}
    assert {t["participants"][i, 0] for i in rows} == {4}
    alone = tables(WORKS["decode"])[0]
    assert not COLLECTIVES & set(alone.kinds)


def test_pipeline_stages_hold_contiguous_layers_and_pass_hidden_vectors_on():
    (alone,), (t,) = tables(WORKS["decode"]), tables(WORKS["decode"], Parallel(pp=3))
    stages = t.stage[t.order]
    assert (np.diff(stages) >= 0).all()
    assert set(stages) == {0, 1, 2}
    sends = [i for i, kind in enumerate(t.kinds) if kind == "send"]
    assert [t.stage[t.block_of[i]] for i in sends] == [0, 1]
    assert {t["payload"][i, 0] for i in sends} == {8 * 512 * 2}
    for column in ("flops", *BYTE_COLUMNS):
        assert t.total(column)[0] == pytest.approx(alone.total(column)[0], rel=1e-12)
    layers = [
        sum(1 for b in t.order if t.stage[b] == s and t.blocks[b].startswith("layer"))
        for s in range(3)
    ]
    assert sum(layers) == 16
    assert max(layers) - min(layers) <= 1


def test_microbatches_cut_the_batch():
    (whole,), (part,) = tables(WORKS["decode"]), tables(WORKS["decode"], Parallel(microbatches=4))
    assert 4 * part.total("kv_read")[0] == whole.total("kv_read")[0]
    assert part.total("weight")[0] < whole.total("weight")[0] < 4 * part.total("weight")[0]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_footprint_is_all_weights_on_one_device(work):
    held = work.footprint(ONE)
    assert held["weight"] + held["expert"] == pytest.approx(MODEL.weight_bytes, rel=1e-14)


def test_footprint_of_stages_and_shares():
    work = WORKS["decode"]
    whole = work.footprint(ONE)
    halves = work.footprint(Parallel(pp=2))
    everything, fullest = (h["weight"] + h["expert"] + h["kv"] for h in (whole, halves))
    assert everything / 2 <= fullest < 0.7 * everything
    shares = work.footprint(Parallel(tp=4))
    assert shares["expert"] == whole["expert"] / 4
    assert work.footprint(Parallel(dp=4))["kv"] == whole["kv"] / 4
    assert work.footprint(Parallel(dp=4, microbatches=2))["kv"] == whole["kv"] / 4


def test_footprint_of_a_cache_by_hand():
    model = Model("m", 512, 1024, (DENSE, SLIDING), (0, 1, 1))
    held = Decode(model, 3, 100).footprint(ONE)
    assert held["kv"] == 3 * (100 + 20 + 20) * 2 * 4 * 32 * 2
    held = Generate(model, 3, 90, 11).footprint(ONE)
    assert held["kv"] == 3 * (100 + 20 + 20) * 2 * 4 * 32 * 2


def test_activations_grow_with_tokens_and_leave_scores_out():
    small = Prefill(MODEL, 1, 100).footprint(ONE)["activation"]
    large = Prefill(MODEL, 1, 200).footprint(ONE)["activation"]
    assert large == pytest.approx(2 * small, rel=0.01)


def test_gathered_logits_are_the_whole_vocabulary() -> None:
    (phase,) = Decode(MODEL, 4, 100).lower(Parallel(tp=8))
    row = phase.table.names.index("logits_all_gather")
    assert phase.table["payload"][row].item() == 4 * MODEL.vocab * 2
