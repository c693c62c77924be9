"""KV blocks that several requests may hold, in the compiled serving loop: the twin of `BlockPool`.

Who runs has a table of its blocks. A block knows its content and how many hold it; one that nobody
holds is in the queue of free ones, and is found again until it is taken.
"""

from __future__ import annotations

from numba.extending import register_jitable

from opbyte.sim.serving.compiled.prefixes import content
from opbyte.sim.serving.compiled.state import (
    BEFORE,
    CHANGES,
    CONTENT,
    FREE,
    HELD,
    HOLDERS,
    KEPT,
    KNOWN,
    NEXT,
    NONE,
    SLOT,
    SLOTS,
    State,
)


@register_jitable
def unlink(s: State, block: int) -> None:
    """Take a block out of the queue of free ones."""
    before, after = s.blocks[BEFORE, block], s.blocks[NEXT, block]
    s.blocks[NEXT, before], s.blocks[BEFORE, after] = after, before
    s.counts[FREE] -= 1


@register_jitable
def append(s: State, block: int) -> None:
    """Put a block behind the free ones."""
    end = s.blocks.shape[1] - 1
    tail = s.blocks[BEFORE, end]
    s.blocks[NEXT, tail], s.blocks[BEFORE, block] = block, tail
    s.blocks[NEXT, block], s.blocks[BEFORE, end] = end, block
    s.counts[FREE] += 1


@register_jitable
def hold_shared(s: State, r: int, found: int) -> None:
    """Give a request a table, and hold the blocks of its leading contents."""
    p = s.prefixes
    s.counts[SLOTS] -= 1
    slot = p.slots[s.counts[SLOTS]]
    s.requests[SLOT, r], s.requests[HELD, r], s.requests[KNOWN, r] = slot, found, found
    for number in range(found):
        block = p.known[content(p, r, number)] - 1
        if s.blocks[HOLDERS, block] == 0:
            unlink(s, block)
        s.blocks[HOLDERS, block] += 1
        p.tables[slot, number] = block


@register_jitable
def take_shared(s: State, r: int, count: int) -> None:
    """Give a request blocks from the front of the queue; what was in them is forgotten."""
    p, end, slot = s.prefixes, s.blocks.shape[1] - 1, s.requests[SLOT, r]
    for _ in range(count):
        block = s.blocks[NEXT, end]
        unlink(s, block)
        if s.blocks[CONTENT, block] != NONE:
            p.known[s.blocks[CONTENT, block]] = 0
            s.blocks[CONTENT, block] = NONE
            s.counts[CHANGES] += 1
        s.blocks[HOLDERS, block] = 1
        p.tables[slot, s.requests[HELD, r]] = block
        s.requests[HELD, r] += 1


@register_jitable
def give_shared(s: State, r: int) -> None:
    """Let go of a request's blocks, the last one first, and of its table."""
    p, slot = s.prefixes, s.requests[SLOT, r]
    for number in range(s.requests[HELD, r] - 1, -1, -1):
        block = p.tables[slot, number]
        s.blocks[HOLDERS, block] -= 1
        if s.blocks[HOLDERS, block] == 0:
            append(s, block)
    p.slots[s.counts[SLOTS]] = slot
    s.counts[SLOTS] += 1
    s.requests[SLOT, r], s.requests[HELD, r], s.requests[KNOWN, r] = NONE, 0, 0


@register_jitable
def know_shared(s: State, r: int, full: int) -> None:
    """Note what a request's full blocks hold; content that is known elsewhere stays there."""
    p, slot = s.prefixes, s.requests[SLOT, r]
    for number in range(s.requests[KNOWN, r], full):
        block, held = p.tables[slot, number], content(p, r, number)
        if s.blocks[CONTENT, block] == NONE and p.known[held] == 0:
            s.blocks[CONTENT, block], p.known[held] = held, block + 1
            s.counts[CHANGES] += number < p.shared[p.row[r]]
    s.requests[KNOWN, r] = full


@register_jitable
def used(s: State, r: int, found: int) -> int:
    """Return how many blocks of a request's leading contents others hold."""
    p, count = s.prefixes, 0
    for number in range(found):
        count += s.blocks[HOLDERS, p.known[content(p, r, number)] - 1] > 0
    return count


@register_jitable
def keep(s: State, r: int, found: int, kept: int) -> None:
    """Mark the blocks of a request's leading contents as ones that it is to have, or not (0)."""
    p = s.prefixes
    for number in range(found):
        s.blocks[KEPT, p.known[content(p, r, number)] - 1] = kept


@register_jitable
def alone(s: State, r: int) -> int:
    """Return how many blocks a running request holds alone, but for those that are kept."""
    p, slot, count = s.prefixes, s.requests[SLOT, r], 0
    for number in range(s.requests[HELD, r]):
        block = p.tables[slot, number]
        count += s.blocks[HOLDERS, block] == 1 and s.blocks[KEPT, block] == 0
    return count
