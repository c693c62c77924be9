"""Validation: simulate what was published, and say what the agreement is worth.

The class of a number is computed, not written down. Every parameter is changed by 10 % both ways;
those that move the number by more than 1 % matter. If one that matters was fitted, the number is
`calibrated`; if one is assumed, `assumed`; otherwise `predicted`. `at_most` can only lower it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.config import Document, load_document
from opbyte.core.errors import OpbyteError
from opbyte.core.ops import Array
from opbyte.sweeps.validation.facts import read_facts, with_facts
from opbyte.sweeps.validation.model import Comparison, Knob, Summary, comparison
from opbyte.sweeps.validation.played import Memory
from opbyte.sweeps.validation.published import (
    CLASSES,
    Gap,
    Point,
    Published,
    load_published,
    published_catalog,
)

STEP = 0.10
MATTERS = 0.01
_SCAN = 401
#: As many for played works, each of which takes a simulation of its own.
_FEW = 8


@dataclass(frozen=True)
class Closing:
    """What a missing input would have to be.

    Attributes:
        value: Closing value with its unit, empty if none in the range closes the row.
        range: Where it was looked for.
    """

    input: str
    why: str
    parameter: str
    value: str
    range: str


@dataclass(frozen=True)
class Verdict:
    """One published number against ours.

    Attributes:
        evidence: Class of the agreement.
        error: Signed relative error; beyond the nearer end of an interval.
        low, high: Our results over the ranges of the assumed parameters, one at a time.
        matters: Parameters that move the result: path, source, relative change for 10 %.
    """

    source: str
    id: str
    metric: str
    unit: str
    evidence: str
    target: str
    published: float | tuple[float | None, float | None]
    simulated: float
    error: float
    tolerance: float
    ok: bool
    reason: str
    low: float = float("nan")
    high: float = float("nan")
    matters: tuple[tuple[str, str, float], ...] = ()
    closing: tuple[Closing, ...] = field(default=())

    def row(self) -> dict[str, Any]:
        """Return the fields of `opbyte validate --json`."""
        row = asdict(self)
        row["class"] = row.pop("evidence")
        row["matters"] = [{"parameter": p, "source": s, "change": c} for p, s, c in self.matters]
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}


def sources_of(folder: Path | None = None) -> list[str]:
    """Return the names of the published sources."""
    return published_catalog(folder).names()


def validate_source(name: str, folder: Path | None = None) -> list[Verdict]:
    """Return a verdict for every point of a source.

    A point that can not be simulated is a verdict that is not ok, with the reason; it hides none
    of the others.

    Args:
        name: Name or path of a published file.
        folder: Another folder: of such files, or of collections of facts, whose values then
            replace those of our points with the same ids.
    Raises:
        ConfigError: If the file itself is wrong.
    """
    source = Path(name).stem
    facts = None
    if folder is not None and not _is_published(published_catalog(folder).find(name)):
        facts = read_facts(published_catalog(folder).find(name))
        folder = None
    published, document = load_published(name, folder)
    unmatched: list[str] = []
    if facts is not None:
        published, unmatched = with_facts(source, published, facts)
    memory = Memory()
    verdicts = [_judge(source, published, document, p, memory) for p in published.points]
    nan = float("nan")
    return verdicts + [
        Verdict(
            source=source,
            id=key,
            metric="",
            unit="",
            evidence="open",
            target="reported",
            published=(facts or {})[key],
            simulated=nan,
            error=nan,
            tolerance=0.0,
            ok=True,
            reason="no experiment of ours simulates this fact",
        )
        for key in unmatched
    ]  # fmt: skip


def _is_published(path: Path) -> bool:
    return load_document(path, any_keys=True).data.get("kind") == "published"


def _judge(
    source: str, published: Published, document: Document, point: Point, memory: Memory
) -> Verdict:
    common: dict[str, Any] = {
        "source": source,
        "id": point.id,
        "metric": point.metric,
        "unit": point.unit,
        "target": point.target or published.source.target,
        "published": point.value,
        "tolerance": point.tolerance,
    }
    try:
        model = comparison(published, document, point, memory)
        return _verdict(published, point, model, common)
    except OpbyteError as error:
        nan = float("nan")
        return Verdict(
            **common, evidence="open", simulated=nan, error=nan, ok=False, reason=str(error)
        )


def _verdict(
    published: Published, point: Point, model: Comparison | Summary, common: dict[str, Any]
) -> Verdict:
    knobs = model.knobs()
    value, changes = _sensitivity(model, knobs)
    matter = [(k, c) for k, c in zip(knobs, changes, strict=True) if c > MATTERS]
    evidence = _evidence([k for k, _ in matter], point)
    error = relative_error(value, point.value)
    low, high = _envelope(model, [k for k, _ in matter], value)
    closing: list[Closing] = []
    within = abs(error) <= point.tolerance
    if not within or evidence == "open":
        closing = [_close(published, point, model, gap) for gap in point.missing]
    reason = point.reason
    if not within and evidence != "open" and point.missing:
        # Nothing closes a gap by calling it small: what misses its tolerance is open.
        evidence = "open"
    return Verdict(
        **common,
        evidence=evidence,
        simulated=value,
        error=error,
        ok=within or evidence == "open",
        reason=reason or _because([k for k, _ in matter], evidence),
        low=low,
        high=high,
        matters=tuple(
            (k.path, k.source, float(c)) for k, c in sorted(matter, key=lambda kc: -kc[1])
        ),
        closing=tuple(closing),
    )


def _because(matter: list[Knob], evidence: str) -> str:
    word = {"assumed": "assumed", "calibrated": "calibrated"}.get(evidence)
    if word is None:
        return ""
    return "rests on " + ", ".join(k.path for k in matter if k.standing == word)


def relative_error(value: float, published: float | tuple[float | None, float | None]) -> float:
    """Return (ours - published) / published, or beyond the nearer end of an interval."""
    if not isinstance(published, tuple):
        return (value - published) / published
    low, high = published
    if low is not None and value < low:
        return (value - low) / low
    if high is not None and value > high:
        return (value - high) / high
    return 0.0 if np.isfinite(value) else float("nan")


def _sensitivity(model: Comparison | Summary, knobs: list[Knob]) -> tuple[float, list[float]]:
    """Return our value and its largest relative change when each knob moves by 10 %."""
    count = len(knobs)
    columns = {}
    for i, knob in enumerate(knobs):
        column = np.full(1 + 2 * count, knob.value)
        column[1 + 2 * i] = knob.scaled(1.0 + STEP)
        column[2 + 2 * i] = knob.scaled(1.0 - STEP)
        columns[knob] = column
    values = model.values(columns)
    if values.size == 1:
        return float(values[0]), [0.0] * count
    base = float(values[0])
    moved = np.abs(values[1:].reshape(count, 2) / base - 1.0)
    # A point that does not fit any more has changed as much as can be.
    return base, [float(x) for x in np.where(np.isnan(moved), np.inf, moved).max(axis=1)]


def _envelope(model: Comparison | Summary, matter: list[Knob], value: float) -> tuple[float, float]:
    """Return the least and largest result when assumed parameters move over their ranges."""
    assumed = [k for k in matter if k.standing == "assumed" and k.range is not None]
    if not assumed:
        return value, value
    columns: dict[Knob, Array] = {}
    for i, knob in enumerate(assumed):
        column = np.full(1 + 2 * len(assumed), knob.value)
        assert knob.range is not None
        column[1 + 2 * i], column[2 + 2 * i] = knob.range
        columns[knob] = column
    values = model.values(columns)
    return float(np.nanmin(values)), float(np.nanmax(values))


def _evidence(matter: list[Knob], point: Point) -> str:
    standing = {k.standing for k in matter}
    if "calibrated" in standing:
        evidence = "calibrated"
    elif "assumed" in standing:
        evidence = "assumed"
    else:
        evidence = "predicted"
    if point.at_most is not None:
        evidence = CLASSES[max(CLASSES.index(evidence), CLASSES.index(point.at_most))]
    return evidence


def _close(published: Published, point: Point, model: Comparison | Summary, gap: Gap) -> Closing:
    """Return the value of the missing input that makes our number the published one."""
    why = published.gaps[gap.input]
    if gap.parameter is None:
        return Closing(gap.input, why, "", "", "")
    knob = model.knob(gap)
    assert knob.range is not None
    low, high = knob.range
    shown = f"{knob.show(low)} to {knob.show(high)}"
    value = _root(model, knob, point, _FEW if model.played else _SCAN)
    return Closing(gap.input, why, knob.path, "" if value is None else knob.show(value), shown)


def _root(model: Comparison | Summary, knob: Knob, point: Point, count: int) -> float | None:
    """Return the first value in a parameter's range that gives the published number, if any.

    Args:
        count: Values that are tried; between them the result is taken to be linear.
    """
    assert knob.range is not None
    low, high = knob.range
    grid = np.geomspace(low, high, count) if low > 0 else np.linspace(low, high, count)
    values = np.broadcast_to(model.values({knob: grid}), grid.shape)
    miss = np.array([relative_error(float(v), point.value) for v in values])
    exact = np.flatnonzero(miss == 0)
    if exact.size:
        return float(grid[exact[0]])
    cross = np.flatnonzero(np.sign(miss[:-1]) * np.sign(miss[1:]) < 0)
    if not cross.size:
        return None
    i = int(cross[0])
    part = miss[i] / (miss[i] - miss[i + 1])
    return float(grid[i] + part * (grid[i + 1] - grid[i]))
