"""Parameter counts and layers of models, against published counts."""

from __future__ import annotations

import math
import time

import pytest

from opbyte.workloads.hf_config import model_from_config
from opbyte.workloads.model import Attention, LatentAttention, MoeFfn
from opbyte.workloads.model_loader import load_model, model_catalog
from opbyte.workloads.modules import modules_of
from opbyte.workloads.precision import MATRIX_CLASSES

NAMES = model_catalog().names()


def last_digit(published: float) -> float:
    """Return one unit of the last non-zero digit of a published number, in billions."""
    text = f"{published / 1e9:.10g}"
    return 10.0 ** -len(text.partition(".")[2]) * 1e9


def test_catalog_has_at_least_thirty_models():
    assert len(NAMES) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_catalog_counts_are_the_published_ones(name):
    model = load_model(name)
    assert model.name == name
    assert model.source, "where do the sizes come from?"
    published = model.published_parameters
    if name == "glam-64b-64e":
        assert round(model.parameters / 1e12, 1) == published / 1e12, "the paper prints 1.2T"
    elif name == "gpt-2-xl-24-heads":
        assert round(model.parameters / 1e9, 2) == 1.44, "the paper prints the 1.5B of 25 heads"
    elif name in ("bitnet-b1.58-0.7b", "bitnet-b1.58-1.3b"):
        assert round(model.parameters / 1e9, 1) == published / 1e9, "the paper prints 700M and 1.3B"
    elif name == "smallthinker-4b-a0.6b":
        assert round(model.parameters / 1e9) == published / 1e9, "its name says 4B"
    else:
        assert model.parameters == pytest.approx(published, rel=0.005)
    if model.published_active:
        unit = last_digit(model.published_active)
        excused = {"qwen3-30b-a3b": 0.311e9, "mixtral-8x7b": 0.131e9}  # cards with the embedding
        active = model.active_parameters + excused.get(name, 0.0)
        assert abs(active - model.published_active) < unit


@pytest.mark.parametrize("name", NAMES)
def test_matrices_by_name_add_up_to_the_classes(name):
    model = load_model(name)
    by_class = dict.fromkeys(MATRIX_CLASSES, 0)
    for module in modules_of(model):
        by_class[module.tensor_class] += module.elements
    counted = model.class_parameters()
    positions = model.position_embeddings * model.hidden
    for tensor_class in MATRIX_CLASSES:
        expected = counted[tensor_class] - (positions if tensor_class == "head" else 0)
        assert by_class[tensor_class] == expected, tensor_class


@pytest.mark.parametrize("name", ["llama-2-7b", "deepseek-v3", "kimi-k2-thinking"])
def test_loading_a_catalog_model_is_fast(name):
    def seconds() -> float:
        start = time.process_time()
        load_model(name)
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.015


# Counts of the checkpoints' safetensors, which no catalog entry repeats.
CHECKPOINTS = {
    "falcon-rw-1b": (
        {
            "model_type": "falcon",
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "multi_query": False,
            "parallel_attn": False,
            "new_decoder_architecture": False,
            "bias": True,
            "alibi": True,
            "vocab_size": 50304,
        },
        1_311_625_216,
    ),
    "phi-1.5": (
        {
            "model_type": "phi",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "vocab_size": 51200,
            "partial_rotary_factor": 0.5,
        },
        1_418_270_720,
    ),
    "opt-350m": (
        {
            "model_type": "opt",
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "word_embed_proj_dim": 512,
            "vocab_size": 50272,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": False,
        },
        331_196_416,
    ),
    "flan-t5-base": (
        {
            "model_type": "t5",
            "d_model": 768,
            "d_ff": 2048,
            "d_kv": 64,
            "num_layers": 12,
            "num_heads": 12,
            "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "is_encoder_decoder": True,
        },
        247_577_856,
    ),
    "bloom-560m": (
        {
            "model_type": "bloom",
            "n_embed": 1024,
            "n_layer": 24,
            "num_attention_heads": 16,
            "vocab_size": 250880,
        },
        559_214_592,
    ),
    "phi-4-mini": (
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "vocab_size": 200064,
            "tie_word_embeddings": True,
            "sliding_window": 262144,
            "full_attn_mod": 1,
            "lm_head_bias": False,
        },
        3_836_021_760,
    ),
    "gemma-3-1b": (
        {
            "model_type": "gemma3_text",
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "vocab_size": 262144,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
        999_885_952,
    ),
    "qwen1.5-moe-a2.7b": (
        {
            "model_type": "qwen2_moe",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "vocab_size": 151936,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768,
            "max_window_layers": 21,
            "use_sliding_window": False,
        },
        14_315_784_192,
    ),
    "nemotron-nano-9b-v2": (
        {
            "model_type": "nemotron_h",
            "hidden_size": 4480,
            "intermediate_size": 15680,
            "num_hidden_layers": 56,
            "hybrid_override_pattern": "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-",
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "mamba_num_heads": 128,
            "mamba_head_dim": 80,
            "n_groups": 8,
            "ssm_state_size": 128,
            "conv_kernel": 4,
            "vocab_size": 131072,
        },
        8_888_227_328,
    ),
    "lfm2-350m": (
        {
            "model_type": "lfm2",
            "hidden_size": 1024,
            "block_ff_dim": 6656,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.0,
            "block_multiple_of": 256,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "full_attn_idxs": [2, 5, 8, 10, 12, 14],
            "vocab_size": 65536,
        },
        354_483_968,
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_other_checkpoints_are_counted_exactly(name):
    config, published = CHECKPOINTS[name]
    assert model_from_config(config).parameters == published


def test_llama_2_7b_by_hand():
    h, f, layers, vocab = 4096, 11008, 32, 32000
    expected = layers * (4 * h * h + 3 * h * f + 2 * h) + 2 * vocab * h + h
    model = load_model("llama-2-7b")
    assert model.parameters == expected == model.active_parameters


def test_which_layers_have_experts():
    def places(name: str) -> list[int]:
        model = load_model(name)
        return [i for i, n in enumerate(model.order) if isinstance(model.layers[n].ffn, MoeFfn)]

    assert places("deepseek-v3") == list(range(3, 61))
    assert places("llama-4-maverick") == list(range(1, 48, 2))
    assert places("glam-143b") == list(range(1, 32, 2))
    assert places("switch-base-64") == [1, 3, 5, 7, 9, 11]
    assert places("llama-2-7b") == []


def test_multi_token_prediction_layers_are_left_out_and_said():
    model = load_model("deepseek-v3")
    assert any("multi-token" in note for note in model.notes)


def test_properties_of_layers_that_a_reader_may_ask_for():
    falcon = load_model("falcon-7b").layers[0]
    assert falcon.parallel
    assert falcon.norms == 1
    assert load_model("falcon-40b").layers[0].norms == 2
    assert load_model("gemma-2-9b").layers[0].norms == 4
    assert load_model("bloom-176b").embedding_norms == 1
    assert load_model("opt-13b").position_embeddings == 2050
    assert isinstance(load_model("glm-5").layers[0].mixer, LatentAttention)
    oss = load_model("gpt-oss-120b").layers[0].mixer
    assert isinstance(oss, Attention)
    assert oss.sinks
    assert oss.qkv_bias
    assert not load_model("qwen3-8b").layers[0].mixer.qkv_bias
    assert load_model("qwen2-7b").layers[0].mixer.qkv_bias
    assert not load_model("qwen2-7b").layers[0].mixer.out_bias
    assert math.isclose(load_model("bitnet-b1.58-2b-4t").precision.weight_bytes("ffn", 8), 2.0)
