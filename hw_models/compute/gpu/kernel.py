"""Seconds of a dense product on a GPU: mechanisms over a few tiles, the fastest wins.

A library has hundreds of kernels for a product. They differ in the tile of the result that one
thread block (CTA) makes, in how many k-steps it keeps in flight, and in how k is cut. Each tile of
the generation is timed with one formula, whole, with k split, and with tiles cut at SM boundaries:

    step   = max(latency / stages, matrix or shared-memory time, loads / SM port, all loads / L2)
    round  = fill + steps * step + epilogue; the stores of a wave leave together, at HBM's rate
    sm     = whole rounds, then one that fills only some SMs
    memory = fill + traffic / (e * HBM rate) * (1 + tail / rounds)
    time   = (sm^p + memory^p)^(1/p) + the sum over a split, then the clock that the board can feed

The launch is not part of it. Everything falls, or stays, when a rate rises or a latency falls, and
so does the least of them (law 4).

The functions are plain Python (the twin that tests run) and compiled as they are: see `compiled`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu.norms import joined

# Columns of the facts of a design point: see `parameters.facts`, which fills them.
SMS, PEAK, SHARED, PORT, L2_RATE, L2_BYTES, REUSE, PIN_RATE, STREAM, ROOM = range(10)
LANES, ENERGY, MATRIX, FILL, LATENCY, EPILOGUE, SPLIT, L2_SHARE, OVERLAP, TAIL = range(10, 20)
FACTS = 20
# Columns of a tile: see `generations`.
TM, TN, BK, STAGES, CTAS, WM, WN, VECTOR = range(8)
# Rules of a generation.
PERSISTENT, CLUSTER, SMEM_OPERANDS, STREAM_K = range(4)
#: A part of a split is summed in fp32.
_PART_BYTES = 4.0
#: Lane instructions for an operand that is unpacked, an estimate: of two 4-bit weights at once,
#: one logic operation, one fused multiply-add, and one more for the scale.
_UNPACK = 1.5
_MOST_PARTS = 64.0
#: Ways to cut k: not, fill the slots once, twice, half, in 2, in 4, and stream-K.
_WAYS = 7
_STREAM_K = 6


class Product(NamedTuple):
    """One product, or `groups` equal ones: sizes, bytes of an element, bytes of each matrix."""

    m: float
    n: float
    k: float
    groups: float
    b_in: float
    b_weight: float
    b_out: float
    a: float
    w: float
    out: float


class Tiling(NamedTuple):
    """A product cut into the tiles of one kernel; seconds and bytes of one k-step of one CTA."""

    rows: float
    cols: float
    ctas: float
    steps: float
    slots: float
    height: float
    width: float
    matrix: float
    loads: float
    latency: float
    fill: float


@register_jitable
def _tiling(x: Product, tile: Array, facts: Array, rules: Array) -> Tiling:
    bk = tile[BK] * 2.0 / x.b_in
    rows, cols = np.ceil(x.m / tile[TM]), np.ceil(x.n / tile[TN])
    # Edge tiles load and store only what exists, but compute all.
    height, width = x.m / rows, x.n / cols
    if tile[VECTOR] > 0.0:
        # A multiply-add unpacks its operands: half of the lanes' rate.
        matrix = 2.0 * tile[TN] * bk / (0.5 * facts[LANES] / facts[SMS])
    else:
        matrix = 2.0 * tile[TM] * tile[TN] * bk / (facts[PEAK] / facts[SMS] * facts[MATRIX])
        through = (tile[TM] + tile[TN]) * bk * x.b_in
        if rules[SMEM_OPERANDS] == 0.0:
            # Written once, then read by each warp for the tile of its own.
            warps = (tile[TM] / tile[WM]) * (tile[TN] / tile[WN])
            through += warps * (tile[WM] + tile[WN]) * bk * x.b_in
        matrix = max(matrix, through / facts[SHARED])
    if x.b_weight < x.b_in:
        # Packed weights become operands on the lanes, while matrix units multiply.
        lanes = 0.5 * facts[LANES] / facts[SMS]
        matrix = max(matrix, _UNPACK * tile[TN] * bk / lanes)
    share_a = share_w = 1.0
    if rows > 1.0:
        share_w = rules[CLUSTER]
    elif cols > 1.0:
        share_a = rules[CLUSTER]
    loads = (height * x.b_in / share_a + width * x.b_weight / share_w) * bk
    return Tiling(
        rows,
        cols,
        x.groups * rows * cols,
        np.ceil(x.k / bk),
        facts[SMS] * tile[CTAS],
        height,
        width,
        matrix,
        loads,
        facts[LATENCY] / tile[STAGES],
        0.0 if tile[VECTOR] > 0.0 else facts[FILL],
    )


@register_jitable
def _loop(t: Tiling, steps: float, resident: float, running: float, facts: Array) -> float:
    """Return the seconds of a main loop: CTAs on the busiest SM, and on all."""
    step = max(
        t.latency,
        resident * t.matrix,
        resident * t.loads / facts[PORT],
        running * t.loads / facts[L2_RATE],
    )
    return float(steps * step)


@register_jitable
def _parts(way: int, t: Tiling) -> float:
    """Return into how many parts k is cut, 0 where this way is none of its own."""
    wanted = 1.0
    if way == 1:
        wanted = np.floor(t.slots / t.ctas)
    elif way == 2:
        wanted = np.floor(2.0 * t.slots / t.ctas)
    elif way == 3:
        wanted = np.floor(0.5 * t.slots / t.ctas)
    elif way == 4:
        wanted = 2.0
    elif way == 5:
        wanted = 4.0
    wanted = min(wanted, t.steps, _MOST_PARTS)
    if wanted <= 1.0:
        return 1.0 if way in (0, _STREAM_K) else 0.0
    return float(np.ceil(t.steps / np.ceil(t.steps / wanted)))


@register_jitable
def _sm_seconds(
    x: Product, t: Tiling, parts: float, ctas: float, facts: Array, rules: Array
) -> float:
    """Return the seconds on the SMs of rounds of CTAs, the last of which is partly filled."""
    mine = np.ceil(t.steps / parts)
    store = t.height * t.width * (x.b_out if parts == 1.0 else _PART_BYTES)
    end, burst = facts[EPILOGUE] + store / facts[PORT], store / facts[STREAM]
    full = _loop(t, mine, ctas, t.slots, facts)
    edge = end + t.slots * burst
    last = full + t.fill + edge
    # A persistent kernel fills and stores under the next tile's main loop.
    between = max(full, edge) if rules[PERSISTENT] > 0.0 else last
    rounds = np.floor(t.ctas * parts / t.slots)
    left = t.ctas * parts - rounds * t.slots
    if left == 0.0:
        return float(between * (rounds - 1.0) + last)
    busiest = np.ceil(left / facts[SMS])
    rest = _loop(t, mine, busiest, left, facts)
    return float(between * rounds + rest + t.fill + end + left * burst)


@register_jitable
def _summed_seconds(
    x: Product, t: Tiling, mine: float, running: float, turns: float, ctas: float, facts: Array
) -> float:
    """Return the seconds of CTAs that take `mine` k-steps each and hand on the sum of a tile.

    Args:
        running: CTAs, at most the slots.
        turns: Hand-overs of a tile, one after the other.
    """
    area, tiles = t.height * t.width, min(t.ctas, running)
    end = facts[EPILOGUE] + area * x.b_out / facts[PORT]
    # The sum is read and written through L2.
    moved = 2.0 * area * _PART_BYTES
    turn = facts[EPILOGUE] + max(moved / facts[PORT], tiles * moved / facts[L2_RATE])
    loop = _loop(t, mine, min(ctas, np.ceil(running / facts[SMS])), running, facts)
    stores = tiles * area * x.b_out / facts[STREAM]
    return float(loop + 2.0 * t.fill + end + stores + turns * turn)


@register_jitable
def _stream_k_seconds(x: Product, t: Tiling, ctas: float, facts: Array) -> float:
    """Return the seconds of k-steps that are shared out whatever tile they are of.

    Osama et al., Stream-K (PPoPP 2023), whose model of the time (appendix A.1) has a term for each
    CTA that a tile is summed from, and chooses the number of CTAs by it. Here either all slots have
    equal shares, across the ends of tiles, or each tile has as many CTAs of its own as the slots
    allow, half as many, and so on.
    """
    mine = np.ceil(t.ctas * t.steps / t.slots)
    turns = np.ceil(t.steps / mine)
    if mine % t.steps == 0.0:
        # Whole tiles.
        turns = 0.0
    running = np.ceil(t.ctas * t.steps / mine)
    best = _summed_seconds(x, t, mine, running, turns, ctas, facts)
    parts = np.floor(t.steps / mine)
    while parts >= 2.0:
        mine = np.ceil(t.steps / parts)
        parts = np.ceil(t.steps / mine)
        running = t.ctas * parts
        best = min(best, _summed_seconds(x, t, mine, running, parts - 1.0, ctas, facts))
        parts = np.floor(0.5 * parts)
    return float(best)


@register_jitable
def _memory_seconds(
    x: Product, t: Tiling, tile: Array, parts: float, held: float, facts: Array
) -> float:
    """Return the seconds of HBM: tiles that run together are a square, and share what they read."""
    together = min(t.rows * t.cols, max(1.0, t.slots / parts))
    wide = min(t.cols, max(1.0, np.ceil(np.sqrt(together * tile[TM] / tile[TN]))))
    high = min(t.rows, np.ceil(together / wide))
    wide = min(t.cols, np.ceil(together / high))
    again_a = again_w = 1.0
    wave = (high * tile[TM] * x.b_in + wide * tile[TN] * x.b_weight) * x.k
    if x.a > facts[REUSE] and wave > facts[REUSE]:
        again_a = t.cols / wide
    if x.w > facts[REUSE]:
        again_w = t.rows / high
    traffic = x.a * (again_a - held) + x.w * again_w + x.out
    uneven = 1.0 + facts[TAIL] / max(1.0, t.ctas * parts / t.slots)
    return float(traffic / facts[STREAM] * uneven + t.fill)


@register_jitable
def product_seconds(
    x: Product, facts: Array, rules: Array, tiles: Array
) -> tuple[float, int, float]:
    """Return seconds without the launch, the row of `tiles`, and the parts of k (0: stream-K)."""
    # The producer's output may still be in L2. Weights come from HBM, results go there.
    held = 2.0 - (x.w + x.a + x.out) / (facts[L2_BYTES] * facts[L2_SHARE])
    held = min(1.0, max(0.0, held))
    best, best_tile, best_parts = np.inf, -1, 1.0
    for j in range(tiles.shape[0]):
        tile = tiles[j]
        vector = tile[VECTOR] > 0.0
        if vector and x.m > 1.0:
            continue
        t = _tiling(x, tile, facts, rules)
        for way in range(1 if vector else _WAYS):
            stream = way == _STREAM_K
            if stream and rules[STREAM_K] == 0.0:
                continue
            parts = 1.0 if stream else _parts(way, t)
            if parts == 0.0:
                continue
            if stream:
                sm = _stream_k_seconds(x, t, tile[CTAS], facts)
            else:
                sm = _sm_seconds(x, t, parts, tile[CTAS], facts, rules)
            memory = _memory_seconds(x, t, tile, parts, held, facts)
            seconds = joined(sm, memory, facts[OVERLAP])
            if parts > 1.0:
                sums = x.groups * x.m * x.n * _PART_BYTES * parts
                rate = facts[L2_RATE] if sums < facts[REUSE] else facts[STREAM]
                seconds += facts[SPLIT] + 2.0 * sums / rate
            if seconds < best:
                best, best_tile, best_parts = seconds, j, 0.0 if stream else parts
    operations = 2.0 * x.groups * x.m * x.n * x.k
    # Dynamic power is f * V^2, and V rises as sqrt(f) where boards work: energy falls with f.
    drawn = operations / best * facts[ENERGY]
    if drawn > facts[ROOM]:
        best *= np.sqrt(drawn / facts[ROOM])
    # What L2 holds must not undercut the bound, which reads each byte from HBM once.
    bound = max(operations / facts[PEAK], (x.a + x.w + x.out) / facts[PIN_RATE])
    return max(best, bound), best_tile, best_parts


def fill_seconds(
    seconds: Array,
    sizes: Array,
    b_in: float,
    b_out: float,
    facts: Array,
    rules: Array,
    tiles: Array,
) -> None:
    """Set the seconds of every row at every design point.

    Args:
        seconds: Result, (rows, points).
        sizes: m, n, k, groups, weight bytes, each (rows, 1 or points).
        b_in, b_out: Bytes of an element of the activations and of the result.
        facts: Of each point or of all, (1 or points, FACTS).
        rules: Of the generation, (4,).
        tiles: Of the generation, (tiles, 8).
    """
    for row in range(seconds.shape[0]):
        for point in range(seconds.shape[1]):
            s = point if sizes.shape[2] > 1 else 0
            m, n, k = sizes[0, row, s], sizes[1, row, s], sizes[2, row, s]
            groups, w = sizes[3, row, s], sizes[4, row, s]
            if m <= 0.0 or groups <= 0.0:
                seconds[row, point] = 0.0
                continue
            x = Product(
                m,
                n,
                k,
                groups,
                b_in,
                w / (groups * n * k),
                b_out,
                groups * m * k * b_in,
                w,
                groups * m * n * b_out,
            )
            of_point = facts[point if facts.shape[0] > 1 else 0]
            slowest = min(of_point[PEAK], of_point[PORT], of_point[L2_RATE], of_point[STREAM])
            if slowest <= 0.0:
                # A rate of nothing takes for ever; who asked says which rate it is.
                seconds[row, point] = np.inf
                continue
            seconds[row, point] = product_seconds(x, of_point, rules, tiles)[0]


@cache
def compiled() -> Any:
    """Return `fill_seconds` compiled."""
    return numba.njit(cache=True)(fill_seconds)
