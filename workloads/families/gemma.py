"""Gemma 2, 3 and 4: four norms in a layer, sliding and global layers, tied embeddings.

Shapes follow the modeling code of the transformers library (gemma2, gemma3, gemma4).
"""

from __future__ import annotations

from dataclasses import replace

from opbyte.workloads.families.common import (
    FULL,
    SLIDING,
    Sizes,
    assemble,
    check_groups,
    kinds_of_layers,
    read_sizes,
    window_of,
)
from opbyte.workloads.families.fields import Fields
from opbyte.workloads.families.llama import attention
from opbyte.workloads.model import Attention, DenseFfn, Ffn, Layer, Model, MoeFfn


def _every(layers: int, step: int) -> list[str]:
    """Return a pattern in which each `step`-th layer is global."""
    return [SLIDING if (i + 1) % step else FULL for i in range(layers)]


def _dense_gemma(f: Fields, step: int, *, qk_norm: bool, window: int) -> Model:
    s = read_sizes(f, head_dim=256)
    bias = f.flag("attention_bias", default=False)
    f.only("use_bidirectional_attention", (False,), why="only causal attention is supported")
    kinds = kinds_of_layers(f, s.layers, _every(s.layers, step))
    slide = window_of(f, kinds, window)
    mixer = attention(s, qkv_bias=bias, out_bias=bias)
    mixer = replace(mixer, qk_norm=2 * s.head_dim if qk_norm else 0)
    ffn = DenseFfn(f.size("intermediate_size"))
    near, far = Layer(replace(mixer, window=slide), ffn, norms=4), Layer(mixer, ffn, norms=4)
    stack = [near if kind == SLIDING else far for kind in kinds]
    return assemble(f, stack, s.hidden, s.vocab, tied=True)


def gemma2(f: Fields) -> Model:
    """Gemma 2: every second layer is global."""
    return _dense_gemma(f, 2, qk_norm=False, window=4096)


def gemma3(f: Fields) -> Model:
    """Gemma 3 text part: norms over each query and key head, every sixth layer global."""
    step = f.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _dense_gemma(f, step, qk_norm=True, window=4096)


def _gemma4_mixers(f: Fields, s: Sizes, window: int) -> tuple[Attention, Attention]:
    """Return the sliding and the global layers' attention."""
    bias = f.flag("attention_bias", default=False)
    near = Attention(s.heads, s.kv_heads, s.head_dim, qkv_bias=bias, out_bias=bias)
    same = f.flag("attention_k_eq_v", default=False)
    width = f.size("global_head_dim", default=512)
    wide_heads = f.size("num_global_key_value_heads", default=s.kv_heads, most=100_000)
    if same:
        keys = ("num_global_key_value_heads", "num_attention_heads")
        check_groups(f, keys, s.heads, wide_heads)
    far = replace(
        near,
        head_dim=width,
        kv_heads=wide_heads if same else s.kv_heads,
        shared_key_value=same,
        qk_norm=2 * width,
    )
    return replace(near, window=window, qk_norm=2 * s.head_dim), far


def _gemma4_ffn(f: Fields) -> tuple[Ffn, Ffn]:
    """Return the FFN of a layer, and of a layer that shares another's cache."""
    width = f.size("intermediate_size")
    wide = DenseFfn(width * (2 if f.flag("use_double_wide_mlp", default=False) else 1))
    if not f.flag("enable_moe_block", default=False):
        for key in ("num_experts", "top_k_experts", "moe_intermediate_size"):
            f.only(key, (0,), why="enable_moe_block is false, so that no experts are expected")
        return DenseFfn(width), wide
    experts, top_k = f.size("num_experts"), f.size("top_k_experts", "num_experts_per_tok")
    f.check(top_k <= experts, "top_k_experts", f"at most {experts} experts exist", top_k)
    extra = f.size("hidden_size") + experts

    def routed(dense: DenseFfn) -> MoeFfn:
        inner = f.size("moe_intermediate_size", "expert_intermediate_size")
        return MoeFfn(experts, top_k, inner, dense_width=dense.width, extra=extra)

    return routed(DenseFfn(width)), routed(wide)


def gemma4(f: Fields) -> Model:
    """Gemma 4 text part: wider global layers, shared caches, per-layer inputs, or experts.

    The last `num_kv_shared_layers` read the cache of the last earlier layer of their kind. A
    router scales its input by a vector and its experts by a scalar each; three norms surround the
    experts beside the usual four.
    """
    s = read_sizes(f, head_dim=256)
    f.only(
        "use_bidirectional_attention",
        (
            "vision",
            False,
        ),
        why="only causal text is supported",
    )
    kinds = kinds_of_layers(f, s.layers, _every(s.layers, 6))
    kinds[-1] = FULL
    near, far = _gemma4_mixers(f, s, window_of(f, kinds, 512))
    ffn, shared_ffn = _gemma4_ffn(f)
    norms = 7 if isinstance(ffn, MoeFfn) else 4
    per_layer = f.size("hidden_size_per_layer_input", default=256, least=0)
    first_shared = s.layers - f.size("num_kv_shared_layers", default=0, least=0, most=s.layers - 1)
    stack = []
    for i, kind in enumerate(kinds):
        mixer, shares = (near if kind == SLIDING else far), i >= first_shared
        if shares:
            mixer = replace(mixer, reuses_cache=True, qk_norm=mixer.head_dim)
            known = kind in kinds[:first_shared]
            f.check(known, "num_kv_shared_layers", f"no earlier layer of kind {kind}", kind)
        stack.append(
            Layer(
                mixer,
                shared_ffn if shares else ffn,
                norms=norms + (1 if per_layer else 0),
                per_layer_input=per_layer,
            )
        )
    rows = f.size("vocab_size_per_layer_input", default=262_144)
    return assemble(
        f,
        stack,
        s.hidden,
        s.vocab,
        tied=True,
        per_layer_vocab=rows if per_layer else 0,
        per_layer_width=per_layer,
    )
