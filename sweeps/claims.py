"""Where claims hold together: ratios between a study's points, as functions of its axes.

A claim is a ratio of one metric between two kinds of points (an allocation over DRAM alone, two
devices over one) and the range in which it was published. Over the points of a study it is a
function of the axes that both kinds share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HOLDS", "Claim", "held"]

#: Column of `held` that says whether all claims hold.
HOLDS = "holds"


@dataclass(frozen=True)
class Claim:
    """A published ratio.

    Attributes:
        name: Column and words of it.
        metric: Metric of both.
        low, high: The range in which the ratio holds, both ends included.
        of, over: Column -> value of the points above and below the line.
    """

    name: str
    metric: str
    low: float
    high: float
    of: Mapping[str, Any] = field(default_factory=dict)
    over: Mapping[str, Any] = field(default_factory=dict)


def held(frame: pd.DataFrame, claims: Iterable[Claim], axes: Sequence[str]) -> pd.DataFrame:
    """Return each claim's ratio at each point of some axes, and whether all hold there.

    Args:
        frame: Points of a study, one row each.
        claims: What to look for.
        axes: Columns that both sides of a claim share.
    Returns:
        `axes`, a column for each claim and `holds`; points where one side failed are left out.
    Raises:
        ConfigError: If a column is missing, or other axes leave several points for one place.
    """
    claims, found = tuple(claims), None
    if "status" in frame:
        frame = frame[frame["status"] == "ok"]
    for claim in claims:
        upper = _side(frame, claim, claim.of, axes)
        lower = _side(frame, claim, claim.over, axes)
        both = upper.merge(lower, on=list(axes), suffixes=("", " below"))
        both[claim.name] = both[claim.metric] / both[f"{claim.metric} below"]
        both = both[[*axes, claim.name]]
        found = both if found is None else found.merge(both, on=list(axes))
    if found is None:
        raise ConfigError.one("", "claims", "at least one claim is due", "none", "")
    found[HOLDS] = True
    for claim in claims:
        found[HOLDS] &= found[claim.name].between(claim.low, claim.high)
    return found


def _side(
    frame: pd.DataFrame, claim: Claim, where: Mapping[str, Any], axes: Sequence[str]
) -> pd.DataFrame:
    """Return axes and metric of the points of one side of a claim."""
    for name in (*where, *axes, claim.metric):
        if name not in frame:
            remedy = nearest(name, list(frame.columns)) or ""
            raise ConfigError.one("", f"claim '{claim.name}'", "no such column", name, remedy)
    for name, value in where.items():
        frame = frame[frame[name] == value]
    kept = frame[[*axes, claim.metric]]
    if kept.empty:
        raise ConfigError.one("", f"claim '{claim.name}'", "no point has this", dict(where), "")
    if kept.duplicated(list(axes)).any():
        rule = "several points lie at one place of the axes"
        remedy = "Give the other axes a value in `of` and `over`, or count them among the axes."
        raise ConfigError.one("", f"claim '{claim.name}'", rule, dict(where), remedy)
    return kept
