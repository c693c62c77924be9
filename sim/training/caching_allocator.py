"""PyTorch's caching allocator on a sequence of tensors that come and go.

A framework asks the driver for segments and cuts them into blocks (pytorch/pytorch,
c10/cuda/CUDACachingAllocator.cpp, default settings):

- sizes are rounded up to 512 B; up to 1 MiB they lie in segments of 2 MiB, below 10 MiB in segments
  of 20 MiB, larger ones in segments of their own size, in whole 2 MiB;
- the smallest free block that is large enough is taken, of equal ones the first; what is left of it
  is split off, from 512 B on in small segments and beyond 1 MiB in others;
- a block that is given back joins free neighbours of its segment;
- segments stay. Where the memory is full, those that are wholly free go back to the driver, once.

What segments hold beside tensors at the most is the fragmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from opbyte.core.loops import LOOP, apart

__all__ = ["Held", "fill_blocks", "replayed"]

Ints = npt.NDArray[np.int64]

MIB = 2**20
SMALLEST = 512
SMALL = MIB
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
OWN_SEGMENT, WHOLE = 10 * MIB, 2 * MIB

#: Columns of a block: bytes, address, block before and behind it in its segment (-1 for none),
#: where it is in the list of free blocks (-1 where it is not), whether it is a small one.
SIZE, START, BEFORE, BEHIND, FREE, IS_SMALL = range(6)
#: Entries of the totals: blocks made, free ones, segments' bytes, their most, tensors' bytes,
#: their most, the next address, whether the limit was exceeded.
MADE, FREED, RESERVED, MOST_RESERVED, ASKED, MOST_ASKED, NEXT, FAILED = range(8)


@dataclass(frozen=True, slots=True)
class Held:
    """What an allocator held at the most, bytes.

    Attributes:
        reserved: Of segments.
        asked: Of tensors.
        fits: Whether segments stayed below the limit.
    """

    reserved: float
    asked: float
    fits: bool

    @property
    def holes(self) -> float:
        """Return what segments took beside tensors."""
        return self.reserved - self.asked


def replayed(events: Ints, sizes: Ints, limit: float = float("inf")) -> Held:
    """Return what the allocator held over a sequence of events.

    Args:
        events: Tensor i comes as i + 1 and goes as -(i + 1), (events,).
        sizes: Bytes of each tensor, (tensors,).
        limit: Bytes that segments may take.
    """
    count = 2 * len(events) + 1
    blocks = np.full((count, 6), -1, np.int64)
    free, of = np.empty(count, np.int64), np.full(len(sizes), -1, np.int64)
    totals = np.zeros(8, np.int64)
    most = np.int64(min(limit, 2.0**62))
    compiled()(events, sizes, most, blocks, free, of, totals)
    return Held(float(totals[MOST_RESERVED]), float(totals[MOST_ASKED]), not totals[FAILED])


def fill_blocks(
    events: Ints, sizes: Ints, limit: int, blocks: Ints, free: Ints, of: Ints, totals: Ints
) -> None:
    """Play all events; stop where no segment can be had.

    Args:
        blocks: Scratch of -1, (2 events + 1, 6).
        free: Scratch: the free blocks.
        of: Scratch of -1: block of each tensor.
        totals: Result and scratch of 0, (8,).
    """
    for event in events:
        tensor = abs(event) - 1
        asked = sizes[tensor]
        if asked <= 0:
            continue
        if event < 0:
            block = of[tensor]
            _join(block, BEFORE, blocks, free, totals)
            _join(block, BEHIND, blocks, free, totals)
            _list(block, blocks, free, totals)
            totals[ASKED] -= asked
            continue
        size = (asked + SMALLEST - 1) // SMALLEST * SMALLEST
        small = 1 if size <= SMALL else 0
        block = _smallest(size, small, blocks, free, totals)
        if block >= 0:
            _unlist(block, blocks, free, totals)
        else:
            block = _new(size, small, limit, blocks, free, totals)
        if block < 0:
            totals[FAILED] = 1
            return
        left = blocks[block, SIZE] - size
        if left > SMALL or (small == 1 and left >= SMALLEST):
            _split(block, size, blocks, free, totals)
        of[tensor] = block
        totals[ASKED] += asked
        totals[MOST_ASKED] = max(totals[MOST_ASKED], totals[ASKED])


@apart
def _list(block: int, blocks: Ints, free: Ints, totals: Ints) -> None:
    """Add a block to the free ones."""
    free[totals[FREED]] = block
    blocks[block, FREE] = totals[FREED]
    totals[FREED] += 1


@apart
def _unlist(block: int, blocks: Ints, free: Ints, totals: Ints) -> None:
    """Take a block from the free ones; the last of them takes its place."""
    totals[FREED] -= 1
    last = free[totals[FREED]]
    free[blocks[block, FREE]] = last
    blocks[last, FREE] = blocks[block, FREE]
    blocks[block, FREE] = -1


@apart
def _join(block: int, side: int, blocks: Ints, free: Ints, totals: Ints) -> None:
    """Let a block take up its neighbour on one side, if that is free."""
    other = blocks[block, side]
    if other < 0 or blocks[other, FREE] < 0:
        return
    _unlist(other, blocks, free, totals)
    blocks[block, SIZE] += blocks[other, SIZE]
    blocks[block, START] = min(blocks[block, START], blocks[other, START])
    beyond = blocks[other, side]
    blocks[block, side] = beyond
    if beyond >= 0:
        blocks[beyond, BEFORE + BEHIND - side] = block


@apart
def _smallest(size: int, small: int, blocks: Ints, free: Ints, totals: Ints) -> int:
    """Return the smallest free block that is large enough, of equal ones the first; -1 if none."""
    best = -1
    for i in range(totals[FREED]):
        one = free[i]
        room = blocks[one, SIZE]
        if blocks[one, IS_SMALL] != small or room < size:
            continue
        first = best >= 0 and blocks[one, START] < blocks[best, START]
        if best < 0 or room < blocks[best, SIZE] or (room == blocks[best, SIZE] and first):
            best = one
    return best


@apart
def _new(size: int, small: int, limit: int, blocks: Ints, free: Ints, totals: Ints) -> int:
    """Return a new segment, as one block; -1 where the memory is full."""
    segment = (size + WHOLE - 1) // WHOLE * WHOLE
    if small == 1:
        segment = SMALL_SEGMENT
    elif size < OWN_SEGMENT:
        segment = LARGE_SEGMENT
    if totals[RESERVED] + segment > limit:
        _give_back(blocks, free, totals)
    if totals[RESERVED] + segment > limit:
        return -1
    block = totals[MADE]
    blocks[block, SIZE] = segment
    blocks[block, START] = totals[NEXT]
    blocks[block, IS_SMALL] = small
    totals[MADE] += 1
    totals[NEXT] += segment
    totals[RESERVED] += segment
    totals[MOST_RESERVED] = max(totals[MOST_RESERVED], totals[RESERVED])
    return int(block)


@apart
def _give_back(blocks: Ints, free: Ints, totals: Ints) -> None:
    """Give segments that are wholly free back to the driver."""
    for i in range(totals[FREED] - 1, -1, -1):
        one = free[i]
        if blocks[one, BEFORE] < 0 and blocks[one, BEHIND] < 0:
            totals[RESERVED] -= blocks[one, SIZE]
            _unlist(one, blocks, free, totals)


@apart
def _split(block: int, size: int, blocks: Ints, free: Ints, totals: Ints) -> None:
    """Make what a block has beyond a size a free block behind it."""
    rest = totals[MADE]
    totals[MADE] += 1
    blocks[rest, SIZE] = blocks[block, SIZE] - size
    blocks[rest, START] = blocks[block, START] + size
    blocks[rest, IS_SMALL] = blocks[block, IS_SMALL]
    blocks[rest, BEFORE] = block
    blocks[rest, BEHIND] = blocks[block, BEHIND]
    if blocks[block, BEHIND] >= 0:
        blocks[blocks[block, BEHIND], BEFORE] = rest
    blocks[block, BEHIND] = rest
    blocks[block, SIZE] = size
    _list(rest, blocks, free, totals)


@cache
def compiled() -> Any:
    """Return `fill_blocks` compiled."""
    return numba.njit(**LOOP)(fill_blocks)
