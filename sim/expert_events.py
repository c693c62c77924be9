"""Offloaded experts as they happen: a stream of operators and a stream of copies in SimPy."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from opbyte.core.ops import Array
from opbyte.sim.copies import copy_stretch, stretch_of
from opbyte.sim.engine import FairShared
from opbyte.sim.expert_blocks import Blocks
from opbyte.sim.result import PhaseRun

if TYPE_CHECKING:
    import pandas as pd

    from opbyte.sim.expert_offload import Experts

Process = Generator[simpy.Event, Any, None]
Trace = list[dict[str, Any]]


def play(
    run: PhaseRun, blocks: Blocks, experts: Experts, misses: Array, asked: Array
) -> tuple[Array, Array, pd.DataFrame, Trace]:
    """Play iterations one after the other.

    Copies and operators share the fast memory's port max-min fairly; each stretch of operators
    uses it as the whole phase does on average. The first iteration only fills the pipeline.

    Args:
        misses: Experts to copy, (iterations, blocks).
        asked: Experts that run, (iterations, blocks).
    Returns:
        Mean seconds of an iteration and of a layer with experts, each (1,); one row for each
        iteration (start, end, misses, waiting for copies); events for a timeline.
    """
    import pandas as pd

    stage = _Stage(run, blocks, experts, misses, asked)
    stage.env.process(stage.operators())
    stage.env.run()
    frame = pd.DataFrame(stage.rows[1:])
    seconds = frame["end_s"] - frame["start_s"]
    waiting = float(frame["waiting_s"].mean()) / len(blocks.lead)
    # What copies take from the port that operators need is not told apart by layer.
    layer = float(blocks.layer.mean()) + waiting
    return np.array([float(seconds.mean())]), np.array([layer]), frame, stage.trace


def play_all(
    run: PhaseRun, blocks: Blocks, experts: Experts, sequences: list[tuple[Array, Array]]
) -> tuple[Array, Array, pd.DataFrame, Trace]:
    """Play sequences of iterations, each from its start, and return their means as `play` does.

    Rows name their sequence; events are the first one's.

    Args:
        sequences: Misses and experts asked for of each.
    """
    import pandas as pd

    each = [play(run, blocks, experts, misses, asked) for misses, asked in sequences]
    seconds, layers, frames, traces = zip(*each, strict=True)
    rows = [frame.assign(sequence=i) for i, frame in enumerate(frames)]
    frame = rows[0] if len(rows) == 1 else pd.concat(rows, ignore_index=True)
    return np.mean(seconds, axis=0), np.mean(layers, axis=0), frame, traces[0]


class _Stage:
    """The two streams of a device, and what they leave behind."""

    def __init__(
        self, run: PhaseRun, blocks: Blocks, experts: Experts, misses: Array, asked: Array
    ) -> None:
        self.env = simpy.Environment()
        self.shared = FairShared(self.env)
        self.name = run.name
        self.blocks = blocks
        self.prefetch, self.apart = experts.cache.prefetch, experts.cache.waits == "expert"
        self.start = float(np.ravel(experts.copy.start)[0])
        self.shares = stretch_of([run]).shares
        self.copy = copy_stretch(experts.copy)
        self.misses, self.running = misses, np.minimum(asked, blocks.distinct[:, 0])
        self.there = {
            at: [self.env.event() for _ in range(self._pieces(at))]
            for at in np.ndindex(*misses.shape)
        }
        self.asked: set[tuple[int, ...]] = set()
        self.link = simpy.Resource(self.env)
        self.rows: list[dict[str, float]] = []
        self.trace: Trace = []

    def operators(self) -> Process:
        """Run all iterations; the experts of a block wait for their copies."""
        b, last = self.blocks, len(self.blocks.lead) - 1
        for step in range(len(self.misses)):
            start, waiting = self.env.now, 0.0
            for i in range(last + 1):
                yield from self._compute(f"to layer {i}", float(b.before[i, 0]))
                late = float(b.ahead[i, 0]) if self.prefetch == "pre_attention" else 0.0
                yield from self._compute(f"gate {i}", float(b.lead[i, 0]) - late)
                self._ask(step, i)
                yield from self._compute(f"mixer {i}", late)
                waiting += yield from self._experts(step, i, last)
            yield from self._compute("tail", float(b.after[0]))
            self.rows.append(
                {"start_s": start, "end_s": self.env.now, "waiting_s": waiting,
                 "misses": float(self.misses[step].sum())}
            )  # fmt: skip

    def _experts(self, step: int, i: int, last: int) -> Generator[simpy.Event, Any, float]:
        """Run the experts of a block, and return how long they waited."""
        pieces, rest = self.there[step, i], float(self.blocks.rest[i, 0])
        each, waited = 0.0, 0.0
        if self.apart:
            running = max(float(self.running[step, i]), 1.0)
            each = float(self.blocks.work[i, 0]) / running
            first = max(running - len(pieces), 0.0) * each
            yield from self._compute(f"experts {i}", first)
            rest -= first
        for piece in pieces:
            begun = self.env.now
            if not piece.processed:
                yield piece
            waited += self.env.now - begun
            yield from self._compute(f"experts {i}", each)
            rest -= each
        self._ask_early(step, i, last)
        yield from self._compute(f"experts {i}", max(rest, 0.0))
        return waited

    def _pieces(self, at: tuple[int, ...]) -> int:
        """Return how many arrivals the experts of a block wait for."""
        return int(self.misses[at]) if self.apart else 1

    def _ask_early(self, step: int, i: int, last: int) -> None:
        """Ask for the next block's experts, whose buffer this block has just left."""
        if self.prefetch in ("all", "next_block_gate") and i < last:
            self._ask(step, i + 1)
        elif self.prefetch == "all" and step + 1 < len(self.misses):
            self._ask(step + 1, 0)

    def _ask(self, step: int, i: int) -> None:
        if (step, i) not in self.asked:
            self.asked.add((step, i))
            self.env.process(self._copies(step, i))

    def _copies(self, step: int, i: int) -> Process:
        """Copy what a block misses, after what was asked for before."""
        with self.link.request() as mine:
            yield mine
            start, count = self.env.now, float(self.misses[step, i])
            if count and self.start:
                yield self.env.timeout(self.start)
            for piece in self.there[step, i]:
                several = count / len(self.there[step, i])
                if several:
                    yield self.shared.stream(several * self.copy.seconds, self.copy.shares)
                piece.succeed()
            if count:
                self._span("copies", f"{count:g} experts of layer {i}", start)

    def _compute(self, name: str, seconds: float) -> Process:
        start = self.env.now
        if seconds > 0:
            yield self.shared.stream(seconds, self.shares)
            self._span("operators", name, start)

    def _span(self, track: str, name: str, start: float) -> None:
        self.trace.append(
            {"ph": "X", "pid": f"{self.name}: experts", "tid": track, "name": name,
             "ts": start * 1e6, "dur": (self.env.now - start) * 1e6, "args": {}}
        )  # fmt: skip
