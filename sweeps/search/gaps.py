"""How far the event level may be from the screen: what laws say, and what was measured.

For an objective of value v > 0 the gap of a point is

    g = ln v(event) - ln v(screen)   where less is better, its negative where more is better,

so that a gap above 0 is worse than the screen promised. Three kinds of knowledge bound it:

- *exact*: parameters, area and price do not depend on the fidelity, g = 0.
- *law*: contention only delays (DESIGN law 1: analytic <= event), so times, rates of tokens and
  energies have g >= 0, and 0 is their lower end: as long as the law holds, the front that a search
  ends with is that of all points. One measured gap below 0 takes the law away for the study.
- *measured*: of n gaps between a and b, the next is expected in [a - s, b + s], where
  s = 2 (b - a) / (n - 1) is twice what the range of n uniform draws lacks at each end.

Structure (mapping, machine, names) changes gaps most, so each combination has its own measurements
as soon as it has enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE", "Gaps", "log_costs"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

#: Logarithms closer than this are equal: rounding of sums in another order.
TOLERANCE = 1e-9
#: Measurements from which a group is judged by its own.
ENOUGH = 6
_BEYOND = 2.0
#: Metrics of the machine and of what fits, which no fidelity changes.
EXACT = (
    "area_m2",
    "price_usd",
    "carbon_kg",
    "tdp_w",
    "batch_max",
    "kv_bytes",
    "flops",
    "nodes_max",
    "models_max",
)
#: Metrics that contention can only make worse.
LAWFUL = (
    "seconds",
    "ttft",
    "tpot",
    "tokens_per_s",
    "joules",
    "joules_per_token",
    "usd_per_mtoken",
    "tco_usd_per_mtoken",
    "carbon_g_per_mtoken",
)


def log_costs(columns: Mapping[str, Any], objectives: Mapping[str, str]) -> Floats:
    """Return the logarithm of each objective as a cost, NaN at values not above 0, (points, k)."""
    found = []
    for name, direction in objectives.items():
        value = np.asarray(columns[name], dtype=np.float64)
        with np.errstate(all="ignore"):
            log = np.log(np.where(value > 0.0, value, np.nan))
        found.append(log if direction == "min" else -log)
    return np.stack(found, axis=1)


@dataclass
class Gaps:
    """Measured gaps, and the intervals in which others are expected.

    Attributes:
        exact: Objectives that no fidelity changes, (k,).
        lawful: Objectives that contention only makes worse, (k,).
    """

    exact: npt.NDArray[np.bool_]
    lawful: npt.NDArray[np.bool_]
    _values: list[Floats] = field(default_factory=list)
    _labels: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, objectives: Sequence[str], parameters: Sequence[str]) -> Gaps:
        """Return the gaps of objectives, none measured yet.

        Args:
            objectives: Columns.
            parameters: Columns of axes and derived parameters.
        """
        exact = [name in EXACT or name in parameters for name in objectives]
        lawful = [name in LAWFUL for name in objectives]
        return cls(np.array(exact), np.array(lawful))

    def add(self, gaps: Floats, labels: Labels) -> None:
        """Take measured gaps, (points, k), of points with these groups, (points,)."""
        self._values += list(gaps)
        self._labels += labels.tolist()

    def __len__(self) -> int:
        """Return the number of measured points."""
        return len(self._values)

    @property
    def law_broken(self) -> npt.NDArray[np.bool_]:
        """Return which laws a measurement contradicts, (k,)."""
        if not self._values:
            return np.zeros(len(self.exact), dtype=np.bool_)
        broken: npt.NDArray[np.bool_] = self.lawful & (self._all().min(axis=0) < -TOLERANCE)
        return broken

    def _all(self) -> Floats:
        return np.array(self._values).reshape(-1, len(self.exact))

    def intervals(self, labels: Labels) -> tuple[Floats, Floats]:
        """Return the lower and upper ends of the gaps of points with these groups, (points, k)."""
        names, inverse = np.unique(labels, return_inverse=True)
        ends = [self.interval(int(name)) for name in names]
        low, high = (np.array([e[i] for e in ends]).reshape(-1, len(self.exact)) for i in (0, 1))
        return low[inverse], high[inverse]

    def interval(self, label: int | None = None) -> tuple[Floats, Floats]:
        """Return the ends of the interval of a group, or of all, (k,) each."""
        values = self._all()
        if label is not None:
            own = values[np.array(self._labels, dtype=np.int64) == label]
            values = own if len(own) >= ENOUGH else values
        count = len(self.exact)
        if len(values) < ENOUGH:
            low, high = np.full(count, -np.inf), np.full(count, np.inf)
        else:
            low, high = values.min(axis=0), values.max(axis=0)
            margin = _BEYOND * (high - low) / (len(values) - 1)
            low, high = low - margin, high + margin
        kept = self.lawful & ~self.law_broken
        low = np.where(kept, 0.0, low)
        zero = np.zeros(count)
        return np.where(self.exact, zero, low), np.where(self.exact, zero, high)

    def expected(self, places: Floats, labels: Labels, measured: Floats) -> Floats:
        """Return the gaps to expect, (points, k): the mean of the nearest of each group.

        Args:
            places: Positions of the points along the axes, each in [0, 1], (points, axes).
            labels: Their groups, (points,).
            measured: Positions of the measured points, in the order of `add`, (measured, axes).
        """
        values, owners = self._all(), np.array(self._labels, dtype=np.int64)
        answer = np.zeros((len(places), len(self.exact)))
        if not len(values):
            return answer
        for label in np.unique(labels):
            mine = labels == label
            near = owners == label
            if not near.any():
                near = np.ones(len(owners), dtype=np.bool_)
            away = np.abs(places[mine][:, None, :] - measured[near][None]).sum(axis=2)
            take = min(_NEAREST, away.shape[1])
            index = np.argsort(away, axis=1, kind="stable")[:, :take]
            weight = 1.0 / (np.take_along_axis(away, index, axis=1) + 1e-3)
            weight /= weight.sum(axis=1, keepdims=True)
            answer[mine] = np.einsum("pn,pnk->pk", weight, values[near][index])
        return np.where(self.exact, 0.0, answer)


_NEAREST = 3
