"""The readable twin of the compiled loop: one flash device, event by event, in objects and heaps.

Events at the same time happen in the order in which they were planned. docs/flash.md describes what
happens at each; `Job` (setup.py) holds what both are given.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from opbyte.hw_models.memory.nand_kernel.setup import Counts, Job, buffer_time, link_time

__all__ = ["replay"]


@dataclass(eq=False)
class Piece:
    """One page operation: what a request wants of a page, or a read of a mapping page."""

    target: int
    die: int
    plane: int
    page: int
    bytes: int
    request: int = -1
    lpn: int = -1
    mapping: int = -1
    write: bool = False


@dataclass(eq=False)
class Target:
    """What takes one command at a time: a chip, or a die where dies work side by side."""

    channel: int
    mapping: list[Piece] = field(default_factory=list)
    reads: list[Piece] = field(default_factory=list)
    writes: list[Piece] = field(default_factory=list)
    command: list[Piece] = field(default_factory=list)
    array: bool = False
    held: bool = False
    outgoing: int = 0

    @property
    def idle(self) -> bool:
        return not self.command


@dataclass(eq=False)
class Channel:
    """A bus, what waits for it, and whose turn it is."""

    targets: list[int]
    busy: bool = False
    turn: int = 0
    mapping: deque[Piece] = field(default_factory=deque)
    reads: deque[Piece] = field(default_factory=deque)


class Link:
    """One direction of PCIe: messages pass one after the other."""

    def __init__(self, twin: Twin) -> None:
        self.twin = twin
        self.waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def send(self, ps: int, arrive: Callable[[], None]) -> None:
        self.waiting.append((ps, arrive))
        if len(self.waiting) == 1:
            self.twin.plan(ps, self.deliver)

    def deliver(self) -> None:
        _, arrive = self.waiting.popleft()
        arrive()
        if self.waiting:
            self.twin.plan(self.waiting[0][0], self.deliver)


class Twin:
    """One device that serves a job."""

    def __init__(self, job: Job) -> None:
        self.job, self.n = job, job.numbers
        n = self.n
        self.now, self.order = 0, count()
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.up, self.down = Link(self), Link(self)
        ways = n.ways
        self.targets = [Target(t // ways) for t in range(n.channels * ways)]
        self.channels = [Channel(list(range(c * ways, (c + 1) * ways))) for c in range(n.channels)]
        self.written = [0] * (n.channels * n.ways * n.dies * n.planes)
        self.page_of = list(job.lpn_page)
        #: Mapping entries: False while on their way, True once there; the oldest use first.
        self.entries: OrderedDict[int, bool] = OrderedDict()
        self.dirty: set[int] = set()
        self.arriving: dict[int, list[int]] = {}
        self.waiting: dict[int, tuple[list[Piece], list[Piece]]] = {}
        self.received: list[Piece] = []
        self.buffered = [0] * job.lpns
        self.depth = 0
        self.stalled: list[int] = []
        self.buffer: deque[tuple[int, int]] = deque()
        requests = job.requests
        self.at = [int(x) for x in job.request_at[:-1]]
        self.left = [0] * requests
        self.in_buffer = [0] * requests
        self.entered, self.fetching, self.inside = 0, 0, 0
        self.queue: deque[int] = deque()
        self.entered_at = np.zeros(requests, np.int64)
        self.done_at = np.full(requests, -1, np.int64)
        self.core_free = 0
        self.counts = Counts()

    def plan(self, ps: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + ps, next(self.order), what))

    def run(self) -> None:
        for _ in range(min(self.n.depth, self.job.requests)):
            self.enter()
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()

    # The host and the NVMe front.

    def enter(self) -> None:
        if self.entered == self.job.requests or self.now > self.n.stop:
            return
        r = self.entered
        self.entered += 1
        self.entered_at[r] = self.now
        self.core_free = max(self.core_free, self.now) + self.n.command
        if self.n.command:
            self.plan(self.core_free - self.now, lambda: self.ring(r))
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
            self.plan(self.n.firmware, lambda: self.accept(r))
        else:
            self.accept(r)

    def accept(self, r: int) -> None:
        if not self.job.writes[r]:
            self.read(r)
            return
        size = int(self.job.request_bytes[r])
        ps = link_time(self.n, size)
        self.up.send(self.n.ask, lambda: self.down.send(ps, lambda: self.write(r)))

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
                pieces.append(self.piece(i, r, write=False))
        self.left[r] = len(pieces)
        if held:
            self.in_buffer[r] += 1
            self.counts.buffer_hits += 1
            self.through_buffer(held, r)
        self.translate(pieces)

    def write(self, r: int) -> None:
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
            pieces.append(self.piece(i, r, write=True))
        if size:
            self.in_buffer[r] += 1
            self.through_buffer(size, r)
            self.translate(pieces)

    def through_buffer(self, size: int, r: int) -> None:
        self.buffer.append((buffer_time(self.n, size), r))
        if len(self.buffer) == 1:
            self.plan(self.buffer[0][0], self.buffer_passed)

    def buffer_passed(self) -> None:
        _, r = self.buffer[0]
        self.in_buffer[r] -= 1
        self.finished(r)
        self.buffer.popleft()
        if self.buffer:
            self.plan(self.buffer[0][0], self.buffer_passed)

    def flushed(self, piece: Piece) -> None:
        self.depth -= piece.bytes
        self.buffered[piece.lpn] -= 1
        for r in list(self.stalled):
            self.take(r)
            if not self.left[r]:
                self.stalled.remove(r)
            if self.depth > self.n.buffer:
                break

    # Where pages lie.

    def piece(self, i: int, r: int, write: bool) -> Piece:
        lpn = int(self.job.lpn[i])
        place = (int(self.job.lpn_target[lpn]), int(self.job.lpn_die[lpn]))
        plane = int(self.job.lpn_plane[lpn])
        return Piece(*place, plane, -1, int(self.job.bytes[i]), r, lpn, -1, write)

    def translate(self, pieces: list[Piece]) -> None:
        ready = []
        for piece in pieces:
            if self.n.ideal or self.entries.get(piece.lpn):
                self.counts.mapping_hits += not self.n.ideal
                self.place(piece)
                ready.append(piece)
            else:
                self.miss(piece)
        self.schedule(ready)

    def place(self, piece: Piece) -> None:
        if not self.n.ideal:
            self.entries.move_to_end(piece.lpn)
        if piece.write or self.page_of[piece.lpn] < 0:
            n = self.n
            plane = (piece.target * n.dies + piece.die) * n.planes + piece.plane
            self.page_of[piece.lpn] = self.written[plane] % n.pages
            self.written[plane] += 1
        if piece.write:
            self.dirty.add(piece.lpn)
        piece.page = self.page_of[piece.lpn]

    def miss(self, piece: Piece) -> None:
        self.counts.mapping_misses += 1
        lpn = piece.lpn
        mvpn = int(self.job.lpn_mvpn[lpn])
        self.waiting.setdefault(lpn, ([], []))[piece.write].append(piece)
        if lpn in self.entries:
            return
        self.evict()
        self.entries[lpn] = False
        known = mvpn in self.arriving
        self.arriving.setdefault(mvpn, []).append(lpn)
        if not known:
            self.counts.mapping_reads += 1
            self.schedule([self.mapping_piece(mvpn, self.n.mapping_bytes)])

    def mapping_piece(self, mvpn: int, size: int, write: bool = False) -> Piece:
        job = self.job
        place = (int(job.mvpn_target[mvpn]), int(job.mvpn_die[mvpn]), int(job.mvpn_plane[mvpn]))
        return Piece(*place, int(job.mvpn_page[mvpn]), size, mapping=mvpn, write=write)

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
        self.schedule([self.mapping_piece(mvpn, self.n.page_bytes, write=True)])

    def entries_arrived(self, mvpn: int) -> None:
        ready = []
        for lpn in self.arriving.pop(mvpn):
            self.entries[lpn] = True
            reads, writes = self.waiting.pop(lpn)
            for piece in (*reads, *writes):
                self.place(piece)
                ready.append(piece)
        self.schedule(ready)

    # Commands, chips and channels.

    def schedule(self, ready: list[Piece]) -> None:
        if not ready:
            return
        for piece in ready:
            target = self.targets[piece.target]
            if piece.write:
                target.writes.append(piece)
            elif piece.mapping >= 0:
                target.mapping.append(piece)
            else:
                target.reads.append(piece)
        for channel in self.channels:
            if not channel.busy:
                self.take_turns(channel)

    def take_turns(self, channel: Channel) -> None:
        for _ in channel.targets:
            self.serve(channel, channel.targets[channel.turn])
            channel.turn = (channel.turn + 1) % len(channel.targets)
            if channel.busy:
                break

    def serve(self, channel: Channel, t: int) -> None:
        target = self.targets[t]
        if not target.idle:
            return
        if target.mapping:
            chosen = self.choose(target.mapping, target.reads)
        elif target.reads:
            chosen = self.choose(target.reads, [])
        elif target.writes and not target.outgoing:
            chosen = self.choose(target.writes, [])
        else:
            return
        target.command = chosen
        planes = len(chosen)
        self.counts.commands += 1
        self.counts.multiplane += planes > 1
        ps = self.n.read_command(planes)
        if chosen[0].write:
            ps = self.n.program_command(planes) + sum(self.n.transfer(p.bytes) for p in chosen)
            self.counts.bus += ps
        channel.busy = True
        self.plan(ps, lambda: self.command_sent(channel, t))

    def choose(self, first: list[Piece], second: list[Piece]) -> list[Piece]:
        """Take the oldest page operation, and those of its die that may join it."""
        head = first[0]
        planes: set[int] = set()
        chosen: list[Piece] = []
        for queue in (first, second):
            for piece in list(queue):
                if len(chosen) == self.n.most_planes:
                    break
                joins = not chosen or piece.page == head.page
                if piece.die == head.die and piece.plane not in planes and joins:
                    planes.add(piece.plane)
                    chosen.append(piece)
                    queue.remove(piece)
        return chosen

    def command_sent(self, channel: Channel, t: int) -> None:
        ps = self.n.program if self.targets[t].command[0].write else self.n.read
        self.plan(ps, lambda: self.array_done(channel, t))
        channel.busy = False
        self.next_transfer(channel)

    def next_transfer(self, channel: Channel) -> None:
        if self.n.commands_first:
            self.take_turns(channel)
            if channel.busy:
                return
        for queue in (channel.mapping, channel.reads):
            if queue:
                self.transfer(channel, queue.popleft())
                return
        if not self.n.commands_first:
            self.take_turns(channel)

    def transfer(self, channel: Channel, piece: Piece) -> None:
        channel.busy = True
        ps = self.n.transfer(piece.bytes)
        self.counts.bus += ps
        self.plan(ps, lambda: self.transferred(channel, piece))

    def array_done(self, channel: Channel, t: int) -> None:
        target = self.targets[t]
        if target.command[0].write:
            self.programmed(target)
        elif self.n.cache_read and target.outgoing:
            target.held = True
        else:
            self.data_ready(channel, target)
        if not channel.busy:
            self.next_transfer(channel)

    def programmed(self, target: Target) -> None:
        # The die is free once the flushed data have been told.
        for piece in target.command:
            self.counts.programs += 1
            if piece.mapping < 0:
                self.flushed(piece)
        target.command = []

    def data_ready(self, channel: Channel, target: Target) -> None:
        queue = channel.mapping if target.command[0].mapping >= 0 else channel.reads
        for piece in target.command:
            target.outgoing += 1
            self.counts.reads += 1
            if channel.busy or self.n.commands_first:
                queue.append(piece)
            else:
                self.transfer(channel, piece)
        if self.n.cache_read:
            target.command = []

    def transferred(self, channel: Channel, piece: Piece) -> None:
        target = self.targets[piece.target]
        if piece.mapping >= 0:
            self.entries_arrived(piece.mapping)
        else:
            self.left[piece.request] -= 1
            self.finished(piece.request)
        target.outgoing -= 1
        if not target.outgoing:
            if target.held:
                target.held = False
                self.data_ready(channel, target)
            elif not self.n.cache_read:
                target.command = []
        channel.busy = False
        self.next_transfer(channel)


def replay(job: Job) -> tuple[np.ndarray, np.ndarray, Counts]:
    """Return when each request entered and was done (-1: never), picoseconds, and counts."""
    twin = Twin(job)
    twin.run()
    return twin.entered_at, twin.done_at, twin.counts
