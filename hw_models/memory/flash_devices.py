"""Flash devices as data: organisation, times, protocol and controller. Files of kind `flash`."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, PositiveInt, model_validator

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import load_document, validate
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import (
    Bytes,
    BytesPerSecond,
    JoulesPerBit,
    Parameter,
    Ratio,
    Seconds,
)
from opbyte.core.registry import nearest

__all__ = ["CATALOG", "FlashDevice", "flash_names", "load_flash"]

CATALOG = Catalog("flash device", Path(__file__).parents[1] / "catalog" / "flash")
Ints = npt.NDArray[np.int64]
#: Levels that a logical page number is spread over, by letter.
LETTERS = {"C": "channels", "W": "chips", "D": "dies", "P": "planes"}
SECTOR = 512
#: Chips or dies of a channel that the loop tells apart.
MOST_TARGETS = 62


class Pcie(Block):
    """The link to the host."""

    rate: BytesPerSecond
    """Raw rate per direction, coding taken off, packets not."""
    lanes: PositiveInt = 4
    payload: PositiveInt = 128
    """Most bytes of a packet's payload."""
    header: NonNegativeInt = 28
    """Bytes around each payload."""


class Mapping(Block):
    """The table from logical to physical pages, of which the controller holds a part."""

    cache: Bytes = Parameter(2.0 * (1 << 20), "bytes", "assumed: that of a common simulator")
    """Memory for entries."""
    ideal: bool = False
    """The whole table is in the controller's memory."""
    read: Bytes = Parameter(512.0, "bytes", "assumed: one sector")
    """Bytes of a mapping page that a miss moves."""


class Buffer(Block):
    """The controller's memory for writes on their way."""

    size: Bytes | None = None
    """Writes on their way to flash at most; default: a page for each plane."""
    answers: bool = True
    """Writes are answered when they are in the buffer; else, when they are on flash."""
    rate: BytesPerSecond = Parameter(3.2e9, "bytes_per_s", "assumed: DDR3-1600 x16")
    latency: Seconds = Parameter(26e-9, "seconds", "assumed: tRCD + tCL")
    row: Bytes = Parameter(8192.0, "bytes", "assumed: DDR3 x16")


class Host(Block):
    """What a command costs beside the device."""

    command: Seconds = Parameter(0.0, "seconds", "assumed: free, no software")
    """Time of a host core per command; one core submits."""
    firmware: Seconds = Parameter(0.0, "seconds", "assumed: none; hardware")
    """Latency of the device's firmware per command; does not limit the rate."""
    fetch: PositiveInt = 512
    """Commands that the device takes from the queue at most."""


class Collection(Block):
    """Garbage collection: which block is erased, when, and who goes first."""

    policy: Literal["greedy", "fifo", "sampled"] = "greedy"
    """The block with fewest valid pages, the one written first, or the best of log2(blocks)."""
    start: Ratio | None = None
    """Share of a plane's blocks: collecting begins when fewer are free; two blocks without it."""
    stall: Ratio | None = None
    """Share of a plane's blocks: writes wait when fewer are free; two blocks without it."""
    first: Literal["host", "flash"] = "host"
    """Whose operations a die serves first; those of collecting, where writes of the host wait."""
    copyback: bool = False
    """Pages move within their plane, not over the channel and through the controller."""


class Suspend(Block):
    """What a read costs that interrupts a program or an erasure."""

    program: Seconds | None = None
    """Time until a program gives the arrays free; it is not interrupted without one."""
    erase: Seconds | None = None
    """The same of an erasure."""
    resume: Seconds = Parameter(0.0, "seconds", "assumed: going on costs nothing more")
    """Time by which what was interrupted takes longer."""


class Energy(Block):
    """What page operations cost."""

    source: str
    read_per_bit: JoulesPerBit
    program_per_bit: JoulesPerBit


class FlashDevice(Block):
    """A drive, or flash inside a computational device."""

    kind: Literal["flash"]
    name: str = ""
    description: str
    source: str
    channels: PositiveInt
    chips: PositiveInt
    """Chips (chip enables) of a channel."""
    dies: PositiveInt
    """Dies of a chip."""
    planes: PositiveInt
    """Planes of a die."""
    blocks: PositiveInt = 2048
    """Blocks of a plane."""
    pages: PositiveInt = 256
    """Pages of a block."""
    page: Bytes
    read: Seconds
    """tR, array to page register."""
    program: Seconds
    """tPROG."""
    erase: Seconds
    """tBERS, a block."""
    channel_rate: BytesPerSecond
    """ONFI transfers per second times width."""
    channel_width: PositiveInt = 1
    """Bytes of a transfer."""
    multiplane: bool = True
    """Planes of a die read or program side by side, at the same page of their blocks."""
    cache_read: bool = False
    """A second register: the array reads on while data leave."""
    commands_first: bool = True
    """A channel sends commands to idle arrays before it moves data that wait."""
    die_interleave: bool = True
    """Dies of a chip work side by side."""
    allocation: str = "CWDP"
    """Levels that consecutive pages go round, fastest first: channel, way (chip), die, plane."""
    layout: Literal["touch", "sequential"] = "sequential"
    """Pages of a block in the order of logical pages, or in that of first use."""
    overprovisioning: Ratio
    """Share of the pages that the host does not see."""
    cycles: PositiveInt | None = None
    """Program-erase cycles that a block endures."""
    pcie: Pcie
    mapping: Mapping = Mapping()
    buffer: Buffer = Buffer()
    host: Host = Host()
    merge: Literal["none", "changed", "whole"] = "whole"
    """The rest of a page that is written in part: lost; read; or read and moved back, too."""
    collection: Collection = Collection()
    suspend: Suspend = Suspend()
    energy: Energy | None = None
    whole_ns: bool = False
    """Repeat another simulator's bus cycles in whole ns, cut off (none above 1 GHz), and its time
    of the write buffer: for comparisons with it alone."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if sorted(self.allocation) != sorted(LETTERS):
            raise ValueError(f"`allocation` must order C, W, D and P, got {self.allocation}")
        page = self.page.value
        if page != int(page) or int(page) % SECTOR:
            raise ValueError(f"`page` must be a multiple of {SECTOR} B, got {page:g} B")
        if not 0 < self.overprovisioning.value < 1:
            raise ValueError("`overprovisioning` must lie between 0 and 1")
        if not self.logical_pages or self.blocks < 2:
            raise ValueError("`blocks` and `pages` leave no page to the host")
        start, stall = self.collection.start, self.collection.stall
        if self.free_blocks(stall) > self.free_blocks(start):
            raise ValueError("`collection.stall` must not be above `collection.start`")
        if self.targets_per_channel > MOST_TARGETS:
            raise ValueError(f"a channel can have {MOST_TARGETS} chips or dies at most")
        lasting = {
            "page": self.page, "read": self.read, "program": self.program, "erase": self.erase,
            "channel_rate": self.channel_rate, "pcie.rate": self.pcie.rate,
            "buffer.rate": self.buffer.rate, "mapping.read": self.mapping.read,
        }  # fmt: skip
        if self.buffer.size is not None and self.buffer.size.value < SECTOR:
            raise ValueError(f"`buffer.size` must be {SECTOR} B or more, got {self.buffer.size}")
        for name, value in lasting.items():
            if not 0 < value.value < float("inf"):
                raise ValueError(f"`{name}` must be above 0, got {value}")
        return self

    @cached_property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return int(self.page.value)

    @property
    def targets_per_channel(self) -> int:
        """What takes one command at a time: chips, or dies where those work side by side."""
        return self.chips * (self.dies if self.die_interleave else 1)

    @property
    def dies_per_target(self) -> int:
        """Dies that take turns."""
        return 1 if self.die_interleave else self.dies

    @property
    def most_planes(self) -> int:
        """Planes that one command may use."""
        return self.planes if self.multiplane else 1

    def free_blocks(self, share: Parameter | None) -> int:
        """Return a share of a plane's blocks, two at least."""
        return 2 if share is None else max(2, int(share.value * self.blocks))

    @property
    def total_planes(self) -> int:
        """Planes of the device."""
        return self.channels * self.chips * self.dies * self.planes

    @property
    def physical_pages(self) -> int:
        """Pages of the device, spare ones included."""
        return self.total_planes * self.blocks * self.pages

    @property
    def logical_pages(self) -> int:
        """Pages that the host sees."""
        return int(self.physical_pages * (1.0 - self.overprovisioning.value))

    @property
    def capacity_bytes(self) -> int:
        """Bytes that the host sees."""
        return self.logical_pages * self.page_bytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes of writes on their way to flash at most."""
        size = self.buffer.size
        return self.total_planes * self.page_bytes if size is None else int(size.value)

    @property
    def entries_per_mapping_page(self) -> int:
        """Entries of a mapping page: a physical page number and a bit for each sector."""
        bits = math.log2(self.physical_pages) + self.page_bytes // SECTOR
        return max(1, self.page_bytes // math.ceil(bits / 8))

    @property
    def mapping_entries(self) -> int:
        """Entries that the controller holds: as above, with the logical page number."""
        bits = 2 * math.log2(self.physical_pages) + self.page_bytes // SECTOR
        return max(1, int(self.mapping.cache.value) // math.ceil(bits / 8))

    def places(self, pages: Ints) -> tuple[Ints, Ints, Ints]:
        """Return target, die of the target and plane of logical pages, each (pages,)."""
        rest, at = pages, {}
        for letter in self.allocation:
            size = getattr(self, LETTERS[letter])
            at[letter] = rest % size
            rest = rest // size
        way, die = at["W"], at["D"]
        if self.die_interleave:
            way, die = way * self.dies + die, np.zeros_like(die)
        target = at["C"] * self.targets_per_channel + way
        return target.astype(np.int64), die.astype(np.int64), at["P"].astype(np.int64)


def flash_names() -> list[str]:
    """Return the names of the catalog's flash devices."""
    return CATALOG.names()


def load_flash(name_or_path: str | os.PathLike[str], **changes: Any) -> FlashDevice:
    """Return a flash device of the catalog or of a file.

    Args:
        name_or_path: Catalog name, such as `mqsim-default`, or a file of kind `flash`.
        changes: Other values than the file's, as the file would write them: `channels=4`,
            `read="25 us"`, `mapping={"ideal": True}` (fields that are not named stay).

    Raises:
        ConfigError: If there is no such device, with the nearest, or a value breaks a rule.
    """
    path = CATALOG.find(name_or_path)
    document = load_document(path, find=CATALOG.path)
    data = dict(document.data)
    fields = [name for name in FlashDevice.model_fields if name not in ("kind", "name")]
    for key, value in changes.items():
        if key not in fields:
            near = nearest(key, fields)
            guess = f"Did you mean '{near}'? " if near else ""
            remedy = f"{guess}Known: {', '.join(fields)}."
            raise ConfigError.one(path.stem, key, "is no field of a flash device", value, remedy)
        old = data.get(key)
        data[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    if changes:
        # What is wrong may not stand in the file: no line of it is named.
        marks = {at: mark for at, mark in document.marks.items() if at and at[0] not in changes}
        document = replace(document, marks=marks, name=path.stem)
    device = validate(FlashDevice, replace(document, data=data))
    return device.model_copy(update={"name": path.stem})
