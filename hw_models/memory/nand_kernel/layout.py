"""Where the compiled loop keeps what: one block of whole numbers, and fields of its records.

The block begins with the device's numbers and scalars, heads of rings and the times of the next
events, all at fixed places. Behind them come channels, targets, planes, pieces under way, logical
pages, mapping pages, requests and the entries of the rings.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.hw_models.memory.nand_kernel.setup import Job, Numbers

__all__ = ["block_of"]

Ints = npt.NDArray[np.int64]

#: Device: the fields of `Numbers`, in order.
(
    CHANNELS, WAYS, DIES, PLANES, PAGES, PAGE_BYTES, READ, PROGRAM, ERASE, CYCLE, CYCLE_BYTES,
    MOST_PLANES, CACHE_READ, COMMANDS_FIRST, IDEAL, ENTRIES, MAPPING_BYTES, BUFFER, ANSWERS,
    BUFFER_ROW,
    BUFFER_FIRST, BUFFER_PAIR, BUFFER_ROW_TIME, WHOLE_NS, MERGE, UNIT, COLLECTS, START, STALL,
    FLASH_FIRST, COPYBACK, SUSPEND_PROGRAM, SUSPEND_ERASE, RESUME, PAYLOAD, HEADER, LANES,
    LANE_BYTE, ASK, ENTRY, COMPLETION, DOORBELL, COMMAND, FIRMWARE, FETCH, DEPTH, STOP,
) = range(len(Numbers._fields))  # fmt: skip
#: Scalars, and where the parts of the block begin.
(
    NOW, SLOTS, SLOT_BITS, ENTERED, RUNG, FETCHED, INSIDE, CORE_FREE, UP_FREE, DOWN_FREE,
    BUFFER_FREE, DEPTH_NOW, HELD_ENTRIES, OLDEST, NEWEST, FREE, STALLED, STALLED_LAST, LRU,
    REQUESTS, MEMORY, FAULT, N_READS, N_PROGRAMS, N_COMMANDS, N_MULTIPLANE, N_HITS, N_MISSES,
    N_MAPPING_READS, N_MAPPING_WRITES, N_BUFFER_HITS, N_MERGES, N_MOVES, N_ERASES, N_SUSPENSIONS,
    N_BUS,
    O_CHANNELS, O_TARGETS, O_PLANES, O_PIECES, O_PAGES, O_MAPS, O_REQUESTS, O_COMMANDS, O_RINGS,
) = range(50, 95)  # fmt: skip
COUNTED = (
    N_READS, N_PROGRAMS, N_COMMANDS, N_MULTIPLANE, N_HITS, N_MISSES, N_MAPPING_READS,
    N_MAPPING_WRITES, N_BUFFER_HITS, N_MERGES, N_MOVES, N_ERASES, N_SUSPENSIONS, N_BUS,
)  # fmt: skip

#: Rings of events, in the order in which they happen at equal times; channels come behind them.
S_READ, S_PROGRAM, S_OTHER, S_UP, S_DOWN, S_BUFFER, S_CORE, S_FIRMWARE = range(8)
RINGS = 8
#: Ring: first entry, entries, size, and where its entries begin. Entry: time, kind, whom.
R_FIRST, R_COUNT, R_SIZE, R_AT = range(4)
HEADS = 96
#: Time of the next event of each ring and channel, times a power of two, plus its number.
TIMES = HEADS + 4 * RINGS
#: Channel.
(
    C_BUSY, C_TURN, C_KIND, C_WHO, C_READY, C_MAPPING, C_MAPPING_LAST, C_READS, C_READS_LAST,
    C_MOVES, C_MOVES_LAST,
) = range(11)  # fmt: skip
CHANNEL = 12
#: Queues of a target.
MAPPING_READS, READS, MOVE_READS, WRITES, MOVE_WRITES, ERASES = range(6)
#: Target: its command, what of it was suspended, its channel and bit there, and its queues.
(
    T_BUSY, T_FIRST, T_LAST, T_KIND, T_HELD, T_OUT, T_NUMBER, T_END, T_URGENT, T_LATE, T_OLD_FIRST,
    T_OLD_KIND, T_OLD_LEFT, T_C, T_BIT, T_QUEUES,
) = range(16)  # fmt: skip
TARGET = T_QUEUES + 12
#: Plane: target, first row of its die, number in the die, pages written; collection, and writes
#: that wait for its end.
G_TARGET, G_ROW, G_PLANE, G_WRITTEN, G_VICTIM, G_LEFT, G_WAIT, G_WAIT_LAST = range(8)
PLANE = 8
#: Piece. Row: the page within its block, and the die.
(
    P_TARGET, P_ROW, P_PLANE, P_BYTES, P_REQUEST, P_LPN, P_NEXT, P_QUEUE, P_MASK, P_MORE, P_OTHER,
) = range(11)  # fmt: skip
PIECE = 12
#: Who is served by a piece that belongs to no request.
MAPPING, MERGE_READ, MOVE, ERASURE = -1, -2, -3, -4
#: Logical page.
(
    L_PLANE, L_PAGE, L_MAP, L_STATE, L_OLDER, L_NEWER, L_READS, L_READS_LAST, L_WRITES,
    L_WRITES_LAST, L_NEXT, L_BUFFERED, L_DIRTY, L_LOCAL, L_MASK,
) = range(15)  # fmt: skip
PAGE = 16
ABSENT, COMING, THERE = range(3)
#: Mapping page: place, the logical pages that wait for it, and how often it was written back.
M_PLANE, M_PAGE, M_FIRST, M_LAST, M_EPOCH = range(5)
MAP = 8
#: Request.
Q_AT, Q_END, Q_LEFT, Q_BUFFER, Q_WRITE, Q_BYTES, Q_NEXT, Q_ENTERED, Q_DONE = range(9)
REQUEST = 10
FAR = 1 << 62


def block_of(job: Job) -> Ints:
    """Return the block of a job before its first event."""
    n = job.numbers
    targets, requests = n.channels * n.ways, job.requests
    planes = targets * n.dies * n.planes
    slots = -(-(n.channels + RINGS) // 8) * 8
    most = int(np.max(np.diff(job.request_at)))
    small = int(job.bytes.min())
    maps = len(job.mvpn_plane)
    forgets = n.entries < job.lpns
    pieces = len(job.lpn)
    under_way = min(pieces, min(n.depth, requests) * most + n.buffer // small + most + 1)
    under_way *= 2 if n.merge else 1
    under_way += maps + (pieces if forgets else 0) + 1 + n.collects * planes * n.pages
    # A request has a few messages on its way at once, and a transfer into the buffer per piece.
    messages = 8 * min(n.depth, requests) + 64
    transfers = min(pieces, min(n.depth, requests) * most) + min(n.depth, requests) + 1
    operations = 2 * targets + 1
    rings = [operations] * 2 + [4 * targets] + [messages] * 2 + [transfers] + [messages] * 2
    if n.suspend_program or n.suspend_erase:
        # What was suspended leaves an entry behind until its time.
        rings[:3] = [max(256, 64 * targets)] * 3
    sizes = {
        O_CHANNELS: n.channels * CHANNEL, O_TARGETS: targets * TARGET, O_PLANES: planes * PLANE,
        O_PIECES: under_way * PIECE, O_PAGES: job.lpns * PAGE, O_MAPS: maps * MAP,
        O_REQUESTS: requests * REQUEST, O_COMMANDS: 3 * (n.planes + 1),
    }  # fmt: skip
    begin = TIMES + slots
    ends = begin + np.concatenate([[0], np.cumsum(list(sizes.values()))])
    at = dict(zip((*sizes, O_RINGS), (int(x) for x in ends), strict=True))
    ring_at = at[O_RINGS] + 4 * np.concatenate([[0], np.cumsum(rings)])
    m: Ints = np.zeros(int(ring_at[-1]), np.int64)
    m[: len(n)] = n
    m[list(at)] = list(at.values())
    m[[SLOTS, SLOT_BITS, REQUESTS, LRU]] = slots, slots.bit_length(), requests, forgets
    m[MEMORY] = len(job.memory) // planes
    m[[OLDEST, NEWEST, STALLED, STALLED_LAST]] = -1
    m[TIMES : TIMES + slots] = FAR
    _part(m, at[O_CHANNELS], n.channels, CHANNEL)[:, C_MAPPING:] = -1
    of_targets = _part(m, at[O_TARGETS], targets, TARGET)
    of_targets[:, T_QUEUES:] = -1
    of_targets[:, T_OLD_FIRST] = -1
    of_targets[:, T_C] = np.arange(targets) // n.ways
    of_targets[:, T_BIT] = 1 << np.arange(targets) % n.ways
    of_planes = _part(m, at[O_PLANES], planes, PLANE)
    number = np.arange(planes)
    of_planes[:, G_TARGET] = number // (n.dies * n.planes)
    of_planes[:, G_ROW] = number // n.planes % n.dies * n.pages
    of_planes[:, G_PLANE] = number % n.planes
    of_planes[:, [G_VICTIM, G_WAIT, G_WAIT_LAST]] = -1
    free = _part(m, at[O_PIECES], under_way, PIECE)
    free[:, P_NEXT] = np.arange(1, under_way + 1)
    free[-1, P_NEXT] = -1
    _fill_pages(_part(m, at[O_PAGES], job.lpns, PAGE), job)
    places = _part(m, at[O_MAPS], maps, MAP)
    places[:, M_PLANE], places[:, M_PAGE] = job.mvpn_plane, job.mvpn_page
    places[:, M_FIRST] = places[:, M_LAST] = -1
    queue = _part(m, at[O_REQUESTS], requests, REQUEST)
    queue[:, Q_AT], queue[:, Q_END] = job.request_at[:-1], job.request_at[1:]
    queue[:, Q_WRITE], queue[:, Q_BYTES] = job.writes, job.request_bytes
    queue[:, Q_NEXT], queue[:, Q_DONE] = -1, -1
    for k in range(1, n.planes + 1):
        commands = n.read_command(k), n.program_command(k), n.erase_command(k)
        m[at[O_COMMANDS] + 3 * k : at[O_COMMANDS] + 3 * k + 3] = commands
    heads = _part(m, HEADS, RINGS, 4)
    heads[:, R_SIZE], heads[:, R_AT] = rings, ring_at[:-1]
    return m


def _part(m: Ints, at: int, count: int, size: int) -> Ints:
    return m[at : at + count * size].reshape(count, size)


def _fill_pages(pages: Ints, job: Job) -> None:
    pages[:, L_PLANE], pages[:, L_PAGE] = job.lpn_plane, job.lpn_page
    pages[:, L_MAP], pages[:, L_LOCAL] = job.lpn_mvpn, job.lpn_local
    pages[:, L_MASK] = job.lpn_mask
    for column in (L_OLDER, L_NEWER, L_READS, L_READS_LAST, L_WRITES, L_WRITES_LAST, L_NEXT):
        pages[:, column] = -1
    pages[:, L_DIRTY] = -1
