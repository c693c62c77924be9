"""Continuous batching that verifies guesses, as a compiled loop: the twin of `Continuous`.

Steps are never planned ahead, and a step gives a request as many tokens as are drawn, so that this
loop is plainer than `compiled.serve_loop`; what both do alike they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.blocks import Growth
from opbyte.sim.serving.compiled.gaps import count_gaps
from opbyte.sim.serving.compiled.guess_plan import Ahead, draft_cost, plan_guessing, read_admitted
from opbyte.sim.serving.compiled.loop import Served, loop_limits
from opbyte.sim.serving.compiled.moves import new_link
from opbyte.sim.serving.compiled.plan import plan_waiting
from opbyte.sim.serving.compiled.prefixes import Prefixes
from opbyte.sim.serving.compiled.queue import Queue, new_queue
from opbyte.sim.serving.compiled.state import (
    RUNNING,
    Ints,
    State,
    Step,
    new_state,
    new_steps,
)
from opbyte.sim.serving.compiled.steps import end_step, weigh
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import TRAFFIC, forget
from opbyte.sim.serving.prices.step import Prices, masks_of, step_cost
from opbyte.sim.serving.schedulers import Limits
from opbyte.sim.serving.speculation import Guesses, check_guessing
from opbyte.sim.serving.stamped import compiled


@register_jitable
def guess_loop(
    s: State,
    f: Step,
    q: Queue,
    g: Ahead,
    arrival: Array,
    given: Ints,
    produced: Ints,
    limits: npt.NDArray[np.int64],
    seed: Any,
    table: Any,
    busy: Array,
    draft: Any,
    draft_busy: Array,
    totals: Array,
) -> None:
    """Serve all requests; times, series and counters are set in the state.

    Args:
        limits: As in `serve_loop`; then the longest context, 0 for any, and whether a draft's
            passes are priced (0 or 1).
        table, busy: Prices of the model, and busy seconds of its resources.
        draft, draft_busy: The same of the draft.
        totals: As `drawn` of `serve_loop`, (2,).
    """
    n, done, arrived, tried, now = arrival.shape[0], 0, 0, 0, 0.0
    while done < n:
        while arrived < n and arrival[arrived] <= now:
            arrived += 1
        f.sums[:] = 0
        g.sums[:5] = 0
        forget(f.masks)
        forget(g.masks)
        f.marks[0] = f.lost[0] = 0
        budget = plan_guessing(s, f, g, given, produced, limits, seed)
        if f.lost[0] == 0:
            before = s.counts[RUNNING]
            pieces, decodes, context = f.sums[0], f.sums[1], f.sums[2]
            budget, tried = plan_waiting(
                s, f, q, 0, given, produced, limits, budget, arrived, tried, now
            )
            read_admitted(s, f, g, given, before, pieces, decodes, context)
        if budget == limits[1]:
            if arrived == n:
                raise RuntimeError("requests wait that no step can take")
            now = arrival[arrived]
            continue
        f.tokens[0] = limits[1] - budget
        batch = Batch(
            f.new, f.past, f.sums[0], float(f.sums[1]), float(f.sums[2]), float(g.sums[4]), 0, 0
        )
        seconds, joules = step_cost(table, batch, busy)
        if limits[10] > 0:
            more = draft_cost(f, g, draft, draft_busy)
            seconds, joules = seconds + more[0], joules + more[1]
        weigh(s, seconds, joules, arrived - tried, totals)
        now += seconds
        count_gaps(s, f, now)
        f.end[0] = now
        while arrived < n and arrival[arrived] <= now:
            arrived += 1
        done += end_step(s, f, 0, produced, arrived - tried)


@dataclass(frozen=True)
class Guessed:
    """What happened.

    Attributes:
        served: As without guesses.
        draft_busy: Busy seconds of each resource of the draft's prices.
        decodes: Decode steps of requests.
        tokens: Tokens that came out of them.
    """

    served: Served
    draft_busy: Array
    decodes: int
    tokens: int

    @property
    def tokens_per_decode(self) -> float:
        """Return the mean tokens that a request gets from a step after its first token."""
        return self.tokens / self.decodes if self.decodes else 1.0


def serve_guessing(
    arrival: Array,
    given: npt.NDArray[np.int64],
    produced: npt.NDArray[np.int64],
    limits: Limits,
    prices: Prices,
    draft: Prices | None = None,
    *,
    index: npt.NDArray[np.int64],
    blocks: int,
    block_tokens: int,
    remember: bool = True,
    rows: int = 20_000,
    growth: Sequence[Growth] = (),
    prefixes: Prefixes | None = None,
) -> Guessed:
    """Serve requests by continuous batching with the guesses of the limits.

    Args:
        limits: With guesses, not together.
        draft: Prices of the model that guesses; None where guesses cost nothing.
        index: Row of the trace of each request, (requests,).
        arrival, given, produced, blocks, block_tokens, remember, growth, rows, prefixes:
            As in `serve_compiled`.
    """
    guesses, n, sequences = limits.guesses, len(arrival), limits.max_sequences
    assert isinstance(guesses, Guesses)
    assert not limits.together
    check_guessing(prices, draft, limits)
    state = new_state(n, blocks, sequences, rows, growth=growth, prefixes=prefixes)
    priced = draft or prices
    busy, draft_busy, totals = (
        np.zeros(len(prices.resources) + len(TRAFFIC)), np.zeros(len(priced.resources)),
        np.zeros(2),
    )  # fmt: skip
    numbers = np.append(
        loop_limits(limits, block_tokens, remember=remember), [limits.context, draft is not None]
    )
    queue = new_queue("continuous", arrival, given, limits, None)
    ahead = Ahead(
        np.array(guesses.widths, np.int64), np.array(guesses.chances), index.astype(np.int64),
        np.zeros(n, np.int64), np.zeros(sequences), np.zeros(sequences),
        np.zeros(sequences, np.int64), np.zeros(sequences, np.int64), np.zeros(7, np.int64),
        masks_of(draft),
    )  # fmt: skip
    compiled(guess_loop)(
        state, new_steps(1, sequences, masks_of(prices)), queue, ahead,
        np.array(arrival, np.float64), given.astype(np.int32), produced.astype(np.int32), numbers,
        np.uint64(guesses.seed & (2**64 - 1)), prices.table, busy, priced.table, draft_busy, totals,
    )  # fmt: skip
    served = Served.of(state, busy, totals, new_link(0, None, block_tokens))
    return Guessed(served, draft_busy, int(ahead.sums[5]), int(ahead.sums[6]))
