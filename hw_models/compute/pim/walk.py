"""The commands of a program one by one, in order, each at the first clock that timing allows.

Slow and plain: what the closed form of `stages.py` is compared with. Row commands go ahead of the
stage in which their row is used where the device overlaps, as their own bus allows; all others
keep the order of the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.compute.pim.stages import NEVER, Program, Stage


@dataclass(slots=True)
class Bank:
    """A bank, or all banks of a channel that follow the same commands."""

    open: bool = False
    act: float = NEVER
    mac: float = NEVER
    ready: float = 0.0


@dataclass(slots=True)
class Walker:
    """One channel at a time of one device of floats.

    Attributes:
        time: Start of the stage.
        log: Clock and name of each command.
    """

    device: PimDevice
    time: float = 0.0
    mac: float = NEVER
    accessed: bool | None = None
    row: int = 0
    due: float = 0.0
    banks: list[Bank] = field(default_factory=list)
    log: list[tuple[float, str]] = field(default_factory=list)

    def walk(self, program: Program) -> float:
        """Return the clock at which the program has ended."""
        self.banks = [Bank() for _ in range(int(self.device.open_rows))]
        self.due = self.device.refi
        for repeats, stages in program:
            for _ in range(int(repeats)):
                for stage in stages:
                    self._stage(stage)
        return self.time

    def _stage(self, stage: Stage) -> None:
        d, macs = self.device, stage.columns > 0
        if not macs and not any(stage.moves.values()):
            return
        if not d.overlap:
            if self.accessed is not None and self.accessed != macs:
                self.time += d.mode
            self.accessed = macs
        start = self.time
        moved = self._moves(stage, start)
        if not macs:
            self.time = moved
            return
        for count in _rows(stage):
            self._row(count, start, hit=bool(stage.hit))
        self.time = max(self.mac + 1, moved) if d.overlap else self.mac + d.step

    def _moves(self, stage: Stage, start: float) -> float:
        clock = start
        for kind, count in stage.moves.items():
            for _ in range(int(count)):
                self.log.append((clock, kind))
                clock += getattr(self.device, kind)
        return clock

    def _row(self, count: int, start: float, *, hit: bool) -> None:
        """Open the next row, unless it is open, and issue its MACs."""
        d, bank = self.device, self.banks[self.row % len(self.banks)]
        if not hit:
            self._open(bank, start)
        for i in range(count):
            clock = max(start, self.mac + d.step, bank.act + d.rcd if i == 0 and not hit else NEVER)
            if d.refresh == "fresh" and d.level != "bank" and clock >= self.due:
                clock = self._refresh(clock, bank)
            self.log.append((clock, "mac"))
            self.mac = bank.mac = clock

    def _open(self, bank: Bank, start: float) -> None:
        d = self.device
        self.row += 1
        earliest = 0.0 if d.overlap else start
        if bank.open or d.late:
            precharge = max(bank.mac + d.rtp, bank.act + d.ras, start if d.late else NEVER)
            self.log.append((precharge, "precharge"))
            bank.ready = max(precharge + d.rp, bank.act + d.rc)
        bank.act = max(earliest, bank.ready)
        if d.refresh == "fresh" and d.level == "bank" and bank.act >= self.due:
            # It waited for the row to end, and needs its precharge and the next activation.
            self.log.append((bank.act, "refresh"))
            self.due += d.refi
            bank.act += d.refresh_clocks
        bank.open = True
        self.log.append((bank.act, "activate"))

    def _refresh(self, clock: float, bank: Bank) -> float:
        """Refresh before a MAC that could be issued at `clock`; return its new clock."""
        d = self.device
        begin = max(self.due, max(bank.mac, bank.act) + d.rtp) + d.rp
        self.log.append((begin, "refresh"))
        self.due += d.refi
        bank.act = begin + d.rfc
        return max(clock, bank.act + float(d.rcd))


def _rows(stage: Stage) -> Iterator[int]:
    """Yield the MACs of each row."""
    left = int(stage.columns)
    while left > 0:
        yield min(left, int(stage.per_row))
        left -= int(stage.per_row)


def walked_clocks(device: PimDevice, program: Program) -> float:
    """Return the clocks of a program by walking it."""
    return Walker(device).walk(program)
