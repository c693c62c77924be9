"""`opbyte report`: results as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write.")] = None,
    designs: Annotated[
        bool,
        typer.Option(
            "--designs/--no-designs",
            help="Simulate designs again: breakdown, timeline, sensitivity, contest of a budget.",
        ),
    ] = True,
    points: Annotated[
        int | None,
        typer.Option(
            "--points", min=1, help="Most points on the page; the front of more is whole."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write one HTML page about a study's results; it opens without a network."""
    from opbyte.sweeps.console import Output, counted
    from opbyte.sweeps.report import report

    output = Output(json=json, quiet=quiet)
    page = report(folder, out, designs=designs, limit=points)
    output.data(
        {
            "report": str(page.path),
            "bytes": page.size,
            "points": page.points,
            "shown": page.shown,
            "front": page.front,
        }
    )
    fewer = "" if page.shown == page.points else f", {page.shown:,} of them on the page"
    output.line(
        f"report: {page.path} ({page.size / 1e6:.1f} MB, {counted(page.points, 'point')}{fewer})"
    )
    return 0
