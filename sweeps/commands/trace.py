"""`opbyte trace`: convert, describe and sample request traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbyte.sweeps.commands._options import Json, Quiet
from opbyte.sweeps.console import counted

if TYPE_CHECKING:
    from opbyte.sweeps.console import Output
    from opbyte.workloads.traces import RequestTrace

app = typer.Typer(
    no_args_is_help=True,
    help="Convert, describe and sample request traces; each verb takes --json and --quiet.",
)

File = Annotated[
    str, typer.Argument(metavar="FILE", help="Trace, synthetic definition, or shipped sample.")
]
OutFile = Annotated[Path, typer.Argument(metavar="OUT", help="JSONL file; .gz packs it.")]
Format = Annotated[
    str | None, typer.Option("--format", help="By default the one that the first line shows.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave malformed rows out, and say how many.")
]
Sort = Annotated[bool, typer.Option("--sort", help="Bring rows into the order of arrival.")]
BlockTokens = Annotated[
    int | None,
    typer.Option("--block-tokens", min=1, help="Tokens of a prefix block; default: the format's."),
]
Requests = Annotated[int, typer.Option("--requests", min=1, help="Requests to draw.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")]
Rate = Annotated[
    float | None, typer.Option("--rate", metavar="R", help="Stretch gaps to R requests/s.")
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option("--window", metavar="A B", help="Only arrivals from A to before B, seconds."),
]


@app.command()
def convert(
    file: Annotated[str, typer.Argument(metavar="IN", help="Trace or synthetic definition.")],
    out: OutFile,
    format: Format = None,  # noqa: A002  the name of the option
    skip_bad: SkipBad = False,
    sort: Sort = False,
    block_tokens: BlockTokens = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write a trace as Mooncake's JSONL, which opbyte and load generators of real servers read."""
    from opbyte.sweeps.console import Output

    output = Output(json=json, quiet=quiet)
    trace = _loaded(
        file, output, format=format, skip_bad=skip_bad, sort=sort, block_tokens=block_tokens
    )
    _write(trace, out, output)
    return 0


@app.command()
def describe(
    file: File,
    format: Format = None,  # noqa: A002  the name of the option
    skip_bad: SkipBad = False,
    sort: Sort = False,
    block_tokens: BlockTokens = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Show how many requests, how fast, how bursty, how long, and what a prefix cache may reuse."""
    from opbyte.sweeps.console import Output

    output = Output(json=json, quiet=quiet)
    trace = _loaded(
        file, output, format=format, skip_bad=skip_bad, sort=sort, block_tokens=block_tokens
    )
    found = trace.describe()
    output.data(found)
    lengths = ("input_tokens", "output_tokens")
    parts = ("mean", "min", "p50", "p90", "p99", "max", "total")
    rows = [
        [name, _text(value)]
        for name, value in found.items()
        if not name.startswith((*lengths, "name")) and value is not None
    ]
    output.table("", ["", trace.name], rows)
    output.table(
        "Tokens of a request",
        ["", *parts],
        [[of, *(_text(found[f"{of}_{part}"]) for part in parts)] for of in lengths],
    )
    return 0


@app.command()
def sample(
    file: File,
    out: OutFile,
    requests: Requests,
    seed: Seed = 0,
    rate: Rate = None,
    window: Window = None,
    format: Format = None,  # noqa: A002  the name of the option
    skip_bad: SkipBad = False,
    sort: Sort = False,
    block_tokens: BlockTokens = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Draw requests without replacement, of a window of time, and bring them to a rate."""
    from opbyte.sweeps.console import Output

    output = Output(json=json, quiet=quiet)
    trace = _loaded(
        file, output, format=format, skip_bad=skip_bad, sort=sort, block_tokens=block_tokens
    )
    if window is not None:
        trace = trace.window(*window)
    trace = trace.sample(requests, seed)
    if rate is not None:
        trace = trace.scaled(rate)
    _write(trace, out, output)
    return 0


def _loaded(file: str, output: Output, **reading: Any) -> RequestTrace:
    """Return the trace of a file, read as the options say; tell what was left out."""
    from opbyte.workloads.traces import load_trace, read_trace
    from opbyte.workloads.traces.load import located

    path = located(file)
    made = path.suffix in (".yaml", ".yml")
    trace = load_trace(path) if made else read_trace(path, **reading)
    if trace.skipped:
        output.note(f"{counted(trace.skipped, 'bad row')} left out")
    if trace.failed:
        output.note(f"{counted(trace.failed, 'failed request')} left out")
    return trace


def _write(trace: RequestTrace, out: Path, output: Output) -> None:
    from opbyte.workloads.traces import write_trace

    write_trace(trace, out)
    if trace.client is not None:
        clients = counted(trace.client.concurrency, "client")
        output.note(f"the file does not hold the closed loop of {clients}, only lengths")
    requests = counted(len(trace), "request")
    output.line(f"{requests}{'' if trace.timed else ' without arrivals'}: {out}")
    output.data(
        {
            "out": str(out),
            "requests": len(trace),
            "skipped_rows": trace.skipped,
            "failed_requests": trace.failed,
            "timed": trace.timed,
        }
    )


def _text(value: Any) -> str:
    """Return a value for people: counts are written out, other numbers rounded."""
    from opbyte.sweeps.console import shown

    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else shown(value, None)
