"""`opbyte compact`: few large parts instead of many small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")],
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Merge the small parts of results; safe at any moment, also while a study runs."""
    import dataclasses

    from opbyte.sweeps.compact import compact
    from opbyte.sweeps.console import Output, counted

    output = Output(json=json, quiet=quiet)
    done = compact(folder)
    output.data(dataclasses.asdict(done))
    doubled = f", {counted(done.doubled, 'doubled row')} left out" if done.doubled else ""
    points, parts = counted(done.points, "point"), counted(done.before, "part")
    output.line(f"{points}: {parts} became {done.after:,}{doubled}")
    return 0
