"""What a config may not say: unknown families, unread fields, contradictions, odd values."""

from __future__ import annotations

import json
import math

import pytest

from opbyte.core.config import load_document
from opbyte.core.errors import ConfigError
from opbyte.workloads.hf_config import model_from_config
from opbyte.workloads.model_loader import load_model, model_catalog

LLAMA = {
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}


ABSENT = object()


def refuse(config: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        model_from_config({k: v for k, v in config.items() if v is not ABSENT})
    return str(caught.value)


def test_the_base_loads():
    assert model_from_config(LLAMA).parameters
    assert model_from_config(MIXTRAL).parameters


@pytest.mark.parametrize(
    "key",
    [
        "num_experts",
        "altup_num_inputs",
        "linear_num_value_heads",
        "kv_lora_rank",
        "num_kv_shared_layers",
        "word_embed_proj_dim",
        "something_new",
    ],
)
def test_an_unread_field_is_named(key):
    message = refuse(LLAMA | {key: 3})
    assert key in message
    assert "llama" in message
    assert "unread" in message


def test_a_misspelt_field_is_answered_with_the_nearest():
    message = refuse(LLAMA | {"num_key_value_head": 2})
    assert "num_key_value_head: " in message
    assert "'num_key_value_heads'" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_theta", 1e6),
        ("attention_dropout", 0.1),
        ("bos_token_id", 1),
        ("image_token_id", 5),
        ("initializer_range", 0.02),
        ("num_nextn_predict_layers", 1),
        ("new_field_without_a_value", None),
        ("pruned_heads", {}),
        ("add_cross_attention", False),
        ("time_step_limit", [0.0, math.inf]),
    ],
)
def test_fields_that_change_no_size_are_let_through(key, value):
    plain = model_from_config(LLAMA)
    assert model_from_config(LLAMA | {key: value}).parameters == plain.parameters


@pytest.mark.parametrize(
    ("key", "value"), [("pruned_heads", {"0": [1]}), ("add_cross_attention", True)]
)
def test_fields_of_every_config_must_have_their_default(key, value):
    assert key in refuse(LLAMA | {key: value})


@pytest.mark.parametrize(
    "value", ["64", 64.0, 64.5, True, 0, -64, 1e30, 10**30, math.nan, math.inf, [64], {"a": 1}, ""]
)
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_must_be_a_whole_number_in_reason(key, value):
    assert f"{key}: llama: " in refuse(LLAMA | {key: value})


@pytest.mark.parametrize(
    "key", ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [None, ABSENT])
def test_a_missing_size_is_named(key, value):
    assert f"{key}: llama: this size is due" in refuse(LLAMA | {key: value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"hidden_size": 66}, "hidden_size: llama: hidden_size must be a multiple"),
        (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads: llama: the number of query"),
        (MIXTRAL | {"num_experts_per_tok": 9}, "num_experts_per_tok: mixtral: a token can visit"),
        (MIXTRAL | {"num_experts": 4}, "num_experts: mixtral: the same as num_local_experts"),
        (LLAMA | {"attention_bias": 1}, "attention_bias: llama: true or false is due"),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings: llama: true or false"),
    ],
)
def test_contradictions_are_named(config, message):
    assert message in refuse(config)


def test_all_mistakes_at_once():
    message = refuse(LLAMA | {"hidden_size": "64", "vocab_size": -1, "num_experts": 2, "odd": 1})
    for key in ("hidden_size", "vocab_size", "num_experts", "odd"):
        assert f"{key}: llama: " in message
    assert len(message.splitlines()) == 4


def test_a_head_width_of_its_own_needs_no_division():
    model = model_from_config(LLAMA | {"hidden_size": 66, "head_dim": 16})
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("family", "field"),
    [
        ("qwen3_next", "linear_num_key_heads"),
        ("qwen3_5", "linear_conv_kernel_dim"),
        ("kimi_linear", "linear_attn_config"),
        ("deepseek_v4", "compress_ratios"),
        ("minimax_m3", "sparse_attention_config"),
        ("gemma3n_text", "altup_num_inputs"),
        ("glm4_moe", "n_routed_experts"),
        ("jamba", "mamba_d_state"),
        ("phimoe", "num_local_experts"),
    ],
)
def test_a_family_outside_the_list_is_refused_with_its_unread_fields(family, field):
    message = refuse(LLAMA | {"model_type": family, field: 4})
    assert f"got '{family}'" in message
    assert f"{field}: unread field" in message
    assert "Known families: bitnet, bloom, deepseek_v3" in message


def test_an_unknown_family_is_answered_with_the_nearest():
    assert "Did you mean 'mixtral'?" in refuse(LLAMA | {"model_type": "mixtrall"})


@pytest.mark.parametrize("value", [None, ABSENT, 3, ["llama"], ""])
def test_a_family_must_be_named(value):
    message = refuse(LLAMA | {"model_type": value})
    assert message.startswith("model_type: ")
    assert "Known families" in message


def test_a_wrapper_that_is_not_known_names_the_inner_fields():
    inner = LLAMA | {"model_type": "gemma3n_text", "altup_num_inputs": 4}
    message = refuse({"model_type": "gemma3n", "text_config": inner})
    assert "text_config.altup_num_inputs: unread field" in message


def test_a_known_wrapper_with_an_unknown_text_part_is_refused():
    inner = LLAMA | {"model_type": "minimax_m3_text"}
    message = refuse({"model_type": "llava", "text_config": inner})
    assert "text_config.model_type" in message


def test_a_wrapper_needs_its_text_part():
    assert "text_config: the language part of gemma3 is due" in refuse({"model_type": "gemma3"})


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("minimax_m2", {"shared_intermediate_size": 64}, "shared_intermediate_size"),
        ("minimax_m2", {"attn_type_list": [1, 0]}, "attn_type_list"),
        ("minimax_m2", {"qk_norm_type": "per_token"}, "qk_norm_type"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size"),
        ("qwen3_moe", {"use_qk_norm": False}, "use_qk_norm"),
        ("qwen3_moe", {"mlp_only_layers": [2]}, "mlp_only_layers"),
        ("mixtral", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt_oss", {"layer_types": ["sliding_attention", "odd"]}, "layer_types"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias"),
    ],
)
def test_variants_of_known_families_that_are_not_modelled_are_refused(name, change, field):
    base = LLAMA | {"model_type": name}
    if name in ("minimax_m2", "qwen3_moe", "mixtral", "gpt_oss"):
        base |= {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        if name != "qwen3_moe":
            base.pop("moe_intermediate_size")
    assert model_from_config(base).parameters
    assert f"{field}: {name}: " in refuse(base | change)


MLA = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"index_topk": 16}, "index_topk"),
        ({"kv_lora_rank": None}, "kv_lora_rank"),
        ({"qk_head_dim": 17}, "qk_head_dim"),
        ({"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ({"moe_layer_freq": [0, 1]}, "moe_layer_freq"),
        ({"n_shared_experts": -1}, "n_shared_experts"),
    ],
)
def test_latent_attention_refuses(change, field):
    assert model_from_config(MLA).parameters
    assert f"{field}: deepseek_v3: " in refuse(MLA | change)


HYBRID = LLAMA | {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M*",
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 8,
    "conv_kernel": 4,
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hybrid_override_pattern": "M*M"}, "num_hidden_layers"),
        ({"hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
        ({"hybrid_override_pattern": None}, "hybrid_override_pattern"),
        ({"layers_block_type": [["mamba"], "moe"]}, "layers_block_type"),
        ({"hybrid_override_pattern": 7}, "hybrid_override_pattern"),
        ({"n_groups": 3}, "n_groups"),
        ({"hybrid_override_pattern": "ME"}, "moe_intermediate_size"),
    ],
)
def test_hybrid_models_refuse(change, field):
    assert model_from_config(HYBRID).parameters
    assert f"{field}: nemotron_h: " in refuse(HYBRID | change)


def test_the_pattern_alone_may_give_the_number_of_layers():
    config = {key: value for key, value in HYBRID.items() if key != "num_hidden_layers"}
    assert model_from_config(config) == model_from_config(HYBRID)
    named = {**config, "hybrid_override_pattern": None, "layers_block_type": ["mamba", "attention"]}
    assert model_from_config(named) == model_from_config(HYBRID)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "llama", "model_type": "mixtral"}', "twice"),
        ('{"model_type": "llama"', "config.json"),
        ("[]", "mapping|object"),
        ("", "empty|nothing"),
        ('{"model_type": "llama", "hidden_size": NaN}', "hidden_size"),
        ('{"model_type": "llama", "hidden_size": 1e400}', "hidden_size"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(path)
    assert "config.json" in str(caught.value)


def test_mistakes_in_a_file_have_a_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"hidden_size": "64", "odd": 1}, indent=2))
    with pytest.raises(ConfigError) as caught:
        load_model(path)
    lines = path.read_text().splitlines()
    for problem in caught.value.problems:
        number = int(problem.where.split(":")[-2])
        assert problem.path in lines[number - 1]


ODD = [0, -1, 3, 10**9, 10**30, 1e30, math.nan, True, "", "64", [], [1], ["x"], {}, {"a": 1}, 1.5]


def one_of_each_family() -> list[str]:
    found: dict[str, str] = {}
    for name in model_catalog().names():
        config = load_document(model_catalog().path(name)).data["config"]
        family = config.get("text_config", config)["model_type"]
        found.setdefault(family, name)
    return sorted(found.values())


@pytest.mark.parametrize("name", one_of_each_family())
def test_odd_values_are_refused_or_counted_but_never_crash(name):
    config = load_document(model_catalog().path(name)).data["config"]
    part = "text_config" if "text_config" in config else None
    refused = 0
    for key in config[part] if part else config:
        for value in ODD:
            changed = json.loads(json.dumps(config))
            (changed[part] if part else changed)[key] = value
            try:
                model = model_from_config(changed)
            except ConfigError:
                refused += 1
            else:
                assert 0 < model.active_parameters <= model.parameters
                assert math.isfinite(model.weight_bytes)
                assert model.kv_bytes_per_token >= 0
    assert refused > len(ODD)
