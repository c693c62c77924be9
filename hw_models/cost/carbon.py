"""What making a machine emits: dies by area and process, memories by the byte.

    die    (energy * grid of the fab + gases + materials) * area / yield
    memory bytes * mass per byte

after ACT (Gupta et al., ISCA 2022, version 2 of its tables); a part's `carbon` stands in place of
its dies. Packages, boards, cooling, transport are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.cost.area import added_share, part_area_m2
from opbyte.hw_models.cost.items import CostItem, Number, Values, is_die, parts, total
from opbyte.hw_models.cost.money import footprint_m2
from opbyte.hw_models.cost.wafers import CLUSTERS, die_yield
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Part

#: Process node nm, energy kWh/cm2, gases g/cm2 where 95 % of them are abated (ACT v2).
FABS: tuple[tuple[float, float, float], ...] = (
    (3.0, 3.25, 470.0),
    (5.0, 2.75, 430.0),
    (7.0, 2.15, 350.0),
    (8.0, 1.52, 240.0),
    (10.0, 1.475, 240.0),
    (14.0, 1.2, 200.0),
    (20.0, 1.2, 190.0),
    (28.0, 0.9, 175.0),
)
#: Materials, g/cm2 (ACT v2).
MATERIALS = 500.0
_KWH = 3.6e6
#: kg/m2 of 1 g/cm2.
_KG_M2 = 10.0


def machine_carbon_kg(machine: Machine, values: Values | None = None) -> Number:
    """Return the carbon dioxide (equivalent) of making a machine, kg; a float, or (points,).

    Args:
        machine: What is counted.
        values: Parameter values, by default the machine's own.
    Raises:
        UncoveredError: If a die lacks its area or node, with the name of the parameter.
    """
    return total(carbon_table(machine, values))


def carbon_table(machine: Machine, values: Values | None = None) -> tuple[CostItem, ...]:
    """Return every contribution to it, kg for each instance of its part.

    Raises:
        UncoveredError: As `machine_carbon_kg`.
    """
    known = machine.values if values is None else values
    return tuple(
        item
        for path, part, count in parts(machine)
        for item in _part(machine, known, path, part, count)
    )


def die_carbon_kg(
    area_m2: Number,
    node_nm: float,
    grid: Number,
    defects: Number = 1.0,
    clusters: Number = CLUSTERS,
) -> Number:
    """Return the carbon of one good die, kg; shape of `area_m2`.

    Args:
        area_m2: Area of the die, m^2.
        node_nm: Process node, 5 to 28 nm (those whose yield is known); between listed nodes values
            are interpolated over log(node).
        grid: Carbon of the fab's electricity, kg/J.
        defects: Defects over those of the table.
        clusters: Exponent of the yield.
    Raises:
        UncoveredError: For a node outside of the table, or a die without an area.
    """
    nodes, energies, gases = (np.array(column) for column in zip(*FABS, strict=True))
    if not nodes[0] <= node_nm <= nodes[-1]:
        raise UncoveredError(
            f"making dies has a carbon from {nodes[0]:g} to {nodes[-1]:g} nm, none for "
            f"{node_nm:g} nm"
        )
    x, logs = np.log(node_nm), np.log(nodes)
    energy = float(np.interp(x, logs, energies)) * _KWH * 1e4
    others = (float(np.interp(x, logs, gases)) + MATERIALS) * _KG_M2
    good = die_yield(area_m2, node_nm, defects, clusters)
    found: Number = (energy * grid + others) * area_m2 / good
    return found


def _part(
    machine: Machine, values: Values, path: str, part: Part, count: int
) -> Iterator[CostItem]:
    if part.carbon is not None:
        yield CostItem(path, "carbon", count, values[f"{path}.carbon"])
    elif is_die(part) or part.area is not None:
        if part.node_nm is None:
            raise UncoveredError(
                f"{machine.name}: '{path}' has neither carbon nor node_nm, so its die has no "
                f"carbon. set {path}.carbon or {path}.node_nm"
            )
        area = part_area_m2(machine, values, path, part) / part.dies
        made = tuple(values[f] for f in ("site.fab_grid", "making.defects", "making.clusters"))
        each = die_carbon_kg(area, part.node_nm, *made)
        yield CostItem(path, "dies", count, part.dies * each)
        for name, dies in part.other_dies.items():
            if dies.node_nm is not None:
                size = footprint_m2(machine, values, path, part, name)
                one = die_carbon_kg(size, dies.node_nm, *made)
                yield CostItem(path, f"other_dies.{name}", count, dies.dies * one)
    for name, memory in part.memory.items():
        if memory.kind == "sram":
            continue
        of = values["site.flash" if memory.kind == "flash" else "site.dram"]
        larger = 1.0 + added_share(machine, values, path, part, name)
        yield CostItem(path, name, count, of * values[f"{path}.{name}.capacity"] * larger)
