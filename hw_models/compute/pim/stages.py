"""Programs of commands, and their clocks in closed form.

A program is a list of stages, each of which ends before the next begins. In a stage all channels
get the same MAC commands, to columns of rows, and moves: loads of the input, reads of results,
refills of weights. MACs and moves of one stage go on side by side where the device has a path for
each (`moves: overlap`); otherwise they are stages of their own, and access to registers and to
banks are two modes.

For rows of c columns, all banks at once, MACs `step` apart, a row takes

    max(max((c - 1) step + rtp, ras - rcd) + rp + rcd, rc, c step)

from its first MAC to that of the next row, and a row after a pause at least rtp + rp + rcd from
the last MAC before. Units that work through B banks in turn open the next rows ahead: then a row
takes c step, or the B-th part of the above if that is more. Where a row is shut when the next one
is asked for (`precharge: late`), that waits for rp and rcd after every pause. `walk.py` issues the
same program command by command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from opbyte.hw_models.compute.pim.device import PimDevice

#: Long ago: no command of a kind has been issued.
NEVER = -1e15
#: What the last stage accessed.
NOTHING, REGISTERS, BANKS = 0.0, 1.0, 2.0

#: Kinds of moves, which are attributes of a device: clocks for each.
MOVES = ("load", "bias", "read", "refill", "softmax")


@dataclass(frozen=True)
class Stage:
    """Commands of one channel; numbers are floats or arrays over points, 0 where there are none.

    Attributes:
        columns: MAC commands.
        per_row: Of them in one row; the last row may hold fewer.
        moves: Commands by kind.
        hit: The columns are in the row that the last stage with MACs left open, (points,) or one.
    """

    columns: Any = 0.0
    per_row: Any = 1.0
    moves: dict[str, Any] = field(default_factory=dict)
    hit: Any = False

    @property
    def rows(self) -> Any:
        """Return the rows that are accessed."""
        return -(-self.columns // self.per_row)

    def move_clocks(self, device: PimDevice) -> Any:
        """Return the clocks that the moves take one after the other."""
        return sum((n * getattr(device, kind) for kind, n in self.moves.items()), start=0.0)


#: Repeats, and the stages that are repeated.
Program: TypeAlias = list[tuple[Any, list[Stage]]]


@dataclass(frozen=True)
class State:
    """A channel between two stages, clocks since the program began.

    Attributes:
        time: The next stage begins.
        mac: Last MAC.
        act: Last activation of all banks.
        at: What the last stage accessed.
    """

    time: Any = 0.0
    mac: Any = NEVER
    act: Any = NEVER
    at: Any = NOTHING


def program_of(device: PimDevice, parts: Iterable[tuple[Any, Iterable[Stage]]]) -> Program:
    """Return the program with MACs and moves apart where the device can not overlap them."""
    program: Program = []
    for repeats, stages in parts:
        if device.overlap:
            program.append((repeats, list(stages)))
            continue
        apart: list[Stage] = []
        for stage in stages:
            has_macs = bool(np.any(stage.columns > 0))
            if has_macs:
                apart.append(replace(stage, moves={}))
            if stage.moves or not has_macs:
                apart.append(replace(stage, columns=0.0))
        program.append((repeats, apart))
    return program


def clocks(device: PimDevice, program: Program) -> Any:
    """Return the clocks of a program, refresh included, (1 or points,) or a float."""
    return with_refresh(device, after(device, State(), program).time)


def after(device: PimDevice, state: State, program: Program) -> State:
    """Return the state after a program, refresh left out."""
    for repeats, stages in program:
        state = _repeated(device, state, repeats, stages)
    return state


def _repeated(device: PimDevice, state: State, repeats: Any, stages: list[Stage]) -> State:
    """Return the state after stages were repeated."""
    return repeated(repeats, state, lambda now: run(device, now, stages))


#: Repeats that are gone through one by one.
_FEW = 3
#: Clocks that no program takes.
_FAR = 2.0**32


def repeated(repeats: Any, state: State, again: Callable[[State], State]) -> State:
    """Return the state after `again` was applied so often.

    Stages wait for the latest of what went before, each plus some clocks: `again` is a matrix of
    the algebra of maximum and sum, and repeats are its power. Which of loads and banks is slower
    may show only after many of them.
    """
    if np.ndim(repeats) == 0 and repeats <= _FEW:
        for _ in range(int(repeats)):
            state = again(state)
        return state
    once = again(state)
    entries = [_seen(again(probe)) for probe in _probes(once.at)]
    left = np.asarray(repeats) - 1.0
    shape = np.broadcast_shapes(
        left.shape, *(np.shape(x) for x in (*_times(once), *sum(entries, ())))
    )
    # Rows are what waits, columns what it waits for.
    matrix = np.array(
        [[np.broadcast_to(x, shape) for x in row] for row in zip(*entries, strict=True)]
    )
    now = np.array([np.broadcast_to(x, shape) for x in _times(once)])
    while np.any(left >= 1.0):
        odd = (left > 0.0) & (left % 2.0 == 1.0)
        now = np.where(odd, (matrix + now).max(axis=1), now)
        matrix = (matrix[:, :, None] + matrix[None]).max(axis=1)
        left = left // 2.0
    after = State(now[0], now[1], now[2], once.at)
    if np.all(repeats > 0):
        return after
    pairs = ((getattr(state, n), getattr(after, n)) for n in State.__match_args__)
    return State(*(np.where(repeats > 0, done, not_yet) for not_yet, done in pairs))


def _times(state: State) -> tuple[Any, Any, Any]:
    return state.time, state.mac, state.act


def _probes(at: Any) -> list[State]:
    """Return states with one time far ahead of the others, for time, MAC and activation."""
    far = np.where(np.eye(3) > 0, _FAR, NEVER).tolist()
    return [State(time, mac, act, at) for time, mac, act in far]


def _seen(after: State) -> tuple[Any, ...]:
    """Return how long after that one time each time is; NEVER if it does not wait for it."""
    return tuple(np.where(x > _FAR / 2.0, x - _FAR, NEVER) for x in _times(after))


def run(device: PimDevice, state: State, stages: list[Stage]) -> State:
    """Return the state after stages, each once."""
    for stage in stages:
        if np.any(stage.columns > 0):
            state = _with_macs(device, state, stage)
        else:
            moves = stage.move_clocks(device)
            moved = _start(device, state, REGISTERS) + moves
            if np.ndim(moves) == 0:
                state = replace(state, time=moved, at=REGISTERS) if moves else state
                continue
            time, at = (
                np.where(moves > 0, a, b) for a, b in ((moved, state.time), (REGISTERS, state.at))
            )
            state = replace(state, time=time, at=at)
    return state


def _start(device: PimDevice, state: State, at: float) -> Any:
    """Return when a stage begins: after a mode switch, where the one before had the other mode."""
    if device.overlap:
        return state.time
    return state.time + device.mode * ((state.at != NOTHING) & (state.at != at))


def _with_macs(device: PimDevice, state: State, stage: Stage) -> State:
    most = biggest(device.step, device.rcd, state.time, state.mac, stage.columns, stage.per_row)
    start = _start(device, state, BANKS)
    rows = _all_banks if device.level == "bank" else _ahead
    first_of_last, act = rows(device, state, stage, start, most)
    mac = first_of_last + (stage.columns - (stage.rows - 1.0) * stage.per_row - 1.0) * device.step
    moved = start + stage.move_clocks(device)
    end = most(mac + 1.0, moved) if device.overlap else mac + device.step
    after = State(end, mac, act, BANKS)
    idle = np.asarray(stage.columns) <= 0
    if not idle.any():
        return after
    # Devices whose moves are stages of their own do nothing there.
    before = replace(state, time=moved) if device.overlap else state
    pairs = ((getattr(before, n), getattr(after, n)) for n in State.__match_args__)
    return State(*(np.where(idle, none, some) for none, some in pairs))


def _all_banks(
    d: PimDevice, state: State, stage: Stage, start: Any, most: Callable[..., Any]
) -> tuple[Any, Any]:
    """Return the first MAC of the last row and its activation, where all banks switch at once."""
    c, hit = stage.per_row, np.asarray(stage.hit)
    still_open = most(start, state.mac + d.step), state.act
    if hit.all():
        return still_open
    asked = start if d.late else NEVER
    closed = most(state.mac + d.rtp, state.act + d.ras, asked) + d.rp
    act = most(0.0 if d.overlap else start, closed, state.act + d.rc)
    first = most(start, state.mac + d.step, act + d.rcd)
    # The first row may have been opened long before its first MAC, the next ones are not.
    closed = most(first + (c - 1.0) * d.step + d.rtp, act + d.ras) + d.rp
    second = most(most(closed, act + d.rc) + d.rcd, first + c * d.step)
    more = stage.rows - 2.0
    row = np.where(more >= 0, second + more * row_clocks(d, c), first)
    opened = row, np.where(more >= 0, row - d.rcd, act)
    if not hit.any():
        return opened
    return np.where(hit, still_open[0], opened[0]), np.where(hit, still_open[1], opened[1])


def _ahead(
    d: PimDevice, state: State, stage: Stage, start: Any, most: Callable[..., Any]
) -> tuple[Any, Any]:
    """Return the same where units work through several banks and open the next row meanwhile."""
    c = stage.per_row
    first = most(start, state.mac + d.step, d.rcd) if d.overlap else start + d.rcd
    row = first + (stage.rows - 1.0) * most(c * d.step, row_clocks(d, c) / d.open_rows)
    return row, row - d.rcd


def row_clocks(device: PimDevice, columns: Any) -> Any:
    """Return the clocks from the first MAC of a row to that of the next in the same bank."""
    d, most = device, biggest(device.step, device.rcd, columns)
    macs = (columns - 1.0) * d.step + d.rtp
    return most(most(macs, d.ras - d.rcd) + d.rp + d.rcd, d.rc, columns * d.step)


def biggest(*like: Any) -> Callable[..., Any]:
    """Return `max` for floats, or its like for arrays if one of the values is one."""
    if any(isinstance(x, np.ndarray) for x in like):
        return lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs))
    return _most


def _most(*values: Any) -> Any:
    """Return the biggest of values of which any may be an array over points."""
    if any(isinstance(x, np.ndarray) for x in values):
        return np.maximum.reduce(np.broadcast_arrays(*values))
    return max(values)


def with_refresh(device: PimDevice, time: Any) -> Any:
    """Return clocks with the refreshes that fall due in them.

    A kernel that starts just refreshed meets as many as there are k with

        k refi < time + (k - 1) cost
    """
    if device.refresh == "none":
        return time
    cost = device.refresh_clocks
    if device.refresh == "steady":
        return time * device.refi / (device.refi - cost)
    count = np.ceil((time - cost) / (device.refi - cost)) - 1.0
    return time + np.maximum(count, 0.0) * cost
