"""Study and experiment files: what users write, and `load_study`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, judged, load_document, parse_assignment, set_values
from opbyte.core.errors import ConfigError, Problem
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest

if TYPE_CHECKING:
    from opbyte.sweeps.plan import Plan
    from opbyte.sweeps.store import Results

__all__ = [
    "STUDIES",
    "Axis",
    "Base",
    "Experiment",
    "LoadedStudy",
    "Study",
    "changed",
    "load_study",
    "study_name",
]

Judged = TypeVar("Judged", bound=BaseModel)

STUDIES = Catalog("study", Path(__file__).parent / "studies")

#: First words of paths that mean a part of `base`.
ROOTS = ("machine", "mapping", "workload")

#: Mappings of a study whose keys are paths.
_TABLES = ("axes", "derive")

Fidelity = Literal["bound", "analytic", "event"]


def _as_values(raw: Any) -> Any:
    return {"values": raw} if isinstance(raw, list) else raw


class AxisForm(Block):
    """Values that one parameter takes."""

    values: list[Any] | None = Field(None, min_length=1)
    """The values, one by one."""
    range: list[Any] | None = Field(None, min_length=2, max_length=2)
    """Lowest and highest value."""
    steps: int | None = Field(None, ge=2, le=1_000_000)
    """Number of values in `range`; without it the axis is continuous (random, sobol, optuna)."""
    scale: Literal["linear", "log"] = "linear"
    """Equal differences or equal ratios in `range`."""
    log2: list[Any] | None = Field(None, min_length=2, max_length=2)
    """Lowest value and highest value; each is twice the one before."""
    when: dict[str, Any] | None = Field(None, min_length=1)
    """Other axis -> value or values at which this one means anything; elsewhere it stays as `base`
    has it, and is no point of its own. The other axis stands before this one."""

    @model_validator(mode="after")
    def _one_form(self) -> AxisForm:
        given = [n for n in ("values", "range", "log2") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                "an axis needs exactly one of values, range and log2. Write for example "
                "{range: [0.8 TB/s, 4 TB/s], steps: 9}"
            )
        if given != ["range"] and ("steps" in self.model_fields_set or self.scale != "linear"):
            raise ValueError("steps and scale belong to range. Remove them")
        return self


Axis = Annotated[AxisForm, BeforeValidator(_as_values)]


class Base(Block):
    """What every point has in common."""

    machine: str | dict[str, Any] | None = None
    """Catalog name, file or machine."""
    workload: dict[str, Any] = Field(default_factory=dict)
    """`kind` and its fields."""
    mapping: str | dict[str, Any] | None = None
    """Name of one of the machine's mappings, file or mapping; default: the machine's own."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Changed parameters by path, such as machine.rdu.hbm.phy.bandwidth: 2 TB/s."""


class Baseline(Block):
    """What `speedup` compares with: parts of `base` that differ, at the same workload."""

    machine: str | dict[str, Any] | None = None
    workload: dict[str, Any] = Field(default_factory=dict)
    mapping: str | dict[str, Any] | None = None


class Budget(Block):
    """What machines are compared within: as much as so many of one cost (docs/one-budget.md)."""

    machine: str
    """Catalog name or file."""
    count: int = Field(ge=1)
    """How many of them the budget buys, in money, die area and design power each."""


class Grid(Block):
    """Every combination of the axes' values."""

    kind: Literal["grid"] = "grid"


class Zip(Block):
    """The first values of all axes together, then the second ones."""

    kind: Literal["zip"]


class List(Block):
    """Points one by one."""

    kind: Literal["list"]
    points: list[dict[str, Any]] = Field(min_length=1)
    """Each point gives a value for every path."""


class Random(Block):
    """Independent points."""

    kind: Literal["random"]
    points: int = Field(ge=1, le=100_000_000)
    seed: int = Field(0, ge=0)


class Sobol(Block):
    """Points of a scrambled Sobol sequence."""

    kind: Literal["sobol"]
    points: int = Field(ge=1, le=100_000_000)
    seed: int = Field(0, ge=0)


class Optuna(Block):
    """A search of the front, round by round; docs/search.md."""

    kind: Literal["optuna"]
    trials: int | None = Field(None, ge=1)
    """Distinct points to evaluate; default: a twentieth of the grid and at
    least 100, or 400 without a grid."""
    population: int = Field(32, ge=4)
    """Points of one round."""
    seed: int = Field(0, ge=0, lt=2**32)
    sampler: Literal["nsga2", "nsga3", "tpe", "qmc", "gp", "random"] = "nsga2"
    """Who proposes points where there is no screen."""
    designs: list[dict[str, Any]] = Field(default_factory=list)
    """Points to begin with: a value for each axis."""
    results: list[str] = Field(default_factory=list)
    """Folders of results whose fronts to begin with, at the nearest values of the axes."""
    screen: Literal["auto", "analytic", "bound", "none"] = "auto"
    """Fidelity at which all points are looked at first. `auto`: analytic where fidelity is event,
    the points can be counted (up to 10^7), and the work has an analytic model."""


Strategy = Annotated[Grid | Zip | List | Random | Sobol | Optuna, Field(discriminator="kind")]


class Study(Block):
    """A study file."""

    kind: Literal["study"]
    name: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", max_length=100)
    """Name of the folder of results; default: the file's name."""
    description: str = ""
    base: Base
    fidelity: Fidelity = "analytic"
    baseline: Baseline | None = None
    budget: Budget | None = None
    axes: dict[str, Axis] = Field(default_factory=dict)
    derive: dict[str, str | float] = Field(default_factory=dict)
    """Parameters that follow from others: path -> expression."""
    objectives: dict[str, Literal["min", "max"]] = Field(default_factory=dict)
    constraints: list[str] = Field(default_factory=list)
    """What a point must keep, such as tpot <= 20 ms."""
    strategy: Strategy = Grid()
    seed: int = Field(0, ge=0)
    """For work that draws random numbers."""


class Experiment(Block):
    """An experiment file: one point."""

    kind: Literal["experiment"]
    name: str = ""
    description: str = ""
    machine: str | dict[str, Any] | None = None
    """Catalog name, file or machine."""
    workload: dict[str, Any] = Field(default_factory=dict)
    """`kind` and its fields."""
    mapping: str | dict[str, Any] | None = None
    fidelity: Fidelity = "analytic"
    set: dict[str, Any] = Field(default_factory=dict)
    """Changed parameters by path."""
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class LoadedStudy:
    """A study that was read, validated and checked against its machines and workload."""

    plan: Plan

    @property
    def name(self) -> str:
        """Return the name of the folder of results."""
        return self.plan.name

    def run(
        self,
        out: str | Path | None = None,
        workers: int | None = None,
        executor: Any = None,
        fresh: bool = False,
    ) -> Results:
        """Evaluate every point that is not stored yet, and return all of them.

        Args:
            out: Folder of results; default `results/<name>`.
            workers: Processes; default: as many as pay.
            executor: What to use instead of local processes: a `concurrent.futures.Executor`, or
                a text as of `--executor`, such as dask://HOST:PORT.
            fresh: Remove what the folder holds before.

        Raises:
            ConfigError: If the folder holds the results of another study.
        """
        from opbyte.sweeps.runner import Options, run_plan

        options = Options(out=Path(out) if out else None, workers=workers, fresh=fresh)
        if isinstance(executor, str):
            return run_plan(self.plan, dataclasses.replace(options, executor=executor))
        return run_plan(self.plan, options, executor=executor)


def load_study(
    source: str | Path | Mapping[str, Any] | Document, settings: Mapping[str, Any] | None = None
) -> LoadedStudy:
    """Return a study from a file, a name of the shipped studies, or a dict.

    Args:
        source: What to read.
        settings: Changed values by path, as of `--set`.

    Raises:
        ConfigError: With every problem: of the file, its machines, workload, axes, objectives.
    """
    from opbyte.sweeps.plan import Plan

    problems = Problems()
    if isinstance(source, Document):
        document = source
    elif isinstance(source, Mapping):
        document = Document(dict(source), {}, "study")
    else:
        # Results of a shipped study may lie in a folder of its name.
        folder = Path(source).is_dir() and source not in STUDIES.names()
        path = Path(source) if folder else STUDIES.find(source)
        right = partial(not_another, kind="study")
        document = load_document(path, STUDIES.path, check=right, problems=problems)
    study, document = judged_as(Study, document, settings, problems, kind="study", base="base")
    return LoadedStudy(Plan.build(study, document, problems))


def judged_as(
    cls: type[Judged],
    document: Document,
    settings: Mapping[str, Any] | None,
    problems: Problems,
    *,
    kind: str,
    base: str,
) -> tuple[Judged, Document]:
    """Return a document of `kind` with settings applied, as a `cls`, and the document itself.

    Args:
        settings: Value by path, as of `--set`.
        problems: Takes what is wrong, unless nothing more can be judged.
        base: See `changed`.

    Raises:
        ConfigError: With every problem so far, where nothing more can be judged.
    """
    if settings:
        with problems.keep():
            document = changed(document, settings, base)
    found = judged(cls, with_kind(document, kind), problems)
    if found is None or not document.whole:
        problems.tell()
    assert found is not None
    return found, document


def with_kind(document: Document, kind: str) -> Document:
    """Return the document, which must be of `kind`.

    Raises:
        ConfigError: If it is of another kind, or of none.
    """
    not_another(document, kind)
    if document.data.get("kind") is None:
        where = document.where(("kind",))
        raise ConfigError.one(where, "", "the key 'kind' is missing", "", f"Write `kind: {kind}`.")
    return document


def not_another(document: Document, kind: str) -> None:
    """Refuse a document that says to be of another kind.

    Raises:
        ConfigError: If it does.
    """
    found = document.data.get("kind")
    if found is None or found == kind:
        return
    where, remedy = document.where(("kind",)), f"Write `kind: {kind}`."
    uses = {
        "study": "Use `opbyte sweep`.",
        "experiment": "Use `opbyte run`.",
        "machine": "Use `opbyte explain`, or name it in a study.",
    }
    remedy = uses.get(found, remedy) if isinstance(found, str) else remedy
    raise ConfigError.one(where, "kind", f"a file of kind {kind!r} is due", found, remedy)


def study_name(study: Study, document: Document) -> str:
    """Return the study's name: its own, else that of its file."""
    return study.name or Path(document.name).name.split(".")[0] or "study"


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """Return path -> value of texts such as `workload.batch=8`.

    Raises:
        ConfigError: With every text that is no setting.
    """
    settings: dict[str, Any] = {}
    problems: list[Problem] = []
    for text in texts:
        try:
            path, value = parse_assignment(text)
            settings[path] = value
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return settings


def _is_new(table: Any, path: str) -> bool:
    """Return whether a path names a whole entry of `axes` or `derive`, present or not."""
    if not isinstance(table, Mapping | None):
        return False
    words = path.split(".")
    inside = any(".".join(words[:n]) in (table or {}) for n in range(1, len(words)))
    return words[0] in ROOTS and not inside


def changed(document: Document, settings: Mapping[str, Any], base: str) -> Document:
    """Return the document with settings applied.

    A path that starts with machine, mapping or workload means the base of all points, whatever
    file it is written in; any other path is one of the document itself.

    Args:
        document: A study (`base` is "base") or an experiment (`base` is "").
        settings: Value by path.
        base: Key of the mapping that holds machine, workload and mapping.

    Raises:
        ConfigError: For a path that leads nowhere, with the nearest name.
    """
    holder = document.data.get(base) if base else document.data
    if not isinstance(holder, Mapping):
        return document
    own: dict[str, Any] = {}
    added: dict[str, dict[str, Any]] = {}
    inner = dict(holder.get("set") or {}) if isinstance(holder.get("set") or {}, Mapping) else {}
    for path, value in settings.items():
        root, _, rest = path.partition(".")
        if root in ROOTS and rest:
            inner[path] = value
        elif root in ROOTS:
            own[f"{base}.{path}" if base else path] = value
        elif root in _TABLES and rest and _is_new(document.data.get(root), rest):
            added.setdefault(root, {})[rest] = value
        else:
            own[path] = value
    for table, entries in added.items():
        whole = {**(document.data.get(table) or {}), **entries}
        document = dataclasses.replace(document, data={**document.data, table: whole})
    if own:
        document = set_values(document, own, transparent=())
        holder = document.data[base] if base else document.data
    if inner:
        whole = {**holder, "set": inner}
        data = {**document.data, base: whole} if base else whole
        at = (base, "set") if base else ("set",)
        marks = {p: m for p, m in document.marks.items() if p[:-1] != at or p[-1] not in settings}
        document = dataclasses.replace(document, data=data, marks=marks)
    return document


def wrong_root(path: str) -> tuple[str, str, str] | None:
    """Return rule, value and remedy where a path starts with none of `ROOTS`, or ends with it."""
    root, dot, rest = path.partition(".")
    if root in ROOTS and (rest or not dot):
        return None
    near = nearest(root, ROOTS)
    hint = f"Did you mean {near!r}? " if near else ""
    rule = "a path must start with machine, mapping or workload"
    return rule, path, f"{hint}Write for example workload.batch."
