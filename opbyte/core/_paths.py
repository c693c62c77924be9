"""Dotted paths into documents, and values set by them (`--set path=value`, sweep axes)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from opbyte.core._document import Document
from opbyte.core._reader import DataPath, Mark, dotted, read_yaml
from opbyte.core.errors import ConfigError, Problem, show
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest

__all__ = ["TRANSPARENT", "parse_assignment", "resolve_path", "set_values"]

TRANSPARENT = frozenset({"parts", "memory", "units", "ports", "links"})
_LONGEST_PATH = 400
_MOST_SHOWN = 8


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return path and value of `a.b=1.8 TB/s`; the value is read as YAML.

    Raises:
        ConfigError: If there is no `=`, no path, no value, or the value is not YAML.
    """
    path, equals, value = text.partition("=")
    place = f"--set {show(text)[1:-1]}"
    path = path.strip()
    if not equals or not path:
        rule = "a setting must be path=value"
        raise ConfigError.one(place, "", rule, "", "Write for example workload.batch=8.")
    if not value.strip():
        remedy = f"Write {path}=null to set nothing."
        raise ConfigError.one(place, "", "a setting needs a value", "", remedy)
    try:
        return path, read_yaml(value.strip(), "value")[0]
    except ConfigError as error:
        if value.strip() in {"null", "~", "Null", "NULL"}:
            return path, None
        raise ConfigError(
            Problem(place, path, p.rule, p.value, p.remedy) for p in error.problems
        ) from None


def resolve_path(
    data: Mapping[str, Any], path: str, transparent: Collection[str] = TRANSPARENT
) -> tuple[str, ...]:
    """Return the full path of the entry that `path` means.

    Words in `transparent` may be left out where no other entry is then meant; a path written in
    full always means itself. A last word that is absent is allowed where all before it resolve:
    the schema judges it. Keys that hold dots (`expert.weight`) match several words. Positions in
    lists are numbers and come back as text of digits.

    Raises:
        ConfigError: If nothing or several entries are meant; with the nearest name or all of them.
    """
    words = path.split(".")
    if not path or "" in words or len(path) > _LONGEST_PATH:
        remedy = "Write names joined by single dots, such as rdu.hbm.phy.bandwidth."
        raise ConfigError.one("", show(path)[1:-1], "this is not a path", "", remedy)
    found = list(_matches(data, words, transparent))
    if not found and len(words) == 1:
        return (path,)
    if not found:
        found = [
            (*parent, words[-1])
            for parent in _matches(data, words[:-1], transparent)
            if isinstance(_at(data, parent), Mapping)
        ]
    exact = [p for p in found if len(p) <= len(words) and dotted(p) == path]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        candidates = sorted(dotted(p) for p in found)
        listed = ", ".join(candidates[:_MOST_SHOWN])
        rule = f"the path means {len(candidates)} entries"
        raise ConfigError.one("", path, rule, "", f"Write one of: {listed}.")
    raise _unknown(data, words, transparent)


def set_values(
    document: Document,
    values: Mapping[str, Any],
    transparent: Collection[str] = TRANSPARENT,
    origin: str = "--set",
    places: Mapping[str, str] | None = None,
    problems: Problems | None = None,
) -> Document:
    """Return a copy of `document` with the entries at dotted paths replaced.

    Args:
        document: The document; it stays as it is.
        values: New values by path; see `resolve_path`.
        transparent: Words that paths may leave out.
        origin: What errors call the place of the new values.
        places: Path -> place of those values that stand somewhere, such as `study.yaml:3:5`.
        problems: Takes the paths that do not resolve; the others are set.

    Raises:
        ConfigError: With every path that does not resolve, without `problems`.
    """
    data = _copied(document.data)
    marks = dict(document.marks)
    wrong = problems if problems is not None else Problems()
    taken: dict[tuple[str, ...], str] = {}
    for path, value in values.items():
        given = (places or {}).get(path)
        place = given or f"{origin} {show(path)[1:-1]}"
        try:
            full = resolve_path(document.data, path, transparent)
        except ConfigError as error:
            wrong.add(Problem(place, p.path, p.rule, p.value, p.remedy) for p in error.problems)
            continue
        if full in taken:
            rule = f"{taken[full]} and {path} are the same entry"
            wrong.add([Problem(place, path, rule, "", "Set it once.")])
            continue
        taken[full] = path
        real = _put(data, full, _copied(value))
        for mark in [m for m in marks if m[: len(real)] == real]:
            del marks[mark]
        marks[real] = Mark(given or f"{place}={_short(value)}", 0, 0)
    if problems is None:
        wrong.tell()
    return replace(document, data=data, marks=marks)


def _copied(value: Any) -> Any:
    """Return a copy in which nothing is shared: an entry set later must not show up elsewhere."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 40 else show(value)


def _matches(
    data: Any, words: list[str], transparent: Collection[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the path of every entry that `words` may mean."""
    if not words:
        yield ()
        return
    if isinstance(data, list):
        if words[0].isdecimal() and len(words[0]) < 10 and int(words[0]) < len(data):
            for rest in _matches(data[int(words[0])], words[1:], transparent):
                yield (words[0], *rest)
        return
    if not isinstance(data, Mapping):
        return
    for count in range(1, len(words) + 1):
        key = ".".join(words[:count])
        if key in data:
            for rest in _matches(data[key], words[count:], transparent):
                yield (key, *rest)
    for key in data:
        if key in transparent and key != words[0]:
            for rest in _matches(data[key], words, transparent):
                yield (key, *rest)


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for word in path:
        data = data[int(word)] if isinstance(data, list) else data[word]
    return data


def _put(data: Any, path: tuple[str, ...], value: Any) -> DataPath:
    """Set an entry in place and return its path with list positions as numbers."""
    real: list[str | int] = []
    for position, word in enumerate(path):
        step: str | int = int(word) if isinstance(data, list) else word
        real.append(step)
        if position == len(path) - 1:
            data[step] = value
        else:
            data = data[step]
    return tuple(real)


def _unknown(data: Any, words: list[str], transparent: Collection[str]) -> ConfigError:
    """Return the error for the first word that nothing matches, with the nearest name."""
    known = 0
    while any(True for _ in _matches(data, words[: known + 1], transparent)):
        known += 1
    parents = [_at(data, p) for p in _matches(data, words[:known], transparent)]
    names: set[str] = set()
    for parent in parents:
        names.update(_names(parent, transparent))
    before = ".".join(words[:known])
    if not names:
        rule = f"{before} has no parts of its own"
        return ConfigError.one("", ".".join(words), rule, "", f"Set {before} as a whole.")
    word = words[known]
    near = nearest(word, names)
    listed = ", ".join(sorted(names)[:_MOST_SHOWN]) + (", .." if len(names) > _MOST_SHOWN else "")
    hint = f"Did you mean {near!r}? " if near else ""
    rule = f"nothing is called {word!r}" + (f" in {before}" if before else " here")
    return ConfigError.one("", ".".join(words), rule, "", f"{hint}Known: {listed}.")


def _names(data: Any, transparent: Collection[str]) -> Iterator[str]:
    """Yield the words that may follow."""
    if isinstance(data, list):
        yield from (str(i) for i in range(len(data)))
    elif isinstance(data, Mapping):
        for key, value in data.items():
            if key in transparent:
                yield from _names(value, transparent)
            else:
                yield str(key)
