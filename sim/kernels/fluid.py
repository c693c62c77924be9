"""Event kernel for the operators of a step: units serve one operator, ports and links are shared.

An operator waits for its inputs and for its unit (first come, first served), spends its latency,
then streams. While it streams it needs a share of several resources at once; resources that are
asked for too much are divided max-min fairly in relative speed (progressive filling: Bertsekas and
Gallager, Data Networks, section 6.5). `opbyte.sim.engine.run_dag` is the readable twin.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DONE = 1e-12


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
    for i in range(count):
        speed[i] = 0.0
    left = count
    while left > 0:
        step = 1.0
        for i in range(count):
            if not frozen[i] and 1.0 - speed[i] < step:
                step = 1.0 - speed[i]
        for r in range(resources):
            load = 0.0
            for i in range(count):
                if not frozen[i]:
                    load += share[active[i], r]
            if load > 0.0 and free[r] / load < step:
                step = max(free[r] / load, 0.0)
        for r in range(resources):
            for i in range(count):
                if not frozen[i]:
                    free[r] -= step * share[active[i], r]
        for i in range(count):
            if frozen[i]:
                continue
            speed[i] += step
            stop = speed[i] >= 1.0 - _DONE
            for r in range(resources):
                if share[active[i], r] > 0.0 and free[r] <= _DONE:
                    stop = True
            if stop:
                frozen[i] = True
                left -= 1


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
        share granted of each resource, (resources,).
    """
    ops, resources = share.shape
    stages = 0
    for b in range(stage.shape[0]):
        stages = max(stages, stage[b] + 1)
    units = 1
    for o in range(ops):
        units = max(units, unit[o] + 1)
    runs = order.shape[0]
    offset = np.zeros(runs + 1, np.int64)
    widest = 1
    for p in range(runs):
        size = first[order[p] + 1] - first[order[p]]
        offset[p + 1] = offset[p] + size
        widest = max(widest, size)
    total = offset[runs]
    ready_at = np.zeros(microbatches * total)
    start_at = np.zeros(microbatches * total)
    end_at = np.zeros(microbatches * total)
    slots = microbatches * widest
    # Executions in flight: microbatch, operator, state (0 waits, 1 latency, 2 streams), time left.
    who = np.zeros(slots, np.int64)
    what = np.zeros(slots, np.int64)
    state = np.zeros(slots, np.int64)
    left = np.zeros(slots)
    ticket = np.zeros(slots, np.int64)
    flying = 0
    tickets = 0
    place = np.zeros(microbatches, np.int64)
    open_ops = np.zeros(microbatches, np.int64)
    waits = np.zeros((microbatches, ops), np.int64)
    unit_free = np.ones((stages, units), np.bool_)
    # Each stage has its own copy of every resource.
    wide = np.zeros((slots, stages * resources))
    active = np.zeros(slots, np.int64)
    speed = np.ones(slots)
    peak = np.zeros(stages * resources)
    now = 0.0
    to_open = np.ones(microbatches, np.bool_)
    finished = 0
    while finished < microbatches:
        for j in range(microbatches):
            if to_open[j]:
                to_open[j] = False
                block = order[place[j]]
                open_ops[j] = first[block + 1] - first[block]
                for o in range(first[block], first[block + 1]):
                    waits[j, o] = inputs[o]
                    if inputs[o] == 0:
                        who[flying] = j
                        what[flying] = o
                        state[flying] = 0
                        ticket[flying] = tickets
                        tickets += 1
                        flying += 1
                        ready_at[j * total + offset[place[j]] + o - first[block]] = now
        # Units take the operator that has waited longest.
        again = True
        while again:
            again = False
            best = -1
            for i in range(flying):
                if state[i] == 0 and (best < 0 or ticket[i] < ticket[best]):
                    u = unit[what[i]]
                    if u < 0 or unit_free[stage[order[place[who[i]]]], u]:
                        best = i
            if best >= 0:
                again = True
                j = who[best]
                o = what[best]
                block = order[place[j]]
                s = stage[block]
                if unit[o] >= 0:
                    unit_free[s, unit[o]] = False
                state[best] = 1 if latency[o] > 0.0 else 2
                left[best] = latency[o] if latency[o] > 0.0 else work[o]
                start_at[j * total + offset[place[j]] + o - first[block]] = now
                for r in range(stages * resources):
                    wide[best, r] = 0.0
                for r in range(resources):
                    wide[best, s * resources + r] = share[o, r]
        streaming = 0
        for i in range(flying):
            if state[i] == 2:
                active[streaming] = i
                streaming += 1
        if streaming == 1:
            speed[0] = 1.0
        elif streaming > 1:
            fair_speeds(wide, active, streaming, speed)
        for r in range(stages * resources):
            granted = 0.0
            for i in range(streaming):
                granted += speed[i] * wide[active[i], r]
            peak[r] = max(peak[r], granted)
        step = np.inf
        for i in range(flying):
            if state[i] == 1:
                step = min(step, left[i])
        for i in range(streaming):
            step = min(step, left[active[i]] / speed[i])
        now += step
        for i in range(streaming):
            a = active[i]
            rest = left[a] - speed[i] * step
            left[a] = rest if rest > _DONE * work[what[a]] else 0.0
        for i in range(flying):
            if state[i] == 1:
                rest = left[i] - step
                left[i] = rest if rest > _DONE * latency[what[i]] else 0.0
                if left[i] == 0.0:
                    state[i] = 2
                    left[i] = work[what[i]]
                    if left[i] > 0.0:
                        continue
                else:
                    continue
            if state[i] == 2 and left[i] == 0.0:
                state[i] = 3
        i = 0
        while i < flying:
            if state[i] != 3:
                i += 1
                continue
            j = who[i]
            o = what[i]
            block = order[place[j]]
            end_at[j * total + offset[place[j]] + o - first[block]] = now
            if unit[o] >= 0:
                unit_free[stage[block], unit[o]] = True
            flying -= 1
            who[i] = who[flying]
            what[i] = what[flying]
            state[i] = state[flying]
            left[i] = left[flying]
            ticket[i] = ticket[flying]
            for r in range(stages * resources):
                wide[i, r] = wide[flying, r]
            for e in range(edge_start[o], edge_start[o + 1]):
                t = edge_to[e]
                waits[j, t] -= 1
                if waits[j, t] == 0:
                    who[flying] = j
                    what[flying] = t
                    state[flying] = 0
                    ticket[flying] = tickets
                    tickets += 1
                    flying += 1
                    ready_at[j * total + offset[place[j]] + t - first[block]] = now
            open_ops[j] -= 1
            if open_ops[j] == 0:
                place[j] += 1
                if place[j] == runs:
                    finished += 1
                    place[j] = runs - 1
                else:
                    to_open[j] = True
    return ready_at, start_at, end_at, peak
