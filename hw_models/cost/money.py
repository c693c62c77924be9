"""What a machine costs to make: dies from wafers, memories by the byte.

Design, masks, packaging (CoWoS, hybrid bonding), boards, margin and operation are not in it; give a
part's or the machine's `price` where they matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.cost.area import part_area_m2
from opbyte.hw_models.cost.items import (
    CostItem,
    Number,
    Values,
    is_die,
    need,
    parts,
    some,
    total,
)
from opbyte.hw_models.machine import Machine, Part

#: Process node nm, USD of a processed 300 mm wafer, defects per mm2 (ttm-cas, Princeton
#: University, ISCA 2023; wafer prices after Khan and Mann, "AI Chips", 2020).
WAFERS: tuple[tuple[float, float, float], ...] = (
    (5.0, 16988.0, 2000e-6),
    (7.0, 9346.0, 1500e-6),
    (10.0, 5992.0, 1200e-6),
    (14.0, 3984.0, 1000e-6),
    (20.0, 3677.0, 800e-6),
    (28.0, 2891.0, 500e-6),
    (40.0, 2274.0, 500e-6),
    (65.0, 1937.0, 500e-6),
    (90.0, 1650.0, 500e-6),
    (130.0, 1580.0, 500e-6),
    (180.0, 1020.0, 500e-6),
    (250.0, 900.0, 500e-6),
)
_WAFERS = tuple(np.array(column) for column in zip(*WAFERS, strict=True))
_WAFER_MM = 300.0
_CLUSTERS = 3.0
_MM2 = 1e-6


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

    A part counts with its `price`, else its dies; DRAM and flash by the byte; the machine's own
    `price` is added where given.

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


def die_price_usd(area_m2: Number, node_nm: float) -> Number:
    """Return the price of one good die, USD; shape of `area_m2`.

    gross = pi (d/2)^2 / A - pi d / sqrt(2 A) on a wafer of diameter d = 300 mm,
    yield = (1 + A D / 3)^-3, price = wafer / (gross * yield): ttm-cas (ISCA 2023). Wafer price and
    defect density D between listed nodes are interpolated over log(node), the price in log.

    Args:
        area_m2: Area of the die, m^2.
        node_nm: Process node, 5 to 250 nm.
    Raises:
        UncoveredError: For a node outside of the table, or a die that no wafer holds.
    """
    nodes, prices, _ = _WAFERS
    good = die_yield(area_m2, node_nm)
    wafer = float(np.exp(np.interp(np.log(node_nm), np.log(nodes), np.log(prices))))
    mm2 = np.asarray(area_m2, dtype=np.float64) / _MM2
    gross = np.pi * (_WAFER_MM / 2.0) ** 2 / mm2 - np.pi * _WAFER_MM / np.sqrt(2.0 * mm2)
    if some(gross < 1.0):
        raise UncoveredError(
            f"a die of {float(np.max(mm2)):.0f} mm2 does not fit on a 300 mm wafer. "
            "split it with the part's `dies`"
        )
    price: Number = wafer / (gross * good)
    return price


def die_yield(area_m2: Number, node_nm: float) -> Number:
    """Return the share of dies that work, (1 + A D / 3)^-3; shape of `area_m2`.

    Args:
        area_m2: Area of the die, m^2.
        node_nm: Process node, 5 to 250 nm; defects D between nodes are interpolated over log(node).
    Raises:
        UncoveredError: For a node outside of the table, or a die without an area.
    """
    nodes, _, defects = _WAFERS
    if not nodes[0] <= node_nm <= nodes[-1]:
        raise UncoveredError(
            f"wafers have prices from {nodes[0]:g} to {nodes[-1]:g} nm, none for {node_nm:g} nm. "
            "give the part a price"
        )
    density = float(np.interp(np.log(node_nm), np.log(nodes), defects))
    mm2 = np.asarray(area_m2, dtype=np.float64) / _MM2
    if some(mm2 <= 0.0):
        raise UncoveredError("a die has an area above zero. give the part an area or a price")
    found: Number = (1.0 + mm2 * density / _CLUSTERS) ** -_CLUSTERS
    return found


def _part(
    machine: Machine, values: Values, path: str, part: Part, count: int
) -> Iterator[CostItem]:
    if part.price is not None:
        yield CostItem(path, "price", count, values[f"{path}.price"])
    elif is_die(part) or part.area is not None:
        if part.node_nm is None:
            raise UncoveredError(
                f"{machine.name}: '{path}' has neither price nor node_nm, so its die has no price. "
                f"set {path}.price or {path}.node_nm"
            )
        area = part_area_m2(machine, values, path, part)
        yield CostItem(
            path, "dies", count, part.dies * die_price_usd(area / part.dies, part.node_nm)
        )
    for name, memory in part.memory.items():
        if memory.kind == "sram":
            continue
        short = f"{path}.{name}"
        each = need(machine, values, f"{short}.price", "memory is bought by the byte")
        yield CostItem(path, name, count, each * values[f"{short}.capacity"])
