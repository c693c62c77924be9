"""`count: 0`: a part that a machine could have and has not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from opbyte.core.config import Document

__all__ = ["absent_parts", "is_inside", "without_absent"]


def absent_parts(document: Document) -> tuple[str, ...]:
    """Return the short paths of the parts whose count is 0; what is inside them is not named."""
    return tuple(_absent(document.data.get("parts"), ""))


def without_absent(document: Document) -> Document:
    """Return a machine document without parts of count 0, links to them and ports in them.

    Mappings stay as they are: one that names such a part is refused where it is used.
    """
    gone = absent_parts(document)
    if not gone:
        return document
    data = {**document.data, "parts": _present(document.data["parts"], "", gone)}
    links = document.data.get("links")
    if isinstance(links, dict):
        data["links"] = {name: link for name, link in links.items() if not _leads(link, gone)}
    return replace(document, data=data)


def is_inside(path: str, parts: tuple[str, ...]) -> bool:
    """Return whether a path is one of these parts or something in it."""
    return any(path == part or path.startswith(f"{part}.") for part in parts)


def _absent(parts: Any, under: str) -> Iterator[str]:
    for name, part in parts.items() if isinstance(parts, dict) else ():
        if not isinstance(part, dict):
            continue
        if _is_zero(part.get("count", 1)):
            yield f"{under}{name}"
        else:
            yield from _absent(part.get("parts"), f"{under}{name}.")


def _is_zero(count: Any) -> bool:
    """Return whether validation would read a count as 0: an axis writes 0.0, a user perhaps "0"."""
    try:
        return float(count) == 0.0
    except (TypeError, ValueError):
        return False


def _leads(link: Any, gone: tuple[str, ...]) -> bool:
    ends = link.get("ends") if isinstance(link, dict) else None
    return isinstance(ends, list) and any(is_inside(str(end), gone) for end in ends)


def _present(parts: dict[str, Any], under: str, gone: tuple[str, ...]) -> dict[str, Any]:
    kept = {}
    for name, part in parts.items():
        if f"{under}{name}" in gone:
            continue
        whole = dict(part) if isinstance(part, dict) else part
        if isinstance(whole, dict):
            if isinstance(whole.get("parts"), dict):
                whole["parts"] = _present(whole["parts"], f"{under}{name}.", gone)
            if isinstance(whole.get("units"), dict):
                own = whole.get("memory") or {}
                whole["units"] = {n: _unit(u, own, gone) for n, u in whole["units"].items()}
        kept[name] = whole
    return kept


def _unit(unit: Any, memories: Any, gone: tuple[str, ...]) -> Any:
    """Return a unit without its ports in parts that are gone; one that has no other keeps them."""
    at = unit.get("at") if isinstance(unit, dict) else None
    if not isinstance(at, list):
        return unit
    left = [p for p in at if str(p).split(".")[0] in memories or not is_inside(str(p), gone)]
    return {**unit, "at": left} if left and len(left) < len(at) else unit
