"""The MoE blocks of one iteration in time: when experts start, and what runs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.hw_models.price import Demand
from opbyte.sim.analytic import block_paths, held, slack
from opbyte.sim.event import Timeline
from opbyte.sim.result import PhaseRun


@dataclass(frozen=True)
class Blocks:
    """The layers with experts of one iteration, in the order in which they run.

    Attributes:
        before: From the end of the layer with experts before (or the start of the iteration) to
            the start of this one, (blocks, points).
        lead: From its start to that of its experts: mixer, gate, choice, (blocks, points).
        ahead: Of the lead, what a router that reads the layer's input leaves, (blocks, points).
        rest: From there to its end, without copies, (blocks, points).
        work: Of the rest, the experts' own operators, (blocks, points).
        after: From the end of the last one to the end of the iteration, (points,).
        tokens: Tokens that pass each, (blocks, points).
        distinct: Different experts that they are expected to choose, (blocks, points).
    """

    before: Array
    lead: Array
    ahead: Array
    rest: Array
    work: Array
    after: Array
    tokens: Array
    distinct: Array

    @property
    def layer(self) -> Array:
        """Return the time of each layer with experts, (blocks, points)."""
        return self.lead + self.rest

    @property
    def seconds(self) -> Array:
        """Return the time of the iteration without copies, (points,)."""
        total: Array = (self.before + self.lead + self.rest).sum(axis=0) + self.after
        return total

    @property
    def windows(self) -> Array:
        """Return the time from a block's start of experts to the next's, (blocks - 1, points)."""
        window: Array = self.rest[:-1] + self.before[1:] + self.lead[1:]
        return window

    @property
    def last_window(self) -> Array:
        """Return the time from the last block's start of experts to the next iteration's first."""
        window: Array = self.rest[-1] + self.after + self.before[0] + self.lead[0]
        return window


def blocks_of(run: PhaseRun) -> Blocks:
    """Return the MoE blocks of a phase.

    Blocks of a table run one after the other; each takes the longer of its path and its busiest
    resource, or with a timeline what that says.

    Raises:
        UncoveredError: If no layer has experts.
    """
    demand, table = run.demand, run.demand.placed.table
    first = first_expert_rows(table)
    at = np.flatnonzero([b in first for b in table.order])
    if not at.size:
        raise UncoveredError(f"{run.name}: no layer of experts runs")
    ops = {block: int(demand.placed.op_of[row]) for block, row in first.items()}
    spans, leads = _played(run.timeline, ops) if run.timeline else _priced(demand, ops)
    choosing, own = _seconds(demand, _is_choice), _seconds(demand, _is_expert)
    ends = np.cumsum(spans, axis=0)
    done = np.concatenate([np.zeros((1, ends.shape[1])), ends[at]])
    rows = [first[b] for b in table.order[at]]
    tokens = [np.atleast_1d(table.spreads[row].tokens) for row in rows]
    return Blocks(
        before=ends[at] - spans[at] - done[:-1],
        lead=leads[at],
        ahead=np.maximum(leads[at] - choosing[table.order[at]], 0.0),
        rest=spans[at] - leads[at],
        work=np.minimum(own[table.order[at]], spans[at] - leads[at]),
        after=ends[-1] - done[-1],
        tokens=np.stack(np.broadcast_arrays(*tokens)),
        distinct=table["groups"][rows],
    )


def first_expert_rows(table: OpTable) -> dict[int, int]:
    """Return the first row of routed experts of each block that has them."""
    first: dict[int, int] = {}
    for row in sorted(table.spreads):
        first.setdefault(int(table.block_of[row]), row)
    return first


def _is_choice(table: OpTable, row: int) -> bool:
    return table.names[row] in ("router", "top_k")


def _is_expert(table: OpTable, row: int) -> bool:
    return row in table.spreads or table.names[row] == "expert_activation"


def _seconds(demand: Demand, chosen: Callable[[OpTable, int], bool]) -> Array:
    """Return the time of the operators of each block that hold chosen rows, (blocks, points)."""
    placed, duration = demand.placed, demand.duration
    table = placed.table
    ops = {int(placed.op_of[row]) for row in range(len(table.names)) if chosen(table, row)}
    total = np.zeros((len(table.blocks), duration.shape[1]))
    for op in ops:
        total[placed.block_of[op]] += duration[op]
    return total


def _priced(demand: Demand, ops: dict[int, int]) -> tuple[Array, Array]:
    """Return the time of each block run and of what leads to its experts, (runs, points)."""
    placed, duration = demand.placed, demand.duration
    longest = block_paths(demand, duration)
    for _, seconds in held(demand, duration):
        total = np.zeros_like(longest)
        np.add.at(total, placed.block_of, seconds)
        longest = np.maximum(longest, total)
    before, _ = slack(demand)
    lead = np.zeros_like(longest)
    for block, op in ops.items():
        lead[block] = before[op]
    return longest[placed.table.order], lead[placed.table.order]


def _played(timeline: Timeline, ops: dict[int, int]) -> tuple[Array, Array]:
    """Return the same of a timeline, (runs, 1)."""
    starts = np.searchsorted(timeline.run, np.arange(int(timeline.run[-1]) + 1))
    ends = np.maximum.reduceat(timeline.end, starts)
    begun = np.concatenate([[0.0], ends[:-1]])
    lead = np.zeros(len(starts))
    for op in ops.values():
        mine = np.flatnonzero(timeline.op == op)
        lead[timeline.run[mine]] = timeline.start[mine] - begun[timeline.run[mine]]
    return (ends - begun)[:, None], lead[:, None]
