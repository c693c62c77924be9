"""Blocks of one plane: which pages they hold, which one is erased next. Compiled.

A plane is a stretch of whole numbers that begins at `b`: its numbers, then of each block valid
pages, age (-1: not full), the ring of free blocks and erasures, then the place of each logical page
and the logical page of each place (-1: none).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.loops import apart, part

__all__ = [
    "FIFO", "GREEDY", "SAMPLED", "Memory", "drop_page", "erased", "make_room", "memory", "moved",
    "overwrite", "plane_size", "victim", "where_at",
]  # fmt: skip

Memory = npt.NDArray[np.int32]
GREEDY, FIFO, SAMPLED = range(3)
(
    F_OPEN, F_OPEN_AT, F_MOVE, F_MOVE_AT, F_FREE_FIRST, F_FREE, F_AGE, F_DRAWN, F_HOST, F_MOVED,
    F_ERASES, F_BLOCKS, F_PAGES, F_LOGICAL, F_POLICY, F_DRAWS,
) = range(16)  # fmt: skip
F_VALID = 16
_MASK = (1 << 31) - 1


def plane_size(blocks: int, pages: int, logical: int) -> int:
    """Return the numbers of a plane."""
    return F_VALID + 4 * blocks + logical + blocks * pages


def memory(planes: int, blocks: int, pages: int, logical: int, policy: int, seed: int) -> Memory:
    """Return empty planes, one behind the other.

    Args:
        logical: Logical pages of a plane.
        policy: `GREEDY`, `FIFO` or `SAMPLED`.
        seed: Of drawn blocks; the next planes take the next ones.
    """
    f = np.zeros((planes, plane_size(blocks, pages, logical)), np.int32)
    f[:, F_MOVE], f[:, F_FREE], f[:, F_BLOCKS], f[:, F_PAGES] = 1, blocks - 2, blocks, pages
    f[:, F_LOGICAL], f[:, F_POLICY] = logical, policy
    f[:, F_DRAWS] = max(1, blocks.bit_length() - 1)
    f[:, F_DRAWN] = (seed + np.arange(planes)) % (_MASK - 1) + 1
    f[:, F_VALID + blocks : F_VALID + 2 * blocks] = -1
    f[:, F_VALID + 2 * blocks : F_VALID + 3 * blocks - 2] = np.arange(2, blocks)
    f[:, F_VALID + 4 * blocks :] = -1
    return f.reshape(-1)


@part
def _draw(f: Memory, b: int, below: int) -> int:
    """Return a number from 0 to below - 1 (Lehmer's generator, modulus 2^31 - 1)."""
    f[b + F_DRAWN] = f[b + F_DRAWN] * 48271 % _MASK
    return int(f[b + F_DRAWN] % below)


@part
def where_at(f: Memory, b: int) -> int:
    """Return where the places of logical pages begin."""
    return int(b + F_VALID + 4 * f[b + F_BLOCKS])


@part
def drop_page(f: Memory, b: int, lpn: int) -> None:
    """Forget a page."""
    where = where_at(f, b)
    place = f[where + lpn]
    if place >= 0:
        f[where + f[b + F_LOGICAL] + place] = -1
        f[b + F_VALID + place // f[b + F_PAGES]] -= 1
        f[where + lpn] = -1


@part
def _program(f: Memory, b: int, frontier: int, lpn: int) -> int:
    """Write a page at a frontier; a full block is closed, and a free one opened."""
    block, pages, blocks = f[b + frontier], f[b + F_PAGES], f[b + F_BLOCKS]
    place = block * pages + f[b + frontier + 1]
    where = where_at(f, b)
    f[where + f[b + F_LOGICAL] + place] = lpn
    f[where + lpn] = place
    f[b + F_VALID + block] += 1
    f[b + frontier + 1] += 1
    if f[b + frontier + 1] == pages:
        f[b + F_VALID + blocks + block] = f[b + F_AGE]
        f[b + F_AGE] += 1
        f[b + frontier] = f[b + F_VALID + 2 * blocks + f[b + F_FREE_FIRST]]
        f[b + F_FREE_FIRST] = (f[b + F_FREE_FIRST] + 1) % blocks
        f[b + F_FREE] -= 1
        f[b + frontier + 1] = 0
    return int(place)


@part
def overwrite(f: Memory, b: int, lpn: int) -> int:
    """Write a page of the host, and return its place."""
    drop_page(f, b, lpn)
    f[b + F_HOST] += 1
    return int(_program(f, b, F_OPEN, lpn))


@part
def _best(f: Memory, b: int) -> int:
    """Return the full block to erase, -1 if there is none."""
    blocks, policy = f[b + F_BLOCKS], f[b + F_POLICY]
    age = b + F_VALID + blocks
    best, found = 1 << 62, -1
    if policy == SAMPLED:
        for _ in range(f[b + F_DRAWS]):
            drawn = _draw(f, b, blocks)
            if f[age + drawn] >= 0 and f[b + F_VALID + drawn] < best:
                best, found = f[b + F_VALID + drawn], drawn
        if found >= 0:
            return found
    for block in range(blocks):
        if f[age + block] >= 0:
            key = f[age + block] if policy == FIFO else f[b + F_VALID + block]
            if key < best:
                best, found = key, block
    return found


@apart
def victim(f: Memory, b: int) -> int:
    """Return the block to erase, which is full no longer; -1 if none is worth it."""
    found = _best(f, b)
    if found >= 0:
        if f[b + F_VALID + found] == f[b + F_PAGES] and f[b + F_POLICY] == GREEDY:
            return -1
        f[b + F_VALID + f[b + F_BLOCKS] + found] = -1
    return found


@part
def moved(f: Memory, b: int, place: int) -> int:
    """Move what a place holds to the block of moved pages; return its new place, -1 for nothing."""
    lpn = f[where_at(f, b) + f[b + F_LOGICAL] + place]
    if lpn < 0:
        return -1
    drop_page(f, b, lpn)
    f[b + F_MOVED] += 1
    return int(_program(f, b, F_MOVE, lpn))


@part
def erased(f: Memory, b: int, block: int) -> None:
    """Count a block among the free ones."""
    blocks = f[b + F_BLOCKS]
    f[b + F_ERASES] += 1
    f[b + F_VALID + 3 * blocks + block] += 1
    f[b + F_VALID + 2 * blocks + (f[b + F_FREE_FIRST] + f[b + F_FREE]) % blocks] = block
    f[b + F_FREE] += 1


@apart
def make_room(f: Memory, b: int, spare: int) -> bool:
    """Erase blocks until `spare` are free; return whether that went."""
    while f[b + F_FREE] < spare:
        block = victim(f, b)
        if block < 0:
            return False
        pages = f[b + F_PAGES]
        for place in range(block * pages, (block + 1) * pages):
            moved(f, b, place)
        erased(f, b, block)
    return True
