"""The route between the model group and that of decode attention: `routes: {kv: ..}`."""

from __future__ import annotations

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping
from opbyte.sim.groups import Groups
from opbyte.sim.ways import Ways

__all__ = ["command_seconds"]


def command_seconds(ways: Ways, mapping: Mapping, groups: Groups) -> float:
    """Return what software takes to start a transfer: one command for each attention device.

    The host gives them one after the other.

    Raises:
        ConfigError: If the route names a link that does not lead there.
        UncoveredError: If it asks for more than the cost of a command.
    """
    route = mapping.routes.get("kv")
    if route is None or not groups.attention:
        return 0.0
    links = ways.links_between(groups.part, groups.attention)
    for via in route.via:
        if via not in links:
            raise ConfigError.one(
                "", "mapping.routes.kv.via", "must be a link between the two groups", via,
                f"those are: {', '.join(links)}",
            )  # fmt: skip
    software = route.software
    if software is None:
        return 0.0
    if software.access is not None or software.cap not in (None, "none"):
        raise UncoveredError(
            f"mapping '{mapping.name or 'unnamed'}' of {ways.machine.name}: of the software "
            "between two groups only `per_command` is modelled. leave `access` and `cap` out"
        )
    each = software.per_command
    return 0.0 if each is None else each.value * groups.devices(groups.attention)
