"""Events that end in the order in which they were planned, one ring for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import apart, part
from opbyte.hw_models.memory.nand_kernel.layout import (
    FAR,
    FAULT,
    HEADS,
    R_AT,
    R_COUNT,
    R_FIRST,
    R_SIZE,
    SLOT_BITS,
    TIMES,
)

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["drop", "push", "push_sorted", "stand"]


@part
def stand(m: Ints, slot: int, time: int) -> None:
    """Say when the next event of a ring or a channel is."""
    m[TIMES + slot] = (time << m[SLOT_BITS]) + slot


@part
def _place(m: Ints, head: int, number: int) -> int:
    place = m[head + R_FIRST] + number
    if place >= m[head + R_SIZE]:
        place -= m[head + R_SIZE]
    return int(m[head + R_AT] + 4 * place)


@part
def push(m: Ints, ring: int, time: int, kind: int, who: int) -> None:
    """Plan an event at a time that is not before those already in the ring."""
    head = HEADS + 4 * ring
    entry = _place(m, head, m[head + R_COUNT])
    m[entry], m[entry + 1], m[entry + 2] = time, kind, who
    m[head + R_COUNT] += 1
    if m[head + R_COUNT] == 1:
        stand(m, ring, time)


@apart
def push_sorted(m: Ints, ring: int, time: int, kind: int, who: int) -> None:
    """Plan an event at any time, behind those of the same time."""
    head = HEADS + 4 * ring
    i = m[head + R_COUNT]
    if i == m[head + R_SIZE]:
        m[FAULT] = 2
        return
    m[head + R_COUNT] += 1
    while i > 0:
        entry, before = _place(m, head, i), _place(m, head, i - 1)
        if m[before] <= time:
            break
        m[entry], m[entry + 1], m[entry + 2] = m[before], m[before + 1], m[before + 2]
        i -= 1
    entry = _place(m, head, i)
    m[entry], m[entry + 1], m[entry + 2] = time, kind, who
    if i == 0:
        stand(m, ring, time)


@part
def drop(m: Ints, ring: int) -> None:
    """Remove the first entry, and let the next one stand."""
    head = HEADS + 4 * ring
    first = m[head + R_FIRST] + 1
    if first == m[head + R_SIZE]:
        first = 0
    m[head + R_FIRST] = first
    m[head + R_COUNT] -= 1
    if m[head + R_COUNT] == 0:
        m[TIMES + ring] = FAR
    else:
        stand(m, ring, m[m[head + R_AT] + 4 * first])
