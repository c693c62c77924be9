"""`opbyte explain`: a configuration with its origins and totals."""

from __future__ import annotations

from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet, Settings


def command(
    name: Annotated[str, typer.Argument(metavar="FILE", help="File, or a name of the catalog.")],
    settings: Settings = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Show what a file or name means: every value, where it comes from, and totals."""
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.explain import explained
    from opbyte.sweeps.study import parse_settings

    output = Output(json=json, quiet=quiet)
    found = explained(name, parse_settings(settings or []))
    output.data(found.data)
    for title, heads, rows in found.tables:
        output.table(title, heads, rows, left=len(heads))
    return 0
