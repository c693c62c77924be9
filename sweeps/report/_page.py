"""Fills the template; everything is inlined, so that one file can be mailed or archived."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import opbyte
from opbyte.core.errors import ConfigError
from opbyte.sweeps.report._evidence import evidence
from opbyte.sweeps.report._findings import findings
from opbyte.sweeps.store import Results, open_results

TEMPLATE = "page.html.j2"
_FRONT_ROWS = 25


def write_report(results_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write one HTML page about a study's results.

    Args:
        results_dir: Folder of a result store.
        out: File to write; by default `report.html` in that folder.
    Returns:
        The file.
    Raises:
        ConfigError: If there are no results, or the packages of the `report` extra are missing.
    """
    environment = _jinja()
    folder = Path(results_dir)
    results = open_results(folder)
    target = Path(out) if out is not None else folder / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    page = environment.get_template(TEMPLATE).render(context(results, folder))
    target.write_text(page, encoding="utf-8")
    return target


def context(results: Results, folder: Path) -> dict[str, Any]:
    """Return what the template shows.

    Args:
        results: A result store.
        folder: Where it lies, for the commands that run the study again.
    """
    from opbyte.sweeps.plots._frames import frame_of
    from opbyte.sweeps.plots._study import varied
    from opbyte.sweeps.report._explore import explore

    frame, study = frame_of(results)
    axes = varied(frame, study)
    objectives = {m: d for m, d in (study.get("objectives") or {}).items() if m in frame}
    return {
        "title": str(study.get("name") or folder.resolve().name),
        "description": str(results.meta.get("description") or study.get("description") or ""),
        "findings": findings(frame, study, axes),
        "figures": _figures(results),
        "front": _front(frame, objectives, axes),
        "explore": explore(frame, objectives, axes),
        "asked": _asked(study),
        "study": _as_yaml(study),
        "evidence": evidence(study),
        "environment": _environment(results),
        "folder": folder,
    }


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
    import matplotlib.pyplot as plt

    from opbyte.sweeps.plots import study_figures, styled
    from opbyte.sweeps.plots._style import figure_of

    found = []
    for drawn in study_figures(results):
        buffer = io.BytesIO()
        figure = figure_of(drawn.ax)
        with styled():
            figure.savefig(buffer, format="png", metadata={"Software": None})
        width = round(figure.get_figwidth() * 104)
        plt.close(figure)
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        found.append(
            {"name": drawn.name, "caption": drawn.caption, "uri": uri, "width": str(width)}
        )
    return found


def _front(frame: pd.DataFrame, objectives: Mapping[str, str], axes: list[str]) -> dict[str, Any]:
    """Return the table of the front: heads, rows of texts, and how many there are."""
    from opbyte.sweeps.plots._frames import OK, cell
    from opbyte.sweeps.plots._pareto import front_mask
    from opbyte.sweeps.plots._quantities import quantity

    columns = list(dict.fromkeys([*axes, *objectives]))
    if "speedup" in frame and "speedup" not in columns:
        columns.append("speedup")
    heads = [quantity(c).label for c in columns]
    if not objectives:
        return {"heads": heads, "rows": [], "total": 0, "objectives": len(objectives)}
    mask = front_mask(frame, objectives, (frame["status"] == OK).to_numpy())
    first, sense = next(iter(objectives.items()))
    best = frame[mask].sort_values(first, ascending=sense == "min")
    rows = [[cell(row[c], c) for c in columns] for _, row in best.head(_FRONT_ROWS).iterrows()]
    kinds = ["word" if c in axes else "number" for c in columns]
    return {"heads": list(zip(heads, kinds, strict=True)), "rows": rows, "total": len(best),
            "kinds": kinds, "objectives": len(objectives)}  # fmt: skip


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
    import yaml

    return yaml.safe_dump(
        {k: v for k, v in study.items() if v not in (None, {}, [], "") and k != "columns"},
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
