"""`opbyte calibrate`: a GPU's kernel parameters from measured products."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet

MachineName = Annotated[str, typer.Argument(metavar="MACHINE", help="Catalog name, or a file.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Parquet: m, n, k, latency (ms). CSV: m, n, k, dtype, microseconds.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Machine to write; default: NAME-calibrated.yaml."),
]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Rows to fit, drawn at random.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")]
Activity = Annotated[
    float,
    typer.Option(
        "--activity",
        min=0.0,
        max=1.0,
        help="Share of the kernels' energy that the measured operands drew; 1 for random numbers.",
    ),
]


def command(
    machine: MachineName,
    data: Data,
    out: Out = None,
    rows: Rows = 300,
    seed: Seed = 0,
    activity: Activity = 1.0,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Fit a GPU's kernel parameters to measured products, and judge on rows it did not fit."""
    import yaml

    from opbyte.core.errors import ConfigError
    from opbyte.hw_models.machine import load_machine
    from opbyte.sweeps.calibrate import calibrate, read_rows
    from opbyte.sweeps.console import Output

    output = Output(json, quiet)
    loaded = load_machine(machine)
    extends = str(Path(machine).resolve()) if Path(machine).suffix else machine
    target = out or Path(f"{loaded.name}-calibrated.yaml")
    frame = read_rows(data)

    def progress(calls: int, error: float) -> None:
        if calls % 100 == 0:
            output.note(f"{calls} evaluations, mean error of the fitted rows {error:.1%}")

    found = calibrate(
        extends, frame, target.stem, rows=rows, seed=seed, activity=activity,
        on=f"{len(frame)} in {data.name}", progress=progress,
    )  # fmt: skip
    try:
        target.write_text(yaml.safe_dump(found.document, sort_keys=False, width=100))
    except OSError as error:
        raise ConfigError.one(str(target), "", f"can not be written: {error}", "", "") from None
    output.table(
        f"{loaded.name}: errors on the {len(frame) - rows:,} rows that were not fitted, percent",
        ("m", "rows", "MAPE before", "MAPE", "bias", "median", "95th percentile"),
        [
            (
                band,
                f"{after['rows']:.0f}",
                f"{found.before[band]['mape']:.1f}",
                f"{after['mape']:.1f}",
                f"{after['bias']:+.1f}",
                f"{after['median']:.1f}",
                f"{after['p95']:.1f}",
            )
            for band, after in found.after.items()
        ],
    )
    output.line(f"wrote {target}")
    output.data(
        {
            "machine": str(target),
            "source": found.source,
            "values": found.values,
            "before": found.before,
            "after": found.after,
        }
    )
    return 0
