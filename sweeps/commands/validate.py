"""`opbyte validate`: published numbers against ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from opbyte.core.errors import ConfigError
from opbyte.sweeps.commands._options import Json, Quiet

if TYPE_CHECKING:
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.validation import Verdict

Rows: TypeAlias = "list[dict[str, Any]]"
Lines: TypeAlias = "Iterator[tuple[dict[str, Any], tuple[str, ...]]]"
MEASURED, IN_MEMORY, SPATIAL, DRIVE = "gpu", "pim", "attention", "ssd"
TRAINING = "megatron"
NOTES = """mean: mean absolute error; bias: mean signed error, above 0 where we are slower.
in the fit: never (another file), left out (samples of this file were fitted), fitted.
Not compared, for want of rows: narrow formats, Blackwell, AMD."""
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="Published sources, default: all; or gpu, pim, attention, ssd, megatron: rows.",
        show_default=False,
    ),
]
Facts = Annotated[
    Path | None, typer.Option("--facts", metavar="DIR", help="Take sources from another folder.")
]
Details = Annotated[
    bool, typer.Option("--details", help="List the parameters that matter for each number.")
]


Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw measured against simulated (gpu alone)."),
]


def command(
    sources: Sources = None,
    facts: Facts = None,
    details: Details = False,
    plot: Plot = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compare published numbers with ours, and say what each agreement is worth.

    Classes: predicted (every parameter that matters is published), assumed, calibrated, internal,
    open. Exit code 1 if a number that is not open misses its tolerance.

    `gpu` compares operators and `megatron` training steps with measured rows, `pim` kernels and
    systems, `attention` spatial arrays and `ssd` a drive with other simulators'; OPBYTE_REFERENCE
    locates the rows.
    """
    from opbyte.sweeps.console import Output
    from opbyte.sweeps.validation import sources_of, validate_source

    output = Output(json, quiet)
    wanted = sources or sources_of(facts)
    answer: dict[str, Any] = {}
    if plot is not None and MEASURED not in wanted:
        raise ConfigError.one("--plot", "", f"only {MEASURED} has a plot", ", ".join(wanted), "")
    if MEASURED in wanted:
        answer["measured"] = _measured(output, plot)
    if IN_MEMORY in wanted:
        answer["reference"] = _in_memory(output)
    if SPATIAL in wanted:
        answer["attention"] = _attention(output)
    if DRIVE in wanted:
        answer["ssd"] = _drives(output)
    if TRAINING in wanted:
        answer["megatron"] = _training(output)
    of_rows = (MEASURED, IN_MEMORY, SPATIAL, DRIVE, TRAINING)
    wanted = [name for name in wanted if name not in of_rows]
    if answer and not wanted:
        output.data(answer)
        return 0
    verdicts: list[Verdict] = []
    for name in wanted:
        found = validate_source(name, facts)
        _print(output, name, found, details)
        verdicts += found
    output.data({**answer, "points": [v.row() for v in verdicts]})
    drifted = [v for v in verdicts if not v.ok]
    for verdict in drifted:
        output.note(f"drifted: {verdict.source} {verdict.id}: {verdict.reason}")
    return 1 if drifted else 0


def _measured(output: Output, plot: Path | None) -> list[dict[str, Any]]:
    """Print, and draw, measured operators against ours; return the rows of the table.

    Raises:
        ConfigError: If the folder has none of the files.
    """
    from opbyte.sweeps.validation.folders import rows_folder
    from opbyte.sweeps.validation.measured import TABLES, compare

    folder = rows_folder("gpu")
    found, rows, shown = {}, [], []
    for table in TABLES:
        compared = compare(table, folder)
        if compared is None:
            output.note(f"{table.operator}, {table.machine}: {table.file} is not there")
            continue
        found[f"{table.operator}, {table.by}\n{table.machine}"] = compared.rows
        for band in compared.bands():
            whole = band.band == "all"
            about = {"operator": table.operator, "machine": table.machine, "seen": compared.seen}
            about |= {"origin": table.origin, "file": table.file}
            rows.append(about | asdict(band))
            shown.append(
                (
                    table.operator if whole else "",
                    table.machine if whole else "",
                    band.band,
                    compared.seen if whole else "",
                    f"{band.rows:,}",
                    *(f"{x:.1f}" for x in (band.mape, band.bias, band.median, band.p95)),
                )
            )
    if not found:
        raise ConfigError.one(
            str(folder), "", "holds none of the files that are compared", "",
            f"Known: {', '.join(table.file for table in TABLES)}.",
        )  # fmt: skip
    output.table(
        "Measured operators against ours, errors in percent",
        ("operator", "machine", "band", "in the fit", "rows", "mean", "bias", "median", "p95"),
        shown,
        left=4,
    )
    output.line(NOTES)
    if plot is not None and found:
        from opbyte.sweeps.plots import measured_against_simulated, save

        for path in save(measured_against_simulated(found), plot):
            output.note(f"wrote {path}")
    return rows


def _in_memory(output: Output) -> Rows:
    """Print rows of another simulator's kernels and systems against ours; return the rows."""
    from opbyte.sweeps.validation import pim_rows

    def lines(found: pim_rows.Compared) -> Lines:
        about = {"operator": found.operator, "machine": found.machine, "file": found.file}
        for band in found.bands:
            names = (found.operator, found.machine) if band.band == "all" else ("", "")
            numbers = (band.mape, band.bias, band.median, band.p95)
            yield about | asdict(band), (*names, band.band, f"{band.rows:,}", *_two(numbers))

    columns = ("operator", "machine", "band", "rows", "mean", "bias", "median", "p95")
    return _simulated(output, "pim", pim_rows, lines, columns, 3)


def _attention(output: Output) -> Rows:
    """Print rows of attention on spatial arrays against ours; return the rows."""
    from opbyte.sweeps.validation import attention_rows

    def lines(found: attention_rows.Compared) -> Lines:
        about = {"design": found.design, "machine": found.machine, "mapping": found.mapping}
        about |= {"file": found.file}
        for i, band in enumerate(found.bands()):
            bar = attention_rows.COLUMNS[band.band]
            worst = float(abs(found.errors[band.band]).max())
            names = (found.design, found.machine, found.mapping) if not i else ("", "", "")
            numbers = _two((band.mape, band.bias, worst, bar))
            yield (
                about | asdict(band) | {"worst": worst, "ok": worst <= bar},
                (*names, band.band, f"{band.rows:,}", *numbers, "" if worst <= bar else "open"),
            )

    columns = ("design", "machine", "mapping", "column", "rows", "mean", "bias", "worst", "bar", "")
    return _simulated(output, "attention", attention_rows, lines, columns, 4)


def _drives(output: Output) -> Rows:
    """Print rows of another simulator's drive against ours; return the rows."""
    from opbyte.sweeps.validation import ssd_rows

    def lines(found: ssd_rows.Compared) -> Lines:
        about = {"variant": found.variant, "metric": found.metric}
        for i, band in enumerate(found.bands):
            names = (found.variant, found.metric) if not i else ("", "")
            numbers = _two((band.mape, band.bias, band.median, band.p95))
            worst = f"{found.worst:.2f}" if not i else ""
            yield (
                about | asdict(band) | ({"worst": found.worst} if not i else {}),
                (*names, band.band, f"{band.rows:,}", *numbers, worst),
            )

    columns = ("variant", "metric", "band", "rows", "mean", "bias", "median", "p95", "worst")
    return _simulated(output, "ssd", ssd_rows, lines, columns, 3)


def _training(output: Output) -> Rows:
    """Print measured training steps against ours; return the rows.

    Raises:
        ConfigError: If the folder has no such file.
    """
    import numpy as np

    from opbyte.sweeps.bands import Band
    from opbyte.sweeps.validation import training_rows
    from opbyte.sweeps.validation.folders import rows_folder

    folder = rows_folder("training")
    found = list(training_rows.compared(folder))
    kept = [one for one in found if not isinstance(one, str)]
    if not kept:
        raise ConfigError.one(str(folder), "", f"holds no {training_rows.FILE}", "", "")
    keys = ("mfu", "hfu", "communication_s", "bubble_s", "optimizer_s", "peak_bytes")
    rows: Rows = [
        {
            "model": one.row["model"], "recompute": one.row["recompute"],
            "gpus": int(one.row["gpus"]), "measured": one.measured, "seconds": one.result.seconds,
            "error": one.error, **{key: one.result.metrics[key] for key in keys},
            "origin": training_rows.ORIGIN, "seen": "never",
        }
        for one in kept
    ]  # fmt: skip
    shown = [
        (
            r["model"], r["recompute"], f"{r['gpus']}", f"{r['measured']:.2f}",
            f"{r['seconds']:.2f}", f"{r['error']:+.1f}", f"{100 * r['mfu']:.1f}",
            f"{100 * r['hfu']:.1f}", f"{r['peak_bytes'] / 1e9:.1f}",
        )
        for r in rows
    ]  # fmt: skip
    output.table(
        f"{training_rows.ORIGIN}: seconds of a step against ours",
        ("model", "recompute", "GPUs", "measured", "ours", "error %", "MFU %", "HFU %", "peak GB"),
        shown,
        left=2,
    )
    band = Band.of("all", np.array([one.error for one in kept]))
    worst = max(abs(one.error) for one in kept)
    output.line(
        f"mean {band.mape:.1f} %, bias {band.bias:+.1f} %, worst {worst:.1f} %; "
        f"bar {training_rows.BAR:g} % in the mean; none of the rows was fitted"
    )
    return rows


def _two(numbers: Iterable[float]) -> list[str]:
    return [f"{x:.2f}" for x in numbers]


def _simulated(
    output: Output,
    kind: str,
    module: Any,
    lines: Callable[[Any], Lines],
    columns: tuple[str, ...],
    left: int,
) -> Rows:
    """Print rows of another simulator against ours; return them.

    Args:
        module: Yields what it `compared`, or the name of an absent file, and names its ORIGIN.
        lines: Rows of what was compared, each with its cells in the table.
        left: Columns of text.
    Raises:
        ConfigError: If the folder has none of the files.
    """
    from opbyte.sweeps.validation.folders import rows_folder

    folder = rows_folder(kind)
    rows, shown = [], []
    for found in module.compared(folder):
        if isinstance(found, str):
            output.note(f"{found} is not there")
            continue
        for row, cells in lines(found):
            rows.append(row | {"origin": module.ORIGIN})
            shown.append(cells)
    if not rows:
        raise ConfigError.one(str(folder), "", "holds none of the files that are compared", "", "")
    title = f"{module.ORIGIN}: its rows against ours, errors in percent"
    output.table(title, columns, shown, left=left)
    return rows


def _print(output: Output, name: str, verdicts: list[Verdict], details: bool) -> None:
    output.table(
        f"{name}: published numbers against ours",
        ("id", "class", "published", "ours", "error", "tolerance", "over assumed ranges"),
        [
            (
                v.id,
                v.evidence if v.ok else f"{v.evidence} DRIFTED",
                f"{_published(v)} {v.unit}".strip(),
                f"{v.simulated:.4g}",
                f"{v.error:+.1%}",
                f"{v.tolerance:.0%}",
                "" if v.low == v.high else f"{v.low:.3g} to {v.high:.3g}",
            )
            for v in verdicts
        ],
        left=2,
    )
    _print_closings(output, verdicts)
    for verdict in verdicts:
        if details and verdict.matters:
            output.line(f"  {verdict.id} rests on")
            for path, source, change in verdict.matters:
                output.line(f"    {path} ({change:.1%} for 10 %): {source}")
    counts = {c: sum(v.evidence == c for v in verdicts) for c in _classes()}
    output.line(", ".join(f"{n} {c}" for c, n in counts.items() if n))


def _print_closings(output: Output, verdicts: list[Verdict]) -> None:
    """Print what would close the open numbers, and what the missing inputs are."""
    closings = [(v.id, c) for v in verdicts for c in v.closing]
    output.table(
        "What would close the open numbers, one input at a time",
        ("id", "missing input", "stands for it", "closing value", "looked from"),
        [
            (
                name,
                c.input,
                c.parameter or "no parameter",
                c.value or ("none" if c.parameter else "-"),
                c.range or "-",
            )
            for name, c in closings
        ],
        left=3,
    )
    for name, why in {c.input: c.why for _, c in closings}.items():
        output.line(f"  {name}: {why}")


def _classes() -> tuple[str, ...]:
    from opbyte.sweeps.validation.published import CLASSES

    return CLASSES


def _published(verdict: Verdict) -> str:
    if not isinstance(verdict.published, tuple):
        return f"{verdict.published:g}"
    low, high = verdict.published
    if low is None or high is None:
        return f">= {low:g}" if low is not None else f"<= {high:g}"
    return f"{low:g} to {high:g}"
