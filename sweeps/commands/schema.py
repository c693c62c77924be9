"""`opbyte schema`: JSON schemas, for completion and checks in editors."""

from __future__ import annotations

from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[KIND]", help="machine, mapping, study, experiment or trace."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Print the JSON schema of one kind of file, or of all."""
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.schema import schema_of

    del json
    if not quiet:
        Output(json=True).data(schema_of(kind))
    return 0
