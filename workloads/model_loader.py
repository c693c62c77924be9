"""Finds and reads models: catalog names, Hugging Face folders and files, YAML, mappings."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from opbyte.core.catalog import Catalog, is_path
from opbyte.core.config import Document, load_document, parse_document, read_text
from opbyte.core.errors import ConfigError, Problem
from opbyte.core.problems import Problems
from opbyte.core.registry import lookup_error
from opbyte.workloads.hf_config import Locate, model_from_config, nowhere
from opbyte.workloads.model import Model
from opbyte.workloads.precision import Precision

__all__ = ["load_model", "model_catalog"]

_KEYS = ("kind", "name", "config", "source", "published", "notes", "dtypes", "extends")
_PUBLISHED = ("parameters", "active", "not_modelled")


def model_catalog() -> Catalog:
    """Return the models that ship with opbyte."""
    return Catalog("model", Path(__file__).parent / "catalog")


def load_model(model: str | os.PathLike[str] | Mapping[str, Any] | Model) -> Model:
    """Return a model.

    Args:
        model: A catalog name (`llama-3.1-8b`), the path of a Hugging Face `config.json` or of its
            folder, the path of a model's YAML file, the mapping of either, or a model. An
            `hf_quant_config.json` beside a `config.json` is read with it.

    Raises:
        ConfigError: If there is no such model, or what describes it has mistakes; all at once.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, Mapping):
        return _from_mapping(model)
    if not is_path(model) and not Path(model).is_dir():
        return _from_file(model_catalog().path(os.fspath(model)))
    path = Path(model).expanduser()
    if path.is_dir():
        path /= "config.json"
        if not path.exists():
            rule = "the folder has no config.json"
            raise ConfigError.one(str(path.parent), "", rule, "", "Name the file itself.")
    path = model_catalog().find(path)
    if path.suffix == ".json":
        return _from_json(path)
    return _from_file(path)


def _find(name: str) -> Path:
    return model_catalog().find(name)


def _from_mapping(data: Mapping[str, Any]) -> Model:
    """Return the model of a mapping: a config's, or a model file's."""
    if "config" in data or data.get("kind") == "model":
        return _from_entry(data, nowhere)
    return model_from_config(data)


def _from_file(path: Path) -> Model:
    problems = Problems()
    document = load_document(path, _find, problems=problems)
    if not document.whole:
        # Its config may stand in the file that was not found.
        problems.add(_entry_problems({"config": {}, **document.data}, document.where))
        problems.tell()
    return _from_document(document)


def _from_document(document: Document) -> Model:
    data = document.data
    if "model_type" in data:
        return model_from_config(data, name=_stem(Path(document.name)), where=document.where)
    kind = data.get("kind")
    if kind != "model":
        at = document.where(("kind",))
        raise ConfigError.one(at, "kind", "a file of kind model is due", kind, "Write kind: model.")
    return _from_entry(data, document.where, _stem(Path(document.name)))


def _from_entry(data: Mapping[str, Any], where: Locate, name: str = "") -> Model:
    """Return the model of a model file: `config`, `source`, `published`, `notes`, `dtypes`.

    `published.not_modelled` is the part of the published count that the model leaves out (a
    vision tower); it is negative where the published count leaves out what the model has.
    """
    problems = Problems()
    problems.add(_entry_problems(data, where))
    config, dtypes = data.get("config"), data.get("dtypes")
    name = data.get("name", name)
    with problems.keep():
        if isinstance(config, Mapping):
            model = model_from_config(config, name=name, where=where, path=("config",))
    try:
        Precision().override(**dtypes if isinstance(dtypes, Mapping) else {})
    except ConfigError as error:
        problems.add(
            replace(p, where=where(("dtypes", p.path)), path=f"dtypes.{p.path}")
            for p in error.problems
        )
    problems.tell()
    notes = data.get("notes", [])
    notes = [notes] if isinstance(notes, str) else notes
    published = data.get("published", {})
    elsewhere = published.get("not_modelled", 0.0)
    model = replace(
        model,
        source=data.get("source", ""),
        published_parameters=float(published.get("parameters", 0.0) - elsewhere),
        published_active=float(published.get("active", 0.0)),
        notes=(*notes, *model.notes),
    )
    return model.with_precision(**dtypes) if dtypes else model


def _entry_problems(data: Mapping[str, Any], where: Locate) -> list[Problem]:
    """Return what is wrong with a model file outside of its config."""
    problems: list[Problem] = []
    for key in data:
        if key not in _KEYS:
            near = lookup_error("field", str(key), _KEYS).problems[0]
            problems.append(Problem(where((key,)), str(key), near.rule, "", near.remedy))
    for key, kinds, due in (
        ("config", Mapping, "a mapping"),
        ("published", Mapping, "a mapping"),
        ("dtypes", Mapping, "a mapping"),
        ("name", str, "a text"),
        ("source", str, "a text"),
        ("notes", (str, list), "a list of texts"),
    ):
        if key in data and not isinstance(data[key], kinds):
            problems.append(Problem(where((key,)), key, f"{due} is due", data[key]))
    if "config" not in data:
        remedy = "Write the fields of the model's config.json under it."
        problems.append(Problem(where(()), "config", "this field is due", "", remedy))
    published = data.get("published")
    return problems + (
        _published_problems(published, where) if isinstance(published, Mapping) else []
    )


def _published_problems(published: Mapping[str, Any], where: Locate) -> list[Problem]:
    problems = []
    for key, value in published.items():
        at, path = where(("published", key)), f"published.{key}"
        if key not in _PUBLISHED:
            near = lookup_error("field", str(key), _PUBLISHED).problems[0]
            problems.append(Problem(at, path, near.rule, "", near.remedy))
        elif isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(Problem(at, path, "a number is due", value))
        elif not (math.isfinite(value) and (value > 0 or key == "not_modelled")):
            problems.append(Problem(at, path, "a positive number is due", value))
    return problems


def _stem(path: Path) -> str:
    """Return a name for the model of a file: the folder's for a plain `config.json`."""
    if path.name == "config.json":
        return path.resolve().parent.name
    return path.stem.removesuffix("_config")


def _from_json(path: Path) -> Model:
    """Return the model of a JSON file; places of keys are looked up only for an error."""
    text = read_text(path)
    data = _parse_json(text, path)
    if data.get("kind") == "model" or "config" in data:
        return _from_document(parse_document(text, str(path)))
    quantisation = None
    beside = _quantisation_file(path)
    if beside.exists():
        quantisation = _parse_json(read_text(beside), beside)

    where = _Places(text, str(path))
    return model_from_config(data, name=_stem(path), quantisation=quantisation, where=where)


class _Places:
    """Finds the place of a key in a JSON text; reads the text for it when first asked."""

    def __init__(self, text: str, name: str) -> None:
        """Keep the text; `name` is the path of its file."""
        self._text = text
        self._name = name
        self._document: Document | None = None

    def __call__(self, path: tuple[str, ...]) -> str:
        """Return `file:line:col`, or the file where its places can not be told."""
        if self._document is None:
            try:
                self._document = parse_document(self._text, self._name)
            except ConfigError:
                self._document = Document({}, {}, self._name)
        return self._document.where(path)


def _quantisation_file(path: Path) -> Path:
    """Return the path of the quantisation file that belongs to a config."""
    prefix = path.name.removesuffix("config.json")
    if prefix == path.name:
        prefix = ""
    return path.with_name(f"{prefix}hf_quant_config.json")


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    """Return a JSON object without keys given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except _TwiceError as error:
        parse_document(text, str(path))
        raise ConfigError.one(str(path), str(error), "this key is given twice") from None
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        parse_document(text, str(path))
        raise ConfigError.one(str(path), "", f"this is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError.one(str(path), "", "the top level of a config must be an object", data)
    return data


class _TwiceError(Exception):
    """A key stands twice in one JSON object."""
