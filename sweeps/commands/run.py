"""`opbyte run`: one experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Fidelity, Json, Out, Quiet, Settings


def command(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="File.")],
    out: Out = None,
    timeline: Annotated[
        Path | None, typer.Option("--timeline", help="Write a timeline for ui.perfetto.dev.")
    ] = None,
    fidelity: Fidelity = None,
    settings: Settings = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Simulate one experiment: metrics, and where the time goes."""
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.experiment import load_experiment, show_experiment
    from opbyte.sweeps.study import parse_settings

    changes = parse_settings(settings or [])
    if fidelity:
        changes["fidelity"] = fidelity
    loaded = load_experiment(experiment, changes)
    return show_experiment(loaded, Output(json=json, quiet=quiet), out=out, timeline=timeline)
