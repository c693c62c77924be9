"""Kinds of work that are more than phases one after the other, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.mapping_file import Split
from opbyte.core.registry import Registry
from opbyte.hw_models.machine import Machine
from opbyte.sim.result import Outcome
from opbyte.workloads.works import Work

Runner = Callable[[Machine, Any, SoftwareMapping, str, int], Outcome]
#: Work kinds that are more than phases one after the other have a runner of their own.
RUNNERS: Registry[Runner] = Registry("kind of work with a runner")
#: Modules whose import registers the runners that ship with opbyte; loaded when one is needed.
RUNNERS_OF = {
    "coe": "opbyte.sim.coe",
    "serve": "opbyte.sim.serving.run",
    "speculative_decode": "opbyte.sim.speculative",
    "stream": "opbyte.sim.stream",
    "train": "opbyte.sim.training.run",
}


def unplayable(work: type[Work], fidelity: str) -> str:
    """Return why a kind of work has no such fidelity; empty where it has."""
    if fidelity == "bound" and work.played:
        return f"a {work.kind} work has no bound: its steps depend on the times of other steps"
    return ""


def alone(mapping: SoftwareMapping) -> dict[str, Any]:
    """Return what differs in a mapping where one device of the group has all to itself."""
    default = mapping.default
    sets = {"all": Split(group=default.group, together=True)} if default else {}
    together = default is not None and default.together
    parallel = sets if together else {}
    return {"parallel": parallel, "pipeline": None, "overlap": "none", "assist": None}


def refuse_caches(machine: Machine, work: Work, mapping: SoftwareMapping) -> None:
    """Refuse a mapping that caches a tensor, which no phase has a model of.

    Raises:
        UncoveredError: If it does.
    """
    cached = [name for name, place in mapping.place.items() if place.cache]
    if cached:
        raise UncoveredError(
            f"mapping '{mapping.name}' of {machine.name}: a {work.kind} work has no model of the "
            f"cache of {', '.join(cached)}. use another mapping; prefill, decode and generate "
            "works cache expert.weight, coe works models"
        )
