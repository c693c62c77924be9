"""Dense decoders in the manner of Llama: Llama, Mistral, Qwen 2 and 3, MiMo, Phi-3, BitNet.

Shapes follow the modeling code of the transformers library (v4.57): three-matrix FFN, RMS norm
before attention and before the FFN, rotary positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opbyte.workloads.families.common import (
    FULL,
    SLIDING,
    Sizes,
    assemble,
    kinds_of_layers,
    read_sizes,
    window_of,
)
from opbyte.workloads.families.fields import Fields
from opbyte.workloads.model import Attention, DenseFfn, Ffn, Layer, Model


def attention(s: Sizes, *, qkv_bias: bool = False, out_bias: bool = False) -> Attention:
    """Return the attention of a decoder."""
    return Attention(s.heads, s.kv_heads, s.head_dim, qkv_bias=qkv_bias, out_bias=out_bias)


def uniform(mixer: Attention, ffn: Ffn, windows: Sequence[int]) -> list[Layer]:
    """Return layers that differ only in their window."""
    made = {window: Layer(replace(mixer, window=window), ffn) for window in set(windows)}
    return [made[window] for window in windows]


def llama(f: Fields) -> Model:
    """Llama 1, 2, 3: `LlamaForCausalLM`."""
    s = read_sizes(f)
    bias = f.flag("attention_bias", default=False)
    ffn = DenseFfn(f.size("intermediate_size"), bias=f.flag("mlp_bias", default=False))
    mixer = attention(s, qkv_bias=bias, out_bias=bias)
    return assemble(f, uniform(mixer, ffn, [0] * s.layers), s.hidden, s.vocab, tied=False)


def llava(f: Fields) -> Model:
    """LLaVA's first format: Llama's fields beside those of the vision tower and projector."""
    vision = ("mm_", "tune_mm_", "freeze_mm_", "image_", "tokenizer_", "unfreeze_mm_")
    f.ignore(*(key for key in f.data if key.startswith(vision)))
    f.ignore("use_mm_proj", "freeze_backbone", "pretrain_mm_mlp_adapter")
    f.notes.append("only the text part is modelled, without vision")
    return llama(f)


def mistral(f: Fields) -> Model:
    """Mistral 7B and kin: `MistralForCausalLM`; an absent window means 4,096 tokens."""
    s = read_sizes(f)
    window = f.size("sliding_window", default=0 if "sliding_window" in f.data else 4096)
    f.only("attention_bias", (False,), why="this family has no attention biases")
    ffn = DenseFfn(f.size("intermediate_size"))
    kinds = kinds_of_layers(f, s.layers, [SLIDING if window else FULL] * s.layers)
    windows = [window if kind == SLIDING else 0 for kind in kinds]
    return assemble(f, uniform(attention(s), ffn, windows), s.hidden, s.vocab, tied=False)


def qwen_windows(f: Fields, layers: int) -> list[int]:
    """Return the window of each layer: Qwen 2 and 3 slide from `max_window_layers` on."""
    slides = f.flag("use_sliding_window", default=False)
    slides = slides and f.data.get("sliding_window", 4096) is not None
    first = f.size("max_window_layers", default=28, least=0)
    pattern = [SLIDING if slides and i >= first else FULL for i in range(layers)]
    kinds = kinds_of_layers(f, layers, pattern)
    window = window_of(f, kinds, 4096)
    return [window if kind == SLIDING else 0 for kind in kinds]


def qwen2(f: Fields) -> Model:
    """Qwen 2 and 2.5: `Qwen2ForCausalLM`, biases on query, key and value by architecture."""
    s = read_sizes(f)
    f.only("attention_bias", (True,), why="this family has biases on query, key and value")
    f.only("qkv_bias", (True,), why="this family has biases on query, key and value")
    f.only("use_mrope", (False,), why="rotary sections are not supported here")
    mixer = attention(s, qkv_bias=True)
    ffn = DenseFfn(f.size("intermediate_size"))
    return assemble(
        f, uniform(mixer, ffn, qwen_windows(f, s.layers)), s.hidden, s.vocab, tied=False
    )


def mimo(f: Fields) -> Model:
    """MiMo-7B: Qwen 2's shapes; its multi-token-prediction layer is left out."""
    return qwen2(f)


def qwen3(f: Fields) -> Model:
    """Qwen 3 and the text part of Qwen3-VL: norms over each query and key head."""
    s = read_sizes(f, head_dim=128)
    bias = f.flag("attention_bias", default=False)
    mixer = replace(attention(s, qkv_bias=bias, out_bias=bias), qk_norm=2 * s.head_dim)
    ffn = DenseFfn(f.size("intermediate_size"))
    return assemble(
        f, uniform(mixer, ffn, qwen_windows(f, s.layers)), s.hidden, s.vocab, tied=False
    )


def phi3(f: Fields) -> Model:
    """Phi-3 and Phi-4: fused projections of the same sizes, no biases."""
    s = read_sizes(f)
    f.only("attention_bias", (False,), why="this family has no attention biases")
    f.only("mlp_bias", (False,), why="this family has no FFN biases")
    f.only("lm_head_bias", (False,), why="this family has no head bias")
    f.only("full_attn_mod", (1,), why="interleaved attention is not supported")
    f.ignore("interpolate_factor")
    window = f.size("sliding_window", default=0)
    ffn = DenseFfn(f.size("intermediate_size"))
    layers = uniform(attention(s), ffn, [window] * s.layers)
    return assemble(f, layers, s.hidden, s.vocab, tied=False)


def bitnet(f: Fields) -> Model:
    """BitNet b1.58: norms of the attention's and FFN's width before their last projections."""
    s = read_sizes(f)
    bias = f.flag("attention_bias", default=False)
    f.ignore("weight_bits", "input_bits")
    f.only("mlp_bias", (False,), why="this family has no FFN biases")
    mixer = replace(attention(s, qkv_bias=bias, out_bias=bias), sub_norm=True)
    ffn = DenseFfn(f.size("intermediate_size"), sub_norm=True)
    return assemble(f, uniform(mixer, ffn, [0] * s.layers), s.hidden, s.vocab, tied=False)
