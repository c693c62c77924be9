"""Event kernel for the operators of a step: units serve one operator, ports and links are shared.

An operator waits for its inputs and for its unit (first come, first served), spends its latency,
then streams. While it streams it needs a share of several resources at once; resources that are
asked for too much are divided max-min fairly in relative speed (progressive filling: Bertsekas and
Gallager, Data Networks, section 6.5). `opbyte.sim.engine.run_dag` is the readable twin.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DONE = 1e-12
_WAITS, _LATENCY, _STREAMS, _ENDED = 0, 1, 2, 3
# Counters of a Flight.
_FLYING, _TICKETS, _FINISHED = 0, 1, 2


class Plan(NamedTuple):
    """What runs; see `run_blocks`."""

    latency: Floats
    work: Floats
    share: Floats
    unit: Ints
    first: Ints
    edge_start: Ints
    edge_to: Ints
    inputs: Ints
    order: Ints
    stage: Ints
    offset: Ints  # first execution of each run of a block, and the end


class Flight(NamedTuple):
    """Executions that wait or run, in the first `counters[_FLYING]` slots, and the books."""

    micro: Ints
    op: Ints
    state: Ints
    left: Floats
    ticket: Ints
    wide: Floats  # share of every stage's resources, (slots, stages * resources)
    active: Ints
    speed: Floats
    counters: Ints
    place: Ints  # position in the order, of each microbatch
    open_ops: Ints  # operators of the current block that have not ended
    waits: Ints  # inputs that an operator waits for, (microbatches, ops)
    free: npt.NDArray[np.bool_]  # units, (stages, units)
    ready_at: Floats
    start_at: Floats
    end_at: Floats
    peak: Floats


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
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


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _execution(plan: Plan, flight: Flight, micro: int, op: int) -> int:
    """Return the index of an operator's execution in the current block of a microbatch."""
    run = flight.place[micro]
    first = plan.first[plan.order[run]]
    return int(micro * plan.offset[-1] + plan.offset[run] + op - first)


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _make_ready(plan: Plan, flight: Flight, micro: int, op: int, now: float) -> None:
    """Let an operator whose inputs are there wait for its unit."""
    slot = flight.counters[_FLYING]
    flight.micro[slot] = micro
    flight.op[slot] = op
    flight.state[slot] = _WAITS
    flight.ticket[slot] = flight.counters[_TICKETS]
    flight.counters[_FLYING] += 1
    flight.counters[_TICKETS] += 1
    flight.ready_at[_execution(plan, flight, micro, op)] = now


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _open_block(plan: Plan, flight: Flight, micro: int, now: float) -> None:
    """Start the current block of a microbatch."""
    block = plan.order[flight.place[micro]]
    flight.open_ops[micro] = plan.first[block + 1] - plan.first[block]
    for op in range(plan.first[block], plan.first[block + 1]):
        flight.waits[micro, op] = plan.inputs[op]
        if plan.inputs[op] == 0:
            _make_ready(plan, flight, micro, op, now)


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _start_waiting(plan: Plan, flight: Flight, now: float) -> None:
    """Give every free unit the operator that has waited for it longest."""
    resources = plan.share.shape[1]
    while True:
        best = -1
        for i in range(flight.counters[_FLYING]):
            if flight.state[i] != _WAITS or 0 <= best and flight.ticket[i] > flight.ticket[best]:
                continue
            unit = plan.unit[flight.op[i]]
            stage = plan.stage[plan.order[flight.place[flight.micro[i]]]]
            if unit < 0 or flight.free[stage, unit]:
                best = i
        if best < 0:
            return
        micro, op = flight.micro[best], flight.op[best]
        stage = plan.stage[plan.order[flight.place[micro]]]
        if plan.unit[op] >= 0:
            flight.free[stage, plan.unit[op]] = False
        waits = plan.latency[op] > 0.0
        flight.state[best] = _LATENCY if waits else _STREAMS
        flight.left[best] = plan.latency[op] if waits else plan.work[op]
        flight.start_at[_execution(plan, flight, micro, op)] = now
        for r in range(flight.wide.shape[1]):
            flight.wide[best, r] = 0.0
        for r in range(resources):
            flight.wide[best, stage * resources + r] = plan.share[op, r]


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _advance(plan: Plan, flight: Flight) -> float:
    """Let time pass until something ends or starts to stream; return how long that takes."""
    flying = flight.counters[_FLYING]
    streaming = 0
    for i in range(flying):
        if flight.state[i] == _STREAMS:
            flight.active[streaming] = i
            streaming += 1
    if streaming == 1:
        flight.speed[0] = 1.0
    elif streaming > 1:
        fair_speeds(flight.wide, flight.active, streaming, flight.speed)
    step = np.inf
    for i in range(streaming):
        step = min(step, flight.left[flight.active[i]] / flight.speed[i])
    for r in range(flight.peak.shape[0]):
        granted = 0.0
        for i in range(streaming):
            granted += flight.speed[i] * flight.wide[flight.active[i], r]
        flight.peak[r] = max(flight.peak[r], granted)
    for i in range(flying):
        if flight.state[i] == _LATENCY:
            step = min(step, flight.left[i])
    for i in range(streaming):
        slot = flight.active[i]
        rest = flight.left[slot] - flight.speed[i] * step
        flight.left[slot] = rest if rest > _DONE * plan.work[flight.op[slot]] else 0.0
        if flight.left[slot] == 0.0:
            flight.state[slot] = _ENDED
    for i in range(flying):
        if flight.state[i] == _LATENCY:
            op = flight.op[i]
            rest = flight.left[i] - step
            flight.left[i] = rest if rest > _DONE * plan.latency[op] else 0.0
            if flight.left[i] == 0.0:
                flight.left[i] = plan.work[op]
                flight.state[i] = _STREAMS if plan.work[op] > 0.0 else _ENDED
    return step


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _end(plan: Plan, flight: Flight, slot: int, now: float) -> None:
    """Record an end, free the unit, and let go what waited for this operator."""
    micro, op = flight.micro[slot], flight.op[slot]
    block = plan.order[flight.place[micro]]
    flight.end_at[_execution(plan, flight, micro, op)] = now
    if plan.unit[op] >= 0:
        flight.free[plan.stage[block], plan.unit[op]] = True
    flight.counters[_FLYING] -= 1
    last = flight.counters[_FLYING]
    flight.micro[slot] = flight.micro[last]
    flight.op[slot] = flight.op[last]
    flight.state[slot] = flight.state[last]
    flight.left[slot] = flight.left[last]
    flight.ticket[slot] = flight.ticket[last]
    for r in range(flight.wide.shape[1]):
        flight.wide[slot, r] = flight.wide[last, r]
    for e in range(plan.edge_start[op], plan.edge_start[op + 1]):
        target = plan.edge_to[e]
        flight.waits[micro, target] -= 1
        if flight.waits[micro, target] == 0:
            _make_ready(plan, flight, micro, target, now)
    flight.open_ops[micro] -= 1


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def run_blocks(
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
    sizes = np.zeros(order.shape[0] + 1, np.int64)
    for p in range(order.shape[0]):
        sizes[p + 1] = first[order[p] + 1] - first[order[p]]
    offset = np.cumsum(sizes)
    plan = Plan(
        latency, work, share, unit, first, edge_start, edge_to, inputs, order, stage, offset
    )
    total = microbatches * offset[-1]
    slots = microbatches * sizes.max()
    flight = Flight(
        np.zeros(slots, np.int64),
        np.zeros(slots, np.int64),
        np.zeros(slots, np.int64),
        np.zeros(slots),
        np.zeros(slots, np.int64),
        np.zeros((slots, stages * resources)),
        np.zeros(slots, np.int64),
        np.ones(slots),
        np.zeros(3, np.int64),
        np.zeros(microbatches, np.int64),
        np.zeros(microbatches, np.int64),
        np.zeros((microbatches, ops), np.int64),
        np.ones((stages, max(int(unit.max()) + 1, 1)), np.bool_),
        np.zeros(total),
        np.zeros(total),
        np.zeros(total),
        np.zeros(stages * resources),
    )
    now = 0.0
    for micro in range(microbatches):
        _open_block(plan, flight, micro, now)
    while flight.counters[_FINISHED] < microbatches:
        _start_waiting(plan, flight, now)
        now += _advance(plan, flight)
        slot = 0
        while slot < flight.counters[_FLYING]:
            if flight.state[slot] == _ENDED:
                _end(plan, flight, slot, now)
            else:
                slot += 1
        for micro in range(microbatches):
            if flight.open_ops[micro] == 0 and flight.place[micro] < order.shape[0]:
                flight.place[micro] += 1
                if flight.place[micro] == order.shape[0]:
                    flight.counters[_FINISHED] += 1
                else:
                    _open_block(plan, flight, micro, now)
    return flight.ready_at, flight.start_at, flight.end_at, flight.peak
