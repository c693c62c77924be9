"""Planning a step in the compiled serving loop with guesses, as `Continuous` does.

What is the same without guesses (admission, blocks, the end of a step) is shared with that loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.blocks import know, needed, take
from opbyte.sim.serving.compiled.gaps import catch_up, miss_behind
from opbyte.sim.serving.compiled.plan import note, room
from opbyte.sim.serving.compiled.state import (
    AT_ONCE,
    COMPUTED,
    HELD,
    KNOWN,
    LATER,
    RUNNING,
    SAMPLED,
    STACKED,
    Ints,
    State,
    Step,
)
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import attend
from opbyte.sim.serving.prices.step import step_cost
from opbyte.sim.serving.speculation import FIRST, GOLDEN, SECOND

_GOLDEN, _FIRST, _SECOND = np.uint64(GOLDEN), np.uint64(FIRST), np.uint64(SECOND)
_27, _30, _31, _11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)


@register_jitable
def _mixed(x: Any) -> Any:
    x = x + _GOLDEN
    x = (x ^ (x >> _30)) * _FIRST
    x = (x ^ (x >> _27)) * _SECOND
    return x ^ (x >> _31)


@register_jitable
def drawn_at(seed: Any, request: int, position: int) -> float:
    """Return `speculation.drawn`; compiled only, for its sums run over."""
    x = _mixed(_mixed(_mixed(np.uint64(seed)) ^ np.uint64(request)) ^ np.uint64(position))
    return float(x >> _11) * 2.0**-53


class Ahead(NamedTuple):
    """Guesses, and what the passes of a draft read in the step that is planned.

    Attributes:
        widths, chances: As in `Guesses`, (depths,).
        rows: Row of the trace of each request, which its draws depend on, (requests,).
        behind: Tokens that the draft has not read of those that the model has, (requests,).
        new, past: Of the first pass, of sequences with several tokens, (sequences,).
        depth, at: Depths that a sequence guesses, and its past before them, (sequences,).
        sums: Pieces, decodes and their context of the first pass; sequences that guess; logits
            beyond one of each sequence; decode steps of requests, and their tokens, (7,).
        masks: `StepTable.masks` of the draft: what decodes of its next pass attend to.
    """

    widths: npt.NDArray[np.int64]
    chances: Array
    rows: npt.NDArray[np.int64]
    behind: npt.NDArray[np.int64]
    new: Array
    past: Array
    depth: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    sums: npt.NDArray[np.int64]
    masks: Array


@register_jitable
def _read_first(g: Ahead, new: int, past: int) -> None:
    """Put tokens of a sequence into the draft's first pass."""
    if new == 1:
        g.sums[1] += 1
        g.sums[2] += past + 1
        attend(g.masks, float(past + 1))
    else:
        g.new[g.sums[0]], g.past[g.sums[0]] = new, past
        g.sums[0] += 1


@register_jitable
def _verify(
    s: State, f: Step, g: Ahead, r: int, new: int, depth: int, produced: int, seed: Any
) -> None:
    """Put a request's next token and its guesses into the step that is planned."""
    computed, sampled, held = s.requests[COMPUTED, r], s.requests[SAMPLED, r], 0
    while held < depth and drawn_at(seed, g.rows[r], sampled + held) < g.chances[held]:
        held += 1
    got = min(held + 1, produced - sampled)
    s.requests[COMPUTED, r], s.requests[SAMPLED, r] = computed + got, sampled + got
    f.new[f.sums[0]], f.past[f.sums[0]] = new, computed
    f.sums[0] += 1
    f.sums[LATER] += 1
    f.sums[AT_ONCE] += got - 1
    catch_up(s, f, r)
    if sampled + got == produced:
        f.marked[0, f.marks[0]] = r
        f.marks[0] += 1
    _read_first(g, 1 + g.behind[r], computed - g.behind[r])
    g.behind[r] = got > depth
    g.depth[g.sums[3]], g.at[g.sums[3]] = depth, computed + 1
    g.sums[3] += 1
    g.sums[4] += new - 1
    g.sums[5] += 1
    g.sums[6] += got


@register_jitable
def plan_guessing(
    s: State,
    f: Step,
    g: Ahead,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    seed: Any,
) -> int:
    """Give running requests their next tokens and guesses; return what is left of the budget."""
    budget, size, remember, context, at = limits[1], limits[4], limits[5], limits[9], 0
    while budget > 0 and at < s.counts[RUNNING]:
        r = s.running[at]
        at += 1
        computed, sampled = s.requests[COMPUTED, r], s.requests[SAMPLED, r]
        left = given[r] + sampled - computed
        new, depth = min(left, budget), 0
        if sampled > 0 and left == 1:
            most = g.widths.shape[0]
            if context > 0:
                most = min(most, context - given[r] - sampled)
            while depth < most and new + g.widths[depth] <= budget:
                new += g.widths[depth]
                depth += 1
        need = needed(s, computed + new, size) - s.requests[HELD, r]
        lost = room(s, produced, r, need, remember)
        f.lost[0] += abs(lost)
        for i in range(abs(lost)):
            g.behind[s.stack[s.counts[STACKED] - 1 - i]] = 0
        if lost < 0:
            break
        if need > 0:
            take(s, r, need)
        if depth > 0:
            _verify(s, f, g, r, new, depth, produced[r], seed)
        else:
            _read_first(g, new + g.behind[r], computed - g.behind[r])
            g.behind[r] = 0
            note(s, f, 0, r, new, given[r] + sampled, produced[r])
            got = s.requests[SAMPLED, r] - sampled
            if sampled > 0:
                g.sums[5] += got
                g.sums[6] += got
        if remember and s.requests[COMPUTED, r] // size > s.requests[KNOWN, r]:
            know(s, r, s.requests[COMPUTED, r] // size)
        budget -= new
    miss_behind(s, at, produced)
    return int(budget)


@register_jitable
def read_admitted(
    s: State,
    f: Step,
    g: Ahead,
    given: Ints,
    before: int,
    pieces: int,
    decodes: int,
    context: int,
) -> None:
    """Let the draft read what requests begin with that were admitted.

    Args:
        before: Requests that ran before.
        pieces, decodes, context: Of the step that is planned, before.
    """
    for i in range(pieces, f.sums[0]):
        _read_first(g, int(f.new[i]), int(f.past[i]))
    g.sums[1] += f.sums[1] - decodes
    g.sums[2] += f.sums[2] - context
    for i in range(before, s.counts[RUNNING]):
        r = s.running[i]
        sampled, computed = s.requests[SAMPLED, r], s.requests[COMPUTED, r]
        # Pieces are in the order of admission; who has none of them computes one token.
        if pieces < f.sums[0] and f.past[pieces] + f.new[pieces] == computed:
            pieces += 1
        else:
            attend(g.masks, float(computed))
        # Who lost his blocks and has computed all again gets another token.
        if sampled > 1 and computed == given[r] + sampled - 1:
            g.sums[5] += 1
            g.sums[6] += 1


@register_jitable
def draft_cost(f: Step, g: Ahead, table: Any, busy: Array) -> tuple[float, float]:
    """Return the seconds and joules of a draft's passes for the step that is planned."""
    batch = Batch(g.new, g.past, g.sums[0], float(g.sums[1]), float(g.sums[2]), 0.0, 0, 0)
    seconds, joules = step_cost(table, batch, busy)
    read = 0
    for depth in range(1, g.widths.shape[0]):
        width = g.widths[depth - 1]
        rows = context = 0
        for i in range(g.sums[3]):
            if g.depth[i] > depth:
                f.new[rows], f.past[rows] = width, g.at[i] + read
                rows, context = rows + 1, context + g.at[i] + read + 1
                if width == 1:
                    attend(g.masks, float(g.at[i] + read + 1))
        if rows == 0:
            break
        if width == 1:
            batch = Batch(f.new, f.past, 0, float(rows), float(context), 0.0, 0, 0)
        else:
            logits = float(rows * (width - 1))
            batch = Batch(f.new, f.past, rows, 0.0, 0.0, logits, 0, 0)
        more = step_cost(table, batch, busy)
        seconds, joules = seconds + more[0], joules + more[1]
        read += width
    return seconds, joules
