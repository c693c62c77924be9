"""The way from pool to pool in the compiled loop: the twin of `Wire`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.state import NONE, Ints
from opbyte.sim.serving.fleet.link import End, Wire

#: Entries of `Way.costs` and `Way.sums`.
RATE, LATENCY, JOULES = range(3)
BUSY_S, DRAWN = range(2)


class Way(NamedTuple):
    """A link whose ends each carry one transfer at a time.

    Attributes:
        out: Ends that a transfer takes at each engine that reads, NONE behind the last,
            (readers, most).
        into: The same of each engine that answers, (decoders, most).
        lanes: Shares in which a transfer is sent at once, (readers, decoders).
        free_at: When each end and direction is free, seconds, (ends,).
        costs: Bytes per second, seconds of latency, joules per byte, (3,).
        sums: Seconds for which ends were busy, joules, (2,).
    """

    out: Ints
    into: Ints
    lanes: Ints
    free_at: Array
    costs: Array
    sums: Array

    @classmethod
    def of(cls, wire: Wire, readers: int) -> Way:
        """Return a wire before anything was sent.

        Args:
            readers: Engines that read, the first ones.
        """
        sources, targets = range(readers), range(readers, len(wire.ends))
        out, into = [wire.taken(i)[0] for i in sources], [wire.taken(j)[1] for j in targets]
        number = {end: i for i, end in enumerate(sorted(set[End]().union(*out, *into)))}
        most = max(map(len, (*out, *into)))
        tables = []
        for taken in (out, into):
            rows = [sorted(number[end] for end in found) for found in taken]
            tables.append([[*row, *[NONE] * (most - len(row))] for row in rows])
        lanes = [[wire.lanes(i, j) for j in targets] for i in sources]
        return cls(
            np.array(tables[0], np.int32),
            np.array(tables[1], np.int32),
            np.array(lanes, np.int32),
            np.zeros(len(number)),
            np.array([wire.rate, wire.latency, wire.joules_per_byte]),
            np.zeros(2),
        )


@register_jitable
def carry(w: Way, now: float, source: int, target: int, size: float) -> float:
    """Return when the bytes of a transfer that is asked for now have arrived, see `Wire.send`."""
    out, into = w.out[source], w.into[target]
    seconds = size / w.lanes[source, target] / w.costs[RATE]
    start = now
    for i in range(out.shape[0]):
        if out[i] != NONE:
            start = max(start, w.free_at[out[i]])
        if into[i] != NONE:
            start = max(start, w.free_at[into[i]])
    taken = 0
    for i in range(out.shape[0]):
        if out[i] != NONE:
            w.free_at[out[i]] = start + seconds
            taken += 1
    for i in range(into.shape[0]):
        if into[i] != NONE and not has(out, into[i]):
            w.free_at[into[i]] = start + seconds
            taken += 1
    w.sums[BUSY_S] += taken * seconds
    w.sums[DRAWN] += size * w.costs[JOULES]
    return float(start + w.costs[LATENCY] + seconds)


@register_jitable
def has(ends: Ints, end: int) -> bool:
    """Return whether an end is among others."""
    found = 0
    for i in range(ends.shape[0]):
        found += ends[i] == end
    return found > 0
