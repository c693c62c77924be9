"""Encoder-decoder models: T5 and Switch Transformers.

Shapes follow the modeling code of the transformers library: RMS norms, no biases, one table of
relative positions in each stack.
"""

from __future__ import annotations

from opbyte.workloads.families.common import distinct
from opbyte.workloads.families.fields import MOST_LAYERS, Fields
from opbyte.workloads.model import Attention, DenseFfn, Ffn, Layer, Model, MoeFfn


def _model(f: Fields, encoder: list[Ffn], decoder: list[Ffn], *, width: int, heads: int) -> Model:
    hidden = f.size("d_model", "hidden_size")
    both_ways = Attention(heads, heads, width, rotary=False, causal=False)
    causal = Attention(heads, heads, width, rotary=False)
    across = Attention(heads, heads, width, rotary=False, cross=True, causal=False)
    stack = [Layer(causal, ffn, norms=3, cross=across) for ffn in decoder]
    layers, indices = distinct(stack + [Layer(both_ways, ffn) for ffn in encoder])
    buckets = f.size("relative_attention_num_buckets", default=32)
    f.ignore("relative_attention_max_distance", "dense_act_fn", "n_positions", "is_gated_act")
    f.ignore("is_encoder_decoder", "decoder_start_token_id")
    return Model(
        name=f.family,
        hidden=hidden,
        vocab=f.size("vocab_size"),
        layers=layers,
        order=indices[: len(decoder)],
        encoder=indices[len(decoder) :],
        tied=f.flag("tie_word_embeddings", default=True),
        final_norms=2,
        extra=2 * buckets * heads,
        max_context=f.size("n_positions", default=0),
    )


def _heads(f: Fields) -> tuple[int, int]:
    return f.size("num_heads", "num_attention_heads", most=100_000), f.size("d_kv")


def _depths(f: Fields) -> tuple[int, int]:
    encoder = f.size("num_layers", "num_hidden_layers", most=MOST_LAYERS)
    return encoder, f.size("num_decoder_layers", default=encoder, most=MOST_LAYERS)


def t5(f: Fields) -> Model:
    """T5 (ReLU, two matrices) and T5 v1.1 or Flan-T5 (gated, three)."""
    heads, width = _heads(f)
    encoder, decoder = _depths(f)
    kinds = ("relu", "gelu", "gelu_new", "silu", "gated-gelu", "gated-silu", "gated-gelu_new")
    gated = f.word("feed_forward_proj", kinds, "relu").startswith("gated-")
    ffn = DenseFfn(f.size("d_ff"), matrices=3 if gated else 2)
    return _model(f, [ffn] * encoder, [ffn] * decoder, width=width, heads=heads)


def _placed(f: Fields, side: str, layers: int, dense: Ffn, sparse: Ffn) -> list[Ffn]:
    """Return the FFN of each layer of a stack; every `layers // sparse`-th one has experts."""
    count = f.size(f"num_sparse_{side}_layers", least=0)
    f.check(count <= layers, f"num_sparse_{side}_layers", f"at most {layers} layers exist", count)
    f.ignore(f"{side}_sparse_step")
    if not count or count > layers:
        return [dense] * layers
    step = layers // count
    return [sparse if step == 1 or i % step == 1 else dense for i in range(layers)]


def switch(f: Fields) -> Model:
    """Switch Transformers: top-1 experts in every second layer of both stacks, two matrices."""
    heads, width = _heads(f)
    encoder, decoder = _depths(f)
    inner = f.size("d_ff")
    f.only("feed_forward_proj", ("relu",), why="only the two-matrix FFN is supported")
    f.only("is_gated_act", (False,), why="only the two-matrix FFN is supported")
    sparse = MoeFfn(
        f.size("num_experts", most=1_000_000),
        f.size("num_selected_experts", default=1, most=1),
        inner,
        matrices=2,
        router_bias=f.flag("router_bias", default=False),
    )
    dense = DenseFfn(inner, matrices=2)
    f.ignore("router_type", "num_experts_per_tok", "expert_capacity")
    return _model(
        f,
        _placed(f, "encoder", encoder, dense, sparse),
        _placed(f, "decoder", decoder, dense, sparse),
        width=width,
        heads=heads,
    )
