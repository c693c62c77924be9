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
    routes = mapping.routes.get("kv", ())
    if not routes or not groups.attention:
        return 0.0
    links = ways.links_between(groups.part, groups.attention)
    for via in (name for route in routes for name in route.via):
        if via not in links:
            raise ConfigError.one(
                "", "mapping.routes.kv.via", "must be a link between the two groups", via,
                f"those are: {', '.join(links)}",
            )  # fmt: skip
    found = [route.software for route in routes if route.software is not None]
    if any(s.access is not None or s.staged or s.cap not in (None, "none") for s in found):
        raise UncoveredError(
            f"mapping '{mapping.name or 'unnamed'}' of {ways.machine.name}: of the software "
            "between two groups only `per_command` is modelled. leave `access` and `cap` out"
        )
    each = sum(s.per_command.value for s in found if s.per_command is not None)
    return each * groups.devices(groups.attention) if each else 0.0
