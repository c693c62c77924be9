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
    # One function, since every array that a compiled function is given costs it 10 ns or more.
    fixed, head, base, slopes = table.fixed, table.head, table.base, table.slopes
    features, held, rows = table.features, table.busy, table.rows
    total = decodes
    for i in range(pieces):
        total += new[i]
    tokens, sequences = int(total), pieces + int(decodes)
    if tokens <= 0 or tokens >= fixed.shape[0] or sequences >= head.shape[0]:
        raise ValueError("an iteration has no token, or more tokens or sequences than its table")
    count = pieces + 1 if decodes > 0.0 else pieces
    for s in range(table.crowd.shape[0]):
        window, chunk = table.spans[s, WINDOW], table.spans[s, CHUNK]
        all_pairs = all_reads = attended = 0.0
        for i in range(pieces):
            pairs = pairs_of(new[i], past[i], window, chunk)
            reads = reads_of(new[i], past[i], window, chunk)
            rows[s, i, SEQUENCES], rows[s, i, NEW] = 1.0, new[i]
            rows[s, i, READS], rows[s, i, PAIRS] = reads, pairs
            all_pairs, all_reads = all_pairs + pairs, all_reads + reads
        if decodes > 0.0:
            pairs = pairs_of(1.0, context / decodes - 1.0, window, chunk)
            rows[s, pieces, SEQUENCES], rows[s, pieces, NEW] = decodes, 1.0
            rows[s, pieces, READS], rows[s, pieces, PAIRS] = pairs, pairs
            attended = decodes * pairs
        features[s, 0], features[s, 1], features[s, 2] = all_pairs, all_reads, pieces
        features[s, 3], features[s, 4], features[s, 5] = attended, decodes, total * count
        features[s, _CALL] = 0.0
        if table.crowd[s] > 0.0:
            of_call = table.seconds[:count]
            call_seconds(of_call, rows[s, :count], table.facts[s], table.rules, table.tiles)
            for i in range(count):
                features[s, _CALL] += table.crowd[s] * of_call[i]
    for r in range(held.shape[0]):
        held[r] = fixed[tokens, BUSY + r] + head[sequences, BUSY + r]
    seconds = fixed[tokens, SECONDS] + head[sequences, SECONDS]
    joules = fixed[tokens, JOULES] + head[sequences, JOULES]
    for v in range(table.counts.shape[0]):
        s, runs = table.span[v], table.counts[v]
        compute, stream = 0.0, base[v, tokens, B_FLOOR]
        for column in range(B_COMPUTE, base.shape[2]):
            value = base[v, tokens, column]
            for i in range(_CALL):
                value += slopes[v, column - B_COMPUTE, i] * features[s, i]
            # A fit may undershoot; what is unknown stays NaN.
            value = max(value, 0.0)
            if column == B_JOULES:
                joules += runs * value
                continue
            if column == B_COMPUTE:
                value += features[s, _CALL]
                compute = value
            elif column == B_BUSY + table.home[v]:
                value = min(value, max(compute, value * table.efficiency[v]))
            if column >= B_BUSY:
                held[column - B_BUSY] += runs * value
            stream = max(stream, value)
        lasts = base[v, tokens, B_LATENCY] + stream
        held[table.unit[v]] += runs * lasts
        seconds += runs * max(base[v, tokens, B_BESIDE], base[v, tokens, B_AROUND] + lasts)
    seconds = max(seconds, table.host)
    for r in range(held.shape[0]):
        seconds = max(seconds, held[r])
        busy[r] += held[r]
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
