"""`opbyte front`: the front of stored results, and the band that what is not known gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")]


def command(
    folder: Folder,
    everything: Annotated[
        bool, typer.Option("--all", help="Draw times and energies too; simulates again.")
    ] = False,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Draws.")] = 1000,
    most: Annotated[
        int,
        typer.Option(
            "--most", min=1, help="Points to look at, and as many that may keep a constraint."
        ),
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the first two objectives.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Show which points stay on the front when all ranges are drawn, and how far they move."""
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.front_bands import front_band
    from opbyte.sweeps.front_summary import drawn_band, show_band
    from opbyte.sweeps.store import open_results

    results = open_results(folder)
    band = front_band(
        results,
        parameters="all" if everything else "costs",
        samples=samples,
        most=most,
        seed=seed,
    )
    figure = None if plot is None else drawn_band(results, band, plot)
    show_band(results, band, Output(json=json, quiet=quiet), figure)
    return 0
