"""Seconds of an attention call on a GPU: FlashAttention over a paged KV cache, by its mechanisms.

A thread block (CTA) takes a tile of query rows of one head and walks over the keys in blocks. A row
of sizes is equal sequences of one call; the rows of a call share one kernel.

    block  = products, on the matrix units or behind their operands from shared memory, and softmax
             on vector lanes and exponent units: one after the other where a CTA has the SM alone,
             (a^p + b^p)^(1/p) where CTAs share it or the kernel interleaves them
    sm     = rounds of equal CTAs; where tiles differ (causal) all work over the SMs, then the tail
             of the longest; CTAs without query rows still start
    memory = KV once, or once per head of a group if too few of them run together, queries, results
    kernel = (sm^q + memory^q)^(1/q)
    call   = kernel + combining of a split KV + permuting copies

The launch of the call's first kernel is not part of it. Nothing gets slower when a rate rises or a
latency falls (law 4). The number of SMs is another matter: libraries cut KV by a rule over it.

The functions are plain Python (the twin that tests run) and compiled as they are: see `compiled`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable

from opbyte.core.loops import LOOP
from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu.kv_parts import searched_parts, shared_parts
from opbyte.hw_models.compute.gpu.norms import joined

# Columns of a row, see `fill_seconds`.
SEQUENCES, KV_HEADS, GROUP, NEW, READS, PAIRS, DIM, VALUE_DIM, B_QUERY, B_KV = range(10)
WINDOWED = 10
COLUMNS = 11
# Columns of the facts of a design point: the machine's, ...
SMS, PEAK, LANES, CLOCK, PORT, SHARED, SHARED_BYTES, THREADS = range(8)
L2_RATE, L2_BYTES, PIN_RATE, STREAM, LAUNCH = range(8, 13)
# ... its parameters of dense products, and those of attention.
MATRIX, LATENCY, L2_SHARE, OVERLAP = range(13, 17)
SOFTMAX, PAIRING, START, TURN, EMPTY, TAIL, SMALL, COPY, COMBINE, WRITE = range(17, 27)
FACTS = 27
# Columns of a tile: the most of head_dim and of query rows and the least bytes of a key's element
# that it serves, its rows and keys, rows of one warp (group), stages, most CTAs on an SM.
T_DIM, T_SERVES, T_BYTES, T_ROWS, T_KEYS, T_WARP, T_STAGES, T_CTAS = range(8)
# Rules of a library, see `attention_libraries.AttentionLibrary`.
PACKS, SPLITS, INTERLEAVES, PERSISTENT, LONGEST_FIRST, COPIES, COMBINES, PADS_VALUE = range(8)
RULES = 8
_SEARCH, _SHARES = 1.0, 2.0
#: Exponents that an SM's special-function units make in a clock.
_EXPONENTS = 16.0
_PART_BYTES = 4.0
#: Shared memory that the driver keeps of each CTA's.
_RESERVED = 1024.0
#: Query rows by which CTAs of a head are counted where heads are not packed.
_QUERIES = 64.0


class Call(NamedTuple):
    """What the rows of a call share: most new tokens and keys, sequences, keys, CTAs of a head."""

    longest: float
    reads: float
    sequences: float
    keys: float
    ctas: float
    bytes: float
    mixed: bool


class Grid(NamedTuple):
    """Equal sequences cut into CTAs: blocks of the shortest and longest, seconds of a block."""

    tiles: float
    heads: float
    ctas: float
    parts: float
    resident: float
    first: float
    last: float
    alone: float
    shared: float
    loads: float
    rows: float
    packed: bool


class Share(NamedTuple):
    """What rows add to their call: CTAs, and seconds.

    `busy` and `alone` are the CTAs' over the SMs, sharing them and not.
    """

    ctas: float
    busy: float
    alone: float
    idle: float
    memory: float
    wires: float
    beside: float


@register_jitable
def _tile_of(dim: float, rows: float, b_key: float, tiles: Array) -> int:
    for j in range(tiles.shape[0]):
        if tiles[j, T_DIM] >= dim and tiles[j, T_SERVES] >= rows and tiles[j, T_BYTES] <= b_key:
            return j
    # Whoever asks has refused what no tile serves.
    return -1


@register_jitable
def _blocks(x: Array, count: float, wide: float) -> tuple[float, float]:
    """Return the blocks of keys that the shortest and the longest tile of a sequence span."""
    new = x[NEW]
    # A causal triangle lacks (new - 1) / 2 of what is read on average, a window new - 1, and a full
    # rectangle none; several tiles differ by what lacks.
    lacking = max(0.0, x[READS] - x[PAIRS] / new)
    several = max(0.0, new - new / count) / max(1.0, new - 1.0)
    mean = x[READS] - lacking * several
    spread = min(lacking, max(0.0, new - 1.0 - lacking)) * several
    first = max(1.0, np.ceil((mean - spread) / wide - 1e-6))
    return first, max(first, np.ceil((mean + spread) / wide - 1e-6))


@register_jitable
def _step(x: Array, tile: Array, facts: Array, rules: Array) -> tuple[float, float, float, float]:
    """Return the seconds of a block: alone on the SM, shared; CTAs on an SM; bytes loaded."""
    dim, value_dim = np.ceil(x[DIM] / 32.0) * 32.0, np.ceil(x[VALUE_DIM] / 32.0) * 32.0
    if rules[PADS_VALUE] > 0.0:
        value_dim = max(value_dim, dim)
    high, wide = tile[T_ROWS], tile[T_KEYS]
    loads = wide * (dim + value_dim) * x[B_KV]
    stored = high * dim * x[B_QUERY] + tile[T_STAGES] * loads
    fit = np.floor(facts[SHARED_BYTES] / (stored + _RESERVED))
    resident = max(1.0, min(tile[T_CTAS], fit))
    products = 2.0 * high * wide * (dim + value_dim) / (facts[PEAK] / facts[SMS] * facts[MATRIX])
    # Keys and values are written once and read by each warp (group); queries are read each time.
    through = loads * (1.0 + high / tile[T_WARP]) + high * dim * x[B_QUERY]
    products = max(products, through / facts[SHARED])
    lanes = 2.0 * facts[SOFTMAX] / (facts[LANES] / facts[SMS])
    softmax = high * wide * (lanes + 1.0 / (_EXPONENTS * facts[CLOCK]))
    together = joined(products, softmax, facts[PAIRING])
    arrival = loads / facts[PORT]
    serial = together if rules[INTERLEAVES] > 0.0 else products + softmax
    # Keys load while values are used and the other way round: two trips a block, over the stages.
    alone = max(serial, arrival, 2.0 * facts[LATENCY] / tile[T_STAGES])
    return alone, max(together, arrival) if resident > 1.0 else alone, resident, loads


@register_jitable
def _parts(memo: Array, ctas: float, slots: float, blocks: float) -> float:
    """Return the parts of keys that a search finds, by the memo's last row if it was the last."""
    if memo[-1, 0] != ctas or memo[-1, 1] != blocks:
        memo[-1, 0], memo[-1, 1] = ctas, blocks
        memo[-1, 2] = searched_parts(ctas, slots, blocks)
    return float(memo[-1, 2])


@register_jitable
def _grid(x: Array, c: Call, facts: Array, rules: Array, tiles: Array, memo: Array) -> Grid:
    plain = not c.mixed and x[WINDOWED] == 0.0
    packed = x[GROUP] > 1.0 and (rules[PACKS] > 1.0 or (rules[PACKS] > 0.0 and plain))
    per_token = x[GROUP] if packed else 1.0
    heads = x[KV_HEADS] * x[GROUP] / per_token
    width = max(x[DIM], x[VALUE_DIM]) if rules[PADS_VALUE] > 0.0 else x[DIM]
    at = _tile_of(width, c.longest * per_token, x[B_KV], tiles)
    high, wide = tiles[at, T_ROWS], tiles[at, T_KEYS]
    count = np.ceil(x[NEW] * per_token / high)
    first, last = _blocks(x, count, wide)
    most = heads * np.ceil(c.longest * per_token / high)
    parts = 1.0
    if rules[SPLITS] == _SEARCH and packed:
        # Two CTAs of 128 threads on an SM, whatever fits.
        parts = _parts(memo, c.sequences * most, 2.0 * facts[SMS], np.ceil(c.reads / wide))
    elif rules[SPLITS] == _SHARES:
        mean = np.ceil(c.keys / c.sequences / wide)
        parts = shared_parts(most, c.sequences, last, mean, facts[SMS])
    if parts > 1.0:
        first, last = np.ceil(first / parts), np.ceil(last / parts)
    if memo[at, 0] == 0.0:
        memo[at, 0], memo[at, 1], memo[at, 2], memo[at, 3] = _step(x, tiles[at], facts, rules)
    alone, shared, resident, loads = memo[at, 0], memo[at, 1], memo[at, 2], memo[at, 3]
    ctas = x[SEQUENCES] * heads * count * parts
    return Grid(
        count, heads, ctas, parts, resident, first, last, alone, shared, loads, high, packed
    )


@register_jitable
def _work(
    h: Share,
    resident: float,
    shortest: float,
    longest: float,
    even: float,
    facts: Array,
    rules: Array,
) -> float:
    """Return the seconds until the last SM is done.

    Args:
        h: Of the call.
        resident: CTAs that an SM holds.
        shortest, longest: Seconds of the call's shortest and longest CTA, alone on its SM.
        even: Blocks of the shortest, as a share of the longest's.
    """
    if h.ctas <= facts[SMS]:
        return longest
    # CTAs that differ run wherever there is room.
    tail = shortest if rules[LONGEST_FIRST] > 0.0 else longest
    listed = max(longest, h.busy + facts[TAIL] * tail)
    # Equal ones run in whole rounds.
    shared, alone = h.busy * facts[SMS] / h.ctas, h.alone * facts[SMS] / h.ctas
    mine = np.ceil(h.ctas / facts[SMS])
    full = np.floor(mine / resident) * resident
    rounds = full * shared
    if mine > full:
        rounds += max((mine - full) * shared, alone)
    return float(listed + even * (rounds - listed))


@register_jitable
def _again(x: Array, g: Grid, c: Call, facts: Array) -> float:
    """Return how often KV comes from HBM: CTAs run by tile, then sequence, then head."""
    reuse, slots = facts[L2_BYTES] * facts[L2_SHARE], facts[SMS] * g.resident
    again = 1.0
    if not g.packed:
        # Heads of a group that run together read once; for the next, L2 keeps what fits.
        missed = 1.0 if c.bytes >= 2.0 * reuse else max(0.0, c.bytes / reuse - 1.0)
        again += missed * (max(1.0, x[GROUP] / max(1.0, slots / c.ctas)) - 1.0)
    if x[READS] * (x[DIM] + x[VALUE_DIM]) * x[B_KV] > reuse:
        again *= max(1.0, g.tiles / slots)
    return float(again)


@register_jitable
def _rate(moved: float, facts: Array) -> float:
    """Return the rate at which a small kernel reads and writes what the one before it wrote."""
    if moved < facts[L2_BYTES] * facts[L2_SHARE]:
        return float(max(facts[L2_RATE], facts[STREAM]))
    return float(facts[STREAM])


@register_jitable
def _beside(x: Array, g: Grid, facts: Array, rules: Array) -> float:
    """Return the seconds of the small kernels around the call's own."""
    heads = x[SEQUENCES] * x[KV_HEADS] * x[GROUP] * x[NEW]
    kernel = facts[LAUNCH] + facts[SMALL]
    seconds = 0.0
    if g.packed and rules[COPIES] > 0.0:
        moved = 2.0 * heads * x[VALUE_DIM] * x[B_QUERY]
        rate = _rate(moved, facts)
        if x[KV_HEADS] == 1.0 or x[SEQUENCES] == 1.0:
            # The packed order is the plain one: results are copied, nothing is permuted.
            seconds += facts[COPY] + moved / rate
        else:
            seconds += 2.0 * (kernel + moved / rate)
    if g.parts > 1.0:
        sums = 2.0 * heads * x[VALUE_DIM] * _PART_BYTES * g.parts
        seconds += g.parts * facts[COMBINE] + sums / _rate(sums, facts)
        if rules[COMBINES] > 0.0:
            seconds += kernel
    return float(seconds)


@register_jitable
def _bytes(x: Array) -> tuple[float, float]:
    """Return the bytes of keys and values that are read, and of queries and results."""
    width = x[SEQUENCES] * x[KV_HEADS] * (x[DIM] + x[VALUE_DIM])
    return float(width * x[READS] * x[B_KV]), float(width * x[GROUP] * x[NEW] * x[B_QUERY])


@register_jitable
def bound_seconds(x: Array, facts: Array) -> float:
    """Return the seconds of the useful operations at the peak, or of all bytes at the pins."""
    read, others = _bytes(x)
    heads = x[SEQUENCES] * x[KV_HEADS] * x[GROUP]
    operations = 2.0 * x[PAIRS] * heads * (x[DIM] + x[VALUE_DIM])
    return float(max(operations / facts[PEAK], (read + others) / facts[PIN_RATE]))


@register_jitable
def _share(x: Array, g: Grid, c: Call, turn: float, facts: Array, rules: Array) -> Share:
    blocks = 0.5 * (g.first + g.last)
    each = g.ctas / facts[SMS]
    # The grid is as high as the call's longest sequence: the CTAs beyond a shorter one's end leave.
    # A persistent kernel's list of tiles has none.
    idle = 0.0
    if rules[PERSISTENT] == 0.0 and c.longest > x[NEW]:
        empty = x[SEQUENCES] * g.heads * (np.ceil(c.longest / g.rows) - g.tiles)
        idle = max(0.0, empty) / facts[SMS] * facts[EMPTY]
    read, others = _bytes(x)
    memory = (read * _again(x, g, c, facts) + others) / facts[STREAM]
    wires = g.ctas * blocks * g.loads / facts[L2_RATE]
    return Share(
        g.ctas,
        each * (blocks * g.shared + turn),
        each * (blocks * g.alone + turn),
        idle,
        memory,
        wires,
        _beside(x, g, facts, rules),
    )


@register_jitable
def _works(x: Array) -> bool:
    return bool(min(x[SEQUENCES], x[KV_HEADS], x[GROUP], x[NEW], x[READS], x[PAIRS]) > 0.0)


@register_jitable
def _call(rows: Array) -> Call:
    longest = reads = sequences = keys = ctas = size = 0.0
    for i in range(rows.shape[0]):
        x = rows[i]
        if _works(x):
            longest, reads = max(longest, x[NEW]), max(reads, x[READS])
            sequences += x[SEQUENCES]
            keys += x[SEQUENCES] * x[READS]
            ctas += x[SEQUENCES] * np.ceil(x[NEW] / _QUERIES)
            size += x[SEQUENCES] * x[READS] * (x[DIM] + x[VALUE_DIM]) * x[B_KV]
    return Call(longest, reads, sequences, keys, ctas, size, longest > 1.0)


@register_jitable
def call_seconds(
    seconds: Array, rows: Array, facts: Array, rules: Array, tiles: Array, memo: Array
) -> None:
    """Set the seconds of each row of one call; they add up to the call's.

    Args:
        seconds: Result, (rows,).
        rows: (rows, COLUMNS).
        facts, rules, tiles: As in `fill_seconds`, of one point.
        memo: As `new_memo` made it, or an earlier call of the same widths, bytes and facts left it.
    """
    c = _call(rows)
    turn = 0.0 if rules[PERSISTENT] > 0.0 else facts[TURN]
    few = shortest = np.inf
    most = longest = 0.0
    resident = 1.0
    ctas = busy = alone = idle = memory = wires = beside = bound = weights = 0.0
    for i in range(rows.shape[0]):
        x = rows[i]
        seconds[i] = 0.0
        if not _works(x):
            continue
        g = _grid(x, c, facts, rules, tiles, memo)
        h = _share(x, g, c, turn, facts, rules)
        resident = g.resident
        few, most = min(few, g.first), max(most, g.last)
        shortest = min(shortest, g.first * g.alone + turn)
        longest = max(longest, g.last * g.alone + turn)
        ctas, busy, alone = ctas + h.ctas, busy + h.busy, alone + h.alone
        idle, memory, wires = idle + h.idle, memory + h.memory, wires + h.wires
        beside, bound = beside + h.beside, bound + bound_seconds(x, facts)
        # Kept until the call is known.
        seconds[i] = max(h.busy + h.idle, h.memory) + h.beside
        weights += seconds[i]
    if weights == 0.0:
        return
    of_all = Share(ctas, busy, alone, idle, memory, wires, beside)
    work = _work(of_all, resident, shortest, longest, few / most, facts, rules)
    sm = max(work + idle, wires)
    sm, memory = facts[START] + sm, facts[START] + memory
    kernel = max(bound, joined(sm, memory, facts[OVERLAP]))
    left = (kernel - bound + beside) / weights
    for i in range(rows.shape[0]):
        if seconds[i] > 0.0:
            seconds[i] = bound_seconds(rows[i], facts) + left * seconds[i]


@register_jitable
def _moves(facts: Array) -> bool:
    """Return whether no rate of the machine is 0, or unknown."""
    moves = True
    for fact in range(STREAM + 1):
        moves &= bool(facts[fact] > 0.0)
    return moves


def new_memo(tiles: Array) -> Array:
    """Return room for what calls have in common, still empty, (tiles + 1, 4).

    That is by tile what `_step` says, and at last the CTAs, blocks and parts of a search.
    """
    return np.zeros((len(tiles) + 1, 4))


def fill_seconds(
    seconds: Array,
    sizes: Array,
    calls: Array,
    facts: Array,
    rules: Array,
    tiles: Array,
    memo: Array,
) -> None:
    """Set the seconds of every row at every design point.

    A row is equal sequences of one call, in `COLUMNS` columns: sequences, KV heads on this device,
    query heads per KV head, new tokens and keys read per sequence, pairs of query and key per
    sequence and query head that no mask hides, head_dim of scores and of values, bytes of an
    element of queries and of keys, and 1 where the layer has a sliding window.

    Args:
        seconds: Result, (rows, points).
        sizes: (rows, 1 or points, COLUMNS).
        calls: Which call a row is of, (rows,); the rows of one call follow each other.
        facts: Of each point or of all, (1 or points, FACTS).
        rules: Of the library, (RULES,).
        tiles: Of the library, (tiles, 8).
        memo: Scratch, see `new_memo`.
    """
    row = 0
    while row < seconds.shape[0]:
        end = row + 1
        while end < seconds.shape[0] and calls[end] == calls[row]:
            end += 1
        for point in range(seconds.shape[1]):
            rows = sizes[row:end, point if sizes.shape[1] > 1 else 0]
            of_point = facts[point if facts.shape[0] > 1 else 0]
            if _moves(of_point):
                memo[:] = 0.0
                call_seconds(seconds[row:end, point], rows, of_point, rules, tiles, memo)
                continue
            # A rate of nothing takes for ever; who asked says which rate it is.
            for i in range(end - row):
                seconds[row + i, point] = np.inf if _works(rows[i]) else 0.0
        row = end


@cache
def compiled() -> Any:
    """Return `fill_seconds` compiled."""
    return numba.njit(**LOOP)(fill_seconds)
