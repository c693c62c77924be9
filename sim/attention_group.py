"""Decode attention on a group of devices of its own: one table out of two lowerings.

    model group      norm, qkv, rotary                         out projection, FFN
                          | q, k, v of the new token          ^
                          v                                   | attention output
    attention group       kv_append, score, softmax, context

A row of the attention group is what one of its b devices executes: the row of the same work lowered
with tp = b. All other rows are those of a model device (tp = a). Where an edge crosses the groups a
transfer is inserted. Over a layer transfers carry

    q and the output  2 e d B,   k and v  2 e d B / G

bytes for B sequences, hidden size d, e bytes an element and G query heads to a KV head (Lamina,
arXiv 2405.01814, section 4). With `q_first` the product of q, k and v is cut in two: queries leave
first, and attention over the cache runs while k and v of the new token follow. They are appended
when it has ended, and merged in the one kernel that attends, whose work is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import ATTENTION, Mapping
from opbyte.core.ops import NUMERIC, TRANSFER, Array, BlockBuilder, OpTable, OpTableBuilder, Phase
from opbyte.workloads.works import Work

#: Label of transfers to the attention group, and back.
THERE, BACK = "there", "back"
#: Kinds of rows that the attention group runs.
_ATTENDS = frozenset({"kv_append", "score", "softmax", "context"})
#: Kinds of rows between the product of q, k and v and attention, which `q_first` cuts in two.
_TURNS = frozenset({"gemm", "norm", "rotary"})


def pooled_phases(work: Work, mapping: Mapping) -> tuple[Phase, ...]:
    """Return the phases of a work whose decode attention has a group of its own.

    Raises:
        UncoveredError: If rows outside decode attention read or write a cache, or `q_first` finds
            no product of q, k and v.
    """
    model, attention = work.lowered(mapping.degrees), work.lowered(mapping.attention_degrees)
    first = mapping.overlap == "q_first"
    devices = (mapping.degrees.tp, mapping.attention_degrees.tp)
    return tuple(
        Phase(m.name, _Join(m.table, a.table, devices, first).table(), m.repeats)
        for m, a in zip(model, attention, strict=True)
    )


def pooled_footprint(work: Work, mapping: Mapping) -> dict[str, Any]:
    """Return the bytes of each tensor class on the fullest device of the group that holds it.

    Of activations that is a model device; what an attention device receives and sends in a layer
    is thousands of times smaller than its cache and left out.
    """
    model = work.footprint(mapping.degrees)
    return {**model, "kv": work.footprint(mapping.attention_degrees)["kv"]}


def attends(table: OpTable) -> list[bool]:
    """Return which rows the attention group runs: the class, and the cache writes that feed it.

    Raises:
        UncoveredError: If another row touches the cache, or the class has rows of other kinds.
    """
    chosen = [ATTENTION in labels for labels in table.labels]
    for source, target in table.edges:
        if chosen[target] and table.kinds[source] == "kv_append":
            chosen[source] = True
    moved = table["kv_read"] + table["kv_write"] + table["state_read"]
    cached = np.any(moved > 0, axis=1).tolist()
    for row, name in enumerate(table.names):
        if cached[row] and not chosen[row]:
            raise UncoveredError(
                f"'{name}' uses a cache, and only decode attention is modelled on a group of its "
                "own. use a decode work, or a mapping with one group"
            )
        if chosen[row] and table.kinds[row] not in _ATTENDS:
            raise UncoveredError(
                f"'{name}' is no score, softmax, context or cache write: no model runs it on a "
                "group of its own. use a mapping with one group"
            )
    return chosen


@dataclass(slots=True)
class _Join:
    """Two lowerings of one phase becoming one table.

    Attributes:
        model, attention: Tables of one device of each group; their rows have the same names.
        devices: Devices of the model group and of the attention group.
        first: Queries are sent first.
    """

    model: OpTable
    attention: OpTable
    devices: tuple[int, int]
    first: bool
    builder: OpTableBuilder = field(default_factory=OpTableBuilder)

    def table(self) -> OpTable:
        """Return the joined table."""
        chosen = attends(self.model)
        by_name = {
            (self.attention.blocks[b], name): row
            for row, (b, name) in enumerate(
                zip(self.attention.block_of, self.attention.names, strict=True)
            )
        }
        for index, name in enumerate(self.model.blocks):
            with self.builder.block(name, int(self.model.stage[index])) as block:
                twins = {
                    int(r): by_name[name, self.model.names[r]]
                    for r in self.model.rows_of(index)
                    if chosen[r]
                }
                _Block(self, block, [int(r) for r in self.model.rows_of(index)], twins).fill()
        self.builder.order.extend(int(b) for b in self.model.order)
        return self.builder.build()


@dataclass(slots=True)
class _Block:
    """One block being joined.

    Attributes:
        rows: Its rows in the model's table.
        twins: Row of the attention group -> the same row of the attention's table.
        at: Row of the model's table -> row of the new one that stands for its output.
    """

    join: _Join
    block: BlockBuilder
    rows: list[int]
    twins: dict[int, int]
    at: dict[int, int] = field(default_factory=dict)

    def fill(self) -> None:
        """Add the block's rows and its transfers."""
        outside = [r for r in self.rows if r not in self.twins]
        if not self.twins:
            for row in outside:
                self._copy(row)
            return
        start, end = min(self.twins), max(self.twins)
        if end - start + 1 != len(self.twins):
            raise UncoveredError(
                "other rows stand between those of a layer's attention (several attentions, or a "
                "latent cache), and no model sends them to and fro. use a mapping with one group"
            )
        given = sorted({s for t in self.twins for s in self._inputs(t) if s not in self.twins})
        cut = self._chain(given) if self.join.first else []
        for row in outside:
            if row < start and row not in cut:
                self._copy(row)
        if cut:
            self._attend_q_first(cut)
        else:
            self._attend(given)
        for row in outside:
            if row > start:
                self._copy(row)

    # -- attention -------------------------------------------------------------------------

    def _attend(self, given: list[int]) -> None:
        """Add one transfer of q, k and v, the attention rows, and the way back."""
        queries, cached = self._sent()
        sent = self._transfer(
            "send_qkv", THERE, [self.at[s] for s in given], queries + cached, self.join.devices[1]
        )
        for row in self.twins:
            own = [self.at[s] for s in self._inputs(row) if s in self.twins]
            outer = [sent] if len(own) < len(self._inputs(row)) else []
            self.at[row] = self._attending(row, [*outer, *own])
        self._return([])

    def _attend_q_first(self, cut: list[int]) -> None:
        """Add queries, their transfer, keys and values, theirs, and the append after attention."""
        queries, cached = self._sent()
        asked = self._part(cut, ".q", None)
        q = self._transfer("send_q", THERE, [asked], queries, self.join.devices[1])
        told = self._part(cut, ".kv", asked)
        kv = self._transfer("send_kv", THERE, [told], cached, self.join.devices[1])
        appends = [r for r in self.twins if self.join.model.kinds[r] == "kv_append"]
        attending = [r for r in self.twins if r not in appends]
        for row in attending:
            inputs = [self.at[s] for s in self._inputs(row) if s in attending] or [q]
            self.at[row] = self._attending(row, inputs)
        added = [self._attending(r, [kv]) for r in appends]
        for row in added:
            self.block.wait(row, self.at[attending[-1]])
        self._return(added)

    def _return(self, after: list[int]) -> None:
        """Add the transfer of the attention output; rows outside read it from now on."""
        contexts = [r for r in self.twins if self.join.model.kinds[r] == "context"]
        table = self.join.attention
        size = sum(table["out_bytes"][self.twins[r]] for r in contexts) * self.join.devices[1]
        row = self._transfer(
            "send_out", BACK, [self.at[r] for r in contexts], size, self.join.devices[0]
        )
        for other in after:
            self.block.wait(row, other)
        self.at |= dict.fromkeys(contexts, row)

    def _sent(self) -> tuple[Array, Array]:
        """Return the bytes of queries, and of new keys and values, that all devices receive."""
        table, many = self.join.attention, self.join.devices[1]
        written = sum(table["kv_write"][twin] for twin in self.twins.values())
        return _queries(table, list(self.twins.values())) * many, np.atleast_1d(written * many)

    def _transfer(self, name: str, way: str, inputs: list[int], size: Array, receivers: int) -> int:
        """Add a transfer of `size` bytes in all, each of `receivers` devices getting its part."""
        return self.block.add(
            name, TRANSFER, dtype=self.join.model.dtypes[self.rows[0]], inputs=inputs,
            labels=(way,), flops=0.0, payload=size / min(self.join.devices),
            participants=float(min(self.join.devices)), out_bytes=size / receivers,
        )  # fmt: skip

    # -- the product of q, k and v -----------------------------------------------------------

    def _chain(self, given: list[int]) -> list[int]:
        """Return the rows from the product of q, k and v to attention.

        Raises:
            UncoveredError: If there is no such chain.
        """
        chain = [max(given)]
        kinds = self.join.model.kinds
        while kinds[chain[0]] in _TURNS - {"gemm"} and len(self._inputs(chain[0])) == 1:
            chain.insert(0, self._inputs(chain[0])[0])
        if self.join.model.names[chain[0]] != "qkv" or set(given) - set(chain):
            raise UncoveredError(
                "q_first cuts the product of q, k and v in two, and this model has none. use "
                "`overlap: none`"
            )
        return chain

    def _part(self, cut: list[int], suffix: str, after: int | None) -> int:
        """Add the part of the chain that makes queries, or keys and values; return its last row.

        Args:
            after: Row that has to end before.
        """
        table = self.join.model
        queries = _queries(table, list(self.twins))
        row = -1
        for source in cut:
            share = queries / table["out_bytes"][source]
            share = share if suffix == ".q" else 1.0 - share
            inputs = [row] if row >= 0 else [self.at[s] for s in self._inputs(source)]
            numbers = self._numbers(table, source)
            whole = {"gemm": ("n",), "norm": ("groups",)}.get(table.kinds[source], ())
            for name in ("flops", "weight", "out_bytes", *whole):
                numbers[name] = numbers[name] * share
            # Columns and rows are whole; the share of floats may miss them by a rounding.
            numbers |= {name: np.round(numbers[name]) for name in whole}
            row = self._row(table, source, table.names[source] + suffix, inputs, numbers)
            # What else reads the product, a gate for instance, finds it whole with the second part.
            self.at[source] = row
            if after is not None:
                self.block.wait(row, after)
                after = None
        return row

    # -- rows --------------------------------------------------------------------------------

    def _inputs(self, row: int) -> list[int]:
        edges = self.join.model.edges
        return [int(s) for s in edges[edges[:, 1] == row, 0]]

    def _copy(self, row: int) -> None:
        table = self.join.model
        inputs = [self.at[s] for s in self._inputs(row)]
        self.at[row] = self._row(table, row, table.names[row], inputs, self._numbers(table, row))

    def _attending(self, row: int, inputs: list[int]) -> int:
        """Add a row of the attention group, which its label says of cache writes too."""
        table, twin = self.join.attention, self.twins[row]
        name, numbers = table.names[twin], self._numbers(table, twin)
        return self._row(table, twin, name, inputs, numbers, ATTENTION)

    def _row(
        self,
        table: OpTable,
        row: int,
        name: str,
        inputs: list[int],
        numbers: dict[str, Any],
        *words: str,
    ) -> int:
        labels = (*sorted(table.labels[row]), *words)
        new = self.block.add(
            name, table.kinds[row], dtype=table.dtypes[row], inputs=inputs, labels=labels, **numbers
        )
        if row in table.spreads:
            self.block.spread(new, table.spreads[row])
        if row in table.parts:
            self.block.parts(new, table.parts[row])
        return new

    def _numbers(self, table: OpTable, row: int) -> dict[str, Any]:
        return {name: table[name][row] for name in NUMERIC}


def _queries(table: OpTable, rows: list[int]) -> Array:
    """Return the bytes of the queries that attention rows score on one device."""
    total: Any = 0.0
    scores = [r for r in rows if table.kinds[r] == "score"]
    contexts = [r for r in rows if table.kinds[r] == "context"]
    for score, context in zip(scores, contexts, strict=True):
        # The output is stored as the queries are.
        size = table["out_bytes"][context] / _elements(table, context, "n")
        total = total + size * _elements(table, score, "k")
    return np.atleast_1d(total)


def _elements(table: OpTable, row: int, width: str) -> Array:
    """Return the elements of an attention row's queries (`k`) or output (`n`)."""
    count: Array = table["m"][row] * table["groups"][row] * table[width][row]
    return count
