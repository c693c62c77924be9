"""Validation: simulate what was published, and say what the agreement is worth.

The class of a number is computed, not written down. Every parameter is changed by 10 % both ways,
one whose value is 0 over its range; those that move the number by more than 1 % matter, and so does
an alternative of the file that does. If one that matters was fitted, the number is `calibrated`; if
one is assumed, `assumed`; otherwise `predicted`. `at_most` can only lower it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.config import Document, load_document
from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.ops import Array
from opbyte.sweeps.validation.facts import Value, read_facts, section_facts, with_facts
from opbyte.sweeps.validation.knobs import Knob, standing_of
from opbyte.sweeps.validation.model import (
    Comparison,
    Summary,
    comparison,
    otherwise,
)
from opbyte.sweeps.validation.played import Memory
from opbyte.sweeps.validation.published import (
    CLASSES,
    Gap,
    Point,
    Published,
    load_published,
    published_catalog,
)
from opbyte.sweeps.validation.sides import STEP

MATTERS = 0.01
_SCAN = 401
#: As many for played works and for what a mapping has, each of which takes a simulation of its own.
_FEW = 8


@dataclass(frozen=True)
class Closing:
    """What a missing input would have to be.

    Attributes:
        value: Closing values with their unit, in the range's order; empty if none closes the row.
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
        matters: Parameters that move the result: path, source, relative change for 10 %, or over
            the range of what is 0; alternatives, with the change that they make.
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
    """Return the names of the published sources.

    Raises:
        ConfigError: If a folder has none.
    """
    names = published_catalog(folder).names()
    if folder is not None and not names:
        rule = "there are no published sources in this folder"
        remedy = "Name a folder with files such as those of sweeps/published."
        raise ConfigError.one(str(folder), "", rule, "", remedy)
    return names


def _facts(name: str, folder: Path) -> dict[str, Value] | None:
    """Return the facts that a folder has of a source; None where its file is one of ours.

    Raises:
        ConfigError: If it has neither a file nor a section of `others.yaml` of that name.
    """
    catalog = published_catalog(folder)
    if name not in catalog.names() and "others" in catalog.names():
        found = section_facts(catalog.find("others"), name)
        if found is not None:
            return found
    path = catalog.find(name)
    return None if _is_published(path) else read_facts(path)


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
    facts = None if folder is None else _facts(name, folder)
    if facts is not None:
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
        others = [
            Other(name, one.source, float(comparison(
                published, document, otherwise(point, one), memory
            ).values({})[0]))
            for name, one in published.alternatives.items()
            if name in point.alternatives
        ]  # fmt: skip
        return _verdict(published, point, model, others, common)
    except OpbyteError as error:
        nan = float("nan")
        return Verdict(
            **common, evidence="open", simulated=nan, error=nan, ok=False, reason=str(error)
        )


@dataclass(frozen=True)
class Other:
    """An alternative and our result with it."""

    name: str
    source: str
    value: float


def _verdict(
    published: Published,
    point: Point,
    model: Comparison | Summary,
    others: list[Other],
    common: dict[str, Any],
) -> Verdict:
    knobs = model.knobs()
    value, changes = _sensitivity(model, knobs)
    matter = [(k, c) for k, c in zip(knobs, changes, strict=True) if c > MATTERS]
    matters = [(k.path, k.source, float(c)) for k, c in matter]
    low, high = _envelope(model, [k for k, _ in matter], value)
    for other in others:
        change = abs(other.value / value - 1.0)
        if not change <= MATTERS:
            matters.append((f"alternatives.{other.name}", other.source, change))
            low, high = float(np.fmin(low, other.value)), float(np.fmax(high, other.value))
    evidence = _evidence({standing_of(source) for _, source, _ in matters}, point)
    error = relative_error(value, point.value)
    closing: list[Closing] = []
    within = abs(error) <= point.tolerance
    if not within or evidence == "open":
        closing = [_close(published, point, model, gap) for gap in point.missing]
    if not within and evidence != "open" and point.missing:
        # Nothing closes a gap by calling it small: what misses its tolerance is open.
        evidence = "open"
    return Verdict(
        **common,
        evidence=evidence,
        simulated=value,
        error=error,
        ok=within or evidence == "open",
        reason=point.reason or _because(matters, evidence),
        low=low,
        high=high,
        matters=tuple(sorted(matters, key=lambda m: -m[2])),
        closing=tuple(closing),
    )


def _because(matters: list[tuple[str, str, float]], evidence: str) -> str:
    word = {"assumed": "assumed", "calibrated": "calibrated"}.get(evidence)
    if word is None:
        return ""
    return "rests on " + ", ".join(path for path, src, _ in matters if standing_of(src) == word)


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
    if isinstance(model, Summary) and (few := model.sample()) is not model:
        _, changes = _sensitivity(few, knobs)
        return float(model.values({})[0]), changes
    count = len(knobs)
    columns = {}
    for i, knob in enumerate(knobs):
        column = np.full(1 + 4 * count, knob.value)
        column[1 + 4 * i : 5 + 4 * i] = knob.steps(STEP)
        columns[knob] = column
    values = model.values(columns)
    if values.size == 1:
        return float(values[0]), [0.0] * count
    base = float(values[0])
    moved = np.abs(values[1:].reshape(count, 4) / base - 1.0)
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


def _evidence(standing: set[str], point: Point) -> str:
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
    alone = model.played or knob.side.endswith("mapping")
    values = _roots(model, knob, point, _FEW if alone else _SCAN)
    return Closing(gap.input, why, knob.path, ", ".join(map(knob.show, values)), shown)


def _roots(model: Comparison | Summary, knob: Knob, point: Point, count: int) -> list[float]:
    """Return the values in a parameter's range that give the published number.

    Of neighbouring values inside a published interval the first.

    Args:
        count: Values that are tried; between them the result is taken to be linear.
    """
    assert knob.range is not None
    low, high = knob.range
    grid = np.geomspace(low, high, count) if low > 0 else np.linspace(low, high, count)
    values = np.broadcast_to(model.values({knob: grid}), grid.shape)
    miss = np.array([relative_error(float(v), point.value) for v in values])
    found = []
    for i, here in enumerate(miss):
        if here == 0.0 and (i == 0 or miss[i - 1] != 0.0):
            found.append(float(grid[i]))
        elif i and here * miss[i - 1] < 0.0:
            part = miss[i - 1] / (miss[i - 1] - here)
            found.append(float(grid[i - 1] + part * (grid[i] - grid[i - 1])))
    return found
