"""Collections of facts from papers, whose values can stand in for those of our own files.

A collection has a list `results` of `{id, value, ...}`; ids begin with the source's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from opbyte.core.config import load_document
from opbyte.core.errors import ConfigError
from opbyte.sweeps.validation.published import Point, Published

Value = float | tuple[float | None, float | None]
_BOUND = re.compile(r"^\s*(<=|<|>=|>)\s*([0-9.eE+-]+)\s*$")


def read_facts(path: Path) -> dict[str, Value]:
    """Return the numeric results of a collection by id; others are left out.

    Of a result with several named values each has the id `result.name`.

    Raises:
        ConfigError: If the file is not a collection.
    """
    document = load_document(path, any_keys=True)
    results = document.data.get("results")
    if not isinstance(results, list):
        raise ConfigError.one(
            document.where(()), "results", "a collection of facts has a list of results", "", ""
        )
    known: dict[str, Value] = {}
    for entry in results:
        if isinstance(entry, dict) and "id" in entry:
            raw, key = entry.get("value"), str(entry["id"])
            named = (
                {f"{key}.{k}": v for k, v in raw.items()} if isinstance(raw, dict) else {key: raw}
            )
            known |= {k: value for k, v in named.items() if (value := _value(v)) is not None}
    return known


def _value(raw: Any) -> Value | None:
    """Return a number, an interval, or None for what is neither."""
    if isinstance(raw, bool) or raw is None:
        return None
    if isinstance(raw, int | float):
        return float(raw)
    if isinstance(raw, list) and len(raw) == 2 and all(isinstance(x, int | float) for x in raw):
        return (float(raw[0]), float(raw[1]))
    bound = _BOUND.match(raw) if isinstance(raw, str) else None
    if bound is None:
        return None
    limit = float(bound.group(2))
    return (None, limit) if bound.group(1).startswith("<") else (limit, None)


def _kept_open(point: Point, value: Value) -> Value:
    """Return a fact's value; where our point is one-sided, a number is its finite end."""
    if isinstance(point.value, tuple) and not isinstance(value, tuple):
        low, high = point.value
        return (value, None) if high is None else (None, value) if low is None else value
    return value


def with_facts(
    name: str, published: Published, facts: dict[str, Value]
) -> tuple[Published, list[str]]:
    """Return a source with the facts' values, and the ids that no point of ours simulates."""
    points: list[Point] = []
    used: set[str] = set()
    for point in published.points:
        for key in (point.id, f"{name}.{point.id}"):
            if key in facts:
                used.add(key)
                points.append(point.model_copy(update={"value": _kept_open(point, facts[key])}))
                break
    missing = [key for key in facts if key not in used]
    return published.model_copy(update={"points": tuple(points)}), missing
