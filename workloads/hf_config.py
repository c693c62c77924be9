"""Builds a model from a Hugging Face `config.json`, read as plain JSON.

Every field is read, known to change nothing, or refused by name: a variant that this module does
not know is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from opbyte.core.errors import ConfigError, Problem
from opbyte.core.registry import nearest
from opbyte.workloads.families import FAMILIES, WRAPPERS, Fields
from opbyte.workloads.families.harmless import is_harmless
from opbyte.workloads.model import Model
from opbyte.workloads.quantisation import read_precision

TEXT_KEYS = ("text_config", "language_config", "llm_config")
Locate = Callable[[tuple[str, ...]], str]


def nowhere(path: tuple[str, ...]) -> str:
    """Return no place: for configs that come from no file."""
    del path
    return ""


def model_from_config(
    config: Mapping[str, Any],
    *,
    name: str = "",
    quantisation: Mapping[str, Any] | None = None,
    where: Locate = nowhere,
    path: tuple[str, ...] = (),
) -> Model:
    """Return the model that a `config.json` describes.

    Vision and audio towers and multi-token-prediction layers are left out; `notes` says so.

    Args:
        config: The config's mapping.
        name: Name of the model; its family where empty.
        quantisation: The mapping of an `hf_quant_config.json` beside it.
        where: Returns `file:line:col` of a path of keys.
        path: Keys that lead to `config` in its file.

    Raises:
        ConfigError: If the family is unknown, a size is missing or contradicts another, a field is
            not read, or the quantisation is unknown; all such mistakes at once.
    """
    inner, inner_path, nested, notes = _text_part(config, where, path)
    family = _family(inner, where, inner_path)
    fields = Fields(
        family,
        inner,
        lambda key: where((*inner_path, key)),
        ".".join(inner_path),
        FAMILIES[family].defaults if nested else None,
    )
    if nested:
        _inherit_tie(config, inner, fields)
    model = _built(fields)
    _note_multi_token(inner, notes)
    precision, more = read_precision(config, inner, model, quantisation, where, path)
    said = (*notes, *fields.notes, *more)
    return replace(model, name=name or family, precision=precision, notes=said)


def _built(fields: Fields) -> Model:
    """Return the family's model; mistakes in fields go before what they bring about."""
    try:
        model = FAMILIES[fields.family].read(fields)
    except (ArithmeticError, TypeError, ValueError, IndexError):
        fields.finish()
        raise
    fields.finish()
    return model


def _text_part(
    config: Mapping[str, Any], where: Locate, path: tuple[str, ...]
) -> tuple[Mapping[str, Any], tuple[str, ...], bool, list[str]]:
    """Return the text part of a config, the path to it, and whether it is nested."""
    kind = config.get("model_type")
    key = next((k for k in TEXT_KEYS if isinstance(config.get(k), Mapping)), None)
    if key is None:
        return config, path, False, []
    if not isinstance(kind, str) or kind not in WRAPPERS:
        _refuse(config, kind, where, path)
    inner = dict(config[key])
    if inner.get("model_type") is None:
        inner["model_type"] = WRAPPERS[str(kind)]
    return inner, (*path, key), True, ["only the text part is modelled, without vision and audio"]


def _family(config: Mapping[str, Any], where: Locate, path: tuple[str, ...]) -> str:
    """Return the family that reads a config."""
    kind = config.get("model_type")
    if kind == "llama" and _is_bitnet(config):
        return "bitnet"
    if isinstance(kind, str) and kind in WRAPPERS:
        at = (*path, TEXT_KEYS[0])
        rule = f"the language part of {kind} is due under text_config"
        raise ConfigError.one(where(path), ".".join(at), rule, config.get(TEXT_KEYS[0]))
    if not isinstance(kind, str) or kind not in FAMILIES:
        _refuse(config, kind, where, path)
    return str(kind)


def _is_bitnet(config: Mapping[str, Any]) -> bool:
    """Return whether a config with Llama's name has BitNet's norms (bitnet_b1_58-3B)."""
    return "weight_bits" in config or "bitnet" in str(config.get("architectures")).lower()


def _refuse(config: Mapping[str, Any], kind: object, where: Locate, path: tuple[str, ...]) -> None:
    """Raise the error for an unknown family: nearest name, all names, and the unread fields."""
    known = sorted({*FAMILIES, *WRAPPERS})
    near = nearest(kind, known) if isinstance(kind, str) else None
    remedy = f"Did you mean {near!r}? " if near else ""
    remedy += f"Known families: {', '.join(known)}."
    rule = "no family of models is called so" if kind is not None else "a model_type is due"
    shown = repr(kind) if isinstance(kind, str) else kind
    dotted = ".".join((*path, "model_type"))
    problems = [Problem(where((*path, "model_type")), dotted, rule, shown, remedy)]
    nested = next((key for key in TEXT_KEYS if isinstance(config.get(key), Mapping)), None)
    data, at = (config[nested], (*path, nested)) if nested else (config, path)
    for key, value in data.items():
        if value is not None and not is_harmless(str(key)):
            rule = f"unread field of the unknown family {kind}"
            problems.append(Problem(where((*at, key)), ".".join((*at, str(key))), rule, value))
    raise ConfigError(problems)


def _inherit_tie(outer: Mapping[str, Any], inner: Mapping[str, Any], fields: Fields) -> None:
    """Take `tie_word_embeddings` from the outer config where the text part has none."""
    outside, inside = outer.get("tie_word_embeddings"), inner.get("tie_word_embeddings")
    if inside is None and outside is not None:
        fields.data = {**inner, "tie_word_embeddings": outside}
    elif outside is not None and inside != outside:
        fields.notes.append(
            f"tie_word_embeddings is {inside} in the text part, which counts, and {outside} outside"
        )


def _note_multi_token(config: Mapping[str, Any], notes: list[str]) -> None:
    layers = config.get("num_nextn_predict_layers") or config.get("num_mtp_modules")
    if layers:
        notes.append(f"{layers} multi-token-prediction layers are left out of all counts")
