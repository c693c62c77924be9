"""Garbage collection on one plane, compiled, and its readable twin."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import SimulationError
from opbyte.core.loops import compiled, part

__all__ = ["collect", "collect_twin"]

Ints = npt.NDArray[np.int64]
GREEDY, FIFO, SAMPLED = range(3)
#: Counters and frontiers: see `_run`.
HOST, MOVED, ERASES, OPEN, OPEN_AT, MOVE, MOVE_AT, FREE_FIRST, FREE_COUNT, AGE, DRAWN, FAULT = (
    range(12)
)
_MASK = (1 << 31) - 1


@part
def _draw(state: Ints, below: int) -> int:
    """Return a number from 0 to below - 1 (Lehmer's generator, modulus 2^31 - 1)."""
    state[DRAWN] = state[DRAWN] * 48271 % _MASK
    return int(state[DRAWN] % below)


@part
def _victim(state: Ints, valid: Ints, age: Ints, policy: int, draws: int) -> int:
    """Return the full block to erase, -1 if there is none."""
    best, found, blocks = 1 << 62, -1, len(valid)
    if policy == SAMPLED:
        tries = 0
        while tries < draws:
            b = _draw(state, blocks)
            tries += 1
            if age[b] >= 0 and valid[b] < best:
                best, found = valid[b], b
        if found >= 0:
            return found
    for b in range(blocks):
        if age[b] >= 0:
            key = age[b] if policy == FIFO else valid[b]
            if key < best:
                best, found = key, b
    return found


@part
def _program(state: Ints, frontier: int, page_of: Ints, where: Ints, valid: Ints, age: Ints,
             free: Ints, pages: int, lpn: int) -> None:  # fmt: skip
    """Write a page at a frontier; a full block is closed, and a free one opened."""
    block = state[frontier]
    place = block * pages + state[frontier + 1]
    page_of[place] = lpn
    where[lpn] = place
    valid[block] += 1
    state[frontier + 1] += 1
    if state[frontier + 1] == pages:
        age[block] = state[AGE]
        state[AGE] += 1
        state[frontier] = free[state[FREE_FIRST] % len(free)]
        state[FREE_FIRST] += 1
        state[FREE_COUNT] -= 1
        state[frontier + 1] = 0


@part
def _drop(page_of: Ints, where: Ints, valid: Ints, pages: int, lpn: int) -> None:
    place = where[lpn]
    if place >= 0:
        page_of[place] = -1
        valid[place // pages] -= 1
        where[lpn] = -1


@part
def _run(
    state: Ints, ops: Ints, page_of: Ints, where: Ints, valid: Ints, age: Ints, free: Ints,
    pages: int, policy: int, spare: int, draws: int, before: int,
) -> None:  # fmt: skip
    written = 0
    for i in range(len(ops)):
        lpn = ops[i]
        if lpn < 0:
            _drop(page_of, where, valid, pages, -1 - lpn)
            continue
        if written == before:
            state[HOST] = state[MOVED] = state[ERASES] = 0
        written += 1
        _drop(page_of, where, valid, pages, lpn)
        _program(state, OPEN, page_of, where, valid, age, free, pages, lpn)
        state[HOST] += 1
        while state[FREE_COUNT] < spare:
            b = _victim(state, valid, age, policy, draws)
            if b < 0 or (valid[b] == pages and policy == GREEDY):
                state[FAULT] = 1
                return
            age[b] = -1
            for p in range(b * pages, (b + 1) * pages):
                if page_of[p] >= 0:
                    moved = page_of[p]
                    _drop(page_of, where, valid, pages, moved)
                    _program(state, MOVE, page_of, where, valid, age, free, pages, moved)
                    state[MOVED] += 1
            state[ERASES] += 1
            free[(state[FREE_FIRST] + state[FREE_COUNT]) % len(free)] = b
            state[FREE_COUNT] += 1


def collect(
    blocks: int, pages: int, logical: int, ops: Ints, policy: int, spare: int, before: int,
    seed: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Return host pages, moved pages and erases of the writes after the first `before`.

    Args:
        blocks, pages: Of a plane, and of a block.
        logical: Pages that the host may write.
        ops: Pages that are written, -1 - page for those given back, (operations,).
        policy: `GREEDY`, `FIFO` or `SAMPLED`.
        spare: Blocks that are kept free.
        before: Writes that do not count.
        seed: Of drawn blocks.
    """
    state = np.zeros(12, np.int64)
    state[OPEN], state[MOVE], state[FREE_COUNT] = 0, 1, blocks - 2
    state[DRAWN] = seed % (_MASK - 1) + 1
    free = np.r_[np.arange(2, blocks), [0, 0]].astype(np.int64)
    compiled(_run, (Path(__file__),))(
        state, ops, np.full(blocks * pages, -1, np.int64), np.full(logical, -1, np.int64),
        np.zeros(blocks, np.int64), np.full(blocks, -1, np.int64), free, pages, policy, spare,
        _draws(blocks), before,
    )  # fmt: skip
    if state[FAULT]:
        raise SimulationError("no block has an invalid page, so that none can be erased")
    return int(state[HOST]), int(state[MOVED]), int(state[ERASES])


def _draws(blocks: int) -> int:
    return max(1, blocks.bit_length() - 1)


class _Plane:
    """A plane in lists: which pages each block holds, in order; which blocks are free or full."""

    def __init__(self, blocks: int, pages: int, policy: int, seed: int) -> None:
        self.pages, self.policy = pages, policy
        self.held: list[list[int]] = [[] for _ in range(blocks)]
        self.block_of: dict[int, int] = {}
        self.valid = [0] * blocks
        self.free = deque(range(2, blocks))
        self.frontier = {"host": 0, "move": 1}
        self.full: list[int] = []
        self.drawn = seed % (_MASK - 1) + 1
        self.counts = [0, 0, 0]

    def drop(self, lpn: int) -> None:
        block = self.block_of.pop(lpn, None)
        if block is not None:
            self.held[block][self.held[block].index(lpn)] = -1
            self.valid[block] -= 1

    def program(self, who: str, lpn: int) -> None:
        block = self.frontier[who]
        self.held[block].append(lpn)
        self.block_of[lpn] = block
        self.valid[block] += 1
        if len(self.held[block]) == self.pages:
            self.full.append(block)
            self.frontier[who] = self.free.popleft()

    def victim(self) -> int:
        if self.policy == FIFO:
            return self.full[0]
        if self.policy == SAMPLED:
            found = []
            for _ in range(_draws(len(self.held))):
                self.drawn = self.drawn * 48271 % _MASK
                found.append(self.drawn % len(self.held))
            there = [b for b in found if b in self.full]
            if there:
                return min(there, key=lambda b: self.valid[b])
        return min(sorted(self.full), key=lambda b: self.valid[b])

    def erase(self) -> None:
        block = self.victim()
        self.full.remove(block)
        for lpn in [x for x in self.held[block] if x >= 0]:
            self.drop(lpn)
            self.program("move", lpn)
            self.counts[1] += 1
        self.held[block] = []
        self.free.append(block)
        self.counts[2] += 1


def collect_twin(
    blocks: int, pages: int, _logical: int, ops: Ints, policy: int, spare: int, before: int,
    seed: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Return what `collect` returns, in plain Python."""
    plane, written = _Plane(blocks, pages, policy, seed), 0
    for op in (int(x) for x in ops):
        if op < 0:
            plane.drop(-1 - op)
            continue
        if written == before:
            plane.counts = [0, 0, 0]
        written += 1
        plane.drop(op)
        plane.program("host", op)
        plane.counts[0] += 1
        while len(plane.free) < spare:
            plane.erase()
    return plane.counts[0], plane.counts[1], plane.counts[2]
