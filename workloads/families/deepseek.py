"""Multi-head latent attention with many small experts: DeepSeek V3 and V3.2, Kimi K2, GLM-5.

Shapes follow the modeling code beside the checkpoints and of the transformers library
(deepseek_v3, glm_moe_dsa); the indexer DeepSeek-V3.2's inference/model.py.
"""

from __future__ import annotations

from dataclasses import replace

from opbyte.workloads.families.common import assemble
from opbyte.workloads.families.fields import MOST_LAYERS, Fields
from opbyte.workloads.families.moe import read_experts
from opbyte.workloads.model import DenseFfn, LatentAttention, Layer, Model, MoeFfn

INDEXED = "deepseek_sparse_attention"


def _latent(f: Fields) -> LatentAttention:
    """Read the attention, without its indexer. The number of KV heads plays no part in MLA."""
    heads = f.size("num_attention_heads", most=100_000)
    f.size("num_key_value_heads", default=heads, most=100_000)
    mixer = LatentAttention(
        heads=heads,
        q_lora_rank=f.size("q_lora_rank", default=0, least=0),
        kv_lora_rank=f.size("kv_lora_rank"),
        nope_dim=f.size("qk_nope_head_dim"),
        rope_dim=f.size("qk_rope_head_dim"),
        v_dim=f.size("v_head_dim"),
        bias=f.flag("attention_bias", default=False),
    )
    whole = mixer.nope_dim + mixer.rope_dim
    f.only("qk_head_dim", (whole,), why=f"qk_nope_head_dim + qk_rope_head_dim, {whole}, is due")
    f.only(
        "head_dim",
        (
            mixer.rope_dim,
            whole,
        ),
        why="the width of a rotated or whole head is due",
    )
    return mixer


def _sparse_layers(f: Fields, layers: int) -> list[bool]:
    """Return which layers have experts."""
    kinds = f.words("mlp_layer_types", ("dense", "sparse"), layers)
    first = f.size("first_k_dense_replace", default=0, least=0)
    step = f.size("moe_layer_freq", default=1)
    if kinds is not None:
        return [kind == "sparse" for kind in kinds]
    return [i >= first and i % step == 0 for i in range(layers)]


def _stack(f: Fields, mixers: list[LatentAttention]) -> list[Layer]:
    experts, top_k = read_experts(f)
    width = f.size("moe_intermediate_size")
    shared = f.size("n_shared_experts", "num_shared_experts", default=0, least=0)
    f.only("mlp_bias", (False,), why="this family has no FFN biases")
    correction = f.data.get("topk_method", "noaux_tc") == "noaux_tc"
    sparse = MoeFfn(experts, top_k, width, shared_width=shared * width, router_bias=correction)
    dense = DenseFfn(f.size("intermediate_size"))
    has_experts = _sparse_layers(f, len(mixers))
    return [
        Layer(mixer, sparse if routed else dense)
        for mixer, routed in zip(mixers, has_experts, strict=True)
    ]


def deepseek_v3(f: Fields) -> Model:
    """DeepSeek V3, R1, V3.1 and Kimi K2: leading dense layers, then experts and a shared one."""
    layers = f.size("num_hidden_layers", most=MOST_LAYERS)
    f.words("layer_types", ("full_attention",), layers)
    stack = _stack(f, [_latent(f)] * layers)
    return assemble(f, stack, f.size("hidden_size"), f.size("vocab_size"), tied=False)


def _indexers(f: Fields, layers: int) -> list[bool]:
    """Return which layers run an indexer; the others reuse the previous one's choice."""
    kinds = f.words("indexer_types", ("full", "shared"), layers)
    pattern = f.get("index_topk_pattern")
    step = f.size("index_topk_freq", default=1)
    offset = f.size("index_skip_topk_offset", default=2, least=0)
    if kinds is None and pattern is not None:
        words = {"F": "full", "S": "shared", "full": "full", "shared": "shared"}
        good = isinstance(pattern, str | list) and len(pattern) == layers
        good = good and all(isinstance(e, str) and e in words for e in pattern)
        f.check(good, "index_topk_pattern", f"{layers} letters F or S are due", pattern)
        kinds = [words[entry] for entry in pattern] if good else None
    if kinds is not None:
        return [kind == "full" for kind in kinds]
    return [max(i - offset + 1, 0) % step == 0 for i in range(layers)]


def sparse_index(f: Fields) -> Model:
    """DeepSeek V3.2 and GLM-5: a lightning indexer chooses the tokens that a query reads."""
    layers = f.size("num_hidden_layers", most=MOST_LAYERS)
    f.words("layer_types", (INDEXED, "full_attention"), layers)
    f.ignore("indexer_rope_interleave")
    plain = replace(_latent(f), index_topk=f.size("index_topk"))
    index_heads, index_dim = f.size("index_n_heads"), f.size("index_head_dim")
    indexed = replace(plain, index_heads=index_heads, index_dim=index_dim)
    stack = _stack(f, [indexed if runs else plain for runs in _indexers(f, layers)])
    return assemble(f, stack, f.size("hidden_size"), f.size("vocab_size"), tied=False)
