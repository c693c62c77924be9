"""Events that end in the order in which they were planned, one ring for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import part
from opbyte.hw_models.memory.nand_kernel.layout import (
    CHANNELS,
    FAR,
    NOW,
    O_RINGS,
    O_TIMES,
    R_AT,
    R_COUNT,
    R_FIRST,
    R_SIZE,
    S_BUFFER,
    S_DOWN,
    S_UP,
    SEQ,
    SLOTS,
)  # fmt: skip

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["drop", "push", "send", "show"]


@part
def _stand(m: Ints, ring: int, time: int, order: int) -> None:
    slot = m[O_TIMES] + m[CHANNELS] + ring
    m[slot] = time
    m[slot + m[SLOTS]] = order


@part
def _entered(m: Ints, ring: int, time: int, order: int, kind: int, who: int) -> int:
    """Add an entry at the end; return how many there are now."""
    head = m[O_RINGS] + 4 * ring
    place = m[head + R_FIRST] + m[head + R_COUNT]
    if place >= m[head + R_SIZE]:
        place -= m[head + R_SIZE]
    entry = m[head + R_AT] + 4 * place
    m[entry], m[entry + 1], m[entry + 2], m[entry + 3] = time, order, kind, who
    m[head + R_COUNT] += 1
    return int(m[head + R_COUNT])


@part
def push(m: Ints, ring: int, time: int, kind: int, who: int) -> None:
    """Plan an event at a time that is not before those already in the ring."""
    m[SEQ] += 1
    if _entered(m, ring, time, m[SEQ], kind, who) == 1:
        _stand(m, ring, time, m[SEQ])


@part
def show(m: Ints, ring: int) -> None:
    """Start what is next in a ring of things that pass one after the other, if there is any."""
    head = m[O_RINGS] + 4 * ring
    if m[head + R_COUNT] > 0:
        m[SEQ] += 1
        entry = m[head + R_AT] + 4 * m[head + R_FIRST]
        _stand(m, ring, m[NOW] + m[entry], m[SEQ])


@part
def send(m: Ints, ring: int, ps: int, kind: int, who: int) -> None:
    """Queue what takes a time to pass."""
    if _entered(m, ring, ps, 0, kind, who) == 1:
        show(m, ring)


@part
def drop(m: Ints, ring: int) -> None:
    """Remove the first entry; of planned events the next one stands."""
    head = m[O_RINGS] + 4 * ring
    m[head + R_FIRST] += 1
    if m[head + R_FIRST] == m[head + R_SIZE]:
        m[head + R_FIRST] = 0
    m[head + R_COUNT] -= 1
    passing = ring in (S_UP, S_DOWN, S_BUFFER)
    if passing or m[head + R_COUNT] == 0:
        _stand(m, ring, FAR, 0)
    else:
        entry = m[head + R_AT] + 4 * m[head + R_FIRST]
        _stand(m, ring, m[entry], m[entry + 1])
