"""Logic die area from the machine's densities.

    part = area + sum(SRAM capacity * density) + sum(port and link rate * density)
         + sum(unit rate * density, or what a unit's model counts itself)

The form is LLMCompass's (Zhang et al., ISCA 2024, section 4): arithmetic, buffers and interfaces
scale with what they offer, the rest of a die is a constant. DRAM and flash dies are bought by the
byte and are no logic area; units on them are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.hw_models.compute.base import UNITS, UnitView
from opbyte.hw_models.cost.items import CostItem, Number, Values, is_die, need, parts, total
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Memory, Part, Unit

_NORMAL_BITS = 16.0


def machine_area_m2(machine: Machine, values: Values | None = None) -> Number:
    """Return the logic area of all parts, m^2; a float, or (points,).

    Args:
        machine: What is counted.
        values: Parameter values, by default the machine's own.
    Raises:
        UncoveredError: If a die lacks its area or a density, with the name of the parameter.
    """
    return total(area_table(machine, values))


def area_table(machine: Machine, values: Values | None = None) -> tuple[CostItem, ...]:
    """Return every contribution to the logic area, m^2 for each instance of its part.

    A part without compute and SRAM counts with its `area` alone, and only if it has one.

    Raises:
        UncoveredError: As `machine_area_m2`.
    """
    known = machine.values if values is None else values
    return tuple(
        item
        for path, part, count in parts(machine)
        for item in _part(machine, known, path, part, count)
    )


def part_area_m2(machine: Machine, values: Values, path: str, part: Part) -> Number:
    """Return the logic area on a part's own dies, m^2: of one instance, without parts inside it."""
    held = {f"other_dies.{name}" for name in part.other_dies}
    held.update(each for dies in part.other_dies.values() for each in dies.holds)
    return total(i for i in _part(machine, values, path, part, 1) if i.what not in held)


def held_area_m2(machine: Machine, values: Values, path: str, part: Part, name: str) -> Number:
    """Return the logic area of a part on all of its other dies called `name`, m^2."""
    held = {f"other_dies.{name}", *part.other_dies[name].holds}
    return total(i for i in _part(machine, values, path, part, 1) if i.what in held)


def added_share(machine: Machine, values: Values, path: str, part: Part, memory: str) -> Number:
    """Return how much larger units make the dies of a memory, 0 where none stand on them."""
    share: Number = 0.0
    for name, dies in part.other_dies.items():
        if dies.memory == memory:
            whole = dies.dies * values[f"{path}.other_dies.{name}.footprint"]
            share = share + held_area_m2(machine, values, path, part, name) / whole
    return share


def normal_rate(machine: Machine, values: Values, path: str, unit: Unit) -> Number:
    """Return a unit's rate at 16 bits that its area is proportional to, operations/s.

    A multiplier array does half the operations at twice the bits, so this is the largest
    peak * bits / 16; a unit without matrix rates counts with its vector rate at 32 bits.

    Raises:
        UncoveredError: If the unit has neither.
    """
    rates = [
        need(machine, values, f"{path}.peak.{dtype}", "the unit's area needs it")
        * (lookup(dtype).bits / _NORMAL_BITS)
        for dtype in unit.peak
    ]
    if not rates:
        vector = need(machine, values, f"{path}.vector", "its area is counted by rate")
        rates = [vector * (lookup("fp32").bits / _NORMAL_BITS)]
    largest: Number = rates[0]
    for rate in rates[1:]:
        largest = np.maximum(largest, rate)
    return largest


def _part(
    machine: Machine, values: Values, path: str, part: Part, count: int
) -> Iterator[CostItem]:
    if not is_die(part):
        if part.area is not None:
            yield CostItem(path, "area", count, values[f"{path}.area"])
        return
    rest = need(machine, values, f"{path}.area", "a die has more than its densities explain")
    yield CostItem(path, "area", count, rest)
    for name, dies in part.other_dies.items():
        if dies.area is not None:
            own = dies.dies * values[f"{path}.other_dies.{name}.area"]
            yield CostItem(path, f"other_dies.{name}", count, own)
    for name, memory in part.memory.items():
        yield from _memory(machine, values, path, count, name, memory)
    for name, link in machine.config.links.items():
        if link.area is not None and path in link.ends:
            rate = need(machine, values, f"{name}.bandwidth", "its area is counted by rate")
            yield CostItem(path, name, count, values[f"{name}.area"] * rate)
    for name, unit in part.units.items():
        own = _own_area(machine, values, f"{path}.{name}", unit)
        if own is not None:
            yield CostItem(path, name, count, own)
            continue
        density = need(machine, values, f"{path}.{name}.area", "compute takes area")
        rate = normal_rate(machine, values, f"{path}.{name}", unit)
        yield CostItem(path, name, count, density * rate)


def _own_area(machine: Machine, values: Values, path: str, unit: Unit) -> Number | None:
    """Return the area of a unit whose model knows what it is made of, None of any other."""
    model = UNITS.lookup(unit.kind)() if unit.kind in UNITS else None
    area = getattr(model, "area_m2", None)
    if area is None:
        return None
    here = machine if values is machine.values else machine.with_values(values)
    found: Number | None = area(UnitView(here, path))
    return found


def _memory(
    machine: Machine, values: Values, path: str, count: int, name: str, memory: Memory
) -> Iterator[CostItem]:
    short = f"{path}.{name}"
    on_die = memory.kind == "sram"
    if on_die:
        density = need(machine, values, f"{short}.area", "SRAM takes area")
        yield CostItem(path, name, count, density * values[f"{short}.capacity"])
    for port, config in memory.ports.items():
        # The ports of an SRAM are inside its density unless they have one of their own.
        if on_die and config.area is None:
            continue
        density = need(machine, values, f"{short}.{port}.area", "an interface takes area")
        rate = need(machine, values, f"{short}.{port}.bandwidth", "its area is counted by rate")
        yield CostItem(path, f"{name}.{port}", count, density * rate)
