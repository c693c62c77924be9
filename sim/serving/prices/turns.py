"""Batches that take turns at the groups of devices of a mapping: the parts of one iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.expert_offload import offloads
from opbyte.sim.groups import Groups
from opbyte.workloads.serve import Serve


@dataclass(frozen=True)
class Turns:
    """How an iteration is divided into batches.

    Attributes:
        mapping: Of one batch.
        batches: How many there are.
        shared: Instances of a resource or unit that they use side by side.
    """

    mapping: SoftwareMapping
    batches: int
    shared: Callable[[str], float]

    @classmethod
    def of(cls, machine: Machine, mapping: SoftwareMapping) -> Turns:
        """Return those of a mapping: one batch where none are staggered."""
        pipeline = mapping.pipeline
        if pipeline is None or pipeline.kind != "staggered":
            return cls(mapping, 1, lambda _: 1.0)
        alone = mapping.model_copy(update={"pipeline": None})
        return cls(alone, pipeline.batches, Groups.of(machine, mapping).turns)


def check_apart(machine: Machine, work: Serve, mapping: SoftwareMapping, *, divides: bool) -> None:
    """Refuse what no model joins with decode attention on devices of its own.

    Args:
        divides: The scheduler divides steps by layers.
    Raises:
        UncoveredError: If it is asked for.
    """
    if mapping.attention is None:
        return
    refused = {
        "guesses (speculate), which several queries of a sequence verify": work.speculation,
        "adapters or models": work.adapters or work.models,
        "steps divided by layers (layered)": divides,
        "caches that go to the memory below (preempt: swap)": work.scheduler.preempt == "swap",
        "contents below the cache (spill)": "kv" in mapping.place and mapping.place["kv"].spill,
        "pools of prefill and decode": work.fleet.pools,
        "batches that take turns and copies of experts": mapping.pipeline and offloads(mapping),
    }
    for what, asked in refused.items():
        if asked:
            raise UncoveredError(
                f"mapping '{mapping.name}' of {machine.name}: no model joins {what} with decode "
                "attention on a group of its own. leave one out, or use a mapping with one group"
            )
