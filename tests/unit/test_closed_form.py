"""FLOPs and bytes of lowered work against counts that are derived here, by hand."""

import numpy as np
import pytest

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
from opbyte.workloads.phases import Decode, Generate, Prefill

ONE = Parallel()
BF16 = 2
MATRIX = ("gemm", "grouped_gemm")


def uniform(layer, *, layers=2, hidden=256, vocab=1000, **model):
    return Model("m", hidden, vocab, (layer,), (0,) * layers, **model)


LLAMA2_7B = uniform(
    Layer(Attention(32, 32, 128), DenseFfn(11008)), layers=32, hidden=4096, vocab=32000
)
LLAMA31_8B = uniform(
    Layer(Attention(32, 8, 128), DenseFfn(14336)), layers=32, hidden=4096, vocab=128256
)
DEEPSEEK_V3 = LatentAttention(128, 1536, 512, 128, 64, 128)


def table(work):
    (phase,) = work.lower(ONE)
    return phase.table


def total(t, column, kinds=None, names=None):
    keep = np.array(
        [
            (kinds is None or k in kinds) and (names is None or n in names)
            for k, n in zip(t.kinds, t.names, strict=True)
        ]
    )
    return (t[column] * (t.repeats * keep)[:, None]).sum(axis=0)[0]


def test_llama2_7b_prefill_flops():
    tokens, hidden = 512, 4096
    t = table(Prefill(LLAMA2_7B, 3, tokens))
    per_layer = 4 * hidden * hidden + 3 * hidden * 11008
    matrices = 2 * 3 * tokens * 32 * per_layer + 2 * 3 * hidden * 32000
    assert total(t, "flops", MATRIX) == matrices
    pairs = sum(range(1, tokens + 1))
    assert total(t, "flops", ("score",)) == 3 * 32 * 2 * hidden * pairs
    assert total(t, "flops", ("context",)) == 3 * 32 * 2 * hidden * pairs


def test_llama2_7b_flops_are_twice_the_parameters_that_a_token_multiplies():
    t = table(Decode(LLAMA2_7B, 1, 1))
    embedding_and_norms = 32000 * 4096 + (2 * 32 + 1) * 4096
    assert total(t, "flops", MATRIX) == 2 * (LLAMA2_7B.parameters - embedding_and_norms)


def test_weights_read_in_one_step_are_all_but_the_rest_of_the_embedding():
    t = table(Decode(LLAMA2_7B, 5, 100))
    assert total(t, "weight") == BF16 * (LLAMA2_7B.parameters - (32000 - 5) * 4096)


@pytest.mark.parametrize(
    ("kv_heads", "bytes_per_token"),
    [(32, 2 * 32 * 128 * 2), (8, 2 * 8 * 128 * 2), (1, 2 * 128 * 2)],
    ids=["MHA", "GQA", "MQA"],
)
def test_kv_cache_of_the_three_head_layouts(kv_heads, bytes_per_token):
    model = uniform(Layer(Attention(32, kv_heads, 128), DenseFfn(512)), layers=3, hidden=4096)
    t = table(Decode(model, 4, 1000))
    assert total(t, "kv_read") == 3 * 4 * 1000 * bytes_per_token
    assert total(t, "kv_write") == 3 * 4 * bytes_per_token
    score = t.kinds.index("score")
    assert t["groups"][score, 0] == 4 * kv_heads
    assert t["m"][score, 0] == 32 / kv_heads
    assert t["flops"][score, 0] == 4 * 32 * 2 * 128 * 1000


def test_kv_bytes_of_llama31_8b_are_128_kib_per_token():
    held = Decode(LLAMA31_8B, 1, 4096).footprint(ONE)
    assert held["kv"] == 4096 * 128 * 1024
    assert held["weight"] == 2 * 8030261248


def seen(position, window, chunk):
    """Tokens that the query at a position (from 1) sees."""
    first = 1
    if window:
        first = max(first, position - window + 1)
    if chunk:
        first = max(first, (position - 1) // chunk * chunk + 1)
    return range(first, position + 1)


@pytest.mark.parametrize(("window", "chunk"), [(0, 0), (7, 0), (0, 8), (64, 0), (3, 8), (20, 8)])
@pytest.mark.parametrize("past", [0, 1, 6, 7, 8, 29])
@pytest.mark.parametrize("new", [1, 5, 8, 33])
def test_masks_by_enumeration(window, chunk, past, new):
    model = uniform(Layer(Attention(4, 2, 16, window=window, chunk=chunk), DenseFfn(64)), layers=1)
    t = table(Prefill(model, 2, new, past))
    views = [seen(past + i, window, chunk) for i in range(1, new + 1)]
    pairs = sum(len(view) for view in views)
    assert total(t, "flops", ("score",)) == 2 * 2 * 4 * 16 * pairs
    distinct = len(set().union(*views))
    assert total(t, "kv_read", ("score",)) == 2 * distinct * 2 * 16 * BF16
    assert total(t, "kv_read", ("context",)) == 2 * distinct * 2 * 16 * BF16


def test_a_layer_that_reuses_a_cache_reads_it_and_writes_nothing():
    owner, reader = Attention(8, 2, 32), Attention(8, 2, 32, reuses_cache=True)
    model = uniform(Layer(owner, None, norms=1), layers=1)
    both = Model("m", 256, 1000, (Layer(owner, None, 1), Layer(reader, None, 1)), (0, 1))
    one, two = table(Decode(model, 3, 50)), table(Decode(both, 3, 50))
    assert total(two, "kv_read") == 2 * total(one, "kv_read")
    assert total(two, "kv_write") == total(one, "kv_write")
    assert Decode(both, 3, 50).footprint(ONE)["kv"] == Decode(model, 3, 50).footprint(ONE)["kv"]
    widths = [two["n"][i, 0] for i, name in enumerate(two.names) if name == "qkv"]
    assert widths == [8 * 32 + 2 * 2 * 32, 8 * 32]


def test_one_projection_for_key_and_value_still_caches_both():
    shared = uniform(Layer(Attention(8, 2, 32, shared_key_value=True), None, 1), layers=1)
    t = table(Decode(shared, 3, 50))
    assert t["n"][t.names.index("qkv"), 0] == 8 * 32 + 2 * 32
    assert total(t, "kv_read") == 3 * 50 * 2 * 2 * 32 * BF16


def test_encoders_see_both_ways_and_cache_nothing():
    model = uniform(Layer(Attention(8, 8, 32, causal=False), None, 1), layers=1)
    t = table(Prefill(model, 2, 30))
    assert total(t, "flops", ("score",)) == 2 * 2 * 256 * 30 * 30
    assert total(t, "kv_read") == total(t, "kv_write") == 0
    row = t.names.index("context")
    assert t.names.index("qkv") in t.edges[t.edges[:, 1] == row, 0]


def test_sliding_window_bounds_reads_and_cache():
    model = uniform(Layer(Attention(8, 8, 32, window=128), DenseFfn(64)), layers=5)
    for context, kept in ((50, 50), (128, 128), (1000, 128)):
        work = Decode(model, 2, context)
        assert total(table(work), "kv_read") == 5 * 2 * kept * 2 * 8 * 32 * BF16
        assert work.footprint(ONE)["kv"] == 5 * 2 * kept * 2 * 8 * 32 * BF16


def test_latent_attention_decode_in_absorbed_form():
    model = uniform(Layer(DEEPSEEK_V3, DenseFfn(64)), layers=1, hidden=7168)
    t = table(Decode(model, 2, 1000))
    assert total(t, "kv_read") == 2 * 1000 * (512 + 64) * BF16
    assert total(t, "kv_write") == 2 * (512 + 64) * BF16
    assert total(t, "flops", ("score",)) == 2 * 2 * 128 * 1000 * (512 + 64)
    assert total(t, "flops", ("context",)) == 2 * 2 * 128 * 1000 * 512
    projections = (
        7168 * 1536 + 1536 * 128 * 192 + 7168 * 576  # query down and up, latent
        + 128 * 128 * 512 + 128 * 512 * 128  # into and out of the latent space
        + 128 * 128 * 7168
    )  # fmt: skip
    ffn = 3 * 7168 * 64
    assert total(t, "flops", MATRIX) == 2 * 2 * (projections + ffn) + 2 * 2 * 7168 * 1000


def test_latent_attention_prefill_in_expanded_form():
    model = uniform(Layer(DEEPSEEK_V3, None, norms=1), layers=1, hidden=7168)
    new, past = 10, 6
    t = table(Prefill(model, 1, new, past))
    pairs = sum(past + i for i in range(1, new + 1))
    assert total(t, "flops", ("score",)) == 2 * 128 * pairs * 192
    assert total(t, "flops", ("context",)) == 2 * 128 * pairs * 128
    up = 2 * (past + new) * 512 * 128 * (128 + 128)
    assert total(t, "flops", names=("kv_up",)) == up
    assert total(t, "kv_read") == (past + new) * 576 * BF16


def test_sparse_index_reads_what_it_selects_and_all_index_keys():
    sparse = LatentAttention(128, 1536, 512, 128, 64, 128, 64, 128, 2048)
    model = uniform(Layer(sparse, None, norms=1), layers=1, hidden=7168)
    for context in (500, 50_000):
        t = table(Decode(model, 1, context))
        chosen = min(2048, context)
        assert total(t, "kv_read", names=("score",)) == chosen * 576 * BF16
        assert total(t, "kv_read", names=("index_score",)) == context * 128 * BF16
        assert total(t, "flops", names=("score",)) == 2 * 128 * chosen * 576
        assert total(t, "flops", names=("index_score",)) == context * 64 * (2 * 128 + 3)
    assert Decode(model, 1, 5000).footprint(ONE)["kv"] == 5000 * (576 + 128) * BF16


def test_mamba_decode_reads_and_writes_its_state_once():
    mixer = Mamba(heads=64, head_dim=64, state=128, groups=8, conv=4)
    model = uniform(Layer(mixer, None, norms=1), layers=3, hidden=2048)
    t = table(Decode(model, 5, 999))
    state = 64 * 64 * 128 + (64 * 64 + 2 * 8 * 128) * 3
    assert total(t, "state_read") == total(t, "state_write") == 3 * 5 * state * BF16
    assert total(t, "kv_read") == 0
    inner = 64 * 64
    assert total(t, "flops", ("scan",)) == 3 * 5 * inner * (5 * 128 + 3)
    wide = inner + inner + 2 * 8 * 128 + 64
    assert total(t, "flops", names=("in_proj",)) == 3 * 5 * 2 * 2048 * wide
    assert Decode(model, 5, 999).footprint(ONE)["state"] == 3 * 5 * state * BF16


def test_mamba_prefill_in_blocks_costs_more_arithmetic_and_one_state():
    mixer = Mamba(heads=64, head_dim=64, state=128, groups=8, conv=4)
    model = uniform(Layer(mixer, None, norms=1), layers=1, hidden=2048)
    tokens, q, n, p, heads, groups = 1024, 256, 128, 64, 64, 8
    t = table(Prefill(model, 1, tokens))
    inside = groups * 2 * q * q * n + heads * q * q * (1 + 2 * p)
    between = heads * (2 * q * n * p + 2 * q * n * p + 2 * n * p)
    assert total(t, "flops", ("scan",)) == 4 * (inside + between) + tokens * 3 * heads * p
    assert total(t, "state_read") == 0
    resumed = table(Prefill(model, 1, tokens, past=1))
    assert total(resumed, "state_read") == total(resumed, "state_write") == total(t, "state_write")


def test_short_convolution():
    model = uniform(Layer(ShortConv(256, 3), DenseFfn(64)), layers=2)
    t = table(Decode(model, 7, 10))
    assert total(t, "state_read") == 2 * 7 * 256 * 2 * BF16
    assert total(t, "flops", ("conv",)) == 2 * 7 * 256 * 3 * 2
    assert total(t, "flops", names=("in_proj", "out")) == 2 * 7 * 2 * 256 * 4 * 256


def test_experts_that_a_batch_hits():
    ffn = MoeFfn(experts=64, top_k=6, width=128, shared_width=256)
    model = uniform(Layer(Attention(4, 4, 64), ffn), layers=3)
    for batch in (1, 8, 500):
        t = table(Decode(model, batch, 4))
        one = 3 * 256 * 128
        hit = 64 * (1 - (1 - 6 / 64) ** batch)
        assert total(t, "expert") == pytest.approx(3 * hit * one * BF16, rel=1e-14)
        assert total(t, "flops", ("grouped_gemm",)) == pytest.approx(
            3 * 2 * batch * 6 * one, rel=1e-14
        )
        shared = ("shared_gate_up", "shared_down")
        assert total(t, "flops", names=shared) == 3 * 2 * batch * 3 * 256 * 256
        assert total(t, "flops", names=("router",)) == 3 * 2 * batch * 256 * 64
        row = t.names.index("expert_gate_up")
        assert t["m"][row] * t["groups"][row] == pytest.approx(batch * 6, rel=1e-14)


def test_logits_are_for_the_last_token_of_each_sequence_only():
    t = table(Prefill(LLAMA2_7B, 3, 100))
    assert total(t, "flops", names=("lm_head",)) == 2 * 3 * 4096 * 32000


def test_embedding_reads_one_row_for_each_token():
    t = table(Prefill(LLAMA2_7B, 3, 100))
    assert total(t, "weight", ("embedding",)) == 300 * 4096 * BF16


SHAPES = {
    "full": Layer(Attention(8, 2, 32), DenseFfn(64)),
    "sliding": Layer(Attention(8, 2, 32, window=37), DenseFfn(64)),
    "chunked": Layer(Attention(8, 2, 32, chunk=16), DenseFfn(64)),
    "both": Layer(Attention(8, 2, 32, window=5, chunk=16), DenseFfn(64)),
    "latent": Layer(LatentAttention(8, 64, 32, 16, 8, 16), DenseFfn(64)),
    "sparse": Layer(LatentAttention(8, 64, 32, 16, 8, 16, 4, 16, 50), DenseFfn(64)),
    "mamba": Layer(Mamba(8, 32, 16, 2, 4), DenseFfn(64)),
    "moe": Layer(Attention(8, 2, 32), MoeFfn(8, 2, 64)),
}
COLUMNS = ("flops", "weight", "expert", "kv_read", "kv_write", "state_read", "state_write")


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_is_the_sum_of_its_steps(shape):
    model = uniform(SHAPES[shape])
    prompt, output = 29, 47
    _, decode = Generate(model, 3, prompt, output).lower(ONE)
    steps = [table(Decode(model, 3, prompt + s)) for s in range(1, output)]
    assert decode.repeats == len(steps)
    for column in (*COLUMNS, "in_bytes", "out_bytes"):
        exact = sum(step.total(column)[0] for step in steps)
        assert decode.table.total(column)[0] * decode.repeats == pytest.approx(exact, rel=1e-12)


def test_generation_of_one_token_has_no_decode_steps():
    _, decode = Generate(LLAMA2_7B, 1, 10, 1).lower(ONE)
    assert decode.repeats == 0


T5 = Model(
    "t5", 128, 1000,
    (
        Layer(Attention(4, 4, 32, causal=False, rotary=False), DenseFfn(256, 2)),
        Layer(Attention(4, 4, 32, rotary=False), DenseFfn(256, 2), norms=3,
              cross=Attention(4, 4, 32, cross=True, rotary=False, causal=False)),
    ),
    (1, 1, 1), encoder=(0, 0), final_norms=2,
)  # fmt: skip


def test_encoder_runs_once_over_the_input_and_fills_the_cross_attention_cache():
    batch, tokens = 2, 50
    t = table(Prefill(T5, batch, tokens))
    layer = 4 * 128 * 128 + 2 * 128 * 256
    encoder = 2 * 2 * batch * tokens * layer
    decoder = 3 * 2 * batch * (layer + 2 * 128 * 128)
    filled = 3 * 2 * batch * tokens * 2 * 128 * 128
    head = 2 * batch * 128 * 1000
    assert total(t, "flops", MATRIX) == encoder + decoder + filled + head
    assert total(t, "kv_write", names=("cross_append",)) == 3 * batch * tokens * 2 * 128 * BF16
    both_ways = 2 * batch * tokens * tokens * 128 * 2
    across = 3 * batch * tokens * 128 * 2
    itself = 3 * batch * 1 * 128 * 2
    assert total(t, "flops", ("score",)) == both_ways + across + itself


def test_decoder_reads_the_cross_attention_cache_at_every_step():
    t = table(Decode(T5, 2, 7, input=50))
    assert total(t, "kv_read") == 3 * 2 * (7 + 50) * 2 * 128 * BF16
    assert "encoder.full" not in t.blocks
    held = Generate(T5, 2, 50, 20).footprint(ONE)
    assert held["kv"] == 3 * 2 * (20 + 50) * 2 * 128 * BF16


def test_precision_decides_bytes_and_arithmetic():
    model = LLAMA31_8B.with_precision(weight="int4", kv="fp8")
    t = table(Decode(model, 1, 100))
    norms = (2 * 32 + 1) * 4096
    head = 128256 * 4096
    matrices = 8030261248 - norms - 2 * head
    assert total(t, "weight") == (matrices + head + 4096) / 2 + norms * 2
    assert total(t, "kv_read") == 32 * 100 * 2 * 8 * 128
    assert {t.dtypes[t.names.index(n)] for n in ("qkv", "score")} == {"bf16"}
    assert "weight-int4" in t.labels[t.names.index("qkv")]
    assert "kv-fp8" in t.labels[t.names.index("score")]
    fp8 = LLAMA31_8B.with_precision(weight="fp8", operand="fp8", kv="fp8")
    t = table(Decode(fp8, 1, 100))
    assert {t.dtypes[t.names.index(n)] for n in ("qkv", "score")} == {"fp8"}
