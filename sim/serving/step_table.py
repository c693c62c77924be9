"""The price of a serving iteration, read from a compiled table.

An iteration is pieces of prompts and decoding sequences. What depends only on its tokens T, or on
its sequences S, was priced for every T and S before (`prices`). What depends on the pieces, one
operator of a layer at most, is priced here:

    operator = latency(T) + max(compute, floor(T), busiest port)
    compute, busy, joules = base(T) + slopes . (query-key pairs, tokens read, ...)
    layer    = max(path beside the operator, path around it + operator)
    seconds  = max(sum of layers and the rest, busiest resource, host)

Where the operator is an attention kernel of a GPU its call is computed as it is, instead of by
slopes. The functions are plain Python, and compiled inside whoever calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu import attention
from opbyte.hw_models.compute.gpu.attention import NEW, PAIRS, READS, SEQUENCES, call_seconds

Indices = npt.NDArray[np.int64]

# Columns of `fixed` and `head`; busy seconds of each resource follow.
SECONDS, JOULES, BUSY = range(3)
# Columns of `base`; busy seconds of each port follow. `slopes` begin at B_COMPUTE.
B_BESIDE, B_AROUND, B_LATENCY, B_FLOOR, B_COMPUTE, B_JOULES, B_BUSY = range(7)
#: What slopes multiply: query-key pairs, tokens read and number of pieces of prompts; tokens that
#: decodes attend to, and their number; tokens, once for each segment, for each reads all queries.
FEATURES = ("pairs", "reads", "pieces", "attended", "decodes", "queries")
_CALL = len(FEATURES)
# Columns of `spans`.
WINDOW, CHUNK = range(2)


class StepTable(NamedTuple):
    """Arrays of one model on one machine; `prices.StepPrices` makes and explains them.

    Calls write to the scratch arrays: threads need a table each.

    Attributes:
        fixed: By tokens: path, joules, busy seconds of each resource, (tokens + 1, 2 + resources).
        head: By sequences: the same of the LM head, (sequences + 1, 2 + resources).
        base: By operator that depends on the pieces, and tokens: path beside it, path around it,
            latency, floor, compute, joules, busy seconds of each port,
            (operators, tokens + 1, 6 + ports).
        slopes: Of compute, joules and each port's busy seconds over `FEATURES`,
            (operators, 2 + ports, FEATURES).
        counts: Runs of each operator, (operators,).
        unit: Resource that is the operator's unit, (operators,).
        span: Which of the spans the operator attends over, (operators,).
        home: Port that is busy no longer than the kernel, -1 without a kernel, (operators,).
        efficiency: Of that port, (operators,).
        spans: Window and chunk, 0 without, (spans, 2).
        crowd: Devices that one unit serves, of spans that are kernel calls; 0 of others, (spans,).
        rows: Rows of each span's call, the constant columns set, (spans, rows, columns).
        facts: Of each span's call, (spans, FACTS).
        rules: Of the library, (RULES,).
        tiles: Of the library, (tiles, columns).
        host: Seconds that the host needs for an iteration.
        features: Scratch, of each span, its call's seconds last, (spans, FEATURES + 1).
        seconds: Scratch, (rows,).
        busy: Scratch, (resources,).
    """

    fixed: Array
    head: Array
    base: Array
    slopes: Array
    counts: Array
    unit: Indices
    span: Indices
    home: Indices
    efficiency: Array
    spans: Array
    crowd: Array
    rows: Array
    facts: Array
    rules: Array
    tiles: Array
    host: float
    features: Array
    seconds: Array
    busy: Array


@register_jitable
def _seen(position: float, window: float, chunk: float) -> float:
    """Return the tokens that queries at 1 .. position see, summed: `spans.seen_up_to`, compiled."""
    seen = 0.0
    if chunk > 0.0:
        whole = np.floor(position / chunk)
        position -= whole * chunk
        if 0.0 < window < chunk:
            seen = whole * (window * (window + 1.0) / 2.0 + (chunk - window) * window)
        else:
            window = 0.0
            seen = whole * (chunk * (chunk + 1.0) / 2.0)
    if window > 0.0:
        full = min(position, window)
        return float(seen + (full * (full + 1.0) / 2.0 + (position - full) * window))
    return float(seen + position * (position + 1.0) / 2.0)


@register_jitable
def pairs_of(new: float, past: float, window: float, chunk: float) -> float:
    """Return the query-key pairs of one sequence that no mask hides: `Segment.pairs`."""
    return _seen(past + new, window, chunk) - _seen(past, window, chunk)


@register_jitable
def reads_of(new: float, past: float, window: float, chunk: float) -> float:
    """Return the distinct tokens that a piece of a prompt reads: `Segment.reads`."""
    reads = past + new
    if window > 0.0:
        reads = min(reads, new + (window - 1.0))
    if chunk > 0.0:
        reads = min(reads, past + new - np.floor(past / chunk) * chunk)
    return float(reads)


@register_jitable
def _attend(
    table: StepTable,
    s: int,
    tokens: float,
    new: Array,
    past: Array,
    pieces: int,
    decodes: float,
    context: float,
) -> None:
    """Set the features of a span, and the seconds of its call."""
    window, chunk = table.spans[s, WINDOW], table.spans[s, CHUNK]
    rows, features = table.rows[s], table.features[s]
    called = table.crowd[s] > 0.0
    all_pairs = all_reads = attended = 0.0
    for i in range(pieces):
        pairs = pairs_of(new[i], past[i], window, chunk)
        reads = reads_of(new[i], past[i], window, chunk)
        all_pairs, all_reads = all_pairs + pairs, all_reads + reads
        if called:
            rows[i, SEQUENCES], rows[i, NEW] = 1.0, new[i]
            rows[i, READS], rows[i, PAIRS] = reads, pairs
    count = pieces
    if decodes > 0.0:
        pairs = pairs_of(1.0, context / decodes - 1.0, window, chunk)
        attended = decodes * pairs
        if called:
            rows[count, SEQUENCES], rows[count, NEW] = decodes, 1.0
            rows[count, READS], rows[count, PAIRS] = pairs, pairs
        count += 1
    features[0], features[1], features[2] = all_pairs, all_reads, float(pieces)
    features[3], features[4] = attended, decodes
    features[5] = tokens * count
    features[_CALL] = 0.0
    if called:
        seconds = table.seconds[:count]
        call_seconds(seconds, rows[:count], table.facts[s], table.rules, table.tiles)
        total = 0.0
        for i in range(count):
            total += seconds[i]
        features[_CALL] = table.crowd[s] * total


@register_jitable
def _component(table: StepTable, v: int, tokens: int, column: int) -> float:
    """Return compute, joules or a port's busy seconds of an operator, by its slopes."""
    features, slopes = table.features[table.span[v]], table.slopes[v, column - B_COMPUTE]
    value = table.base[v, tokens, column]
    for i in range(slopes.shape[0]):
        value += slopes[i] * features[i]
    # A fit may undershoot; what is unknown stays NaN.
    return 0.0 if value < 0.0 else float(value)


@register_jitable
def _operator(table: StepTable, v: int, tokens: int) -> float:
    """Return the seconds of an operator that depends on the pieces; add what it keeps busy."""
    base, home = table.base[v, tokens], table.home[v]
    compute = _component(table, v, tokens, B_COMPUTE) + table.features[table.span[v], _CALL]
    stream = max(compute, base[B_FLOOR])
    for port in range(base.shape[0] - B_BUSY):
        busy = _component(table, v, tokens, B_BUSY + port)
        if port == home:
            busy = min(busy, max(compute, busy * table.efficiency[v]))
        stream = max(stream, busy)
        table.busy[port] += table.counts[v] * busy
    seconds = base[B_LATENCY] + stream
    table.busy[table.unit[v]] += table.counts[v] * seconds
    return float(seconds)


@register_jitable
def step_cost(
    table: StepTable,
    new: Array,
    past: Array,
    pieces: int,
    decodes: float,
    context: float,
    busy: Array,
) -> tuple[float, float]:
    """Return the seconds of an iteration and the dynamic joules of all devices.

    Args:
        table: `StepPrices.table`.
        new: Tokens of each piece of a prompt, (at least `pieces`,).
        past: Tokens that the cache already holds of each piece's sequence, the same shape.
        pieces: Pieces of prompts.
        decodes: Sequences that decode, each one token.
        context: Tokens that these attend to, summed, the new ones included.
        busy: Busy seconds of every resource are added to it, in the order of
            `StepPrices.resources`, (resources,).
    Raises:
        ValueError: If the iteration is empty, or has more tokens or sequences than the table.
    """
    total = decodes
    for i in range(pieces):
        total += new[i]
    tokens, sequences = int(total), pieces + int(decodes)
    if tokens <= 0 or tokens >= table.fixed.shape[0] or sequences >= table.head.shape[0]:
        raise ValueError("an iteration has no token, or more tokens or sequences than its table")
    fixed, head = table.fixed[tokens], table.head[sequences]
    for r in range(table.busy.shape[0]):
        table.busy[r] = fixed[BUSY + r] + head[BUSY + r]
    for s in range(table.spans.shape[0]):
        _attend(table, s, total, new, past, pieces, decodes, context)
    path, joules = fixed[SECONDS] + head[SECONDS], fixed[JOULES] + head[JOULES]
    for v in range(table.counts.shape[0]):
        base = table.base[v, tokens]
        around = base[B_AROUND] + _operator(table, v, tokens)
        path += table.counts[v] * max(base[B_BESIDE], around)
        joules += table.counts[v] * _component(table, v, tokens, B_JOULES)
    seconds = max(path, table.host)
    for r in range(table.busy.shape[0]):
        seconds = max(seconds, table.busy[r])
        busy[r] += table.busy[r]
    return float(seconds), float(joules)


@register_jitable
def step_seconds(
    table: StepTable,
    new: Array,
    past: Array,
    pieces: int,
    decodes: float,
    context: float,
    busy: Array,
) -> float:
    """Return the seconds of an iteration, see `step_cost`."""
    return step_cost(table, new, past, pieces, decodes, context, busy)[0]


@cache
def source_stamp() -> int:
    """Return a number that changes with the source of what is compiled into a caller.

    Numba's cache looks at the file of the function that it compiles, and not at what that calls.
    A caller that caches itself should hold this number in a closure, as `compiled` does.
    """
    text = b"".join(Path(str(f)).read_bytes() for f in (__file__, attention.__file__))
    return int.from_bytes(sha256(text).digest()[:6], "little")


@cache
def compiled() -> Callable[..., Any]:
    """Return `step_cost` compiled."""
    stamp = source_stamp()

    def of_source(
        table: StepTable,
        new: Array,
        past: Array,
        pieces: int,
        decodes: float,
        context: float,
        busy: Array,
    ) -> tuple[float, float]:
        if stamp < 0:
            return 0.0, 0.0
        return step_cost(table, new, past, pieces, decodes, context, busy)

    made: Callable[..., Any] = numba.njit(cache=True, error_model="numpy")(of_source)
    return made
