"""The price of a serving iteration, read from a compiled table.

An iteration is pieces of prompts and decoding sequences. What depends only on its tokens T, or on
its sequences S, was priced for every T and S before (`prices`). What depends on the pieces is
priced here:

    operator = latency(T) + max(compute, floor(T), busiest port)
    compute, busy, joules = base(T) + slopes . (query-key pairs, tokens read, ...)
    layer    = max(path beside these operators, path around them + them + the longest lane)
    lane     = operators that one segment (a piece, or all decodes) has of its own
    seconds  = max(sum of layers and the rest, busiest resource, host)

Where an operator is an attention kernel of a GPU its call is computed as it is, instead of by
slopes. The functions are plain Python, and compiled inside whoever calls them.
"""

from __future__ import annotations

from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu.attention import NEW, PAIRS, READS, SEQUENCES, call_seconds
from opbyte.sim.serving.prices.batch import Batch, heads_of, tokens_of
from opbyte.sim.serving.prices.layout import (
    AROUND,
    B_BUSY,
    B_COMPUTE,
    B_FLOOR,
    B_JOULES,
    B_LATENCY,
    BESIDE,
    BUSY,
    CALL,
    CHUNK,
    CROWD,
    JOULES,
    L_CHUNK,
    L_DECODES,
    L_LATENCY,
    L_LAYER,
    L_MASK,
    L_SLOPES,
    L_UNIT,
    L_WINDOW,
    LANE_FEATURES,
    MASK,
    O_EFFICIENCY,
    O_HOME,
    O_LAYER,
    O_SPAN,
    O_UNIT,
    SCAN_BLOCK,
    SECONDS,
    WINDOW,
    StepTable,
    attended_of,
    forget,
    pairs_of,
    positive,
    reads_of,
)

__all__ = ["StepTable", "pieces_cost", "step_cost"]


@register_jitable
def _lanes(
    table: StepTable,
    runs: Array,
    batch: Batch,
    total: float,
) -> float:
    """Return the joules of operators that segments have of their own.

    Adds what they keep busy, and the longest segment to the path of each layer.
    """
    lanes, held = table.lanes, table.busy
    pieces, decodes, context = batch.pieces, batch.decodes, batch.context
    new, past = batch.new, batch.past
    resources, width = held.shape[0] - runs.shape[0], len(LANE_FEATURES)
    joules = 0.0
    for b in range(runs.shape[0]):
        if runs[b] == 0.0:
            continue
        longest = 0.0
        for i in range(pieces + 1 if decodes > 0.0 else pieces):
            kind = 0.0 if i < pieces else 1.0
            count, tokens, before = decodes, 1.0, 0.0
            if i < pieces:
                count, tokens, before = 1.0, new[i], past[i]
            else:
                before = context / decodes - 1.0
            block, one = min(tokens, SCAN_BLOCK), 1.0 if i == 0 else 0.0
            length = 0.0
            for k in range(lanes.shape[0]):
                if lanes[k, L_LAYER] != b or lanes[k, L_DECODES] != kind:
                    continue
                pairs = pairs_of(tokens, before, lanes[k, L_WINDOW], lanes[k, L_CHUNK])
                reads = reads_of(tokens, before, lanes[k, L_WINDOW], lanes[k, L_CHUNK])
                if kind > 0.0:
                    mask = int(lanes[k, L_MASK])
                    pairs = reads = attended_of(
                        table.masks, mask, decodes, context, lanes[k, L_WINDOW], lanes[k, L_CHUNK]
                    )
                stream = 0.0
                for c in range((lanes.shape[1] - L_SLOPES) // width):
                    at = L_SLOPES + c * width
                    value = lanes[k, at + 1] * pairs + lanes[k, at + 2] * reads
                    value += lanes[k, at + 3] * tokens + lanes[k, at + 4] * tokens * block
                    value += lanes[k, at + 5] * tokens / block
                    value += lanes[k, at + 6] * min(max(before, 0.0), 1.0)
                    value = lanes[k, at] + count * value + lanes[k, at + 7] * total
                    value = runs[b] * positive(value + one * lanes[k, at + 8])
                    if c == B_JOULES - B_COMPUTE:
                        joules += value
                        continue
                    if c >= B_BUSY - B_COMPUTE:
                        held[c - B_BUSY + B_COMPUTE] += value
                    stream = max(stream, value)
                lasts = runs[b] * lanes[k, L_LATENCY] + stream
                held[int(lanes[k, L_UNIT])] += lasts
                length += lasts
            longest = max(longest, length)
        held[resources + b] += longest / runs[b]
    return joules


@register_jitable(inline="always")
def pieces_cost(  # noqa: C901 (see its first comment)
    table: StepTable,
    runs: Array,
    batch: Batch,
    total: float,
) -> tuple[float, float]:
    """Return the path and the joules of what depends on the pieces; add to `table.busy`.

    Args:
        runs: Of each layer that has such operators, (layers,).
        total: Tokens.
    """
    # One function, since every array that a compiled function is given costs it 10 ns or more.
    base, slopes, features, held, rows = (
        table.base, table.slopes, table.features, table.busy, table.rows
    )  # fmt: skip
    new, past, pieces = batch.new, batch.past, batch.pieces
    decodes, context = batch.decodes, batch.context
    tokens, resources = int(total), held.shape[0] - runs.shape[0]
    seconds = joules = 0.0
    count = pieces + 1 if decodes > 0.0 else pieces
    for s in range(table.spans.shape[0]):
        window, chunk, crowd = table.spans[s, WINDOW], table.spans[s, CHUNK], table.spans[s, CROWD]
        all_pairs = all_reads = attended = squares = blocks = started = going = 0.0
        for i in range(pieces):
            block = min(new[i], SCAN_BLOCK)
            squares, blocks = squares + new[i] * block, blocks + new[i] / block
            started += min(past[i], 1.0)
            pairs = pairs_of(new[i], past[i], window, chunk)
            reads = reads_of(new[i], past[i], window, chunk)
            rows[s, i, SEQUENCES], rows[s, i, NEW] = 1.0, new[i]
            rows[s, i, READS], rows[s, i, PAIRS] = reads, pairs
            all_pairs, all_reads = all_pairs + pairs, all_reads + reads
        if decodes > 0.0:
            mask = int(table.spans[s, MASK])
            pairs = attended_of(table.masks, mask, decodes, context, window, chunk)
            rows[s, pieces, SEQUENCES], rows[s, pieces, NEW] = decodes, 1.0
            rows[s, pieces, READS], rows[s, pieces, PAIRS] = pairs, pairs
            attended = decodes * pairs
            going = decodes * min(max(context / decodes - 1.0, 0.0), 1.0)
        features[s, 0], features[s, 1], features[s, 2] = all_pairs, all_reads, pieces
        features[s, 3], features[s, 4], features[s, 5] = attended, decodes, total * count
        features[s, 6], features[s, 7] = squares, blocks
        features[s, 8], features[s, 9] = started, going
        features[s, CALL] = 0.0
        if crowd > 0.0:
            of_call = table.seconds[:count]
            call_seconds(
                of_call, rows[s, :count], table.facts[s], table.rules, table.tiles, table.memo[s]
            )
            for i in range(count):
                features[s, CALL] += crowd * of_call[i]
    held[resources:] = 0.0
    for v in range(table.operators.shape[0]):
        b, s = int(table.operators[v, O_LAYER]), int(table.operators[v, O_SPAN])
        home, times = B_BUSY + int(table.operators[v, O_HOME]), runs[b]
        compute, stream = 0.0, base[v, tokens, B_FLOOR]
        for column in range(B_COMPUTE, base.shape[2]):
            value = base[v, tokens, column]
            for i in range(slopes.shape[2]):
                value += slopes[v, column - B_COMPUTE, i] * features[s, i]
            value = positive(value)
            if column == B_JOULES:
                joules += times * value
                continue
            if column == B_COMPUTE:
                value += features[s, CALL]
                compute = value
            elif column == home:
                value = min(value, max(compute, value * table.operators[v, O_EFFICIENCY]))
            if column >= B_BUSY:
                held[column - B_BUSY] += times * value
            stream = max(stream, value)
        lasts = base[v, tokens, B_LATENCY] + stream
        held[int(table.operators[v, O_UNIT])] += times * lasts
        held[resources + b] += lasts
    if table.lanes.shape[0] > 0:
        joules += _lanes(table, runs, batch, total)
    for b in range(runs.shape[0]):
        around = table.paths[b, tokens, AROUND] + held[resources + b]
        seconds += runs[b] * max(table.paths[b, tokens, BESIDE], around)
    return seconds, joules


@register_jitable
def step_cost(table: StepTable, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the seconds of an iteration and the dynamic joules of all devices.

    Args:
        table: `StepPrices.table`.
        batch: What is computed.
        busy: Busy seconds of every resource are added to it, in the order of
            `StepPrices.resources`, (resources,). If it is longer, bytes of `TRAFFIC` too.
    Raises:
        ValueError: If the iteration is empty, or has more tokens or sequences than the table.
    """
    fixed, head, held, runs = table.fixed, table.head, table.busy, table.runs
    total, sequences = tokens_of(batch), heads_of(batch)
    tokens = int(total)
    if tokens <= 0 or tokens >= fixed.shape[0] or sequences >= head.shape[0]:
        raise ValueError("an iteration has no token, or more tokens or sequences than its table")
    resources = held.shape[0] - runs.shape[0]
    for r in range(resources):
        held[r] = fixed[tokens, BUSY + r] + head[sequences, BUSY + r]
    for r in range(resources, busy.shape[0]):
        busy[r] += fixed[tokens, BUSY + r] + head[sequences, BUSY + r]
    seconds, joules = pieces_cost(table, runs, batch, total)
    seconds += fixed[tokens, SECONDS] + head[sequences, SECONDS]
    joules += fixed[tokens, JOULES] + head[sequences, JOULES]
    seconds = max(seconds, table.host)
    forget(table.masks)
    for r in range(resources):
        seconds = max(seconds, held[r])
        busy[r] += held[r]
    return float(seconds), float(joules)
