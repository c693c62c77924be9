"""`opbyte memory` for a CXL expander: steps of a read, limits, latency against load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbyte.sweeps.commands._changes import read_changes

if TYPE_CHECKING:
    from opbyte.hw_models.memory.cxl import CxlLoad
    from opbyte.sweeps.console import Output

__all__ = ["show_cxl"]


def show_cxl(
    output: Output, technology: str, settings: list[str], *, read_pct: int, curve: bool,
    out: Path | None,
) -> int:  # fmt: skip
    """Print what an expander delivers, and draw its latency against load.

    Args:
        settings: Other values than the file's, `link.lanes=16`, `steps.controller=50 ns`.
        curve: Whether to go through loads.
        out: Folder for a figure and a table of that curve.
    """
    from opbyte.hw_models.memory.cxl import cxl

    expander = cxl(technology, **read_changes(settings))
    limits = expander.limits(read_pct)
    answer: dict[str, Any] = {
        "memory": expander.device.name,
        "read_pct": read_pct,
        "idle_latency_s": expander.idle_latency_s,
        "steps_s": expander.steps_s,
        "bandwidth_bytes_per_s": expander.peak_bytes_per_s(read_pct),
        "limits_bytes_per_s": limits,
        "limit": expander.limit(read_pct),
    }
    rows = [
        [f"{name} (there and back)", f"{x * 1e9:.4g} ns"] for name, x in expander.steps_s.items()
    ]
    rows.append(["idle latency", f"{expander.idle_latency_s * 1e9:.4g} ns"])
    rows += [[f"{name}, {read_pct} % reads", f"{x / 1e9:.4g} GB/s"] for name, x in limits.items()]
    rows.append(["bandwidth", f"{answer['bandwidth_bytes_per_s'] / 1e9:.4g} GB/s"])
    output.table(expander.device.description, ["", ""], rows, left=2)
    if curve or out is not None:
        loads = expander.curve(read_pct)
        answer["curve"] = [_load(x) for x in loads]
        _show_curve(output, loads)
        if out is not None:
            _draw(output, out, f"{technology}, {read_pct} % reads", loads)
    output.data(answer)
    return 0


def _load(load: CxlLoad) -> dict[str, float]:
    return {
        "delivered_bytes_per_s": load.bytes_per_s,
        "read_latency_s": load.latency_s,
        "link_wait_s": load.link_wait_s,
        "dram_wait_s": load.dram_wait_s,
        "outstanding": load.outstanding,
    }


def _show_curve(output: Output, loads: list[CxlLoad]) -> None:
    rows = [
        [f"{x.bytes_per_s / 1e9:.4g}", f"{x.latency_s * 1e9:.4g}", f"{x.link_wait_s * 1e9:.3g}",
         f"{x.dram_wait_s * 1e9:.3g}", f"{x.outstanding:.3g}"]
        for x in loads
    ]  # fmt: skip
    columns = ["delivered GB/s", "read latency ns", "waits, link", "waits, DRAM", "outstanding"]
    output.table("Latency against load", columns, rows, left=0)


def _draw(output: Output, out: Path, title: str, loads: list[CxlLoad]) -> None:
    from matplotlib import pyplot as plt

    from opbyte.sweeps.plots import cxl_latency, save

    figure = cxl_latency(title, loads)
    for path in save(figure, out / "load_latency"):
        output.note(f"wrote {path}")
    plt.close(figure)
    names = list(_load(loads[0]))
    lines = [",".join(names), *(",".join(repr(v) for v in _load(x).values()) for x in loads)]
    table = out / "load_latency.csv"
    table.write_text("\n".join(lines) + "\n")
    output.note(f"wrote {table}")
