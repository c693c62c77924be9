"""Dies on wafers: how many there are, and how many of them work."""

from __future__ import annotations

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.hw_models.cost.items import Number, where_covered

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
#: Exponent of the yield (ttm-cas).
CLUSTERS = 3.0
_WAFERS = tuple(np.array(column) for column in zip(*WAFERS, strict=True))
_WAFER_MM = 300.0
_MM2 = 1e-6


def wafer_price_usd(node_nm: float) -> float:
    """Return the price of a processed wafer, USD.

    Args:
        node_nm: Process node, 5 to 250 nm; between listed nodes interpolated over log(node), in
            log.
    Raises:
        UncoveredError: For a node outside of the table.
    """
    nodes, prices, _ = _WAFERS
    _check(node_nm)
    return float(np.exp(np.interp(np.log(node_nm), np.log(nodes), np.log(prices))))


def dies_on_wafer(area_m2: Number) -> Number:
    """Return the dies of a wafer, pi (d/2)^2 / A - pi d / sqrt(2 A) with d = 300 mm.

    NaN at design points that are not covered, beside others that are.

    Raises:
        UncoveredError: For a die that no wafer holds, or one without an area, at all points.
    """
    mm2 = _square_mm(area_m2)
    gross: Number = np.pi * (_WAFER_MM / 2.0) ** 2 / mm2 - np.pi * _WAFER_MM / np.sqrt(2.0 * mm2)
    return where_covered(
        gross, gross < 1.0,
        f"a die of {float(np.nanmax(mm2)):.0f} mm2 does not fit on a 300 mm wafer. "
        "split it with the part's `dies`, or lower the area under its `package`",
    )  # fmt: skip


def die_yield(
    area_m2: Number, node_nm: float, defects: Number = 1.0, clusters: Number = CLUSTERS
) -> Number:
    """Return the share of dies that work, (1 + A D / c)^-c; shape of `area_m2`.

    Args:
        area_m2: Area of the die, m^2.
        node_nm: Process node, 5 to 250 nm; defects D between nodes are interpolated over log(node).
        defects: Defects over those of the table.
        clusters: c; Murphy's and Seeds' yields are near 2 and at 1, Poisson's far above.
    Raises:
        UncoveredError: For a node outside of the table, or a die without an area at all points.
    """
    nodes, _, table = _WAFERS
    _check(node_nm)
    density = float(np.interp(np.log(node_nm), np.log(nodes), table)) * defects
    found: Number = (1.0 + _square_mm(area_m2) * density / clusters) ** -clusters
    return found


def _check(node_nm: float) -> None:
    nodes = _WAFERS[0]
    if not nodes[0] <= node_nm <= nodes[-1]:
        raise UncoveredError(
            f"wafers have prices from {nodes[0]:g} to {nodes[-1]:g} nm, none for {node_nm:g} nm. "
            "give the part a price"
        )


def _square_mm(area_m2: Number) -> Number:
    mm2 = np.asarray(area_m2, dtype=np.float64) / _MM2
    text = "a die has an area above zero. give the part an area or a price"
    return where_covered(mm2, mm2 <= 0.0, text)
