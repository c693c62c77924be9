"""`opbyte report`: results as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write one HTML page about a study's results; it opens without a network."""
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.report import write_report

    output = Output(json=json, quiet=quiet)
    page = write_report(folder, out)
    output.data({"report": str(page)})
    output.line(f"report: {page}")
    return 0
