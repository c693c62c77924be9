"""What a package costs: carrier, substrate, bonds, and the good chips that bad bonds waste.

After Chiplet Actuary (Feng and Ma, DAC 2022), dies on dies after 3DCost (Dong, Zou and Xie). All
areas are m^2, all prices USD, all values floats or (points,).
"""

from __future__ import annotations

import numpy as np

from opbyte.hw_models.cost.items import Number, Values, where_covered
from opbyte.hw_models.cost.wafers import dies_on_wafer
from opbyte.hw_models.making import Package

_CM2 = 1e-4
#: Area of a substrate under several chips, m^2, and its layers over those under one chip.
_LAYERS: tuple[tuple[float, float], ...] = ((17e-3**2, 1.75), (30e-3**2, 2.0))
_FEWEST = 1.5
#: A smaller share of whole packages has no price.
_LEAST_WHOLE = 1e-9


def stack_price_usd(die_usd: Number, area_m2: Number, tiers: int, values: Values) -> Number:
    """Return the price of good dies on top of one another, USD.

    (tiers die + (tiers - 1) (vias and thinning of a wafer / its dies + bonding)) / y^(tiers - 1),
    y the share of bonds that hold.

    Args:
        die_usd: One good die.
        area_m2: Its area.
        tiers: Dies of a stack; one alone costs what it costs.
        values: Parameter values with the block `making`.
    Raises:
        UncoveredError: If nearly no stack is whole.
    """
    if tiers == 1:
        return die_usd
    each = values["making.tier.wafer"] / dies_on_wafer(area_m2) + values["making.tier.price"]
    whole: Number = tiers * die_usd + (tiers - 1) * each
    price: Number = whole / _whole_share(values["making.tier.bond"], tiers - 1)
    return price


def package_price_usd(
    package: Package, chips: int, chips_usd: Number, area_m2: Number, values: Values, path: str
) -> Number:
    """Return the price of a package without what stands on it, USD.

    With n chips of area A in all, of value V, on a substrate of price S per area, f times as large:

        organic     (S f A layers + B) / y^n + V (1 / y^n - 1)
        on carrier  C / (y1 y2 y3) + S f C_A / y3 + M / (y2 y3) + V (1 / (y2 y3) - 1)

    where B and M are bumps by area, C the carrier of area C_A = g A with bumps of its own, y1 its
    yield, y2 = y^n that of the chips' bonds to it, y3 that of its bond to the substrate. Memory
    stands on it and counts among the chips.

    Args:
        package: What it is built of.
        chips: Dies, or stacks of dies, of the part.
        chips_usd: All of them and the memory beside them, tested.
        area_m2: What the dies cover.
        values: Parameter values with the block `making` and the part's own.
        path: Short path of the part.
    Raises:
        UncoveredError: If the carrier does not fit on a wafer, or nearly no package is whole.
    """
    count, covered = chips, area_m2
    if package.stacks is not None:
        count += package.stacks
        covered = covered + package.stacks * values[f"{path}.package.stack_area"]
    under = "making.substrate"
    bond = values[f"{under}.bond"]
    if package.kind == "organic":
        area = values[f"{under}.area"] * covered
        body = values[f"{under}.price"] * area * _layers(area, count)
        body = body + values[f"{under}.bump"] * covered
        lost = 1.0 / _whole_share(bond, count)
        whole: Number = body * lost + chips_usd * (lost - 1.0)
        return whole
    carrier = f"making.{package.kind}"
    area = values[f"{carrier}.area"] * covered
    body = values[f"{carrier}.wafer"] / dies_on_wafer(area) + values[f"{under}.bump"] * area
    clusters = values[f"{carrier}.clusters"]
    good = (1.0 + values[f"{carrier}.defects"] * area / _CM2 / clusters) ** -clusters
    board = values[f"{under}.price"] * values[f"{under}.area"] * area
    held = _whole_share(values[f"{carrier}.bond"], count) * bond
    bumps = values[f"{carrier}.bump"] * covered
    wasted = chips_usd * (1.0 / held - 1.0)
    total: Number = body / (good * held) + board / bond + bumps / held + wasted
    return total


def _whole_share(bond: Number, count: int) -> Number:
    """Return the share of packages, or stacks, in which all of so many bonds hold.

    Raises:
        UncoveredError: If it is nearly none.
    """
    share: Number = bond ** float(count)
    text = f"of packages or stacks with {count} bonds nearly none is whole. lower `dies` or `tiers`"
    return where_covered(share, share < _LEAST_WHOLE, text)


def _layers(area_m2: Number, count: int) -> Number:
    """Return the layers of an organic substrate over those that one chip needs."""
    if count == 1:
        return 1.0
    area = np.asarray(area_m2)
    found = np.full(area.shape, _FEWEST)
    for least, more in _LAYERS:
        found = np.where(area > least, more, found)
    layers: Number = found if found.ndim else float(found)
    return layers
