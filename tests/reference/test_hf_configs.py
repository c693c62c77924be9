"""Real `config.json` files: every one loads, and its counts are those of its name or model card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from opbyte.workloads.model_loader import load_model

# Model cards, billions (total, active per token), where the name has no size or one of experts.
CARDS = {
    "MiniMax-M2": (230, 10),
    "DeepSeek-V3": (671, 37),
    "Kimi-K2": (1000, 32),
    "GLM-5": (744, 40),
    "Mixtral-8x7B": (46.7, 12.9),
    "Mixtral-8x22B": (141, 39),
    "Llama-4-Scout": (109, 17),
    "gpt-oss-20b": (21, 3.6),
    "gpt-oss-120b": (117, 5.1),
}
SIZES = re.compile(r"-(\d+(?:\.\d+)?)B(?:-A(\d+(?:\.\d+)?)B)?(?![a-z0-9])")


def published(name: str) -> tuple[float, float]:
    """Return total and active billions of a file's name, 0 where there are none."""
    card = next((sizes for part, sizes in CARDS.items() if part in name), None)
    if card:
        return card
    found = SIZES.search(name)
    assert found, f"no size is known for {name}: add its model card"
    return float(found[1]), float(found[2] or 0)


def tolerance(size: float) -> float:
    """Return one unit of the last digit, or 2 % from three digits on."""
    text = f"{size:g}"
    digits = len(text.replace(".", "").lstrip("0"))
    if digits >= 3:
        return 0.02 * size
    return 10.0 ** -len(text.partition(".")[2])


@pytest.fixture(scope="module")
def configs(reference) -> list[Path]:
    folder = reference / "reference" / "hf_configs"
    if not folder.is_dir():
        pytest.skip(f"no reference configs: {folder} is not a folder")
    return sorted(folder.glob("*_config.json"))


@pytest.fixture(scope="module")
def files(configs) -> list[Path]:
    return [path for path in configs if "hf_quant_config" not in path.name]


def test_every_file_has_the_size_of_its_name(files):
    wrong = []
    for path in files:
        model = load_model(path)
        total, active = published(path.name.removesuffix("_config.json"))
        if "Kimi-K2" in path.name:
            assert 1000 <= model.parameters / 1e9 < 1050
        elif abs(model.parameters / 1e9 - total) >= tolerance(total):
            wrong.append(f"{path.name}: {model.parameters / 1e9:.3f}, not {total}")
        if active and abs(model.active_parameters / 1e9 - active) >= tolerance(active):
            wrong.append(f"{path.name}: {model.active_parameters / 1e9:.3f} active, not {active}")
    assert files
    assert not wrong


def kv_elements(config: dict) -> int:
    """Return the cached elements per token by the formulas of the papers, from the raw fields."""
    text = config.get("text_config", config)
    layers, heads = text["num_hidden_layers"], text["num_attention_heads"]
    if "kv_lora_rank" in text:
        index = text.get("index_head_dim", 0)
        return layers * (text["kv_lora_rank"] + text["qk_rope_head_dim"] + index)
    kv_heads = text.get("num_key_value_heads", heads)
    if "hybrid_override_pattern" in text:
        attention = text["hybrid_override_pattern"].count("*")
        return attention * 2 * kv_heads * text["attention_head_dim"]
    width = text.get("head_dim", text["hidden_size"] // heads)
    if "global_head_dim" in text:
        full = text["layer_types"].count("full_attention")
        wide = text["num_global_key_value_heads"] * text["global_head_dim"]
        return 2 * ((layers - full) * kv_heads * width + full * wide)
    return 2 * layers * kv_heads * width


def test_cache_bytes_per_token_follow_the_formula_of_each_attention(files):
    for path in files:
        model = load_model(path)
        element = 1 if model.precision.kv == "fp8" else 2
        expected = kv_elements(json.loads(path.read_text())) * element
        assert model.kv_bytes_per_token == expected, path.name


def test_the_quantisation_beside_a_config_is_read(configs):
    beside = [path for path in configs if "hf_quant_config" in path.name]
    assert beside
    for path in beside:
        name = path.name.replace("hf_quant_config", "config")
        model = load_model(path.with_name(name))
        wanted = json.loads(path.read_text())["quantization"]
        assert model.precision.weight == wanted["quant_algo"].lower()
        assert model.precision.kv == wanted["kv_cache_quant_algo"].lower()
        assert model.precision.dtype("head") == "bf16", "lm_head is excluded"


def test_quantised_files_have_the_bytes_of_their_formats(files):
    by_name = {path.name.removesuffix("_config.json").partition("--")[2]: path for path in files}
    plain = load_model(by_name["Qwen3-235B-A22B"])
    small = load_model(by_name["Qwen3-235B-A22B-NVFP4"])
    assert small.parameters == plain.parameters
    matrices = plain.class_parameters()
    kept = matrices["head"] + matrices["other"]
    assert small.weight_bytes == pytest.approx(2 * kept + (plain.parameters - kept) * 4.5 / 8)
    fp8 = load_model(by_name["Llama-3.1-70B-Instruct-FP8"])
    kept = 2 * 128256 * 8192 + 161 * 8192
    assert fp8.weight_bytes == 2 * kept + (fp8.parameters - kept)


def test_catalog_models_are_those_of_the_files(files):
    pairs = {
        "Meta-Llama-3.1-8B": "llama-3.1-8b",
        "Mixtral-8x7B-v0.1": "mixtral-8x7b",
        "DeepSeek-V3.2": "deepseek-v3.2",
        "gemma-4-26B-A4B": "gemma-4-26b-a4b",
        "gpt-oss-20b": "gpt-oss-20b",
        "Nemotron-H-56B-Base-8K": "nemotron-h-56b",
        "GLM-5": "glm-5",
    }
    for path in files:
        name = path.name.removesuffix("_config.json").partition("--")[2]
        if name in pairs:
            ours, theirs = load_model(pairs.pop(name)), load_model(path)
            assert (ours.layers, ours.order) == (theirs.layers, theirs.order), name
            assert ours.precision == theirs.precision, name
            assert ours.parameters == theirs.parameters, name
    assert not pairs


def test_a_field_of_another_size_in_a_real_file_is_refused(files, tmp_path):
    """Each file with a new size-bearing field, or a missing or contradictory size, is an error."""
    for path in files:
        config = json.loads(path.read_text())
        text = config.get("text_config", config)
        for change in ({"linear_num_key_heads": 16}, {"num_attention_heads": "32"}):
            wrong = json.loads(json.dumps(config))
            wrong.get("text_config", wrong).update(change)
            target = tmp_path / "config.json"
            target.write_text(json.dumps(wrong, indent=1))
            with pytest.raises(ValueError, match=next(iter(change))) as caught:
                load_model(target)
            assert re.search(r"config\.json:\d+:\d+: ", str(caught.value)), "located"
        assert text["num_hidden_layers"]
