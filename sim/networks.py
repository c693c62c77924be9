"""Networks of a group of devices: which links its collectives and its replicas use."""

from __future__ import annotations

from dataclasses import dataclass

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import Machine
from opbyte.sim.groups import Groups


@dataclass(frozen=True)
class Networks:
    """Links between the devices that run.

    Attributes:
        degrees: Into how many parts a model is split.
        groups: Which devices run.
    """

    machine: Machine
    degrees: Parallel
    groups: Groups

    def of_collectives(self) -> str:
        """Return the link between the devices of a collective.

        Raises:
            ConfigError: If there is none.
        """
        ends = self.groups.home if self.groups.together else self.groups.part
        for name, link in self.machine.config.links.items():
            if link.ends == (ends, ends):
                return name
        raise ConfigError.one(
            "",
            "machine.links",
            f"{self.machine.name} has no link between instances of '{ends}'",
            self.degrees,
            "add one, or use tp = pp = ep = 1",
        )

    def of_replicas(self) -> str:
        """Return the link that joins replicas of a model: that between nodes, if there are several.

        Raises:
            UncoveredError: If a node holds more than one replica and others are elsewhere.
        """
        counts, part = self.machine.counts, self.groups.part
        degrees = self.degrees
        for name, link in self.machine.config.links.items():
            node = link.ends[0]
            if link.ends == (node, node) and part.startswith(f"{node}."):
                local = counts[part] / counts[node]
                if degrees.devices <= local:
                    break
                if degrees.tp < local:
                    raise UncoveredError(
                        f"{self.machine.name}: replicas of {degrees.tp} devices share a '{node}' "
                        f"of {local:g}, and no model sends tokens of experts inside and between "
                        "nodes at once. let a replica fill a node, or use `dispatch: true`"
                    )
                return name
        return self.of_collectives()

    def across(self, participants: float) -> tuple[str, float]:
        """Return the link between nodes and the devices of one; no name where one node holds all.

        Raises:
            UncoveredError: If there are not so many devices, or the link inside a node says
                nothing of a library's collectives. A machine of one device stands for any number.
        """
        counts, part = self.machine.counts, self.groups.part
        if 1 < counts[part] < participants:
            raise UncoveredError(
                f"{self.machine.name} has {counts[part]} of '{part}', and a collective "
                f"has {participants:g} participants. lower them, or raise the part's count"
            )
        for name, link in self.machine.config.links.items():
            node = link.ends[0]
            if link.ends == (node, node) and part.startswith(f"{node}."):
                local = counts[part] / counts[node]
                if participants <= local:
                    break
                inner = self.of_collectives()
                if self.machine.config.links[inner].collectives is None:
                    raise UncoveredError(
                        f"{self.machine.name}: collectives over '{name}' need a `collectives` "
                        f"block of link '{inner}' too. give it one, or use one {node}"
                    )
                return name, local
        return "", float("inf")
