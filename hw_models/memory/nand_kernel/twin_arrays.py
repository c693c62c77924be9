"""The readable twin, the half behind the controller: commands, chips, channels, collection."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from opbyte.hw_models.memory.nand_kernel.setup import Counts, Job
from opbyte.hw_models.memory.nand_kernel.twin_blocks import Plane

__all__ = ["QUEUES"]

#: Kinds of events, in the order in which they happen at equal times; channels come last.
READ, PROGRAM, OTHER, UP, DOWN, BUFFER, CORE, FIRMWARE, CHANNELS = range(9)
#: Queues of a target; what is not a read needs its page registers.
QUEUES = ("mapping", "reads", "move reads", "writes", "move writes", "erases")
CHANGES = QUEUES[3:]


@dataclass(eq=False)
class Piece:
    """One page operation: what a request wants of a page, or what the controller does."""

    plane: int
    """Counted through all targets."""
    queue: str
    bytes: int
    page: int = -1
    request: int = -1
    lpn: int = -1
    mask: int = 0
    more: int = 0
    """Bytes that a program moves beside its own."""
    mapping: int = -1
    writes: Piece | None = None
    """The write that waits for these old data."""
    goes: int = -1
    """Page that a moved page goes to."""


@dataclass(eq=False)
class Target:
    """What takes one command at a time: a chip, or a die where dies work side by side."""

    number: int
    queues: dict[str, list[Piece]] = field(default_factory=lambda: {q: [] for q in QUEUES})
    command: list[Piece] = field(default_factory=list)
    kind: str = ""
    held: bool = False
    outgoing: int = 0
    ends: int = 0
    """When a program or an erasure ends that is under way in the arrays."""
    version: int = 0
    """Counts suspensions, so that the end that was planned before is none."""
    late: int = 0
    suspended: tuple[list[Piece], str, int] | None = None
    urgent: int = 0


@dataclass(eq=False)
class Channel:
    """A bus, what waits for it, and whose turn it is."""

    number: int
    targets: list[Target]
    busy: bool = False
    turn: int = 0
    waiting: dict[str, deque[Piece]] = field(
        default_factory=lambda: {q: deque() for q in QUEUES[:3]}
    )


@dataclass(eq=False)
class Collected:
    """A plane that is collected: the block that is emptied, and what waits for its end."""

    blocks: Plane
    victim: int = -1
    left: int = 0
    waiting: list[Piece] = field(default_factory=list)


class Arrays(ABC):
    """Channels and what is behind them."""

    def __init__(self, job: Job) -> None:
        self.job, self.n = job, job.numbers
        n = self.n
        self.now, self.order = 0, count()
        self.events: list[tuple[int, int, int, Callable[[], None]]] = []
        self.targets = [Target(t) for t in range(n.channels * n.ways)]
        self.channels = [
            Channel(c, self.targets[c * n.ways : (c + 1) * n.ways]) for c in range(n.channels)
        ]
        planes = n.channels * n.ways * n.dies * n.planes
        self.written = [0] * planes
        each = len(job.memory) // planes
        self.collected = [
            Collected(Plane(job.memory[p * each : (p + 1) * each]))
            for p in range(planes * n.collects)
        ]
        self.counts = Counts()

    # What the controller does with what has arrived.

    @abstractmethod
    def entries_arrived(self, mvpn: int) -> None: ...

    @abstractmethod
    def piece_done(self, request: int) -> None: ...

    @abstractmethod
    def flushed(self, piece: Piece) -> None: ...

    @abstractmethod
    def place(self, piece: Piece) -> bool: ...

    # Events.

    def plan(self, time: int, slot: int, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, slot, next(self.order), what))

    def play(self) -> None:
        while self.events:
            self.now, _, _, what = heapq.heappop(self.events)
            what()

    # Commands, chips and channels.

    def target_of(self, piece: Piece) -> Target:
        return self.targets[piece.plane // (self.n.dies * self.n.planes)]

    def die_of(self, piece: Piece) -> int:
        return piece.plane // self.n.planes

    def channel_of(self, target: Target) -> Channel:
        return self.channels[target.number // self.n.ways]

    def enqueue(self, piece: Piece) -> None:
        self.target_of(piece).queues[piece.queue].append(piece)

    def schedule(self, ready: list[Piece]) -> None:
        if not ready:
            return
        for piece in ready:
            self.enqueue(piece)
        for channel in self.channels:
            if not channel.busy:
                self.take_turns(channel)

    def take_turns(self, channel: Channel) -> None:
        for _ in channel.targets:
            self.serve(channel, channel.targets[channel.turn])
            channel.turn = (channel.turn + 1) % len(channel.targets)
            if channel.busy:
                break

    def choice(self, target: Target) -> tuple[str, ...]:
        """Return the queue to serve and one that may join, from what waits."""
        waits = {name for name, queue in target.queues.items() if queue}
        first = self.n.flash_first
        moving: list[tuple[str, ...]] = [
            ("move reads", "reads"), ("move writes", "writes"), ("erases",),
        ]  # fmt: skip
        reads, writes = ("reads", "move reads"), ("writes", "move writes")
        order = [reads, *moving, writes] if target.urgent else [reads, writes, *moving]
        if first:
            order = [*moving, reads, writes]
        if "mapping" in waits:
            return ("mapping", "move reads" if first and "move reads" in waits else "reads")
        found = next((names for names in order if names[0] in waits), ())
        if found and found[0] in CHANGES:
            if target.outgoing:
                return ()
            return found[:1] if self.n.copyback else found
        return found

    def serve(self, channel: Channel, target: Target) -> None:
        names = self.choice(target)
        if not names:
            return
        changes = names[0] in CHANGES
        if target.command and (changes or not self.suspend(target)):
            return
        if changes and target.suspended:
            return
        chosen = self.choose([target.queues[name] for name in names])
        target.command, target.kind = chosen, names[0]
        planes = len(chosen)
        self.counts.commands += 1
        self.counts.multiplane += planes > 1
        ps = self.n.read_command(planes)
        if changes:
            copies = names[0] == "move writes" and self.n.copyback
            ps = ps if copies else 0
            erases = names[0] == "erases"
            ps += self.n.erase_command(planes) if erases else self.n.program_command(planes)
            ps += sum(self.n.transfer(p.bytes + p.more) for p in chosen)
            self.counts.bus += ps
        channel.busy = True
        self.plan(
            self.now + ps, CHANNELS + channel.number, lambda: self.command_sent(channel, target)
        )

    def choose(self, queues: list[list[Piece]]) -> list[Piece]:
        """Take the oldest page operation, and those of its die that may join it."""
        head = queues[0][0]
        row = (self.die_of(head), head.page)
        planes: set[int] = set()
        chosen: list[Piece] = []
        for queue in queues:
            for piece in list(queue):
                if len(chosen) == self.n.most_planes:
                    break
                if (self.die_of(piece), piece.page) == row and piece.plane not in planes:
                    planes.add(piece.plane)
                    chosen.append(piece)
                    queue.remove(piece)
        return chosen

    def suspend(self, target: Target) -> bool:
        erases = target.kind == "erases"
        cost = self.n.suspend_erase if erases else self.n.suspend_program
        left = target.ends - self.now
        if not target.ends or not cost or target.suspended or left <= cost:
            return False
        target.suspended = target.command, target.kind, left + self.n.resume
        target.late, target.ends = cost, 0
        target.version += 1
        self.counts.suspensions += 1
        return True

    def idle(self, target: Target) -> None:
        """End a command; what was suspended goes on."""
        target.command = []
        if target.suspended:
            target.command, target.kind, left = target.suspended
            target.suspended, target.ends = None, self.now + left
            self.ends(target, target.ends, OTHER)

    def ends(self, target: Target, time: int, slot: int) -> None:
        version = target.version
        self.plan(time, slot, lambda: self.array_done(target, version))

    def command_sent(self, channel: Channel, target: Target) -> None:
        n, kind = self.n, target.kind
        if kind not in CHANGES:
            late, target.late = target.late, 0
            self.ends(target, self.now + n.read + late, OTHER if late else READ)
        else:
            copies = kind == "move writes" and n.copyback
            ps = n.erase if kind == "erases" else n.program + (n.read if copies else 0)
            target.ends = self.now + ps
            self.ends(target, target.ends, OTHER if copies or kind == "erases" else PROGRAM)
        channel.busy = False
        self.next_transfer(channel)

    def next_transfer(self, channel: Channel) -> None:
        if self.n.commands_first:
            self.take_turns(channel)
            if channel.busy:
                return
        for queue in channel.waiting.values():
            if queue:
                self.transfer(channel, queue.popleft())
                return
        if not self.n.commands_first:
            self.take_turns(channel)

    def transfer(self, channel: Channel, piece: Piece) -> None:
        channel.busy = True
        ps = self.n.transfer(piece.bytes)
        self.counts.bus += ps
        slot = CHANNELS + channel.number
        self.plan(self.now + ps, slot, lambda: self.transferred(channel, piece))

    def array_done(self, target: Target, version: int) -> None:
        if version != target.version:
            return
        channel = self.channel_of(target)
        if target.kind in CHANGES:
            self.programmed(target)
        elif self.n.cache_read and target.outgoing:
            target.held = True
        else:
            self.data_ready(channel, target)
        if not channel.busy:
            self.next_transfer(channel)

    def programmed(self, target: Target) -> None:
        # The die is free once what was written has been told.
        kind, target.ends = target.kind, 0
        for piece in target.command:
            if kind == "erases":
                self.wiped(piece.plane)
                continue
            self.counts.programs += 1
            if piece.queue == "move writes":
                self.counts.reads += self.n.copyback
                self.moved(piece.plane)
            elif piece.mapping < 0:
                self.flushed(piece)
        self.idle(target)

    def data_ready(self, channel: Channel, target: Target) -> None:
        queue = channel.waiting[target.kind]
        for piece in target.command:
            target.outgoing += 1
            self.counts.reads += 1
            if channel.busy or self.n.commands_first:
                queue.append(piece)
            else:
                self.transfer(channel, piece)
        if self.n.cache_read:
            self.idle(target)

    def transferred(self, channel: Channel, piece: Piece) -> None:
        target = self.target_of(piece)
        if piece.mapping >= 0:
            self.entries_arrived(piece.mapping)
        elif piece.writes is not None:
            self.schedule([piece.writes])
        elif piece.queue == "move reads":
            piece.queue, piece.page = "move writes", piece.goes
            self.enqueue(piece)
        else:
            self.piece_done(piece.request)
        target.outgoing -= 1
        if not target.outgoing:
            if target.held:
                target.held = False
                self.data_ready(channel, target)
            elif not self.n.cache_read:
                self.idle(target)
        channel.busy = False
        self.next_transfer(channel)

    # Collection.

    def begin(self, plane: int) -> None:
        """Begin to collect a plane if few of its blocks are free."""
        it = self.collected[plane]
        if len(it.blocks.free) >= self.n.start:
            return
        it.victim = it.blocks.victim()
        moves = it.blocks.move(it.victim)
        it.left = len(moves)
        self.counts.moved += it.left
        for old, new in moves:
            if self.n.copyback:
                self.enqueue(Piece(plane, "move writes", 0, new))
            else:
                self.enqueue(Piece(plane, "move reads", self.n.page_bytes, old, goes=new))
        if not moves:
            self.enqueue(Piece(plane, "erases", 0, 0))

    def moved(self, plane: int) -> None:
        it = self.collected[plane]
        it.left -= 1
        if not it.left:
            self.enqueue(Piece(plane, "erases", 0, 0))

    def wiped(self, plane: int) -> None:
        it = self.collected[plane]
        it.blocks.erase(it.victim)
        self.counts.erases += 1
        it.victim = -1
        self.begin(plane)
        waiting, it.waiting = it.waiting, []
        for piece in waiting:
            self.target_of(piece).urgent -= 1
        for piece in waiting:
            if self.place(piece):
                self.enqueue(piece)
