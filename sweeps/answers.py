"""What a simulation answers for many points, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.sweeps.rows import FAILED, INFEASIBLE, OK, Floats

__all__ = ["Answer", "answered", "inserted", "taken"]


@dataclass(frozen=True)
class Answer:
    """Metrics of points.

    Attributes:
        metrics: Name -> (points,).
        status: Position in `STATUS`, (points,).
        reason: Position in `reasons`, (points,).
        reasons: Texts; the first is empty.
        needed: Bytes that did not fit, NaN where all did.
        available: Bytes that there were.
    """

    metrics: dict[str, Floats]
    status: Any
    reason: Any
    reasons: tuple[str, ...]
    needed: Floats
    available: Floats

    @classmethod
    def failed(cls, names: tuple[str, ...], points: int, reason: str) -> Answer:
        """Return the answer of points that could not be evaluated."""
        nothing = np.full(points, np.nan)
        status = np.full(points, FAILED, dtype=np.int32)
        one = np.ones(points, dtype=np.int32)
        return cls(dict.fromkeys(names, nothing), status, one, ("", reason), nothing, nothing)


def answered(outcome: Any, names: tuple[str, ...], count: int) -> Answer:
    """Return an outcome as columns of `count` points."""

    def column(value: Any) -> Floats:
        array = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return np.array(array[:1].repeat(count) if len(array) == 1 else array[:count])

    nothing = np.full(count, np.nan)
    metrics = {n: column(outcome.metrics[n]) if n in outcome.metrics else nothing for n in names}
    status = np.zeros(count, dtype=np.int32)
    reason = np.zeros(count, dtype=np.int32)
    needed, available = nothing.copy(), nothing.copy()
    reasons = [""]
    if outcome.infeasible is not None:
        status[column(outcome.infeasible) > 0] = INFEASIBLE
        for holders, tier, *sizes in outcome.detail.get("overflow", ()):
            size, room = map(column, sizes)
            here = (size > room) & (reason == 0) & (status == INFEASIBLE)
            reason[here] = len(reasons)
            reasons.append(f"{'+'.join(holders)} does not fit in {tier}")
            needed[here], available[here] = size[here], room[here]
    endless = (status == OK) & ~np.isfinite(metrics.get("seconds", np.zeros(count)))
    if endless.any():
        status[endless], reason[endless] = FAILED, len(reasons)
        reasons.append("this takes for ever: a rate that it needs is 0")
        metrics = {n: np.where(endless, np.nan, v) for n, v in metrics.items()}
    return Answer(metrics, status, reason, tuple(reasons), needed, available)


def taken(answer: Answer, where: Any) -> Answer:
    """Return the answer of points at positions."""
    return Answer(
        {n: v[where] for n, v in answer.metrics.items()},
        answer.status[where], answer.reason[where], answer.reasons,
        answer.needed[where], answer.available[where],
    )  # fmt: skip


def inserted(whole: Answer, where: Any, part: Answer) -> Answer:
    """Return `whole` with the points at positions replaced by those of `part`."""

    def put(old: Any, new: Any) -> Any:
        changed = old.copy()
        changed[where] = new
        return changed

    return Answer(
        {n: put(v, part.metrics[n]) for n, v in whole.metrics.items()},
        put(whole.status, part.status),
        put(whole.reason, part.reason + len(whole.reasons)),
        (*whole.reasons, *part.reasons),
        put(whole.needed, part.needed),
        put(whole.available, part.available),
    )
