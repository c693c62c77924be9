"""Decoders with experts and ordinary attention, from Mixtral to GLaM.

Shapes follow the modeling code of the transformers library (v4.57); Grok-1 the published JAX
code; GLaM arXiv 2112.06905, section 3 and table 4.
"""

from __future__ import annotations

from dataclasses import replace

from opbyte.workloads.families.common import (
    FULL,
    SLIDING,
    assemble,
    kinds_of_layers,
    read_sizes,
    window_of,
)
from opbyte.workloads.families.fields import Fields
from opbyte.workloads.families.llama import attention, qwen_windows, uniform
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts")


def read_experts(f: Fields) -> tuple[int, int]:
    """Return the routed experts and how many of them a token visits."""
    experts = f.size(*EXPERTS, most=1_000_000)
    top_k = f.size(*TOP_K, most=1_000_000)
    key = next((key for key in TOP_K if f.has(key)), TOP_K[0])
    if top_k > experts and f.sound(key, *EXPERTS):
        f.fault(key, f"a token can visit at most all {experts} experts", top_k, "Lower it.")
    return experts, top_k


def mixtral(f: Fields) -> Model:
    """Mixtral 8x7B and 8x22B: experts in every layer."""
    s = read_sizes(f)
    window = f.size("sliding_window", default=0)
    f.only("attention_bias", (False,), why="this family has no attention biases")
    experts, top_k = read_experts(f)
    ffn = MoeFfn(experts, top_k, f.size("intermediate_size"))
    layers = uniform(attention(s), ffn, [window] * s.layers)
    return assemble(f, layers, s.hidden, s.vocab, tied=False)


def _qwen_stack(f: Fields, mixer: Attention, layers: int, *, shared: bool) -> list[Layer]:
    experts, top_k = read_experts(f)
    width = f.size("moe_intermediate_size")
    dense = DenseFfn(f.size("intermediate_size"))
    shared_width = 0
    if shared:
        shared_width = f.size("shared_expert_intermediate_size", least=0)
    else:
        f.only("shared_expert_intermediate_size", (0,), why="this family has no shared expert")
    ffn = MoeFfn(experts, top_k, width, shared_width=shared_width, shared_gate=bool(shared_width))
    step = f.size("decoder_sparse_step", default=1)
    plain = set(f.indices("mlp_only_layers", layers) or ())
    windows = qwen_windows(f, layers)
    return [
        Layer(
            replace(mixer, window=windows[i]),
            ffn if i not in plain and (i + 1) % step == 0 else dense,
        )
        for i in range(layers)
    ]


def qwen2_moe(f: Fields) -> Model:
    """Qwen1.5-MoE and Qwen2-57B-A14B: a gated shared expert, biases on query, key and value."""
    s = read_sizes(f)
    mixer = attention(s, qkv_bias=f.flag("qkv_bias", default=True))
    stack = _qwen_stack(f, mixer, s.layers, shared=True)
    return assemble(f, stack, s.hidden, s.vocab, tied=False)


def qwen3_moe(f: Fields) -> Model:
    """Qwen3-MoE and the text part of Qwen3-VL-MoE: norms over each head, no shared expert."""
    s = read_sizes(f, head_dim=128 if f.has("head_dim") else None)
    bias = f.flag("attention_bias", default=False)
    f.only("qkv_bias", (False,), why="this family has no separate bias on query, key and value")
    f.only("use_qk_norm", (True,), why="this family normalises query and key heads")
    mixer = replace(attention(s, qkv_bias=bias, out_bias=bias), qk_norm=2 * s.head_dim)
    stack = _qwen_stack(f, mixer, s.layers, shared=False)
    return assemble(f, stack, s.hidden, s.vocab, tied=False)


def _marked(f: Fields, key: str, layers: int) -> list[bool]:
    """Return a list of zeros and ones, one for each layer, as flags."""
    listed = f.get(key)
    if listed is None:
        return [False] * layers
    good = isinstance(listed, list) and len(listed) == layers
    good = good and all(entry in (0, 1) for entry in listed)
    f.check(good, key, f"a list of {layers} zeros and ones is due", listed)
    return [bool(entry) for entry in listed] if good else [False] * layers


def smallthinker(f: Fields) -> Model:
    """SmallThinker: experts with ReLU gates, whose router reads the input of the layer.

    Which layers rotate positions changes no size; where the router stands is a matter of time,
    see `prefetch: pre_attention` of a mapping.
    """
    s = read_sizes(f, head_dim=128)
    f.ignore("rope_layout", "moe_primary_router_apply_softmax", "norm_topk_prob", "model_name")
    experts = f.size("moe_num_primary_experts", most=1_000_000)
    top_k = f.size("moe_num_active_primary_experts", most=1_000_000)
    if top_k > experts and f.sound("moe_num_active_primary_experts", "moe_num_primary_experts"):
        rule = f"a token can visit at most all {experts} experts"
        f.fault("moe_num_active_primary_experts", rule, top_k, "Lower it.")
    ffn = MoeFfn(experts, top_k, f.size("moe_ffn_hidden_size"))
    window = f.size("sliding_window_size", "sliding_window", default=4096)
    slides = _marked(f, "sliding_window_layout", s.layers)
    windows = [window if slide else 0 for slide in slides]
    return assemble(f, uniform(attention(s), ffn, windows), s.hidden, s.vocab, tied=True)


def gpt_oss(f: Fields) -> Model:
    """gpt-oss 20B and 120B: biases everywhere, attention sinks, every second layer slides."""
    s = read_sizes(f, head_dim=64)
    bias = f.flag("attention_bias", default=True)
    experts, top_k = read_experts(f)
    ffn = MoeFfn(experts, top_k, f.size("intermediate_size"), router_bias=True, expert_bias=True)
    kinds = kinds_of_layers(f, s.layers, [FULL if i % 2 else SLIDING for i in range(s.layers)])
    window = window_of(f, kinds, 128)
    mixer = replace(attention(s, qkv_bias=bias, out_bias=bias), sinks=True)
    windows = [window if kind == SLIDING else 0 for kind in kinds]
    return assemble(f, uniform(mixer, ffn, windows), s.hidden, s.vocab, tied=False)


def _llama4_chunked(f: Fields, layers: int) -> list[bool]:
    """Return which layers rotate positions and attend inside chunks."""
    kinds = f.words("layer_types", ("chunked_attention", FULL), layers)
    interval = f.size("no_rope_layer_interval", default=4)
    listed = f.get("no_rope_layers")
    if kinds is not None:
        return [kind == "chunked_attention" for kind in kinds]
    if listed:
        good = isinstance(listed, list) and len(listed) == layers
        good = good and all(entry in (0, 1) for entry in listed)
        f.check(good, "no_rope_layers", f"a list of {layers} zeros and ones is due", listed)
        return [bool(flag) for flag in listed] if good else [True] * layers
    return [(i + 1) % interval != 0 for i in range(layers)]


def llama4(f: Fields) -> Model:
    """Llama 4 text part: one shared expert as wide as a routed one, every fourth layer global.

    Its query and key norms have no weights.
    """
    s = read_sizes(f, head_dim=None)
    bias = f.flag("attention_bias", default=False)
    f.ignore("use_qk_norm", "for_llm_compressor")
    experts, top_k = read_experts(f)
    width = f.size("intermediate_size")
    sparse = MoeFfn(experts, top_k, width, shared_width=width)
    step = f.size("interleave_moe_layer_step", default=1)
    moe_layers = f.indices("moe_layers", s.layers)
    if moe_layers is None:
        moe_layers = list(range(step - 1, s.layers, step))
    dense = DenseFfn(f.size("intermediate_size_mlp", default=1 if step == 1 else None))
    chunked = _llama4_chunked(f, s.layers)
    chunk = f.size("attention_chunk_size", default=8192)
    mixer = attention(s, qkv_bias=bias, out_bias=bias)
    near, far = replace(mixer, chunk=chunk), replace(mixer, rotary=False)
    with_experts = set(moe_layers)
    stack = [
        Layer(near if chunked[i] else far, sparse if i in with_experts else dense)
        for i in range(s.layers)
    ]
    return assemble(f, stack, s.hidden, s.vocab, tied=False)


def minimax_m2(f: Fields) -> Model:
    """MiniMax M2: norms as wide as all query and all key heads, sigmoid routing with a bias."""
    s = read_sizes(f)
    norm = 0
    if f.flag("use_qk_norm", default=True):
        kind = f.word("qk_norm_type", ("per_layer", "per_head"), "per_layer")
        wide = (s.heads + s.kv_heads) * s.head_dim
        norm = wide if kind == "per_layer" else 2 * s.head_dim
    experts, top_k = read_experts(f)
    bias = f.flag("use_routing_bias", default=True)
    f.only("shared_intermediate_size", (0,), why="this family has no shared expert")
    f.only("attention_bias", (False,), why="this family has no attention biases")
    f.only("attn_type_list", ([1] * s.layers,), why="only full attention layers are supported")
    f.only("sliding_window", (0,), why="this family has no sliding window")
    f.ignore("mlp_intermediate_size", "shared_moe_mode", "max_model_len")
    for kind in ("full_attention", "linear_attention", "mlp"):
        f.ignore(f"layernorm_{kind}_alpha", f"layernorm_{kind}_beta")
    ffn = MoeFfn(experts, top_k, f.size("intermediate_size"), router_bias=bias)
    layers = uniform(replace(attention(s), qk_norm=norm), ffn, [0] * s.layers)
    return assemble(f, layers, s.hidden, s.vocab, tied=False)


def grok1(f: Fields) -> Model:
    """Grok-1: four norms in a layer, gated experts, tied embeddings."""
    s = read_sizes(f)
    experts, top_k = read_experts(f)
    f.ignore(
        "attn_output_multiplier",
        "max_attn_value",
        "embedding_multiplier_scale",
        "output_multiplier_scale",
    )
    ffn = MoeFfn(experts, top_k, f.size("intermediate_size"))
    return assemble(f, [Layer(attention(s), ffn, norms=4)] * s.layers, s.hidden, s.vocab, tied=True)


def glam(f: Fields) -> Model:
    """GLaM: every second layer has two-matrix experts, the layers between a dense FFN.

    `dense_matrices: 3` gives the dense layers the gated linear unit of section 3, with which the
    published active count of the largest model is met.
    """
    s = read_sizes(f)
    experts, top_k = read_experts(f)
    width = f.size("intermediate_size")
    step = f.size("moe_layer_step", default=2)
    gated = f.size("dense_matrices", default=2, least=2, most=3)
    sparse = MoeFfn(experts, top_k, width, matrices=2)
    dense = DenseFfn(width, matrices=3 if gated == 3 else 2)
    mixer = replace(attention(s), rotary=False)
    stack = [Layer(mixer, sparse if (i + 1) % step == 0 else dense) for i in range(s.layers)]
    return assemble(f, stack, s.hidden, s.vocab, tied=True)
