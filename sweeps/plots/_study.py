"""All figures of a study: what to draw follows from its objectives and axes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from opbyte.core.errors import ConfigError
from opbyte.sweeps.console import counted
from opbyte.sweeps.plots._frames import OK, direction, frame_of, names_of, numeric
from opbyte.sweeps.plots._lines import lines
from opbyte.sweeps.plots._pareto import front_mask, pareto
from opbyte.sweeps.plots._quantities import dress, quantity, show
from opbyte.sweeps.plots._style import COLUMN, PALETTE, axes_for, figure_of, save, styled, wrapped
from opbyte.sweeps.store import Results, open_results

_FRONTS = 3
_LINES = 4
_RANKED = 20
_ACROSS = 4
_FACETS = 3
#: Letters of a title beside which a legend has room.
_TITLE = 40
#: Rows of the CSV beside a figure; the store has all points.
_NUMBERS = 20_000
#: Lines that one figure shows legibly, by colour and by dashes.
_BY = (9, 4)


@dataclass(frozen=True)
class Drawn:
    """A figure with the rows that it shows."""

    name: str
    caption: str
    ax: Axes
    data: pd.DataFrame


def study_plots(results_dir: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw what a study's objectives and axes ask for.

    A front for each pair of objectives; objectives against the numeric axes, a line for each value
    of the others; bars where no axis is numeric. Each figure is written as PNG and PDF with its
    numbers as CSV beside it.

    Args:
        results_dir: Folder of a result store.
        out: Where to write; by default `plots` in that folder.
    Returns:
        The PNG files.
    Raises:
        ConfigError: If there are no results, or no point at all.
    """
    folder = Path(out) if out is not None else _own(Path(results_dir) / "plots")
    paths = []
    for drawn in study_figures(open_results(Path(results_dir))):
        if out is None:
            _make_way(folder, drawn.name)
        paths.append(save(drawn.ax, folder / drawn.name)[0])
        drawn.data.to_csv(folder / f"{drawn.name}.csv", index=False)
        plt.close(figure_of(drawn.ax))
    return paths


def _own(folder: Path) -> Path:
    """Return the folder of results' figures.

    Raises:
        ConfigError: If it is a link: folders of strangers may lead anywhere.
    """
    if folder.is_symlink():
        rule = "figures of results stand beside them, and this is a link"
        raise ConfigError.one(str(folder), "", rule, "", "Remove it, or draw nothing: --no-plots.")
    return folder


def _make_way(folder: Path, name: str) -> None:
    """Remove links and pipes that stand where a figure is written."""
    for suffix in (".png", ".pdf", ".csv"):
        file = folder / f"{name}{suffix}"
        if file.is_symlink() or file.is_fifo():
            file.unlink()


def study_figures(results: Results) -> Iterator[Drawn]:
    """Yield the figures of a study one by one; the caller closes them.

    Args:
        results: A result store.
    """
    frame, study = frame_of(results)
    axes = varied(frame, study)
    objectives = {m: d for m, d in (study.get("objectives") or {}).items() if m in frame}
    fine = frame[frame["status"] == OK]
    objectives = {m: d for m, d in objectives.items() if fine[m].notna().any()}
    names = [a for a in axes if not numeric(frame, a)]
    numbers = sorted((a for a in axes if a not in names), key=lambda a: -frame[a].nunique())
    # Two or three values are better told apart by colour than drawn as an axis.
    across = [a for a in numbers if frame[a].nunique() >= _ACROSS] or numbers[:1]
    color = next((a for a in [*names, *numbers] if frame[a].nunique() <= _BY[0]), None)
    for x, y in list(combinations(objectives, 2))[:_FRONTS]:
        ax = pareto(results, x, y, objectives=objectives, color=color)
        caption = f"{_label(y)} against {_label(x)}; the line joins the points that nothing beats."
        drawn = _fewer(frame, front_mask(frame, objectives, frame["status"].eq(OK).to_numpy()))
        yield Drawn(f"front_{_file(y)}_{_file(x)}", caption, ax, _columns(drawn, axes, [x, y]))
    metrics = [m for m in objectives if m not in axes][:_FRONTS]
    if _kind(study) == "coe" and "seconds" not in metrics:
        metrics.append("seconds")
    for y in metrics:
        for x in across[: max(1, _LINES // len(metrics))]:
            others = [a for a in [*names, *numbers] if a != x and not _tied(frame, study, x, a)]
            yield from _line_figures(frame, x, y, others, objectives)
        if names and not numbers:
            yield _ranking(frame, y, names, objectives)


def _kind(study: Mapping[str, Any]) -> str:
    """Return the kind of work of a study, empty where its axes decide."""
    workload = (study.get("base") or {}).get("workload") or {}
    return str(workload.get("kind", ""))


def varied(frame: pd.DataFrame, study: Mapping[str, Any]) -> list[str]:
    """Return the columns of a study's axes that take more than one value."""
    names = study.get("columns") or study.get("axes") or ()
    return [n for n in names if n in frame and frame[n].nunique(dropna=False) > 1]


def _tied(frame: pd.DataFrame, study: Mapping[str, Any], x: str, axis: str) -> bool:
    """Return whether points that were written one by one give a number once x is known."""
    kind = (study.get("strategy") or {}).get("kind")
    return (
        kind in ("list", "zip")
        and numeric(frame, axis)
        and bool(frame.groupby(x)[axis].nunique(dropna=False).max() <= 1)
    )


def _line_figures(
    frame: pd.DataFrame, x: str, y: str, others: list[str], objectives: dict[str, str]
) -> Iterator[Drawn]:
    """Yield y against x; one figure for each value of a workload's axis that has no line style.

    Designs are chosen, work is given: the best over a machine's parameter means something, the
    best over output lengths does not.
    """
    by: list[str] = []
    for axis in others:
        if len(by) < 2 and frame[axis].nunique() <= _BY[len(by)] and _everywhere(frame[axis]):
            by.append(axis)
    rest = [a for a in others if a not in by]
    given = [
        axis for axis in rest
        if axis.startswith("workload.") and frame[axis].nunique() <= _FACETS
        and _everywhere(frame[axis])
    ][:1]  # fmt: skip
    for axis in given:
        kept = [a for a in others if a != axis]
        names = names_of(frame, axis)
        for value, part in frame.groupby(axis):
            where = f"{_label(axis)} {names[value]}"
            figure = _line_figure(part, x, y, by, kept, objectives, where)
            yield replace(figure, name=f"{figure.name}_{_file(where)}")
    if not given:
        yield _line_figure(frame, x, y, by, others, objectives, "")


def _everywhere(values: pd.Series[Any]) -> bool:
    """Return whether an axis has a value at every point: lines by another one leave some out."""
    return not bool((values.isna() | values.astype(str).eq("")).any())


def _line_figure(
    frame: pd.DataFrame,
    x: str,
    y: str,
    by: list[str],
    others: list[str],
    objectives: dict[str, str],
    where: str,
) -> Drawn:
    rest = [quantity(a).label for a in others if a not in by]
    named = f"best over {', '.join(rest)}"
    best = (named if len(named) <= _TITLE else "best over all else") * bool(rest)
    ax = lines(frame, x, y, by, objectives=objectives)
    title = ", ".join(t for t in (where, best) if t)
    if title:
        with styled():
            ax.set_title(wrapped(title[:1].upper() + title[1:], _TITLE))
    details = ", ".join(t for t in (where, f"best over {', '.join(rest)}" * bool(rest)) if t)
    caption = f"{_label(y)} against {_label(x)}{': ' if details else ''}{details}."
    drawn = frame
    if len(frame) > _NUMBERS:
        up = direction(y, objectives) == "min"
        ordered = frame.sort_values(y, ascending=up, kind="stable")
        drawn = ordered.drop_duplicates([x, *by]).sort_index()
    return Drawn(f"{_file(y)}_{_file(x)}", caption, ax, _columns(drawn, [x, *others], [y]))


def _ranking(frame: pd.DataFrame, y: str, axes: list[str], objectives: Mapping[str, str]) -> Drawn:
    """Draw bars, best first, where no axis is numeric."""
    fine = frame[frame["status"] == OK].dropna(subset=[y])
    best = fine.sort_values(y, ascending=direction(y, objectives) == "min").head(_RANKED)
    known = [names_of(frame, axis) for axis in axes]
    names = [
        wrapped(", ".join(of.get(v, str(v)) for of, v in zip(known, row, strict=True)), _TITLE)
        for row in best[axes].itertuples(index=False)
    ]
    deep = max(name.count("\n") + 1 for name in names)
    heights = np.arange(len(best))[::-1]
    values = best[y].to_numpy(float)
    with styled():
        ax = axes_for(None, 1.4 * COLUMN, 0.7 + (0.08 + 0.12 * deep) * len(best))
        dress(ax.xaxis, y, [0.0, *values], log=False)
        ax.barh(heights, values, 0.66, color=PALETTE[0])
        for at, value in zip(heights, values, strict=True):
            ax.annotate(
                show(float(value), y), (value, at), (3, 0), textcoords="offset points",
                va="center", fontsize=6.5,
            )  # fmt: skip
        ax.set_yticks(heights, names)
        ax.set_xlim(0, values.max() * 1.25)
        ax.grid(visible=False, axis="y")
    caption = f"{_label(y)}, the best {len(best)} of {counted(len(fine), 'point')}."
    return Drawn(f"{_file(y)}_ranking", caption, ax, _columns(frame, axes, [y]))


def _fewer(frame: pd.DataFrame, best: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Return the front and, of very many other points, evenly some: what a figure shows."""
    rest = np.flatnonzero(~best)
    kept = best.copy()
    kept[rest[:: -(-len(rest) // _NUMBERS) or 1]] = True
    return frame[kept]


def _columns(frame: pd.DataFrame, axes: list[str], metrics: list[str]) -> pd.DataFrame:
    kept = [*axes, *metrics, "status", *(["reason"] if "reason" in frame else [])]
    return frame[list(dict.fromkeys(kept))]


def _label(column: str) -> str:
    return quantity(column).label


def _file(column: str) -> str:
    path = re.sub(r"^(machine|mapping|workload)\.", "", column)
    return re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-").lower()
