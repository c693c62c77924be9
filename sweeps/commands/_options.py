"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Executor",
    "Fidelity",
    "Fresh",
    "Json",
    "NoPlots",
    "Out",
    "Quiet",
    "Settings",
    "Shard",
    "StudyFile",
    "Workers",
]

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value; may be repeated."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for results.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes; default: as many as pay.")
]
Executor = Annotated[
    str,
    typer.Option(
        "--executor", help="process, serial, dask://HOST:PORT or tls://HOST:PORT.", metavar="KIND"
    ),
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Run the I-th of N parts only.")
]
Fidelity = Annotated[
    str | None, typer.Option("--fidelity", help="bound, analytic or event; default: the file's.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove stored points first.")]
NoPlots = Annotated[bool, typer.Option("--no-plots", help="Draw no figures.")]
StudyFile = Annotated[str, typer.Argument(metavar="STUDY", help="File, or name of a study.")]
