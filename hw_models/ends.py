"""Names in a machine's file: the ports that units are at, and what links join.

They are judged on the file as it is written, so that another mistake of it hides none of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from opbyte.core.config import DataPath, Document
from opbyte.core.errors import Problem
from opbyte.core.registry import nearest
from opbyte.hw_models.machine_file import STRUCTURE, Part

__all__ = ["unknown_names"]


def unknown_names(document: Document) -> Iterator[Problem]:
    """Yield the problems of units at ports, and of links to parts and ports, that are not there."""
    parts = list(_parts(document.data.get("parts"), ("parts",), ""))
    ports = [port for _, path, part in parts for port in _ports(path, part)]
    known = [*(path for _, path, _ in parts), *ports]
    # What a misspelt word of the format holds may be anything.
    opaque = [path for _, path, part in parts if _misspells(part, STRUCTURE, Part.model_fields)]
    for at, path, part in parts:
        for name, unit in _blocks(part, "units"):
            for port in _texts(unit.get("at")):
                if not {f"{path}.{port}", port} & set(ports) and not _inside(path, opaque):
                    full, rule = (*at, "units", name, "at"), "must name a port as memory.port"
                    yield _problem(document, full, rule, port, ports, f"{path}.{port}")
    for name, link in _blocks(document.data, "links"):
        for end in _texts(link.get("ends")):
            if end not in known and not _inside(end, opaque):
                full = ("links", name, "ends")
                yield _problem(document, full, "must name parts or ports", end, known, end)


def _parts(
    parts: Any, at: DataPath, under: str
) -> Iterator[tuple[DataPath, str, Mapping[str, Any]]]:
    """Yield each part with its path in the file and its short path."""
    for name, part in parts.items() if isinstance(parts, Mapping) else ():
        whole = part if isinstance(part, Mapping) else {}
        yield (*at, name), f"{under}{name}", whole
        yield from _parts(whole.get("parts"), (*at, name, "parts"), f"{under}{name}.")


def _ports(path: str, part: Mapping[str, Any]) -> Iterator[str]:
    for name, memory in _blocks(part, "memory"):
        ports = memory.get("ports")
        yield from (f"{path}.{name}.{port}" for port in (ports if isinstance(ports, dict) else ()))


def _blocks(data: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = data.get(key)
    for name, block in found.items() if isinstance(found, Mapping) else ():
        if isinstance(block, Mapping):
            yield name, block


def _texts(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, str)]


def _misspells(part: Mapping[str, Any], words: Collection[str], known: Collection[str]) -> bool:
    """Return whether a key is nearly one of some words, or that of a memory's ports is."""
    strange = [key for key in part if key not in known]
    if any(nearest(str(key), known) in words for key in strange):
        return True
    return any("ports" not in memory for _, memory in _blocks(part, "memory"))


def _inside(path: str, parts: list[str]) -> bool:
    return any(f"{path}.".startswith(f"{part}.") for part in parts)


def _problem(
    document: Document, at: DataPath, rule: str, name: str, known: Collection[str], meant: str
) -> Problem:
    guess = nearest(meant, known)
    remedy = f"did you mean '{guess}'?" if guess else f"known: {', '.join(known)}"
    return Problem(document.where(at), ".".join(map(str, at)), rule, name, remedy)
