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
    from opbyte.sweeps.console import Output

    output = Output(json=json, quiet=quiet)
    done = compact(folder)
    output.data(dataclasses.asdict(done))
    doubled = f", {done.doubled:,} doubled rows left out" if done.doubled else ""
    output.line(f"{done.points:,} points: {done.before:,} parts became {done.after:,}{doubled}")
    return 0
