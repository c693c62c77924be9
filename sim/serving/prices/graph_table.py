"""The price of an iteration whose prompts and decodes have operators of their own.

Where decode attention runs on other devices or units than all else, an iteration has operators of
all its tokens, of its prompts and of its decodes. Those that it has make up the graph of each
layer, for decodes alone, prompts alone or both:

    operator = latency + max(compute, floor, busiest port)
    compute, busy, joules = base(tokens that it is of) + slopes . (query-key pairs, ...)
    layer    = max(longest path through its operators, ports that share a memory's cells)
    seconds  = max(sum of layers and the rest, busiest resource, host)

What the next layer does not wait for (`overlap: kv_write`) is no part of a layer's path; iterations
with prompts take as long as `sim/behind.py` says. An iteration ends with its last write.

With n batches that take turns each has a whole share of the decodes, one of the smallest the
prompts. Steps follow each other without end, and what a resource does for all batches counts:

    seconds  = max(longest batch, sum over batches of a resource's seconds / instances, host)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu.attention import NEW, PAIRS, READS, SEQUENCES, call_seconds
from opbyte.sim.serving.prices.batch import Batch, decodes_of, heads_of, tokens_of
from opbyte.sim.serving.prices.layout import (
    B_BUSY,
    B_COMPUTE,
    B_FLOOR,
    B_JOULES,
    B_LATENCY,
    BUSY,
    CALL,
    CHUNK,
    CROWD,
    JOULES,
    MASK,
    SCAN_BLOCK,
    SECONDS,
    WINDOW,
    attended_of,
    forget,
    pairs_of,
    positive,
    reads_of,
)

#: Whose an operator is: of all tokens, of prompts, of decodes.
ALL, PROMPTS, DECODES = range(3)
# Kinds of iterations, in the order of `GraphTable.starts`.
WITHOUT_PROMPTS, WITHOUT_DECODES, BOTH = range(3)
# Columns of `operators`.
G_LAYER, G_WHOSE, G_UNIT, G_SPAN, G_HOME, G_EFFICIENCY, G_PAST = range(7)
# Columns of `nodes`.
N_LAYER, N_OPERATOR, N_COLUMN, N_LEFT, N_BEFORE = range(5)
#: Of `FEATURES` of prompts or decodes: tokens of the others, in place of queries.
OTHERS = 5
#: Of those of decodes: tokens that one of them attends to on average, in place of pairs.
MEAN = 0
#: Column of `GraphTable.spans`: whose the attention is; the first four are those of `StepTable`.
S_WHOSE = 4


class GraphTable(NamedTuple):
    """Arrays of one model on one machine; `graph.graph_table` makes them.

    Iterations have one of two sets of operators of all tokens: with decodes, or of prompts alone.
    Calls write to the scratch arrays: threads need a table each.

    Attributes:
        fixed: By set and tokens: path of layers without operators that depend on the pieces,
            joules, busy seconds of each resource, bytes of `TRAFFIC`, (2, tokens + 1, columns).
        head: By sequences: the same of the LM head, (sequences + 1, columns).
        durations: Of the other layers' operators of all tokens, (2, tokens + 1, operators).
        starts: First node of each graph (decodes, prompts, both), and their number, (4,).
        nodes: Layer, operator that depends on the pieces or -1, else column of `durations`, whether
            the next layer does not wait for it, first of what it waits for, (nodes + 1, 5).
        before: Nodes that nodes wait for, (edges,).
        held: What operators of all tokens keep busy in one run of each layer,
            (2, layers, tokens + 1, resources).
        runs: Of each layer, (layers,).
        operators: Layer, whose, resource that is its unit (-1 for a transfer), span, port that is
            busy no longer than its kernel (-1 without), that port's efficiency, and latency that
            it has only where a prompt has a past, (operators, 7).
        base, slopes: As in `StepTable`, `base` over the tokens that an operator is of.
        spans: As in `StepTable`, and whose, (spans, 5).
        masks, rows, facts, rules, tiles, host, memo, features, seconds: As in `StepTable`.
        busy: Scratch, (resources,).
        used: Scratch, what the operators that depend on the pieces keep busy in one run of each
            layer, (layers, resources).
        lasts: Scratch, seconds of each operator, (operators,).
        ends: Scratch, end of each node, (nodes,).
        after: Scratch, longest path behind each node in its layer, (nodes,).
        layers: Scratch, path of each layer, (layers,).
        cells: Resources that are cells of memories whose ports share them, (memories,).
        shares: Seconds of such cells for a second of each port, (memories, ports).
        sums: Scratch, seconds of such cells, (memories,).
        turns: Instances of each resource that batches use side by side, (resources,).
        batches: How many take turns.
    """

    fixed: Array
    head: Array
    durations: Array
    starts: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    held: Array
    runs: Array
    operators: Array
    base: Array
    slopes: Array
    spans: Array
    masks: Array
    rows: Array
    facts: Array
    rules: Array
    tiles: Array
    host: float
    memo: Array
    features: Array
    seconds: Array
    busy: Array
    used: Array
    lasts: Array
    ends: Array
    after: Array
    layers: Array
    cells: npt.NDArray[np.int64]
    shares: Array
    sums: Array
    turns: Array
    batches: int


def alone(table: GraphTable) -> GraphTable:
    """Return the table of one batch, which takes no turns; scratch arrays are shared."""
    return table._replace(turns=np.ones_like(table.turns), batches=1)


@register_jitable
def _measure(
    table: GraphTable,
    s: int,
    batch: Batch,
    mean: float,
    total: float,
    others: float,
) -> None:
    """Write `FEATURES` of a span, and the seconds of its call.

    Args:
        mean: Tokens that a decode attends to.
        total: Tokens of the iteration that the span is of.
        others: All other tokens.
    """
    features, rows, span = table.features[s], table.rows[s], table.spans[s]
    new, past, pieces, decodes = batch.new, batch.past, batch.pieces, batch.decodes
    features[:] = 0.0
    count = 0
    if span[S_WHOSE] != DECODES:
        for i in range(pieces):
            pairs = pairs_of(new[i], past[i], span[WINDOW], span[CHUNK])
            reads = reads_of(new[i], past[i], span[WINDOW], span[CHUNK])
            block = min(new[i], SCAN_BLOCK)
            rows[i, SEQUENCES], rows[i, NEW] = 1.0, new[i]
            rows[i, READS], rows[i, PAIRS] = reads, pairs
            features[0] += pairs
            features[1] += reads
            features[6] += new[i] * block
            features[7] += new[i] / block
            features[8] += min(past[i], 1.0)
        features[2], count = pieces, pieces
    if span[S_WHOSE] != PROMPTS and decodes > 0.0:
        rows[count, SEQUENCES], rows[count, NEW] = decodes, 1.0
        rows[count, READS], rows[count, PAIRS] = mean, mean
        features[3], features[4] = decodes * mean, decodes
        features[9] = decodes * min(max(mean - 1.0, 0.0), 1.0)
        if span[S_WHOSE] == DECODES:
            features[MEAN] = mean
        count += 1
    features[OTHERS] = others if span[S_WHOSE] != ALL else total * count
    if span[CROWD] > 0.0 and count > 0:
        of_call = table.seconds[:count]
        call_seconds(of_call, rows[:count], table.facts[s], table.rules, table.tiles, table.memo[s])
        for i in range(count):
            features[CALL] += span[CROWD] * of_call[i]


@register_jitable
def _operator(table: GraphTable, v: int, tokens: int, has_past: bool) -> float:
    """Return the joules of all runs of an operator; write what it lasts, add what it uses."""
    base, slopes, facts = table.base[v, tokens], table.slopes[v], table.operators[v]
    layer = int(facts[G_LAYER])
    used, features = table.used[layer], table.features[int(facts[G_SPAN])]
    home = B_BUSY + int(facts[G_HOME]) if facts[G_HOME] >= 0.0 else -1
    stream, compute, joules = base[B_FLOOR], 0.0, 0.0
    table.sums[:] = 0.0
    for column in range(B_COMPUTE, base.shape[0]):
        value = base[column]
        for i in range(slopes.shape[1]):
            value += slopes[column - B_COMPUTE, i] * features[i]
        value = positive(value)
        if column == B_JOULES:
            joules = table.runs[layer] * value
            continue
        if column == B_COMPUTE:
            value += features[CALL]
            compute = value
        elif column == home:
            value = min(value, max(compute, value * facts[G_EFFICIENCY]))
        if column >= B_BUSY:
            used[column - B_BUSY] += value
            for c in range(table.cells.shape[0]):
                table.sums[c] += table.shares[c, column - B_BUSY] * value
        stream = max(stream, value)
    for c in range(table.cells.shape[0]):
        used[table.cells[c]] += table.sums[c]
        stream = max(stream, table.sums[c])
    latency = base[B_LATENCY] if has_past else base[B_LATENCY] - facts[G_PAST]
    table.lasts[v] = latency + stream
    if facts[G_UNIT] >= 0.0:
        used[int(facts[G_UNIT])] += table.lasts[v]
    return float(joules)


@register_jitable
def kind_of(batch: Batch) -> int:
    """Return the kind of an iteration."""
    if batch.pieces == 0:
        return WITHOUT_PROMPTS
    return BOTH if batch.decodes > 0.0 else WITHOUT_DECODES


@register_jitable
def start_of(table: GraphTable, n: int) -> float:
    """Return when a node starts in its layer, once those before it have their ends, seconds."""
    at = 0.0
    for e in range(table.nodes[n, N_BEFORE], table.nodes[n + 1, N_BEFORE]):
        at = max(at, table.ends[table.before[e]])
    return float(at)


@register_jitable
def _walk(table: GraphTable, kind: int, alone: int, tokens: int) -> tuple[float, float]:
    """Write the seconds of each layer: the longest path, or what ports that share cells take.

    Where the next layer does not wait for some operators, it is the path without these.

    Returns:
        What the last layer leaves behind, and the longest chain of what layers leave: see
        `sim/behind.py`.
    """
    table.layers[:] = 0.0
    left = False
    for n in range(table.starts[kind], table.starts[kind + 1]):
        at = start_of(table, n)
        if table.nodes[n, N_OPERATOR] >= 0:
            at += table.lasts[table.nodes[n, N_OPERATOR]]
        else:
            at += table.durations[alone, tokens, table.nodes[n, N_COLUMN]]
        table.ends[n] = at
        layer = table.nodes[n, N_LAYER]
        if table.nodes[n, N_LEFT] > 0:
            left = True
        else:
            table.layers[layer] = max(table.layers[layer], at)
    if left:
        return _left(table, kind)
    for b in range(table.layers.shape[0]):
        for c in table.cells:
            busy = table.used[b, c] + table.held[alone, b, tokens, c]
            table.layers[b] = max(table.layers[b], busy)
    return 0.0, 0.0


@register_jitable
def _left(table: GraphTable, kind: int) -> tuple[float, float]:
    """Return what the last layer leaves behind, and the longest chain of what layers leave."""
    late = longest = 0.0
    first, last = table.starts[kind], table.starts[kind + 1]
    table.after[first:last] = 0.0
    for n in range(last - 1, first - 1, -1):
        start, layer = start_of(table, n), table.nodes[n, N_LAYER]
        lasts = table.ends[n] - start
        for e in range(table.nodes[n, N_BEFORE], table.nodes[n + 1, N_BEFORE]):
            source = table.before[e]
            table.after[source] = max(table.after[source], table.after[n] + lasts)
        if table.nodes[n, N_LEFT] > 0:
            late = max(late, table.ends[n] - table.layers[layer])
            longest = max(longest, start + table.runs[layer] * lasts + table.after[n])
    return float(late), float(longest)


@register_jitable
def _of(whose: float, total: float, prompt: float) -> float:
    """Return the tokens that something is of."""
    if whose == PROMPTS:
        return prompt
    return total - prompt if whose == DECODES else total


@register_jitable
def batch_cost(
    table: GraphTable, batch: Batch, every: float, traffic: Array
) -> tuple[float, float]:
    """Return path and joules of one batch; add to `table.busy`.

    Args:
        batch: One of those that take turns; its context is that of the decodes of all.
        every: Decodes of all batches.
        traffic: Bytes of `TRAFFIC` are added to it, if it has room.
    """
    earlier, total, heads = 0.0, tokens_of(batch), heads_of(batch)
    for i in range(batch.pieces):
        earlier += batch.past[i]
    tokens, prompt = int(total), total - batch.decodes
    if tokens <= 0 or tokens >= table.fixed.shape[1] or heads >= table.head.shape[0]:
        raise ValueError("an iteration has no token, or more tokens or sequences than its table")
    kind = kind_of(batch)
    alone = 1 if kind == WITHOUT_DECODES else 0
    fixed, head, resources = table.fixed[alone, tokens], table.head[heads], table.busy.shape[0]
    for r in range(resources):
        table.busy[r] += fixed[BUSY + r] + head[BUSY + r]
    for r in range(traffic.shape[0]):
        traffic[r] += fixed[BUSY + resources + r] + head[BUSY + resources + r]
    seconds, joules = fixed[SECONDS] + head[SECONDS], fixed[JOULES] + head[JOULES]
    for s in range(table.spans.shape[0]):
        mean = 0.0
        if batch.decodes > 0.0:
            span = table.spans[s]
            mean = attended_of(
                table.masks, int(span[MASK]), every, batch.context, span[WINDOW], span[CHUNK]
            )
        of = _of(table.spans[s, S_WHOSE], total, prompt)
        _measure(table, s, batch, mean, of, total - of)
    table.used[:] = 0.0
    for v in range(table.operators.shape[0]):
        of = _of(table.operators[v, G_WHOSE], total, prompt)
        table.lasts[v] = 0.0
        if of > 0.0:
            joules += _operator(table, v, int(of), earlier > 0.0)
    late, chain = _walk(table, kind, alone, tokens)
    for b in range(table.runs.shape[0]):
        seconds += table.runs[b] * table.layers[b]
        for r in range(resources):
            table.busy[r] += table.runs[b] * table.used[b, r]
    return float(max(seconds + late, chain)), float(joules)


@register_jitable
def _with(b: Batch, decodes: float) -> Batch:
    """Return the same with so many decodes, which share the context of all."""
    return Batch(b.new, b.past, b.pieces, decodes, b.context, b.logits, b.group, b.groups)


@register_jitable
def graph_cost(table: GraphTable, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the seconds of an iteration and the dynamic joules of all devices: see `step_cost`.

    Raises:
        ValueError: If the iteration is empty, or has more tokens or sequences than the table.
    """
    held, batches = table.busy, table.batches
    decodes, resources = batch.decodes, held.shape[0]
    held[:] = 0.0
    traffic = busy[resources:]
    least = np.floor(decodes / batches)
    more, mixed = decodes - batches * least, 1 if batch.pieces > 0 or least > 0.0 else 0
    seconds = joules = 0.0
    if mixed > 0:
        seconds, joules = batch_cost(table, _with(batch, least), decodes, traffic)
    for turn in range(1, batches):
        size = least + 1.0 if turn <= more else least
        if size <= 0.0:
            continue
        one = _with(decodes_of(batch), size)
        path, energy = batch_cost(table, one, decodes, traffic)
        seconds, joules = max(seconds, path), joules + energy
    if batch.pieces == 0 and decodes <= 0.0:
        raise ValueError("an iteration has no token")
    forget(table.masks)
    seconds = max(seconds, table.host)
    for r in range(resources):
        used = held[r] / table.turns[r]
        seconds = max(seconds, used)
        busy[r] += used
    return float(seconds), float(joules)
