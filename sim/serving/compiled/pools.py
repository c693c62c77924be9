"""Prefill and decode on engines of their own as one compiled loop: the twin of `Pools`.

What happens next, of all that can touch more than one engine, happens next: requests and caches
come, steps of engines that read end, and those of engines that answer and have caches waiting for
blocks. Every other engine that answers goes on alone until somebody needs to know about it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.clock import COMES, ENDS, PLANS
from opbyte.sim.serving.compiled.blocks import drop, give, needed, take
from opbyte.sim.serving.compiled.loop import fill
from opbyte.sim.serving.compiled.moves import Link
from opbyte.sim.serving.compiled.pool import (
    FETCHED,
    GIVEN,
    LANDED,
    PRODUCED,
    REQUEST,
    ROWS,
    Asked,
    Pool,
    add,
    chosen,
    ends,
    full,
    lands,
    poke,
    unanswered,
)
from opbyte.sim.serving.compiled.queue import Queue
from opbyte.sim.serving.compiled.several import state_at, steps_at
from opbyte.sim.serving.compiled.state import (
    ARRIVED,
    CALM,
    COMPUTED,
    DONE,
    FLYING,
    FREE,
    FREE_AT,
    HEAD,
    HELD,
    LATE,
    PREEMPTED,
    RUNNING,
    SAMPLED,
    SINCE,
    STACKED,
    TRIED,
    WAVE,
)
from opbyte.sim.serving.compiled.steps import decode_on, end_step, record
from opbyte.sim.serving.compiled.wire import Way, carry

#: What happens next.
NOTHING, REQUEST_COMES, CACHE_COMES, READS, ANSWERS = range(5)


class Rules(NamedTuple):
    """What all engines have in common.

    Attributes:
        limits, q, t, table: As for `serve_loop`; requests are tried in the order in which they come
            and nothing goes to a tier below.
        sizes: Bytes of a block, and of the state that a sequence has whatever its length, (2,).
        least: Routers choose who has the fewest requests (1), or in turn (0).
    """

    limits: npt.NDArray[np.int64]
    q: Queue
    t: Link
    table: Any
    sizes: Array
    least: int


@register_jitable
def pool_loop(readers: Pool, decoders: Pool, w: Way, a: Asked, rules: Rules) -> bool:
    """Serve requests that go from pool to pool.

    Returns:
        Whether all are served; else an engine needs room for more rows, and it goes on from there.
    """
    n, spare = a.arrival.shape[0], rules.limits[0] + 1
    while not (full(readers, spare) or full(decoders, spare)):
        what, i, now, until = following(readers, decoders, a)
        if what == REQUEST_COMES:
            read(readers, a, a.place[0], rules)
            a.place[0] += 1
        elif what == CACHE_COMES:
            go_on(decoders, w, a, rules, i, now, -np.inf)
            land(readers, decoders, a, i, now)
        elif what == READS:
            read_on(readers, decoders, w, a, rules, i, now)
        elif what == ANSWERS:
            go_on(decoders, w, a, rules, i, until, now)
        else:
            for j in range(decoders.counts.shape[0]):
                go_on(decoders, w, a, rules, j, np.inf, -np.inf)
            if a.place[0] < n or unanswered(readers) or unanswered(decoders):
                raise RuntimeError("requests wait that no step can take")
            return True
    return False


@register_jitable
def following(readers: Pool, decoders: Pool, a: Asked) -> tuple[int, int, float, float]:
    """Return what happens next, to which engine and when, and when something else happens.

    What comes is before the ends of steps of the same moment, those in the order of engines, and
    plans are behind.
    """
    what, who, order, when, other = NOTHING, 0, COMES, np.inf, np.inf
    if a.place[0] < a.arrival.shape[0]:
        what, when = REQUEST_COMES, a.arrival[a.place[0]]
    for j in range(decoders.counts.shape[0]):
        soon = lands(decoders, j)
        if soon < when:
            what, who, order, when, other = CACHE_COMES, j, COMES, soon, when
        else:
            other = min(other, soon)
    for i in range(readers.counts.shape[0] + decoders.counts.shape[0]):
        reads = i < readers.counts.shape[0]
        p, j = (readers, i) if reads else (decoders, i - readers.counts.shape[0])
        if not reads and p.counts[j, ROWS] == p.counts[j, FETCHED]:
            continue
        end, due = ends(p, j), p.due[j]
        soon, kind = min(end, due), ENDS if end <= due else PLANS
        if soon < when or (soon == when and kind < order):
            what, who, order = READS if reads else ANSWERS, j, kind
            when, other = soon, when
        else:
            other = min(other, soon)
    return what, who, when, other


@register_jitable
def plan(p: Pool, i: int, rules: Rules, now: float) -> None:
    """Plan as many steps of an engine as may be under way."""
    s, f = state_at(p.state, i), steps_at(p.steps, i)
    head = s.place[HEAD]
    s.place[TRIED], s.place[FLYING], s.place[CALM], s.tally[FREE_AT] = fill(
        s, f, rules.q, rules.t, p.rows[i, GIVEN], p.rows[i, PRODUCED], rules.limits, rules.table,
        p.busy[i], p.drawn[i], s.place[ARRIVED], s.place[TRIED], now, s.tally[FREE_AT], head,
        s.place[FLYING], s.place[CALM],
    )  # fmt: skip
    p.due[i] = np.inf


@register_jitable
def land_step(p: Pool, i: int) -> int:
    """Take the step of an engine that ends now from those under way; return which it is."""
    slot = p.state.place[i, HEAD]
    p.state.place[i, HEAD] = (slot + 1) % p.steps.end.shape[1]
    p.state.place[i, FLYING] -= 1
    return int(slot)


# -- reading ---------------------------------------------------------------------------------------


@register_jitable
def read(readers: Pool, a: Asked, r: int, rules: Rules) -> None:
    """Let a prompt be read for the first token of its answer."""
    i = chosen(readers, rules.least)
    a.reader[r], a.row[r] = i, add(readers, i, a.given[r], 1, r)
    readers.state.place[i, ARRIVED] += 1
    poke(readers, i, a.arrival[r])


@register_jitable
def read_on(
    readers: Pool, decoders: Pool, w: Way, a: Asked, rules: Rules, i: int, now: float
) -> None:
    """Let happen what an engine that reads does now: a step ends, or one is planned."""
    if ends(readers, i) == now:
        s, f = state_at(readers.state, i), steps_at(readers.steps, i)
        slot = land_step(readers, i)
        for k in range(f.marks[slot]):
            was_read(readers, decoders, w, a, rules, i, f.marked[slot, k], now)
        record(s, f, slot, s.place[ARRIVED] - s.place[TRIED])
    plan(readers, i, rules, now)


@register_jitable
def was_read(
    readers: Pool,
    decoders: Pool,
    w: Way,
    a: Asked,
    rules: Rules,
    i: int,
    row: int,
    now: float,
) -> None:
    """Hand out the token that a prefill gives, and send the request on.

    Nobody loses blocks in between: prompts that began before have all their tokens by then.
    """
    s, r = state_at(readers.state, i), readers.rows[i, REQUEST, row]
    a.times[0, r], a.times[1, r] = s.times[0, row], now
    a.preempted[r] = s.requests[PREEMPTED, row]
    s.place[DONE] += 1
    if s.requests[HELD, row] == 0:
        raise RuntimeError("a prompt has lost its blocks while its token was under way")
    drop(s, row)
    if a.produced[r] == 1:
        a.times[2, r] = now
        give(s, row, 0)
    else:
        send(decoders, w, a, rules, r, now)


# -- on the way ------------------------------------------------------------------------------------


@register_jitable
def send(decoders: Pool, w: Way, a: Asked, rules: Rules, r: int, now: float) -> None:
    """Queue at an engine that goes on from here."""
    if rules.least:
        for j in range(decoders.counts.shape[0]):
            go_on(decoders, w, a, rules, j, now, -np.inf)
    j = chosen(decoders, rules.least)
    go_on(decoders, w, a, rules, j, now, -np.inf)
    add(decoders, j, a.given[r], a.produced[r], r)
    a.decoder[r] = j
    fetch(decoders, w, a, rules, j, now)


@register_jitable
def fetch(decoders: Pool, w: Way, a: Asked, rules: Rules, j: int, now: float) -> None:
    """Start the transfers that an engine has blocks for; who lost its blocks there is first."""
    s, counts, size = state_at(decoders.state, j), decoders.counts[j], rules.limits[4]
    while counts[FETCHED] < counts[ROWS] and s.counts[STACKED] == 0:
        row = counts[FETCHED]
        r = decoders.rows[j, REQUEST, row]
        need = needed(s, a.given[r] + 1, size)
        if need > s.counts[FREE]:
            return
        if s.counts[RUNNING] + counts[FETCHED] - counts[LANDED] >= rules.limits[0]:
            return
        take(s, row, need)
        # The next token is not computed: it has a place, and nothing to send.
        sent = needed(s, a.given[r], size) * rules.sizes[0] + rules.sizes[1]
        a.moved[r] += sent
        decoders.comes[j, row] = carry(w, now, a.reader[r], j, sent)
        counts[FETCHED] += 1


@register_jitable
def land(readers: Pool, decoders: Pool, a: Asked, j: int, now: float) -> None:
    """Let a request go on where its cache has come to."""
    s, row = state_at(decoders.state, j), decoders.counts[j, LANDED]
    decoders.counts[j, LANDED] += 1
    r = decoders.rows[j, REQUEST, row]
    give(state_at(readers.state, a.reader[r]), a.row[r], 0)
    poke(readers, a.reader[r], now)
    s.requests[SAMPLED, row], s.requests[COMPUTED, row] = 1, a.given[r]
    s.times[0, row], s.times[1, row] = a.times[0, r], a.times[1, r]
    # Its next token does not follow one of the step before.
    s.times[SINCE, row] = a.times[1, r]
    s.counts[LATE] += 1
    # A wave of prompts stays behind all others.
    at = s.counts[RUNNING]
    for _ in range(s.counts[WAVE]):
        s.running[at] = s.running[at - 1]
        at -= 1
    s.running[at] = row
    s.counts[RUNNING] += 1
    s.place[CALM] = 0
    poke(decoders, j, now)


# -- answering -------------------------------------------------------------------------------------


@register_jitable
def go_on(
    decoders: Pool, w: Way, a: Asked, rules: Rules, j: int, until: float, upto: float
) -> None:
    """Let an engine that answers go on alone.

    Args:
        until: Seconds; what happens then or later is left, but for ..
        upto: .. what happens by then, seconds.
    """
    s, f = state_at(decoders.state, j), steps_at(decoders.steps, j)
    depth = f.end.shape[0]
    while True:
        end, stop = ends(decoders, j), min(until, lands(decoders, j))
        now = min(end, decoders.due[j])
        if now >= stop and now > upto:
            return
        if now == np.inf:
            return
        if end == now:
            slot = land_step(decoders, j)
            s.place[DONE] += end_step(s, f, slot, decoders.rows[j, PRODUCED], 0)
            fetch(decoders, w, a, rules, j, now)
        plan(decoders, j, rules, now)
        if s.place[CALM] >= depth and s.place[FLYING] == depth:
            head, _ = decode_on(
                s, f, decoders.rows[j, GIVEN], decoders.rows[j, PRODUCED], decoders.comes[j, :0],
                rules.limits, rules.table, decoders.busy[j], decoders.drawn[j], s.place[HEAD], 0, 0,
                min(until, lands(decoders, j)),
            )  # fmt: skip
            s.place[HEAD], s.place[CALM] = head, 0
            s.tally[FREE_AT] = f.end[(head + depth - 1) % depth]
