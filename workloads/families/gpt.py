"""Older decoders with layer norms: GPT-2 and GPT-3, OPT, BLOOM, Falcon, Phi.

Shapes follow the modeling code of the transformers library.
"""

from __future__ import annotations

from opbyte.workloads.families.common import assemble, check_groups, divided
from opbyte.workloads.families.fields import MOST_LAYERS, Fields
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model


def _biased(heads: int, head_dim: int, *, rotary: bool = False) -> Attention:
    return Attention(heads, heads, head_dim, qkv_bias=True, out_bias=True, rotary=rotary)


def gpt2(f: Fields) -> Model:
    """GPT-2, and GPT-3 written in GPT-2's fields: learned positions, biases everywhere."""
    hidden = f.size("n_embd", "hidden_size")
    heads = f.size("n_head", "num_attention_heads", most=100_000)
    layers = f.size("n_layer", "num_hidden_layers", most=MOST_LAYERS)
    positions = f.size("n_positions", "max_position_embeddings", "n_ctx")
    ffn = DenseFfn(f.size("n_inner", default=4 * hidden), matrices=2, bias=True)
    mixer = _biased(heads, divided(f, "n_embd", hidden, "n_head", heads))
    return assemble(
        f,
        [Layer(mixer, ffn, norm_bias=True)] * layers,
        hidden,
        f.size("vocab_size"),
        tied=True,
        norm_bias=True,
        position_embeddings=positions,
        max_context=positions,
    )


def opt(f: Fields) -> Model:
    """OPT: learned positions with an offset of two; OPT-350M projects its embedding."""
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads", most=100_000)
    layers = f.size("num_hidden_layers", most=MOST_LAYERS)
    bias = f.flag("enable_bias", default=True)
    affine = f.flag("layer_norm_elementwise_affine", default=True)
    before = f.flag("do_layer_norm_before", default=True)
    removed = f.flag("_remove_final_layer_norm", default=False)
    width = f.size("word_embed_proj_dim", default=hidden)
    head_dim = divided(f, "hidden_size", hidden, "num_attention_heads", heads)
    mixer = Attention(heads, heads, head_dim, qkv_bias=bias, out_bias=bias, rotary=False)
    ffn = DenseFfn(f.size("ffn_dim"), matrices=2, bias=bias)
    positions = f.size("max_position_embeddings")
    f.check(
        affine, "layer_norm_elementwise_affine", "norms without weights are unsupported", affine
    )
    return assemble(
        f,
        [Layer(mixer, ffn, norm_bias=True)] * layers,
        hidden,
        f.size("vocab_size"),
        tied=True,
        norm_bias=True,
        final_norms=1 if before and not removed else 0,
        embedding_dim=0 if width == hidden else width,
        position_embeddings=positions + 2,
    )


def bloom(f: Fields) -> Model:
    """BLOOM: ALiBi instead of positions, a norm after the embedding."""
    hidden = f.size("hidden_size", "n_embed")
    heads = f.size("n_head", "num_attention_heads", most=100_000)
    layers = f.size("n_layer", "num_hidden_layers", most=MOST_LAYERS)
    head_dim = divided(f, "hidden_size", hidden, "n_head", heads)
    f.ignore("apply_residual_connection_post_layernorm", "offset_alibi")
    f.ignore("skip_bias_add", "skip_bias_add_qkv", "seq_length")
    f.only("n_inner", (4 * hidden,), why="an FFN of four times the hidden size is due")
    ffn = DenseFfn(4 * hidden, matrices=2, bias=True)
    return assemble(
        f,
        [Layer(_biased(heads, head_dim), ffn, norm_bias=True)] * layers,
        hidden,
        f.size("vocab_size"),
        tied=True,
        norm_bias=True,
        embedding_norms=1,
    )


def falcon(f: Fields) -> Model:
    """Falcon 7B, 40B, 180B and RW: one or two norms before attention and FFN in parallel."""
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads", "n_head", most=100_000)
    layers = f.size("num_hidden_layers", "n_layer", most=MOST_LAYERS)
    new = f.flag("new_decoder_architecture", default=False)
    multi_query = f.flag("multi_query", default=True)
    parallel = f.flag("parallel_attn", default=True) or new
    kv_heads = f.size("num_kv_heads", "n_head_kv", default=heads, most=100_000)
    if not new:
        kv_heads = 1 if multi_query else heads
    check_groups(f, ("num_kv_heads", "num_attention_heads"), heads, kv_heads)
    bias = f.flag("bias", default=False)
    norms = f.size("num_ln_in_parallel_attn", default=2 if new or not parallel else 1, most=2)
    head_dim = divided(f, "hidden_size", hidden, "num_attention_heads", heads)
    rotary = not f.flag("alibi", default=False)
    f.ignore("apply_residual_connection_post_layernorm")
    mixer = Attention(heads, kv_heads, head_dim, qkv_bias=bias, out_bias=bias, rotary=rotary)
    width = f.size("ffn_hidden_size", default=f.size("ff_factor", default=4) * hidden)
    ffn = DenseFfn(width, matrices=2, bias=bias)
    layer = Layer(mixer, ffn, norms=norms, norm_bias=True, parallel=parallel)
    return assemble(f, [layer] * layers, hidden, f.size("vocab_size"), tied=True, norm_bias=True)


def phi(f: Fields) -> Model:
    """Phi-1, Phi-1.5, Phi-2: one norm before attention and FFN in parallel, biases everywhere."""
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads", most=100_000)
    layers = f.size("num_hidden_layers", most=MOST_LAYERS)
    kv_heads = f.size("num_key_value_heads", default=heads, most=100_000)
    check_groups(f, ("num_key_value_heads", "num_attention_heads"), heads, kv_heads)
    f.only("qk_layernorm", (False,), why="norms of queries and keys are unsupported here")
    head_dim = divided(f, "hidden_size", hidden, "num_attention_heads", heads)
    mixer = Attention(heads, kv_heads, head_dim, qkv_bias=True, out_bias=True)
    ffn = DenseFfn(f.size("intermediate_size"), matrices=2, bias=True)
    layer = Layer(mixer, ffn, norms=1, norm_bias=True, parallel=True)
    vocab = f.size("vocab_size")
    return assemble(f, [layer] * layers, hidden, vocab, tied=False, norm_bias=True, head_bias=True)
