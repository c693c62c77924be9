"""Batches that take turns at the groups of devices of a mapping: the parts of one iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.groups import Groups


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
        """Return those of a mapping: one batch where it has no pipeline."""
        if mapping.pipeline is None:
            return cls(mapping, 1, lambda _: 1.0)
        batches = mapping.pipeline.batches
        alone = mapping.model_copy(update={"pipeline": None})
        return cls(alone, batches, Groups.of(machine, mapping).turns)
