"""Which ports of one memory are used at once, and what its sharing rule makes of it."""

from __future__ import annotations

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.core.placed import SharedArray
from opbyte.hw_models.machine import Machine
from opbyte.sim.groups import Groups


def spread_memories(machine: Machine, mapping: Mapping, groups: Groups) -> dict[str, float]:
    """Return the memories whose instances pages go round, with the instances for each device.

    Raises:
        UncoveredError: If another tensor lies in one of those instances.
    """
    spread: dict[str, float] = {}
    for place in mapping.place.values():
        if place.interleave is None:
            continue
        # A device's own memory is its own, however many devices there are.
        away = [t for t in place.in_ if not f"{t}.".startswith(f"{groups.of_path(t)}.")]
        found = {t: machine.memory(t).count / groups.devices(t) for t in away}
        spread |= {t: n for t, n in found.items() if n > 1.0}
    for tensor, place in mapping.place.items():
        alone = [t for t in place.in_ if t in spread and place.interleave is None]
        if alone:
            raise UncoveredError(
                f"{machine.name}: '{tensor}' lies in one instance of '{alone[0]}', round all of "
                "which others are interleaved, and no model prices both. give it `interleave`, too"
            )
    return spread


def ports_by_memory(machine: Machine, resources: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the used ports of each memory."""
    used: dict[str, list[str]] = {}
    for resource in resources:
        tier = resource.rpartition(".")[0]
        if tier in machine.memories:
            used.setdefault(tier, []).append(resource)
    return used


def shared_arrays(
    machine: Machine, resources: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[SharedArray, ...]]:
    """Return resources with the cells of memories whose ports share them, and who shares them.

    `sum`: the ports together have the rate of the fastest. `exclusive`: one port is served at a
    time. `partition`: every port has cells of its own, and shares nothing.

    Raises:
        UncoveredError: If more ports are used than the memory has partitions.
    """
    names, arrays = list(resources), []
    for tier, ports in ports_by_memory(machine, resources).items():
        sharing = machine.memory(tier).config.sharing
        if len(ports) < 2:
            continue
        if sharing.rule == "partition":
            if len(ports) > (sharing.partitions or 1):
                raise UncoveredError(
                    f"{machine.name}: {', '.join(ports)} are used at once, and '{tier}' has "
                    f"{sharing.partitions or 1} partitions. raise `sharing.partitions`, or map "
                    "its operators to fewer units"
                )
            continue
        arrays.append(
            SharedArray(
                len(names), tuple(names.index(p) for p in ports), sharing.rule == "exclusive"
            )
        )
        names.append(tier)
    return tuple(names), tuple(arrays)
