"""The readable twin: every tick, every queue entry, every constraint as the files state it.

It follows the per-tick order of Ramulator 2.1 (https://github.com/CMU-SAFARI/ramulator2): a request
may arrive; refreshes fall due; one command (one per bus on HBM) is issued, for requests that have
been activated first, then for refreshes, then for the queue whose turn it is. Slow: for tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from opbyte.hw_models.memory.addresses import COLUMN_AT, ROW_AT, WRITE, Ints
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACCEPTED,
    ACT,
    ACT2,
    ADAPTIVE,
    ALL_BANK,
    BANKS,
    BUS,
    BY_STACK,
    CAS,
    CLOSED,
    COALESCED,
    COMMAND_AT,
    COMPLETED,
    CONFLICTS,
    DUAL,
    FIRST_REFRESH,
    FORWARDED,
    HALF,
    HIGH,
    HISTOGRAM,
    HITS,
    IN_TURN,
    INTERVAL,
    LATENCY,
    LOW,
    LPDDR,
    MISSES,
    OPEN,
    P_BANKS,
    P_COUNT,
    POLICY,
    PRE,
    PREAB,
    RD,
    RDA,
    READ_LATENCY,
    READ_QUEUE,
    READS,
    REFAB,
    REFPB,
    REFRESH,
    ROW_HIT_FIRST,
    S_BANKS,
    T_AAD,
    T_CAS,
    T_REFI,
    T_REFI_BANK,
    T_RFC_BANK,
    TICKS,
    WCK_READ,
    WCK_WRITE,
    WR,
    WRA,
    WRITE_QUEUE,
    WRITES,
)  # fmt: skip
from opbyte.hw_models.memory.standards import Standard

_NEVER = -(1 << 40)
_COLUMN = (RD, WR, RDA, WRA)


@dataclass(eq=False)
class Request:
    """One request, or a refresh of a scope of banks."""

    code: int
    arrived: int
    counted: bool = False
    final: int = RD
    banks: range = range(0)

    @property
    def write(self) -> bool:
        """Whether it writes."""
        return bool(self.code & WRITE)

    @property
    def bank(self) -> int:
        """Its bank."""
        return self.code & ((1 << COLUMN_AT) - 1)

    @property
    def row(self) -> int:
        """Its row."""
        return self.code >> ROW_AT


@dataclass
class Timing:
    """When each command may be issued next, by the constraints of a standard."""

    standard: Standard
    ready: dict[tuple[int, int, int], int] = field(default_factory=dict)
    history: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)

    def nodes(self, level: int, bank: int) -> int:
        """Return the number of the node of `level` above `bank`."""
        below = 1
        for size in self.standard.sizes[level:]:
            below *= size
        return bank // below

    def allowed(self, command: int, banks: range, now: int) -> bool:
        """Return whether `command` may be issued to all of `banks` now."""
        for level in range(len(self.standard.sizes) + 1):
            for node in {self.nodes(level, b) for b in banks}:
                if self.ready.get((level, node, command), _NEVER) > now:
                    return False
        return True

    def issue(self, command: int, banks: range, now: int) -> None:
        """Note that `command` was issued to `banks` now."""
        for level in range(len(self.standard.sizes) + 1):
            for node in {self.nodes(level, b) for b in banks}:
                past = self.history.setdefault((level, node, command), [])
                past.insert(0, now)
                del past[8:]
        for rule in self.standard.constraints:
            if rule.after != command:
                continue
            for node in {self.nodes(rule.level, b) for b in banks}:
                if rule.siblings:
                    self._hold_siblings(rule.level, node, rule.before, now + rule.ticks)
                    continue
                past = self.history[rule.level, node, command]
                if len(past) >= rule.window:
                    self._hold(rule.level, node, rule.before, past[rule.window - 1] + rule.ticks)

    def _hold(self, level: int, node: int, command: int, until: int) -> None:
        key = (level, node, command)
        self.ready[key] = max(self.ready.get(key, _NEVER), until)

    def _hold_siblings(self, level: int, node: int, command: int, until: int) -> None:
        size = self.standard.sizes[level - 1]
        first = node // size * size
        for other in range(first, first + size):
            if other != node:
                self._hold(level, other, command, until)


class Twin:
    """One channel with its controller."""

    def __init__(self, standard: Standard, numbers: Ints, codes: Ints) -> None:
        self.n = [int(x) for x in numbers]
        self.codes = [int(c) for c in codes]
        self.timing = Timing(standard)
        self.now = 0
        self.next = 0
        self.reads: list[Request] = []
        self.writes: list[Request] = []
        self.active: list[Request] = []
        self.urgent: list[Request] = []
        self.pending: list[tuple[int, int]] = []
        self.open: list[int] = [-1] * self.n[BANKS]
        self.write_mode = False
        self.out = [0] * (HISTOGRAM)
        self.latencies: list[int] = []
        self.refresh_at = self.n[FIRST_REFRESH]
        self.turn = 0
        self.due: list[int] = []
        self.sets_done: dict[int, int] = {}
        self.set_allowed: dict[int, int] = {}
        self.rising: tuple[int, int, int] = (-1, -1, -1)
        self.activating: Request | None = None
        self.deadline = 0
        self.wck = 0
        self.after_cas: tuple[list[Request], Request, int, int] | None = None

    def run(self) -> list[int]:
        """Send all requests; return the counts. The run ends when the last one is accepted."""
        while self.next < len(self.codes):
            if self.now % self.n[INTERVAL] == 0:
                self._send()
                if self.next == len(self.codes):
                    break
            self.now += 1
            while self.pending and self.pending[0][0] <= self.now:
                self._complete(self.pending.pop(0)[1])
            self._refresh()
            if self.n[BUS] == LPDDR:
                self._tick_lpddr()
            elif self.n[BUS] in (DUAL, HALF):
                self._tick_dual()
            else:
                self._issue(*self._pick(None))
        self.out[TICKS], self.out[ACCEPTED] = self.now, self.next
        return self.out

    # requests

    def _send(self) -> None:
        code = self.codes[self.next]
        same = [w for w in self.writes if w.code == code | WRITE]
        if not code & WRITE:
            if same:
                self.out[FORWARDED] += 1
                self.pending.append((self.now + 1, 1))
                self.next += 1
            elif len(self.reads) < self.n[READ_QUEUE]:
                self.reads.append(Request(code, self.now, final=RD))
                self.next += 1
        elif same:
            self.out[COALESCED] += 1
            self.next += 1
        elif len(self.writes) < self.n[WRITE_QUEUE]:
            self.writes.append(Request(code, self.now, final=WR))
            self.next += 1

    def _complete(self, latency: int) -> None:
        self.out[COMPLETED] += 1
        self.out[LATENCY] += latency
        self.latencies.append(latency)

    def _retire(self, request: Request, queue: list[Request]) -> None:
        queue.remove(request)
        if queue is self.urgent:
            return
        if request.write:
            self.out[WRITES] += 1
        else:
            self.out[READS] += 1
            latency = self.now + self.n[READ_LATENCY] - request.arrived
            self.pending.append((self.now + self.n[READ_LATENCY], latency))

    # refresh

    def _refresh(self) -> None:
        kind = self.n[REFRESH]
        if kind == ALL_BANK and self.now == self.refresh_at:
            self.refresh_at += self.n[T_REFI]
            size = self.n[P_BANKS]
            for p in range(self.n[P_COUNT]):
                self._urge(REFAB, range(p * size, (p + 1) * size))
        elif kind == IN_TURN and self.now == self.refresh_at:
            self.refresh_at += self.n[T_REFI_BANK]
            self._urge(REFPB, range(self.turn, self.turn + 1))
            self.turn = (self.turn + 1) % self.n[BANKS]
        elif kind == BY_STACK:
            self._refresh_by_stack()

    def _refresh_by_stack(self) -> None:
        """Refresh the same bank of a stack id in every pseudo-channel, one per tick."""
        if not self.due:
            if self.now < self.refresh_at:
                return
            banks = [p * self.n[P_BANKS] + self.turn for p in range(self.n[P_COUNT])]
            if any(self.now < self.set_allowed.get(b // self.n[S_BANKS], 0) for b in banks):
                self.refresh_at = self.now + 1
                return
            self.due = banks
            self.turn = (self.turn + 1) % self.n[P_BANKS]
            self.refresh_at += self.n[T_REFI_BANK]
        bank = self.due.pop(0)
        self._urge(REFPB, range(bank, bank + 1))
        of = bank // self.n[S_BANKS]
        self.sets_done[of] = self.sets_done.get(of, 0) + 1
        if self.sets_done[of] == self.n[S_BANKS]:
            self.sets_done[of] = 0
            self.set_allowed[of] = self.now + self.n[T_RFC_BANK]

    def _urge(self, command: int, banks: range) -> None:
        self.urgent.append(Request(-1, -1, final=command, banks=banks))

    # choice

    def _needed(self, request: Request) -> int:
        """Return the command that brings `request` on; ACT2 where its bank is being activated."""
        if request.banks:
            being = self.activating is not None and self.activating.bank in request.banks
            if being or any(self.open[b] >= 0 for b in request.banks):
                return PREAB if request.final == REFAB else PRE
            return request.final
        if self.activating is not None and self.activating.bank == request.bank:
            return ACT2
        if self.open[request.bank] < 0:
            return ACT
        return request.final if self.open[request.bank] == request.row else PRE

    def _banks(self, request: Request) -> range:
        return request.banks or range(request.bank, request.bank + 1)

    def _ready(self, request: Request, command: int) -> bool:
        return self.timing.allowed(command, self._banks(request), self.now)

    def _fits(self, request: Request, command: int, columns: bool | None) -> bool:
        """Return whether `command` may use this bus at this edge, beside what is under way."""
        if columns is not None and (command in _COLUMN) is not columns:
            return False
        if self.n[BUS] == HALF and self.now % 2 == 0:
            return command in (PRE, PREAB) and self._pairs(request, command)
        if self.n[BUS] == LPDDR:
            if command == ACT2:
                return False
            if self.activating is not None and command not in (RD, WR):
                closes = self.activating.bank in self._banks(request)
                return command != ACT and not closes
        return True

    def _pairs(self, request: Request, command: int) -> bool:
        """Return whether a precharge may follow the row command of the rising edge."""
        first, bank, at = self.rising
        scope = self._banks(request)[0] // self.n[P_BANKS]
        if self.now != at or bank // self.n[P_BANKS] != scope:
            return True
        if first in (PREAB, REFAB):
            return False
        return command == PRE and self._banks(request)[0] != bank

    def _closes_active(self, request: Request, command: int) -> bool:
        if command not in (PRE, PREAB):
            return False
        return any(a.bank in self._banks(request) for a in self.active)

    def _best(self, queue: list[Request], columns: bool | None) -> Request | None:
        """Return the oldest request of a queue whose command is ready, or none."""
        oldest_hit: dict[int, int] = {}
        if self.n[ROW_HIT_FIRST]:
            for r in queue:
                if self._needed(r) in (RD, WR):
                    oldest_hit[r.bank] = min(r.arrived, oldest_hit.get(r.bank, r.arrived))
        best: Request | None = None
        for r in queue:
            command = self._needed(r)
            if not self._fits(r, command, columns):
                continue
            if queue is not self.active and self._closes_active(r, command):
                continue
            if command == PRE and oldest_hit.get(r.bank, r.arrived + 1) <= r.arrived:
                continue
            if self._ready(r, command) and (best is None or r.arrived < best.arrived):
                best = r
        return best

    def _pick(self, columns: bool | None) -> tuple[list[Request], Request | None]:
        """Return the next request and its queue: activated, refreshes, then reads or writes."""
        if columns is not False:
            found = self._best(self.active, columns)
            if found is not None:
                return self.active, found
        if self.urgent:
            first = self.urgent[0]
            command = self._needed(first)
            fits = self._fits(first, command, columns) and self._ready(first, command)
            if fits and not self._closes_active(first, command):
                return self.urgent, first
            return self.urgent, None
        self._set_mode()
        queue = self.writes if self.write_mode else self.reads
        return queue, self._best(queue, columns)

    def _set_mode(self) -> None:
        if not self.write_mode:
            self.write_mode = len(self.writes) >= self.n[HIGH] or not self.reads
        elif len(self.writes) <= self.n[LOW] and self.reads:
            self.write_mode = False

    # issue

    def _issue(self, queue: list[Request], request: Request | None) -> int:
        """Issue the command of `request`; return it, or -1 where there is none."""
        if request is None:
            return -1
        command = self._needed(request)
        if command in (RD, WR) and self._shuts(request):
            command += RDA - RD
        self._count(request)
        self.out[COMMAND_AT + command] += 1
        self.timing.issue(command, self._banks(request), self.now)
        if command in (PRE, PREAB, RDA, WRA):
            for b in self._banks(request):
                self.open[b] = -1
        if command == ACT and self.n[BUS] == LPDDR:
            queue.remove(request)
            self.activating, self.deadline = request, self.now + self.n[T_AAD]
        elif command == ACT:
            queue.remove(request)
            self.active.append(request)
            self.open[request.bank] = request.row
        elif command in _COLUMN or command == request.final:
            self._retire(request, queue)
        return command

    def _shuts(self, request: Request) -> bool:
        if self.n[POLICY] == OPEN:
            return False
        if any(a.bank == request.bank and a is not request for a in self.active):
            return False
        if self.n[POLICY] == CLOSED:
            return True
        assert self.n[POLICY] == ADAPTIVE
        same = self.writes if request.write else self.reads
        here = (request.bank, request.row)
        return not any((r.bank, r.row) == here and r is not request for r in same)

    def _count(self, request: Request) -> None:
        if request.counted or request.banks:
            return
        request.counted = True
        row = self.open[request.bank]
        self.out[MISSES if row < 0 else HITS if row == request.row else CONFLICTS] += 1

    def _tick_dual(self) -> None:
        rising = self.n[BUS] == DUAL or self.now % 2 == 1
        if rising:
            self._issue(*self._pick(columns=True))
        queue, request = self._pick(columns=False)
        command = self._issue(queue, request)
        if request is not None and self.n[BUS] == HALF and rising:
            scope = self._banks(request)
            after = 3 if command == ACT else 1
            self.rising = (command, scope[0], self.now + after)

    # LPDDR5: ACT-1 and ACT-2, and CAS where the write clock has stopped

    def _tick_lpddr(self) -> None:
        if self.activating is not None and self.deadline <= self.now:
            self._finish_activation()
            return
        if self.after_cas is not None:
            queue, request, command, at = self.after_cas
            if self.now >= at and self._ready(request, command):
                self.after_cas = None
                self._issue_access(queue, request)
            return
        queue, found = self._pick(None)
        if found is None:
            self._finish_activation()
            return
        command = self._needed(found)
        if command not in (RD, WR):
            self._issue(queue, found)
        elif self.now < self.wck:
            self._issue_access(queue, found)
        elif self.activating is not None and self.deadline <= self.now + 1:
            self._finish_activation()
        elif self._ready(found, CAS):
            self.timing.issue(CAS, self._banks(found), self.now)
            self.out[COMMAND_AT + CAS] += 1
            self.after_cas = (queue, found, command, self.now + self.n[T_CAS])

    def _issue_access(self, queue: list[Request], request: Request) -> None:
        lasts = self.n[WCK_WRITE] if request.write else self.n[WCK_READ]
        self.wck = max(self.wck, self.now + lasts)
        self._issue(queue, request)

    def _finish_activation(self) -> None:
        request = self.activating
        if request is None:
            return
        self.timing.issue(ACT2, self._banks(request), self.now)
        self.out[COMMAND_AT + ACT2] += 1
        self.activating = None
        self.open[request.bank] = request.row
        self.active.append(request)


def run_twin(standard: Standard, numbers: Ints, codes: Ints) -> list[int]:
    """Run all requests tick by tick; return the counts up to the histogram."""
    return Twin(standard, numbers, codes).run()
