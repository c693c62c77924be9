"""Groups of devices: who runs what alike, and who shares what.

A mapping has one group, whose devices all run the same, or a second one for decode attention
(`Mapping.attention`). Tables hold the operators of one representative device of each group.
"""

from __future__ import annotations

from dataclasses import dataclass

from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping
from opbyte.core.mapping_file import ATTENTION
from opbyte.core.placed import BACK, Together, written_name
from opbyte.hw_models.machine import Machine


@dataclass(frozen=True)
class Groups:
    """The groups of a mapping on a machine.

    Attributes:
        part: Part of the default group.
        attention: Part of the group of decode attention, empty where it has none.
    """

    machine: Machine
    mapping: Mapping
    part: str
    attention: str

    @classmethod
    def of(cls, machine: Machine, mapping: Mapping) -> Groups:
        """Return the groups.

        Raises:
            ConfigError: If a group's part does not exist or has fewer devices than are to run, or
                both groups are one.
        """
        if mapping.default is not None:
            part = _part(machine, mapping.groups[mapping.default.group])
        else:
            part = _part(machine, machine.unit(mapping.run[-1].units[0]).part)
        split = mapping.attention
        attention = _part(machine, mapping.groups[split.group]) if split else ""
        if attention == part:
            raise ConfigError.one(
                "", f"mapping.parallel.{ATTENTION}", "needs a group of another part than the "
                "default's", part, "leave the class out, or name another group",
            )  # fmt: skip
        groups = cls(machine, mapping, part, attention)
        if groups.together:
            groups._check_sets()
            return groups
        replicas = "replicas * " if mapping.pipeline else ""
        groups._check("all", part, f"{replicas}tp * pp * dp")
        if attention:
            groups._check(ATTENTION, attention, "heads")
            groups._check_unit()
        return groups

    def _check_unit(self) -> None:
        """Refuse decode attention on a unit of the other group, whose memory has no cache."""
        rules = [r for r in self.mapping.run if {ATTENTION, "all"} & set(r.ops)]
        for unit in rules[0].units if rules else ():
            if not self.attends(unit):
                group = self.mapping.attention.group if self.mapping.attention else ""
                raise ConfigError.one(
                    "", "mapping.run", f"{ATTENTION} has group '{group}' and runs on its units",
                    unit, f"name a unit of '{self.attention}' for {ATTENTION}",
                )  # fmt: skip

    def _check(self, operators: str, part: str, degrees: str) -> None:
        devices, there = self.devices(part), self.machine.counts[part]
        if devices > there:
            raise ConfigError.one(
                "",
                f"mapping.parallel.{operators}",
                f"{degrees} = {devices} devices, but {self.machine.name} has {there} of '{part}'",
                devices,
                "lower a degree or raise the part's count",
            )

    # -- sets of instances -----------------------------------------------------------------

    @property
    def together(self) -> bool:
        """Return whether a device of the group is a set of instances of its part."""
        default = self.mapping.default
        return default is not None and default.together

    @property
    def home(self) -> str:
        """Return the part above the group's, which holds whole sets."""
        return self.part.rpartition(".")[0]

    @property
    def guests(self) -> int:
        """Return the sets that share one instance of the part above, 1 where a set has it all."""
        if not self.together:
            return 1
        return -(-self.mapping.degrees.devices // self.machine.counts[self.home])

    @property
    def span(self) -> int:
        """Return the instances of the group's part that a set has in one part above."""
        if not self.together:
            return 1
        machine = self.machine
        return machine.counts[self.part] // machine.counts[self.home] // self.guests

    @property
    def sets(self) -> Together:
        """Return what a device of the group is made of."""
        return Together(self.span, self.gathered, self.guests, self.mapping.degrees.devices)

    def spanned(self, path: str) -> float:
        """Return the instances of a memory, port or unit that a device of the group has.

        Those of all parts above over which matrices are split count.
        """
        inside = self.together and f"{path}.".startswith(f"{self.part}.")
        return float(self.span * self.gathered) if inside else 1.0

    @property
    def gathered(self) -> int:
        """Return the parts above over which matrices are split by their outputs."""
        return self.mapping.default.gathered if self.mapping.default else 1

    def _check_sets(self) -> None:
        """Refuse sets of nothing, and splits over more parts than there are."""
        if not self.home:
            raise ConfigError.one(
                "", "mapping.groups", "instances work together inside a part above theirs",
                self.part, "name a part inside another, or leave `together` out",
            )  # fmt: skip
        there, sets = self.machine.counts[self.home], self.mapping.degrees.devices
        if sets * self.gathered > there and self.gathered > 1:
            raise ConfigError.one(
                "", "mapping.parallel.all",
                f"pp * dp * tp = {sets * self.gathered}, but {self.machine.name} has {there} of "
                f"'{self.home}', over which outputs are split", sets * self.gathered,
                "lower a degree, or raise the part's count",
            )  # fmt: skip
        if self.span < 1:
            raise ConfigError.one(
                "", "mapping.parallel.all",
                f"pp * dp = {sets} sets leave none of {self.machine.counts[self.part]} "
                f"'{self.part}' to each of them", sets, "lower a degree",
            )  # fmt: skip

    def attends(self, path: str) -> bool:
        """Return whether a part, memory, port or unit belongs to the attention group."""
        return bool(self.attention) and f"{path}.".startswith(f"{self.attention}.")

    def of_path(self, path: str) -> str:
        """Return the part of the group that a path belongs to, the default's for all others."""
        return self.attention if self.attends(path) else self.part

    def devices(self, path: str) -> int:
        """Return the devices that run in the group that a path belongs to."""
        if self.attends(path):
            return self.mapping.attention_degrees.tp
        return self.mapping.degrees.devices * self._replicas

    @property
    def _replicas(self) -> int:
        return self.mapping.pipeline.replicas if self.mapping.pipeline else 1

    def alike(self, path: str) -> float:
        """Return the devices of one stage and batch that use a port, link or unit alike."""
        degrees = self.mapping.degrees
        if self.attends(path):
            return float(self.mapping.attention_degrees.tp)
        if self.joins(path):
            return float(min(degrees.tp, self.mapping.attention_degrees.tp))
        return float(degrees.tp * degrees.dp)

    def joins(self, resource: str) -> bool:
        """Return whether a resource is a link that leads out of the attention group."""
        link = self.machine.config.links.get(written_name(resource))
        return link is not None and any(self.attends(e) for e in link.ends) and not all(
            self.attends(e) for e in link.ends
        )  # fmt: skip

    def turns(self, name: str) -> float:
        """Return how many instances of a resource or unit staggered batches use side by side."""
        if self.attends(name):
            return 1.0
        if self.joins(name):
            many = min(self.devices(self.part), self.devices(self.attention))
            return many / self.alike(name)
        return float(self._replicas)

    def wired(self, name: str) -> float:
        """Return the share that a wire of a link has of what a device of the smaller group sends.

        A point-to-point link from a part between the groups has a wire for each device.
        """
        link = self.machine.config.links[name]
        both = {p: self.devices(p) for p in (self.part, self.attention)}
        at = [n for p, n in both.items() if any(f"{end}.".startswith(f"{p}.") for end in link.ends)]
        alone = len(at) == 1 and link.topology == "point-to-point"
        return min(both.values()) / at[0] if alone else 1.0

    def direction(self, name: str, start: str) -> str:
        """Return the resource that stands for a link in the direction away from a part."""
        link = self.machine.config.links[name]
        forth = link.duplex == "half" or f"{link.ends[0]}.".startswith(f"{start}.")
        return name if forth else f"{name}{BACK}"


def _part(machine: Machine, part: str) -> str:
    if part not in machine.counts:
        rule, remedy = f"{machine.name} has no such part", machine.remedy(part, machine.counts)
        raise ConfigError.one("", "mapping.groups", rule, part, remedy)
    return part
