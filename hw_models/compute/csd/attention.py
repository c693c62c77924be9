"""Rows of attention in one computational drive: seconds of each stage, and bytes of whole pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.placed import MOVED, PlacedOps
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.csd.drive import Drive
from opbyte.hw_models.compute.csd.layout import Layout, touched
from opbyte.hw_models.compute.csd.rates import ELEMENT, gemv_rate, rate, softmax_seconds

#: Seconds of each stage, by name.
Stages = dict[str, Any]


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

    def seconds(self, op: int, stages: Stages) -> Any:
        """Return the seconds of one operator whose heads follow each other through the stages."""
        used = np.stack(np.broadcast_arrays(*(np.atleast_1d(s) for s in stages.values())))
        longest = used.max(axis=0)
        rows = np.flatnonzero(self.placed.op_of == op)
        heads = np.maximum(self.placed.table["groups"][rows].min(axis=0), 1.0)
        reads = np.any(self.placed.table["kv_read"][rows] > 0)
        looks = 2.0 if self.placed.kv_select is not None else 1.0
        first = self.drive.latency * looks if reads else 0.0
        return np.atleast_1d(first + longest + (used.sum(axis=0) - longest) / heads)

    # -- rows ------------------------------------------------------------------------------

    def stages(self, row: int) -> Stages:
        """Return the seconds for which a row uses each stage."""
        table = self.placed.table
        kind = table.kinds[row]
        if kind == "kv_append":
            return self._append(row)
        if kind == "softmax":
            own = softmax_seconds(table, row, self.unit)
            return {"softmax": own, "dram": 2.0 * table["out_bytes"][row] / self.drive.dram}
        gemv = table["flops"][row] / gemv_rate(self.unit, table.dtypes[row])
        read = table["kv_read"][row] + sum(self.moved(row).values())
        found: Stages = {"gemv": gemv}
        select = self.placed.kv_select
        found["flash"] = read / self.drive.stream if select is None else self._at_random(row)
        if select is not None and kind == "score":
            scores = self._tokens(row) * table["m"][row] * table["groups"][row]
            found["argtopk"] = scores / rate(self.unit, "sort")
            found["dram"] = 2.0 * ELEMENT * scores / self.drive.dram
        channels = 1.0 if self.drive.device is None else float(self.drive.device.channels)
        found["filter"] = read / (channels * rate(self.unit, "filter"))
        return found

    def moved(self, row: int) -> dict[tuple[str, str], Any]:
        """Return the bytes that a row moves beside the compulsory ones, by class and cause."""
        table = self.placed.table
        kind = table.kinds[row]
        if kind == "kv_append":
            return self._copies(row)
        if kind not in ("score", "context") or self._page is None:
            return {}
        more = sum(self._read(row)) * table["groups"][row] - table["kv_read"][row]
        return {("kv_read", "page"): np.maximum(more, 0.0)}

    def _read(self, row: int) -> tuple[Any, Any]:
        """Return the bytes of whole pages that a row reads of one head of a sequence.

        Returns:
            What is read as a stream, and pages by token and by channel at random places.
        """
        layout, tokens = self._layout(row), self._tokens(row)
        select = self.placed.kv_select
        if select is None:
            return layout.by_token(tokens), 0.0
        exact = touched(tokens, select.keep.value, layout.tokens, select.run) * layout.group_bytes
        if self.placed.table.kinds[row] == "context":
            return 0.0, exact
        assert select.channels is not None, "only sparf comes here"
        if self.placed.kv_copies[0] < 2:
            return layout.by_token(tokens), exact
        # New keys that are not written by channel yet are met by token.
        late = np.minimum(self.unit.get("csd.hold") / 2.0, tokens)
        looked = layout.by_channel(tokens, select.channels.value * layout.width)
        return 0.0, exact + looked + layout.by_token(late)

    def _at_random(self, row: int) -> Any:
        """Return the seconds of a sparse row's pages.

        Where most pages by token are asked for, all of them come sooner as a stream.
        """
        layout, groups = self._layout(row), self.placed.table["groups"][row]
        streamed, scattered = self._read(row)
        select = self.placed.kv_select
        assert select is not None, "only sparf comes here"
        tokens = self._tokens(row)
        exact = touched(tokens, select.keep.value, layout.tokens, select.run) * layout.group_bytes
        rate = self.drive.pages(layout.page)
        chosen = np.minimum(exact / rate, layout.by_token(tokens) / self.drive.stream)
        return groups * (streamed / self.drive.stream + chosen + (scattered - exact) / rate)

    def _copies(self, row: int) -> dict[tuple[str, str], Any]:
        """Return what writes of keys by channel add."""
        keys, values = self.placed.kv_copies
        written = self.placed.table["kv_write"][row]
        half = written / 2.0
        found = {("kv_write", "copy"): half * (keys - 1 + values - 1)}
        if keys > 1 and self._page is not None:
            new = "prefill" not in self.placed.table.labels[row]
            times = self._of_score(row).rewritten(self.unit.get("csd.hold")) if new else 1.0
            found["kv_write", "page"] = half * (times - 1.0)
        return found

    def _append(self, row: int) -> Stages:
        """Return the stages of a cache write: into the DRAM, when pages are full on to flash."""
        written = self.placed.table["kv_write"][row]
        programmed = written + sum(self._copies(row).values())
        return {
            "dram": 2.0 * written / self.drive.dram,
            "flash": programmed / self.drive.writes,
        }

    # -- shapes ----------------------------------------------------------------------------

    def _tokens(self, row: int) -> Any:
        """Return the tokens in the cache that a score or context row is about."""
        table = self.placed.table
        select = self.placed.kv_select
        if table.kinds[row] == "score":
            more = 1.0 if select is None else select.keep.value + select.look_work
            return table["n"][row] / more
        return table["k"][row] / (1.0 if select is None else select.keep.value)

    @property
    def _page(self) -> float | None:
        """Return the page that the mapping gives, None without one."""
        unit = self.placed.units.index(self.unit.path)
        return self.placed.pages.get((unit, MOVED.index("kv_read")))

    def _layout(self, row: int) -> Layout:
        """Return how the cache of a score or context row lies in pages.

        Raises:
            UncoveredError: If the mapping does not say it.
        """
        table = self.placed.table
        page = self._page
        if page is None:
            raise UncoveredError(
                f"{self.unit.machine.name}: '{table.names[row]}': sparse attention reads pages. "
                "give `place.kv.page`"
            )
        width = table["k" if table.kinds[row] == "score" else "n"][row]
        tokens = self._tokens(row) * table["groups"][row]
        share = 1.0
        if self.placed.kv_select is not None:
            select = self.placed.kv_select
            share = select.keep.value
            if table.kinds[row] == "score":
                share = share + select.looked(8.0 * ELEMENT)
        element = table["kv_read"][row] / (tokens * width * share)
        return Layout(page, float(width.max()), float(element.max()))

    def _of_score(self, append: int) -> Layout:
        """Return the layout of the cache that a row appends to."""
        table = self.placed.table
        here = np.flatnonzero(table.block_of == table.block_of[append])
        units = self.placed.units.index(self.unit.path)
        mine = [
            r for r in here
            if table.kinds[r] == "score" and self.placed.unit_of[self.placed.op_of[r]] == units
        ]  # fmt: skip
        return self._layout(int(mine[0]))
