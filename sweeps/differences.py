"""What differs between two trees of plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from opbyte.core.errors import show

__all__ = ["Difference", "differences"]

ABSENT = "absent"


class Difference(NamedTuple):
    """One difference: where, and both values as text."""

    path: str
    before: str
    after: str


def differences(before: Any, after: Any) -> list[Difference]:
    """Return what differs, by dotted path, in the order of `before`."""
    return list(_walk(before, after, ""))


def _walk(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{path}.{key}" if path else str(key)
            if key in before and key in after:
                yield from _walk(before[key], after[key], inner)
            elif key in after:
                yield from (Difference(p, ABSENT, text) for p, text in _leaves(after[key], inner))
            else:
                yield from (Difference(p, text, ABSENT) for p, text in _leaves(before[key], inner))
    elif before != after:
        yield Difference(path, _text(before), _text(after))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path, _text(value)


def _text(value: Any) -> str:
    if (
        isinstance(value, list)
        and len(value) <= 12
        and all(not isinstance(v, (dict, list)) for v in value)
    ):
        return "[" + ", ".join(map(str, value)) + "]"
    return value if isinstance(value, str) else show(value)
