"""Numbers of a mapping that say where they come from: read, and replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel

from opbyte.core.parameters import Parameter

__all__ = ["sourced", "with_values"]

_Block = TypeVar("_Block", bound=BaseModel)


def sourced(block: BaseModel) -> dict[str, Parameter]:
    """Return the parameters of a block that have a source, by dotted path.

    The `source` of a block covers those inside it that have none of their own. Parameters of one
    name, value, source and range are one, as an anchor in a file makes them; the first path names
    them. A path leaves out the index of what is alone in its list.
    """
    found: dict[str, Parameter] = {}
    seen = set()
    for path, parameter in _walk(block, "", None):
        key = _key(path, parameter)
        if key not in seen:
            seen.add(key)
            found[path] = parameter
    return found


def with_values(block: _Block, values: Mapping[str, float]) -> _Block:
    """Return a block in which parameters of `sourced` have other values, SI units."""
    own = sourced(block)
    changed = {_key(path, own[path]): float(value) for path, value in values.items()}
    new: _Block = _replaced(block, "", None, changed)
    return new


def _key(path: str, parameter: Parameter) -> tuple[str, Parameter]:
    return path.rpartition(".")[2], parameter


def _parts(value: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Return what a block, table or list holds: its key there, itself, and its path."""
    dot = f"{path}." if path else ""
    if isinstance(value, BaseModel):
        yield from ((n, getattr(value, n), f"{dot}{n}") for n in type(value).model_fields)
    elif isinstance(value, dict):
        yield from ((n, inner, f"{dot}{n}") for n, inner in value.items())
    elif isinstance(value, tuple):
        single = len(value) == 1
        yield from ((i, v, path if single else f"{dot}{i}") for i, v in enumerate(value))


def _walk(value: Any, path: str, source: str | None) -> Iterator[tuple[str, Parameter]]:
    if isinstance(value, Parameter):
        if value.source or source:
            yield path, replace(value, source=value.source or source)
        return
    source = getattr(value, "source", None) or source
    for _, inner, where in _parts(value, path):
        yield from _walk(inner, where, source)


def _replaced(
    value: Any, path: str, source: str | None, changed: Mapping[tuple[str, Parameter], float]
) -> Any:
    if isinstance(value, Parameter):
        key = _key(path, replace(value, source=value.source or source))
        return replace(value, value=changed[key]) if key in changed else value
    source = getattr(value, "source", None) or source
    new = {n: _replaced(v, where, source, changed) for n, v, where in _parts(value, path)}
    if isinstance(value, BaseModel):
        return value.model_copy(update=new)
    if isinstance(value, dict):
        return new
    return tuple(new.values()) if isinstance(value, tuple) else value
