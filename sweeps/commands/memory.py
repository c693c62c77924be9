"""`opbyte memory`: what a memory technology really delivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbyte.sweeps.commands._options import Json, Quiet, Settings

if TYPE_CHECKING:
    from opbyte.hw_models.memory.dram import Dram, StreamResult
    from opbyte.sweeps.console import Output

Curve = list[tuple[float, "StreamResult"]]
#: Bursts that are sent by default, and at most for each point of a curve.
_REQUESTS, _OF_CURVE = 100_000, 20_000

Technology = Annotated[
    str, typer.Argument(metavar="TECH", help="Memory of the catalog, or a file.")
]
Pattern = Annotated[
    str, typer.Option("--pattern", help="seq, random, bankint, bgint, rand_1KB, stride4096, ...")
]
Requests = Annotated[
    int | None,
    typer.Option("--requests", min=1, help="Bursts that are sent: 100,000; requests of flash."),
]
Reads = Annotated[int, typer.Option("--reads", min=0, max=100, help="Share of reads, per cent.")]
Interval = Annotated[
    int, typer.Option("--interval", min=1, help="Ticks between requests; 1 saturates.")
]
Mapping = Annotated[
    str,
    typer.Option(
        "--mapping", help="RoBaRaCoCh, ChRaBaRoCo, MOP4CLXOR, or fields from the lowest bit."
    ),
]
Scheduler = Annotated[str, typer.Option("--scheduler", help="FRFCFS, FRFCFSRowHit.")]
Refresh = Annotated[str, typer.Option("--refresh", help="AllBank, PerBank or NoRefresh.")]
RowPolicy = Annotated[str, typer.Option("--row-policy", help="Open, Closed or ClosedAdaptive.")]
Queue = Annotated[int, typer.Option("--queue", min=1, help="Reads, and writes, that may wait.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of a random pattern.")]
Drain = Annotated[bool, typer.Option("--drain", help="Serve what waits at the end, too.")]
Sample = Annotated[bool, typer.Option("--sample", help="Stop where the stream has settled.")]
AskCurve = Annotated[
    bool, typer.Option("--curve", help="Latency against load; --out draws it, too.")
]
Block = Annotated[
    int | None,
    typer.Option("--block", min=1, help="Flash: bytes of a request; default: a page."),
]
QueueDepth = Annotated[
    int | None,
    typer.Option("--queue-depth", min=1, help="Flash: requests outstanding; default: 32."),
]
Wear = Annotated[
    str | None, typer.Option("--wear", help="Flash: write amplification of seq, random or kv.")
]
PerDay = Annotated[
    str | None,
    typer.Option("--writes-per-day", help="Flash, with --wear: bytes such as 5 TB, in years."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for figure and table.")]


@dataclass(frozen=True)
class Choices:
    """What the options say; a value that differs from its default was given."""

    pattern: str = "seq"
    requests: int | None = None
    read_pct: int = 100
    interval: int = 1
    mapping: str = "RoBaRaCoCh"
    scheduler: str = "FRFCFS"
    refresh: str = "AllBank"
    row_policy: str = "Open"
    queue: int = 32
    seed: int = 1
    drain: bool = False
    sample: bool = False
    curve: bool = False
    block: int | None = None
    queue_depth: int | None = None
    wear: str | None = None
    per_day: str | None = None
    settings: tuple[str, ...] = ()
    out: Path | None = None

    def given(self, options: Sequence[str]) -> list[str]:
        """Return those of some options that were given, in their order."""
        return [o for o in options if getattr(self, _field(o)) != getattr(Choices, _field(o))]


_OF_DRAM = (
    "--interval", "--mapping", "--scheduler", "--refresh", "--row-policy", "--queue", "--drain",
    "--sample",
)  # fmt: skip
_OF_FLASH = ("--block", "--queue-depth", "--wear", "--writes-per-day")
_NOT_OF_CXL = (*_OF_FLASH, "--pattern", "--requests", "--seed")


def _field(option: str) -> str:
    name = option.removeprefix("--").replace("-", "_")
    return "per_day" if name == "writes_per_day" else name


def command(
    technology: Technology,
    pattern: Pattern = Choices.pattern,
    requests: Requests = Choices.requests,
    read_pct: Reads = Choices.read_pct,
    interval: Interval = Choices.interval,
    mapping: Mapping = Choices.mapping,
    scheduler: Scheduler = Choices.scheduler,
    refresh: Refresh = Choices.refresh,
    row_policy: RowPolicy = Choices.row_policy,
    queue: Queue = Choices.queue,
    seed: Seed = Choices.seed,
    drain: Drain = Choices.drain,
    settings: Settings = None,
    sample: Sample = Choices.sample,
    curve: AskCurve = Choices.curve,
    block: Block = Choices.block,
    queue_depth: QueueDepth = Choices.queue_depth,
    wear: Wear = Choices.wear,
    per_day: PerDay = Choices.per_day,
    out: Out = Choices.out,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Send a stream of requests to one channel of a memory, command by command.

    A flash device (`opbyte list flash`) is a whole drive: --block, --queue-depth and --wear are
    its choices, and --curve goes through queue depths. A CXL expander (`opbyte list cxl`) is one
    with its link: --reads, --curve and --set are its choices.
    """
    from opbyte.sweeps.commands._kinds import kind_of
    from opbyte.sweeps.console import Output

    choices = Choices(
        pattern=pattern, requests=requests, read_pct=read_pct, interval=interval, mapping=mapping,
        scheduler=scheduler, refresh=refresh, row_policy=row_policy, queue=queue, seed=seed,
        drain=drain, sample=sample, curve=curve, block=block, queue_depth=queue_depth, wear=wear,
        per_day=per_day, settings=tuple(settings or ()), out=out,
    )  # fmt: skip
    show = {"cxl": _show_cxl, "flash": _show_flash, "memory": _show_dram}[kind_of(technology)]
    return show(Output(json, quiet), technology, choices)


def _show_cxl(output: Output, technology: str, asked: Choices) -> int:
    """Show a CXL expander with its link."""
    from opbyte.sweeps.commands._cxl import show_cxl

    _refuse(technology, asked.given(_OF_DRAM), "DRAM")
    _refuse(technology, asked.given(_NOT_OF_CXL), "another kind of memory")
    return show_cxl(
        output, technology, list(asked.settings), read_pct=asked.read_pct, curve=asked.curve,
        out=asked.out,
    )  # fmt: skip


def _show_flash(output: Output, technology: str, asked: Choices) -> int:
    """Show a whole drive."""
    from opbyte.sweeps.commands._flash import show_flash

    _refuse(technology, asked.given(_OF_DRAM), "DRAM")
    return show_flash(
        output, technology, list(asked.settings), curve=asked.curve, out=asked.out,
        wear=asked.wear, per_day=asked.per_day, pattern=asked.pattern, block=asked.block,
        queue_depth=asked.queue_depth or 32, requests=asked.requests, read_pct=asked.read_pct,
        seed=asked.seed,
    )  # fmt: skip


def _show_dram(output: Output, technology: str, asked: Choices) -> int:
    """Send the stream to one channel of DRAM, and show what became of it."""
    from opbyte.hw_models.memory.dram import memory

    _refuse(technology, asked.given(_OF_FLASH), "flash")
    _check_name(technology)
    channel = memory(technology, **_changes(list(asked.settings)))
    choices = _of_stream(asked)
    found = _streamed(output, channel, asked, choices)
    answer = {"memory": channel.standard.name, "pattern": asked.pattern, **_summary(found)}
    _show(output, channel.standard.description, answer)
    if asked.curve or asked.out is not None:
        choices["requests"] = min(choices["requests"], _OF_CURVE)
        loads = channel.load_latency(asked.pattern, **choices)
        answer["curve"] = [{"offered_bytes_per_s": x, **_summary(r)} for x, r in loads]
        _show_curve(output, loads)
        if asked.out is not None:
            _draw(output, asked.out, f"{technology}, {asked.pattern}", loads)
    output.data(answer)
    return 0


def _streamed(
    output: Output, channel: Dram, asked: Choices, choices: dict[str, Any]
) -> StreamResult:
    """Return what became of the stream; a bar shows how far it is."""
    from opbyte.sweeps.console import RunProgress
    from opbyte.sweeps.interruption import Interruption

    bar, interruption = RunProgress(output, "request"), Interruption()

    def advance(requests: int) -> None:
        interruption.check()
        bar.advance(requests)

    bar.start(choices["requests"], 0)
    try:
        return channel.stream(asked.pattern, interval=asked.interval, progress=advance, **choices)
    except Exception:
        # Ctrl-C inside a compiled kernel may come out as an error of its own.
        interruption.check()
        raise
    finally:
        interruption.close()
        bar.close()


def _of_stream(asked: Choices) -> dict[str, Any]:
    """Return what a channel's stream takes beside its pattern and interval."""
    fields = asked.mapping.split(",") if "," in asked.mapping else asked.mapping
    return {
        "mapping": fields, "scheduler": asked.scheduler, "refresh": asked.refresh,
        "row_policy": asked.row_policy, "read_queue": asked.queue, "write_queue": asked.queue,
        "requests": _REQUESTS if asked.requests is None else asked.requests,
        "read_pct": asked.read_pct, "seed": asked.seed, "sample": asked.sample,
        "drain": asked.drain,
    }  # fmt: skip


def _check_name(technology: str) -> None:
    """Check that a name is one of a catalog.

    Raises:
        ConfigError: If it is none, with the names of all kinds.
    """
    from opbyte.core.catalog import is_path
    from opbyte.core.registry import lookup_error
    from opbyte.hw_models.memory import cxl_devices, flash_devices, standards

    catalogs = (standards.CATALOG, flash_devices.CATALOG, cxl_devices.CATALOG)
    names = [name for catalog in catalogs for name in catalog.names()]
    if not is_path(technology) and technology not in names:
        raise lookup_error("memory", technology, names)


def _refuse(technology: str, given: list[str], kind: str) -> None:
    """Refuse options that belong to another kind of memory.

    Raises:
        ConfigError: If there are any.
    """
    from opbyte.core.errors import ConfigError

    if given:
        raise ConfigError.one(technology, given[0], f"is an option of {kind}", "", "leave it out")


def _changes(settings: list[str]) -> dict[str, int]:
    """Read sizes and clocks that differ from the file's: `rank=2`, `nRCD=24`."""
    from opbyte.core.errors import ConfigError
    from opbyte.sweeps.commands._changes import read_changes

    changes = read_changes(settings)
    for name, number in changes.items():
        if type(number) is not int or number < 0:
            rule = "must be a whole number, a size or clocks of the memory, such as rank=2"
            raise ConfigError.one("--set", name, rule, number)
    return changes


def _summary(found: StreamResult) -> dict[str, Any]:
    from opbyte.core.errors import UncoveredError

    latencies: dict[str, float] = {}
    if found.histogram.sum() > 0:
        latencies = {f"read_latency_p{p}_s": found.read_latency_s(p) for p in (50, 95, 99)}
    try:
        joules = found.joules
    except UncoveredError:
        joules = None
    return {
        "requests": found.requests,
        "simulated": found.simulated,
        "drained": found.drained,
        "bandwidth_bytes_per_s": found.bandwidth_bytes_per_s,
        "efficiency": found.efficiency,
        "mean_read_latency_s": found.mean_read_latency_s,
        **latencies,
        "row_hits": found.row_hits,
        "row_misses": found.row_misses,
        "row_conflicts": found.row_conflicts,
        "reads_served": found.reads_served,
        "writes_served": found.writes_served,
        "ticks": found.ticks,
        "joules": joules,
        "commands": {name: count for name, count in found.commands.items() if count},
    }


def _show(output: Output, title: str, answer: dict[str, Any]) -> None:
    from opbyte.core.units import format_quantity

    rows = []
    for name, value in answer.items():
        if name == "commands":
            text = ", ".join(f"{k} {v}" for k, v in value.items())
        elif value is None:
            text = "not covered: no source gives it"
        elif name.endswith("_s") and isinstance(value, float):
            kind = "bytes_per_s" if name.endswith("bytes_per_s") else "seconds"
            text = format_quantity(value, kind, digits=4)
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.append([name, text])
    output.table(title, ["", ""], rows, left=2)


def _show_curve(output: Output, loads: Curve) -> None:
    rows = [
        [f"{offered / 1e9:.4g}", f"{r.bandwidth_bytes_per_s / 1e9:.4g}",
         f"{r.mean_read_latency_s * 1e9:.4g}"]
        for offered, r in loads
    ]  # fmt: skip
    columns = ["offered GB/s", "delivered GB/s", "mean read latency ns"]
    output.table("Latency against load", columns, rows, left=0)


def _draw(output: Output, out: Path, title: str, loads: Curve) -> None:
    from opbyte.sweeps.plots import load_latency, save

    for path in save(load_latency(title, loads), out / "load_latency"):
        output.note(f"wrote {path}")
    lines = ["offered_bytes_per_s,delivered_bytes_per_s,mean_read_latency_s"]
    lines += [
        f"{offered!r},{r.bandwidth_bytes_per_s!r},{r.mean_read_latency_s!r}" for offered, r in loads
    ]
    table = out / "load_latency.csv"
    table.write_text("\n".join(lines) + "\n")
    output.note(f"wrote {table}")
