"""Parameters, bytes and cache sizes of models, against published counts and hand formulas."""

from __future__ import annotations

import json
import math
import pickle
import time

import pytest

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.workloads.hf_config import model_from_config
from opbyte.workloads.model import Attention, LatentAttention, Model, MoeFfn
from opbyte.workloads.model_loader import load_model, model_catalog
from opbyte.workloads.model_set import Adapter, ModelSet
from opbyte.workloads.modules import modules_of
from opbyte.workloads.precision import MATRIX_CLASSES

NAMES = model_catalog().names()
LLAMA = {
    "model_type": "llama",
    "torch_dtype": "float16",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


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


def test_loading_a_catalog_model_is_fast():
    load_model("deepseek-v3")

    def seconds() -> float:
        start = time.perf_counter()
        load_model("deepseek-v3")
        return time.perf_counter() - start

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


def test_sets_of_whole_models():
    model = load_model("llama-2-7b")
    experts = ModelSet(model, 150)
    assert experts.bytes_per_model == 6_738_415_616 * 2
    assert experts.weight_bytes == 150 * experts.bytes_per_model
    both = ModelSet.of([(model, 2), (load_model("gpt-2"), 3)])
    assert both.parameters == 2 * 6_738_415_616 + 3 * 124_439_808


def test_adapters_share_their_base():
    model = load_model("llama-3.1-8b")
    adapters = ModelSet(model, 100, Adapter(16, ("q_proj", "v_proj", "down_proj")))
    one = 32 * 16 * ((4096 + 4096) + (4096 + 1024) + (14336 + 4096))
    assert adapters.bytes_per_model == one * 2
    assert adapters.shared_bytes == model.weight_bytes
    assert adapters.weight_bytes == model.weight_bytes + 100 * one * 2
    assert adapters.parameters == model.parameters + 100 * one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adapter(0), "rank"),
        (lambda: Adapter(rank=True), "rank"),
        (lambda: Adapter(8, "q_proj"), "targets"),
        (lambda: ModelSet(load_model("gpt-2"), 0), "count"),
        (lambda: ModelSet.of([]), "at least one"),
    ],
)
def test_wrong_sets(make, message):
    with pytest.raises(WorkloadError, match=message):
        make()


def test_adapter_targets_must_exist():
    with pytest.raises(ConfigError, match="q_proj"):
        ModelSet(load_model("gpt-2"), 1, Adapter(8, ("q_pro",)))


def test_a_catalog_name_a_file_a_folder_and_a_mapping_are_the_same_model(tmp_path):
    path = tmp_path / "some-model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(LLAMA))
    expected = load_model("llama-2-7b").parameters
    for given in (path, str(path), path.parent, str(path.parent), LLAMA, {"config": LLAMA}):
        assert load_model(given).parameters == expected
    assert load_model(path).name == "some-model"
    model = load_model("llama-2-7b")
    assert load_model(model) is model
    assert pickle.loads(pickle.dumps(model)) == model


def test_a_model_file_of_the_users_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: model\nextends: llama-2-7b\nname: mine\n"
        "config: {num_hidden_layers: 2}\ndtypes: {weight: int8}\nnotes: a toy\n"
    )
    model = load_model(path)
    assert model.name == "mine"
    assert len(model.order) == 2
    assert model.precision.weight == "int8"
    assert "a toy" in model.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: machine\n", "kind: a file of kind model is due"),
        ("kind: model\n", "config: this field is due"),
        ("kind: model\nconfig: {}\nsorce: x\n", "source"),
        ("kind: model\nconfig: []\n", "a mapping is due"),
        ("kind: model\nconfig: {}\npublished: {parameters: -1}\n", "positive"),
        ("kind: model\nconfig: {}\npublished: {params: 1}\n", "parameters"),
        ("kind: model\nconfig: {model_type: llama}\n", "hidden_size"),
    ],
)
def test_wrong_model_files_say_where(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(path)
    assert "wrong.yaml" in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b"):
        load_model("llama-3.1-8")


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_model(tmp_path)


def test_missing_keys_of_a_text_part_have_the_librarys_values():
    config = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "sliding_window": 1024,
        },
    }
    assert model_from_config(config).parameters == load_model("gemma-3-4b").parameters
    llava = {"model_type": "llava", "text_config": {"vocab_size": 32064}}
    assert model_from_config(llava).parameters == load_model("llava-1.5-7b").parameters


def test_tied_embeddings_named_outside_the_text_part():
    text = LLAMA | {"model_type": "qwen3_vl_text", "head_dim": 128}
    outer = {"model_type": "qwen3_vl", "text_config": text}
    untied = model_from_config(outer | {"tie_word_embeddings": False})
    tied = model_from_config(outer | {"tie_word_embeddings": True})
    assert untied.parameters - tied.parameters == 32000 * 4096
    text["tie_word_embeddings"] = True
    both = model_from_config(outer | {"tie_word_embeddings": False, "text_config": text})
    assert both.tied
    assert any("tie_word_embeddings" in note for note in both.notes)


def windows(config: dict) -> list[int]:
    model = model_from_config(config)
    return [model.layers[i].mixer.window for i in model.order]


def test_which_layers_slide():
    qwen = LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 512}
    assert windows(qwen | {"max_window_layers": 30}) == [0] * 30 + [512] * 2
    assert windows(qwen | {"use_sliding_window": False}) == [0] * 32
    mistral = LLAMA | {"model_type": "mistral"}
    assert set(windows(mistral)) == {4096}, "the library's default"
    assert set(windows(mistral | {"sliding_window": None})) == {0}
    gemma = load_model("gemma-3-12b")
    full = [i for i, n in enumerate(gemma.order) if not gemma.layers[n].mixer.window]
    assert full == [5, 11, 17, 23, 29, 35, 41, 47]


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


def test_a_model_is_a_value():
    assert load_model("gpt-2") == load_model("gpt-2")
    assert isinstance(load_model("gpt-2"), Model)
