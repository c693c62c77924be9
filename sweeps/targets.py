"""What the paths of a study mean on its machines and its work."""

from __future__ import annotations

from collections.abc import Sequence

from opbyte.core.config import resolve_path
from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import STRUCTURE
from opbyte.sweeps.axes import Target
from opbyte.sweeps.study import ROOTS
from opbyte.workloads.works import Work

__all__ = ["FIELD_PATHS", "Targets", "parameter_path"]

#: Paths inside a work that mean one of its fields.
FIELD_PATHS = {"experts.count": "count"}


class Targets:
    """Resolves paths.

    A machine's path must mean something on every machine of the study; it may mean another place
    of the tree on each (`hbm.phy.bandwidth`).
    """

    def __init__(self, machines: Sequence[Machine], work: type[Work] | None) -> None:
        """Resolve paths on machines, and on a work where its kind is known."""
        self._machines = machines
        self._work = work

    def on(self, machines: Sequence[Machine]) -> Targets:
        """Return what paths mean on some of the machines."""
        return Targets(machines, self._work)

    def judges(self, path: str) -> bool:
        """Return whether the path is no part of a machine or a work that is unknown."""
        root, dot, _ = path.partition(".")
        known = {"machine": bool(self._machines), "workload": self._work is not None}
        return not dot or known.get(root, True)

    def of(self, path: str) -> Target:
        """Return what a path means.

        Raises:
            ConfigError: If it means nothing, with the nearest name.
        """
        root, _, rest = path.partition(".")
        if root not in ROOTS:
            near = nearest(root, ROOTS)
            hint = f"Did you mean {near!r}?" if near else "Write for example workload.batch."
            rule = "a path must start with machine, mapping or workload"
            raise ConfigError.one("", "", rule, path, hint)
        if root == "machine" and rest:
            return self._value(path, rest)
        if root == "workload" and rest:
            return self._field(path, rest)
        return Target(path, path, "structure")

    def _value(self, path: str, rest: str) -> Target:
        dimensions = set()
        first = parameter_path(self._machines[0], rest) or rest
        for machine in self._machines:
            short = parameter_path(machine, rest)
            if short is None:
                # Raises where the machine has nothing of that name.
                resolve_path(machine.document.data, rest, transparent=STRUCTURE)
                _check_known(machine, rest)
                return Target(path, f"machine.{first}", "structure", rest)
            dimensions.add(machine.parameters[short].dimension)
        if len(dimensions) > 1:
            shown = " and ".join(sorted(dimensions))
            raise ConfigError.one("", "", f"this is {shown} on different machines", path)
        return Target(path, f"machine.{first}", "value", rest, dimensions.pop())

    def _field(self, path: str, rest: str) -> Target:
        assert self._work is not None, "asked only where the kind of work is known"
        name = FIELD_PATHS.get(rest, rest)
        fields = self._work.vector_fields
        if name in fields and (rest == name or name in fields):
            return Target(path, f"workload.{name}", "field", name, "count")
        return Target(path, path, "structure", rest)


def _check_known(machine: Machine, rest: str) -> None:
    """Refuse a last word that the machine's format does not have, with the nearest one."""
    try:
        machine.replace({rest: None})
    except ConfigError as error:
        unknown = [p for p in error.problems if p.rule.startswith("no key is called")]
        if unknown:
            raise ConfigError.one("", "", unknown[0].rule, "", unknown[0].remedy) from None


def parameter_path(machine: Machine, rest: str) -> str | None:
    """Return the short path of a machine's number, None where it has no such number.

    A path may leave out the parts above a memory, unit or link where one number alone ends so.
    """
    try:
        words = resolve_path(machine.document.data, rest, transparent=STRUCTURE)
    except ConfigError:
        ends = [p for p in machine.parameters if p.endswith(f".{rest}")]
        return ends[0] if len(ends) == 1 else None
    short = ".".join(w for w in words if w not in STRUCTURE)
    return short if short in machine.parameters else None
