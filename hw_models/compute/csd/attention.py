"""Rows of attention in one computational drive: seconds of each stage, and bytes of whole pages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.kv_select import KvSelect
from opbyte.core.placed import MOVED, PlacedOps
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.csd.drive import Drive
from opbyte.hw_models.compute.csd.layout import Layout, touched
from opbyte.hw_models.compute.csd.rates import ELEMENT, gemv_rate, rate, softmax_seconds

#: Seconds of each stage, by name.
Stages = dict[str, Any]


@dataclass(frozen=True)
class Cached:
    """The cache that a score or context row reads.

    Attributes:
        tokens: In it, (1 or points,).
        layout: Pages of one head; None where the mapping says no page.
        spread: Lengths are spread over the tokens of a page, and `tokens` are their mean.
    """

    tokens: Any
    layout: Layout | None
    spread: bool = False

    @property
    def pages(self) -> Any:
        """Return the bytes of all pages of keys, or of values, of a head with pages."""
        assert self.layout is not None, "asked only where there are pages"
        return (self.layout.spread if self.spread else self.layout.by_token)(self.tokens)


def cached(placed: PlacedOps, unit: str, row: int) -> Cached:
    """Return the cache that a score or context row on a unit reads."""
    table, select = placed.table, placed.kv_select
    score = table.kinds[row] == "score"
    width, tokens = table["k" if score else "n"][row], table["n" if score else "k"][row]
    share = 1.0
    if select is not None:
        tokens = tokens / (select.keep.value + (select.look_work if score else 0.0))
        share = select.keep.value + (select.looked(8.0 * ELEMENT) if score else 0.0)
    page = placed.pages.get((placed.units.index(unit), MOVED.index("kv_read")))
    if page is None:
        return Cached(tokens, None)
    size = table["kv_read"][row] / (tokens * width * share * table["groups"][row])
    layout = Layout(page, float(np.max(width)), float(np.max(size)))
    return Cached(tokens, layout, "spread" in table.labels[row])


def group_tokens(placed: PlacedOps, unit: str, append: int) -> int:
    """Return the new tokens that wait for a page of the cache that a row writes."""
    layout = pages_of(placed, unit, append)
    return 1 if layout is None else layout.tokens


def pages_of(placed: PlacedOps, unit: str, append: int) -> Layout | None:
    """Return the pages of the cache that decodes append to; None where nothing reads it here."""
    table = placed.table
    for row in np.flatnonzero(table.block_of == table.block_of[append]).tolist():
        here = placed.unit_of[placed.op_of[row]] == placed.units.index(unit)
        if table.kinds[row] == "score" and here:
            return cached(placed, unit, row).layout
    return None


@dataclass(frozen=True)
class Attention:
    """Rows of attention in one drive.

    Attributes:
        placed: Operators.
        unit: The engine.
        drive: What is around it.
    """

    placed: PlacedOps
    unit: UnitView
    drive: Drive

    @cached_property
    def _select(self) -> KvSelect | None:
        """Return how tokens are chosen, None where all count.

        Raises:
            UncoveredError: If not by channels.
        """
        select = self.placed.kv_select
        if select is not None and select.channels is None:
            raise UncoveredError(
                f"{self.unit.machine.name}: '{self.unit.path}' chooses tokens by channels of their "
                f"keys, got kv_select: {select.kind}. use sparf"
            )
        return select

    def seconds(self, op: int, stages: Stages) -> Any:
        """Return the seconds of one operator whose heads follow each other through the stages."""
        used = np.stack(np.broadcast_arrays(*(np.atleast_1d(s) for s in stages.values())))
        longest = used.max(axis=0)
        rows = np.flatnonzero(self.placed.op_of == op)
        heads = np.maximum(self.placed.table["groups"][rows].min(axis=0), 1.0)
        reads = np.any(self.placed.table["kv_read"][rows] > 0)
        looks = 2.0 if self._select is not None else 1.0
        first = self.drive.latency * looks if reads else 0.0
        return np.atleast_1d(first + longest + (used.sum(axis=0) - longest) / heads)

    # -- rows ------------------------------------------------------------------------------

    def stages(self, row: int) -> Stages:
        """Return the seconds for which a row uses each stage."""
        table, kind = self.placed.table, self.placed.table.kinds[row]
        if kind == "kv_append":
            return self._append(row)
        if kind == "softmax":
            scores = 2.0 * table["out_bytes"][row] / self.drive.dram
            return {"softmax": softmax_seconds(table, row, self.unit), "dram": scores}
        found: Stages = {"gemv": table["flops"][row] / gemv_rate(self.unit, table.dtypes[row])}
        read = table["kv_read"][row] + sum(self.moved(row).values())
        found["flash"] = read / self.drive.stream if self._select is None else self._chosen(row)
        if self._select is not None and kind == "score":
            tokens = cached(self.placed, self.unit.path, row).tokens
            scores = tokens * table["m"][row] * table["groups"][row]
            found["argtopk"] = scores / rate(self.unit, "sort")
            found["dram"] = 2.0 * ELEMENT * scores / self.drive.dram
        found["filter"] = read / (self.drive.channels * rate(self.unit, "filter"))
        return found

    def moved(self, row: int) -> dict[tuple[str, str], Any]:
        """Return the bytes that a row moves beside the compulsory ones, by class and cause."""
        table, kind = self.placed.table, self.placed.table.kinds[row]
        if kind == "kv_append":
            return self._copies(row)
        if kind not in ("score", "context"):
            return {}
        if self._select is None:
            found = cached(self.placed, self.unit.path, row)
            if found.layout is None:
                return {}
            pages = found.pages
        else:
            pages = sum(self._pages(row))
        more = pages * table["groups"][row] - table["kv_read"][row]
        return {("kv_read", "page"): np.maximum(more, 0.0)}

    # -- sparse attention ------------------------------------------------------------------

    def _pages(self, row: int) -> tuple[Any, Any, Any]:
        """Return the bytes of pages that a sparse row reads of one head of a sequence.

        Returns:
            By token: keys that the first look takes in order, and what holds a kept token. By
            channel.
        """
        select = self._select
        assert select is not None, "asked only where tokens are chosen"
        assert select.channels is not None, "checked before"
        found = self._in_pages(row)
        layout, tokens = found.layout, found.tokens
        assert layout is not None, "checked before"
        exact = touched(tokens, select.keep.value, layout.tokens, select.run) * layout.group_bytes
        if self.placed.table.kinds[row] == "context":
            return 0.0, exact, 0.0
        if self.placed.kv_copies[0] < 2:
            return layout.by_token(tokens), exact, 0.0
        # New keys that are not written by channel yet are met by token.
        late = np.minimum(self.unit.get("csd.hold") / 2.0, tokens)
        channels = select.channels.value * layout.width
        return layout.by_token(late), exact, layout.by_channel(tokens, channels)

    def _chosen(self, row: int) -> Any:
        """Return the seconds of a sparse row's pages.

        Where most pages by token are asked for, all of them come sooner as a stream.
        """
        found = self._in_pages(row)
        assert found.layout is not None, "checked before"
        in_order, exact, channels = self._pages(row)
        scattered = self.drive.pages(found.layout.page)
        every = found.layout.by_token(found.tokens) / self.drive.stream
        one = in_order / self.drive.stream + channels / scattered
        return self.placed.table["groups"][row] * (one + np.minimum(exact / scattered, every))

    def _in_pages(self, row: int) -> Cached:
        """Return the cache of a row.

        Raises:
            UncoveredError: If nothing says in which pages it lies.
        """
        found = cached(self.placed, self.unit.path, row)
        if found.layout is None:
            raise UncoveredError(
                f"{self.unit.machine.name}: '{self.placed.table.names[row]}': what sparse "
                "attention reads depends on pages. give `place.kv.page`"
            )
        if found.spread:
            raise UncoveredError(
                f"{self.unit.machine.name}: '{self.placed.table.names[row]}': no model says how "
                "many pages kept tokens touch in sequences of spread lengths. choose all tokens, "
                "or give one context"
            )
        return found

    # -- writes ----------------------------------------------------------------------------

    def _copies(self, row: int) -> dict[tuple[str, str], Any]:
        """Return what further copies of keys and values add to a write."""
        keys, values = self.placed.kv_copies
        half = self.placed.table["kv_write"][row] / 2.0
        found = {("kv_write", "copy"): half * (keys - 1 + values - 1)}
        if keys > 1 and "prefill" not in self.placed.table.labels[row]:
            layout = pages_of(self.placed, self.unit.path, row)
            if layout is not None:
                again = half * (layout.rewritten(self.unit.get("csd.hold")) - 1.0)
                # A page that is written anew is read before.
                found["kv_write", "page"] = found["kv_read", "page"] = again
        return found

    def _append(self, row: int) -> Stages:
        """Return the stages of a cache write: into the DRAM, when pages are full on to flash."""
        written, more = self.placed.table["kv_write"][row], self._copies(row)
        read = more.pop(("kv_read", "page"), 0.0)
        return {
            "dram": 2.0 * written / self.drive.dram,
            "flash": (written + sum(more.values())) / self.drive.writes + read / self.drive.stream,
        }
