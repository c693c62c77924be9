"""Cascades of several passes: whole rows of scores live on the chip, or go to memory.

What one pass over the keys leaves for the next is as long as the keys. FLAT (Kao et al., ASPLOS
2023) keeps these rows for a tile of queries on the chip, from a few columns of the array up to all
queries of a head, streams keys and values past it, and spills what does not fit. Its mapper looks
at the two products alone: it takes the mapping with the least max(memory, 2D array), and of equal
ones the coarsest tile with the fewest tensors on the chip.

The rule and its candidates were found from the mappings and the traffic of the FuseMax artifact's
FLAT baseline; docs/machines/spatial.md says what that is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from opbyte.core.errors import CapacityError
from opbyte.hw_models.compute.spatial.arrays import (
    ARRAY,
    LANES,
    Arrays,
    Plan,
    Shape,
    crossing,
    joules,
)
from opbyte.hw_models.compute.spatial.cascade import Cascade

#: Tiles of queries that a mapper tries, in widths of the array, besides all queries of a head.
TILES = (4, 2, 1)
#: Mappings whose time differs by less are equal.
_EQUAL = 1e-9


@dataclass(frozen=True)
class Choice:
    """A mapping of the two products.

    Attributes:
        queries: On the chip together, of one group.
        fused: Rows of scores stay on the chip between the products.
        first, second: What stays in the array: `outputs`, or `weights` (keys and values).
        holds: Queries stay in the buffer too; else they come again for each tile of keys.
    """

    queries: float
    fused: bool
    first: str
    second: str
    holds: bool


def _choices(arrays: Arrays, shape: Shape) -> Iterator[Choice]:
    """Yield mappings, coarse ones first, those that hold less before those that hold more."""
    tiles = [shape.queries, *(float(n * arrays.columns) for n in TILES)]
    for queries in dict.fromkeys(min(t, shape.queries) for t in tiles):
        for fused in (True, False):
            for first in ("outputs", "weights"):
                for second in ("outputs", "weights"):
                    for holds in (False, True):
                        yield Choice(queries, fused, first, second, holds)


@dataclass(frozen=True)
class _Moved:
    """What a choice moves: bytes by tensor without scores, and cycles of the two products.

    Attributes:
        staged: Bytes of inputs and results on the chip; the rows of scores are the rest of it.
    """

    staged: float
    footprint: float
    spilled: float
    traffic: dict[str, float]
    cycles: tuple[float, float]


def _moved(choice: Choice, cascade: Cascade, arrays: Arrays, shape: Shape) -> _Moved:
    across, down = arrays.columns, arrays.rows
    queries, keys = shape.queries, shape.keys
    wide, high = math.ceil(queries / across), math.ceil(keys / down)
    strips, size = math.ceil(queries / choice.queries), arrays.size
    keeps_sum = choice.second == "weights"
    # What streams is loaded beside what is used: two tiles each.
    staged = 2.0 * size * (
        min(down, keys) * (shape.width + shape.value_width)
        + (choice.queries if choice.holds else min(across, queries)) * shape.width
        + (choice.queries if keeps_sum else min(across, queries)) * shape.value_width
    )  # fmt: skip
    rows = cascade.rows_kept * choice.queries * keys * size if choice.fused else 0.0
    footprint = staged + rows
    spilled = max(0.0, 1.0 - arrays.buffer / footprint)
    once = shape.compulsory
    again = {"outputs": wide, "weights": strips}
    held = (1.0 - spilled) + spilled * high
    parts = 1.0 if not keeps_sum else (1.0 - spilled) + spilled * 2.0 * high
    traffic = {
        "Q": once["Q"] * (held if choice.holds else high),
        "K": once["K"] * again[choice.first],
        "V": once["V"] * again[choice.second],
        "AV": once["AV"] * parts,
    }
    first = {
        "outputs": wide * high * shape.width,
        "weights": queries * high * math.ceil(shape.width / across),
    }
    second = {
        "outputs": wide * keys * math.ceil(shape.value_width / down),
        "weights": queries * high * math.ceil(shape.value_width / across),
    }
    cycles = first[choice.first] * shape.share, second[choice.second] * shape.share
    return _Moved(staged, footprint, spilled, traffic, (cycles[0], cycles[1]))


def by_rows(cascade: Cascade, arrays: Arrays, shape: Shape, *, schedule: str, where: str) -> Plan:
    """Return the plan of a cascade of several passes, as FLAT's mapper would choose it.

    Args:
        schedule: `overlapped`: the arrays and the memory work at the same time; `serial`: each
            Einsum follows the one before it.
        where: The buffer's name, for errors.
    Raises:
        CapacityError: If the buffer does not hold the tiles of inputs and results.
    """
    pairs = shape.groups * shape.queries * shape.keys * shape.share
    best, least, smallest = None, math.inf, math.inf
    for choice in _choices(arrays, shape):
        moved = _moved(choice, cascade, arrays, shape)
        smallest = min(smallest, moved.staged)
        if moved.staged > arrays.buffer:
            continue
        # The products alone: scores out, weights in.
        apart = moved.spilled if choice.fused else 1.0
        total = sum(moved.traffic.values()) + 2.0 * pairs * arrays.size * apart
        seconds = max(total / arrays.bandwidth, shape.groups * sum(moved.cycles) / arrays.clock)
        if seconds < least * (1.0 - _EQUAL):
            best, least = (choice, moved), seconds
    if best is None:
        raise CapacityError("tiles of inputs and results", where, smallest, arrays.buffer)
    return _planned(*best, cascade, arrays, shape, schedule)


def _planned(
    choice: Choice, moved: _Moved, cascade: Cascade, arrays: Arrays, shape: Shape, schedule: str
) -> Plan:
    pairs = shape.groups * shape.queries * shape.keys * shape.share
    crossed = crossing(cascade, arrays)
    outside, spilled = moved.spilled * sum(crossed.values()), moved.spilled
    if not choice.fused:
        # A score leaves for memory once and comes back once, and so does its weight. Between, the
        # softmax works on one row, as far as that fits.
        apart = 2.0 * sum(_changes(cascade, name) for name in crossed)
        row = shape.keys * arrays.size
        spilled = max(0.0, 1.0 - (arrays.buffer - moved.staged) / row)
        outside = apart + spilled * (sum(crossed.values()) - apart)
    traffic = {**moved.traffic, "scores": pairs * arrays.size * outside}
    busy, useful = _busy(cascade, arrays, shape, moved.cycles)
    places = {e.name: arrays.place(e) for e in cascade.einsums}
    taken = [sum(s for e, s in busy.items() if places[e] == a) for a in (ARRAY, LANES)]
    total = sum(traffic.values())
    memory = total / arrays.bandwidth
    longest = sum(taken) if schedule == "serial" else max(taken)
    tiles = math.ceil(shape.queries / arrays.columns) * math.ceil(shape.keys / arrays.rows)
    edges = (shape.width + shape.value_width) * (arrays.rows + arrays.columns)
    words = pairs * sum(crossed.values()) + shape.groups * shape.share * tiles * edges
    return Plan(
        cascade, choice.queries, moved.footprint, arrays.buffer, spilled, traffic, busy,
        places, useful, memory, max(memory, longest),
        joules(cascade, arrays, shape, arrays.rows, words, total),
        {
            "schedule": schedule, "scores": "chip" if choice.fused else "memory",
            "keys": choice.first, "values": choice.second,
            "queries": "chip" if choice.holds else "again",
        },
    )  # fmt: skip


def _changes(cascade: Cascade, name: str) -> bool:
    """Return whether a score tensor changes arrays, and so is what unfused products exchange."""
    made = next(e for e in cascade.einsums if e.name == name)
    return any(r.product != made.product for r in cascade.readers(name))


def _busy(
    cascade: Cascade, arrays: Arrays, shape: Shape, products: tuple[float, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds and useful share of each Einsum."""
    pes = arrays.rows * arrays.columns
    left = list(products)
    busy, useful = {}, {}
    for e in cascade.einsums:
        place = arrays.place(e)
        points = shape.points(e, arrays.rows)
        if e.walks & {"M"}:
            points *= shape.share
        slots = pes if place == ARRAY else arrays.cycle_of_lanes
        cycles = points * arrays.point_cycles(place, e) / slots
        taken = left.pop(0) if e.product else cycles
        busy[e.name] = shape.groups * taken / arrays.clock
        useful[e.name] = cycles / taken
    return busy, useful
