"""KV blocks in the compiled serving loop: the twin of `BlockPool`."""

from __future__ import annotations

from opbyte.core.loops import part
from opbyte.sim.serving.compiled.gaps import miss
from opbyte.sim.serving.compiled.prefixes import leading, sharing
from opbyte.sim.serving.compiled.shared import (
    alone,
    append,
    give_shared,
    hold_shared,
    know_shared,
    take_shared,
    unlink,
    used,
)
from opbyte.sim.serving.compiled.state import (
    AWAY,
    BELOW,
    CHAIN,
    COMPUTED,
    HELD,
    KNOWN,
    LAST,
    LEAVING,
    MOVES,
    MOVING,
    NEXT,
    NONE,
    NUMBER,
    OWNER,
    PREEMPTED,
    RUNNING,
    SAMPLED,
    STACKED,
    WAVE,
    Ints,
    State,
)


@part
def needed(s: State, tokens: int, size: int) -> int:
    """Return the blocks of a sequence of so many tokens."""
    if s.growth.shape[0] == 0:
        return (tokens + size - 1) // size
    taken = whole = 0
    for i in range(s.growth.shape[0]):
        share, limit = s.growth[i, 0], s.growth[i, 1]
        kept = min(tokens, limit) if limit > 0 else tokens
        taken += share * ((kept + size - 1) // size)
        whole += share
    return int((taken + whole - 1) // whole)


@part
def found(s: State, r: int, most: int) -> int:
    """Return how many leading blocks of a waiting request need not be computed, of so many."""
    return leading(s.prefixes, r, most) if sharing(s.prefixes) else int(s.requests[KNOWN, r])


@part
def in_use(s: State, r: int, count: int) -> int:
    """Return how many of the blocks that were found for a request others hold."""
    return used(s, r, count) if sharing(s.prefixes) else 0


@part
def freed(s: State, r: int) -> int:
    """Return how many blocks would be free that a running request holds."""
    return alone(s, r) if sharing(s.prefixes) else int(s.requests[HELD, r])


@part
def hold(s: State, r: int, count: int) -> None:
    """Hold blocks that were found."""
    if sharing(s.prefixes):
        hold_shared(s, r, count)
        return
    block = s.requests[LAST, r]
    for _ in range(count):
        unlink(s, block)
        block = s.blocks[CHAIN, block]
    s.requests[HELD, r] = count


@part
def give(s: State, r: int, remember: int) -> None:
    """Let go of a request's blocks, the last one first; they keep what they hold if it returns."""
    if sharing(s.prefixes):
        give_shared(s, r)
        return
    block = s.requests[LAST, r]
    while block != NONE:
        append(s, block)
        if not remember:
            s.blocks[OWNER, block] = NONE
        elif s.blocks[OWNER, block] == NONE and s.requests[LAST, r] == block:
            # Not full: the one before it is the last that can be found again.
            s.requests[LAST, r] = s.blocks[CHAIN, block]
        block = s.blocks[CHAIN, block]
    s.requests[HELD, r] = 0
    if not remember:
        s.requests[LAST, r], s.requests[KNOWN, r] = NONE, 0


@part
def take(s: State, r: int, count: int) -> None:
    """Give a request blocks from the front of the queue; who remembered them forgets."""
    if sharing(s.prefixes):
        take_shared(s, r, count)
        return
    end = s.blocks.shape[1] - 1
    for _ in range(count):
        block = s.blocks[NEXT, end]
        unlink(s, block)
        owner = s.blocks[OWNER, block]
        if owner != NONE:
            # The blocks of a sequence leave from its end.
            s.requests[KNOWN, owner] = s.blocks[NUMBER, block]
            s.requests[LAST, owner] = s.blocks[CHAIN, block]
            s.blocks[OWNER, block] = NONE
        s.blocks[CHAIN, block] = s.requests[LAST, r]
        s.requests[LAST, r] = block
        s.requests[HELD, r] += 1


@part
def know(s: State, r: int, full: int) -> None:
    """Note that a request's leading blocks are full; they can be found again."""
    if sharing(s.prefixes):
        know_shared(s, r, full)
        return
    block = s.requests[LAST, r]
    number = s.requests[HELD, r] - 1
    while number >= s.requests[KNOWN, r]:
        if number < full:
            s.blocks[OWNER, block], s.blocks[NUMBER, block] = r, number
        block = s.blocks[CHAIN, block]
        number -= 1
    s.requests[KNOWN, r] = full


@part
def preempt(s: State, produced: Ints, remember: int) -> int:
    """Take the blocks of the request that was admitted last; return it."""
    s.counts[RUNNING] -= 1
    s.counts[WAVE] = max(s.counts[WAVE] - 1, 0)
    victim = int(s.running[s.counts[RUNNING]])
    lose(s, victim, produced, remember)
    return victim


@part
def lose(s: State, victim: int, produced: Ints, remember: int) -> None:
    """Take the blocks of a request that no longer runs: to the tier below if there is room."""
    s.requests[PREEMPTED, victim] += 1
    if s.requests[SAMPLED, victim] == produced[victim]:
        # Its last token is under way: it will not come back.
        s.requests[COMPUTED, victim] = 0
        give(s, victim, 0)
        return
    miss(s, victim)
    s.stack[s.counts[STACKED]] = victim
    s.counts[STACKED] += 1
    held = s.requests[HELD, victim]
    if held > s.counts[BELOW]:
        s.requests[COMPUTED, victim] = 0
        give(s, victim, remember)
        return
    s.counts[BELOW] -= held
    s.counts[LEAVING] += held
    s.requests[AWAY, victim], s.requests[MOVING, victim] = held, 1
    s.moves[s.counts[MOVES]] = victim
    s.counts[MOVES] += 1


@part
def finish(s: State, r: int) -> None:
    """Forget a request whose last token is there."""
    if s.requests[HELD, r] == 0:
        return
    drop(s, r)
    give(s, r, 0)


@part
def drop(s: State, r: int) -> None:
    """Take a request out of those that run."""
    at = 0
    while s.running[at] != r:
        at += 1
    s.counts[RUNNING] -= 1
    for i in range(at, s.counts[RUNNING]):
        s.running[i] = s.running[i + 1]
