"""Where models come from, sets of models, and what nested configs leave out."""

from __future__ import annotations

import json
import pickle

import pytest

from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.workloads.hf_config import model_from_config
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.model_set import Adapter, ModelSet

LLAMA = {
    "model_type": "llama",
    "torch_dtype": "float16",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


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


def test_a_model_is_a_value():
    assert load_model("gpt-2") == load_model("gpt-2")
    assert isinstance(load_model("gpt-2"), Model)
