"""What a spatial array offers, what an attention asks of it, and what a plan of it comes to."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from opbyte.hw_models.compute.spatial.cascade import Cascade, Einsum

#: Keys of `Arrays.cycles` and `Arrays.joules`: the two-dimensional array and the lanes beside it.
ARRAY, LANES = "array", "lanes"


def point_cycles(einsum: Einsum, table: Mapping[str, Any], *, pipelined: bool) -> Any:
    """Return the cycles of one point: of all its operations, or of the slowest one.

    Args:
        table: Operation -> cycles, floats or (points,).
    """
    each = [table[o] for o in einsum.does]
    return functools.reduce(np.maximum, each) if pipelined else sum(each)


@dataclass(frozen=True)
class Arrays:
    """A 2D array, a 1D array of lanes, the buffer that both share and the memory behind it.

    Attributes:
        rows, columns: Processing elements (PEs) of the 2D array; queries lie along columns.
        clock: Of the 2D array, 1/s.
        lane_rate: Operations of all lanes, 1/s.
        buffer: Bytes on the chip.
        bandwidth: Bytes/s of the memory.
        cycles: Array -> operation -> cycles of it on one PE or lane; an operation that is not there
            can not be done.
        pipelined: Operations of one Einsum follow each other without waiting: a point takes its
            slowest one instead of all of them.
        joules: Array -> operation -> energy; NaN where it is not given.
        register_joules: Register file accesses of one operation.
        buffer_joules, memory_joules: Of a byte.
        size: Bytes of an element on the chip.
    """

    rows: int
    columns: int
    clock: float
    lane_rate: float
    buffer: float
    bandwidth: float
    cycles: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    pipelined: bool = False
    joules: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()
    register_joules: float = math.nan
    buffer_joules: float = math.nan
    memory_joules: float = math.nan
    size: float = 2.0

    def able(self, array: str, einsum: Einsum) -> bool:
        """Return whether an array has all operations of an Einsum."""
        return set(einsum.does) <= set(dict(dict(self.cycles).get(array, ())))

    def place(self, einsum: Einsum) -> str:
        """Return where an Einsum runs: the 2D array or the lanes.

        On the array run products, and what makes or reduces a value of each pair of query and key
        if the PEs are able to.
        """
        pairs = bool(einsum.walks & {"M", "M0"})
        return ARRAY if einsum.product or (pairs and self.able(ARRAY, einsum)) else LANES

    def point_cycles(self, array: str, einsum: Einsum) -> float:
        """Return the cycles of one point on one PE or lane."""
        return float(point_cycles(einsum, dict(dict(self.cycles)[array]), pipelined=self.pipelined))

    def point_joules(self, array: str, einsum: Einsum) -> float:
        """Return the energy of one point, NaN where an operation's is unknown."""
        table = dict(dict(self.joules).get(array, ()))
        steps = dict(dict(self.cycles)[array])
        return sum(
            table.get(o, math.nan) + self.register_joules * max(1.0, steps[o]) for o in einsum.does
        )

    def of_size(self, size: float) -> Arrays:
        """Return the same for elements of another size."""
        return self if size == self.size else replace(self, size=size)

    @property
    def cycle_of_lanes(self) -> float:
        """Return the operations of the lanes in one clock of the 2D array."""
        return self.lane_rate / self.clock


@dataclass(frozen=True)
class Shape:
    """Equal attentions of `groups` heads of keys and values.

    Attributes:
        queries: Rows of queries of one group: tokens, times the heads that share its keys.
        keys: Tokens that they attend to.
        width, value_width: Of queries and keys, and of values.
        share: Pairs that the mask lets through, of queries * keys.
        query_bytes, key_bytes, result_bytes: Of an element in memory.
    """

    groups: float
    queries: float
    keys: float
    width: float
    value_width: float
    share: float = 1.0
    query_bytes: float = 2.0
    key_bytes: float = 2.0
    result_bytes: float = 2.0

    def points(self, einsum: Einsum, tile: int) -> float:
        """Return the points of an Einsum in one group, whole ranks, the mask aside.

        Args:
            tile: Keys of one tile, where they are walked in tiles.
        """
        ranks = {
            "P": self.queries, "E": self.width, "F": self.value_width, "M": self.keys,
            "M1": math.ceil(self.keys / tile), "M0": self.keys / math.ceil(self.keys / tile),
        }  # fmt: skip
        return math.prod(ranks[r] for r in einsum.walks)

    @cached_property
    def compulsory(self) -> dict[str, float]:
        """Return the bytes of each input and of the result, all groups."""
        return {
            "Q": self.groups * self.queries * self.width * self.query_bytes,
            "K": self.groups * self.keys * self.width * self.key_bytes,
            "V": self.groups * self.keys * self.value_width * self.key_bytes,
            "AV": self.groups * self.queries * self.value_width * self.result_bytes,
        }


@dataclass(frozen=True)
class Plan:
    """An attention mapped on the arrays.

    Attributes:
        cascade: Its Einsums.
        queries: Queries that are on the chip together, of one group.
        footprint: Bytes that the mapping wants on the chip.
        capacity: Bytes of the buffer.
        spilled: Share of what should stay on the chip that goes to memory instead.
        traffic: Bytes between memory and chip, by tensor, of everything.
        busy: Einsum -> seconds of its array.
        places: Einsum -> its array.
        useful: Einsum -> share of the PEs or lanes that work while it runs.
        memory: Seconds of all traffic.
        seconds: Of everything.
        joules: Part -> energy; NaN where a parameter is missing.
        choices: What the mapping decided, in words.
    """

    cascade: Cascade
    queries: float
    footprint: float
    capacity: float
    spilled: float
    traffic: dict[str, float]
    busy: dict[str, float]
    places: dict[str, str]
    useful: dict[str, float]
    memory: float
    seconds: float
    joules: dict[str, float]
    choices: dict[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """Return all bytes between memory and chip."""
        return sum(self.traffic.values())

    def utilisation(self, array: str) -> float:
        """Return the share of an array's slots in all seconds that do useful work."""
        work = (s * self.useful[e] for e, s in self.busy.items() if self.places[e] == array)
        return sum(work) / self.seconds

    def taken(self, array: str) -> float:
        """Return the seconds that an array is taken, useful or not."""
        return sum(s for e, s in self.busy.items() if self.places[e] == array)


def joules(
    cascade: Cascade, arrays: Arrays, shape: Shape, tile: int, words: float, total: float
) -> dict[str, float]:
    """Return energy by part.

    Args:
        words: Elements that pass the buffer's port.
        total: Bytes between memory and chip.
    """
    compute = {ARRAY: 0.0, LANES: 0.0}
    for e in cascade.einsums:
        place = arrays.place(e)
        masked = shape.share if e.walks & {"M", "M0", "M1"} else 1.0
        points = shape.groups * shape.points(e, tile) * masked
        compute[place] += points * arrays.point_joules(place, e)
    return {
        **compute,
        "buffer": words * arrays.size * arrays.buffer_joules,
        "memory": total * arrays.memory_joules,
    }


def crossing(cascade: Cascade, arrays: Arrays) -> dict[str, float]:
    """Return score tensor -> how often each of its values is written to or read from the buffer.

    What the same array reads in the same pass stays in its registers.
    """
    found = {}
    for e in cascade.scores:
        here = arrays.place(e), cascade.pass_of[e.name]
        readers = cascade.readers(e.name)
        away = [r for r in readers if (arrays.place(r), cascade.pass_of[r.name]) != here]
        if away:
            found[e.name] = 1.0 + len(away)
    return found
