"""Between host and pages: NVMe queues over PCIe, and the buffer that writes pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.layout import (
    ASK,
    BUFFER,
    BUFFER_FIRST,
    BUFFER_PAIR,
    BUFFER_ROW,
    BUFFER_ROW_TIME,
    COMMAND,
    COMPLETION,
    CORE_FREE,
    DEPTH_NOW,
    DOORBELL,
    ENTERED,
    ENTRY,
    FETCH,
    FETCHED,
    FIRMWARE,
    HEADER,
    INSIDE,
    L_BUFFERED,
    LANE_BYTE,
    LANES,
    N_BUFFER_HITS,
    NOW,
    O_PAGES,
    O_PIECES,
    O_REQUESTS,
    P_BYTES,
    P_LPN,
    P_NEXT,
    P_PAGE,
    P_REQUEST,
    PAGE,
    PAYLOAD,
    PIECE,
    Q_AT,
    Q_BUFFER,
    Q_BYTES,
    Q_DONE,
    Q_END,
    Q_ENTERED,
    Q_LEFT,
    Q_NEXT,
    Q_WRITE,
    REQUEST,
    REQUESTS,
    RUNG,
    S_BUFFER,
    S_CORE,
    S_DOWN,
    S_FIRMWARE,
    S_UP,
    STALLED,
    STALLED_LAST,
    STOP,
    WHOLE_NS,
)  # fmt: skip
from opbyte.hw_models.memory.nand_kernel.pages import translate
from opbyte.hw_models.memory.nand_kernel.queues import new_piece
from opbyte.hw_models.memory.nand_kernel.rings import push, send
from opbyte.hw_models.memory.nand_kernel.setup import NS

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = [
    "arrived", "buffer_passed", "delivered_down", "delivered_up", "enter", "finished", "flushed",
    "ring_in",
]  # fmt: skip

#: Messages to the host: asking for an entry or for data, data, a completion.
ASK_ENTRY, ASK_DATA, DATA, DONE = range(4)
#: Messages to the device: a doorbell, one of completions, an entry, data.
RING, SEEN, TAKE, WRITTEN = range(4)


@part
def _link_ps(m: Ints, size: int) -> int:
    packets = -(-size // m[PAYLOAD])
    return int(-(-(size + packets * m[HEADER]) // m[LANES]) * m[LANE_BYTE])


@part
def _buffer_ps(m: Ints, size: int) -> int:
    """Return the time in the write buffer: `setup.buffer_time`."""
    if not m[WHOLE_NS]:
        return int(m[BUFFER_FIRST] + size * m[BUFFER_PAIR] // 2)
    if size <= m[BUFFER_ROW]:
        return int(m[BUFFER_FIRST] + size // 2 * m[BUFFER_PAIR])
    rest = size % m[BUFFER_ROW] * NS // m[BUFFER_PAIR] * NS
    rows = (m[BUFFER_FIRST] + m[BUFFER_ROW_TIME]) * (size // m[BUFFER_ROW] // 2)
    return int(rows + m[BUFFER_FIRST] + rest // NS * NS)


@part
def ring_in(m: Ints, r: int) -> None:
    """Ring the doorbell for a request."""
    send(m, S_DOWN, m[DOORBELL], RING, r)


@apart
def enter(m: Ints) -> None:
    """Let the host send its next request, if it has one."""
    if m[ENTERED] == m[REQUESTS] or m[NOW] > m[STOP]:
        return
    r = m[ENTERED]
    m[ENTERED] += 1
    m[m[O_REQUESTS] + r * REQUEST + Q_ENTERED] = m[NOW]
    m[CORE_FREE] = max(m[CORE_FREE], m[NOW]) + m[COMMAND]
    if m[COMMAND]:
        push(m, S_CORE, m[CORE_FREE], 0, r)
    else:
        ring_in(m, r)


@part
def _fetch(m: Ints) -> None:
    r = m[FETCHED]
    m[FETCHED] += 1
    m[INSIDE] += 1
    send(m, S_UP, m[ASK], ASK_ENTRY, r)


@part
def delivered_up(m: Ints, kind: int, r: int) -> None:
    """Handle a message at the host."""
    if kind == ASK_ENTRY:
        send(m, S_DOWN, m[ENTRY], TAKE, r)
    elif kind == ASK_DATA:
        send(m, S_DOWN, _link_ps(m, m[m[O_REQUESTS] + r * REQUEST + Q_BYTES]), WRITTEN, r)
    elif kind == DONE:
        m[m[O_REQUESTS] + r * REQUEST + Q_DONE] = m[NOW]
        send(m, S_DOWN, m[DOORBELL], SEEN, r)
        enter(m)


@part
def delivered_down(m: Ints, kind: int, r: int, sizes: Ints, lpns: Ints) -> None:
    """Handle a message at the device."""
    if kind == RING:
        m[RUNG] += 1
        if m[INSIDE] < m[FETCH]:
            _fetch(m)
    elif kind == TAKE:
        if m[FIRMWARE]:
            push(m, S_FIRMWARE, m[NOW] + m[FIRMWARE], 0, r)
        else:
            arrived(m, r, sizes, lpns)
    elif kind == WRITTEN:
        _write(m, r, sizes, lpns)


@apart
def arrived(m: Ints, r: int, sizes: Ints, lpns: Ints) -> None:
    """Take a request up: read its pages, or ask for its data."""
    if m[m[O_REQUESTS] + r * REQUEST + Q_WRITE]:
        send(m, S_UP, m[ASK], ASK_DATA, r)
    else:
        _read(m, r, sizes, lpns)


@part
def _piece(m: Ints, r: int, size: int, lpn: int) -> int:
    piece, page = new_piece(m), m[O_PAGES] + lpn * PAGE
    at = m[O_PIECES] + piece * PIECE
    for field in range(P_PAGE):
        m[at + field] = m[page + field]
    m[at + P_BYTES], m[at + P_REQUEST], m[at + P_LPN], m[at + P_NEXT] = size, r, lpn, -1
    return int(piece)


@part
def _read(m: Ints, r: int, sizes: Ints, lpns: Ints) -> None:
    at = m[O_REQUESTS] + r * REQUEST
    first, last, held, left = -1, -1, 0, 0
    for i in range(m[at + Q_AT], m[at + Q_END]):
        if m[m[O_PAGES] + lpns[i] * PAGE + L_BUFFERED]:
            held += sizes[i]
            continue
        piece = _piece(m, r, sizes[i], lpns[i])
        if first < 0:
            first = piece
        else:
            m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
        last = piece
        left += 1
    m[at + Q_LEFT] = left
    if held:
        m[N_BUFFER_HITS] += 1
        _through_buffer(m, held, r)
    translate(m, first)


@part
def _write(m: Ints, r: int, sizes: Ints, lpns: Ints) -> None:
    at = m[O_REQUESTS] + r * REQUEST
    m[at + Q_LEFT] = m[at + Q_END] - m[at + Q_AT]
    _take(m, r, sizes, lpns)
    if m[at + Q_LEFT]:
        if m[STALLED] < 0:
            m[STALLED] = r
        else:
            m[m[O_REQUESTS] + m[STALLED_LAST] * REQUEST + Q_NEXT] = r
        m[STALLED_LAST] = r


@apart
def _take(m: Ints, r: int, sizes: Ints, lpns: Ints) -> None:
    """Take pages of a write into the buffer while there is room, and send them to flash."""
    at = m[O_REQUESTS] + r * REQUEST
    first, last, total = -1, -1, 0
    while m[at + Q_LEFT] and m[DEPTH_NOW] < m[BUFFER]:
        i = m[at + Q_AT]
        m[at + Q_AT] += 1
        m[at + Q_LEFT] -= 1
        m[m[O_PAGES] + lpns[i] * PAGE + L_BUFFERED] += 1
        m[DEPTH_NOW] += sizes[i]
        total += sizes[i]
        piece = _piece(m, r, sizes[i], lpns[i])
        if first < 0:
            first = piece
        else:
            m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
        last = piece
    if total:
        _through_buffer(m, total, r)
        translate(m, first)


@part
def _through_buffer(m: Ints, size: int, r: int) -> None:
    m[m[O_REQUESTS] + r * REQUEST + Q_BUFFER] += 1
    send(m, S_BUFFER, _buffer_ps(m, size), 0, r)


@part
def buffer_passed(m: Ints, r: int) -> None:
    """Count what of a request has passed the buffer."""
    m[m[O_REQUESTS] + r * REQUEST + Q_BUFFER] -= 1
    finished(m, r)


@apart
def finished(m: Ints, r: int) -> None:
    """Answer a request of which nothing is left."""
    at = m[O_REQUESTS] + r * REQUEST
    if m[at + Q_LEFT] or m[at + Q_BUFFER]:
        return
    m[INSIDE] -= 1
    if not m[at + Q_WRITE]:
        send(m, S_UP, _link_ps(m, m[at + Q_BYTES]), DATA, r)
    if m[FETCHED] < m[RUNG]:
        _fetch(m)
    send(m, S_UP, m[COMPLETION], DONE, r)


@apart
def flushed(m: Ints, size: int, lpn: int, sizes: Ints, lpns: Ints) -> None:
    """Free the buffer of a page that is on flash, and let writes in that wait for room."""
    m[DEPTH_NOW] -= size
    m[m[O_PAGES] + lpn * PAGE + L_BUFFERED] -= 1
    while m[STALLED] >= 0:
        r = m[STALLED]
        _take(m, r, sizes, lpns)
        at = m[O_REQUESTS] + r * REQUEST
        if m[at + Q_LEFT]:
            break
        m[STALLED] = m[at + Q_NEXT]
        if m[DEPTH_NOW] > m[BUFFER]:
            break
