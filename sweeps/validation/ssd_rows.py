"""Rows of another simulator's drive against ours: closed loops of reads and writes.

The rows are read from the folder that `OPBYTE_REFERENCE` names. Agreeing with them is conformity,
not truth: its rounding of bus cycles and its way of serving one die of a chip at a time are
repeated (`mqsim-default`), so that like is compared with like. The host stops sending at
`stop_time`. Where the queue is more than 2 % of the completed requests, bandwidth is that by
Little's law, as the requests that are completed after the stop would count otherwise.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.hw_models.memory.nand import Flash, FlashResult, flash
from opbyte.sweeps.bands import Band

__all__ = ["FILE", "ORIGIN", "Compared", "compared", "errors_of", "play"]

FILE = "ssd_reference.csv"
ORIGIN = "MQSim (MIT; CMU-SAFARI)"
PATTERNS = {"STREAMING": "seq", "RANDOM_UNIFORM": "random"}
#: Its host begins requests at multiples of 16 sectors.
ALIGN = 8192
#: Share of the completed requests that may be outstanding at the stop.
STEADY = 0.02
Row = Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """Rows of one variant with the errors of ours, percent."""

    variant: str
    metric: str
    bands: tuple[Band, ...]
    worst: float


def compared(folder: Path) -> Iterator[Compared | str]:
    """Yield what was compared, or the name of a file that is not there.

    Raises:
        ConfigError: If a file lacks a column.
    """
    path = folder / FILE
    if not path.is_file():
        yield FILE
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("status") == "ok"]
    try:
        found = [(row, *errors_of(row)) for row in rows]
    except OpbyteError:
        raise
    except (KeyError, ValueError) as error:
        rule = f"can not be read: {error}"
        raise ConfigError.one(str(path), "", rule, "", "copy it again") from None
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [entry for entry in found if entry[0]["variant"] == variant]
        latency = [(row["pattern"], error) for row, error, _ in own]
        bandwidth = [(row["pattern"], error) for row, _, error in own]
        yield _compared(variant, "mean latency", latency)
        yield _compared(variant, "bandwidth", bandwidth)


def _compared(variant: str, metric: str, errors: Sequence[tuple[str, float]]) -> Compared:
    whole = np.array([100.0 * e for _, e in errors])
    bands = [Band.of("all", whole)]
    for pattern in dict.fromkeys(p for p, _ in errors):
        each = np.array([100.0 * e for p, e in errors if p == pattern])
        bands.append(Band.of(pattern.lower(), each))
    return Compared(variant, metric, tuple(bands), float(abs(whole).max()))


def errors_of(row: Row) -> tuple[float, float]:
    """Return the relative errors of mean latency and bandwidth."""
    result, stop = play(row), float(row["stop_time_ns"]) * 1e-9
    latency = result.mean_latency_s * 1e6 / float(row["mean_dev_response_us"]) - 1.0
    size = float(row["req_KB"]) * 1024
    depth, completed = int(row["queue_depth"]), float(row["completed"])
    if depth > STEADY * completed:
        ours, theirs = depth * size / result.mean_latency_s, float(row["steady_MBps_little"])
    else:
        ours, theirs = result.requests * size / stop, float(row["bandwidth_MBps"])
    return latency, ours / 1e6 / theirs - 1.0


def play(row: Row) -> FlashResult:
    """Return our result of a row."""
    drive = _drive(
        tuple(
            (key, row[key])
            for key in (
                "channels", "chips_per_ch", "dies", "planes", "page_B", "tR_us", "tPROG_us",
                "tBERS_ms", "ONFI_MTps", "pcie_GBps", "ideal_map",
            )
        )
    )  # fmt: skip
    size, stop = int(row["req_KB"]) * 1024, float(row["stop_time_ns"]) * 1e-9
    # No drive answers more than its link carries, nor sooner than an array read and a doorbell.
    count = int(stop * drive.device.pcie.rate.value / size) + int(row["queue_depth"]) + 1
    count = min(count, int(int(row["queue_depth"]) * (stop / 10e-6 + 2)) + 1)
    return drive.stream(
        PATTERNS[row["pattern"]], block=size, align=ALIGN, queue_depth=int(row["queue_depth"]),
        read_pct=int(float(row["read_pct"])), requests=count, stop_s=stop, seed=1,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _drive(row: tuple[tuple[str, str], ...]) -> Flash:
    of = dict(row)
    return flash(
        "mqsim-default",
        channels=int(of["channels"]), chips=int(of["chips_per_ch"]), dies=int(of["dies"]),
        planes=int(of["planes"]), page=f"{of['page_B']} B", read=f"{of['tR_us']} us",
        program=f"{of['tPROG_us']} us", erase=f"{of['tBERS_ms']} ms",
        channel_rate=f"{of['ONFI_MTps']} MB/s", pcie={"rate": f"{of['pcie_GBps']} GB/s"},
        mapping={"ideal": of["ideal_map"] == "True"},
    )  # fmt: skip
