"""The files that users write: read, extended, changed from the command line, validated.

Everything that is wrong with one file is reported at once, each problem with its place.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from opbyte.core._document import Document
from opbyte.core._paths import TRANSPARENT, parse_assignment, resolve_path, set_values
from opbyte.core._reader import (
    DEEPEST,
    MOST_NODES,
    DataPath,
    Mark,
    NotYamlError,
    read_yaml,
)
from opbyte.core._validation import judged, validate
from opbyte.core.catalog import SUFFIXES, is_path, missing_file
from opbyte.core.errors import ConfigError, Problem, show
from opbyte.core.problems import Problems

__all__ = [
    "LARGEST_FILE_BYTES",
    "TRANSPARENT",
    "DataPath",
    "Document",
    "Finder",
    "Mark",
    "judged",
    "load_document",
    "parse_assignment",
    "parse_document",
    "read_text",
    "resolve_path",
    "set_values",
    "validate",
]

LARGEST_FILE_BYTES = 4 * 2**20
_LONGEST_CHAIN = 16

Finder = Callable[[str], Path]


def load_document(
    path: str | os.PathLike[str],
    find: Finder | None = None,
    *,
    any_keys: bool = False,
    check: Callable[[Document], object] | None = None,
    problems: Problems | None = None,
) -> Document:
    """Read a YAML or JSON file, and the files that it extends.

    Args:
        path: The file.
        find: Gives the file of a catalog name, for `extends: name`.
        any_keys: Take keys such as `5` as texts; otherwise they are errors.
        check: Is shown the file before those that it extends; it raises if it is a wrong one.
        problems: Takes what is wrong with the file that it extends; the document is then the file
            alone, and not whole.

    Raises:
        ConfigError: If it can not be read or breaks a rule; with all problems of the file.
    """
    document = _parse(read_text(Path(path)), str(path), any_keys=any_keys)
    if check is not None:
        check(document)
    try:
        return _extended(document, find, (_identity(Path(path)),))
    except ConfigError as error:
        if problems is None:
            raise
        problems.add(error.problems)
    own = {key: value for key, value in document.data.items() if key != "extends"}
    return replace(document, data=own, whole=False)


def parse_document(text: str, name: str = "<text>", find: Finder | None = None) -> Document:
    """Read a document from a text; a path in its `extends` is relative to the folder of `name`.

    Raises:
        ConfigError: If it breaks a rule; with all problems of the text.
    """
    _check_size(len(text), name)
    return _extended(_parse(text, name), find, (_identity(Path(name)),))


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _parse(text: str, name: str, *, any_keys: bool = False) -> Document:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        rule = f"the text must be Unicode, character {error.start} is half of a pair"
        raise ConfigError.one(name, "", rule) from None
    try:
        data, marks = read_yaml(text, name, any_keys=any_keys)
    except NotYamlError:
        if not name.endswith(".json"):
            raise
        marks = {(): Mark(name, 1, 1)}
    if name.endswith(".json"):
        data = _read_json(text, name)
    if not isinstance(data, dict):
        rule = "the top level of a file must be a mapping"
        remedy = "Write lines of `key: value`."
        raise ConfigError.one(str(marks.get((), name)), "", rule, show(data), remedy)
    return Document(data, marks, name)


def _read_json(text: str, name: str) -> Any:
    """Return the data of a JSON text.

    YAML gives the places, but it is no judge of JSON: it forbids some characters, lacks escaped
    surrogate pairs, and folds U+2028 in a text.
    """
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _distinct(pairs, name))
    except json.JSONDecodeError as error:
        rule = f"this is not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        raise ConfigError.one(f"{name}:{error.lineno}:{error.colno}", "", rule) from None
    except RecursionError:
        rule = f"values may be nested at most {DEEPEST} deep"
        raise ConfigError.one(name, "", rule) from None
    level, nodes, height = [data], 1, 0
    while level := [child for value in level for child in _children(value)]:
        nodes += len(level)
        height += 1
        if height > DEEPEST:
            raise ConfigError.one(name, "", f"values may be nested at most {DEEPEST} deep")
        if nodes > MOST_NODES:
            raise ConfigError.one(name, "", f"a file may hold at most {MOST_NODES:,} values")
    return data


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _distinct(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise ConfigError(
            Problem(name, "", f"the key {show(key)} is given twice", "", "Keep one of them.")
            for key in twice
        )
    return data


def read_text(path: Path) -> str:
    """Return the text of a file of at most `LARGEST_FILE_BYTES`.

    Raises:
        ConfigError: If there is none, or it is a folder, too large, binary or not UTF-8.
    """
    name = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(f.name for f in path.iterdir() if f.suffix in SUFFIXES)[:5]
            remedy = f"Name a file in it: {', '.join(inside)}." if inside else "Name a file."
            raise ConfigError.one(name, "", "a file is due here, this is a folder", "", remedy)
        _check_size(status.st_size, name)
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise missing_file(path) from None
    except PermissionError:
        remedy = "Check its permissions."
        raise ConfigError.one(name, "", "the file may not be read", "", remedy) from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError.one(show(name)[1:-1], "", f"the file can not be read: {reason}") from None
    _check_size(len(data), name)
    return _decoded(data, name)


def _check_size(size: int, name: str) -> None:
    if size > LARGEST_FILE_BYTES:
        raise ConfigError.one(
            name,
            "",
            f"a file may hold at most {LARGEST_FILE_BYTES // 2**20} MiB",
            f"{size / 2**20:.1f} MiB" if size > LARGEST_FILE_BYTES + 1 else "more",
            "Long data belong in a CSV, JSONL or Parquet file.",
        )


def _decoded(data: bytes, name: str) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        rule = "the file must be UTF-8, it is UTF-16"
        raise ConfigError.one(f"{name}:1:1", "", rule, "", "Save it as UTF-8.")
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    zero = data.find(b"\0")
    if zero >= 0:
        rule = f"the file must be text, byte {zero} is NUL"
        remedy = "This looks like a binary file."
        raise ConfigError.one(_place(data, zero, name), "", rule, "", remedy)
    try:
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        rule = f"the file must be UTF-8, byte {offset} (0x{data[offset]:02x}) is not"
        raise ConfigError.one(
            _place(data, offset, name), "", rule, "", "Save it as UTF-8."
        ) from None


def _place(data: bytes, offset: int, name: str) -> str:
    """Return `file:line:col` of a byte; the column counts bytes."""
    before = data[:offset]
    return f"{name}:{before.count(10) + 1}:{offset - before.rfind(10)}"


def _extended(document: Document, find: Finder | None, chain: tuple[str, ...]) -> Document:
    """Return `document` merged over what its `extends` names; `chain` are the files so far."""
    if "extends" not in document.data:
        return document
    where = document.where(("extends",))
    named = document.data["extends"]
    if not isinstance(named, str) or not named.strip():
        rule = "`extends` must be the path of a file or a catalog name"
        raise ConfigError.one(where, "extends", rule, show(named))
    path = _base_path(named, document, find, where)
    if (identity := _identity(path)) in chain:
        links = " -> ".join(Path(link).name for link in (*chain[chain.index(identity) :], identity))
        raise ConfigError.one(where, "extends", "files extend each other in a circle", links)
    if len(chain) >= _LONGEST_CHAIN:
        rule = f"at most {_LONGEST_CHAIN} files may extend each other"
        raise ConfigError.one(where, "extends", rule)
    base = _extended(_parse(read_text(path), str(path)), find, (*chain, _identity(path)))
    kinds = base.data.get("kind"), document.data.get("kind", base.data.get("kind"))
    if kinds[0] is not None and kinds[0] != kinds[1]:
        rule = f"a file of kind {show(kinds[1])} can not extend one of kind {show(kinds[0])}"
        raise ConfigError.one(where, "extends", rule, named)
    return _merged(base, document)


def _base_path(named: str, document: Document, find: Finder | None, where: str) -> Path:
    try:
        if is_path(named):
            path = Path(document.name).parent / Path(named).expanduser()
            if not path.exists():
                raise missing_file(path)
            return path
        if find is not None:
            return find(named)
    except ConfigError as error:
        raise ConfigError(
            Problem(where, "extends", p.rule, p.value or named, p.remedy) for p in error.problems
        ) from None
    rule = "`extends` must be the path of a file here"
    raise ConfigError.one(where, "extends", rule, named, f"Write for example {named}.yaml.")


def _merged(base: Document, over: Document) -> Document:
    """Return `over` laid on `base`: mappings merge, everything else (null too) replaces.

    A mapping with the key `value` replaces as well: a value keeps no source that was not its own.
    """
    replaced: set[DataPath] = set()

    def lay(below: Any, above: Any, path: DataPath) -> Any:
        mappings = isinstance(below, dict) and isinstance(above, dict)
        if not mappings or "value" in above:
            replaced.add(path)
            return above
        merged = dict(below)
        for key, value in above.items():
            inner = (*path, key)
            merged[key] = lay(below[key], value, inner) if key in below else value
        return merged

    own = {key: value for key, value in over.data.items() if key != "extends"}
    data = lay(base.data, own, ())
    marks = {p: m for p, m in base.marks.items() if not _under(p, replaced)}
    marks.update((p, m) for p, m in over.marks.items() if p[:1] != ("extends",))
    return Document(data, marks, over.name)


def _under(path: DataPath, tops: set[DataPath]) -> bool:
    return any(path[:length] in tops for length in range(len(path) + 1))
