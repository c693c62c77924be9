"""The `csd` block of a unit: attention kernels behind the channels of a computational drive."""

from __future__ import annotations

from opbyte.core.blocks import Block
from opbyte.core.parameters import Bytes, Count, Parameter, Several

__all__ = ["Csd"]


class Csd(Block):
    """What multiplies, compares and filters in one drive. All rates are a clock's."""

    kernels: Several
    """Attention kernels; each has a GEMV and a softmax."""
    width: Several
    """Multiplications and additions of fp16 that the GEMV of a kernel does."""
    exponentials: Several
    """Scores that the softmax of a kernel takes."""
    filter: Bytes
    """Bytes that the filter of a channel takes."""
    sort: Several
    """Scores that the drive's argtopk takes."""
    hold: Count = Parameter(128.0, "count", "assumed: 128 unless given", (64.0, 2048.0))
    """New tokens of a sequence whose keys are not written by channel yet."""
    source: str | None = None
