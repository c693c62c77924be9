"""Fused operators on their way to a placement, and copies of them for each unit that may run them.

An operator that several units may run becomes one copy for each of them, side by side. `runs` says
which copies run at which design point; work that two units share is cut into parts that add up to
the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array, OpTable, Spread
from opbyte.sim.moved import moved_bytes, op_edges

Ints = npt.NDArray[np.int64]

#: Columns that follow the picks of experts, and those that follow the experts that are hit. A part
#: gathers its rows from the whole input.
_BY_PICKS = ("flops", "out_bytes")
_BY_EXPERTS = ("weight", "expert")


@dataclass(frozen=True)
class Operators:
    """A table's fused operators, each on one unit.

    Attributes:
        op_of: Operator of each row, ascending, (rows,).
        units: Short path of each operator's unit, empty for a collective on its own.
        moved, live: See `PlacedOps`.
        edges: (edges, 2) operators, source before destination.
        runs: See `PlacedOps`.
    """

    table: OpTable
    op_of: Ints
    units: tuple[str, ...]
    moved: dict[str, Array]
    live: Array
    edges: Ints
    runs: Array | None = None

    @classmethod
    def of(cls, table: OpTable, op_of: Ints, units: tuple[str, ...]) -> Operators:
        """Return fused operators with what they move."""
        moved, live = moved_bytes(table, op_of, len(units))
        return cls(table, op_of, units, moved, live, op_edges(table, op_of))

    def __len__(self) -> int:
        """Return the number of operators."""
        return len(self.units)

    @property
    def blocks(self) -> Ints:
        """Return the block of each operator, (ops,)."""
        first: Ints = self.table.block_of[np.searchsorted(self.op_of, np.arange(len(self)))]
        return first

    def one_by_one(self) -> Ints:
        """Return the edges, and those by which units of a device work one at a time."""
        on_units, blocks = [op for op, unit in enumerate(self.units) if unit], self.blocks
        turns = [(a, b) for a, b in pairwise(on_units) if blocks[a] == blocks[b]]
        both = np.concatenate([self.edges, np.array(turns, np.int64).reshape(-1, 2)])
        return np.unique(both, axis=0)

    def rows(self, op: int) -> Ints:
        """Return the rows of an operator."""
        return np.flatnonzero(self.op_of == op)


@dataclass(frozen=True)
class Copies:
    """Operators of which those with several candidates occur once for each.

    Attributes:
        source: Operator that each one is a copy of, (ops,).
        candidate: Which of its candidates, (ops,).
    """

    operators: Operators
    source: Ints
    candidate: Ints

    def of(self, op: int) -> Ints:
        """Return the copies of an operator, in the order of its candidates."""
        return np.flatnonzero(self.source == op)


def copied(plain: Operators, candidates: dict[int, tuple[str, ...]], chains: Ints) -> Copies:
    """Return operators with a copy for each candidate.

    Args:
        candidates: Units that may run an operator, for those that have several.
        chains: Operators of one number that is not negative are cut alike: each part reads that
            part of what came before which its own unit made, (ops,).
    """
    many = [len(candidates.get(op, ("",))) for op in range(len(plain))]
    source = np.repeat(np.arange(len(plain)), many)
    candidate = np.concatenate([np.arange(n) for n in many])
    starts = np.searchsorted(plain.op_of, np.arange(len(plain) + 1))
    rows = [np.arange(starts[op], starts[op + 1]) for op in source]
    row_of = np.concatenate(rows)
    new_op = np.repeat(np.arange(len(source)), [len(r) for r in rows])
    units = tuple(
        candidates[op][c] if op in candidates else plain.units[op]
        for op, c in zip(source.tolist(), candidate.tolist(), strict=True)
    )
    first = np.concatenate([[0], np.cumsum(many)])[:-1]
    table = _copied_table(plain, row_of, new_op, candidate, units, candidates)
    edges = [
        (first[s] + a, first[t] + b)
        for s, t in plain.edges.tolist()
        for a in range(many[s])
        for b in range(many[t])
        if a == b or chains[s] < 0 or chains[s] != chains[t]
    ]
    operators = Operators(
        table, new_op, units, {c: v[source] for c, v in plain.moved.items()}, plain.live[source],
        np.array(edges, np.int64).reshape(-1, 2),
    )  # fmt: skip
    return Copies(operators, source, candidate)


def _copied_table(
    plain: Operators,
    row_of: Ints,
    new_op: Ints,
    candidate: Ints,
    units: tuple[str, ...],
    candidates: dict[int, tuple[str, ...]],
) -> OpTable:
    """Return the table of copies; rows are joined to the copy of their source on their own unit."""
    table = plain.table
    named = {
        (int(row), int(candidate[op])): new
        for new, (row, op) in enumerate(zip(row_of, new_op, strict=True))
    }
    edges = []
    for source, target in table.edges.tolist():
        for c in range(len(candidates.get(int(plain.op_of[target]), ("",)))):
            own = named.get((source, c), named[source, 0])
            edges.append((own, named[target, c]))
    names = []
    for row, op in zip(row_of.tolist(), new_op.tolist(), strict=True):
        several = int(plain.op_of[row]) in candidates
        names.append(f"{table.names[row]}@{units[op].rpartition('.')[2]}" if several else "")
    picked = row_of.tolist()
    return replace(
        table,
        names=tuple(n or table.names[r] for n, r in zip(names, picked, strict=True)),
        kinds=tuple(table.kinds[r] for r in picked),
        labels=tuple(table.labels[r] for r in picked),
        dtypes=tuple(table.dtypes[r] for r in picked),
        columns={name: column[row_of] for name, column in table.columns.items()},
        block_of=table.block_of[row_of],
        edges=np.array(edges, np.int64).reshape(-1, 2),
        spreads={new: table.spreads[r] for new, r in enumerate(picked) if r in table.spreads},
        waits=np.zeros((0, 2), np.int64),
    )


@dataclass(frozen=True)
class Part:
    """A part of the experts of a grouped product.

    Attributes:
        members: Which experts it has, (experts, points) of bool.
        picks, experts: Its share of the picks, and of the experts that are hit, (points,).
    """

    members: npt.NDArray[np.bool_]
    picks: Array
    experts: Array


def cut(operators: Operators, parts: dict[int, Part]) -> Operators:
    """Return operators of which some are cut down to a part of their experts.

    Where a part has no expert the operator stays whole; it must not run there.
    """
    table = operators.table
    points = max(len(p.picks) for p in parts.values())
    # Share of the picks and of the experts that each operator has, whole without a part.
    picks, experts = np.ones((len(operators), points)), np.ones((len(operators), points))
    spreads = dict(table.spreads)
    for op, part in parts.items():
        picks[op] = np.where(part.picks <= 0, 1.0, part.picks)
        experts[op] = np.where(part.picks <= 0, 1.0, part.experts)
        for row in operators.rows(op).tolist():
            if row in spreads:
                spreads[row] = _cut_spread(spreads[row], part, picks[op])
    moved, columns = dict(operators.moved), dict(table.columns)
    for name in ("activation", "internal"):
        moved[name] = moved[name] * picks
    by_picks, by_experts = picks[operators.op_of], experts[operators.op_of]
    for name in _BY_PICKS:
        columns[name] = columns[name] * by_picks
    for name in _BY_EXPERTS:
        moved[name] = moved[name] * experts
        columns[name] = columns[name] * by_experts
    product = np.isin(np.arange(len(table)), list(spreads))[:, None]
    columns["m"] = columns["m"] * np.where(product, by_picks / by_experts, 1.0)
    columns["groups"] = columns["groups"] * np.where(product, by_experts, 1.0)
    return replace(
        operators,
        table=replace(table, columns=columns, spreads=spreads),
        moved=moved,
        live=operators.live * picks,
    )


def _cut_spread(spread: Spread, part: Part, picks: Array) -> Spread:
    def known() -> Array:
        return np.where(part.members | (part.picks <= 0), spread.counts, 0.0)

    total = np.maximum(spread.counts.sum(axis=0) * picks, 1e-9)
    return Spread(known, np.minimum(spread.tokens, total), spread.width)
