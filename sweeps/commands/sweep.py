"""`opbyte sweep`: every point of a study."""

from __future__ import annotations

from opbyte.sweeps.commands._options import (
    Executor,
    Fidelity,
    Fresh,
    Json,
    NoPlots,
    Out,
    Quiet,
    Settings,
    Shard,
    StudyFile,
    Workers,
)


def command(
    study: StudyFile,
    out: Out = None,
    workers: Workers = None,
    executor: Executor = "process",
    shard: Shard = None,
    fidelity: Fidelity = None,
    settings: Settings = None,
    fresh: Fresh = False,
    no_plots: NoPlots = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Evaluate the points of a study; stored points are not computed again."""
    from opbyte.sweeps.commands._study import Request, run_study

    request = Request(
        study=study, out=out, workers=workers, executor=executor, shard=shard, fidelity=fidelity,
        settings=settings or [], fresh=fresh, plots=not no_plots, json=json, quiet=quiet,
    )  # fmt: skip
    return run_study(request)
