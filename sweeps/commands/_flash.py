"""`opbyte memory` for a flash device: a stream, its queue-depth curve, wear."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbyte.core.errors import ConfigError
from opbyte.sweeps.commands._changes import read_changes

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand import Flash, FlashResult
    from opbyte.sweeps.console import Output

__all__ = ["show_flash"]


def show_flash(
    output: Output, technology: str, settings: list[str], *, curve: bool, out: Path | None,
    wear: str | None, pattern: str, per_day: str | None = None, **choices: Any,
) -> int:  # fmt: skip
    """Send a stream to a flash device, and print what it did.

    Args:
        settings: Other values than the file's, `channels=4` or `mapping.ideal=true`.
        curve: Whether to go through queue depths, too.
        out: Folder for a figure and a table of that curve.
        wear: Pattern of writes whose garbage collection is shown, None for none.
        per_day: Bytes that the host writes in a day so, None for none.
    """
    from opbyte.hw_models.memory.nand import flash

    drive = flash(technology, **read_changes(settings))
    if per_day is not None and wear is None:
        remedy = "add --wear kv, or leave it out"
        raise ConfigError.one("", "--writes-per-day", "needs a pattern", per_day, remedy)
    found = drive.stream(pattern, **choices)
    answer: dict[str, Any] = {"memory": drive.device.name, "pattern": pattern, **_summary(found)}
    if wear is not None:
        answer |= _wear(drive, wear, per_day)
    _show(output, drive.device.description, answer)
    if curve or out is not None:
        choices.pop("queue_depth")
        curves = drive.queue_curve(pattern, **choices)
        answer["curve"] = [{"queue_depth": r.queue_depth, **_summary(r)} for r in curves]
        _show_curve(output, curves)
        if out is not None:
            _draw(output, out, f"{technology}, {pattern}", curves)
    output.data(answer)
    return 0


def _summary(found: FlashResult) -> dict[str, Any]:
    counts = found.counts
    latencies = {f"latency_p{p}_s": found.latency_s(p) for p in (50, 95, 99)}
    means = {}
    if found.read_latency.size:
        means["mean_read_latency_s"] = found.mean_read_latency_s
    if found.write_latency.size:
        means["mean_write_latency_s"] = found.mean_write_latency_s
    return {
        "requests": found.requests,
        "bandwidth_bytes_per_s": found.bandwidth_bytes_per_s,
        "requests_per_second": found.requests_per_s,
        **means,
        **latencies,
        "page_reads": counts.reads,
        "page_programs": counts.programs,
        "commands": counts.commands,
        "multiplane_commands": counts.multiplane,
        "mapping_reads": counts.mapping_reads,
        "mapping_writes": counts.mapping_writes,
        "bus_share": found.bus_share,
    }


def _wear(drive: Flash, pattern: str, per_day: str | None) -> dict[str, Any]:
    from opbyte.core.units import parse

    found = drive.wear(pattern)
    answer = {
        "write_amplification": found.write_amplification,
        "sustained_write_bytes_per_s": found.sustained_bytes_per_s,
    }
    if per_day is None:
        return answer
    lasts = drive.endurance(parse(per_day, "bytes"), found.write_amplification)
    return answer | {
        "bytes_per_day": lasts.bytes_per_day,
        "rated_bytes": lasts.rated_bytes,
        "years": lasts.years,
        "drive_writes_per_day": lasts.drive_writes_per_day,
        "share_of_five_years": lasts.share_of_five_years,
    }


def _show(output: Output, title: str, answer: dict[str, Any]) -> None:
    from opbyte.core.units import format_quantity

    rows = []
    for name, value in answer.items():
        if name.endswith("_s") and isinstance(value, float):
            kind = "bytes_per_s" if name.endswith("bytes_per_s") else "seconds"
            text = format_quantity(value, kind, digits=4)
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
        rows.append([name, text])
    output.table(title, ["", ""], rows, left=2)


def _show_curve(output: Output, curve: list[FlashResult]) -> None:
    rows = [
        [str(r.queue_depth), f"{r.bandwidth_bytes_per_s / 1e6:.5g}", f"{r.requests_per_s:.5g}",
         f"{r.mean_latency_s * 1e6:.4g}", f"{r.latency_s(99) * 1e6:.4g}"]
        for r in curve
    ]  # fmt: skip
    columns = ["queue depth", "MB/s", "requests/s", "mean latency us", "99 % us"]
    output.table("Latency against queue depth", columns, rows, left=0)


def _draw(output: Output, out: Path, title: str, curve: list[FlashResult]) -> None:
    from opbyte.sweeps.plots import queue_depth, save

    for path in save(queue_depth(title, curve), out / "queue_depth"):
        output.note(f"wrote {path}")
    lines = ["queue_depth,bandwidth_bytes_per_s,mean_latency_s,latency_p99_s"]
    lines += [
        f"{r.queue_depth},{r.bandwidth_bytes_per_s!r},{r.mean_latency_s!r},{r.latency_s(99)!r}"
        for r in curve
    ]
    table = out / "queue_depth.csv"
    table.write_text("\n".join(lines) + "\n")
    output.note(f"wrote {table}")
