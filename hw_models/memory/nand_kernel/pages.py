"""From logical to physical pages: the part of the table that the controller holds, and misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.collect import must_wait, page_of, write_page
from opbyte.hw_models.memory.nand_kernel.layout import (
    ABSENT,
    COLLECTS,
    COMING,
    ENTRIES,
    G_ROW,
    G_WAIT,
    G_WRITTEN,
    HELD_ENTRIES,
    IDEAL,
    L_BUFFERED,
    L_DIRTY,
    L_LOCAL,
    L_MAP,
    L_MASK,
    L_NEWER,
    L_NEXT,
    L_OLDER,
    L_PAGE,
    L_PLANE,
    L_READS,
    L_STATE,
    L_WRITES,
    LRU,
    M_EPOCH,
    M_FIRST,
    M_LAST,
    M_PAGE,
    M_PLANE,
    MAP,
    MAPPING,
    MAPPING_BYTES,
    MAPPING_READS,
    MERGE,
    MERGE_READ,
    N_HITS,
    N_MAPPING_READS,
    N_MAPPING_WRITES,
    N_MERGES,
    N_MISSES,
    NEWEST,
    O_MAPS,
    O_PAGES,
    O_PIECES,
    O_PLANES,
    O_TARGETS,
    OLDEST,
    P_BYTES,
    P_LPN,
    P_MASK,
    P_MORE,
    P_NEXT,
    P_OTHER,
    P_QUEUE,
    P_REQUEST,
    P_ROW,
    P_TARGET,
    PAGE,
    PAGE_BYTES,
    PAGES,
    PIECE,
    PLANE,
    READS,
    T_URGENT,
    TARGET,
    THERE,
    UNIT,
    WRITES,
)
from opbyte.hw_models.memory.nand_kernel.queues import append, new_piece
from opbyte.hw_models.memory.nand_kernel.setup import WHOLE
from opbyte.hw_models.memory.nand_kernel.turns import enqueue, schedule

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.blocks import Memory
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["entries_arrived", "merged", "resume_writes", "translate"]


@part
def _unlink(m: Ints, page: int) -> None:
    """Take a page out of the order of use."""
    older, newer = m[page + L_OLDER], m[page + L_NEWER]
    if older >= 0:
        m[m[O_PAGES] + older * PAGE + L_NEWER] = newer
    else:
        m[OLDEST] = newer
    if newer >= 0:
        m[m[O_PAGES] + newer * PAGE + L_OLDER] = older
    else:
        m[NEWEST] = older


@part
def _newest(m: Ints, lpn: int) -> None:
    """Put a page at the end of the order of use."""
    page = m[O_PAGES] + lpn * PAGE
    m[page + L_OLDER], m[page + L_NEWER] = m[NEWEST], -1
    if m[NEWEST] >= 0:
        m[m[O_PAGES] + m[NEWEST] * PAGE + L_NEWER] = lpn
    else:
        m[OLDEST] = lpn
    m[NEWEST] = lpn


@apart
def _merge(m: Ints, piece: int, row: int) -> bool:
    """Let a write that leaves a part of its page as it is wait for the old data on flash.

    Returns whether it waits.
    """
    at = m[O_PIECES] + piece * PIECE
    page = m[O_PAGES] + m[at + P_LPN] * PAGE
    kept = m[page + L_MASK] & ~m[at + P_MASK]
    m[page + L_MASK] |= m[at + P_MASK]
    if kept == 0 or row < 0 or m[page + L_BUFFERED] > 1:
        return False
    units = 0
    while kept:
        kept &= kept - 1
        units += 1
    if m[MERGE] == WHOLE:
        m[at + P_MORE] = units * m[UNIT]
    read = new_piece(m, m[page + L_PLANE])
    other = m[O_PIECES] + read * PIECE
    m[other + P_BYTES], m[other + P_REQUEST], m[other + P_OTHER] = (
        units * m[UNIT],
        MERGE_READ,
        piece,
    )
    m[other + P_QUEUE], m[other + P_ROW] = READS, row
    m[N_MERGES] += 1
    schedule(m, read)
    return True


@part
def _place(m: Ints, piece: int, f: Memory) -> bool:
    """Say where in its block the page of a piece is; a write takes the next page of its plane.

    Returns whether the piece may go to its target: old data may have to be read, or a block erased.
    """
    at = m[O_PIECES] + piece * PIECE
    page = m[O_PAGES] + m[at + P_LPN] * PAGE
    place = m[O_PLANES] + m[page + L_PLANE] * PLANE
    writes = m[at + P_QUEUE] == WRITES
    old = m[page + L_PAGE]
    if m[COLLECTS]:
        old = page_of(m, page, f)
        if not writes and old < 0:
            old = m[page + L_LOCAL] % m[PAGES]
        if writes and must_wait(m, place, m[page + L_PLANE], f):
            append(m, place + G_WAIT, piece)
            m[m[O_TARGETS] + m[at + P_TARGET] * TARGET + T_URGENT] += 1
            return False
        new = write_page(m, page, f) if writes else old
    elif writes or old < 0:
        new = m[place + G_WRITTEN]
        m[place + G_WRITTEN] = new + 1 if new + 1 < m[PAGES] else 0
        m[page + L_PAGE] = new
    else:
        new = old
    m[at + P_ROW] = m[place + G_ROW] + new
    if m[MERGE]:
        if writes:
            return not _merge(m, piece, m[place + G_ROW] + old if old >= 0 else -1)
        m[page + L_MASK] |= m[at + P_MASK]
    return True


@part
def _used(m: Ints, piece: int) -> None:
    """Note the use of an entry, and that it changes."""
    at = m[O_PIECES] + piece * PIECE
    lpn = m[at + P_LPN]
    page = m[O_PAGES] + lpn * PAGE
    if m[LRU] and m[NEWEST] != lpn:
        _unlink(m, page)
        _newest(m, lpn)
    if m[at + P_QUEUE] == WRITES:
        m[page + L_DIRTY] = m[m[O_MAPS] + m[page + L_MAP] * MAP + M_EPOCH]


@apart
def _mapping_piece(m: Ints, mvpn: int, size: int, queue: int) -> None:
    """Read or write a mapping page."""
    place = m[O_MAPS] + mvpn * MAP
    plane = m[place + M_PLANE]
    piece = new_piece(m, plane)
    at = m[O_PIECES] + piece * PIECE
    m[at + P_ROW] = m[m[O_PLANES] + plane * PLANE + G_ROW] + m[place + M_PAGE]
    m[at + P_BYTES], m[at + P_REQUEST], m[at + P_LPN] = size, MAPPING, mvpn
    m[at + P_QUEUE], m[at + P_MORE] = queue, 0
    schedule(m, piece)


@apart
def _evict(m: Ints) -> None:
    """Give up the entry that was used longest ago, if there is no room; write back its page."""
    if m[HELD_ENTRIES] < m[ENTRIES]:
        return
    lpn = m[OLDEST]
    while lpn >= 0 and m[m[O_PAGES] + lpn * PAGE + L_STATE] != THERE:
        lpn = m[m[O_PAGES] + lpn * PAGE + L_NEWER]
    if lpn < 0:
        return
    page = m[O_PAGES] + lpn * PAGE
    _unlink(m, page)
    m[page + L_STATE] = ABSENT
    m[HELD_ENTRIES] -= 1
    mvpn = m[page + L_MAP]
    if m[page + L_DIRTY] == m[m[O_MAPS] + mvpn * MAP + M_EPOCH]:
        m[m[O_MAPS] + mvpn * MAP + M_EPOCH] += 1
        m[N_MAPPING_WRITES] += 1
        _mapping_piece(m, mvpn, m[PAGE_BYTES], WRITES)


@part
def _miss(m: Ints, piece: int) -> None:
    """Let a piece wait for its entry, which is read unless its mapping page is already."""
    m[N_MISSES] += 1
    at = m[O_PIECES] + piece * PIECE
    lpn = m[at + P_LPN]
    page = m[O_PAGES] + lpn * PAGE
    append(m, page + (L_WRITES if m[at + P_QUEUE] == WRITES else L_READS), piece)
    if m[page + L_STATE] != ABSENT:
        return
    if m[LRU]:
        _evict(m)
    m[page + L_STATE] = COMING
    m[HELD_ENTRIES] += 1
    if m[LRU]:
        _newest(m, lpn)
    mvpn = m[page + L_MAP]
    place = m[O_MAPS] + mvpn * MAP
    m[page + L_NEXT] = -1
    known = m[place + M_FIRST] >= 0
    if known:
        m[m[O_PAGES] + m[place + M_LAST] * PAGE + L_NEXT] = lpn
    else:
        m[place + M_FIRST] = lpn
    m[place + M_LAST] = lpn
    if not known:
        m[N_MAPPING_READS] += 1
        _mapping_piece(m, mvpn, m[MAPPING_BYTES], MAPPING_READS)


@apart
def translate(m: Ints, first: int, f: Memory) -> None:
    """Find the pages of a chain of pieces, and schedule those whose entries are there."""
    ready, last = -1, -1
    piece = first
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        after = m[at + P_NEXT]
        if m[IDEAL] or m[m[O_PAGES] + m[at + P_LPN] * PAGE + L_STATE] == THERE:
            if not m[IDEAL]:
                m[N_HITS] += 1
                _used(m, piece)
            if _place(m, piece, f):
                m[at + P_NEXT] = -1
                if ready < 0:
                    ready = piece
                else:
                    m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
                last = piece
        else:
            _miss(m, piece)
        piece = after
    if ready >= 0:
        schedule(m, ready)


@apart
def entries_arrived(m: Ints, mvpn: int, f: Memory) -> None:
    """Schedule what waited for a mapping page: page by page, reads before writes."""
    place = m[O_MAPS] + mvpn * MAP
    lpn = m[place + M_FIRST]
    m[place + M_FIRST] = -1
    ready, last = -1, -1
    while lpn >= 0:
        page = m[O_PAGES] + lpn * PAGE
        m[page + L_STATE] = THERE
        for queue in (L_READS, L_WRITES):
            piece = m[page + queue]
            m[page + queue] = -1
            while piece >= 0:
                at = m[O_PIECES] + piece * PIECE
                after = m[at + P_NEXT]
                _used(m, piece)
                if _place(m, piece, f):
                    m[at + P_NEXT] = -1
                    if ready < 0:
                        ready = piece
                    else:
                        m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
                    last = piece
                piece = after
        lpn = m[page + L_NEXT]
    if ready >= 0:
        schedule(m, ready)


@part
def merged(m: Ints, piece: int) -> None:
    """Schedule a write whose old data have come."""
    m[m[O_PIECES] + piece * PIECE + P_NEXT] = -1
    schedule(m, piece)


@part
def resume_writes(m: Ints, first: int, f: Memory) -> None:
    """Place writes that waited for a free block: none, or as many as go before the next wait."""
    piece = first
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        after = m[at + P_NEXT]
        if _place(m, piece, f):
            enqueue(m, piece)
        piece = after
