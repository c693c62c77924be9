"""Constraints of a study: `tpot <= 20 ms`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.core.units import DIMENSIONS, dimension, parse
from opbyte.sweeps.expressions import Expression

__all__ = ["METRIC_DIMENSIONS", "Constraint", "metric_dimension"]

#: Dimension of the metrics whose name does not say it.
METRIC_DIMENSIONS: Mapping[str, str] = {
    "seconds": "seconds",
    **dict.fromkeys(("ttft", "tpot", "itl", "tbt", "plain_tpot", "latency"), "seconds"),
    **dict.fromkeys(("joules", "dynamic_joules", "static_joules"), "joules"),
    "watts": "watts",
    "area_m2": "area",
    "price_usd": "dollars",
    "joules_per_token": "joules",
    "carbon_kg": "kilograms",
    "tdp_w": "watts",
    **dict.fromkeys(("usd_per_mtoken", "tco_usd_per_mtoken"), "dollars"),
    "carbon_g_per_mtoken": "grams",
    "flops": "ops",
    "flops_per_s": "ops_per_s",
    **dict.fromkeys(("bandwidth", "copy_rate"), "bytes_per_s"),
}
#: What stands behind the name of a time of requests.
_STATISTICS = ("mean", "p50", "p90", "p99", "max")
_RELATION = re.compile(r"^(?P<left>[^<>=]+?)\s*(?P<sign><=|>=|<|>)\s*(?P<right>[^<>=]+)$")
_BARE = re.compile(r"^[+-]?[\d.]*[1-9][\d.]*(?:[eE][+-]?\d+)?$")
#: Metrics whose name says their unit may be compared with a bare number.
_SAYS_UNIT = re.compile(r"^(?:seconds|joules|watts|flops|usd)|_(?:s|m2|usd)$")
_WITH_UNIT = re.compile(r"^[+-]?[\d.]+(?:[eE][+-]?\d+)?\s*[A-Za-z$%].*$")


def metric_dimension(name: str) -> str | None:
    """Return the dimension of a metric, None where it is a plain number."""
    if name in METRIC_DIMENSIONS:
        return METRIC_DIMENSIONS[name]
    of, _, statistic = name.partition("_")
    if statistic in _STATISTICS:
        return METRIC_DIMENSIONS.get(of)
    if name.removesuffix("_per_token").endswith("_bytes"):
        return "bytes"
    return "seconds" if name.endswith("_s") and not name.endswith("per_s") else None


@dataclass(frozen=True)
class Constraint:
    """A relation that points must keep.

    Attributes:
        text: As written.
        left: Left side.
        right: Right side, SI.
        upper: Whether the right side bounds the left from above.
    """

    text: str
    left: Expression
    right: Expression
    upper: bool

    @classmethod
    def parse(
        cls, text: str, dimensions: Mapping[str, str | None], where: str = "", path: str = ""
    ) -> Constraint:
        """Return the constraint that a text writes.

        Args:
            text: Such as `tpot <= 20 ms`.
            dimensions: Dimension of every name that it may use.
            where: For errors.
            path: For errors.

        Raises:
            ConfigError: If it is no relation, or its quantity does not suit the left side.
        """
        match = _RELATION.match(text.strip()) if len(text) <= 1000 else None
        if match is None:
            rule = "a constraint must be `left <= right` or `left >= right`"
            remedy = "Write for example `tpot <= 20 ms`."
            raise ConfigError.one(where, path, rule, text, remedy)
        left = Expression.parse(match["left"], where, path)
        bound = match["right"].strip()
        right = _quantity(left, bound, dimensions, where, path)
        if right is None:
            right = Expression.parse(bound, where, path)
        return cls(text.strip(), left, right, match["sign"] in ("<=", "<"))

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that it reads."""
        return (*self.left.names, *self.right.names)

    def violation(self, values: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        """Return by how much it is broken, relative to the bound: 0 where it holds, NaN unknown."""
        left, right = self.left(values), self.right(values)
        excess = left - right if self.upper else right - left
        with np.errstate(all="ignore"):
            scale = np.where(right == 0, 1.0, np.abs(right))
            relative: npt.NDArray[np.float64] = np.maximum(excess, 0.0) / scale
        return relative


def _quantity(
    left: Expression, bound: str, dimensions: Mapping[str, str | None], where: str, path: str
) -> Expression | None:
    """Return the right side where it is a number with a unit."""
    kinds = {dimensions.get(name) for name in left.names}
    known = kinds.pop() if len(kinds) == 1 else None
    if not _WITH_UNIT.match(bound):
        silent = not any(_SAYS_UNIT.search(name) for name in left.names)
        if known and silent and not dimension(known).bare and _BARE.match(bound):
            example = f"Write for example {dimension(known).example}."
            raise ConfigError.one(where, path, "the right side needs a unit", bound, example)
        return None
    candidates = [known] if known else [d for d, x in DIMENSIONS.items() if not x.bare]
    for candidate in candidates:
        try:
            return Expression.parse(repr(parse(bound, str(candidate))))
        except ConfigError as error:
            failure = error
    if known:
        raise ConfigError(type(p)(where, path, p.rule, p.value, p.remedy) for p in failure.problems)
    example = dimension("seconds").example
    rule = "the right side is neither a quantity nor an expression"
    raise ConfigError.one(where, path, rule, bound, f"Write for example {example}.")
