"""`like`: a part that is another machine's, and a `kernel` block with a relative's parameters.

`like: MACHINE.PART` in a part of a machine is that part, with what stands beside it on top, and so
with links: a machine of two kinds of GPU need not repeat them. `like: MACHINE` in a `kernel` block
is for what was not fitted: the nearest relative's numbers are copied, with a source that says so
and a range that a neighbour's fit leaves open. A relative may have one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError
from opbyte.hw_models.kernel import EXPONENTS

#: A carried value may be off by this factor either way.
CARRIED = 1.5

Block = Mapping[str, Any]


def with_relatives(
    document: Document, load: Callable[[str], Document], seen: tuple[str, ...] = ()
) -> Document:
    """Return a machine document whose parts and `kernel` blocks with `like` hold all their values.

    Args:
        load: Returns the document of a catalog machine.
        seen: Relatives that led here.
    Raises:
        ConfigError: If the relative is unknown, has no such part, no `kernel` block, or leads back
            to itself.
    """

    def relative(name: str) -> Document:
        if name in seen:
            raise ConfigError.one(
                document.name, "like", "relatives lead in a circle",
                " -> ".join((*seen, name)), "one of them must have parameters of its own",
            )  # fmt: skip
        return with_relatives(load(name), load, (*seen, name))

    parts = document.data.get("parts")
    if not isinstance(parts, dict):
        return document
    links = _copied("links", document, relative)
    changed = _parts(_copied("parts", document, relative), ("parts",), document, relative)
    if changed is parts and links is document.data.get("links"):
        return document
    more = {} if links is None else {"links": links}
    return replace(document, data={**document.data, "parts": changed, **more})


def _copied(kind: str, document: Document, load: Callable[[str], Document]) -> Any:
    """Return parts or links, each laid over the one that its `like` names; the same without."""
    return _copied_blocks(document.data.get(kind), (kind,), document, load)


def _copied_blocks(
    blocks: Any, at: tuple[str, ...], document: Document, load: Callable[[str], Document]
) -> Any:
    """Return blocks, and parts inside them, with those laid over that `like` names."""
    if not isinstance(blocks, dict):
        return blocks
    copied = {}
    for name, block in blocks.items():
        if not isinstance(block, dict):
            continue
        whole = _relative_block(block, (*at, name, "like"), document, load)
        inner = _copied_blocks(whole.get("parts"), (*at, name, "parts"), document, load)
        if inner is not whole.get("parts"):
            whole = {**whole, "parts": inner}
        if whole is not block:
            copied[name] = whole
    return {**blocks, **copied} if copied else blocks


def _relative_block(
    block: dict[str, Any],
    at: tuple[str, ...],
    document: Document,
    load: Callable[[str], Document],
) -> dict[str, Any]:
    """Return a block laid over the one that its `like` names; the same without.

    Raises:
        ConfigError: If there is none.
    """
    if "like" not in block:
        return block
    machine, _, inner = str(block["like"]).rpartition(".")
    if not machine:
        rule = "names a part or a link as machine.name"
        raise ConfigError.one(document.where(at), ".".join(at), rule, block["like"], "")
    there = load(machine).data.get(at[0], {})
    if inner not in there:
        rule, known = f"{machine} has none of this name in {at[0]}", ", ".join(there)
        raise ConfigError.one(document.where(at), ".".join(at), rule, inner, f"known: {known}")
    own = {key: value for key, value in block.items() if key != "like"}
    laid: dict[str, Any] = _laid(there[inner], own)
    return laid


def _laid(below: Any, above: Any) -> Any:
    """Return mappings merged, as `extends` does: anything else, and a value, replaces."""
    if not isinstance(below, dict) or not isinstance(above, dict) or "value" in above:
        return above
    return {**below, **{k: _laid(below.get(k), v) for k, v in above.items()}}


def _parts(
    parts: Any, path: tuple[str, ...], document: Document, load: Callable[[str], Document]
) -> Any:
    """Return the parts with their units' blocks filled; the same object if there are none."""
    if not isinstance(parts, dict):
        return parts
    changed = dict(parts)
    for name, part in parts.items():
        if not isinstance(part, dict):
            continue
        inner = _parts(part.get("parts"), (*path, name, "parts"), document, load)
        if inner is not part.get("parts"):
            changed[name] = {**part, "parts": inner}
        for unit_name, unit in _units(part):
            kernel = unit.get("kernel")
            if isinstance(kernel, dict) and "like" in kernel:
                at = (*path, name, "units", unit_name, "kernel", "like")
                block = _filled(kernel, at, document, load)
                units = {**changed[name]["units"], unit_name: {**unit, "kernel": block}}
                changed[name] = {**changed[name], "units": units}
    same = all(changed[n] is parts[n] for n in parts)
    return parts if same else changed


def _units(part: Block) -> list[tuple[str, dict[str, Any]]]:
    units = part.get("units")
    found = units.items() if isinstance(units, dict) else ()
    return [(name, unit) for name, unit in found if isinstance(unit, dict)]


def _blocks(parts: Any) -> Iterator[dict[str, Any]]:
    """Yield the `kernel` blocks of parts, and of parts inside them."""
    for part in parts.values() if isinstance(parts, dict) else ():
        if isinstance(part, dict):
            yield from (u["kernel"] for _, u in _units(part) if isinstance(u.get("kernel"), dict))
            yield from _blocks(part.get("parts"))


def _filled(
    kernel: Block, at: tuple[str, ...], document: Document, load: Callable[[str], Document]
) -> dict[str, Any]:
    own = {key: value for key, value in kernel.items() if key != "like"}
    name = kernel["like"]
    if not isinstance(name, str):
        raise ConfigError.one(document.where(at), ".".join(at), "a machine's name is due", name, "")
    blocks = list(_blocks(load(name).data.get("parts")))
    if not blocks:
        raise ConfigError.one(
            document.where(at), ".".join(at), "names a machine without a `kernel` block", name,
            "name a GPU that was fitted, such as a100-sxm-80gb",
        )  # fmt: skip
    carried = _carried(blocks[0])
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(carried.get(key), dict)
        nested = both and "value" not in value
        carried[key] = {**carried[key], **value} if nested else value
    carried.setdefault("source", f"assumed: nearest relative, fitted on {name}")
    return carried


#: Names of exponents of norms, which have no meaning below 1.
_EXPONENTS = frozenset(path.rpartition(".")[2] for path in EXPONENTS)


def _carried(block: Block) -> dict[str, Any]:
    """Return a block's values with wider ranges, without sources."""
    carried: dict[str, Any] = {}
    for key, value in block.items():
        if key == "source" or value is None:
            continue
        if isinstance(value, dict) and "value" not in value:
            carried[key] = _carried(value)
        else:
            written = value["value"] if isinstance(value, dict) else value
            low, high = _range(written)
            if key in _EXPONENTS and isinstance(low, float):
                low = max(low, 1.0)
            carried[key] = {"value": written, "range": [low, high]}
    return carried


def _range(value: object) -> list[object]:
    """Return a value divided and multiplied by `CARRIED`; a share ends at 1."""
    number, unit = (value, "") if isinstance(value, int | float) else _split(str(value))
    whole = {"%": 100.0, "": 1.0}.get(unit)
    high = number * CARRIED
    if whole is not None and number <= whole:
        high = min(high, whole)
    low = number / CARRIED
    return [f"{low:.4g} {unit}", f"{high:.4g} {unit}"] if unit else [low, high]


def _split(text: str) -> tuple[float, str]:
    """Return number and unit of a quantity; what is none is for validation to refuse."""
    found = re.fullmatch(r"\s*([-+]?[\d._]+(?:[eE][-+]?\d+)?)\s*(.*?)\s*", text)
    try:
        return (float(found[1]), found[2]) if found else (0.0, text)
    except ValueError:
        return 0.0, text
