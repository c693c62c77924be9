"""`opbyte capacity`: the largest rate of requests that keeps a goal."""

from __future__ import annotations

from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet, Settings

Goals = Annotated[
    list[str] | None,
    typer.Option(
        "--slo", metavar="METRIC=TIME", help="A limit, such as ttft_p99=2s. May be repeated."
    ),
]


def command(
    experiment: Annotated[
        str, typer.Argument(metavar="EXPERIMENT", help="File whose workload is of kind serve.")
    ],
    slo: Goals = None,
    accuracy: Annotated[
        float, typer.Option("--accuracy", min=1e-4, max=0.5, help="Relative width of the answer.")
    ] = 0.01,
    settings: Settings = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Find the largest rate at which the requests of a trace keep every limit."""
    from opbyte.core.errors import ConfigError
    from opbyte.sim.serving.capacity import capacity
    from opbyte.sweeps.console import Output, shown
    from opbyte.sweeps.constraints import metric_dimension
    from opbyte.sweeps.experiment import load_experiment
    from opbyte.sweeps.study import parse_settings
    from opbyte.workloads.serve import Serve

    output = Output(json, quiet)
    limits = {}
    for text in slo or []:
        name, sign, limit = text.partition("=")
        if not sign or not limit.strip():
            raise ConfigError.one("--slo", "", "must be METRIC=TIME", text, "Write ttft_p99=2s.")
        limits[name.strip()] = limit.strip()
    loaded = load_experiment(experiment, parse_settings(settings or []))
    design = loaded.design
    if not isinstance(design.work, Serve):
        raise ConfigError.one(
            experiment, "workload", "must be of kind serve", design.work.kind, "give it a trace"
        )

    def progress(rate: float, kept: bool) -> None:
        output.note(f"{rate:.4g} requests/s: {'kept' if kept else 'not kept'}")

    found = capacity(
        design.machine, design.work, limits, design.mapping,
        seed=loaded.experiment.seed, accuracy=accuracy, progress=progress,
    )  # fmt: skip
    output.data(
        {
            "rate": found.rate,
            "answer": found.answer,
            "limited_by": found.limited_by,
            "metrics": found.metrics,
            "tried": [{"rate": rate, "kept": kept} for rate, kept in found.tried],
        }
    )
    rows = [[name, shown(value, metric_dimension(name))] for name, value in found.metrics.items()]
    limited = found.limited_by or "nothing"
    output.table(f"{found.answer}, limited by {limited}", ["metric", "value"], rows)
    return 0
