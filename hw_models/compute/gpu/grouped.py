"""Seconds of a grouped product on a GPU: many small products in one kernel, each expert its own.

The kernels are those of vLLM's fused mixture of experts (Triton). Tokens are sorted by expert and
each expert's are padded to whole tiles of rows, so time goes by tiles, not by tokens:

    tiles  = sum over experts of ceil(tokens / tile rows)
    step   = max(latency / loads in flight, matrix or shared memory, loads / port)
    sm     = max(rounds of CTAs * (fill + k-steps * step + epilogue), all loads / L2) + stores
    memory = weights of the experts hit * times read + rows + results, at the stream's rate
    time   = (sm^p + memory^p)^(1/p), then the clock that is left

Parameters are those of `kernel`, except for the tail of a stream. What differs:

- Triton's loop fills less of the matrix units and of shared memory (`matrix`).
- Rows are gathered: the more their source outgrows L2, the longer a step waits (`gather`).
- A k-step narrower than a cache line opens each DRAM page twice (`narrow`).
- Row tiles of an expert that run together read its weights once. The next ones read them again,
  unless the weights of an expert fit in L2.
- Rows of k that are no multiple of 16 elements are not copied ahead, and cross cache lines.

The launch is not part of it. Everything falls, or stays, when a rate rises or a latency falls.
The functions are plain Python (the twin that tests run) and compiled as they are: see `compiled`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu.kernel import (
    ENERGY,
    EPILOGUE,
    FILL,
    L2_BYTES,
    L2_RATE,
    L2_SHARE,
    LATENCY,
    OVERLAP,
    PEAK,
    PIN_RATE,
    PORT,
    REUSE,
    ROOM,
    SHARED,
    SMS,
    STREAM,
    Tiling,
)
from opbyte.hw_models.compute.gpu.norms import joined

# Columns of a row's sizes. SOURCE: rows of the matrix that rows are gathered from. EXPERTS: whose
# weights the device has. WEIGHT: bytes of one expert's matrix. TUNED: 1 where the library has a
# table for the shape.
N, K, TOKENS, SOURCE, EXPERTS, WEIGHT, TUNED = range(7)
SIZES = 7
# Columns of the parameters of the class.
MATRIX, GATHER, NARROW = range(3)
PARAMETERS = 3
# Columns of a tile: see `grouped_libraries`.
TM, TN, BK, FLIGHT, CTAS, WM, WN, TOGETHER = range(8)
# Rules of a library.
SMEM_OPERANDS, CHUNK = range(2)
_LINE_BYTES = 128.0
#: Triton knows a stride as aligned where it is a multiple of 16 elements.
_ALIGNED = 16.0


class Chunk(NamedTuple):
    """What the experts of a device have to do at once: picks, experts hit, tiles of rows."""

    picks: float
    hit: float
    tiles: float


@register_jitable
def _load(counts: Array, share: float, rows: float) -> Chunk:
    """Return the load of experts with `share` of their tokens, in tiles of so many rows.

    Tokens are whole: the share of the first so many experts, rounded, whatever their number.
    """
    summed, picks, hit, tiles = 0.0, 0.0, 0.0, 0.0
    for expert in range(counts.shape[0]):
        summed += counts[expert]
        mine = np.rint(summed * share) - picks
        if mine > 0.0:
            picks += mine
            hit += 1.0
            tiles += np.ceil(mine / rows)
    return Chunk(picks, hit, tiles)


@register_jitable
def _tiling(
    s: Array,
    load: Chunk,
    source: float,
    b_in: float,
    tile: Array,
    facts: Array,
    own: Array,
    rules: Array,
) -> Tiling:
    bk = tile[BK] * 2.0 / b_in
    cols = np.ceil(s[N] / tile[TN])
    # Padded rows are not loaded or stored, but computed.
    height, width = load.picks / load.tiles, s[N] / cols
    matrix = 2.0 * tile[TM] * tile[TN] * bk / (facts[PEAK] / facts[SMS])
    through = (tile[TM] + tile[TN]) * bk * b_in
    if rules[SMEM_OPERANDS] == 0.0 or tile[TM] < 64.0:
        # Written once, then read by each warp for the tile of its own.
        warps = (tile[TM] / tile[WM]) * (tile[TN] / tile[WN])
        through += warps * (tile[WM] + tile[WN]) * bk * b_in
    flight = tile[FLIGHT] if s[K] % _ALIGNED == 0.0 else 1.0
    beyond = max(0.0, 1.0 - facts[L2_BYTES] / source)
    return Tiling(
        load.tiles,
        cols,
        load.tiles * cols,
        np.ceil(s[K] / bk),
        facts[SMS] * tile[CTAS],
        height,
        width,
        max(matrix, through / facts[SHARED]) / own[MATRIX],
        (height * b_in + width * s[WEIGHT] / (s[N] * s[K])) * bk,
        facts[LATENCY] * (1.0 + own[GATHER] * beyond) / flight,
        facts[FILL],
    )


@register_jitable
def _sm_seconds(t: Tiling, resident: float, b_out: float, facts: Array) -> float:
    """Return the seconds of the busiest SM: rounds of resident CTAs, and one of those left.

    What all CTAs load takes L2 at least its time, whatever the rounds, so that more SMs never
    cost any.
    """
    deep = np.ceil(t.ctas / facts[SMS])
    rounds = np.floor(deep / resident)
    left = deep - rounds * resident
    store = t.height * t.width * b_out
    fixed = t.fill + facts[EPILOGUE] + store / facts[PORT]
    work = max(t.matrix, t.loads / facts[PORT])
    seconds = rounds * (t.steps * max(t.latency, resident * work) + fixed)
    if left > 0.0:
        seconds += t.steps * max(t.latency, left * work) + fixed
    from_l2 = t.ctas * t.steps * t.loads / facts[L2_RATE]
    # The CTAs of a round store together.
    return float(max(seconds, from_l2) + t.ctas * store / facts[STREAM])


@register_jitable
def _memory_seconds(
    s: Array,
    a: float,
    w: float,
    out: float,
    t: Tiling,
    hit: float,
    tile: Array,
    facts: Array,
    own: Array,
) -> float:
    """Return the seconds of HBM: experts' weights, gathered rows and results."""
    rate = facts[STREAM]
    if tile[BK] * 2.0 < _LINE_BYTES:
        rate *= own[NARROW]
    if s[K] % _ALIGNED != 0.0:
        rate *= own[NARROW]
    again = hit
    if s[WEIGHT] > facts[REUSE]:
        again += (t.rows - hit) / max(tile[TOGETHER], t.slots / t.cols)
    held = min(1.0, max(0.0, 2.0 - (w + a + out) / (facts[L2_BYTES] * facts[L2_SHARE])))
    read = again * s[WEIGHT] + a * (1.0 - held)
    return float(read / rate + out / facts[STREAM] + t.fill)


@register_jitable
def _tile_seconds(
    s: Array,
    counts: Array,
    share: float,
    b_in: float,
    b_out: float,
    tile: Array,
    facts: Array,
    own: Array,
    rules: Array,
) -> float:
    """Return the seconds with one tile, of a chunk that has `share` of the tokens."""
    load = _load(counts, share, tile[TM])
    if load.picks == 0.0:
        return 0.0
    source = s[SOURCE] * share * s[K] * b_in
    t = _tiling(s, load, source, b_in, tile, facts, own, rules)
    # Rows that several experts gather are read once, if L2 holds their source.
    rows = load.picks
    if source <= facts[REUSE]:
        rows = min(rows, s[SOURCE] * share)
    a, w, out = rows * s[K] * b_in, load.hit * s[WEIGHT], load.picks * s[N] * b_out
    sm = _sm_seconds(t, tile[CTAS], b_out, facts)
    seconds = joined(
        sm, _memory_seconds(s, a, w, out, t, load.hit, tile, facts, own), facts[OVERLAP]
    )
    operations = 2.0 * load.picks * s[N] * s[K]
    # As in `kernel`: the clock falls to what the board can feed.
    drawn = operations / seconds * facts[ENERGY]
    if drawn > facts[ROOM]:
        seconds *= np.sqrt(drawn / facts[ROOM])
    bound = max(operations / facts[PEAK], (w + out) / facts[PIN_RATE])
    return float(max(seconds, bound))


@register_jitable
def grouped_seconds(
    s: Array,
    counts: Array,
    b_in: float,
    b_out: float,
    facts: Array,
    own: Array,
    rules: Array,
    tiles: Array,
) -> float:
    """Return seconds without the launch, with the tile that the library chooses.

    Tuned shapes take the fastest tile. Others take the first tile while a device has no more tokens
    than experts, else the second. Tokens beyond a chunk wait for the chunk before.
    """
    whole = s[TOKENS]
    chunk = rules[CHUNK] if rules[CHUNK] > 0.0 else whole
    seconds, left = 0.0, whole
    while left > 0.0:
        mine = min(left, chunk)
        times = np.floor(left / mine)
        first, end = 0, tiles.shape[0]
        if s[TUNED] == 0.0:
            first = int(mine > s[EXPERTS])
            end = first + 1
        best = np.inf
        for j in range(first, end):
            of_tile = _tile_seconds(
                s, counts, mine / whole, b_in, b_out, tiles[j], facts, own, rules
            )
            best = min(best, of_tile)
        seconds += times * best
        left -= times * mine
    return float(seconds)


def fill_seconds(
    seconds: Array,
    sizes: Array,
    counts: Array,
    starts: npt.NDArray[np.int64],
    b_in: float,
    b_out: float,
    facts: Array,
    own: Array,
    rules: Array,
    tiles: Array,
) -> None:
    """Set the seconds of every row at every design point.

    Args:
        seconds: Result, (rows, points).
        sizes: (SIZES, rows, 1 or points).
        counts: Tokens of each expert of the device, those of all rows one after the other,
            (sum of experts, 1 or points).
        starts: Where the counts of each row begin, and where the last end, (rows + 1,).
        b_in, b_out: Bytes of an element of the activations and of the result.
        facts: Of each point or of all, (1 or points, kernel.FACTS).
        own: Parameters of the class, (1 or points, PARAMETERS).
        rules: Of the library, (2,).
        tiles: Of the library, (tiles, 8).
    """
    for row in range(seconds.shape[0]):
        for point in range(seconds.shape[1]):
            s = sizes[:, row, point if sizes.shape[2] > 1 else 0]
            of_point = facts[point if facts.shape[0] > 1 else 0]
            mine = counts[starts[row] : starts[row + 1], point if counts.shape[1] > 1 else 0]
            if s[TOKENS] <= 0.0 or mine.sum() <= 0.0:
                seconds[row, point] = 0.0
                continue
            slowest = min(of_point[PEAK], of_point[PORT], of_point[L2_RATE], of_point[STREAM])
            if slowest <= 0.0:
                # A rate of nothing takes for ever; who asked says which rate it is.
                seconds[row, point] = np.inf
                continue
            of_class = own[point if own.shape[0] > 1 else 0]
            seconds[row, point] = grouped_seconds(
                s, mine, b_in, b_out, of_point, of_class, rules, tiles
            )


@cache
def compiled() -> Any:
    """Return `fill_seconds` compiled."""
    return numba.njit(cache=True)(fill_seconds)
