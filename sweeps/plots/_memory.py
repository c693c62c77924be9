"""A memory channel, a drive or an expander: latency against the load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from opbyte.hw_models.memory.cxl import CxlLoad
from opbyte.hw_models.memory.dram import StreamResult
from opbyte.hw_models.memory.nand import FlashResult
from opbyte.sim.readers import Shared
from opbyte.sweeps.console import counted
from opbyte.sweeps.plots._style import DASHES, axes_for, figure_of, in_style, series_style


@in_style
def load_latency(title: str, loads: Sequence[tuple[float, StreamResult]]) -> Figure:
    """Draw mean and 99th percentile of the read latency against the delivered rate.

    Args:
        title: What was measured.
        loads: Offered rate and result, as `Dram.load_latency` returns them.
    """
    ax = axes_for(None)
    rate = [r.bandwidth_bytes_per_s / 1e9 for _, r in loads]
    ax.plot(rate, [r.mean_read_latency_s * 1e9 for _, r in loads], marker="o", label="mean")
    ax.plot(rate, [r.read_latency_s(99) * 1e9 for _, r in loads], marker="s", label="99 %")
    peak = loads[0][1].standard.peak_bytes_per_s / 1e9
    ax.axvline(peak, color="#8A8A8A", linewidth=0.8, label="peak of the bus")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Delivered (GB/s)")
    ax.set_ylabel("Read latency (ns)")
    ax.set_title(title)
    ax.legend()
    return figure_of(ax)


@in_style
def queue_depth(title: str, curve: Sequence[FlashResult]) -> Figure:
    """Draw mean and 99th percentile of a drive's latency against the delivered rate.

    Args:
        title: What was measured.
        curve: Results for growing queue depths, as `Flash.queue_curve` returns them.
    """
    ax = axes_for(None)
    rate = [r.bandwidth_bytes_per_s / 1e9 for r in curve]
    ax.plot(rate, [r.mean_latency_s * 1e6 for r in curve], marker="o", label="mean")
    ax.plot(rate, [r.latency_s(99) * 1e6 for r in curve], marker="s", label="99 %")
    for x, r in zip(rate, curve, strict=True):
        ax.annotate(f"{r.queue_depth}", (x, r.mean_latency_s * 1e6))
    ax.set_xlim(left=0)
    ax.set_yscale("log")
    ax.set_xlabel("Delivered (GB/s), marked by queue depth")
    ax.set_ylabel("Latency (us)")
    ax.set_title(title)
    ax.legend()
    return figure_of(ax)


@in_style
def cxl_latency(
    title: str,
    loads: Sequence[CxlLoad],
    measured: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Draw an expander's read latency against the delivered rate, and what it waits for.

    Args:
        title: What was computed.
        loads: As `Cxl.curve` returns them.
        measured: Pairs (GB/s, ns) to compare with.
    """
    ax = axes_for(None)
    rate = [x.bytes_per_s / 1e9 for x in loads]
    idle = [(x.latency_s - x.link_wait_s - x.dram_wait_s) * 1e9 for x in loads]
    banks = [i + x.dram_wait_s * 1e9 for i, x in zip(idle, loads, strict=True)]
    whole = [x.latency_s * 1e9 for x in loads]
    ax.fill_between(rate, 0, idle, color="#C9C9C9", label="idle steps", linewidth=0)
    ax.fill_between(rate, idle, banks, color="#56B4E9", label="waits for DRAM", linewidth=0)
    ax.fill_between(rate, banks, whole, color="#E69F00", label="waits for the link", linewidth=0)
    ax.plot(rate, whole, color="#000000", marker="o", markersize=3, label="mean of reads")
    if measured:
        ax.plot(*zip(*measured, strict=True), "s", color="#D55E00", ms=3.5, label="published")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("Delivered (GB/s)")
    ax.set_ylabel("Read latency (ns)")
    ax.set_title(title)
    ax.legend(loc="upper left")
    return figure_of(ax)


@in_style
def shared_readers(title: str, found: Mapping[str, Sequence[Shared]]) -> Figure:
    """Draw the slowdown of readers of shared devices against their number.

    Args:
        title: What they do.
        found: Fidelity -> results; devices have colours, fidelities dashes.
    """
    ax = axes_for(None)
    counts = sorted({x.devices for results in found.values() for x in results})
    for dashes, (fidelity, results) in zip(DASHES, found.items(), strict=False):
        for i, devices in enumerate(counts):
            mine = sorted((x.readers, x.slowdown) for x in results if x.devices == devices)
            if mine:
                color, marker = series_style(i)
                label = f"{counted(devices, 'device')}, {fidelity}"
                ax.plot(
                    *zip(*mine, strict=True), color=color, marker=marker, ls=dashes, label=label
                )
    ax.set_xticks(sorted({x.readers for results in found.values() for x in results}))
    ax.set_ylim(bottom=0.9)
    ax.set_xlabel("GPUs")
    ax.set_ylabel("Slowdown")
    ax.set_title(title)
    ax.legend()
    return figure_of(ax)
