"""Timelines in the Chrome trace format, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import SimulationError
from opbyte.sim.event import Timeline
from opbyte.sim.result import Result

_US = 1e6


def write_perfetto(result: Result, path: str | Path) -> Path:
    """Write a result's timeline, one track per unit and link, one counter per resource.

    Of a served trace it has steps, requests, and counters of what waits, runs and is held.

    Args:
        result: Of fidelity `event`, or of a served trace.
        path: File to write, `.json`.
    Raises:
        SimulationError: If the result has no timeline.
    """
    target = Path(path)
    events: list[dict[str, Any]] = []
    offset = 0.0
    for phase in result.outcome.phases:
        if phase.timeline is None:
            continue
        events += phase_events(phase.name, phase.timeline, offset)
        offset += float(phase.step.seconds[0])
    events += result.outcome.detail.get("trace_events", [])
    if "series" in result.outcome.detail:
        from opbyte.sim.serving.timeline import serving_events

        events += serving_events(result)
    if not events:
        raise SimulationError(
            f"fidelity '{result.fidelity}' records no timeline. simulate with fidelity 'event'"
        )
    names = sorted({(e["pid"], e["tid"]) for e in events})
    meta = [
        {"ph": "M", "name": "process_name", "pid": pid, "tid": tid, "args": {"name": pid}}
        for pid, tid in names
    ]
    meta += [
        {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": tid}}
        for pid, tid in names
    ]
    target.write_text(json.dumps(_numbered(meta + events)))
    return target


def phase_events(name: str, timeline: Timeline, offset: float) -> list[dict[str, Any]]:
    """Return the executions and resource rates of one phase as trace events.

    Args:
        name: Phase, becomes the process of the trace.
        timeline: What ran.
        offset: Seconds at which the phase starts.
    """
    demand, placed = timeline.demand, timeline.demand.placed
    stage = placed.table.stage[placed.table.order][timeline.run]
    events: list[dict[str, Any]] = []
    for i, op in enumerate(timeline.op):
        if placed.runs is not None and not placed.runs[op].any():
            continue
        unit = placed.units[placed.unit_of[op]] if placed.unit_of[op] >= 0 else "link"
        events.append(
            {
                "ph": "X",
                "pid": name,
                "tid": f"stage {stage[i]}: {unit}",
                "name": placed.names[op],
                "ts": (offset + timeline.start[i]) * _US,
                "dur": (timeline.end[i] - timeline.start[i]) * _US,
                "args": {
                    "block": placed.table.blocks[placed.block_of[op]],
                    "microbatch": int(timeline.microbatch[i]),
                    "flops": float(demand.flops[op, 0]),
                    "bytes": {
                        r: float(demand.bytes[op, j, 0]) for j, r in enumerate(placed.resources)
                    },
                },
            }
        )
    for j, resource in enumerate(placed.resources):
        events += _counter(name, resource, timeline, j, offset)
    return events


def _counter(
    name: str, resource: str, timeline: Timeline, column: int, offset: float
) -> list[dict[str, Any]]:
    """Return the mean rate of a resource over each execution, GB/s."""
    moved = timeline.demand.bytes[timeline.op, column, 0]
    used = moved > 0
    span = np.maximum(timeline.end - timeline.start, 1e-30)
    rate = np.where(used, moved / span, 0.0) / 1e9
    times = np.concatenate([timeline.start[used], timeline.end[used]])
    deltas = np.concatenate([rate[used], -rate[used]])
    order = np.argsort(times, kind="stable")
    level = np.maximum(np.cumsum(deltas[order]), 0.0)
    return [
        {
            "ph": "C",
            "pid": name,
            "tid": resource,
            "name": f"{resource} GB/s",
            "ts": (offset + float(t)) * _US,
            "args": {"GB/s": round(float(v), 6)},
        }
        for t, v in zip(times[order], level, strict=True)
    ]


def _numbered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the trace with numbers for process and thread names, as viewers expect."""
    pids = {pid: i + 1 for i, pid in enumerate(dict.fromkeys(e["pid"] for e in events))}
    tids = {tid: i + 1 for i, tid in enumerate(dict.fromkeys(e["tid"] for e in events))}
    rows = [{**e, "pid": pids[e["pid"]], "tid": tids[e["tid"]]} for e in events]
    return {"displayTimeUnit": "ns", "traceEvents": rows}
