"""The readable twin of the compiled loop: one flash device, event by event, in objects and heaps.

Events at the same time happen in the order of their kinds (`twin_arrays`), those of a kind in the
order in which they were planned. docs/flash.md describes what happens at each; `Job` (setup.py)
holds what both are given.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

import numpy as np

from opbyte.hw_models.memory.nand_kernel.setup import WHOLE, Counts, Job, buffer_time, link_time
from opbyte.hw_models.memory.nand_kernel.twin_arrays import (
    BUFFER,
    CORE,
    DOWN,
    FIRMWARE,
    UP,
    Arrays,
    Piece,
)

__all__ = ["replay"]


class Link:
    """One direction of PCIe: messages pass one after the other."""

    def __init__(self, twin: Twin, slot: int) -> None:
        self.twin, self.slot = twin, slot
        self.waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def send(self, ps: int, arrive: Callable[[], None]) -> None:
        self.waiting.append((ps, arrive))
        if len(self.waiting) == 1:
            self.twin.plan(self.twin.now + ps, self.slot, self.deliver)

    def deliver(self) -> None:
        _, arrive = self.waiting.popleft()
        arrive()
        if self.waiting:
            self.twin.plan(self.twin.now + self.waiting[0][0], self.slot, self.deliver)


class Twin(Arrays):
    """One device that serves a job."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.up, self.down = Link(self, UP), Link(self, DOWN)
        self.page_of = list(job.lpn_page)
        self.masks = [int(x) for x in job.lpn_mask]
        #: Mapping entries: False while on their way, True once there; the oldest use first.
        self.entries: OrderedDict[int, bool] = OrderedDict()
        self.dirty: set[int] = set()
        self.arriving: dict[int, list[int]] = {}
        self.waiting: dict[int, tuple[list[Piece], list[Piece]]] = {}
        self.buffered = [0] * job.lpns
        self.depth = 0
        self.stalled: list[int] = []
        self.buffer: deque[tuple[int, int]] = deque()
        requests = job.requests
        self.at = [int(x) for x in job.request_at[:-1]]
        self.left = [0] * requests
        self.in_buffer = [0] * requests
        self.entered, self.inside = 0, 0
        self.queue: deque[int] = deque()
        self.entered_at = np.zeros(requests, np.int64)
        self.done_at = np.full(requests, -1, np.int64)
        self.core_free = 0

    def run(self) -> None:
        for _ in range(min(self.n.depth, self.job.requests)):
            self.enter()
        self.play()

    # The host and the NVMe front.

    def enter(self) -> None:
        if self.entered == self.job.requests or self.now > self.n.stop:
            return
        r = self.entered
        self.entered += 1
        self.entered_at[r] = self.now
        self.core_free = max(self.core_free, self.now) + self.n.command
        if self.n.command:
            self.plan(self.core_free, CORE, lambda: self.ring(r))
        else:
            self.ring(r)

    def ring(self, r: int) -> None:
        self.down.send(self.n.doorbell, lambda: self.rung(r))

    def rung(self, r: int) -> None:
        self.queue.append(r)
        if self.inside < self.n.fetch:
            self.fetch()

    def fetch(self) -> None:
        r = self.queue.popleft()
        self.inside += 1
        self.up.send(self.n.ask, lambda: self.down.send(self.n.entry, lambda: self.arrived(r)))

    def arrived(self, r: int) -> None:
        if self.n.firmware:
            self.plan(self.now + self.n.firmware, FIRMWARE, lambda: self.accept(r))
        else:
            self.accept(r)

    def accept(self, r: int) -> None:
        if not self.job.writes[r]:
            self.read(r)
            return
        size = int(self.job.request_bytes[r])
        ps = link_time(self.n, size)
        self.up.send(self.n.ask, lambda: self.down.send(ps, lambda: self.write(r)))

    def piece_done(self, request: int) -> None:
        self.left[request] -= 1
        self.finished(request)

    def finished(self, r: int) -> None:
        if self.left[r] or self.in_buffer[r]:
            return
        self.inside -= 1
        if not self.job.writes[r]:
            self.up.send(link_time(self.n, int(self.job.request_bytes[r])), lambda: None)
        if self.queue:
            self.fetch()
        self.up.send(self.n.completion, lambda: self.completed(r))

    def completed(self, r: int) -> None:
        self.done_at[r] = self.now
        self.down.send(self.n.doorbell, lambda: None)
        self.enter()

    # The write buffer.

    def read(self, r: int) -> None:
        pieces, held = [], 0
        for i in range(self.job.request_at[r], self.job.request_at[r + 1]):
            if self.buffered[self.job.lpn[i]]:
                held += int(self.job.bytes[i])
            else:
                pieces.append(self.piece(i, r, "reads"))
        self.left[r] = len(pieces)
        if held:
            self.in_buffer[r] += 1
            self.counts.buffer_hits += 1
            self.through_buffer(held, r)
        self.translate(pieces)

    def write(self, r: int) -> None:
        if not self.n.answers:
            pieces = range(self.job.request_at[r], self.job.request_at[r + 1])
            self.left[r] = len(pieces)
            self.translate([self.piece(i, r, "writes") for i in pieces])
            return
        self.left[r] = int(self.job.request_at[r + 1] - self.job.request_at[r])
        self.take(r)
        if self.left[r]:
            self.stalled.append(r)

    def take(self, r: int) -> None:
        pieces, size = [], 0
        while self.left[r] and self.depth < self.n.buffer:
            i = self.at[r]
            self.at[r] += 1
            self.left[r] -= 1
            self.buffered[self.job.lpn[i]] += 1
            self.depth += int(self.job.bytes[i])
            size += int(self.job.bytes[i])
            pieces.append(self.piece(i, r, "writes"))
        if size:
            self.in_buffer[r] += 1
            self.through_buffer(size, r)
            self.translate(pieces)

    def through_buffer(self, size: int, r: int) -> None:
        self.buffer.append((buffer_time(self.n, size), r))
        if len(self.buffer) == 1:
            self.plan(self.now + self.buffer[0][0], BUFFER, self.buffer_passed)

    def buffer_passed(self) -> None:
        _, r = self.buffer[0]
        self.in_buffer[r] -= 1
        self.finished(r)
        self.buffer.popleft()
        if self.buffer:
            self.plan(self.now + self.buffer[0][0], BUFFER, self.buffer_passed)

    def flushed(self, piece: Piece) -> None:
        if not self.n.answers:
            self.piece_done(piece.request)
            return
        self.depth -= piece.bytes
        self.buffered[piece.lpn] -= 1
        for r in list(self.stalled):
            self.take(r)
            if not self.left[r]:
                self.stalled.remove(r)
            if self.depth > self.n.buffer:
                break

    # Where pages lie.

    def piece(self, i: int, r: int, queue: str) -> Piece:
        lpn, size, mask = (int(x[i]) for x in (self.job.lpn, self.job.bytes, self.job.mask))
        plane = int(self.job.lpn_plane[lpn])
        return Piece(plane, queue, size, request=r, lpn=lpn, mask=mask)

    def translate(self, pieces: list[Piece]) -> None:
        ready = []
        for piece in pieces:
            if self.n.ideal or self.entries.get(piece.lpn):
                self.counts.mapping_hits += not self.n.ideal
                self.used(piece)
                if self.place(piece):
                    ready.append(piece)
            else:
                self.miss(piece)
        self.schedule(ready)

    def used(self, piece: Piece) -> None:
        if not self.n.ideal:
            self.entries.move_to_end(piece.lpn)
        if piece.queue == "writes":
            self.dirty.add(piece.lpn)

    def place(self, piece: Piece) -> bool:
        """Find or take a page; return whether the piece may go to its target."""
        lpn, writes = piece.lpn, piece.queue == "writes"
        if self.n.collects:
            it, local = self.collected[piece.plane], int(self.job.lpn_local[lpn])
            old = it.blocks.place_of.get(local, -1)
            old = old % self.n.pages if old >= 0 else -1
            stalls = it.victim >= 0 and len(it.blocks.free) < self.n.stall
            if writes and (it.waiting or stalls):
                it.waiting.append(piece)
                self.target_of(piece).urgent += 1
                return False
            piece.page = old if old >= 0 else local % self.n.pages
            if writes:
                piece.page = it.blocks.overwrite(local) % self.n.pages
                if it.victim < 0:
                    self.begin(piece.plane)
        else:
            old = self.page_of[lpn]
            if writes or old < 0:
                self.page_of[lpn] = self.written[piece.plane] % self.n.pages
                self.written[piece.plane] += 1
            piece.page = self.page_of[lpn]
        if not self.n.merge:
            return True
        kept = self.masks[lpn] & ~piece.mask
        self.masks[lpn] |= piece.mask
        if not writes or not kept or old < 0 or self.buffered[lpn] > 1:
            return True
        size = kept.bit_count() * self.n.unit
        if self.n.merge == WHOLE:
            piece.more = size
        self.counts.merges += 1
        self.schedule([Piece(piece.plane, "reads", size, old, writes=piece)])
        return False

    def miss(self, piece: Piece) -> None:
        self.counts.mapping_misses += 1
        lpn = piece.lpn
        mvpn = int(self.job.lpn_mvpn[lpn])
        self.waiting.setdefault(lpn, ([], []))[piece.queue == "writes"].append(piece)
        if lpn in self.entries:
            return
        self.evict()
        self.entries[lpn] = False
        known = mvpn in self.arriving
        self.arriving.setdefault(mvpn, []).append(lpn)
        if not known:
            self.counts.mapping_reads += 1
            self.schedule([self.mapping_piece(mvpn, self.n.mapping_bytes, "mapping")])

    def mapping_piece(self, mvpn: int, size: int, queue: str) -> Piece:
        plane, page = int(self.job.mvpn_plane[mvpn]), int(self.job.mvpn_page[mvpn])
        return Piece(plane, queue, size, page, mapping=mvpn)

    def evict(self) -> None:
        if len(self.entries) < self.n.entries:
            return
        oldest = next((lpn for lpn, there in self.entries.items() if there), None)
        if oldest is None:
            return
        del self.entries[oldest]
        if oldest not in self.dirty:
            return
        mvpn = int(self.job.lpn_mvpn[oldest])
        self.dirty -= {x for x in self.dirty if self.job.lpn_mvpn[x] == mvpn}
        self.counts.mapping_writes += 1
        self.schedule([self.mapping_piece(mvpn, self.n.page_bytes, "writes")])

    def entries_arrived(self, mvpn: int) -> None:
        ready = []
        for lpn in self.arriving.pop(mvpn):
            self.entries[lpn] = True
            reads, writes = self.waiting.pop(lpn)
            for piece in (*reads, *writes):
                self.used(piece)
                if self.place(piece):
                    ready.append(piece)
        self.schedule(ready)


def replay(job: Job) -> tuple[np.ndarray, np.ndarray, Counts]:
    """Return when each request entered and was done (-1: never), picoseconds, and counts."""
    twin = Twin(job)
    twin.run()
    return twin.entered_at, twin.done_at, twin.counts
