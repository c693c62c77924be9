"""Between host and pages: NVMe queues over PCIe, and the buffer that writes pass.

A message passes a direction of the link when those before it have. So its arrival is known when it
is sent, and what it leads to at the host is done at once, at that time to come: messages to the
device are only sent by those to the host, in their order. With a cost per command they are also
sent by the host's core, and a message to the host is an event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.layout import (
    ANSWERS,
    ASK,
    BUFFER,
    BUFFER_FIRST,
    BUFFER_FREE,
    BUFFER_PAIR,
    BUFFER_ROW,
    BUFFER_ROW_TIME,
    COMMAND,
    COMPLETION,
    CORE_FREE,
    DEPTH_NOW,
    DOORBELL,
    DOWN_FREE,
    ENTERED,
    ENTRY,
    FETCH,
    FETCHED,
    FIRMWARE,
    HEADER,
    INSIDE,
    L_BUFFERED,
    L_PLANE,
    LANE_BYTE,
    LANES,
    MERGE,
    N_BUFFER_HITS,
    NOW,
    O_PAGES,
    O_PIECES,
    O_REQUESTS,
    P_BYTES,
    P_LPN,
    P_MASK,
    P_MORE,
    P_NEXT,
    P_OTHER,
    P_QUEUE,
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
    READS,
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
    UP_FREE,
    WHOLE_NS,
    WRITES,
)
from opbyte.hw_models.memory.nand_kernel.pages import translate
from opbyte.hw_models.memory.nand_kernel.queues import new_piece
from opbyte.hw_models.memory.nand_kernel.rings import push
from opbyte.hw_models.memory.nand_kernel.setup import NS

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.blocks import Memory
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = [
    "arrived", "buffer_passed", "delivered_up", "down", "enter", "finished", "flushed", "rung",
    "write",
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
def down(m: Ints, time: int, ps: int, kind: int, r: int) -> None:
    """Send a message to the device."""
    at = max(m[DOWN_FREE], time) + ps
    m[DOWN_FREE] = at
    if kind == TAKE and m[FIRMWARE]:
        push(m, S_FIRMWARE, at + m[FIRMWARE], 0, r)
    elif kind != SEEN:
        push(m, S_DOWN, at, kind, r)


@apart
def enter(m: Ints, time: int) -> None:
    """Let the host send its next request, if it has one."""
    if m[ENTERED] == m[REQUESTS] or time > m[STOP]:
        return
    r = m[ENTERED]
    m[ENTERED] += 1
    m[m[O_REQUESTS] + r * REQUEST + Q_ENTERED] = time
    if m[COMMAND]:
        m[CORE_FREE] = max(m[CORE_FREE], time) + m[COMMAND]
        push(m, S_CORE, m[CORE_FREE], 0, r)
    else:
        down(m, time, m[DOORBELL], RING, r)


@part
def delivered_up(m: Ints, time: int, kind: int, r: int) -> None:
    """Handle a message at the host."""
    if kind == ASK_ENTRY:
        down(m, time, m[ENTRY], TAKE, r)
    elif kind == ASK_DATA:
        down(m, time, _link_ps(m, m[m[O_REQUESTS] + r * REQUEST + Q_BYTES]), WRITTEN, r)
    else:
        m[m[O_REQUESTS] + r * REQUEST + Q_DONE] = time
        down(m, time, m[DOORBELL], SEEN, r)
        enter(m, time)


@part
def _up(m: Ints, ps: int, kind: int, r: int) -> None:
    """Send a message to the host."""
    at = max(m[UP_FREE], m[NOW]) + ps
    m[UP_FREE] = at
    if m[COMMAND]:
        push(m, S_UP, at, kind, r)
    else:
        delivered_up(m, at, kind, r)


@part
def _fetch(m: Ints) -> None:
    r = m[FETCHED]
    m[FETCHED] += 1
    m[INSIDE] += 1
    _up(m, m[ASK], ASK_ENTRY, r)


@part
def rung(m: Ints) -> None:
    """Take up a doorbell."""
    m[RUNG] += 1
    if m[INSIDE] < m[FETCH]:
        _fetch(m)


@apart
def arrived(m: Ints, r: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
    """Take a request up: read its pages, or ask for its data."""
    if m[m[O_REQUESTS] + r * REQUEST + Q_WRITE]:
        _up(m, m[ASK], ASK_DATA, r)
    else:
        _pages(m, r, READS, sizes, lpns, masks, f)


@part
def _piece(m: Ints, r: int, i: int, queue: int, sizes: Ints, lpns: Ints, masks: Ints) -> int:
    lpn = lpns[i]
    piece = new_piece(m, m[m[O_PAGES] + lpn * PAGE + L_PLANE])
    at = m[O_PIECES] + piece * PIECE
    m[at + P_BYTES], m[at + P_REQUEST], m[at + P_LPN] = sizes[i], r, lpn
    m[at + P_QUEUE], m[at + P_MORE], m[at + P_OTHER] = queue, 0, -1
    if m[MERGE]:
        m[at + P_MASK] = masks[i]
    return int(piece)


@part
def _pages(m: Ints, r: int, queue: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
    """Send all pages of a request to flash, but those that are in the buffer."""
    at = m[O_REQUESTS] + r * REQUEST
    first, last, held, left = -1, -1, 0, 0
    for i in range(m[at + Q_AT], m[at + Q_END]):
        if m[m[O_PAGES] + lpns[i] * PAGE + L_BUFFERED]:
            held += sizes[i]
            continue
        piece = _piece(m, r, i, queue, sizes, lpns, masks)
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
    if first >= 0:
        translate(m, first, f)


@apart
def write(m: Ints, r: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
    """Take the data of a write."""
    if not m[ANSWERS]:
        _pages(m, r, WRITES, sizes, lpns, masks, f)
        return
    at = m[O_REQUESTS] + r * REQUEST
    m[at + Q_LEFT] = m[at + Q_END] - m[at + Q_AT]
    _take(m, r, sizes, lpns, masks, f)
    if m[at + Q_LEFT]:
        if m[STALLED] < 0:
            m[STALLED] = r
        else:
            m[m[O_REQUESTS] + m[STALLED_LAST] * REQUEST + Q_NEXT] = r
        m[STALLED_LAST] = r


@apart
def _take(m: Ints, r: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
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
        piece = _piece(m, r, i, WRITES, sizes, lpns, masks)
        if first < 0:
            first = piece
        else:
            m[m[O_PIECES] + last * PIECE + P_NEXT] = piece
        last = piece
    if total:
        _through_buffer(m, total, r)
        translate(m, first, f)


@part
def _through_buffer(m: Ints, size: int, r: int) -> None:
    m[m[O_REQUESTS] + r * REQUEST + Q_BUFFER] += 1
    m[BUFFER_FREE] = max(m[BUFFER_FREE], m[NOW]) + _buffer_ps(m, size)
    push(m, S_BUFFER, m[BUFFER_FREE], 0, r)


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
        m[UP_FREE] = max(m[UP_FREE], m[NOW]) + _link_ps(m, m[at + Q_BYTES])
    if m[FETCHED] < m[RUNG]:
        _fetch(m)
    _up(m, m[COMPLETION], DONE, r)


@apart
def flushed(m: Ints, size: int, lpn: int, sizes: Ints, lpns: Ints, masks: Ints, f: Memory) -> None:
    """Free the buffer of a page that is on flash, and let writes in that wait for room."""
    m[DEPTH_NOW] -= size
    m[m[O_PAGES] + lpn * PAGE + L_BUFFERED] -= 1
    while m[STALLED] >= 0:
        r = m[STALLED]
        _take(m, r, sizes, lpns, masks, f)
        at = m[O_REQUESTS] + r * REQUEST
        if m[at + Q_LEFT]:
            break
        m[STALLED] = m[at + Q_NEXT]
        if m[DEPTH_NOW] > m[BUFFER]:
            break
