"""Collections of facts from papers, whose values can stand in for those of our own files.

A collection has a list `results` of `{id, value, ...}`; ids begin with the source's name. Sources
of few numbers are sections of one file, `others.yaml`, with `points` or `results` of `id: value`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from opbyte.core.config import load_document
from opbyte.core.errors import ConfigError
from opbyte.sweeps.expressions import Expression
from opbyte.sweeps.validation.published import Fact, Point, Published

Value = float | tuple[float | None, float | None]
_BOUND = re.compile(r"^\s*(<=|<|>=|>)\s*([0-9.eE+-]+)\s*$")


def read_facts(path: Path) -> dict[str, Value]:
    """Return the numeric results of a collection by id; others are left out.

    Of a result with several named values each has the id `result.name`. A pair whose second number
    is the smaller is no interval but two values, `id.1` and `id.2`.

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
            known |= {
                k: value
                for name, v in named.items()
                for k, each in _apart(name, v).items()
                if (value := _value(each)) is not None
            }
    return known


def section_facts(path: Path, name: str) -> dict[str, Value] | None:
    """Return the numeric results of a section of a file of several sources; None without one.

    Two numbers in a row are two values, `id.1` and `id.2`.
    """
    section = _section(load_document(path, any_keys=True).data, name)
    if section is None:
        return None
    entries = section.get("points") or section.get("results")
    known: dict[str, Value] = {}
    for key, raw in (entries if isinstance(entries, dict) else {}).items():
        each = (
            {f"{key}.{i}": x for i, x in enumerate(raw, 1)} if isinstance(raw, list) else {key: raw}
        )
        known |= {k: v for k, x in each.items() if (v := _value(x)) is not None}
    return known


def _section(data: Any, name: str) -> dict[str, Any] | None:
    """Return the mapping of that name, at the top of a file or one level below."""
    inside = [x for x in data.values() if isinstance(x, dict)]
    found = [x[name] for x in (data, *inside) if isinstance(x.get(name), dict)]
    return found[0] if found else None


def _apart(key: str, raw: Any) -> dict[str, Any]:
    """Return a fact by its id, and the two numbers of a descending pair by ids of their own."""
    pair = _value(raw) if isinstance(raw, list) else None
    if isinstance(pair, tuple) and pair[0] > pair[1]:  # type: ignore[operator]
        return {f"{key}.1": pair[0], f"{key}.2": pair[1]}
    return {key: raw}


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


def fact_of(name: str, point: Point, facts: dict[str, Value]) -> tuple[str, Value] | None:
    """Return the id of a point's fact and its value in our unit; None where there is none."""
    fact = point.fact or Fact(id=point.id)
    for key in (fact.id, f"{name}.{fact.id}"):
        if key in facts:
            ours = Expression.parse(fact.as_)
            value = facts[key]
            if isinstance(value, tuple):
                low, high = (None if x is None else float(ours({"value": x})) for x in value)
                return key, _kept_open(point, (low, high))
            return key, _kept_open(point, float(ours({"value": value})))
    return None


def with_facts(
    name: str, published: Published, facts: dict[str, Value]
) -> tuple[Published, list[str]]:
    """Return a source with the facts' values, and the ids that no point of ours simulates.

    A point without a fact keeps its own value.
    """
    points: list[Point] = []
    used: set[str] = set()
    for point in published.points:
        found = fact_of(name, point, facts)
        if found is None:
            points.append(point)
            continue
        used.add(found[0])
        points.append(point.model_copy(update={"value": found[1]}))
    missing = [key for key in facts if key not in used]
    return published.model_copy(update={"points": tuple(points)}), missing
