"""Caches, states and stored bytes of models, against hand formulas and real files."""

from __future__ import annotations

import json

import pytest

from opbyte.core.errors import ConfigError
from opbyte.workloads.hf_config import model_from_config
from opbyte.workloads.model_loader import load_model


def test_kv_cache_of_multi_head_attention():
    assert load_model("llama-2-7b").kv_bytes_per_token == 2 * 32 * 32 * 128 * 2


def test_kv_cache_of_grouped_heads():
    assert load_model("llama-3.1-70b").kv_bytes_per_token == 2 * 80 * 8 * 128 * 2


def test_kv_cache_of_a_single_head():
    assert load_model("falcon-7b").kv_bytes_per_token == 2 * 32 * 1 * 64 * 2


def test_kv_cache_of_latent_attention_ignores_the_kv_heads():
    model = load_model("deepseek-v3")
    assert model.kv_bytes_per_token == 61 * (512 + 64) * 2
    assert load_model("kimi-k2").kv_bytes_per_token == model.kv_bytes_per_token


def test_kv_cache_of_a_sparse_index_has_the_index_key():
    assert load_model("deepseek-v3.2").kv_bytes_per_token == 61 * (512 + 64 + 128) * 2
    assert load_model("glm-5").kv_bytes_per_token == 78 * (512 + 64 + 128) * 2


def test_layers_that_reuse_an_index_choice_have_no_indexer():
    config = json.loads(json.dumps(GLM | {"index_topk_pattern": "FSFS"}))
    every, shared = model_from_config(GLM), model_from_config(config)
    one = 96 * 2 * 16 + 64 * (16 + 2) + 2 * 16
    assert every.parameters - shared.parameters == 2 * one
    assert every.kv_bytes_per_token - shared.kv_bytes_per_token == 2 * 16 * 2


GLM = {
    "model_type": "glm_moe_dsa",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "q_lora_rank": 96,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "vocab_size": 100,
}


def test_kv_cache_of_sliding_windows_is_bounded():
    model = load_model("gemma-2-27b")
    per_layer = 2 * 16 * 128 * 2
    assert model.kv_bytes_per_token == 46 * per_layer
    assert model.kv_bytes(100) == 46 * per_layer * 100
    assert model.kv_bytes(32768) == 23 * per_layer * (4096 + 32768)
    oss = load_model("gpt-oss-20b")
    assert oss.kv_bytes(1000) == 2 * 8 * 64 * 2 * (12 * 128 + 12 * 1000)


def test_kv_cache_of_chunks_is_bounded():
    model = load_model("llama-4-scout")
    assert model.kv_bytes(100_000) == 2 * 8 * 128 * 2 * (36 * 8192 + 12 * 100_000)
    full = [m for m in (layer.mixer for layer in model.layers) if not m.chunk]
    assert full
    assert not any(m.rotary for m in full)


def test_kv_cache_of_gemma_4_has_wider_global_layers():
    model = load_model("gemma-4-26b-a4b")
    assert model.kv_bytes_per_token == (25 * 2 * 8 * 256 + 5 * 2 * 2 * 512) * 2
    shared = {m.shared_key_value for m in (layer.mixer for layer in model.layers)}
    assert shared == {True, False}


GEMMA4_E4B = {
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 42,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": None,
        "vocab_size": 262144,
        "sliding_window": 512,
        "num_kv_shared_layers": 18,
        "hidden_size_per_layer_input": 256,
        "num_experts": None,
        "use_double_wide_mlp": False,
    },
}


def test_layers_that_share_a_cache_add_none():
    model = model_from_config(GEMMA4_E4B)
    # 42 layers, every sixth global; the last 18 share: 20 sliding and 4 global ones remain.
    assert model.kv_bytes_per_token == 2 * 2 * (20 * 256 + 4 * 512) * 2
    readers = [m for m in (layer.mixer for layer in model.layers) if m.reuses_cache]
    assert {m.kv_elements_per_token for m in readers} == {0}
    assert {m.kv_elements_read_per_token for m in readers} == {2 * 2 * 256, 2 * 2 * 512}


def test_gemma_4_small_models_by_hand():
    model = model_from_config(GEMMA4_E4B)
    h, f, p, vocab = 2560, 10240, 256, 262144
    sliding = h * 256 * (8 + 2 + 2 + 8) + 2 * 256
    full = h * 512 * (8 + 2 + 2 + 8) + 2 * 512
    sliding_shared = h * 256 * 16 + 256
    full_shared = h * 512 * 16 + 512
    every = 3 * h * f + 5 * h + 2 * h * p
    layers = 20 * sliding + 4 * full + 15 * sliding_shared + 3 * full_shared + 42 * every
    table = vocab * 42 * p
    expected = vocab * h + h + layers + table + h * 42 * p + p
    assert model.parameters == expected
    assert model.active_parameters == expected - table
    wide = json.loads(json.dumps(GEMMA4_E4B))
    wide["text_config"]["use_double_wide_mlp"] = True
    assert model_from_config(wide).parameters == expected + 18 * 3 * h * f


def test_hybrid_models_have_constant_state():
    model = load_model("nemotron-h-56b")
    attention = 10
    assert model.kv_bytes_per_token == attention * 2 * 8 * 128 * 2
    conv = 256 * 64 + 2 * 8 * 256
    assert model.state_bytes == 54 * (256 * 64 * 256 + conv * 3) * 2
    lfm = load_model("lfm2-1.2b")
    assert lfm.kv_bytes_per_token == 6 * 2 * 8 * 64 * 2
    assert lfm.state_bytes == 10 * 2048 * 2 * 2


def test_nemotron_3_nano_is_its_model_card():
    config = {
        "model_type": "nemotron_h",
        "torch_dtype": "bfloat16",
        "hidden_size": 2688,
        "intermediate_size": 1856,
        "num_hidden_layers": 52,
        "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1856,
        "moe_shared_expert_intermediate_size": 3712,
        "vocab_size": 131072,
        "mamba_ssm_cache_dtype": "float32",
    }
    model = model_from_config(config)
    assert model.parameters == pytest.approx(31.6e9, rel=0.002)
    assert model.active_parameters == pytest.approx(3.2e9, rel=0.015)
    assert model.precision.state_dtype == "fp32"
    latent = model_from_config(config | {"moe_latent_size": 1024})
    per_layer = 2 * 2688 * 1024 - 128 * 2 * 1856 * (2688 - 1024)
    assert latent.parameters - model.parameters == 23 * per_layer


def test_encoder_decoder_models_have_a_second_cache_of_the_input():
    model = load_model("t5-base")
    assert model.kv_bytes_per_token == 12 * 2 * 12 * 64 * 4
    assert model.cross_kv_bytes_per_token == model.kv_bytes_per_token
    assert len(model.encoder) == len(model.order) == 12
    switch = load_model("switch-base-64")
    assert switch.moe_layers == 12
    assert switch.expert_bytes == 2 * 768 * 3072 * 4


def test_bytes_of_mxfp4_checkpoints_are_their_files():
    # metadata.total_size of model.safetensors.index.json of the two published checkpoints.
    assert load_model("gpt-oss-20b").weight_bytes == 13_761_264_768
    assert load_model("gpt-oss-120b").weight_bytes == 65_248_815_744


def test_bytes_of_an_int4_checkpoint_are_its_files():
    # 594 GB on the hub: experts in groups of 32 with 16-bit scales, all else in 16 bits.
    assert load_model("kimi-k2-thinking").weight_bytes == pytest.approx(594e9, rel=0.002)


def test_expert_bytes_by_hand():
    model = load_model("gpt-oss-20b")
    matrices = 3 * 2880 * 2880 * 4.25 / 8
    assert model.expert_bytes == matrices + (2 * 2880 + 2880) * 2
    assert load_model("mixtral-8x7b").expert_bytes == 3 * 4096 * 14336 * 2
    assert load_model("llama-2-7b").expert_bytes == 0


def test_weight_bytes_of_fp8_checkpoints_leave_head_and_routers():
    model = load_model("deepseek-v3")
    h, vocab = 7168, 129280
    plain = 2 * vocab * h + 58 * (h * 256 + 256) + h
    plain += 61 * (2 * h + 1536 + 512)
    rest = model.parameters - plain
    scale = 1 + 4 / 128**2
    assert model.weight_bytes == pytest.approx(2 * plain + rest * scale, rel=1e-12)
    assert model.precision.compute("expert") == "fp8"
    assert model.precision.compute("head") == "bf16"


def test_overridden_dtypes():
    model = load_model("llama-2-7b")
    small = model.with_precision(weight="int4", kv="fp8")
    vectors = 65 * 4096
    assert small.weight_bytes == (model.parameters - vectors) / 2 + vectors * 2
    assert small.kv_bytes_per_token == model.kv_bytes_per_token / 2
    assert small.parameters == model.parameters
    experts = load_model("mixtral-8x7b").with_precision(expert="mxfp4")
    assert experts.expert_bytes == pytest.approx(3 * 4096 * 14336 * 4.25 / 8)
    assert experts.precision.compute("expert") == "bf16"
    whole = load_model("gpt-oss-20b").with_precision(weight="bf16")
    assert whole.weight_bytes == 2 * whole.parameters


@pytest.mark.parametrize(
    ("dtypes", "message"),
    [
        ({"weigth": "int4"}, "weight"),
        ({"weight": "int44"}, "int4"),
        ({"kv": None}, "a dtype is due"),
    ],
)
def test_wrong_overrides_name_the_nearest(dtypes, message):
    with pytest.raises(ConfigError, match=message):
        load_model("llama-2-7b").with_precision(**dtypes)
