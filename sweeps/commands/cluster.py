"""`opbyte cluster`: a Dask scheduler and workers on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet


def command(
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes; default: one per core.")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; other machines reach 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8786,
    tls: Annotated[
        bool, typer.Option("--tls", help="Encrypt, and let in holders of certificates only.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Start a scheduler with workers, for `--executor dask://HOST:PORT`, until Ctrl-C."""
    from opbyte.sweeps.cluster import serve
    from opbyte.sweeps.console import Output

    serve(workers, host, port, Output(json=json, quiet=quiet), tls=tls)
    return 0
