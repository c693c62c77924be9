"""YAML 1.2 (and so JSON) to plain data with the place of every entry; safe on any input.

PyYAML only splits the text into events. Resolving scalars, aliases and keys is done here: PyYAML
follows YAML 1.1 (`1e12` is a text, `no` is false, `010` is eight), drops duplicate keys without a
word, and recurses as deep as the file does.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import yaml

from opbyte.core.errors import ConfigError, Problem, show

__all__ = ["DataPath", "Mark", "NotYamlError", "dotted", "read_yaml"]

DataPath: TypeAlias = tuple[str | int, ...]

DEEPEST = 64
MOST_NODES = 200_000
_LONGEST_INTEGER = 400

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
_TAG = "tag:yaml.org,2002:"


class NotYamlError(ConfigError):
    """The text is no YAML, so that what follows can not be read."""


class Mark(NamedTuple):
    """The place of an entry: the key of a mapping's entry, the first character of a list's item.

    Line and column count from 1; line 0 means that `name` alone is the place.
    """

    name: str
    line: int
    column: int

    def __str__(self) -> str:
        """Return `name:line:column`."""
        return f"{self.name}:{self.line}:{self.column}" if self.line else self.name


def dotted(path: DataPath) -> str:
    """Return a path as `a.b[0].c`."""
    text = ""
    for word in path:
        text += f"[{word}]" if isinstance(word, int) else f".{word}" if text else word
    return text


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not been seen."""

    value: dict[str, Any] | list[Any]
    path: DataPath
    mark: Mark
    anchor: str | None
    key: str | None = None
    key_mark: Mark | None = None
    first: dict[str, Mark] = field(default_factory=dict)
    nodes: int = 1
    height: int = 1


class _Known(NamedTuple):
    """What an anchor stands for; aliases share the value, they never copy it."""

    value: Any
    nodes: int
    height: int


def read_yaml(text: str, name: str, *, any_keys: bool = False) -> tuple[Any, dict[DataPath, Mark]]:
    """Return the data of a text that holds one YAML or JSON document, and the place of each entry.

    Args:
        text: The document.
        name: What errors call it, usually the path of its file.
        any_keys: Take keys such as `5` or `true` as the texts that they are, without complaint.

    Raises:
        ConfigError: With every problem up to the first that makes the rest unreadable.
    """
    return _Reader(name, any_keys=any_keys).read(text)


class _Reader:
    """Builds data from events with an own stack, so that depth is bounded by a rule."""

    def __init__(self, name: str, *, any_keys: bool) -> None:
        self.name = name
        self.any_keys = any_keys
        self.problems: list[Problem] = []
        self.marks: dict[DataPath, Mark] = {}
        self.stack: list[_Open] = []
        self.anchors: dict[str, _Known] = {}
        self.nodes = 0
        self.documents = 0
        self.root: Any = None
        self.has_root = False

    def read(self, text: str) -> tuple[Any, dict[DataPath, Mark]]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            for event in yaml.parse(text, Loader=loader):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            self._syntax(error, text)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line = before.count("\n") + 1
            column = len(before) - before.rfind("\n")
            code = error.character if isinstance(error.character, int) else ord(error.character)
            place = str(Mark(self.name, line, column))
            rule = f"the control character U+{code:04X} is not allowed"
            remedy = "Remove it, or write it as an escape in double quotes."
            problem = Problem(place, "", rule, "", remedy)
            raise NotYamlError([*self.problems, problem]) from None
        if self.problems:
            raise ConfigError(self.problems)
        if not self.has_root:
            what = "it holds only comments" if text.strip() else "it is empty"
            raise ConfigError.one(self.name, "", f"the file must hold settings, {what}")
        return self.root, self.marks

    def _take(self, event: Any) -> None:
        mark = Mark(self.name, event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            self._count(1, mark)
            plain = event.implicit[0] and not event.style
            as_text = self.any_keys and self._awaits_key()
            value = self._scalar(event.value, event.tag, mark, plain=plain and not as_text)
            if plain and event.value == "<<" and self._awaits_key():
                rule = "merge keys (<<) are not part of YAML 1.2"
                self._note(mark, rule, remedy="Repeat the entries, or use `extends`.")
            if event.anchor:
                self.anchors[event.anchor] = _Known(value, 1, 0)
            self._put(value, mark, 1, 0)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor, mark)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            self._enter(event, mark)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            done = self.stack.pop()
            if done.anchor:
                self.anchors[done.anchor] = _Known(done.value, done.nodes, done.height)
            self._put(done.value, done.mark, done.nodes, done.height)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._stop(mark, "a file holds one document", remedy="Remove what follows `---`.")

    def _enter(self, event: Any, mark: Mark) -> None:
        """Open a mapping or a list."""
        self._count(1, mark)
        kind = "map" if isinstance(event, yaml.MappingStartEvent) else "seq"
        if event.tag not in (None, "!", _TAG + kind):
            self._note(mark, f"the tag {_short_tag(event.tag)} is not supported here")
        if len(self.stack) >= DEEPEST:
            self._too_deep(mark)
        if self.stack:
            parent = self.stack[-1]
            path = (*parent.path, self._next_word(parent))
        else:
            path = ()
        if event.anchor:
            self.anchors.pop(event.anchor, None)
        value: dict[str, Any] | list[Any] = {} if kind == "map" else []
        self.stack.append(_Open(value, path, mark, event.anchor))

    def _alias(self, anchor: str | None, mark: Mark) -> None:
        """Put what `anchor` stands for; it counts with its full size."""
        known = self.anchors.get(anchor or "")
        if known is None:
            if any(entry.anchor == anchor for entry in self.stack):
                rule = f"the alias {show(f'*{anchor}')} contains itself"
                self._note(mark, rule, remedy="Write the value.")
            else:
                self._note(mark, f"the alias {show(f'*{anchor}')} has no anchor before it")
            known = _Known(None, 1, 0)
        self._count(known.nodes, mark)
        if len(self.stack) + known.height > DEEPEST:
            self._too_deep(mark)
        self._put(known.value, mark, known.nodes, known.height)

    def _awaits_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].value, dict) and not self._has_key()

    def _has_key(self) -> bool:
        return self.stack[-1].key is not None

    @staticmethod
    def _next_word(parent: _Open) -> str | int:
        return len(parent.value) if isinstance(parent.value, list) else parent.key or ""

    def _put(self, value: Any, mark: Mark, nodes: int, height: int) -> None:
        """Place a finished value: as the root, a list's item, a key or a key's value."""
        if not self.stack:
            self.root, self.has_root = value, value is not None
            self.marks[()] = mark
            return
        parent = self.stack[-1]
        parent.nodes += nodes
        parent.height = max(parent.height, height + 1)
        if isinstance(parent.value, list):
            self.marks[(*parent.path, len(parent.value))] = mark
            parent.value.append(value)
        elif parent.key is None:
            self._put_key(parent, value, mark)
        else:
            self.marks[(*parent.path, parent.key)] = parent.key_mark or mark
            parent.value[parent.key] = value
            parent.key = None

    def _put_key(self, parent: _Open, key: Any, mark: Mark) -> None:
        parent.key_mark = mark
        if not isinstance(key, str):
            parent.key = f"({mark.line}:{mark.column})"
            scalar = not isinstance(key, (dict, list))
            remedy = f'Write "{show(key)}".' if scalar else "Write a plain name."
            self._note(mark, "a key must be text", show(key), remedy, parent.path)
            return
        parent.key = key
        first = parent.first.setdefault(key, mark)
        if first is not mark:
            rule = f"the key {show(key)} is given twice"
            remedy = f"It stands at line {first.line} already; keep one of them."
            self._note(mark, rule, "", remedy, parent.path)

    def _count(self, nodes: int, mark: Mark) -> None:
        self.nodes += nodes
        if self.nodes > MOST_NODES:
            self._stop(
                mark,
                f"a file may hold at most {MOST_NODES:,} values, aliases written out",
                remedy="Long data belong in a CSV, JSONL or Parquet file.",
            )

    def _too_deep(self, mark: Mark) -> None:
        self._stop(mark, f"values may be nested at most {DEEPEST} deep")

    def _note(
        self, mark: Mark, rule: str, value: str = "", remedy: str = "", path: DataPath | None = None
    ) -> None:
        if path is None:
            path = self.stack[-1].path if self.stack else ()
        self.problems.append(Problem(str(mark), dotted(path), rule, value, remedy))

    def _stop(self, mark: Mark, rule: str, remedy: str = "") -> None:
        """Raise everything found so far: the rest of the text can not be read."""
        self.problems.append(Problem(str(mark), "", rule, "", remedy))
        raise ConfigError(self.problems)

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> None:
        place = error.problem_mark or error.context_mark
        mark = Mark(self.name, place.line + 1, place.column + 1) if place else None
        lines = text.split("\n")
        before = lines[mark.line - 1][: mark.column] if mark and mark.line <= len(lines) else ""
        at_tab = "\t" in before and not before.strip()
        rule, remedy = ("a tab can not indent", "Use spaces.") if at_tab else _plain_syntax(error)
        problem = Problem(str(mark or self.name), "", rule, "", remedy)
        raise NotYamlError([*self.problems, problem]) from None

    def _scalar(self, text: str, tag: str | None, mark: Mark, *, plain: bool) -> Any:
        """Return a scalar by the core schema of YAML 1.2 (section 10.3.2), or by its tag."""
        if tag in (None, "!"):
            return self._resolve(text, mark) if plain and tag is None else text
        kind = tag.removeprefix(_TAG) if tag else ""
        if kind == "str":
            return text
        value = self._resolve(text, mark)
        if kind == "float" and type(value) is int:
            return float(value) if abs(value) < 2**1023 else math.inf
        wanted = {"int": int, "float": float, "bool": bool, "null": type(None)}.get(kind)
        if wanted is None:
            self._note(mark, f"the tag {_short_tag(str(tag))} is not supported here", show(text))
        elif type(value) is not wanted:
            self._note(mark, f"the tag !!{kind} does not fit its value", show(text))
        return value

    def _resolve(self, text: str, mark: Mark) -> Any:
        """Return an unquoted scalar as null, a truth value, a number or text."""
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        first = text[0]
        if not (first.isdigit() or first in "+-."):
            return text
        if _INTEGER.fullmatch(text) or _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
            if len(text) > _LONGEST_INTEGER:
                rule = f"a number may have at most {_LONGEST_INTEGER} digits"
                self._note(mark, rule, f"{len(text)} digits")
                return 0
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            return int(text, base)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isinf(number):
                self._note(mark, "a number must be below 1.8e308", show(text))
            return number
        if _INFINITE.fullmatch(text):
            return -math.inf if first == "-" else math.inf
        return math.nan if text in _NAN else text


def _short_tag(tag: str) -> str:
    """Return a tag as it is written, in quotes."""
    return show("!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag)


def _plain_syntax(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    """Return what a YAML syntax error means, and what to do, in words of a user."""
    problem = error.problem or ""
    context = error.context or ""
    opened = ""
    if error.context_mark is not None:
        opened = f"It began at line {error.context_mark.line + 1}."
    if "that cannot start any token" in problem:
        return "a text can not start with this character", "Put the text in quotes."
    if "mapping values are not allowed" in problem:
        return "a ':' stands where no key can be", "Put a text with ': ' in quotes, or indent."
    if "flow sequence" in context:
        return "a list in [ ] is not closed or lacks a comma", opened
    if "flow mapping" in context:
        return "a mapping in { } is not closed or lacks a comma", opened
    if "quoted scalar" in context:
        return f"a quoted text is wrong: {problem}", opened
    if "simple key" in context:
        return "a line here is neither a `key: value` nor a list's item", opened
    if "block mapping" in context or "block collection" in context:
        return "the indentation does not fit the lines before", opened
    return f"this is not YAML: {problem or context or error}", opened
