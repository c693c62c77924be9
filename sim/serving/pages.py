"""Caches of a server that lie in whole pages behind attention engines of drives."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.compute.csd.attention import pages_of
from opbyte.sim.in_storage import WAITING, appends, dram_of, held_bytes
from opbyte.sim.place import Placer
from opbyte.sim.simulate import evaluate
from opbyte.workloads.phases import Decode
from opbyte.workloads.serve import Serve


@dataclass(frozen=True)
class TokenGroups:
    """Tokens whose keys, or values, of a head share a page.

    Attributes:
        tokens: Of a page; a multiple of those of every layer's.
        padded: Bytes of pages over those of keys and values in them, at least 1.
        waiting: Memory in which a sequence's new tokens wait for a page, and their bytes there at
            most, in one drive.
    """

    tokens: int
    padded: float
    waiting: dict[str, float]

    @classmethod
    def of(cls, placer: Placer, work: Serve) -> TokenGroups | None:
        """Return those of the drives that attend; None where none do, or nothing lies in pages.

        Raises:
            ConfigError: If a block of the KV cache would end inside a page.
            UncoveredError: If keys lie by channel, too.
        """
        machine, mapping = placer.machine, placer.mapping
        if not any(machine.unit(u).config.kind == "csd_engine" for u in mapping.units):
            return None
        if placer.kv_copies != (1, 1):
            raise UncoveredError(
                f"mapping '{mapping.name}' of {machine.name}: no model serves a trace with keys "
                "that are stored by channel, too. leave out `place.kv.copies` and kv_select, or "
                "simulate steps as decode works"
            )
        run = evaluate(machine, Decode(work.model, 1, 1), mapping).phases[0]
        placed = run.demand.placed
        tokens, padded, held = 1, 0.0, 0.0
        waiting: dict[str, float] = {}
        for unit in placed.units:
            memory = dram_of(placer, unit)
            for row in appends(run, unit):
                layout = pages_of(placed, unit, row)
                if layout is None:
                    continue
                tokens = lcm(tokens, layout.tokens)
                written = float(np.max(placed.table["kv_write"][row])) * placed.table.repeats[row]
                held += written
                size = layout.tokens * layout.width * layout.element
                padded += written * layout.group_bytes / size
            if memory is not None:
                waiting[memory] = float(np.max(held_bytes(run, unit)))
        if not held:
            return None
        groups = cls(tokens, padded / held, waiting)
        groups._check(work.scheduler.block_tokens)
        return groups

    def _check(self, block: int) -> None:
        if block % self.tokens:
            raise ConfigError.one(
                "", "scheduler.block_tokens", "must be a multiple of the "
                f"{self.tokens} tokens that share a page of flash", block,
                f"write {-(-block // self.tokens) * self.tokens}",
            )  # fmt: skip

    def taken(self, placer: Placer, sequences: int) -> dict[str, float]:
        """Return the bytes that new tokens of so many sequences take in one drive's memories."""
        for memory in self.waiting:
            names = placer.holders.setdefault(memory, [])
            if WAITING not in names:
                names.append(WAITING)
        return {memory: sequences * size for memory, size in self.waiting.items()}
