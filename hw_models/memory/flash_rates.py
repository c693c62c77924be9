"""Rates of a flash device for prices: a long stream, and pages at random places.

Rates of the shipped devices are kept in `flash_rates.json` (written by `scripts/memory_rates.py`,
recomputed by the tests), so that a price starts no compiler; others are computed when asked for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from opbyte.core.catalog import SUFFIXES
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import Parameter
from opbyte.hw_models.memory.flash_devices import CATALOG, SECTOR, FlashDevice, load_flash

__all__ = [
    "PAGES", "TABLE", "computed", "device_called", "digest", "inside_of", "page_rate", "peak",
    "stream_rate",
]  # fmt: skip

#: Link of what reads flash without one, bytes/s: no channel comes near it.
_NO_LINK = 1e13

TABLE = Path(__file__).parent / "flash_rates.json"
#: Bytes of a request of a stream, and requests that the host keeps outstanding.
STREAM, DEPTH = 1 << 20, 32
#: Bytes of pages that are under way, and most requests.
UNDER_WAY, MOST = 8 << 20, 512
#: Sizes of pages that the table holds.
PAGES = tuple(1 << n for n in range(12, 21))


def device_called(technology: str) -> FlashDevice | None:
    """Return a flash device of the catalog or a file; None for a name that is none."""
    return load_flash(technology) if technology.endswith(SUFFIXES) else _of_catalog(technology)


@functools.lru_cache(maxsize=64)
def _of_catalog(name: str) -> FlashDevice | None:
    return load_flash(name) if name in CATALOG.names() else None


def inside_of(device: FlashDevice) -> FlashDevice:
    """Return the device as what sits at its channels sees it: no link, no host."""
    none = Parameter(0.0, "seconds", "no host")
    rate = Parameter(_NO_LINK, "bytes_per_s", "no link")
    return device.model_copy(
        update={
            "name": f"{device.name} inside",
            "pcie": device.pcie.model_copy(update={"rate": rate, "header": 0}),
            "host": device.host.model_copy(update={"command": none, "firmware": none}),
        }
    )


def peak(device: FlashDevice) -> float:
    """Return the most that the device can deliver: its channels, or its link's payload."""
    pcie = device.pcie
    link = pcie.rate.value * pcie.payload / (pcie.payload + pcie.header)
    return min(device.channels * device.channel_rate.value, link)


def stream_rate(device: FlashDevice) -> float:
    """Return the bytes/s of a stream of long reads."""
    return _rate(device, None)


def page_rate(device: FlashDevice, page: int) -> float:
    """Return the bytes/s of reads of `page` bytes at random places, many at once.

    Raises:
        ConfigError: If the page is no whole number of bytes from 1 on, or larger than the device.
    """
    if not 0 < page <= device.capacity_bytes:
        rule = f"must lie within the {device.capacity_bytes} bytes of the device"
        raise ConfigError.one(device.name, "page", rule, page)
    whole = -(-page // SECTOR) * SECTOR
    return _rate(device, whole) * page / whole


def digest(device: FlashDevice) -> str:
    """Return a short hash of all that decides rates."""
    from opbyte.hw_models.memory.nand_kernel.setup import numbers_of

    decides = (
        numbers_of(device, depth=1), device.allocation, device.layout, device.blocks,
        device.overprovisioning.value,
    )  # fmt: skip
    return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return held


def _rate(device: FlashDevice, page: int | None) -> float:
    held = _table().get(device.name)
    if held is not None and held["digest"] == digest(device):
        known = held["rates"].get("stream" if page is None else f"page {page}")
        if known is not None:
            return float(known)
    key = (digest(device), page)
    if key not in _FOUND:
        _FOUND[key] = computed(device, page)
    return _FOUND[key]


#: Rates that were computed in this process, by device and page.
_FOUND: dict[tuple[str, int | None], float] = {}


def computed(device: FlashDevice, page: int | None = None) -> float:
    """Return a rate as the loop finds it now, without table or memory.

    Args:
        page: Bytes of a request at a random place; None for a stream.
    """
    from opbyte.hw_models.memory.nand import Flash

    if page is None:
        found = Flash(device).stream("seq", block=STREAM, queue_depth=DEPTH, requests=400)
    else:
        depth = max(1, min(MOST, UNDER_WAY // page))
        found = Flash(device).stream(
            "random", block=page, queue_depth=depth, requests=max(8 * depth, 400)
        )
    return found.bandwidth_bytes_per_s
