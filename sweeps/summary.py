"""The end of a sweep: what was found, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.sweeps.console import Output, counted, shown
from opbyte.sweeps.pareto import feasible, front_of
from opbyte.sweeps.store import Results

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["show"]

_MOST_ROWS = 20
_MOST_NAMES = 12


def show(
    results: Results,
    output: Output,
    drawn: list[Path],
    search: Mapping[str, Any] | None = None,
) -> None:
    """Print counts, the front with its baseline, reasons of points without a result, figures.

    Args:
        results: The folder.
        output: Where to.
        drawn: Figures.
        search: How a search went (`search.json`), where the points come from one.
    """
    columns = results.columns(None if output.json else _wanted(results))
    objectives = {n: d for n, d in results.objectives.items() if n in columns}
    best = front_of(columns, objectives).tolist() if objectives else []
    counts = results.counts
    kept = int(feasible(columns).sum())
    reasons = _reasons(columns)
    budget = _contest(results)
    output.data(
        {
            "name": results.name,
            "out": str(results.folder),
            "points": {"total": sum(counts.values()), **counts, "feasible": kept},
            "objectives": objectives,
            "front": [_row(columns, int(i)) for i in best],
            "reasons": reasons,
            "plots": [str(p) for p in drawn],
            **({"search": dict(search)} if search else {}),
            **_budget_data(budget),
        }
    )
    if output.silent:
        return
    if len(best):
        _front_table(results, output, columns, objectives, best)
    _limits_table(results, output, columns)
    if budget is not None:
        _budget_table(budget, output)
    listed = ", ".join(f"{counts[s]:,} {s}" for s in ("ok", "infeasible", "failed") if s in counts)
    broken = counts.get("ok", 0) - kept
    if broken:
        listed += f" ({broken:,} of the ok ones break a constraint)"
    total = sum(counts.values())
    output.line(f"{counted(total, 'point')}: {listed}")
    if objectives and not len(best):
        output.line("  no point is ok and keeps every constraint, so there is no front")
    for line in _search_lines(results, search or {}):
        output.line(f"  {line}")
    for reason, count in list(reasons.items())[:5]:
        output.line(f"  {count:,} x {reason}")
    output.line(f"results: {results.folder}")
    for path in drawn:
        output.line(f"figure: {path}")


def _contest(results: Results) -> pd.DataFrame | None:
    """Return who does most within the study's budget, None where it has none."""
    if "budget" not in results.meta["study"] or not results.counts.get("ok"):
        return None
    from opbyte.sweeps.budget import contest

    return contest(results)


def _budget_data(found: pd.DataFrame | None) -> dict[str, Any]:
    return {} if found is None else {"budget": {**found.attrs, "rows": found.to_dict("records")}}


def _budget_table(found: pd.DataFrame, output: Output) -> None:
    """Print who does most within each budget, its band, and what that rests on."""
    dimensions = {"price_usd": "dollars", "area_m2": "area", "tdp_w": "watts"}
    spent = found.attrs["budget"]
    heads = ["within", "machine", "copies", "tokens/s", "5 % .. 95 %", "best in", "best design",
             "evidence"]  # fmt: skip
    rows = []
    for row in found.to_dict("records"):
        within = row["within"]
        limit = shown(spent[within], dimensions[within]) if within in spent else "all three"
        rows.append(
            [
                limit,
                row["machine"] if row["built"] else f"{row['machine']} (not built)",
                f"{row['copies']}",
                f"{row['tokens_per_s']:.4g}",
                f"{row['low']:.4g} .. {row['high']:.4g}",
                f"{100 * row['wins']:.0f} %",
                row["design"],
                row["evidence"],
            ]
        )
    output.table("Within one budget", heads, rows, left=2)
    for name, reason in found.attrs["refused"].items():
        output.line(f"  {name} takes no part: {reason}")
    for name, count in found.attrs["uncovered"].items():
        output.line(f"  {name}: no model covers {count:,} of its points")


def _search_lines(results: Results, search: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a search has to say about its front."""
    if search.get("screen", "none") == "none":
        return
    fidelity = results.meta["study"]["fidelity"]
    yield (
        f"{counted(search['screened'], 'point')} screened ({search['screen']}), "
        f"{search['played']:,} played ({fidelity}); the front is of played points alone"
    )
    left = search["could_still_join"]
    if left:
        points = counted(left, "screened point")
        yield f"{points} could still join the front: raise --budget to play them"
    else:
        yield "no other point could join the front within the measured gaps of the two fidelities"
    for name in search["law_broken"]:
        yield f"{name} was better at the {fidelity} level than on the screen somewhere"


def _wanted(results: Results) -> list[str]:
    """Return the columns that the tables need, of those that are stored."""
    objectives = list(results.objectives)
    names = ["status", "reason", "violation", "speedup", *results.axes, *objectives]
    names += [f"baseline_{name}" for name in objectives[:1]]
    stored = results.names
    return [name for name in names if name in stored]


def _front_table(
    results: Results, output: Output, columns: Any, objectives: dict[str, str], best: Any
) -> None:
    varied = [a for a in results.axes if len(set(columns[a].tolist())) > 1] or results.axes
    extra = [n for n in ("speedup",) if n in columns and n not in objectives]
    first = next(iter(objectives))
    baseline = [n for n in (f"baseline_{first}",) if n in columns]
    names = [*varied, *objectives, *extra, *baseline]
    names = list(dict.fromkeys(names))
    dimensions = results.dimensions
    spread = sorted({round(k) for k in np.linspace(0, len(best) - 1, min(len(best), _MOST_ROWS))})
    picked = [best[k] for k in spread]
    rows = [[shown(columns[n][i], dimensions.get(n)) for n in names] for i in picked]
    heads = [f"{n} ({objectives[n]})" if n in objectives else n for n in names]
    more = f", {_MOST_ROWS} of {len(best)}" if len(best) > _MOST_ROWS else ""
    title = "Front" if len(objectives) > 1 else "Best"
    output.table(f"{title} of {results.name}: {counted(len(best), 'point')}{more}", heads, rows)


def _limits_table(results: Results, output: Output, columns: Any) -> None:
    """Print, where points do not fit, how far each value of a named axis reaches."""
    status = columns["status"]
    if not (status == "infeasible").any():
        return
    named = [a for a in results.axes if columns[a].dtype == object and _few(columns[a])]
    ranges = [a for a in results.axes if columns[a].dtype != object and len(set(columns[a])) > 1]
    if not named or not ranges:
        return
    dimensions = results.dimensions
    rows = []
    for value in dict.fromkeys(columns[named[0]].tolist()):
        here = columns[named[0]] == value
        fits = here & (status == "ok")
        cells = [value, f"{int(fits.sum()):,} of {int(here.sum()):,}"]
        for axis in ranges:
            low, high = (
                f(columns[axis][fits], initial=np.nan) for f in (np.fmin.reduce, np.fmax.reduce)
            )
            cells.append(
                f"{shown(low, dimensions.get(axis))} .. {shown(high, dimensions.get(axis))}"
            )
        rows.append(cells)
    output.table("What fits", [named[0], "points", *ranges], rows)


def _few(values: Any) -> bool:
    return 1 < len(set(values.tolist())) <= _MOST_NAMES


def _row(columns: Any, i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in columns.items()}


def _reasons(columns: Any) -> dict[str, int]:
    """Return how often each reason occurs, most frequent first."""
    found = Counter(columns.get("reason", np.array([], dtype=object)).tolist())
    found.pop("", None)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
