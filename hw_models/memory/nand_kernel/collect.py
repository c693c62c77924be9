"""Garbage collection: within the loop, and on one plane without a clock, with its readable twin.

Which pages move where is settled when a block is chosen (`blocks`); their reads, programs and the
erasure then take their time. So the loop writes and moves the very pages that `collect` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opbyte.core.errors import SimulationError
from opbyte.core.loops import apart, compiled, part
from opbyte.hw_models.memory.nand_kernel.blocks import (
    F_DRAWN,
    F_ERASES,
    F_FREE,
    F_HOST,
    F_MOVED,
    drop_page,
    erased,
    make_room,
    memory,
    moved,
    overwrite,
    victim,
    where_at,
)
from opbyte.hw_models.memory.nand_kernel.layout import (
    COPYBACK,
    ERASES,
    ERASURE,
    FAULT,
    G_LEFT,
    G_ROW,
    G_VICTIM,
    G_WAIT,
    L_LOCAL,
    L_PLANE,
    MEMORY,
    MOVE,
    MOVE_READS,
    MOVE_WRITES,
    N_ERASES,
    N_MOVES,
    O_PIECES,
    O_PLANES,
    O_TARGETS,
    P_BYTES,
    P_LPN,
    P_MORE,
    P_NEXT,
    P_OTHER,
    P_QUEUE,
    P_REQUEST,
    P_ROW,
    P_TARGET,
    PAGE_BYTES,
    PAGES,
    PIECE,
    PLANE,
    STALL,
    START,
    T_URGENT,
    TARGET,
)
from opbyte.hw_models.memory.nand_kernel.queues import new_piece
from opbyte.hw_models.memory.nand_kernel.turns import enqueue

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.blocks import Memory
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = [
    "collect", "fill", "must_wait", "page_of", "wiped", "write_page", "written_back",
]  # fmt: skip


@part
def page_of(m: Ints, page: int, f: Memory) -> int:
    """Return the page within its block of a logical page; -1 where it was never written."""
    b = m[page + L_PLANE] * m[MEMORY]
    place = f[where_at(f, b) + m[page + L_LOCAL]]
    return int(place % m[PAGES]) if place >= 0 else -1


@part
def must_wait(m: Ints, place: int, plane: int, f: Memory) -> bool:
    """Return whether a write of the host waits until a block of its plane is erased."""
    if m[place + G_WAIT] >= 0:
        return True
    return bool(m[place + G_VICTIM] >= 0 and f[plane * m[MEMORY] + F_FREE] < m[STALL])


@apart
def write_page(m: Ints, page: int, f: Memory) -> int:
    """Write a page of the host, begin to collect if few blocks are free, and return the page."""
    plane = m[page + L_PLANE]
    new = overwrite(f, plane * m[MEMORY], m[page + L_LOCAL])
    if m[m[O_PLANES] + plane * PLANE + G_VICTIM] < 0:
        _begin(m, plane, f)
    return int(new % m[PAGES])


@apart
def _begin(m: Ints, plane: int, f: Memory) -> None:
    """Begin to collect if few blocks are free: queue reads of the pages that move."""
    b, place = plane * m[MEMORY], m[O_PLANES] + plane * PLANE
    if f[b + F_FREE] >= m[START]:
        return
    block = victim(f, b)
    if block < 0:
        m[FAULT] = 1
        return
    m[place + G_VICTIM], m[place + G_LEFT] = block, 0
    for old in range(block * m[PAGES], (block + 1) * m[PAGES]):
        new = moved(f, b, old)
        if new < 0:
            continue
        piece = new_piece(m, plane)
        at = m[O_PIECES] + piece * PIECE
        m[at + P_BYTES], m[at + P_REQUEST], m[at + P_LPN] = m[PAGE_BYTES], MOVE, plane
        m[at + P_ROW] = m[place + G_ROW] + old % m[PAGES]
        m[at + P_OTHER], m[at + P_MORE] = m[place + G_ROW] + new % m[PAGES], 0
        m[at + P_QUEUE] = MOVE_READS
        if m[COPYBACK]:
            m[at + P_QUEUE], m[at + P_BYTES], m[at + P_ROW] = MOVE_WRITES, 0, m[at + P_OTHER]
        m[place + G_LEFT] += 1
        m[N_MOVES] += 1
        enqueue(m, piece)
    if m[place + G_LEFT] == 0:
        _erase(m, plane)


@part
def _erase(m: Ints, plane: int) -> None:
    piece = new_piece(m, plane)
    at, place = m[O_PIECES] + piece * PIECE, m[O_PLANES] + plane * PLANE
    m[at + P_BYTES], m[at + P_REQUEST], m[at + P_LPN], m[at + P_MORE] = 0, ERASURE, plane, 0
    m[at + P_ROW], m[at + P_QUEUE] = m[place + G_ROW], ERASES
    enqueue(m, piece)


@apart
def written_back(m: Ints, plane: int) -> None:
    """Count a page that was moved; the block is erased after the last."""
    place = m[O_PLANES] + plane * PLANE
    m[place + G_LEFT] -= 1
    if m[place + G_LEFT] == 0:
        _erase(m, plane)


@apart
def wiped(m: Ints, plane: int, f: Memory) -> int:
    """Count an erased block, collect on, and return the first of a chain of writes that may go."""
    b, place = plane * m[MEMORY], m[O_PLANES] + plane * PLANE
    erased(f, b, m[place + G_VICTIM])
    m[N_ERASES] += 1
    m[place + G_VICTIM] = -1
    _begin(m, plane, f)
    first = m[place + G_WAIT]
    m[place + G_WAIT] = -1
    piece = first
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        m[m[O_TARGETS] + m[at + P_TARGET] * TARGET + T_URGENT] -= 1
        piece = m[at + P_NEXT]
    return int(first)


@part
def _run(f: Memory, ops: Ints, spare: int, before: int) -> bool:
    written = 0
    for i in range(len(ops)):
        lpn = ops[i]
        if lpn < 0:
            drop_page(f, 0, -1 - lpn)
            continue
        if written == before:
            f[F_HOST] = f[F_MOVED] = f[F_ERASES] = 0
        written += 1
        overwrite(f, 0, lpn)
        if not make_room(f, 0, spare):
            return False
    return True


@part
def _fill(f: Memory, planes: int, each: int, filled: int, writes: int, spare: int) -> bool:
    for plane in range(planes):
        b = plane * each
        drawn = f[b + F_DRAWN]
        for i in range(filled + writes):
            lpn = i
            if i >= filled:
                drawn = drawn * 48271 % ((1 << 31) - 1)
                lpn = drawn % filled
            overwrite(f, b, lpn)
            if not make_room(f, b, spare):
                return False
        f[b + F_HOST] = f[b + F_MOVED] = f[b + F_ERASES] = 0
    return True


_FILES = tuple(Path(__file__).parent / f"{name}.py" for name in ("collect", "blocks"))
_NONE = "no block has an invalid page, so that none can be erased"


def fill(f: Memory, planes: int, filled: int, writes: int, spare: int) -> None:
    """Write the first pages of each plane in order, then overwrite them at random.

    Args:
        f: `blocks.memory` of all planes.
        filled: Logical pages of a plane that are written.
        writes: Overwrites of a plane.
        spare: Blocks that are kept free.

    Raises:
        SimulationError: If no block can be erased.
    """
    if not compiled(_fill, _FILES)(f, planes, len(f) // planes, filled, writes, spare):
        raise SimulationError(_NONE)


def collect(
    blocks: int, pages: int, logical: int, ops: Ints, policy: int, spare: int, before: int,
    seed: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Return host pages, moved pages and erases of the writes after the first `before`.

    Args:
        blocks, pages: Of a plane, and of a block.
        logical: Pages that the host may write.
        ops: Pages that are written, -1 - page for those given back, (operations,).
        policy: `GREEDY`, `FIFO` or `SAMPLED`.
        spare: Blocks that are kept free.
        before: Writes that do not count.
        seed: Of drawn blocks.
    """
    f = memory(1, blocks, pages, logical, policy, seed)
    if not compiled(_run, _FILES)(f, ops, spare, before):
        raise SimulationError(_NONE)
    return int(f[F_HOST]), int(f[F_MOVED]), int(f[F_ERASES])
