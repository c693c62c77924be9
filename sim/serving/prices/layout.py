"""Where the numbers of a table of iteration prices stand, and what masks let through."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.workloads.mamba_ops import SSD_BLOCK

# Columns of `fixed` and `head`; busy seconds of each resource follow, and the bytes of `TRAFFIC`.
SECONDS, JOULES, BUSY = range(3)
#: Tensor classes whose bytes are counted, of all devices; they depend on the tokens alone.
TRAFFIC = ("weight", "expert")
# Columns of `base`; busy seconds of each port follow. Slopes begin at B_COMPUTE.
B_LATENCY, B_FLOOR, B_COMPUTE, B_JOULES, B_BUSY = range(5)
# Columns of `paths`.
BESIDE, AROUND = range(2)
#: Tokens of a block of a state-space scan, which is quadratic inside.
SCAN_BLOCK = SSD_BLOCK
#: What the slopes of operators of all pieces multiply: query-key pairs, tokens read and number of
#: pieces of prompts; tokens that decodes attend to, and their number; tokens, once for each
#: segment, for each reads all queries; of scans, tokens times those of a block, blocks, pieces and
#: decodes that continue a state.
FEATURES = (
    "pairs", "reads", "pieces", "attended", "decodes", "queries",
    "squares", "blocks", "started", "going",
)  # fmt: skip
CALL = len(FEATURES)
#: What those of an operator of one segment (a piece, or all decodes) multiply: one; pairs, tokens
#: read, tokens; of scans as above; tokens of the iteration; one in the first segment.
LANE_FEATURES = (
    "one", "pairs", "reads", "tokens", "squares", "blocks", "started", "queries", "first",
)  # fmt: skip
# Columns of `lanes`; slopes of compute, joules and each port's busy seconds follow.
L_LAYER, L_UNIT, L_DECODES, L_LATENCY, L_WINDOW, L_CHUNK, L_MASK, L_SLOPES = range(8)
# Columns of `spans`.
WINDOW, CHUNK, CROWD, MASK = range(4)
# Columns of `masks`.
M_WINDOW, M_CHUNK, ATTENDED = range(3)
# Columns of `operators`.
O_LAYER, O_UNIT, O_SPAN, O_HOME, O_EFFICIENCY = range(5)


class StepTable(NamedTuple):
    """Arrays of one model on one machine; `prices.StepPrices` makes them.

    Calls write to the scratch arrays: threads need a table each.

    Attributes:
        fixed: By tokens: path, joules, busy seconds of each resource, bytes of `TRAFFIC`,
            (tokens + 1, 2 + resources + TRAFFIC).
        head: By sequences: the same of the LM head, (sequences + 1, 2 + resources + TRAFFIC).
        paths: By layer that has operators that depend on the pieces, and tokens: the path beside
            them, and that around them, (layers, tokens + 1, 2).
        runs: Of each of these layers, (layers,).
        base: By operator of all pieces, and tokens: latency, floor, compute, joules, busy seconds
            of each port, (operators, tokens + 1, 4 + ports).
        slopes: Of compute, joules and each port's busy seconds over the first `FEATURES`,
            (operators, 2 + ports, at most FEATURES).
        operators: Of each operator the layer, the resource that is its unit, the span that it
            attends over, the port that is busy no longer than the kernel (-1 without a kernel),
            and that port's efficiency, (operators, 5).
        spans: Window and chunk, 0 without; the devices that one unit serves where the span is a
            kernel call, else 0; its row of `masks`, -1 without, (spans, 4).
        masks: Distinct windows and chunks. Scratch in the last column: the tokens that the next
            step's decodes attend to under each, summed (`attend`), 0 where the caller knows their
            mean context alone. A step's price takes it, and leaves 0, (masks, 3).
        rows: Rows of each span's call, the constant columns set, (spans, rows, columns).
        facts: Of each span's call, (spans, FACTS).
        rules: Of the library, (RULES,).
        tiles: Of the library, (tiles, columns).
        lanes: Operators that each segment has of its own: layer, unit, whether the segment is the
            decodes, latency, window and chunk, row of `masks`; slopes of compute, joules and each
            port's busy seconds over `LANE_FEATURES`, (lanes, 7 + (2 + ports) * LANE_FEATURES).
        host: Seconds that the host needs for an iteration.
        memo: Scratch of each span's call, see `call_seconds`, (spans, tiles + 1, 4).
        features: Scratch, of each span, its call's seconds last, (spans, FEATURES + 1).
        seconds: Scratch, (rows,).
        busy: Scratch, of resources and then of the layers' paths, (resources + layers,).
    """

    fixed: Array
    head: Array
    paths: Array
    runs: Array
    base: Array
    slopes: Array
    operators: Array
    spans: Array
    masks: Array
    rows: Array
    facts: Array
    rules: Array
    tiles: Array
    lanes: Array
    host: float
    memo: Array
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
def attend(masks: Array, context: float) -> None:
    """Add what one more decode of the next step attends to under each of `StepTable.masks`.

    Args:
        context: Its tokens, the new one included.
    """
    for m in range(masks.shape[0]):
        seen = context
        if masks[m, M_CHUNK] > 0.0:
            seen = (context - 1.0) % masks[m, M_CHUNK] + 1.0
        if masks[m, M_WINDOW] > 0.0:
            seen = min(seen, masks[m, M_WINDOW])
        masks[m, ATTENDED] += seen


@register_jitable
def forget(masks: Array) -> None:
    """Let nothing be known of what the next step's decodes attend to."""
    for m in range(masks.shape[0]):
        masks[m, ATTENDED] = 0.0


@register_jitable
def attended_of(
    masks: Array, mask: int, decodes: float, context: float, window: float, chunk: float
) -> float:
    """Return the mean tokens that decodes attend to: as callers counted, or of the mean context.

    Args:
        mask: Row of `masks`, -1 for none.
        context: Tokens of all of them, summed.
    """
    if mask >= 0 and masks[mask, ATTENDED] > 0.0:
        return float(masks[mask, ATTENDED] / decodes)
    return pairs_of(1.0, context / decodes - 1.0, window, chunk)


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
def positive(value: float) -> float:
    """Return a value that is not below 0: a fit may undershoot; what is unknown stays NaN."""
    if value < 0.0:
        return 0.0
    return float(value)
