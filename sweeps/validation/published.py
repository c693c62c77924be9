"""Published numbers as data: what was measured, where it stands, and how to simulate it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, load_document, validate

#: What a number is worth, best first.
CLASSES = ("predicted", "assumed", "calibrated", "internal", "open")
EvidenceClass = Literal["predicted", "assumed", "calibrated", "internal", "open"]
Target = Literal["measured", "simulated", "reported"]


class Source(Block):
    """Where the numbers come from."""

    title: str
    venue: str = ""
    url: str = ""
    where: str = ""
    target: Target
    read_by: Literal["table", "text", "figure", "data"] = "text"
    reading_error: float = Field(0.0, ge=0)


class Setup(Block):
    """What to simulate: parts of it may come from the file's `experiment`."""

    machine: str | None = None
    mapping: Any = None
    workload: dict[str, Any] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    """Machine parameters that the source states otherwise, as `{value, source, range}`."""
    fidelity: Literal["bound", "analytic"] | None = None
    """That of the setup below where it is left out, and analytic at last."""

    def over(self, base: Setup) -> Setup:
        """Return this setup on top of another."""
        # A workload of another kind starts afresh, and so do the parameters of another machine.
        same = self.workload.get("kind", base.workload.get("kind")) == base.workload.get("kind")
        return Setup(
            machine=self.machine or base.machine,
            mapping=self.mapping if self.mapping is not None else base.mapping,
            workload={**(base.workload if same else {}), **self.workload},
            set={**(base.set if self.machine in (None, base.machine) else {}), **self.set},
            fidelity=self.fidelity or base.fidelity,
        )


class Gap(Block):
    """The input that is missing, and where to look for the value that would close the row."""

    input: str
    """Name of an entry of the file's `gaps`."""
    parameter: str | None = None
    """Dotted path, `machine.`, `baseline.`, `mapping.` or `workload.` first, that stands for it."""
    range: tuple[Any, Any] | None = None
    """Where to look for a closing value; with units, as the parameter is written."""


class Alternative(Block):
    """What a machine may have instead, where no number of a range says it: a kernel for instance.

    The result with it belongs to the range of a point that rests on the choice.
    """

    source: str
    """Where it comes from, and what is assumed by leaving it out."""
    set: dict[str, Any]
    """Machine parameters and blocks, as in an experiment."""


class Fact(Block):
    """The entry of a collection of facts that a point is, where its name or unit are others."""

    id: str
    as_: str = Field("value", alias="as")
    """Our number: an expression over `value`."""


class Case(Block):
    """One of several experiments over which a number is the mean."""

    experiment: Setup = Setup()
    baseline: Setup | None = None


class Point(Block):
    """One published number."""

    id: str
    metric: str
    """A metric of the work, or `value: EXPRESSION` over machine parameters and metrics."""
    value: float | tuple[float | None, float | None]
    """The number, or the interval that was given."""
    tolerance: float = Field(ge=0)
    experiment: Setup = Setup()
    baseline: Setup | None = None
    """With a baseline the point is baseline metric / metric, or its inverse by `ratio`."""
    over: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """A field of the workload and the values that the number sums up, say models."""
    reduce: Literal["mean", "geomean", "max"] = "mean"
    """How it sums up the values, or the ratios, of `over`."""
    operators: tuple[str, ...] = ()
    """Operators whose seconds, over all their runs, are the metric `operator_seconds`."""
    mean: tuple[Case, ...] = ()
    """Experiments and baselines, on top of the point's own, whose results are averaged."""
    ratio: Literal["baseline/ours", "ours/baseline", "gain", "cut"] = "baseline/ours"
    """`gain` is how much more ours is than the baseline, `cut` how much less, in percent."""
    unit: str = ""
    where: str = ""
    target: Target | None = None
    at_most: EvidenceClass | None = None
    reason: str = ""
    gap: Gap | tuple[Gap, ...] | None = None
    alternatives: tuple[str, ...] = ()
    """Names of the file's alternatives that this number may rest on."""
    fact: Fact | None = None

    @model_validator(mode="after")
    def _complete(self) -> Point:
        if isinstance(self.value, tuple) and self.value[0] is None and self.value[1] is None:
            raise ValueError("an interval needs at least one end")
        if len(self.over) > 1 or any(len(values) < 2 for values in self.over.values()):
            raise ValueError("`over` is one field of the workload with two values or more")
        if self.over and self.mean:
            raise ValueError("a number sums up `over` or is the mean of `mean`. give one of them")
        if self.at_most == "open" and not self.gap:
            raise ValueError("an open point names the missing input under `gap`")
        if self.at_most is not None and not self.reason and not self.gap:
            raise ValueError("a class that is lowered by hand needs a `reason`")
        return self

    @property
    def missing(self) -> tuple[Gap, ...]:
        """Return the gaps of this point."""
        if self.gap is None:
            return ()
        return self.gap if isinstance(self.gap, tuple) else (self.gap,)


class Published(Block):
    """A file of `sweeps/published`."""

    kind: Literal["published"] = "published"
    source: Source
    experiment: Setup = Setup()
    gaps: dict[str, str] = Field(default_factory=dict)
    alternatives: dict[str, Alternative] = Field(default_factory=dict)
    points: tuple[Point, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Published:
        ids = [p.id for p in self.points]
        double = sorted({i for i in ids if ids.count(i) > 1})
        if double:
            raise ValueError(f"the id {double[0]!r} occurs twice. ids are unique in a file")
        for point in self.points:
            for gap in point.missing:
                if gap.input not in self.gaps:
                    known = ", ".join(self.gaps) or "none"
                    raise ValueError(
                        f"point {point.id!r}: no gap is called {gap.input!r}. Known: {known}"
                    )
            for name in point.alternatives:
                if name not in self.alternatives:
                    known = ", ".join(self.alternatives) or "none"
                    raise ValueError(
                        f"point {point.id!r}: no alternative is called {name!r}. Known: {known}"
                    )
        return self


def published_catalog(folder: Path | None = None) -> Catalog:
    """Return the catalog of published sources, of the package or of another folder."""
    return Catalog("source", folder or Path(__file__).parent.parent / "published")


def load_published(name: str, folder: Path | None = None) -> tuple[Published, Document]:
    """Return a source and its document.

    Args:
        name: Catalog name or path.
        folder: Folder to look in; the package's by default.
    Raises:
        ConfigError: With every problem of the file.
    """
    catalog = published_catalog(folder)
    find: Callable[[str], Path] = catalog.path
    document = load_document(catalog.find(name), find)
    return validate(Published, document), document
