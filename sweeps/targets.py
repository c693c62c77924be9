"""What the paths of a study mean on its machines and its work."""

from __future__ import annotations

from collections.abc import Sequence

from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.registry import nearest
from opbyte.hw_models.machine import STRUCTURE, Machine
from opbyte.sweeps.axes import Target
from opbyte.sweeps.design import Side
from opbyte.sweeps.study import ROOTS
from opbyte.workloads.works import Work

__all__ = ["FIELD_PATHS", "Targets"]

#: Paths inside a work that mean one of its fields.
FIELD_PATHS = {"experts.count": "count"}


class Targets:
    """Resolves paths.

    A machine's path must mean something on every machine of the study; it may mean another place
    of the tree on each (`hbm.phy.bandwidth`).
    """

    def __init__(self, side: Side, machines: Sequence[Machine], work: Work) -> None:
        self._side = side
        self._machines = machines
        self._work = work

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
        shorts = [
            ".".join(w for w in self._side.full_path(machine, rest) if w not in STRUCTURE)
            for machine in self._machines
        ]
        found = [m.parameters.get(s) for m, s in zip(self._machines, shorts, strict=True)]
        key = f"machine.{shorts[0]}"
        if any(p is None for p in found):
            return Target(path, key, "structure", rest)
        dimensions = {p.dimension for p in found if p is not None}
        return Target(path, key, "value", rest, dimensions.pop())

    def _field(self, path: str, rest: str) -> Target:
        name = FIELD_PATHS.get(rest, rest)
        fields = type(self._work).vector_fields
        if name in fields and (rest == name or name in fields):
            return Target(path, f"workload.{name}", "field", name, "count")
        return Target(path, path, "structure", rest)


def short_path(machine: Machine, rest: str) -> str | None:
    """Return the short path of a machine's number, None where it has no such number."""
    try:
        return machine.path(rest)
    except OpbyteError:
        return None
