"""The readable twin of `blocks` and `collect`: blocks of a plane, in lists."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import SimulationError
from opbyte.hw_models.memory.nand_kernel import blocks as kept
from opbyte.hw_models.memory.nand_kernel.blocks import FIFO, GREEDY, SAMPLED

__all__ = ["collect_twin"]

_MASK = (1 << 31) - 1


class Plane:
    """A plane in lists: which pages each block holds, in order; which blocks are free or full."""

    def __init__(self, f: npt.NDArray[np.int32]) -> None:
        """Take over a plane's numbers."""
        self.pages, self.policy = int(f[kept.F_PAGES]), int(f[kept.F_POLICY])
        blocks, logical = int(f[kept.F_BLOCKS]), int(f[kept.F_LOGICAL])
        parts = np.split(f[kept.F_VALID :], np.cumsum([blocks] * 4 + [logical]))
        valid, age, free, _, where, page_of = parts
        self.valid = [int(x) for x in valid]
        self.full = [int(b) for b in np.argsort(age, kind="stable") if age[b] >= 0]
        first = int(f[kept.F_FREE_FIRST])
        self.free = deque(int(free[(first + i) % blocks]) for i in range(f[kept.F_FREE]))
        self.place_of = {lpn: int(place) for lpn, place in enumerate(where) if place >= 0}
        self.frontier = {"host": int(f[kept.F_OPEN]), "move": int(f[kept.F_MOVE])}
        begun = {self.frontier["host"]: f[kept.F_OPEN_AT], self.frontier["move"]: f[kept.F_MOVE_AT]}
        self.held: list[list[int]] = []
        for b, held in enumerate(page_of.reshape(blocks, self.pages)):
            count = self.pages if age[b] >= 0 else int(begun.get(b, 0))
            self.held.append([int(x) for x in held[:count]])
        self.drawn = int(f[kept.F_DRAWN])
        self.counts = [0, 0, 0]

    def drop(self, lpn: int) -> None:
        place = self.place_of.pop(lpn, None)
        if place is not None:
            block, page = divmod(place, self.pages)
            self.held[block][page] = -1
            self.valid[block] -= 1

    def program(self, who: str, lpn: int) -> int:
        block = self.frontier[who]
        place = block * self.pages + len(self.held[block])
        self.held[block].append(lpn)
        self.place_of[lpn] = place
        self.valid[block] += 1
        if len(self.held[block]) == self.pages:
            self.full.append(block)
            self.frontier[who] = self.free.popleft()
        return place

    def overwrite(self, lpn: int) -> int:
        self.drop(lpn)
        self.counts[0] += 1
        return self.program("host", lpn)

    def victim(self) -> int:
        """Return the block to erase, which is full no longer."""
        found = self.best() if self.full else -1
        if found < 0 or (self.valid[found] == self.pages and self.policy == GREEDY):
            raise SimulationError("no block has an invalid page")
        self.full.remove(found)
        return found

    def best(self) -> int:
        if self.policy == FIFO:
            return self.full[0]
        if self.policy == SAMPLED:
            found = []
            for _ in range(max(1, len(self.held).bit_length() - 1)):
                self.drawn = self.drawn * 48271 % _MASK
                found.append(self.drawn % len(self.held))
            there = [b for b in found if b in self.full]
            if there:
                return min(there, key=lambda b: self.valid[b])
        return min(sorted(self.full), key=lambda b: self.valid[b])

    def move(self, block: int) -> list[tuple[int, int]]:
        """Move what a block holds; return old and new pages within their blocks."""
        pages = []
        for old, lpn in enumerate(self.held[block]):
            if lpn >= 0:
                self.drop(lpn)
                pages.append((old, self.program("move", lpn) % self.pages))
                self.counts[1] += 1
        return pages

    def erase(self, block: int) -> None:
        self.held[block] = []
        self.free.append(block)
        self.counts[2] += 1


def collect_twin(
    blocks: int, pages: int, logical: int, ops: npt.NDArray[np.int64], policy: int, spare: int,
    before: int, seed: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Return what `collect` returns, in plain Python."""
    plane, written = Plane(kept.memory(1, blocks, pages, logical, policy, seed)), 0
    for op in (int(x) for x in ops):
        if op < 0:
            plane.drop(-1 - op)
            continue
        if written == before:
            plane.counts = [0, 0, 0]
        written += 1
        plane.overwrite(op)
        while len(plane.free) < spare:
            block = plane.victim()
            plane.move(block)
            plane.erase(block)
    return plane.counts[0], plane.counts[1], plane.counts[2]
