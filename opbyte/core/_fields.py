"""Follows pydantic's locations through its classes: what is a key, and which keys may stand there.

A location mixes keys of the file with labels of unions: `("memory", "hbm", "dram", "banks")` is
`memory.hbm.banks` of the member that is tagged `dram`. Only the classes can tell them apart, for a
file may well have a key that is called like a tag.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, RootModel
from pydantic.fields import FieldInfo

from opbyte.core._reader import DataPath

__all__ = ["Place", "walk"]

_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a location leads.

    Attributes:
        path: Its keys and positions, without labels.
        labels: For each union on the way: its path, and the label of the member.
        types: What the classes allow there.
    """

    path: DataPath
    labels: tuple[tuple[DataPath, str], ...]
    types: tuple[Any, ...]

    def fields(self) -> dict[str, FieldInfo]:
        """Return the keys that a mapping may have here, with their fields."""
        models = [model for one in self.types for model in _models(one)]
        return {key: field for model in models for key, field in _keys(model)}

    def tags(self, discriminator: str) -> list[str]:
        """Return the values that tell the members of the union here apart."""
        models = [model for one in self.types for model in _models(one)]
        found = (model.model_fields.get(discriminator) for model in models)
        return sorted({tag for f in found if f is not None for tag in _literals(f.annotation)})


def walk(cls: type[BaseModel], loc: DataPath, data: object) -> Place:
    """Follow `loc` from `cls`; `data` decides only where the classes say nothing."""
    found: list[Any] = [_bare(cls)]
    path: list[str | int] = []
    labels: list[tuple[DataPath, str]] = []
    for word in loc:
        unions = [one for one in found if _is_union(one)]
        if unions:
            members = [_bare(m) for union in unions for m in _alternatives(union)]
            found = [m for m in members if _has_label(m, str(word))] or members
            labels.append((tuple(path), str(word)))
            continue
        deeper = [_bare(inner) for one in found for inner in _inside(one, word)]
        if word == "[key]" or not (deeper or _contains(data, word)):
            continue
        found = deeper
        if isinstance(word, int) and data is not None and not isinstance(data, (list, tuple)):
            # One entry that a file wrote without its list.
            continue
        path.append(word)
        data = data[word] if _contains(data, word) else None  # type: ignore[index]
    return Place(tuple(path), tuple(labels), tuple(found))


def _contains(data: object, word: str | int) -> bool:
    if isinstance(data, dict):
        return word in data
    return isinstance(data, (list, tuple)) and isinstance(word, int) and 0 <= word < len(data)


def _bare(annotation: Any) -> Any:
    """Return an annotation without metadata, `| None` and root models around it."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif _is_optional(annotation):
            annotation = _alternatives(annotation)[0]
        elif isinstance(annotation, type) and issubclass(annotation, RootModel):
            annotation = annotation.model_fields["root"].annotation
        else:
            return annotation


def _alternatives(union: Any) -> list[Any]:
    return [one for one in typing.get_args(union) if one is not type(None)]


def _is_either(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_optional(annotation: Any) -> bool:
    return _is_either(annotation) and len(_alternatives(annotation)) == 1


def _is_union(annotation: Any) -> bool:
    return _is_either(annotation) and len(_alternatives(annotation)) > 1


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that an annotation allows, members of unions included."""
    bare = _bare(annotation)
    if _is_union(bare):
        for member in _alternatives(bare):
            yield from _models(member)
    elif _is_model(bare):
        yield bare


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the keys by which a file may name each field."""
    by_name = bool(model.model_config.get("populate_by_name"))
    for name, field in model.model_fields.items():
        alias = field.validation_alias if isinstance(field.validation_alias, str) else field.alias
        if alias:
            yield alias, field
        if not alias or by_name:
            yield name, field


def _inside(annotation: Any, word: str | int) -> Iterator[Any]:
    """Yield what may stand under `word` of a value of type `annotation`."""
    if _is_model(annotation):
        for key, field in _keys(annotation):
            if key == word:
                yield field.annotation
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _MAPPINGS and len(arguments) == 2 and isinstance(word, str):
        yield arguments[1]
    elif origin in _LISTS and arguments and isinstance(word, int):
        fixed = origin is tuple and arguments[-1] is not Ellipsis and word < len(arguments)
        yield arguments[word] if fixed else arguments[0]


def _has_label(annotation: Any, label: str) -> bool:
    """Return whether pydantic labels errors of this member of a union with `label`."""
    if _is_model(annotation):
        tags = (_literals(field.annotation) for field in annotation.model_fields.values())
        return annotation.__name__ == label or any(label in each for each in tags)
    origin = typing.get_origin(annotation) or annotation
    name = getattr(origin, "__name__", str(origin)).lower()
    return label.lower().partition("[")[0] == name


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is not typing.Literal:
        return []
    return [str(one) for one in typing.get_args(annotation)]
