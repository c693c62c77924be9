"""`opbyte memory`: what a memory technology really delivers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opbyte.sweeps.commands._options import Json, Quiet, Settings

if TYPE_CHECKING:
    from opbyte.hw_models.memory.dram import StreamResult
    from opbyte.sweeps.console import Output

Curve = list[tuple[float, "StreamResult"]]


def command(
    technology: Annotated[
        str, typer.Argument(metavar="TECH", help="Memory of the catalog, or a file.")
    ],
    pattern: Annotated[
        str,
        typer.Option("--pattern", help="seq, random, bankint, bgint, rand_1KB, stride4096, ..."),
    ] = "seq",
    requests: Annotated[
        int | None,
        typer.Option("--requests", min=1, help="Bursts that are sent: 100,000; requests of flash."),
    ] = None,
    read_pct: Annotated[
        int, typer.Option("--reads", min=0, max=100, help="Share of reads, per cent.")
    ] = 100,
    interval: Annotated[
        int, typer.Option("--interval", min=1, help="Ticks between requests; 1 saturates.")
    ] = 1,
    mapping: Annotated[
        str,
        typer.Option(
            "--mapping", help="RoBaRaCoCh, ChRaBaRoCo, MOP4CLXOR, or fields from the lowest bit."
        ),
    ] = "RoBaRaCoCh",
    scheduler: Annotated[str, typer.Option("--scheduler", help="FRFCFS, FRFCFSRowHit.")] = "FRFCFS",
    refresh: Annotated[
        str, typer.Option("--refresh", help="AllBank, PerBank or NoRefresh.")
    ] = "AllBank",
    row_policy: Annotated[
        str, typer.Option("--row-policy", help="Open, Closed or ClosedAdaptive.")
    ] = "Open",
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Reads, and writes, that may wait.")
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of a random pattern.")] = 1,
    drain: Annotated[
        bool, typer.Option("--drain", help="Serve what waits at the end, too.")
    ] = False,
    settings: Settings = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="Stop where the stream has settled.")
    ] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Latency against load; --out draws it, too.")
    ] = False,
    block: Annotated[
        int | None,
        typer.Option("--block", min=1, help="Flash: bytes of a request; default: a page."),
    ] = None,
    queue_depth: Annotated[
        int | None,
        typer.Option("--queue-depth", min=1, help="Flash: requests outstanding; default: 32."),
    ] = None,
    wear: Annotated[
        str | None,
        typer.Option("--wear", help="Flash: write amplification of seq, random or kv."),
    ] = None,
    per_day: Annotated[
        str | None,
        typer.Option("--writes-per-day", help="Flash, with --wear: bytes such as 5 TB, in years."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for figure and table.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Send a stream of requests to one channel of a memory, command by command.

    A flash device (`opbyte list flash`) is a whole drive: --block, --queue-depth and --wear are
    its choices, and --curve goes through queue depths. A CXL expander (`opbyte list cxl`) is one
    with its link: --reads, --curve and --set are its choices.
    """
    from opbyte.hw_models.memory.dram import memory
    from opbyte.sweeps.commands._cxl import show_cxl
    from opbyte.sweeps.commands._flash import show_flash
    from opbyte.sweeps.commands._kinds import kind_of
    from opbyte.sweeps.console import Output

    output = Output(json, quiet)
    of_flash = {"--block": block, "--queue-depth": queue_depth, "--wear": wear,
                "--writes-per-day": per_day}  # fmt: skip
    kind = kind_of(technology)
    if kind != "memory":
        of_dram = {
            "--interval": interval != 1, "--mapping": mapping != "RoBaRaCoCh",
            "--scheduler": scheduler != "FRFCFS", "--refresh": refresh != "AllBank",
            "--row-policy": row_policy != "Open", "--queue": queue != 32, "--drain": drain,
            "--sample": sample,
        }  # fmt: skip
        _refuse(technology, [name for name, given in of_dram.items() if given], "DRAM")
    if kind == "cxl":
        other = {
            **{name: value is not None for name, value in of_flash.items()},
            "--pattern": pattern != "seq", "--requests": requests is not None, "--seed": seed != 1,
        }  # fmt: skip
        _refuse(technology, [n for n, given in other.items() if given], "another kind of memory")
        return show_cxl(output, technology, settings or [], read_pct=read_pct, curve=curve, out=out)
    if kind == "flash":
        return show_flash(
            output, technology, settings or [], curve=curve, out=out, wear=wear, per_day=per_day,
            pattern=pattern, block=block, queue_depth=queue_depth or 32, requests=requests,
            read_pct=read_pct, seed=seed,
        )  # fmt: skip
    _refuse(technology, [name for name, given in of_flash.items() if given is not None], "flash")
    requests = 100_000 if requests is None else requests
    _check_name(technology)
    channel = memory(technology, **_changes(settings or []))
    choices: dict[str, Any] = {
        "mapping": mapping.split(",") if "," in mapping else mapping,
        "scheduler": scheduler, "refresh": refresh, "row_policy": row_policy,
        "read_queue": queue, "write_queue": queue, "requests": requests, "read_pct": read_pct,
        "seed": seed, "sample": sample, "drain": drain,
    }  # fmt: skip
    found = channel.stream(pattern, interval=interval, **choices)
    answer = {"memory": channel.standard.name, "pattern": pattern, **_summary(found)}
    _show(output, channel.standard.description, answer)
    if curve or out is not None:
        choices["requests"] = min(requests, 20_000)
        loads = channel.load_latency(pattern, **choices)
        answer["curve"] = [{"offered_bytes_per_s": x, **_summary(r)} for x, r in loads]
        _show_curve(output, loads)
        if out is not None:
            _draw(output, out, f"{technology}, {pattern}", loads)
    output.data(answer)
    return 0


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
