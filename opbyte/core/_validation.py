"""pydantic's verdict on a document, in plain language and with places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from opbyte.core._document import Document
from opbyte.core._fields import Place, walk
from opbyte.core._messages import explain
from opbyte.core._reader import DataPath, dotted
from opbyte.core.errors import ConfigError, Problem, show
from opbyte.core.parameters import Quantity
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest
from opbyte.core.units import dimension

__all__ = ["judged", "validate"]

Model = TypeVar("Model", bound=BaseModel)

_MOST_PROBLEMS = 99
_WORD = re.compile(r"[^.\[\]]+")


def validate(cls: type[Model], document: Document, at: DataPath = ()) -> Model:
    """Return the part of a document at the path `at` as a `cls`.

    Raises:
        ConfigError: With every problem that pydantic found, in the order of the file.
    """
    problems = Problems()
    found = judged(cls, document, problems, at)
    problems.tell()
    assert found is not None
    return found


def judged(
    cls: type[Model],
    document: Document,
    problems: Problems,
    at: DataPath = (),
    without: Iterable[DataPath] = (),
) -> Model | None:
    """Return the part of a document at the path `at` as a `cls`, without what is wrong in it.

    What is wrong is taken out and the rest judged again, so that rules of whole blocks are judged
    too. They are silent about a block of which an entry was wrong.

    Args:
        cls: What it should be.
        document: The document.
        problems: Takes every problem that pydantic found.
        at: Path of the part.
        without: Entries inside of it that were found wrong before.

    Returns:
        None where nothing is left: something is wrong that it can not do without.
    """
    try:
        data = document.value(at)
    except KeyError:
        if document.whole:
            rule = f"the key {show(at[-1])} is missing"
            problems.add([Problem(document.where(at), dotted(at[:-1]), rule)])
        return None
    wrong = set(without)
    data = _without(data, wrong)
    while True:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            faults = _settled([_fault(e, cls, data) for e in error.errors(include_url=False)], 0)
        told = [f for f in _without_echoes(faults) if document.whole or f.kind != "missing"]
        found = [
            problem
            for fault in told
            for path, problem in _problems(fault, document, at)
            if not any(one[: len(path)] == path for one in wrong)
        ]
        problems.add(found[:_MOST_PROBLEMS])
        if len(found) > _MOST_PROBLEMS:
            more = f"and {len(found) - _MOST_PROBLEMS} more"
            problems.add([Problem(document.name, "", more)])
            return None
        meant = {path for fault in faults for path in fault.meant}
        wrong.update(path for path in meant if not _has(data, path))
        wrong.update(path for f in faults if f.kind != "extra_forbidden" for path in f.inner)
        gone = {path for fault in faults for path in fault.removable}
        if () in gone:
            return None
        left = _without(data, gone)
        if left == data:
            return None
        data = left


def _without(data: Any, gone: set[DataPath]) -> Any:
    """Return a value without entries; what holds them is copied."""
    if not isinstance(data, dict):
        return data
    heads = {path[0] for path in gone if len(path) == 1}
    inner = {key: {p[1:] for p in gone if len(p) > 1 and p[0] == key} for key in data}
    return {
        key: _without(value, inner[key]) if inner[key] else value
        for key, value in data.items()
        if key not in heads
    }


@dataclass(frozen=True, slots=True)
class _Fault:
    """One of pydantic's errors.

    Attributes:
        kind: pydantic's type of error.
        message: pydantic's text.
        context: What pydantic adds for its text.
        given: The value found.
        place: Where it stands; for a missing or unknown key, the mapping around it.
        key: The missing or unknown key, otherwise None.
    """

    kind: str
    message: str
    context: dict[str, Any]
    given: object
    place: Place
    key: str | int | None = None

    @property
    def path(self) -> DataPath:
        """Return the path of what the fault is about."""
        return self.place.path if self.key is None else (*self.place.path, self.key)

    @property
    def inner(self) -> list[DataPath]:
        """Return the paths of what a validator of ours names, otherwise the fault's own."""
        error = self.context.get("error")
        if not isinstance(error, ConfigError):
            return [self.path]
        return [(*self.path, *_words(p.path)) for p in error.problems]

    @property
    def meant(self) -> list[DataPath]:
        """Return the path that a misspelt key stands for."""
        unknown = self.kind == "extra_forbidden"
        near = nearest(str(self.key), self.place.fields()) if unknown else None
        return [(*self.place.path, near)] if near is not None else []

    @property
    def removable(self) -> list[DataPath]:
        """Return the entries to take out; items of a list would move, so the list goes."""
        if self.kind == "missing":
            return [_to_list(self.place.path)]
        return [
            _to_list(path if _has(self.given, path[len(self.path) :]) else self.path)
            for path in self.inner
        ]


def _to_list(path: DataPath) -> DataPath:
    """Return a path up to the first list on its way."""
    return path[: next((i for i, word in enumerate(path) if isinstance(word, int)), len(path))]


def _has(data: object, path: DataPath) -> bool:
    for word in path:
        if not _is_entry(data, word):
            return False
        data = data[word]  # type: ignore[index]
    return True


def _is_entry(data: object, word: str | int) -> bool:
    if isinstance(data, dict):
        return word in data
    return isinstance(data, list) and isinstance(word, int) and word < len(data)


def _fault(error: Any, cls: type[BaseModel], data: object) -> _Fault:
    loc: DataPath = error["loc"]
    kind: str = error["type"]
    key = loc[-1] if kind in ("missing", "extra_forbidden") else None
    place = walk(cls, loc if key is None else loc[:-1], data)
    return _Fault(kind, error["msg"], error.get("ctx") or {}, error["input"], place, key)


def _settled(faults: Sequence[_Fault], level: int) -> list[_Fault]:
    """Return the faults that matter: of a union, those of the member that was most likely meant."""
    kept: list[_Fault] = []
    unions: dict[DataPath, dict[str, list[_Fault]]] = {}
    for fault in faults:
        if len(fault.place.labels) <= level:
            kept.append(fault)
        else:
            path, label = fault.place.labels[level]
            unions.setdefault(path, {}).setdefault(label, []).append(fault)
    for path, members in unions.items():
        if len(members) == 1:
            kept += _settled(next(iter(members.values())), level + 1)
            continue
        meant = [m for m in members.values() if any(f.path != path for f in m)]
        if meant:
            kept += _settled(min(meant, key=len), level + 1)
        else:
            kept.append(_either([m[0] for m in members.values()]))
    return kept


def _either(faults: list[_Fault]) -> _Fault:
    """Return one fault for a value that is none of the kinds that a union allows."""
    rules: dict[str, None] = {}
    for fault in faults:
        error = fault.context.get("error")
        if isinstance(error, ConfigError):
            rules.setdefault(error.problems[0].rule)
        else:
            rules.setdefault(explain(fault.kind, fault.message, fault.context, fault.given).rule)
    context = {"error": ", or ".join(rules)}
    return _Fault("value_error", "", context, faults[0].given, faults[0].place)


def _without_echoes(faults: list[_Fault]) -> list[_Fault]:
    """Drop `missing` where the same mapping holds an unknown key that is nearly its name."""
    typos: set[DataPath] = set()
    for fault in faults:
        if fault.kind == "extra_forbidden":
            near = nearest(str(fault.key), fault.place.fields())
            if near is not None:
                typos.add((*fault.place.path, near))
    return [f for f in faults if f.kind != "missing" or f.path not in typos]


def _problems(fault: _Fault, document: Document, at: DataPath) -> list[tuple[DataPath, Problem]]:
    """Return the problems of one fault, each with the path below `at` where it stands."""
    error = fault.context.get("error")
    if isinstance(error, ConfigError):
        found = [((*fault.path, *_words(p.path)), p) for p in error.problems]
    else:
        found = [(fault.path, _described(fault))]
    if fault.kind == "union_tag_invalid":
        found = [((*fault.path, _discriminator(fault)), p) for _, p in found]
    located = []
    for path, p in found:
        named = path if fault.key is None else fault.place.path
        where = p.where or document.where((*at, *path))
        located.append((path, Problem(where, dotted((*at, *named)), p.rule, p.value, p.remedy)))
    return located


def _described(fault: _Fault) -> Problem:
    """Return rule, value and remedy of a fault that is no `ConfigError`."""
    if fault.kind == "missing":
        what = "the key" if isinstance(fault.key, str) else "the item"
        return Problem(rule=f"{what} {show(fault.key)} is missing", remedy=_addition(fault))
    if fault.kind == "extra_forbidden":
        remedy = _suggestion(fault.key, sorted(fault.place.fields()))
        return Problem(rule=f"no key is called {show(fault.key)}", remedy=remedy)
    if fault.kind in ("union_tag_not_found", "union_tag_invalid"):
        key = _discriminator(fault)
        tags = fault.place.tags(key)
        if fault.kind == "union_tag_invalid":
            tag = fault.context.get("tag", "")
            return Problem(rule=f"no {key} is called {show(tag)}", remedy=_suggestion(tag, tags))
        if isinstance(fault.given, dict):
            remedy = f"Known: {', '.join(tags)}."
            return Problem(rule=f"the key {key!r} is missing", remedy=remedy)
        rule = "must be a mapping"
        return Problem(rule=rule, value=show(fault.given), remedy=f"It needs the key {key!r}.")
    message = explain(fault.kind, fault.message, fault.context, fault.given)
    return Problem("", "", *message)


def _discriminator(fault: _Fault) -> str:
    return str(fault.context.get("discriminator", "kind")).strip("'")


def _addition(fault: _Fault) -> str:
    """Return what to write for a missing key."""
    field = fault.place.fields().get(str(fault.key))
    if field is None:
        return ""
    for metadata in field.metadata:
        if isinstance(metadata, Quantity):
            return f"Add for example `{fault.key}: {dimension(metadata.dimension).example}`."
    return f"It is: {field.description.rstrip('.')}." if field.description else ""


def _suggestion(word: object, known: list[str]) -> str:
    near = nearest(str(word), known)
    hint = f"Did you mean {near!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}." if known else hint.strip()


def _words(path: str) -> DataPath:
    """Return a relative path such as `range[0]` as keys and positions."""
    return tuple(int(w) if w.isdecimal() else w for w in _WORD.findall(path))
