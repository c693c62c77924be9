"""Attention that is not fused: product, softmax and product, one after the other through memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from opbyte.hw_models.compute.spatial.arrays import ARRAY, LANES, Arrays, Plan, Shape, point_cycles
from opbyte.hw_models.compute.spatial.cascade import Cascade


def product_cycles(m: Any, n: Any, k: Any, array: tuple[int, int]) -> Any:
    """Return the cycles of a product of (m, k) by (k, n): any two of its ranks lie in the array.

    The third one passes in time; fill and drain hide behind the neighbouring tiles.
    """
    rows, columns = array
    laid = [
        (
            third,
            np.minimum(*(np.ceil(a / rows) * np.ceil(b / columns) for a, b in ((x, y), (y, x)))),
        )
        for third, x, y in ((k, m, n), (m, k, n), (n, k, m))
    ]
    return np.minimum.reduce([np.asarray(third * tiles) for third, tiles in laid])


def score_cycles(cascade: Cascade, lanes: Mapping[str, Any], *, pipelined: bool) -> Any:
    """Return the lane operations of one score: all Einsums of a softmax that walk the keys.

    Args:
        lanes: Operation -> cycles on a lane, floats or (points,).
    """
    walked = [e for e in cascade.einsums if not e.product and "M" in e.walks]
    return sum(point_cycles(e, lanes, pipelined=pipelined) for e in walked)


def apart(cascade: Cascade, arrays: Arrays, shape: Shape) -> Plan:
    """Return the plan of the three operators, each of which takes its memory or its array."""
    pairs = shape.groups * shape.queries * shape.keys * shape.share
    once, size = shape.compulsory, arrays.size
    products = [e for e in cascade.einsums if e.product]
    across = (arrays.rows, arrays.columns)
    sizes = (
        (shape.queries, shape.keys, shape.width), (shape.queries, shape.value_width, shape.keys)
    )  # fmt: skip
    busy = {
        e.name: shape.groups * shape.share * float(product_cycles(*mnk, across)) / arrays.clock
        for e, mnk in zip(products, sizes, strict=True)
    }
    useful = {
        e.name: pairs * mnk / (arrays.rows * arrays.columns * arrays.clock) / busy[e.name]
        for e, mnk in zip(products, (shape.width, shape.value_width), strict=True)
    }
    for e in cascade.einsums:
        if not e.product:
            busy[e.name] = pairs * arrays.point_cycles(LANES, e) / arrays.lane_rate
            useful[e.name] = 1.0
    moved = pairs * size
    first, last = (e.name for e in products)
    stages = (
        (busy[first], once["Q"] + once["K"] + moved),
        (sum(busy[e.name] for e in cascade.einsums if not e.product), 2.0 * moved),
        (busy[last], moved + once["V"] + once["AV"]),
    )
    seconds = sum(max(taken, crossed / arrays.bandwidth) for taken, crossed in stages)
    traffic = {**once, "scores": 4.0 * moved}
    total = sum(traffic.values())
    spent = dict.fromkeys((ARRAY, LANES, "buffer", "memory"), math.nan)
    return Plan(
        cascade, 0.0, 0.0, arrays.buffer, 0.0, traffic, busy,
        {e.name: ARRAY if e.product else LANES for e in cascade.einsums}, useful,
        total / arrays.bandwidth, seconds, spent, {"schedule": "apart", "scores": "memory"},
    )  # fmt: skip
