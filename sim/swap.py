"""A cache that outgrows its memory and is swapped to the one below, by zigzag blocks.

Every decode step reads the whole KV cache in the same order. Of pages that are used in a cycle, the
least recently used one is the one needed next: a cache of F bytes in a memory with room for C reads
nothing from below while F <= C, and everything in each step once F > C (Denning, The working set
model, Communications of the ACM 11(5), 1968: cyclic references). Pages that a step did not write
are dropped without a copy: below they are still valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import Array, Phase
from opbyte.sim.place import Placer
from opbyte.workloads.model_work import ModelWork

#: Growth over a phase below which its steps are taken for equally long.
_STILL = 1e-3


@dataclass(frozen=True)
class Swap:
    """The KV cache of a work, and the memory that it may outgrow.

    Attributes:
        tier: The memory.
        below: Where it is swapped to.
        bytes: Of the cache after the last step, (points,).
        room: Bytes that the memory has for it, (points,).
    """

    tier: str
    below: str
    bytes: Array
    room: Array

    @classmethod
    def of(cls, home: Placer, work: ModelWork) -> Swap | None:
        """Return the swap of a placer's mapping, None without a `spill`."""
        placement = home.tiers("kv")
        if not placement.spill:
            return None
        tier = next(iter(placement.in_))
        held = work.footprint(home.mapping.degrees)
        cache = np.atleast_1d(held.pop("kv", 0.0)) * home.crowd(tier)
        held.pop("activation")
        others = Placer(home.machine, home.mapping).occupancy(held)
        room = np.maximum(home.capacity(tier) - others.get(tier, 0.0), 0.0)
        return cls(tier, placement.spill[0].tier, cache, np.atleast_1d(room))

    def shares(self, phase: Phase, batches: int) -> tuple[Array, Array]:
        """Return the shares of a phase's KV reads and writes that cross to the memory below.

        The cache grows evenly from step to step; its mean is what a step reads.
        """
        table = phase.table
        mean = batches * table.total("kv_read")
        last = np.broadcast_to(self.bytes, np.broadcast_shapes(self.bytes.shape, mean.shape))
        if phase.name == "prefill":
            written = batches * table.total("kv_write")
            over = np.maximum(written - self.room, 0.0)
            return np.zeros(1), over / np.where(written > 0, written, 1.0)
        growth = 2.0 * (last - mean)
        full = np.where(last > self.room, 1.0, 0.0)
        part = np.clip((last - self.room) / np.where(growth > 0, growth, 1.0), 0.0, 1.0)
        share = np.where(growth > _STILL * last, part, full)
        return share, share

    @property
    def occupancy(self) -> dict[str, Array]:
        """Return the bytes in each memory: all pages have a place below once one was swapped."""
        over = self.bytes > self.room
        return {
            self.tier: np.minimum(self.bytes, self.room),
            self.below: np.where(over, self.bytes, 0.0),
        }


def check_spill(where: str, mapping: Mapping) -> None:
    """Refuse what swapping has no model of.

    Raises:
        UncoveredError: If a class other than the KV cache spills, to several memories or in part.
    """
    for name, place in mapping.place.items():
        if not place.spill:
            continue
        part: Any = place.spill[0].capacity
        if name != "kv" or len(place.spill) > 1 or len(place.in_) > 1 or part is not None:
            text = f"place.{name} under zigzag spills from one memory to one other, kv alone"
            raise UncoveredError(f"{where}: {text}, without `capacity`. give shares of the tiers")
