"""The families of models, by `model_type` of their Hugging Face config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from opbyte.workloads.families import deepseek, gemma, gpt, hybrid, llama, moe, t5
from opbyte.workloads.families.fields import Fields
from opbyte.workloads.model import Model

__all__ = ["FAMILIES", "WRAPPERS", "Family", "Fields"]


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one `model_type`.

    Attributes:
        read: Builds the model from the fields.
        defaults: Values of the transformers library for keys that a nested `text_config` leaves
            out, because only differences from them are saved there.
    """

    read: Callable[[Fields], Model]
    defaults: Mapping[str, Any] | None = None


_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_MISTRAL = _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8}
_GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_GEMMA4 = _GEMMA3 | {"vocab_size": 262_144, "num_hidden_layers": 30}
_LLAMA4 = {
    "vocab_size": 202_048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(llama.llama, MappingProxyType(_LLAMA)),
        "llava_llama": Family(llama.llava),
        "mistral": Family(llama.mistral, MappingProxyType(_MISTRAL)),
        "mixtral": Family(moe.mixtral),
        "qwen2": Family(llama.qwen2),
        "qwen2_moe": Family(moe.qwen2_moe),
        "qwen3": Family(llama.qwen3),
        "qwen3_moe": Family(moe.qwen3_moe),
        "smallthinker": Family(moe.smallthinker),
        "qwen3_vl_text": Family(llama.qwen3),
        "qwen3_vl_moe_text": Family(moe.qwen3_moe),
        "mimo": Family(llama.mimo),
        "phi3": Family(llama.phi3),
        "bitnet": Family(llama.bitnet),
        "gpt_oss": Family(moe.gpt_oss),
        "llama4_text": Family(moe.llama4, MappingProxyType(_LLAMA4)),
        "minimax_m2": Family(moe.minimax_m2),
        "grok-1": Family(moe.grok1),
        "glam": Family(moe.glam),
        "deepseek_v3": Family(deepseek.deepseek_v3),
        "kimi_k2": Family(deepseek.deepseek_v3),
        "deepseek_v32": Family(deepseek.sparse_index),
        "glm_moe_dsa": Family(deepseek.sparse_index),
        "gemma2": Family(gemma.gemma2),
        "gemma3_text": Family(gemma.gemma3, MappingProxyType(_GEMMA3)),
        "gemma4_text": Family(gemma.gemma4, MappingProxyType(_GEMMA4)),
        "gpt2": Family(gpt.gpt2),
        "opt": Family(gpt.opt),
        "bloom": Family(gpt.bloom),
        "falcon": Family(gpt.falcon),
        "phi": Family(gpt.phi),
        "t5": Family(t5.t5),
        "switch_transformers": Family(t5.switch),
        "nemotron_h": Family(hybrid.nemotron_h),
        "lfm2": Family(hybrid.lfm2),
        "lfm2_moe": Family(hybrid.lfm2_moe),
    }
)

# Multi-modal models whose text part is read: `model_type` -> that of a text part that names none.
WRAPPERS: Mapping[str, str] = MappingProxyType(
    {
        "llava": "llama",
        "llava_next": "llama",
        "mistral3": "mistral",
        "gemma3": "gemma3_text",
        "gemma4": "gemma4_text",
        "llama4": "llama4_text",
        "qwen3_vl": "qwen3_vl_text",
        "qwen3_vl_moe": "qwen3_vl_moe_text",
        "kimi_k25": "kimi_k2",
    }
)
