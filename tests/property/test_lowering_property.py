"""Laws of lowering over random models and sizes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from opbyte.core.ops import BYTE_COLUMNS
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
from opbyte.workloads.spans import Segment, seen_up_to

ONE = Parallel()
SPANS = st.sampled_from([0, 1, 3, 16, 100])


@st.composite
def attentions(draw):
    kv = draw(st.sampled_from([1, 2, 4, 8]))
    return Attention(
        kv * draw(st.sampled_from([1, 2, 4])), kv, draw(st.sampled_from([16, 64])),
        window=draw(SPANS), chunk=draw(SPANS), qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()), rotary=draw(st.booleans()), sinks=draw(st.booleans()),
        output_gate=draw(st.booleans()), sub_norm=draw(st.booleans()),
        shared_key_value=draw(st.booleans()),
    )  # fmt: skip


MIXERS = st.one_of(
    attentions(),
    st.builds(
        LatentAttention, heads=st.just(8), q_lora_rank=st.sampled_from([0, 32]),
        kv_lora_rank=st.just(64), nope_dim=st.just(16), rope_dim=st.just(8), v_dim=st.just(24),
        index_heads=st.just(4), index_dim=st.just(16), index_topk=st.sampled_from([0, 5, 64]),
        bias=st.booleans(),
    ),
    st.builds(
        Mamba, heads=st.just(8), head_dim=st.just(16), state=st.just(32),
        groups=st.sampled_from([1, 2, 8]), conv=st.just(4), bias=st.booleans(),
    ),
    st.builds(ShortConv, width=st.just(128), conv=st.just(3), bias=st.booleans()),
)  # fmt: skip
FFNS = st.one_of(
    st.builds(
        DenseFfn, width=st.sampled_from([64, 200]), matrices=st.sampled_from([2, 3]),
        bias=st.booleans(), sub_norm=st.booleans(),
    ),
    st.builds(
        MoeFfn, experts=st.just(16), top_k=st.sampled_from([1, 3]), width=st.just(64),
        matrices=st.sampled_from([2, 3]), shared_width=st.sampled_from([0, 64]),
        shared_gate=st.booleans(), router_bias=st.booleans(), expert_bias=st.booleans(),
        dense_width=st.sampled_from([0, 32]), latent=st.sampled_from([0, 64]),
    ).filter(lambda ffn: ffn.shared_width or not ffn.shared_gate),
)  # fmt: skip


@st.composite
def layers(draw):
    """One layer with at least one part, and a norm for each."""
    mixer, ffn = draw(st.none() | MIXERS), draw(FFNS)
    only_mixer = mixer is not None and draw(st.booleans())
    return Layer(
        mixer, None if only_mixer else ffn, norms=draw(st.sampled_from([1, 2, 4])),
        norm_bias=draw(st.booleans()), parallel=draw(st.booleans()),
        per_layer_input=draw(st.sampled_from([0, 16])),
    )  # fmt: skip


@st.composite
def models(draw):
    distinct = tuple(draw(st.lists(layers(), min_size=1, max_size=3)))
    order = draw(st.lists(st.integers(0, len(distinct) - 1), min_size=1, max_size=5))
    used = sorted(set(order))
    return Model(
        "random", 128, 500, tuple(distinct[i] for i in used),
        tuple(used.index(i) for i in order), tied=draw(st.booleans()),
        position_embeddings=draw(st.sampled_from([0, 64])), head_bias=draw(st.booleans()),
        embedding_dim=draw(st.sampled_from([0, 64])), norm_bias=draw(st.booleans()),
    )  # fmt: skip


def lowered(work):
    return [phase.table for phase in work.lower(ONE)]


def totals(table):
    return np.array([table.total(c)[0] for c in ("flops", *BYTE_COLUMNS, "in_bytes", "out_bytes")])


SIZES = st.integers(1, 300)


@given(models(), SIZES, SIZES)
def test_footprint_holds_every_parameter_once(model, batch, context):
    held = Decode(model, batch, context).footprint(ONE)
    whole = held["weight"] + held["expert"]
    assert abs(whole - model.weight_bytes) <= 1e-12 * whole
    assert held["kv"] == batch * model.kv_bytes(context)
    assert held["state"] == batch * model.state_bytes


@given(models(), SIZES, SIZES, SIZES)
def test_more_sequences_never_cost_less(model, batch, more, context):
    (small,), (large,) = (lowered(Decode(model, b, context)) for b in (batch, batch + more))
    assert (totals(large) >= totals(small) * (1 - 1e-12)).all()


@given(models(), SIZES, SIZES, SIZES, SIZES)
def test_longer_prompts_never_cost_less(model, batch, tokens, more, past):
    (small,) = lowered(Prefill(model, batch, tokens, past))
    (large,) = lowered(Prefill(model, batch, tokens + more, past))
    assert (totals(large) >= totals(small) * (1 - 1e-12)).all()


@given(models().filter(lambda m: not any(
    isinstance(layer.mixer, Attention) and layer.mixer.chunk for layer in m.layers
)), SIZES, SIZES, SIZES)  # fmt: skip
def test_longer_contexts_never_cost_less_without_chunks(model, batch, context, more):
    (small,), (large,) = (lowered(Decode(model, batch, c)) for c in (context, context + more))
    assert (totals(large) >= totals(small) * (1 - 1e-12)).all()


@given(models(), SIZES, st.integers(1, 100), st.integers(2, 30))
@settings(max_examples=40)
def test_generation_equals_its_steps(model, batch, prompt, output):
    _, decode = lowered(Generate(model, batch, prompt, output))
    steps = [lowered(Decode(model, batch, prompt + s))[0] for s in range(1, output)]
    exact = np.sum([totals(step) for step in steps], axis=0)
    np.testing.assert_allclose(totals(decode) * (output - 1), exact, rtol=1e-12)


@given(models(), st.integers(1, 100), st.integers(1, 100))
def test_a_prefill_in_two_pieces_scores_the_same_pairs(model, first, second):
    def scored(work):
        (t,) = lowered(work)
        rows = np.array([k in ("score", "context") for k in t.kinds])
        return float((t["flops"][:, 0] * t.repeats * rows).sum())

    pieces = scored(Prefill(model, 1, first)) + scored(Prefill(model, 1, second, past=first))
    assert np.isclose(pieces, scored(Prefill(model, 1, first + second)), rtol=1e-12)


@given(models(), SIZES, st.integers(1, 50), st.integers(0, 50), SIZES)
def test_a_mixed_iteration_is_no_more_than_its_parts(model, decodes, new, past, context):
    (mixed,) = lowered(Mixed(model, ((new, past),), decodes, context))
    parts = totals(lowered(Prefill(model, 1, new, past))[0])
    parts = parts + totals(lowered(Decode(model, decodes, context))[0])
    assert (totals(mixed) <= parts * (1 + 1e-12)).all()
    matrices = ("gemm", "score", "context", "grouped_gemm")
    rows = np.array([k in matrices for k in mixed.kinds])
    flops = float((mixed["flops"][:, 0] * mixed.repeats * rows).sum())
    assert flops > 0


@given(models(), SIZES, SIZES, st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]))
def test_a_device_never_does_more_than_the_whole(model, batch, context, tp, dp):
    heads = [m.heads for layer in model.layers if hasattr(m := layer.mixer, "heads")]
    if min(heads, default=tp) < tp:
        return
    (whole,) = lowered(Decode(model, batch, context))
    (each,) = (p.table for p in Decode(model, batch, context).lower(Parallel(tp=tp, dp=dp)))
    assert each.total("flops")[0] <= whole.total("flops")[0] * (1 + 1e-12)
    assert tp * dp * each.total("flops")[0] >= whole.total("flops")[0] * (1 - 1e-12)


@given(st.integers(0, 400), SPANS, SPANS)
def test_cumulative_sums_by_enumeration(position, window, chunk):
    exact = 0
    for j in range(1, position + 1):
        seen = j if not chunk else (j - 1) % chunk + 1
        exact += min(seen, window) if window else seen
    assert seen_up_to(float(position), window, chunk) == exact


@given(SIZES, st.integers(0, 300), SPANS, SPANS)
def test_reads_lie_between_one_query_and_all_tokens(new, past, window, chunk):
    segment = Segment("prefill", 1.0, float(new), float(past))
    reads = segment.reads(window, chunk)
    assert new <= reads <= past + new
    assert reads <= segment.pairs(window, chunk)
    assert segment.pairs(window, chunk) <= new * reads


@given(
    st.integers(2, 200), st.integers(1, 200), st.floats(0, 3), st.integers(1, 2000),
    st.sampled_from(["uniform", "zipf", "balanced"]),
)  # fmt: skip
def test_distinct_experts_are_bounded(experts, picks, skew, tokens, kind):
    picks = min(picks, experts)
    routing = Routing(kind, skew if kind == "zipf" else 0.0)
    hit = routing.distinct(experts, picks, tokens)
    assert picks * (1 - 1e-9) <= hit <= min(experts, picks * tokens) * (1 + 1e-9)
    assert routing.distinct(experts, picks, tokens + 1) >= hit * (1 - 1e-12)
    most = routing.max_load(experts, picks, tokens)
    assert most >= picks * tokens / experts * (1 - 1e-3)
    assert most <= tokens * (1 + 1e-9)
