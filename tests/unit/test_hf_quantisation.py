"""Stored formats of checkpoints: each method, what it leaves alone, and what is refused."""

from __future__ import annotations

import json

import pytest

from opbyte.core.errors import ConfigError
from opbyte.workloads.hf_config import model_from_config
from opbyte.workloads.model_loader import load_model

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


def refuse(config: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        model_from_config(config)
    return str(caught.value)


def quantised(quantisation: object) -> dict:
    return LLAMA | {"quantization_config": quantisation}


@pytest.mark.parametrize(
    ("quantisation", "message"),
    [
        ({"quant_method": "aqlm"}, "quant_method: this quantisation is not known, got aqlm"),
        ({"quant_method": "gptqq"}, "Did you mean 'gptq'?"),
        ({"bits": 4}, "a quantisation method is due"),
        ({"quant_method": "gptq", "bits": 3}, "weights of 2, 4 or 8 bits are known, got 3"),
        ({"quant_method": "gptq"}, "bits: a whole number is due"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"a": 1}}, "formats that differ"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}},
                "sparsity_config": {"format": "sparse-24-bitmask"},
            },
            "sparse weights are not known",
        ),
        ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, "only integers"),
        ({"quant_method": "compressed-tensors"}, "config_groups: at least one group"),
        ({"quant_method": "modelopt", "quant_algo": "FP9"}, "Did you mean 'FP8'?"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "a list of module names"),
        ({"quant_method": "mxfp4"}, "no matrix of this model is quantised"),
        ({"quant_method": "bitsandbytes"}, "load_in_4bit or load_in_8bit must be true"),
        ("fp8", "a mapping is due"),
    ],
)
def test_unknown_quantisation_is_an_error(quantisation, message):
    assert message in refuse(quantised(quantisation))


@pytest.mark.parametrize("value", ["float17", 16, "int7"])
def test_an_unknown_type_is_an_error(value):
    assert "torch_dtype: no known type" in refuse(LLAMA | {"torch_dtype": value})


MATRICES = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)


PLAIN = 2 * 100 * 64 + 5 * 64


@pytest.mark.parametrize(
    ("quantisation", "bits", "operand"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, 8, "fp8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, 4 + 20 / 32, "bf16"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8, "bf16"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, 4 + 20 / 128, "bf16"),
        ({"quant_method": "bitnet"}, 2, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5, "bf16"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, 4.5, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "type": "int", "group_size": 32},
                    }
                },
                "ignore": ["lm_head"],
            },
            4.5,
            "bf16",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                        "input_activations": {"num_bits": 8, "type": "float"},
                    }
                },
                "ignore": ["re:.*lm_head"],
            },
            8,
            "fp8",
        ),
    ],
)
def test_stored_bytes_of_each_method(quantisation, bits, operand):
    model = model_from_config(quantised(quantisation))
    assert model.weight_bytes == pytest.approx(MATRICES * bits / 8 + 2 * PLAIN)
    assert model.precision.compute("ffn") == operand


@pytest.mark.parametrize(
    ("excluded", "kept"),
    [
        (["model.layers.0.self_attn"], 64 * 64 * 2 + 64 * 32 * 2),
        (["model.layers.*.self_attn"], 2 * (64 * 64 * 2 + 64 * 32 * 2)),
        (["self_attn"], 2 * (64 * 64 * 2 + 64 * 32 * 2)),
        (["re:.*layers\\.1\\.mlp.*"], 3 * 64 * 160),
        (["*down_proj*"], 2 * 64 * 160),
        (["model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj"], 2 * 64 * 160),
        (["visual.blocks.0", "model.layers.7.mlp", "gate"], 0),
        (["model.layers.1"], 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160),
    ],
)
def test_excluded_modules_stay_as_they_are(excluded, kept):
    words = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", *excluded]}
    model = model_from_config(quantised(words))
    assert model.weight_bytes == pytest.approx(MATRICES - kept + 2 * (PLAIN + kept))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ({"dynamic": {"-:.*self_attn.*": {}}}, 2 * (64 * 64 * 2 + 64 * 32 * 2)),
        ({"extra_config": {"model.layers.0.mlp": {"bits": 16}}}, 3 * 64 * 160),
        (
            {"modules_in_block_to_quantize": [["mlp.gate_proj", "mlp.up_proj"], ["self_attn"]]},
            2 * 64 * 160,
        ),
    ],
)
def test_integer_formats_may_leave_modules_alone(words, kept):
    words = {"quant_method": "gptq", "bits": 8, "group_size": -1, **words}
    model = model_from_config(quantised(words))
    assert model.weight_bytes == pytest.approx(MATRICES - kept + 2 * (PLAIN + kept))


def test_mixed_formats_by_module():
    layers = {
        f"model.layers.{i}.{part}": {"quant_algo": algorithm}
        for i in range(2)
        for part, algorithm in (
            ("self_attn.q_proj", "FP8"),
            ("self_attn.k_proj", "FP8"),
            ("mlp.gate_proj", "NVFP4"),
            ("mlp.up_proj", "NVFP4"),
            ("mlp.down_proj", "NVFP4"),
        )
    }
    words = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    model = model_from_config(LLAMA, quantisation={"quantization": words})
    fp8, fp4 = 2 * (64 * 64 + 64 * 32), 2 * 3 * 64 * 160
    rest = PLAIN + MATRICES - fp8 - fp4
    assert model.weight_bytes == pytest.approx(fp8 + fp4 * 4.5 / 8 + 2 * rest)


def test_a_cache_type_may_be_all_that_is_quantised():
    words = {"quant_algo": None, "kv_cache_quant_algo": "FP8"}
    model = model_from_config(LLAMA, quantisation={"quantization": words})
    assert model.precision.kv == "fp8"
    assert model.weight_bytes == 2 * model.parameters


def test_a_quantisation_file_beside_the_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    beside = tmp_path / "hf_quant_config.json"
    words = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    beside.write_text(json.dumps({"quantization": words}))
    assert load_model(tmp_path).precision.weight == "fp8"
    words["quant_algo"] = "FP9"
    beside.write_text(json.dumps({"quantization": words}))
    with pytest.raises(ConfigError, match=r"hf_quant_config\.json.*FP9"):
        load_model(tmp_path)
