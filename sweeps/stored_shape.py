"""The shape of what folders of results say of themselves: anybody may have written them.

Readers take these files apart without looking; here each entry that they touch is checked once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from opbyte.core.config import Document, validate

__all__ = ["check_meta", "check_summary"]


#: Lower and upper end; None where none is known.
_Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Study(_Open):
    base: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, dict[str, Any]] = Field(default_factory=dict)
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
