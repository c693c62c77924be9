"""The shape of lowered work: rows, labels, edges, stages, shares of devices, arrays, errors."""

from dataclasses import replace

import numpy as np
import pytest

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import NUMERIC
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
from opbyte.workloads.phases import Decode, Gemm, Generate, Mixed, Prefill

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


def summed(t, column, keep):
    rows = np.array([keep(i) for i in range(len(t))])
    return float((t[column][:, 0] * t.repeats * rows).sum())


@pytest.mark.parametrize("name", WORKS)
def test_rows_are_well_formed(name):
    for t in tables(WORKS[name]):
        for block in range(len(t.blocks)):
            names = [t.names[i] for i in t.rows_of(block)]
            assert len(set(names)) == len(names)
        assert (t.edges[:, 0] < t.edges[:, 1]).all()
        assert (t.block_of[t.edges[:, 0]] == t.block_of[t.edges[:, 1]]).all()
        with_input = set(t.edges[:, 1].tolist())
        for row, (labels, kind) in enumerate(zip(t.labels, t.kinds, strict=True)):
            assert t.names[row] in labels
            assert kind in labels
            assert len(labels & {"prefill", "decode", "mixed"}) == 1
            assert row in with_input or t["in_bytes"][row] > 0 or kind == "embedding"
            if kind in ("score", "softmax", "context"):
                (phase,) = labels & {"prefill", "decode"}
                assert {"attention", f"attention_{phase}", "mixer"} <= labels
            if kind == "grouped_gemm":
                assert {"expert", "ffn"} <= labels
                assert "dense" not in labels
            if kind == "gemm":
                assert "dense" in labels
            if kind in ("norm", "softmax", "rotary", "activation", "elementwise"):
                assert "vector" in labels


def test_every_row_leads_to_the_end_of_its_block():
    for t in tables(WORKS["decode"]):
        read = set(t.edges[:, 0].tolist())
        for block in range(len(t.blocks)):
            rows = t.rows_of(block).tolist()
            assert [r for r in rows if r not in read] == [rows[-1]]


def test_a_repeated_layer_is_one_block():
    (t,) = tables(WORKS["decode"])
    assert len(t.blocks) == len(LAYERS) + 2
    assert len(t.order) == len(MODEL.order) + 2
    counts = np.bincount(t.order)
    assert counts[t.blocks.index("layer.full")] == 3


def test_rows_of_a_llama_layer_in_order():
    model = Model("m", 512, 1024, (Layer(Attention(16, 4, 32), DenseFfn(512)),), (0,))
    (t,) = tables(Decode(model, 1, 8), Parallel(tp=2))
    names = [n for n, b in zip(t.names, t.block_of, strict=True) if t.blocks[b] == "layer.full"]
    assert names == [
        "norm", "qkv", "rotary", "kv_append", "score", "softmax", "context", "out", "all_reduce",
        "add", "ffn_norm", "gate_up", "activation", "down", "ffn_all_reduce", "ffn_add",
    ]  # fmt: skip


def test_parallel_layer_has_one_norm_and_one_collective():
    layer = Layer(Attention(16, 1, 32), DenseFfn(512, 2), norms=1, parallel=True)
    model = Model("m", 512, 1024, (layer,), (0,))
    (t,) = tables(Decode(model, 1, 8), Parallel(tp=2))
    rows = [i for i in range(len(t)) if t.blocks[t.block_of[i]] == "layer.full"]
    assert [t.kinds[i] for i in rows].count("all_reduce") == 1
    assert [t.kinds[i] for i in rows].count("norm") == 1


def test_gemma_norms_before_and_after_both_parts():
    model = Model("m", 512, 1024, (Layer(Attention(16, 4, 32), DenseFfn(512), norms=4),), (0,))
    (t,) = tables(Decode(model, 1, 8))
    assert {"norm", "post_norm", "ffn_norm", "ffn_post_norm"} <= set(t.names)
    assert t.total("weight")[0] == 2 * (model.parameters - (1024 - 1) * 512)


# -- mixed iterations ------------------------------------------------------------------------------


def test_mixed_iteration_shares_matrices_and_not_attention():
    model = Model("m", 512, 1024, (Layer(Attention(16, 4, 32), DenseFfn(512)),), (0, 0))
    chunks, decodes, context = ((16, 8), (3, 0)), 8, 30
    (t,) = tables(Mixed(model, chunks, decodes, context))
    assert t["m"][t.names.index("qkv"), 0] == 16 + 3 + 8
    assert t["m"][t.names.index("lm_head"), 0] == 2 + 8
    apart = [tables(Prefill(model, 1, n, p))[0] for n, p in chunks]
    apart.append(tables(Decode(model, decodes, context))[0])
    for kind in ("score", "context", "gemm"):
        together = summed(t, "flops", lambda i, k=kind: t.kinds[i] == k)
        alone = sum(summed(a, "flops", lambda i, a=a, k=kind: a.kinds[i] == k) for a in apart)
        assert together == alone
    assert t.total("kv_read") == sum(a.total("kv_read") for a in apart)
    layer = 512 * (2 * 16 * 32 + 2 * 4 * 32) + 3 * 512 * 512 + 2 * 512
    tokens, once = 16 + 3 + 8, 2 * layer + 512 + 1024 * 512
    assert t.total("weight")[0] == 2 * (once + tokens * 512)


def test_mixed_iterations_of_latent_attention_read_their_weights_once():
    model = Model("m", 512, 1024, (LATENT,), (0,))
    (t,) = tables(Mixed(model, ((5, 0), (6, 3)), 4, 10))
    rows = {"absorb.decode2", "value_up.decode2", "kv_up.prefill0", "kv_up.prefill1"}
    assert rows <= set(t.names)
    up = 2 * 32 * 16 * (16 + 16)
    assert summed(t, "weight", lambda i: t.names[i] in rows) == up
    (alone,) = tables(Mixed(model, ((5, 0), (6, 3))))
    assert summed(alone, "weight", lambda i: alone.kinds[i] == "gemm") == summed(
        t, "weight", lambda i: t.kinds[i] == "gemm"
    )


# -- arrays over design points ---------------------------------------------------------------------

POINTS = {
    "prefill": lambda **f: Prefill(MODEL, **f),
    "decode": lambda **f: Decode(MODEL, **f),
    "generate": lambda **f: Generate(MODEL, **f),
}
VALUES = {
    "prefill": {"batch": [1, 8, 3], "input": [5, 64, 17], "past": [0, 20, 7]},
    "decode": {"batch": [1, 8, 3], "context": [1, 19, 300]},
    "generate": {"batch": [1, 8, 3], "input": [5, 64, 17], "output": [1, 2, 40]},
}


@pytest.mark.parametrize("parallel", [ONE, Parallel(tp=4, pp=2, dp=2, ep=4, microbatches=2)])
@pytest.mark.parametrize("kind", POINTS)
def test_arrays_equal_scalars_point_by_point(kind, parallel):
    values = VALUES[kind]
    many = POINTS[kind](**{n: np.array(v, float) for n, v in values.items()})
    held = many.footprint(parallel)
    for point in range(3):
        one = POINTS[kind](**{n: v[point] for n, v in values.items()})
        phases = zip(many.lower(parallel), one.lower(parallel), strict=True)
        for vector, scalar in phases:
            assert np.broadcast_to(vector.repeats, 3)[point] == scalar.repeats
            for column in NUMERIC:
                row = np.broadcast_to(vector.table[column], (len(vector.table), 3))[:, point]
                np.testing.assert_allclose(row, scalar.table[column][:, 0], rtol=1e-14)
        for name, value in one.footprint(parallel).items():
            assert np.broadcast_to(held[name], 3)[point] == pytest.approx(value, rel=1e-14)


def test_gemm_over_points():
    (t,) = tables(Gemm(m=np.array([1.0, 2.0]), n=64, k=32, dtype="fp8"))
    assert t.total("flops").tolist() == [4096, 8192]
    assert t.total("weight").tolist() == [2048]


# -- errors ----------------------------------------------------------------------------------------

SMALL = replace(MODEL, max_context=100)
WRONG = [
    (lambda: Decode(MODEL, 0, 10), "decode: batch must be at least 1, got 0"),
    (lambda: Decode(MODEL, 1.5, 10), "decode: batch must be a whole number, got 1.5"),
    (
        lambda: Decode(MODEL, batch=True, context=10),
        "decode: batch must be a whole number, got True",
    ),
    (lambda: Decode(MODEL, "4", 10), "decode: batch must be a whole number, got '4'"),
    (lambda: Decode(MODEL, 1, float("nan")), "decode: context must be a whole number, got nan"),
    (lambda: Decode(MODEL, 1, float("inf")), "context must be a whole number, got inf"),
    (lambda: Prefill(MODEL, 1, 4, past=-1), "prefill: past must be at least 0, got -1"),
    (lambda: Decode(MODEL, np.array([1.0, 0.0]), 9), "batch must be .* got 0.0 at point 1"),
    (lambda: Decode(MODEL, [1, 2, 3], [1, 2]), "batch has 3, context has 2"),
    (lambda: Decode(SMALL, 1, 101), "context = 101 tokens, but zoo allows .* at most 100"),
    (lambda: Prefill(SMALL, 1, 60, past=41), "past \\+ input = 101 tokens"),
    (lambda: Generate(SMALL, 1, 90, 11), "input \\+ output = 101 tokens"),
    (lambda: Mixed(SMALL, ((90, 11),)), "chunks\\[0\\]: past \\+ new = 101"),
    (lambda: Mixed(MODEL), "the iteration is empty"),
    (lambda: Mixed(MODEL, (5,)), "chunks\\[0\\] must be \\(new, past\\), got 5"),
    (lambda: Decode(MODEL, 1, 5, input=3), "zoo has no encoder: no input"),
    (lambda: Gemm(m=0, n=1, k=1), "gemm: m must be at least 1"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_senseless_fields_are_named(make, message):
    with pytest.raises(WorkloadError, match=message):
        make()


def test_the_longest_context_itself_is_allowed():
    assert len(Decode(SMALL, 1, 100).lower(ONE)) == 1
    assert len(Generate(SMALL, 1, 90, 10).lower(ONE)) == 2


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (Parallel(tp=32), "tp=32 does not divide 16 attention heads"),
        (Parallel(pp=17), "pp=17 stages for 16 layers"),
        (Parallel(ep=32, tp=4, dp=8), "ep=32 does not divide 16 experts"),
        (Parallel(ep=3, tp=4), "ep=3 must divide tp \\* dp = 4"),
        (Parallel(ep=6, tp=4, dp=3), "ep=6 must divide"),
    ],
)
def test_splits_that_do_not_exist(parallel, message):
    with pytest.raises(WorkloadError, match=message):
        WORKS["decode"].lower(parallel)


def test_mixed_iterations_belong_to_one_replica():
    with pytest.raises(WorkloadError, match="belongs to one replica"):
        WORKS["mixed"].lower(Parallel(dp=2))
