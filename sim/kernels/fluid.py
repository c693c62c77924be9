"""Event kernel for the operators of a step: units serve one operator, ports and links are shared.

An operator waits for its inputs and for its unit (earlier microbatches first, then first come,
first served), spends its latency, then streams. While it streams it needs a share of several
resources at once; resources that are asked for too much are divided max-min fairly in relative
speed (progressive filling: Bertsekas and Gallager, Data Networks, section 6.5).
`opbyte.sim.engine.run_dag` is the readable twin.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DONE = 1e-12
_WAITS, _LATENCY, _STREAMS, _ENDED = 0, 1, 2, 3
# Columns of a slot: an execution that waits or runs.
_MICRO, _OP, _STAGE, _STATE, _TICKET, _PLACE = 0, 1, 2, 3, 4, 5


@numba.njit(cache=True)
def fair_speeds(share: Floats, active: Ints, count: int, speed: Floats) -> None:
    """Set the relative speed of each active operator, 1 when nothing limits it.

    Args:
        share: Share of each resource at full speed, (operators, resources).
        active: Operators that stream; the first `count` count.
        speed: Result, (count,).
    """
    resources = share.shape[1]
    frozen = np.zeros(count, np.bool_)
    free = np.ones(resources)
    load = np.zeros(resources)
    speed[:count] = 0.0
    left = count
    while left > 0:
        step = 1.0
        load[:] = 0.0
        for i in range(count):
            if not frozen[i]:
                step = min(step, 1.0 - speed[i])
                load += share[active[i]]
        for r in range(resources):
            if load[r] > 0.0:
                step = min(step, max(free[r] / load[r], 0.0))
        free -= step * load
        for i in range(count):
            if frozen[i]:
                continue
            speed[i] += step
            used_up = (share[active[i]] > 0.0) & (free <= _DONE)
            if speed[i] >= 1.0 - _DONE or used_up.any():
                frozen[i] = True
                left -= 1


@numba.njit(cache=True)
def _start_waiting(
    slots: Ints,
    flying: int,
    left: Floats,
    wide: Floats,
    free: npt.NDArray[np.bool_],
    latency: Floats,
    work: Floats,
    share: Floats,
    unit: Ints,
    start_at: Floats,
    now: float,
) -> None:
    """Give every free unit the operator of the earliest microbatch that has waited longest.

    A stage finishes one microbatch before it turns to the next, as pipeline schedules do (GPipe,
    NeurIPS 2019). Turns by arrival alone would interleave all microbatches in the first stage, and
    the later stages would stand idle until nearly all of them are through.
    """
    resources = share.shape[1]
    while True:
        best = -1
        for i in range(flying):
            if slots[i, _STATE] != _WAITS:
                continue
            if best >= 0:
                later = slots[i, _MICRO] - slots[best, _MICRO]
                if later > 0 or (later == 0 and slots[i, _TICKET] > slots[best, _TICKET]):
                    continue
            needed = unit[slots[i, _OP]]
            if needed < 0 or free[slots[i, _STAGE], needed]:
                best = i
        if best < 0:
            return
        op, stage = slots[best, _OP], slots[best, _STAGE]
        if unit[op] >= 0:
            free[stage, unit[op]] = False
        waits = latency[op] > 0.0
        slots[best, _STATE] = _LATENCY if waits else _STREAMS
        left[best] = latency[op] if waits else work[op]
        start_at[slots[best, _PLACE]] = now
        for r in range(wide.shape[1]):
            wide[best, r] = 0.0
        for r in range(resources):
            wide[best, stage * resources + r] = share[op, r]


@numba.njit(cache=True)
def _advance(  # noqa: C901  (one pass over few slots; calls cost more than they clear up)
    slots: Ints,
    flying: int,
    left: Floats,
    wide: Floats,
    latency: Floats,
    work: Floats,
    active: Ints,
    speed: Floats,
    peak: Floats,
) -> float:
    """Let time pass until something ends or starts to stream; return how long that takes."""
    streaming = 0
    step = np.inf
    for i in range(flying):
        if slots[i, _STATE] == _STREAMS:
            active[streaming] = i
            streaming += 1
        elif slots[i, _STATE] == _LATENCY:
            step = min(step, left[i])
    if streaming == 1:
        speed[0] = 1.0
    elif streaming > 1:
        fair_speeds(wide, active, streaming, speed)
    for i in range(streaming):
        step = min(step, left[active[i]] / speed[i])
    for r in range(peak.shape[0]):
        granted = 0.0
        for i in range(streaming):
            granted += speed[i] * wide[active[i], r]
        peak[r] = max(peak[r], granted)
    for i in range(streaming):
        slot = active[i]
        rest = left[slot] - speed[i] * step
        left[slot] = rest if rest > _DONE * work[slots[slot, _OP]] else 0.0
        if left[slot] == 0.0:
            slots[slot, _STATE] = _ENDED
    for i in range(flying):
        if slots[i, _STATE] == _LATENCY:
            op = slots[i, _OP]
            left[i] -= step
            if left[i] <= _DONE * latency[op]:
                left[i] = work[op]
                slots[i, _STATE] = _STREAMS if work[op] > 0.0 else _ENDED
    return step


@numba.njit(cache=True)
def _make_ready(
    slots: Ints, flying: int, micro: int, op: int, stage: int, ticket: int, place: int
) -> int:
    """Let an operator whose inputs are there wait for its unit; return how many fly."""
    slots[flying, _MICRO] = micro
    slots[flying, _OP] = op
    slots[flying, _STAGE] = stage
    slots[flying, _STATE] = _WAITS
    slots[flying, _TICKET] = ticket
    slots[flying, _PLACE] = place
    return flying + 1


@numba.njit(cache=True)
def run_blocks(  # noqa: C901  (the event loop itself)
    latency: Floats,
    work: Floats,
    share: Floats,
    unit: Ints,
    first: Ints,
    edge_start: Ints,
    edge_to: Ints,
    inputs: Ints,
    order: Ints,
    stage: Ints,
    microbatches: int,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Run blocks of operators, in order, for each microbatch.

    Args:
        latency: Seconds before an operator streams, (ops,).
        work: Seconds that it streams at full speed, (ops,).
        share: Share of each resource at full speed, <= 1, (ops, resources).
        unit: Unit of each operator, -1 for none, (ops,).
        first: First operator of each block and the end, (blocks + 1,).
        edge_start: Where the edges of each operator start in `edge_to`, (ops + 1,).
        edge_to: Operators that wait for it.
        inputs: Operators that each one waits for, (ops,).
        order: Blocks as they run, (runs,).
        stage: Pipeline stage of each block; stages have units and resources of their own.
        microbatches: Pieces that pass through the blocks one after the other.

    Returns:
        Ready, start and end of every execution, (microbatches * executions,), and the largest
        share granted of each resource of each stage, (stages * resources,).
    """
    ops, resources = share.shape
    stages = int(stage.max()) + 1
    runs = order.shape[0]
    offset = np.zeros(runs + 1, np.int64)
    widest = 0
    for p in range(runs):
        size = first[order[p] + 1] - first[order[p]]
        offset[p + 1] = offset[p] + size
        widest = max(widest, size)
    most = microbatches * widest
    slots = np.zeros((most, 6), np.int64)
    left = np.zeros(most)
    wide = np.zeros((most, stages * resources))
    active, speed = np.zeros(most, np.int64), np.ones(most)
    free = np.ones((stages, max(int(unit.max()) + 1, 1)), np.bool_)
    waits = np.zeros((microbatches, ops), np.int64)
    run = np.full(microbatches, -1)
    unfinished = np.zeros(microbatches, np.int64)
    ready_at = np.zeros(microbatches * offset[runs])
    start_at, end_at = np.zeros_like(ready_at), np.zeros_like(ready_at)
    peak = np.zeros(stages * resources)
    now, flying, ticket, done = 0.0, 0, 0, 0
    while True:
        for micro in range(microbatches):
            if unfinished[micro] > 0 or run[micro] == runs:
                continue
            run[micro] += 1
            if run[micro] == runs:
                done += 1
                continue
            block = order[run[micro]]
            unfinished[micro] = first[block + 1] - first[block]
            for op in range(first[block], first[block + 1]):
                waits[micro, op] = inputs[op]
                if inputs[op] == 0:
                    place = micro * offset[runs] + offset[run[micro]] + op - first[block]
                    ready_at[place] = now
                    flying = _make_ready(slots, flying, micro, op, stage[block], ticket, place)
                    ticket += 1
        if done == microbatches:
            return ready_at, start_at, end_at, peak
        _start_waiting(slots, flying, left, wide, free, latency, work, share, unit, start_at, now)
        now += _advance(slots, flying, left, wide, latency, work, active, speed, peak)
        slot = 0
        while slot < flying:
            if slots[slot, _STATE] != _ENDED:
                slot += 1
                continue
            micro, op, s = slots[slot, _MICRO], slots[slot, _OP], slots[slot, _STAGE]
            place = slots[slot, _PLACE]
            end_at[place] = now
            if unit[op] >= 0:
                free[s, unit[op]] = True
            flying -= 1
            if slot < flying:
                slots[slot] = slots[flying]
                left[slot] = left[flying]
                wide[slot] = wide[flying]
            for e in range(edge_start[op], edge_start[op + 1]):
                target = edge_to[e]
                waits[micro, target] -= 1
                if waits[micro, target] == 0:
                    ready_at[place + target - op] = now
                    flying = _make_ready(
                        slots, flying, micro, target, s, ticket, place + target - op
                    )
                    ticket += 1
            unfinished[micro] -= 1
