"""One block of a table whose decode attention has a group of its own: rows of both groups.

    decodes   q, k, v -> send_q, send_kv -> score, softmax, context; kv_append -> send_out
    prompts   q, k, v -> score, softmax, context                        on the model group
                      -> send_prompts -> kv_append                      beside the rest of the block
              fetch_past -> score                                       where there is a past

A transfer reads at its sender what it sends, and no more. What prompts and decodes do apart depends
on their own tokens alone; labels `prefill` and `decode` say whose a row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping_file import ATTENTION
from opbyte.core.ops import NUMERIC, TRANSFER, Array, BlockBuilder, OpTable

#: Label of transfers to the attention group, and back.
THERE, BACK = "there", "back"
#: Label of what brings prompts into the cache, which the next layer need not wait for.
BEHIND = "behind"
#: Labels of rows that are of decodes, of prompts, or of both.
DECODE, PREFILL, MIXED = "decode", "prefill", "mixed"
#: Kinds of rows between the product of q, k and v and attention, which `q_first` cuts in two.
_TURNS = frozenset({"gemm", "norm", "rotary"})


@dataclass(frozen=True)
class Sides:
    """The two groups.

    Attributes:
        model, attention: Tables of one device of each group; their rows have the same names.
        devices: Devices of the model group and of the attention group.
        first: Queries are sent first.
    """

    model: OpTable
    attention: OpTable
    devices: tuple[int, int]
    first: bool


@dataclass(slots=True)
class Block:
    """One block being joined.

    Attributes:
        rows: Its rows in the model's table.
        twins: Row of attention or of the cache -> the same row of the attention group's table.
        decodes, prompts, appends: Rows of decode attention, of prompts' attention, and cache
            writes.
        at: Row of the model's table -> row of the new one that stands for its output.
    """

    sides: Sides
    block: BlockBuilder
    rows: list[int]
    twins: dict[int, int]
    decodes: list[int]
    prompts: list[int]
    appends: list[int]
    at: dict[int, int] = field(default_factory=dict)

    def fill(self) -> None:
        """Add the block's rows and its transfers.

        Raises:
            UncoveredError: If other rows stand between those of attention, or `q_first` finds no
                product of q, k and v.
        """
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
        # Without decodes there is nothing to send first.
        cut = self._chain(given) if self.sides.first and self.decodes else []
        for row in outside:
            if row < start and row not in cut:
                self._copy(row)
        asked = self._part(cut, ".q", None) if cut else -1
        sent = self._send("send_q", self._asks(self.decodes), asked) if cut else -1
        if cut:
            self._part(cut, ".kv", asked)
        ready = [self.at[s] for s in given]
        if self.prompts:
            self._prompts(ready)
        if self.decodes:
            self._decode(ready, sent)
        for row in outside:
            if row > start:
                self._copy(row)

    # -- decodes ---------------------------------------------------------------------------

    def _decode(self, ready: list[int], sent: int) -> None:
        """Add transfers there, attention and the append, and the way back.

        Args:
            ready: Rows that make q, k and v.
            sent: Transfer of the queries alone, below 0 where all are sent together.
        """
        share = self._share(self.decodes)
        new, apart = self._written() * share, sent >= 0
        if apart:
            kv = self._send("send_kv", new, *ready)
        else:
            sent = kv = self._send("send_qkv", self._asks(self.decodes) + new, *ready)
        appends = [] if apart else [self._append(row, kv, share, DECODE) for row in self.appends]
        for row in self.decodes:
            own = [self.at[s] for s in self._inputs(row) if s in self.decodes]
            whole = len(own) == len(self._inputs(row))
            inputs = own if whole else [sent, *appends, *own]
            self.at[row] = self._attending(row, inputs, {}, DECODE)
        if apart:
            appends = [self._append(row, kv, share, DECODE) for row in self.appends]
            for row in appends:
                self.block.wait(row, self.at[self.decodes[-1]])
        contexts = [r for r in self.decodes if self.sides.model.kinds[r] == "context"]
        table, many = self.sides.attention, self.sides.devices[1]
        size = sum(table["out_bytes"][self.twins[r]] for r in contexts) * many
        after = [*(self.at[r] for r in contexts), *(appends if apart else ())]
        back = self._transfer("send_out", BACK, after, np.atleast_1d(size), DECODE)
        self.at |= dict.fromkeys(contexts, back)

    def _attending(self, row: int, inputs: list[int], changed: dict[str, Any], *words: str) -> int:
        """Add a row of the attention group, which its label says of cache writes too.

        What attention has learnt (sinks, a few bytes of each head) this group has a copy of: no
        step waits for it to cross the link.
        """
        table, twin = self.sides.attention, self.twins[row]
        numbers = {**_numbers(table, twin), **changed}
        own = numbers["side_bytes"] + numbers["weight"]
        numbers |= {"side_bytes": own, "weight": np.zeros(1)}
        return self._row(table, twin, table.names[twin], inputs, numbers, ATTENTION, *words)

    def _append(self, row: int, sent: int, share: Any, whose: str, *more: str) -> int:
        """Add the cache write of the tokens that prompts, or decodes, have."""
        numbers = _numbers(self.sides.attention, self.twins[row])
        parts = {
            name: numbers[name] * share
            for name in ("flops", "groups", "kv_write", "in_bytes", "side_bytes", "out_bytes")
        }
        parts["groups"] = np.round(parts["groups"])
        name = "kv_append" if whose == DECODE else "prompts_append"
        table, twin = self.sides.attention, self.twins[row]
        words = (ATTENTION, whose, *more)
        return self._row(table, twin, name, [sent], {**numbers, **parts}, *words)

    # -- prompts ---------------------------------------------------------------------------

    def _prompts(self, ready: list[int]) -> None:
        """Add what prompts attend to, on the model group, and their way into the cache."""
        table = self.sides.model
        scores = [r for r in self.prompts if table.kinds[r] == "score"]
        known = {r: (table["n"][r] - self._new(r)) / table["n"][r] for r in scores}
        past = sum(
            known[r] * (_read(self.sides.attention, self.twins[r]) * self.sides.devices[1])
            for r in scores
        )
        fetched = -1
        if np.any(past > 0):
            fetched = self._transfer("fetch_past", BACK, [], np.atleast_1d(past), PREFILL)
        for row in self.prompts:
            own = [self.at[s] for s in self._inputs(row) if s in self.prompts]
            # What is not cached here is an activation: queries, keys and values.
            numbers = _numbers(table, row)
            held = numbers["side_bytes"] + numbers["kv_read"]
            if row in scores:
                held = held + queries_bytes(table, [row, row + 2])
            changed = {"kv_read": np.zeros(1), "side_bytes": held}
            new = self._row(table, row, table.names[row], own, {**numbers, **changed}, PREFILL)
            for other in (*ready, *([fetched] if fetched >= 0 else ())) if not own else ():
                self.block.wait(new, other)
            self.at[row] = new
        share = self._share(self.prompts)
        size = np.atleast_1d(self._written() * share)
        sent = self._transfer("send_prompts", THERE, ready, size, PREFILL, BEHIND)
        for row in self.appends:
            self._append(row, sent, share, PREFILL, BEHIND)

    def _new(self, score: int) -> Array:
        """Return the new tokens of a piece, whose score row has heads of a group and tokens."""
        table = self.sides.model
        return np.asarray(table["m"][score] / table["heads"][score])

    # -- transfers -------------------------------------------------------------------------

    def _asks(self, rows: list[int]) -> Array:
        """Return the bytes of queries that all attention devices receive."""
        twins = [self.twins[r] for r in rows]
        return queries_bytes(self.sides.attention, twins) * self.sides.devices[1]

    def _written(self) -> Array:
        """Return the bytes of new keys and values that all attention devices receive."""
        table = self.sides.attention
        written = sum(table["kv_write"][self.twins[r]] for r in self.appends)
        return np.atleast_1d(written * self.sides.devices[1])

    def _share(self, rows: list[int]) -> Array | float:
        """Return the share of the block's tokens that rows of attention are of."""
        if len(rows) == len(self.decodes) + len(self.prompts):
            return 1.0
        table = self.sides.model
        both = queries_bytes(table, [*self.decodes, *self.prompts])
        return queries_bytes(table, rows) / both

    def _send(self, name: str, size: Array, *after: int) -> int:
        """Add a transfer of decodes to the attention group."""
        return self._transfer(name, THERE, after, size, DECODE)

    def _transfer(
        self, name: str, way: str, after: Sequence[int], size: Array, whose: str, *more: str
    ) -> int:
        """Add a transfer of `size` bytes in all, when other rows have ended.

        Each device sends, or receives, its part; the smaller group's cards are the bottleneck.
        """
        devices = self.sides.devices
        senders, receivers = devices if way == THERE else devices[::-1]
        row = self.block.add(
            name, TRANSFER, dtype=self.sides.model.dtypes[self.rows[0]], labels=(way, whose, *more),
            flops=0.0, payload=size / min(devices), participants=float(min(devices)),
            side_bytes=size / senders, out_bytes=size / receivers,
        )  # fmt: skip
        for other in dict.fromkeys(after):
            self.block.wait(row, other)
        return row

    # -- the product of q, k and v -----------------------------------------------------------

    def _chain(self, given: list[int]) -> list[int]:
        """Return the rows from the product of q, k and v to attention.

        Raises:
            UncoveredError: If there is no such chain.
        """
        chain = [max(given)]
        kinds = self.sides.model.kinds
        while kinds[chain[0]] in _TURNS - {"gemm"} and len(self._inputs(chain[0])) == 1:
            chain.insert(0, self._inputs(chain[0])[0])
        if self.sides.model.names[chain[0]] != "qkv" or set(given) - set(chain):
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
        table = self.sides.model
        queries = queries_bytes(table, [*self.decodes, *self.prompts])
        row = -1
        for source in cut:
            share = queries / table["out_bytes"][source]
            share = share if suffix == ".q" else 1.0 - share
            inputs = [row] if row >= 0 else [self.at[s] for s in self._inputs(source)]
            numbers = _numbers(table, source)
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
        edges = self.sides.model.edges
        return [int(s) for s in edges[edges[:, 1] == row, 0]]

    def _copy(self, row: int) -> None:
        table = self.sides.model
        inputs = [self.at[s] for s in self._inputs(row)]
        self.at[row] = self._row(table, row, table.names[row], inputs, _numbers(table, row))

    def _row(
        self,
        table: OpTable,
        row: int,
        name: str,
        inputs: list[int],
        numbers: dict[str, Any],
        *words: str,
    ) -> int:
        labels = (*sorted(table.labels[row] - ({MIXED} if words else set())), *words)
        new = self.block.add(
            name, table.kinds[row], dtype=table.dtypes[row], inputs=inputs, labels=labels, **numbers
        )
        if row in table.spreads:
            self.block.spread(new, table.spreads[row])
        if row in table.parts:
            self.block.parts(new, table.parts[row])
        return new


def _numbers(table: OpTable, row: int) -> dict[str, Any]:
    return {name: table[name][row] for name in NUMERIC}


def _read(table: OpTable, score: int) -> Array:
    """Return the bytes of keys and values that a score row and its context row read."""
    read: Array = table["kv_read"][score] + table["kv_read"][score + 2]
    return read


def queries_bytes(table: OpTable, rows: list[int]) -> Array:
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
