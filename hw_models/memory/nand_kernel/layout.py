"""Where the compiled loop keeps what: one block of whole numbers, and fields of its records.

The block begins with the device's numbers and places (`HEAD`), then come events, channels, targets,
pieces under way, logical pages, mapping pages, requests and rings.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.hw_models.memory.nand_kernel.setup import Job, Numbers

__all__ = ["block_of"]

Ints = npt.NDArray[np.int64]

#: Device: the fields of `Numbers`, in order.
(
    CHANNELS, WAYS, DIES, PLANES, PAGES, PAGE_BYTES, READ, PROGRAM, CYCLE, CYCLE_BYTES, MOST_PLANES,
    CACHE_READ, COMMANDS_FIRST, IDEAL, ENTRIES, MAPPING_BYTES, BUFFER, BUFFER_ROW, BUFFER_FIRST,
    BUFFER_PAIR, BUFFER_ROW_TIME, WHOLE_NS, PAYLOAD, HEADER, LANES, LANE_BYTE, ASK, ENTRY,
    COMPLETION, DOORBELL, COMMAND, FIRMWARE, FETCH, DEPTH, STOP,
) = range(len(Numbers._fields))  # fmt: skip
#: Scalars, and where the parts of the block begin.
(
    NOW, SEQ, SLOTS, ENTERED, RUNG, FETCHED, INSIDE, CORE_FREE, DEPTH_NOW, HELD_ENTRIES, OLDEST,
    NEWEST, FREE, STALLED, STALLED_LAST, LRU, REQUESTS, N_READS, N_PROGRAMS, N_COMMANDS,
    N_MULTIPLANE, N_HITS, N_MISSES, N_MAPPING_READS, N_MAPPING_WRITES, N_BUFFER_HITS, N_BUS,
    O_TIMES, O_CHANNELS, O_TARGETS, O_PIECES, O_PAGES, O_MAPS, O_REQUESTS, O_WRITTEN, O_COMMANDS,
    O_RINGS,
) = range(40, 77)  # fmt: skip
HEAD = 80
COUNTED = (
    N_READS, N_PROGRAMS, N_COMMANDS, N_MULTIPLANE, N_HITS, N_MISSES, N_MAPPING_READS,
    N_MAPPING_WRITES, N_BUFFER_HITS, N_BUS,
)  # fmt: skip

#: Slots of events behind those of the channels.
S_READ, S_PROGRAM, S_UP, S_DOWN, S_BUFFER, S_CORE, S_FIRMWARE = range(7)
RINGS = 7
#: Ring: first entry, entries, size, and where its entries begin. Entry: time, order, kind, whom.
R_FIRST, R_COUNT, R_SIZE, R_AT = range(4)
#: Channel.
C_BUSY, C_TURN, C_KIND, C_WHO, C_MAPPING, C_MAPPING_LAST, C_READS, C_READS_LAST = range(8)
CHANNEL = 8
#: Target: whether it has a command, its pieces; queues.
(
    T_BUSY, T_FIRST, T_WRITE, T_HELD, T_OUT, T_MAPPING, T_MAPPING_LAST, T_READS, T_READS_LAST,
    T_WRITES, T_WRITES_LAST,
) = range(11)  # fmt: skip
TARGET = 12
#: Piece.
P_TARGET, P_DIE, P_PLANE, P_PAGE, P_BYTES, P_REQUEST, P_LPN, P_NEXT = range(8)
PIECE = 8
#: Who is served by a piece that belongs to no request.
MAPPING_READ, MAPPING_WRITE = -1, -2
#: Logical page.
(
    L_TARGET, L_DIE, L_PLANE, L_PAGE, L_MAP, L_STATE, L_OLDER, L_NEWER, L_READS, L_READS_LAST,
    L_WRITES, L_WRITES_LAST, L_NEXT, L_BUFFERED, L_DIRTY,
) = range(15)  # fmt: skip
PAGE = 16
ABSENT, COMING, THERE = range(3)
#: Mapping page: place, the logical pages that wait for it, and how often it was written back.
M_TARGET, M_DIE, M_PLANE, M_PAGE, M_FIRST, M_LAST, M_EPOCH = range(7)
MAP = 8
#: Request.
Q_AT, Q_END, Q_LEFT, Q_BUFFER, Q_WRITE, Q_BYTES, Q_NEXT, Q_ENTERED, Q_DONE = range(9)
REQUEST = 10
FAR = 1 << 62


def block_of(job: Job) -> Ints:
    """Return the block of a job before its first event."""
    n = job.numbers
    targets, requests = n.channels * n.ways, job.requests
    slots = n.channels + RINGS
    most = int(np.max(np.diff(job.request_at)))
    small = int(job.bytes.min())
    maps = len(job.mvpn_target)
    forgets = n.entries < job.lpns
    pieces = len(job.lpn)
    under_way = min(pieces, min(n.depth, requests) * most + n.buffer // small + most + 1)
    under_way += maps + (pieces if forgets else 0) + 1
    # A request has a few messages on its way at once, and a transfer into the buffer per piece.
    messages = 8 * min(n.depth, requests) + 64
    transfers = min(pieces, min(n.depth, requests) * most) + min(n.depth, requests) + 1
    sizes = {
        O_TIMES: 2 * slots, O_CHANNELS: n.channels * CHANNEL, O_TARGETS: targets * TARGET,
        O_PIECES: under_way * PIECE, O_PAGES: job.lpns * PAGE, O_MAPS: maps * MAP,
        O_REQUESTS: requests * REQUEST, O_WRITTEN: targets * n.dies * n.planes,
        O_COMMANDS: 2 * (n.planes + 1),
    }  # fmt: skip
    rings = [targets + 1, targets + 1, messages, messages, transfers, messages, messages]
    ends = np.concatenate([[HEAD], HEAD + np.cumsum(list(sizes.values()))])
    at = dict(zip((*sizes, O_RINGS), (int(x) for x in ends), strict=True))
    ring_at = at[O_RINGS] + 4 * RINGS + 4 * np.concatenate([[0], np.cumsum(rings)])
    m: Ints = np.zeros(int(ring_at[-1]), np.int64)
    m[: len(n)] = n
    m[list(at)] = list(at.values())
    m[[SLOTS, REQUESTS, LRU]] = slots, requests, forgets
    m[[OLDEST, NEWEST, STALLED, STALLED_LAST]] = -1
    m[at[O_TIMES] : at[O_TIMES] + slots] = FAR
    _part(m, at[O_CHANNELS], n.channels, CHANNEL)[:, C_MAPPING:] = -1
    _part(m, at[O_TARGETS], targets, TARGET)[:, T_MAPPING:] = -1
    free = _part(m, at[O_PIECES], under_way, PIECE)
    free[:, P_NEXT] = np.arange(1, under_way + 1)
    free[-1, P_NEXT] = -1
    _fill_pages(_part(m, at[O_PAGES], job.lpns, PAGE), job)
    _fill_maps(_part(m, at[O_MAPS], maps, MAP), job)
    queue = _part(m, at[O_REQUESTS], requests, REQUEST)
    queue[:, Q_AT], queue[:, Q_END] = job.request_at[:-1], job.request_at[1:]
    queue[:, Q_WRITE], queue[:, Q_BYTES] = job.writes, job.request_bytes
    queue[:, Q_NEXT], queue[:, Q_DONE] = -1, -1
    for k in range(1, n.planes + 1):
        m[at[O_COMMANDS] + 2 * k] = n.read_command(k)
        m[at[O_COMMANDS] + 2 * k + 1] = n.program_command(k)
    heads = _part(m, at[O_RINGS], RINGS, 4)
    heads[:, R_SIZE], heads[:, R_AT] = rings, ring_at[:-1]
    return m


def _part(m: Ints, at: int, count: int, size: int) -> Ints:
    return m[at : at + count * size].reshape(count, size)


def _fill_pages(pages: Ints, job: Job) -> None:
    given = (job.lpn_target, job.lpn_die, job.lpn_plane, job.lpn_page, job.lpn_mvpn)
    for column, values in enumerate(given):
        pages[:, column] = values
    for column in (L_OLDER, L_NEWER, L_READS, L_READS_LAST, L_WRITES, L_WRITES_LAST, L_NEXT):
        pages[:, column] = -1
    pages[:, L_DIRTY] = -1


def _fill_maps(maps: Ints, job: Job) -> None:
    given = (job.mvpn_target, job.mvpn_die, job.mvpn_plane, job.mvpn_page)
    for column, values in enumerate(given):
        maps[:, column] = values
    maps[:, M_FIRST] = maps[:, M_LAST] = -1
