"""The rows that costs are made of, and the questions that every cost asks a machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Part

#: Parameter values by short path: floats, or float64 arrays over design points.
Values: TypeAlias = Mapping[str, Any]
Number: TypeAlias = "float | Array"


@dataclass(frozen=True, slots=True)
class CostItem:
    """One contribution to a cost.

    Attributes:
        part: Short path of the part, empty for the system.
        what: Memory, port, unit or rule that the contribution comes from.
        count: Instances of the part in the whole machine.
        each: Contribution of one instance, SI or USD; a float, or (points,).
    """

    part: str
    what: str
    count: int
    each: Number

    @property
    def total(self) -> Number:
        """Return the contribution of all instances."""
        return self.count * self.each


def total(items: Iterable[CostItem]) -> Number:
    """Return the sum over items in their order; a float, or (points,)."""
    result: Number = 0.0
    for item in items:
        result = result + item.total
    return result


def by_part(items: Iterable[CostItem]) -> dict[str, Number]:
    """Return the cost of all instances of each part, for tables."""
    table: dict[str, Number] = {}
    for item in items:
        table[item.part] = table.get(item.part, 0.0) + item.total
    return table


def parts(machine: Machine) -> Iterator[tuple[str, Part, int]]:
    """Yield short path, config and count of every part; outer parts first."""
    todo = [(name, part, 1) for name, part in machine.config.parts.items()]
    while todo:
        path, part, outside = todo.pop(0)
        count = outside * part.count
        yield path, part, count
        todo += [(f"{path}.{name}", inner, count) for name, inner in part.parts.items()]


def is_die(part: Part) -> bool:
    """Return whether a part is a logic die: it holds compute, or memory made on such a die."""
    return bool(part.units) or any(m.kind == "sram" for m in part.memory.values())


def need(machine: Machine, values: Values, path: str, why: str) -> Any:
    """Return a parameter's value.

    Raises:
        UncoveredError: If the machine does not give it; nothing is free because nobody priced it.
    """
    value = values.get(path)
    if value is None:
        raise UncoveredError(f"{machine.name}: '{path}' is not given, and {why}. set {path}")
    return value


def where_covered(value: Number, bad: Any, text: str) -> Number:
    """Return a value, NaN at those of its design points that are not covered.

    Args:
        bad: Where it is not, shape of `value`.
        text: What is wrong, and what to do.
    Raises:
        UncoveredError: If it is covered at no point: one point alone has an error, not a NaN.
    """
    if np.all(bad):
        raise UncoveredError(text)
    found: Number = np.where(bad, np.nan, value) if np.any(bad) else value
    return found
