"""A cascade of one pass: tiles of queries stay on the chip while keys and values stream by.

Nothing of the length of the keys lives, so the buffer holds for each query its vector, what runs
from tile to tile (maximum, denominator, output) and the scores of one tile of keys if they change
arrays. Keys and values come from memory once for each tile of queries. Source: FuseMax (Nayak et
al., MICRO 2024), sections V and VI.
"""

from __future__ import annotations

import math

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


def streamed(
    cascade: Cascade, arrays: Arrays, shape: Shape, *, schedule: str, tiles: str, where: str
) -> Plan:
    """Return the plan of a cascade of one pass.

    Args:
        schedule: `overlapped`: the arrays work on neighbouring tiles. `serial`: a tile's Einsums
            follow their dependencies, and the next tile begins when they are done.
        tiles: `divide`: tiles of queries divide their number, as mappers with perfect factors
            have it. `uneven`: the last tile may be smaller.
        where: The buffer's name, for errors.
    Raises:
        CapacityError: If the buffer does not hold one column of queries and one tile of keys.
    """
    keys = min(arrays.rows, math.ceil(shape.keys))
    crossed = crossing(cascade, arrays)
    ranks = {"M0": float(keys), "F": shape.value_width}
    carried = sum(math.prod(ranks.get(r, 1.0) for r in e.ranks) for e in cascade.running)
    each = (shape.width + carried + keys * len(crossed)) * arrays.size
    held = keys * (shape.width + shape.value_width) * arrays.size
    columns = math.ceil(shape.queries / arrays.columns)
    fit = math.floor((arrays.buffer - held) / (each * arrays.columns))
    if fit < 1:
        raise CapacityError(
            "a tile of queries and one of keys", where, held + each * arrays.columns, arrays.buffer
        )
    wide = min(fit, columns)
    if tiles == "divide":
        wide = next(w for w in range(wide, 0, -1) if columns % w == 0)
    passes = math.ceil(columns / wide)
    queries = min(shape.queries, wide * arrays.columns)
    # Under a mask the keys of a tile of queries end where its last query does.
    walked = min(1.0, shape.share + (1.0 - shape.share) / passes)
    once = shape.compulsory
    traffic = {**once, "K": once["K"] * passes * walked, "V": once["V"] * passes * walked}
    places = {e.name: arrays.place(e) for e in cascade.einsums}
    busy, useful = _busy(cascade, arrays, shape, keys)
    memory = sum(traffic.values()) / arrays.bandwidth
    longest = max(sum(s for e, s in busy.items() if places[e] == array) for array in (ARRAY, LANES))
    if schedule == "serial":
        count = shape.groups * columns * math.ceil(shape.keys / arrays.rows) * shape.share
        longest = max(longest, _serial(cascade, arrays, busy, places, count))
    words = shape.groups * shape.share * (
        shape.queries * shape.keys * sum(crossed.values())
        # Operands of the products enter at the edges of the array, sums leave at one.
        + columns * math.ceil(shape.keys / arrays.rows)
        * (shape.width + shape.value_width) * (arrays.rows + arrays.columns)
        + 2.0 * shape.queries * math.ceil(shape.keys / arrays.rows) * carried
    )  # fmt: skip
    total = sum(traffic.values())
    return Plan(
        cascade, queries, held + each * queries, arrays.buffer, 0.0, traffic, busy, places,
        useful, memory, max(memory, longest),
        joules(cascade, arrays, shape, keys, words, total), {"schedule": schedule},
    )  # fmt: skip


def _busy(
    cascade: Cascade, arrays: Arrays, shape: Shape, keys: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds and useful share of each Einsum; edge tiles take as long as whole ones."""
    columns = math.ceil(shape.queries / arrays.columns)
    rows = math.ceil(shape.keys / arrays.rows)
    filled = shape.queries * shape.keys / (columns * arrays.columns * rows * arrays.rows)
    busy, useful = {}, {}
    for e in cascade.einsums:
        place = arrays.place(e)
        masked = shape.share if e.walks & {"M1", "M0"} else 1.0
        if place == ARRAY:
            deep = math.prod(
                {"E": shape.width, "F": shape.value_width}.get(r, 1.0) for r in e.walks
            )
            cycles = deep * columns * rows * arrays.point_cycles(ARRAY, e)
            useful[e.name] = filled
        else:
            points = shape.points(e, keys)
            cycles = points * arrays.point_cycles(LANES, e) / arrays.cycle_of_lanes
            useful[e.name] = 1.0
        busy[e.name] = shape.groups * masked * cycles / arrays.clock
    return busy, useful


def _serial(
    cascade: Cascade, arrays: Arrays, busy: dict[str, float], places: dict[str, str], count: float
) -> float:
    """Return the seconds of `count` tiles, each Einsum of which waits for what it reads.

    A value that the array's rows reduce has passed all of them before it can come back to the
    array; sums that only leave it drain beside what follows. What ends the whole walk runs beside
    the next queries' first products.
    """
    free = {ARRAY: 0.0, LANES: 0.0}
    done: dict[str, float] = {}
    through = arrays.rows / arrays.clock
    for e in cascade.einsums:
        if cascade.keys not in e.walks:
            continue
        place = places[e.name]
        begin = max([free[place], *(done[r] for r in e.reads if r in done)])
        free[place] = begin + busy[e.name] / count
        reduces = place == ARRAY and not e.product and "M0" in e.walks - e.ranks
        waits = reduces and any(places[r] == ARRAY for r in cascade.fed(e.name))
        done[e.name] = free[place] + (through if waits else 0.0)
    return count * max(done.values())
