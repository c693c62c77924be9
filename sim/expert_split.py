"""Which experts run on which of two units: the first of a queue on one, the rest on the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping_file import CoProcess
from opbyte.core.ops import Array, Spread
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, price, resource_rate
from opbyte.sim.operators import Copies, Ints, Operators, Part, cut

if TYPE_CHECKING:
    from opbyte.sim.place import Placer

#: Design points times candidates that are priced at once.
_CHUNK = 1 << 17


@dataclass(frozen=True)
class Queue:
    """Experts in the order of their tokens, fewest first, at each point.

    Attributes:
        rank: Place of each expert, (experts, points).
        picks, experts: Share of the picks, and of the experts that are hit, which the first j
            have, (experts + 1, points).
    """

    rank: Array
    picks: Array
    experts: Array

    @classmethod
    def of(cls, spread: Spread, points: int) -> Queue:
        """Return the queue of a grouped product's experts."""
        counts = np.broadcast_to(spread.counts, (len(spread.counts), points))
        order = np.argsort(counts, axis=0, kind="stable")
        ordered = np.take_along_axis(counts, order, axis=0)
        rank = np.empty_like(order)
        places = np.broadcast_to(np.arange(len(counts))[:, None], order.shape)
        np.put_along_axis(rank, order, places, axis=0)
        return cls(rank.astype(np.float64), _shares(ordered), _shares(ordered > 0))

    def part(self, first: Array, rest: Array) -> Part:
        """Return the first experts of each point, or the rest.

        Args:
            first: How many, (points,).
            rest: Where it is the rest, (points,).
        """
        at = first.astype(np.int64)[None]
        picks = np.take_along_axis(self.picks, at, axis=0)[0]
        experts = np.take_along_axis(self.experts, at, axis=0)[0]
        return Part(
            (self.rank < first) != rest,
            np.where(rest, 1.0 - picks, picks),
            np.where(rest, 1.0 - experts, experts),
        )

    def repeated(self, times: int) -> Queue:
        """Return the queue with every point several times."""
        return Queue(*(np.repeat(x, times, axis=1) for x in (self.rank, self.picks, self.experts)))


def _shares(values: Any) -> Array:
    """Return cumulative shares with a zero before, exactly 1 at the end, (experts + 1, points)."""
    summed = np.cumsum(values, axis=0, dtype=np.float64)
    shares: Array = np.vstack([np.zeros((1, summed.shape[1])), summed / summed[-1]])
    return shares


def divide(
    placer: Placer, copies: Copies, policy: CoProcess, ops: Ints, points: int
) -> dict[int, Part]:
    """Return the part of the experts that each copy of a chain gets.

    Raises:
        UncoveredError: If the policy has more than two units.
    """
    if len(policy.between) != 2:
        raise UncoveredError(
            f"{placer.machine.name}: experts are divided between two units, not "
            f"{', '.join(policy.between)}. name two"
        )
    fast = faster_port(placer.machine, policy)
    mine = np.concatenate([copies.of(int(op)) for op in ops])
    near = np.broadcast_to(copies.candidate[mine][:, None] == fast, (len(mine), points))
    chain = _only(copies.operators, mine)
    queue = Queue.of(next(iter(chain.table.spreads[r] for r in chain.table.spreads)), points)
    choices = len(queue.picks)
    first = np.empty(points)
    step = max(_CHUNK // choices, 1)
    for start in range(0, points, step):
        at = np.arange(start, min(start + step, points))
        took = _priced(placer, chain, queue, near[:, at], at, policy)
        first[at] = np.argmin(took, axis=0)
    return {int(op): queue.part(first, ~near[i]) for i, op in enumerate(mine)}


def _only(operators: Operators, ops: Ints) -> Operators:
    """Return some operators alone, with nothing before or after them."""
    rows = np.flatnonzero(np.isin(operators.op_of, ops))
    number = {int(op): i for i, op in enumerate(ops)}
    new_row = {int(r): i for i, r in enumerate(rows)}
    table = operators.table
    edges = [
        (new_row[s], new_row[t]) for s, t in table.edges.tolist() if s in new_row and t in new_row
    ]
    given = np.zeros((len(rows), table["out_bytes"].shape[1])) + table["in_bytes"][rows]
    for source, target in table.edges.tolist():
        if target in new_row and source not in new_row:
            row = new_row[target]
            given[row] = np.maximum(given[row], table["out_bytes"][source])
    alone = replace(
        table,
        names=tuple(table.names[r] for r in rows),
        kinds=tuple(table.kinds[r] for r in rows),
        labels=tuple(table.labels[r] for r in rows),
        dtypes=tuple(table.dtypes[r] for r in rows),
        columns={**{n: c[rows] for n, c in table.columns.items()}, "in_bytes": given},
        block_of=np.zeros(len(rows), np.int64),
        blocks=("chain",),
        order=np.zeros(1, np.int64),
        edges=np.array(edges, np.int64).reshape(-1, 2),
        stage=np.zeros(1, np.int64),
        spreads={new_row[r]: s for r, s in table.spreads.items() if r in new_row},
        parts={new_row[r]: widths for r, widths in table.parts.items() if r in new_row},
    )
    return Operators(
        alone, np.array([number[int(operators.op_of[r])] for r in rows]),
        tuple(operators.units[op] for op in ops), {c: v[ops] for c, v in operators.moved.items()},
        operators.live[ops], np.zeros((0, 2), np.int64),
    )  # fmt: skip


def _priced(
    placer: Placer,
    chain: Operators,
    queue: Queue,
    near: Array,
    at: Ints,
    policy: CoProcess,
) -> Array:
    """Return what the policy makes shortest for every number of experts, (choices, points).

    Args:
        near: Whether a copy is on the unit at the faster port, (copies, points).
        at: Points that are looked at.
    """
    choices = len(queue.picks)
    wide = Queue(*(x[:, at] for x in (queue.rank, queue.picks, queue.experts))).repeated(choices)
    first = np.tile(np.arange(choices, dtype=np.float64), len(at))
    column = np.repeat(at, choices)
    both = np.repeat(near, choices, axis=1)
    parts = {i: wide.part(first, ~own) for i, own in enumerate(both)}
    trial = cut(_at_points(chain, column), parts)
    runs = np.stack([parts[i].picks > 0 for i in range(len(near))]).astype(np.float64)
    machine = placer.machine
    values = {p: v[column] for p, v in machine.values.items() if np.size(v) > 1}
    demand = price(
        placer.placed(replace(trial, runs=runs)),
        machine.with_values(values) if values else machine,
        ideal=policy.by == "op_per_byte",
    )
    longest = (
        _longest(demand, both) if policy.by == "greedy_tokens" else demand.duration.sum(axis=0)
    )
    return np.reshape(longest, (len(at), choices)).T


def _longest(demand: Demand, near: Array) -> Array:
    """Return the longest of both units' sums and of what keeps a resource busy, (points,)."""
    duration = demand.duration
    mine = np.where(near, duration, 0.0).sum(axis=0)
    longest = np.maximum(mine, np.where(near, 0.0, duration).sum(axis=0))
    return np.asarray(np.maximum(longest, demand.busy.sum(axis=0).max(axis=0, initial=0.0)))


def _at_points(operators: Operators, column: Ints) -> Operators:
    """Return operators at some of their points."""

    def at(values: Array) -> Array:
        return values[:, column] if values.shape[1] > 1 else values

    table = operators.table
    spreads = {
        row: Spread(
            at(np.asarray(s.counts)),
            s.tokens[column] if np.size(s.tokens) > 1 else s.tokens,  # type: ignore[index]
            s.width,
        )
        for row, s in table.spreads.items()
    }
    return replace(
        operators,
        table=replace(table, columns={n: at(c) for n, c in table.columns.items()}, spreads=spreads),
        moved={c: at(v) for c, v in operators.moved.items()},
        live=at(operators.live),
    )


def faster_port(machine: Machine, policy: CoProcess) -> Ints:
    """Return which of a policy's units is at the faster port, (points,) or (1,).

    Raises:
        UncoveredError: If one is at no port of a memory that is no SRAM.
    """
    rates = []
    for path in policy.between:
        home = UnitView(machine, path).home_port()
        if home is None:
            raise UncoveredError(
                f"{machine.name}: unit '{path}' is at no port of a DRAM, so `{policy.by}` can not "
                "tell which unit is nearer to memory. use by: fastest"
            )
        rates.append(np.atleast_1d(resource_rate(machine, home, 1.0)))
    fastest: Ints = np.argmax(np.stack(np.broadcast_arrays(*rates)), axis=0)
    return fastest
