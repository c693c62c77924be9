"""`opbyte watch`: a study while it runs, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbyte.sweeps.commands._options import Json
from opbyte.sweeps.console import counted

if TYPE_CHECKING:
    from opbyte.sweeps.watch import Look


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")],
    once: Annotated[bool, typer.Option("--once", help="Print one view and end.")] = False,
    every: Annotated[
        float, typer.Option("--every", min=0.1, metavar="S", help="Seconds between two looks.")
    ] = 2.0,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Most rows of the front.")] = 10,
    json: Json = False,
) -> int:
    """Show points, rate, time left, front and hypervolume of a study until it is done."""
    import dataclasses
    import sys

    from opbyte.sweeps.console import Output, terminal
    from opbyte.sweeps.results import open_results
    from opbyte.sweeps.watch import Watcher

    watcher = Watcher(folder, rows)
    look = watcher.look()
    output = Output(json=json)
    output.data(dataclasses.asdict(look))
    dimensions = open_results(folder).dimensions
    if json:
        return 0
    if once or not sys.stdout.isatty():
        columns = len(look.front[0]) if look.front else 1
        terminal(columns).print(_view(look, dimensions))
        return 0
    _follow(watcher, look, dimensions, every)
    return 0


def _follow(watcher: Any, look: Look, dimensions: dict[str, str], every: float) -> None:
    """Show one look after the other until nothing runs any more."""
    import time

    from rich.live import Live

    from opbyte.sweeps.console import terminal

    with Live(_view(look, dimensions), console=terminal(), auto_refresh=False) as live:
        while look.state == "running":
            time.sleep(every)
            look = watcher.look()
            live.update(_view(look, dimensions), refresh=True)


def _view(look: Look, dimensions: dict[str, str]) -> Any:
    """Return a look as lines and a table."""
    from rich.console import Group
    from rich.text import Text

    from opbyte.sweeps.console import shown, table_of

    found: list[Any] = [Text(line) for line in _lines(look)]
    if look.front:
        names = [n for n in look.front[0] if n != "point"]
        heads = [f"{n} ({look.objectives[n]})" if n in look.objectives else n for n in names]
        rows = [[shown(row[n], dimensions.get(n)) for n in names] for row in look.front]
        of = f", the first {len(look.front)}" if len(look.front) < look.front_size else ""
        points = counted(look.front_size, "point")
        found.append(table_of(f"Front: {points}{of}", heads, rows))
    return Group(*found)


def _lines(look: Look) -> list[str]:
    stored = counted(look.stored, "point")
    if look.total is not None:
        stored = f"{look.stored:,} of {counted(look.total, 'point')}"
    first = f"{look.name}: {look.state}, {stored}"
    if look.total:
        first += f" ({min(look.stored / look.total, 1.0):.1%})"
    if look.rate is not None:
        first += f", {look.rate:,.3g} points/s"
    if look.left_s is not None:
        first += f", {_time(look.left_s)} left"
    counts = [f"{look.counts.get(s, 0):,} {s}" for s in ("ok", "infeasible", "failed")]
    second = ", ".join(counts)
    if look.broken:
        second += f" ({look.broken:,} of the ok ones break a constraint)"
    lines = [first, second]
    if look.hypervolume is not None:
        lines.append(f"hypervolume {look.hypervolume:.4f} of the box around the front plus 10 %")
    return lines + _search_lines(look.search)


def _search_lines(search: dict[str, Any]) -> list[str]:
    if "screened" not in search:
        return []
    left = search["could_still_join"]
    first = f"search: {counted(search['screened'], 'point')} screened ({search['screen']})"
    lines = [f"{first}, {search['played']:,} played, {left:,} could still join the front"]
    for name, (low, high) in search["gap_percent"].items():
        if low is not None and high is not None:
            lines.append(f"  {name}: {low:.3g} to {high:.3g} % worse when played")
        else:
            lines.append(f"  {name}: no gap is known yet")
    return lines


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
