"""`opbyte compare`: what changed between two results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    before: Annotated[Path, typer.Argument(metavar="A", help="Folder of results.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Folder of results.")],
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Show what differs in two configurations, and how the metrics changed."""
    from opbyte.sweeps.compare import compared, show_comparison
    from opbyte.sweeps.console import Output

    show_comparison(compared(before, after), Output(json=json, quiet=quiet))
    return 0
