"""`opbyte list`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="machines, models, memories, flash, cxl, gates, sites, prices, studies, works, "
            "dtypes, traces, formats or schedulers; default: all.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """List machines, models, memories and other devices, studies, works, traces and more."""
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.listing import listed

    output = Output(json=json, quiet=quiet)
    found = listed(kind)
    output.data(found)
    for noun, entries in found.items():
        rows = [[entry["name"], entry["about"]] for entry in entries]
        output.table(noun.capitalize(), ["name", "about"], rows, left=2)
    return 0
