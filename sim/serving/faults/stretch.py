"""A compiled loop that is stopped in the middle: its step under way ends, or is lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.loop import Served, groups_of, loop_limits, serve_loop
from opbyte.sim.serving.compiled.moves import Link, new_link
from opbyte.sim.serving.compiled.queue import Queue, new_queue, order_of
from opbyte.sim.serving.compiled.state import (
    ARRIVED,
    ASKED,
    DONE,
    FLYING,
    FOUND,
    FREE,
    FREE_AT,
    HEAD,
    LATE,
    LATE_FROM,
    PLANNED,
    RUNNING,
    SAMPLED,
    SINCE,
    STACKED,
    TRIED,
    Ints,
    State,
    Step,
    new_state,
    new_steps,
)
from opbyte.sim.serving.compiled.steps import end_step
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.prices.step import flat_cost, masks_of
from opbyte.sim.serving.server import SERIES_ROWS, Server
from opbyte.sim.serving.stamped import compiled

#: Of a time: what tells the end of one step from that of the next.
_SLIGHTLY = 1e-12


class Stretch:
    """One compiled loop with one step ahead, from one change to the next.

    Attributes:
        arrival: When each request can begin here, seconds, (requests,).
        produced: Tokens of each answer, (requests,).
        planned: The state with the step under way planned, ..
        state: .. and that without it, if it was lost.
        ended: The step under way ended after the loop was stopped.
    """

    planned: State
    state: State

    def __init__(
        self,
        server: Server,
        arrival: Array,
        given: npt.NDArray[np.int64],
        produced: npt.NDArray[np.int64],
        times: Array,
        sampled: Ints,
        latest: Array,
    ) -> None:
        """Start an idle engine.

        Args:
            server: One without shared prefixes that serves in the order of arrival.
            given: Tokens of each prompt, (requests,).
            times: Scheduled, first and last token, seconds, negative before, (3, requests).
            sampled: Tokens that each has got before, (requests,).
            latest: When it got the last of them, seconds, (requests,).
        """
        self.server, self.arrival = server, np.array(arrival, np.float64)
        self.given, self.produced = given.astype(np.int32), produced.astype(np.int32)
        self._before = times, sampled, latest
        self.ended = False
        self._begin()

    def _begin(self) -> None:
        s, limits, prices = self.server.scheduling, self.server.limits, self.server.prices
        times, sampled, latest = self._before
        given = self.given.astype(np.int64)
        n = len(self.arrival)
        self.state = self.planned = new_state(
            n, self.server.blocks, limits.max_sequences, SERIES_ROWS, 0, groups_of(limits),
            self.server.growth,
        )  # fmt: skip
        self.state.times[:2] = times[:2]
        self.state.requests[SAMPLED] = sampled
        # Who has got tokens goes on with a gap since the last one.
        going = sampled > 0
        self.state.times[SINCE, going] = latest[going]
        self.state.counts[LATE] = going.sum()
        self.steps: Step = new_steps(1, limits.max_sequences, masks_of(prices))
        self.queue: Queue = new_queue(s.kind, self.arrival, given, limits, None)
        self.link: Link = new_link(0, None, s.block_tokens)
        self.busy, self.drawn = np.zeros(len(prices.resources) + len(TRAFFIC)), np.zeros(2)

    def run(self, until: float) -> None:
        """Go on to a moment; what happens then or later does not happen."""
        s = self.server.scheduling
        limits = loop_limits(
            self.server.limits, s.block_tokens, remember=s.prefix_cache,
            order=order_of(s.kind, shared=False),
        )  # fmt: skip
        compiled(serve_loop)(
            self.state, self.steps, self.queue, self.link, self.arrival, self.given, self.produced,
            limits, self.server.prices.table, self.busy, self.drawn, until,
        )  # fmt: skip

    @property
    def over(self) -> bool:
        """Return whether all have their last tokens."""
        return bool(self.state.place[DONE] == len(self.arrival))

    @property
    def flying(self) -> bool:
        """Return whether a step is under way."""
        return bool(self.state.place[FLYING])

    @property
    def end(self) -> float:
        """Return when the step under way ends, seconds."""
        return float(self.steps.end[self.state.place[HEAD]])

    def finish(self, late: int = 0) -> None:
        """Let the step under way end, and plan none.

        Args:
            late: Requests that have come since the loop was stopped.
        """
        self.ended, s = True, self.state
        arrived = int(np.searchsorted(self.arrival, self.end, "right"))
        waiting = arrived - int(s.place[TRIED]) + late
        s.place[DONE] += end_step(s, self.steps, int(s.place[HEAD]), self.produced, waiting)
        s.place[FLYING] = 0

    def cut(self, now: float) -> None:
        """Lose the step under way; what was executed of it stays counted."""
        planned, f, prices = self.state, self.steps, self.server.prices
        held = np.zeros(len(self.busy))
        batch = Batch(f.new, f.past, int(f.sums[0]), float(f.sums[1]), float(f.sums[2]), 0.0, 0, 0)
        seconds, joules = compiled(flat_cost)(prices.table, held, *batch)
        end = float(planned.tally[FREE_AT])
        share = min(1.0, max(0.0, (now - (end - seconds)) / seconds))
        waiting = int(planned.place[ARRIVED] - planned.place[TRIED] + planned.counts[STACKED])
        self._begin()
        self.run(end - seconds - _SLIGHTLY * end)
        if self.flying:
            self.finish()
            self.ended = False
        self.planned, state = planned, self.state
        self.busy += share * held
        self.drawn += share * joules, share * seconds * planned.counts[RUNNING]
        used_from = LATE_FROM + len(state.running)
        waiting_from = used_from + state.blocks.shape[1]
        used = state.blocks.shape[1] - 1 - planned.counts[FREE]
        state.tally[used_from + used] += share * seconds
        state.tally[waiting_from + waiting] += share * seconds
        state.counts[[ASKED, FOUND]] = planned.counts[[ASKED, FOUND]]

    @property
    def served(self) -> Served:
        """Return what happened."""
        return Served.of(self.state, self.busy, self.drawn, self.link)

    @property
    def sampled(self) -> Ints:
        """Return the tokens of its answer that each request has got, (requests,)."""
        sampled: Ints = self.state.requests[SAMPLED]
        return sampled

    @property
    def times(self) -> Array:
        """Return scheduled, first token, last token, seconds, negative before, (3, requests)."""
        last = np.where(self.sampled == self.produced, self.state.times[2], -1.0)
        return np.stack([self.planned.times[0], self.state.times[1], last])

    @property
    def latest(self) -> Array:
        """Return when each request got its last token, seconds, negative before, (requests,)."""
        since, planned = self.state.times[SINCE], self.state.tally[PLANNED]
        return np.where(since >= 0.0, since, np.where(self.sampled > 0, planned, -1.0))
