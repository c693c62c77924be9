"""Fills the template; everything is inlined, so that one file can be mailed or archived."""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import opbyte
from opbyte.core.errors import ConfigError
from opbyte.sweeps.files import whole
from opbyte.sweeps.report._contest import contested
from opbyte.sweeps.report._evidence import evidence
from opbyte.sweeps.report._figures import picture
from opbyte.sweeps.report._findings import findings
from opbyte.sweeps.report._importance import caption, importance
from opbyte.sweeps.report._inside import inside, left_out
from opbyte.sweeps.report._linked import LIMIT, Linked, linked, script_json
from opbyte.sweeps.report._progress import order_of, progress
from opbyte.sweeps.store import Results, open_results

TEMPLATE = "page.html.j2"
#: Scripts of a page, in the order in which they stand there.
SCRIPTS = ("columns", "scales", "scatter", "parallel", "table", "explore")
_FRONT_ROWS = 25


@dataclass(frozen=True)
class Written:
    """A page that was written.

    Attributes:
        path: The file.
        size: Bytes.
        points: Points of the store.
        shown: Points on the page.
        front: Points on the front.
    """

    path: Path
    size: int
    points: int
    shown: int
    front: int


def write_report(
    results_dir: str | Path,
    out: str | Path | None = None,
    *,
    designs: bool = True,
    limit: int | None = None,
) -> Path:
    """Write one HTML page about a study's results; see `report`.

    Returns:
        The file.
    """
    return report(results_dir, out, designs=designs, limit=limit).path


def report(
    results_dir: str | Path,
    out: str | Path | None = None,
    *,
    designs: bool = True,
    limit: int | None = None,
) -> Written:
    """Write one HTML page about a study's results.

    Args:
        results_dir: Folder of a result store.
        out: File to write; by default `report.html` in that folder.
        designs: Simulate the chosen designs again: breakdown, timeline, sensitivity, and the band
            of a study with a budget.
        limit: Most points on the page; the front of more is whole.
    Raises:
        ConfigError: If there are no results, or the packages of the `report` extra are missing.
    """
    environment = _jinja()
    folder = Path(results_dir)
    results = open_results(folder)
    target = Path(out) if out is not None else folder / "report.html"
    if target.is_dir():
        rule, remedy = "a file is due here, this is a folder", f"Write {target / 'report.html'}."
        raise ConfigError.one(str(target), "", rule, "", remedy)
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = context(results, folder, designs=designs, limit=limit)
    page = environment.get_template(TEMPLATE).render(shown).encode("utf-8")
    if out is not None:
        target.write_bytes(page)
    else:  # never through a link that lies in the folder
        with whole(target) as file:
            file.write(page)
    front = shown["front"]["total"]
    points: Linked = shown["linked"]
    return Written(target, len(page), points.total, points.kept, front)


def context(
    results: Results, folder: Path, *, designs: bool = False, limit: int | None = None
) -> dict[str, Any]:
    """Return what the template shows.

    Args:
        results: A result store.
        folder: Where it lies, for the commands that run the study again.
        designs: Simulate the chosen designs again.
        limit: Most points on the page.
    """
    from opbyte.sweeps.plots._frames import OK
    from opbyte.sweeps.plots._pareto import front_mask
    from opbyte.sweeps.plots._study import varied

    stored = _stored(results)
    frame, study = _frame(results, stored)
    axes = varied(frame, study)
    objectives = {m: d for m, d in (study.get("objectives") or {}).items() if m in frame}
    best = front_mask(frame, objectives, (frame["status"] == OK).to_numpy())
    points = linked(frame, stored, objectives, axes, best, limit or LIMIT)
    about = (
        inside(results, stored, objectives, axes, best)
        if designs
        else left_out("The chosen designs were not simulated again.")
    )
    work = _inline((study.get("base") or {}).get("workload") or "what the axes say")
    script = _script()
    return {
        "title": str(study.get("name") or folder.resolve().name),
        "description": str(results.meta.get("description") or study.get("description") or ""),
        "findings": findings(frame, study, axes) if len(frame) else ["There is no point yet."],
        "figures": _figures(results) if len(frame) else [],
        "front": _front(frame, objectives, axes, best),
        "linked": points,
        "data": script_json(points.spec),
        "script": script,
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "importance": _importance(frame, objectives, axes),
        "progress": _progress(results, stored, objectives),
        "contest": contested(results, work) if designs else None,
        "inside": about,
        "asked": _asked(study),
        "study": _as_yaml(study),
        "evidence": evidence(study),
        "environment": _environment(results),
        "folder": folder,
    }


def _stored(results: Results) -> pd.DataFrame:
    """Return the points as the store has them; without any, the columns that they would have."""
    stored = results.frame()
    if len(stored):
        return stored
    names = [*results.axes, *results.meta.get("metrics", ()), *results.objectives]
    empty = pd.DataFrame({n: pd.Series(dtype=float) for n in dict.fromkeys(["point", *names])})
    return empty.assign(status=pd.Series(dtype=object), reason=pd.Series(dtype=object))


def _frame(results: Results, stored: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the points with the status that pages show, and the study."""
    from opbyte.sweeps.plots._frames import frame_of

    if len(stored):
        return frame_of(results)
    study = {**results.meta["study"], "name": results.name, "columns": results.axes}
    return stored, study


def _script() -> str:
    """Return all scripts as one, in a scope of their own."""
    here = Path(__file__).parent
    texts = [(here / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n{\n' + "\n".join(texts) + "}\n"


def _importance(
    frame: pd.DataFrame, objectives: Mapping[str, str], axes: list[str]
) -> dict[str, str] | None:
    """Return the figure of the axes' shares, None where there is nothing to explain."""
    from opbyte.sweeps.plots import shares
    from opbyte.sweeps.plots._quantities import quantity

    table = importance(frame, list(objectives), axes)
    if table.empty:
        return None
    labels = {n: quantity(n).label for n in [*table.index, *table.columns]}
    text = (
        f"Share of the variance over the points that each axis explains alone. Most: "
        f"{caption(table, labels)} Axes that a search moved together share the credit."
    )
    drawn = table.rename(columns=labels, index=labels)
    return picture(shares(drawn, "Share of the variance"), text)


def _progress(
    results: Results, stored: pd.DataFrame, objectives: Mapping[str, str]
) -> dict[str, str] | None:
    """Return the figure of a search's hypervolume, None where points have no order."""
    from opbyte.sweeps.plots import progress as draw

    order = order_of(results, stored)
    if order is None or not len(order) or not objectives:
        return None
    found = progress(stored, objectives, order)
    if found.empty:
        return None
    enough = found.loc[found["share"] >= 0.99, "points"].iloc[0]
    text = (
        f"Points in order of evaluation, {len(order):,} in all; 99 % after {int(enough):,}. "
        "Objectives normalised by the final front, reference 10 % beyond its worst values."
    )
    return picture(draw(found), text)


def _jinja() -> Any:
    """Return the template environment.

    Raises:
        ConfigError: Without jinja2.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise ConfigError.one(
            "", "report", "the HTML page needs jinja2, which is not installed", "",
            "Install it with: pip install 'opbyte[report]'",
        ) from None  # fmt: skip
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figures(results: Results) -> list[dict[str, str]]:
    """Return the study's figures as data URIs with captions."""
    from opbyte.sweeps.plots import study_figures

    return [picture(d.ax, d.caption, d.name) for d in study_figures(results)]


def _front(
    frame: pd.DataFrame, objectives: Mapping[str, str], axes: list[str], mask: Any
) -> dict[str, Any]:
    """Return the table of the front: heads, rows of texts, and how many there are."""
    from opbyte.sweeps.plots._frames import cell
    from opbyte.sweeps.plots._quantities import quantity

    columns = list(dict.fromkeys([*axes, *objectives]))
    if "speedup" in frame and "speedup" not in columns:
        columns.append("speedup")
    kinds = ["word" if c in axes else "number" for c in columns]
    heads = list(zip([quantity(c).label for c in columns], kinds, strict=True))
    about = {"heads": heads, "kinds": kinds, "objectives": len(objectives)}
    if not objectives or not mask.any():
        return {**about, "rows": [], "total": 0}
    first, sense = next(iter(objectives.items()))
    best = frame[mask].sort_values(first, ascending=sense == "min")
    rows = [[cell(row[c], c) for c in columns] for _, row in best.head(_FRONT_ROWS).iterrows()]
    return {**about, "rows": rows, "total": len(best)}


def _asked(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the question as pairs of a word and its value."""
    base = study.get("base") or {}
    pairs = [
        ("Machine", _inline(base.get("machine", "by axis"))),
        ("Workload", _inline(base.get("workload", ""))),
        ("Mapping", _inline(base.get("mapping") or "the machine's own")),
        ("Fidelity", str(study.get("fidelity", "analytic"))),
    ]
    if study.get("baseline"):
        pairs.append(("Baseline", _inline(study["baseline"])))
    if study.get("budget"):
        pairs.append(("Budget", _inline(study["budget"])))
    pairs += [(f"Axis {p}", _inline(v)) for p, v in (study.get("axes") or {}).items()]
    pairs += [(f"Derived {p}", str(v)) for p, v in (study.get("derive") or {}).items()]
    pairs += [("Objective", f"{d} {m}") for m, d in (study.get("objectives") or {}).items()]
    pairs += [("Constraint", str(c)) for c in study.get("constraints") or []]
    return [*pairs, ("Strategy", _inline(study.get("strategy") or {"kind": "grid"}))]


def _inline(value: Any) -> str:
    """Return a value as one line of YAML."""
    if isinstance(value, Mapping):
        parts = ", ".join(f"{k}: {_inline(v)}" for k, v in value.items() if v is not None)
        return f"{{{parts}}}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_inline(v) for v in value[:12])
        return f"[{shown}{f', … {len(value)} in all' if len(value) > 12 else ''}]"
    return str(value)


def _as_yaml(study: Mapping[str, Any]) -> str:
    """Return the study as a file; the machines, which it names, are in `study.json`."""
    import yaml

    left_out = ("columns", "machines", "files", "kind")
    kept = {k: v for k, v in study.items() if v not in (None, {}, [], "") and k not in left_out}
    return yaml.safe_dump(
        {"kind": "study", **kept},
        sort_keys=False, allow_unicode=True, width=96, default_flow_style=None,
    )  # fmt: skip


def _environment(results: Results) -> list[tuple[str, str]]:
    """Return what the numbers were computed with, and what wrote this page."""
    shown = ("study", "axes", "units", "name", "description", "metrics", "derived")
    stored = {k: v for k, v in results.meta.items() if k not in shown}
    pairs = [(str(k).replace("_", " "), _inline(v)) for k, v in stored.items()]
    return [
        *pairs,
        ("page written by", f"opbyte {opbyte.__version__}, Python {platform.python_version()}"),
    ]
