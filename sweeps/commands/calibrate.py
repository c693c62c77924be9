"""`opbyte calibrate`: a machine's parameters from measured operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opbyte.sweeps.commands._options import Json, Quiet
from opbyte.sweeps.console import counted

if TYPE_CHECKING:
    from opbyte.sweeps.bands import Band
    from opbyte.sweeps.calibration import Fit
    from opbyte.sweeps.console import Output

MachineName = Annotated[str, typer.Argument(metavar="MACHINE", help="Catalog name, or a file.")]
Data = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="FILE",
        help="CSV: kind (absent: gemm), that kind's fields, microseconds. Parquet: of NVIDIA "
        "aiconfigurator. May be repeated.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Machine to write; default: NAME-calibrated.yaml."),
]
Rows = Annotated[
    int, typer.Option("--rows", min=1, help="Rows of each operator class to fit, drawn at random.")
]
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
    """Fit a machine's parameters to measured operators, and judge on rows it did not fit.

    Classes: products (gemm), attention (attention_prefill, attention_decode), latent (mla_decode),
    experts (moe), collectives (all_reduce, all_gather, reduce_scatter, all_to_all). Those that have
    rows are fitted, in this order; the rest of the machine stays as it is.
    """
    import yaml

    from opbyte.core.errors import ConfigError
    from opbyte.hw_models.machine import load_machine
    from opbyte.sweeps.calibration import calibrate, read_rows
    from opbyte.sweeps.console import Output

    output = Output(json, quiet)
    loaded = load_machine(machine)
    extends = str(Path(machine).resolve()) if Path(machine).suffix else machine
    target = out or Path(f"{loaded.name}-calibrated.yaml")

    def progress(name: str, calls: int, error: float) -> None:
        if calls % 10 == 0:
            output.note(
                f"{name}: {counted(calls, 'step')}, mean error of the fitted rows {error:.1%}"
            )

    found = calibrate(
        extends, read_rows(*data), target.stem, rows=rows, seed=seed, activity=activity,
        progress=progress,
    )  # fmt: skip
    try:
        target.write_text(yaml.safe_dump(found.document, sort_keys=False, width=100))
    except OSError as error:
        raise ConfigError.one(str(target), "", f"can not be written: {error}", "", "") from None
    for one in found.fits:
        _print(output, loaded.name, one)
    output.line(f"wrote {target}")
    output.data(
        {
            "machine": str(target),
            "source": "; ".join(one.source for one in found.fits),
            "values": found.values,
            "before": _keyed(found.fits, lambda one: one.before),
            "after": _keyed(found.fits, lambda one: one.after),
        }
    )
    return 0


def _keyed(
    fits: Sequence[Fit], bands: Callable[[Fit], Mapping[str, Band]]
) -> dict[str, dict[str, float]]:
    """Return the errors by band; where there are several classes, by class and band."""
    errors = {}
    for one in fits:
        before = f"{one.operators.name} " if len(fits) > 1 else ""
        for name, band in bands(one).items():
            errors[f"{before}{name}"] = {k: v for k, v in asdict(band).items() if k != "band"}
    return errors


def _print(output: Output, machine: str, fit: Fit) -> None:
    output.table(
        f"{machine}, {fit.operators.name}: errors on the {counted(len(fit.others), 'row')} left "
        "out of the fit, percent",
        (
            fit.operators.band, "rows", "MAPE before", "MAPE", "bias before", "bias", "median",
            "95th percentile",
        ),
        [
            (
                name,
                f"{after.rows}",
                f"{fit.before[name].mape:.1f}",
                f"{after.mape:.1f}",
                f"{fit.before[name].bias:+.1f}",
                f"{after.bias:+.1f}",
                f"{after.median:.1f}",
                f"{after.p95:.1f}",
            )
            for name, after in fit.after.items()
        ],
    )  # fmt: skip
