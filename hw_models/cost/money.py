"""What a machine costs to make: dies from wafers, their packages, memories by the byte.

Design, masks, boards, cooling, margin and operation are not in it; give a part's or the machine's
`price` where they matter. A part without a `package` has bare dies.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.cost.area import added_share, held_area_m2, part_area_m2
from opbyte.hw_models.cost.items import (
    CostItem,
    Number,
    Values,
    is_die,
    need,
    parts,
    total,
    where_covered,
)
from opbyte.hw_models.cost.packages import package_price_usd, stack_price_usd
from opbyte.hw_models.cost.wafers import CLUSTERS, die_yield, dies_on_wafer, wafer_price_usd
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Part


def machine_price_usd(machine: Machine, values: Values | None = None) -> Number:
    """Return what all parts and the system cost, USD; a float, or (points,).

    Args:
        machine: What is counted.
        values: Parameter values, by default the machine's own.
    Raises:
        UncoveredError: If a price can not be had, with the name of the parameter.
    """
    return total(price_table(machine, values))


def price_table(machine: Machine, values: Values | None = None) -> tuple[CostItem, ...]:
    """Return every contribution to the price, USD for each instance of its part.

    A part counts with its `price`, else its dies and their package; DRAM and flash by the byte; the
    machine's own `price` is added where given. Dies under stacks of memory are bought by the wafer,
    and units on a memory's dies make it as much dearer as they make those dies larger.

    Raises:
        UncoveredError: As `machine_price_usd`.
    """
    known = machine.values if values is None else values
    items = [
        item
        for path, part, count in parts(machine)
        for item in _part(machine, known, path, part, count)
    ]
    if machine.config.price is not None:
        items.append(CostItem("", "price", 1, known["price"]))
    return tuple(items)


def die_price_usd(
    area_m2: Number,
    node_nm: float,
    wafers: Number = 1.0,
    defects: Number = 1.0,
    clusters: Number = CLUSTERS,
) -> Number:
    """Return the price of one good die, wafer / (dies * yield), USD; shape of `area_m2`.

    Args:
        area_m2: Area of the die, m^2.
        node_nm: Process node, 5 to 250 nm.
        wafers: Price of a wafer over that of the table.
        defects: Defects over those of the table.
        clusters: Exponent of the yield.
    Raises:
        UncoveredError: For a node outside of the table, or a die that no wafer holds at any design
            point; NaN at some of several points where none does.
    """
    good = die_yield(area_m2, node_nm, defects, clusters)
    price: Number = wafers * wafer_price_usd(node_nm) / (dies_on_wafer(area_m2) * good)
    return price


def _part(
    machine: Machine, values: Values, path: str, part: Part, count: int
) -> Iterator[CostItem]:
    if part.price is not None:
        yield CostItem(path, "price", count, values[f"{path}.price"])
    elif is_die(part) or part.area is not None:
        yield from _dies(machine, values, path, part, count)
    for name, memory in part.memory.items():
        if memory.kind != "sram":
            yield CostItem(path, name, count, _memory_usd(machine, values, path, part, name))


def _dies(
    machine: Machine, values: Values, path: str, part: Part, count: int
) -> Iterator[CostItem]:
    """Yield the dies of a part, those that are made apart, and their package."""
    if part.node_nm is None:
        raise UncoveredError(
            f"{machine.name}: '{path}' has neither price nor node_nm, so its die has no price. "
            f"set {path}.price or {path}.node_nm"
        )
    each = part_area_m2(machine, values, path, part) / part.dies
    factors = tuple(values[f"making.{name}"] for name in ("wafers", "defects", "clusters"))
    die = die_price_usd(each, part.node_nm, *factors)
    yield CostItem(path, "dies", count, part.dies * die)
    others: Number = 0.0
    for name, dies in part.other_dies.items():
        if dies.node_nm is not None:
            size = footprint_m2(machine, values, path, part, name)
            usd = dies.dies * die_price_usd(size, dies.node_nm, *factors)
            yield CostItem(path, f"other_dies.{name}", count, usd)
            others = others + usd
    package = part.package
    if package is None:
        return
    chips = part.dies // package.tiers
    stacked = chips * stack_price_usd(die, each, package.tiers, values)
    value = stacked + others
    if package.memory is not None:
        value = value + _memory_usd(machine, values, path, part, package.memory)
    whole = package_price_usd(package, chips, value, chips * each, values, path)
    yield CostItem(path, "package", count, whole + stacked - part.dies * die)


def footprint_m2(machine: Machine, values: Values, path: str, part: Part, name: str) -> Number:
    """Return the area of one of a part's other dies that are bought by the wafer, m^2.

    Raises:
        UncoveredError: If what they hold fits at no design point; NaN at those where it does not.
    """
    size: Number = values[f"{path}.other_dies.{name}.footprint"]
    held = held_area_m2(machine, values, path, part, name) / part.other_dies[name].dies
    return where_covered(
        size, held > size,
        f"{machine.name}: '{path}.other_dies.{name}' hold {float(np.max(held)) * 1e6:.4g} mm2 "
        f"each, more than their footprint. set {path}.other_dies.{name}.footprint",
    )  # fmt: skip


def _memory_usd(machine: Machine, values: Values, path: str, part: Part, name: str) -> Number:
    why = "memory is bought by the byte"
    each = need(machine, values, f"{path}.{name}.price", why)
    larger = 1.0 + added_share(machine, values, path, part, name)
    price: Number = each * values[f"{path}.{name}.capacity"] * larger
    return price
