"""Power of a machine, and how the energy of an operation moves between process nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.cost.items import CostItem, Number, Values, need, total
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.machine_file import Part

#: Coefficients (a, b, c) of energy ~ a V^2 + b V + c by node, nm (Stillmaker and Baas, Integration
#: 58, 2017, table 7); only ratios of two values mean anything.
STILLMAKER: Mapping[int, tuple[float, float, float]] = MappingProxyType(
    {
        130: (7.171, -6.709, 2.904),
        90: (4.762, -4.781, 2.092),
        65: (3.755, -4.398, 1.975),
        45: (1.103, -0.362, 0.2767),
        32: (0.9559, -0.7823, 0.471),
        20: (0.373, -0.1582, 0.04104),
        16: (0.2958, -0.1241, 0.03024),
        14: (0.2363, -0.09675, 0.02239),
        10: (0.2068, -0.09311, 0.02375),
        7: (0.1776, -0.09097, 0.02447),
    }
)


def machine_power_w(machine: Machine, values: Values | None = None) -> Number:
    """Return the thermal design power of all parts and of what is no part, watts.

    Args:
        machine: What is counted.
        values: Parameter values, by default the machine's own.
    Raises:
        UncoveredError: If a part that holds memory or compute has no power, nor one around it.
    """
    return total(power_table(machine, values))


def power_table(machine: Machine, values: Values | None = None) -> tuple[CostItem, ...]:
    """Return every contribution to the design power, watts for each instance of its part.

    A part's power covers the parts inside it; the machine's `static_power` is what is no part.

    Raises:
        UncoveredError: As `machine_power_w`.
    """
    known = machine.values if values is None else values
    items: list[CostItem] = []
    for name, part in machine.config.parts.items():
        items += _power(machine, known, name, part, part.count)
    if machine.config.static_power is not None:
        items.append(CostItem("", "static_power", 1, known["static_power"]))
    return tuple(items)


def scale_energy(from_nm: int, from_volt: float, to_nm: int, to_volt: float) -> float:
    """Return the factor by which the energy of an operation changes between two nodes.

    Ratio of the polynomials of Stillmaker and Baas 2017; 45 nm at 0.9 V to 7 nm at 0.7 V is 0.057.

    Raises:
        UncoveredError: For a node that the paper does not fit, or a supply outside of 0.5 to 1.3 V.
    """
    ends = []
    for node, volt in ((from_nm, from_volt), (to_nm, to_volt)):
        if node not in STILLMAKER:
            known = ", ".join(str(n) for n in STILLMAKER)
            raise UncoveredError(f"energy is scaled between {known} nm, not for {node} nm")
        if not 0.5 <= volt <= 1.3:
            raise UncoveredError(f"energy is scaled from 0.5 to 1.3 V, not for {volt:g} V")
        a, b, c = STILLMAKER[node]
        ends.append(a * volt * volt + b * volt + c)
    return ends[1] / ends[0]


def _power(
    machine: Machine, values: Values, path: str, part: Part, count: int
) -> Iterator[CostItem]:
    if part.power is None and part.parts and not (part.memory or part.units):
        for name, inner in part.parts.items():
            yield from _power(machine, values, f"{path}.{name}", inner, count * inner.count)
        return
    watts = need(machine, values, f"{path}.power", "the design power counts every part")
    yield CostItem(path, "power", count, watts)
