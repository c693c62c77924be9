"""From logical to physical pages: the part of the table that the controller holds, and misses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.layout import (
    ABSENT,
    COMING,
    DIES,
    ENTRIES,
    HELD_ENTRIES,
    IDEAL,
    L_BUFFERED,
    L_DIRTY,
    L_MAP,
    L_NEWER,
    L_NEXT,
    L_OLDER,
    L_PAGE,
    L_READS,
    L_STATE,
    L_WRITES,
    LRU,
    M_EPOCH,
    M_FIRST,
    M_LAST,
    MAP,
    MAPPING_BYTES,
    MAPPING_READ,
    MAPPING_WRITE,
    N_HITS,
    N_MAPPING_READS,
    N_MAPPING_WRITES,
    N_MISSES,
    NEWEST,
    O_MAPS,
    O_PAGES,
    O_PIECES,
    O_REQUESTS,
    O_WRITTEN,
    OLDEST,
    P_BYTES,
    P_DIE,
    P_LPN,
    P_NEXT,
    P_PAGE,
    P_PLANE,
    P_REQUEST,
    P_TARGET,
    PAGE,
    PAGE_BYTES,
    PAGES,
    PIECE,
    PLANES,
    Q_WRITE,
    REQUEST,
    THERE,
)  # fmt: skip
from opbyte.hw_models.memory.nand_kernel.queues import append, new_piece
from opbyte.hw_models.memory.nand_kernel.turns import schedule

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["L_BUFFERED", "entries_arrived", "translate"]


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


@part
def _place(m: Ints, piece: int) -> None:
    """Say where in its block the page of a piece is; a write takes the next page of its plane."""
    at = m[O_PIECES] + piece * PIECE
    lpn = m[at + P_LPN]
    page = m[O_PAGES] + lpn * PAGE
    writes = m[m[O_REQUESTS] + m[at + P_REQUEST] * REQUEST + Q_WRITE]
    if m[LRU] and not m[IDEAL]:
        _unlink(m, page)
        _newest(m, lpn)
    if writes or m[page + L_PAGE] < 0:
        plane = (m[at + P_TARGET] * m[DIES] + m[at + P_DIE]) * m[PLANES] + m[at + P_PLANE]
        m[page + L_PAGE] = m[m[O_WRITTEN] + plane] % m[PAGES]
        m[m[O_WRITTEN] + plane] += 1
    if writes:
        m[page + L_DIRTY] = m[m[O_MAPS] + m[page + L_MAP] * MAP + M_EPOCH]
    m[at + P_PAGE] = m[page + L_PAGE]


@apart
def _mapping_piece(m: Ints, mvpn: int, size: int, request: int) -> None:
    """Read or write a mapping page."""
    piece, place = new_piece(m), m[O_MAPS] + mvpn * MAP
    at = m[O_PIECES] + piece * PIECE
    for field in range(4):
        m[at + field] = m[place + field]
    m[at + P_BYTES], m[at + P_REQUEST], m[at + P_LPN], m[at + P_NEXT] = size, request, mvpn, -1
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
        _mapping_piece(m, mvpn, m[PAGE_BYTES], MAPPING_WRITE)


@apart
def _miss(m: Ints, piece: int) -> None:
    """Let a piece wait for its entry, which is read unless its mapping page is already."""
    m[N_MISSES] += 1
    at = m[O_PIECES] + piece * PIECE
    lpn = m[at + P_LPN]
    page = m[O_PAGES] + lpn * PAGE
    writes = m[m[O_REQUESTS] + m[at + P_REQUEST] * REQUEST + Q_WRITE]
    append(m, page + (L_WRITES if writes else L_READS), piece)
    if m[page + L_STATE] != ABSENT:
        return
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
        _mapping_piece(m, mvpn, m[MAPPING_BYTES], MAPPING_READ)


@apart
def translate(m: Ints, first: int) -> None:
    """Find the pages of a chain of pieces, and schedule those whose entries are there."""
    ready, last = -1, -1
    piece = first
    while piece >= 0:
        at = m[O_PIECES] + piece * PIECE
        after = m[at + P_NEXT]
        if m[IDEAL] or m[m[O_PAGES] + m[at + P_LPN] * PAGE + L_STATE] == THERE:
            if not m[IDEAL]:
                m[N_HITS] += 1
            _place(m, piece)
            m[at + P_NEXT] = -1
            if ready < 0:
                ready = piece
            else:
                m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
            last = piece
        else:
            _miss(m, piece)
        piece = after
    schedule(m, ready)


@apart
def entries_arrived(m: Ints, mvpn: int) -> None:
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
                _place(m, piece)
                m[at + P_NEXT] = -1
                if ready < 0:
                    ready = piece
                else:
                    m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
                last = piece
                piece = after
        lpn = m[page + L_NEXT]
    schedule(m, ready)
