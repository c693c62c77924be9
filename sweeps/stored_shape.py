"""The shape of what folders of results say of themselves: anybody may have written them.

Readers take these files apart without looking; here each entry that they touch is checked once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from opbyte.core.config import Document, validate

__all__ = ["check_columns", "check_meta", "check_summary"]

#: Columns beside the axes and metrics, with what they hold.
_TEXTS = ("status", "reason", "baseline_status")
_NUMBERS = ("violation", "speedup", "needed_bytes", "available_bytes")


#: Lower and upper end; None where none is known.
_Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Study(_Open):
    base: dict[str, Any] = Field(default_factory=dict)
    baseline: dict[str, Any] | None = None
    axes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    derive: dict[str, str | float] = Field(default_factory=dict)
    constraints: list[str] = Field(default_factory=list)
    objectives: dict[str, Literal["min", "max"]] = Field(default_factory=dict)
    strategy: dict[str, Any] = Field(default_factory=dict)
    machines: dict[str, Any] = Field(default_factory=dict)


class _Meta(_Open):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]*$")
    key: str
    study: _Study
    axes: list[str]
    units: dict[str, str]
    dimensions: dict[str, str] = Field(default_factory=dict)
    derived: list[str] = Field(default_factory=list)
    metrics: list[str] = Field(default_factory=list)
    points: int | None = None
    description: str = ""
    version: str = ""


class _Summary(_Open):
    played: int
    budget: int
    running: bool = False
    screen: str = "none"
    screened: int = 0
    could_still_join: int = 0
    gap_percent: dict[str, _Interval] = Field(default_factory=dict)


def check_meta(meta: Mapping[str, Any], place: str) -> None:
    """Raise if `study.json` holds something else than it should.

    Raises:
        ConfigError: With every entry that is not what it should be.
    """
    validate(_Meta, Document(dict(meta), {}, place))


def check_summary(about: Any) -> None:
    """Raise if `search.json` holds something else than it should.

    Raises:
        ValueError: If it does.
    """
    _Summary.model_validate(about)


def check_columns(schema: Any, meta: Mapping[str, Any]) -> None:
    """Raise if a part's columns are not those of a study's points.

    Args:
        schema: Arrow schema of the part.
        meta: What `study.json` holds; entries that are missing ask nothing.

    Raises:
        ValueError: With the first column that is missing, twice there or of another kind.
    """
    kinds = {field.name: _kind(field.type) for field in schema}
    if len(kinds) < len(schema):
        raise ValueError("two of its columns have one name")
    needed = ["point", *_listed(meta, "axes"), *_listed(meta, "derived"), *_listed(meta, "metrics")]
    missing = next((name for name in [*needed, "status"] if name not in kinds), None)
    if missing is not None:
        raise ValueError(f"it has no column {missing}")
    if kinds["point"] != "whole numbers":
        raise ValueError("column point holds no whole numbers")
    wanted = dict.fromkeys(_TEXTS, "texts")
    wanted |= dict.fromkeys([*_NUMBERS, *_listed(meta, "metrics")], "numbers")
    for name, kind in kinds.items():
        found = "numbers" if kind == "whole numbers" else kind
        due = wanted.get(name, "numbers" if found == "numbers" else "texts")
        if found != due:
            raise ValueError(f"column {name} holds no {due}")


def _listed(meta: Mapping[str, Any], name: str) -> list[str]:
    found = meta.get(name)
    return [n for n in found if isinstance(n, str)] if isinstance(found, list) else []


def _kind(column: Any) -> str:
    """Return what a column holds: texts, whole numbers, numbers, or its type."""
    from pyarrow import types

    inner = column.value_type if types.is_dictionary(column) else column
    if types.is_string(inner) or types.is_large_string(inner):
        return "texts"
    if types.is_dictionary(column):
        return str(column)
    if types.is_int64(column):
        return "whole numbers"
    return "numbers" if types.is_integer(column) or types.is_floating(column) else str(column)
