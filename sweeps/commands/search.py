"""`opbyte search`: the front of a study without all of its points."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import (
    Executor,
    Fidelity,
    Fresh,
    Json,
    NoPlots,
    Out,
    Quiet,
    Settings,
    StudyFile,
    Workers,
)


def command(
    study: StudyFile,
    trials: Annotated[
        int | None,
        typer.Option("--budget", "--trials", min=1, help="Most distinct points to play."),
    ] = None,
    start: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="DIR", help="Begin with this front; may be repeated."),
    ] = None,
    dashboard: Annotated[
        Path | None,
        typer.Option("--dashboard", metavar="FILE", help="Write an Optuna journal of all points."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the search.")
    ] = None,
    out: Out = None,
    workers: Workers = None,
    executor: Executor = "process",
    fidelity: Fidelity = None,
    settings: Settings = None,
    fresh: Fresh = False,
    no_plots: NoPlots = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Search the front of a study's objectives; the same seed gives the same front."""
    from opbyte.sweeps.commands._study import Request, run_study

    request = Request(
        study=study, out=out, workers=workers, executor=executor, shard=None, fidelity=fidelity,
        settings=settings or [], fresh=fresh, plots=not no_plots, json=json, quiet=quiet,
        search=True, trials=trials, seed=seed, start=start or [], dashboard=dashboard,
    )  # fmt: skip
    return run_study(request)
