"""The timeline of a served trace as trace events: steps, requests, and counters beside them.

Large traces stay small: a slice then stands for several steps, and every n-th request is drawn.
The names of the tracks say so. Several engines have a track each, and requests are
where they were served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.ops import Array

if TYPE_CHECKING:
    import pandas as pd

    from opbyte.sim.result import Result

#: Most slices of steps, and most requests that are drawn.
MOST_STEPS = 20_000
MOST_REQUESTS = 5_000
_US = 1e6
#: Column of the series -> name of its counter.
_COUNTERS = {"running": "running", "waiting": "waiting", "free": "KV blocks free"}
_PHASES = ("queued", "prefill", "decode")

Events = list[dict[str, Any]]


def serving_events(result: Result) -> Events:
    """Return steps, requests and counters; time 0 is that of the trace.

    Args:
        result: Of a served trace.
    """
    detail = result.outcome.detail
    requests: pd.DataFrame = detail["requests"]
    series: pd.DataFrame = detail["series"]
    stride = -(-len(series) // MOST_STEPS)
    served = requests[requests["status"] == "served"]
    events = _requests(served)
    for number, steps in enumerate(detail["engine_steps"] or [int(result.metrics["steps"])]):
        pid, own, came = result.machine, series, served["arrival_s"].to_numpy(float)
        if "replica" in series:
            pid, own = f"{pid}, engine {number}", series[series["replica"] == number]
            came = _came(served, number)
        if len(own):
            rows = {str(name): own[name].to_numpy(float)[::stride] for name in own}
            start = step_starts(rows, came)
            events += _steps(pid, rows, start, steps_in_a_row(steps, len(own)) * stride)
            events += _counters(pid, rows, start, int(detail["blocks"]))
    return events


def _came(served: pd.DataFrame, number: int) -> Array:
    """Return when requests may have come to one of several engines, seconds.

    That is their arrival, or where another engine read their prompts their first token. Who lost
    its blocks may have been at any engine before.
    """
    moved = served["preempted"] > 0
    here, read = served["replica"] == number, served["replica"] == number
    if "prefill_replica" in served:
        read = served["prefill_replica"] == number
        first = served["first_token_s"][here | moved].to_numpy(float)
    else:
        first = np.zeros(0)
    return np.concatenate([served["arrival_s"][read | moved].to_numpy(float), first])


def steps_in_a_row(steps: int, rows: int) -> int:
    """Return for how many steps a row of a series stands, a power of two."""
    each = 1
    while -(-steps // each) > rows:
        each *= 2
    return each


def step_starts(rows: dict[str, Array], arrival: Array) -> Array:
    """Return when the steps of each row began: after those before them, or with an arrival.

    Who came from an engine that failed is not known: such a step begins where the last one ended.

    Args:
        rows: Columns of the series, (rows,) each.
        arrival: Of the requests that were served, seconds.
    """
    end = rows["end_s"]
    before = np.concatenate([[-np.inf], end[:-1]])
    idle = np.concatenate([[True], (rows["running"] + rows["waiting"])[:-1] == 0])
    ordered = np.sort(arrival) if len(arrival) else np.array([np.inf])
    at = np.minimum(np.searchsorted(ordered, before), len(ordered) - 1)
    found: Array = np.where(idle, np.maximum(before, ordered[at]), before)
    return np.where(found < end, found, np.maximum(before, 0.0))


def _steps(pid: str, rows: dict[str, Array], start: Array, each: int) -> Events:
    tid = "steps" if each == 1 else f"steps, {each} in each slice"
    names = ("tokens", "running", "waiting", "preempted")
    events: Events = []
    for begin, end, *values in zip(
        start.tolist(), rows["end_s"].tolist(), *(rows[name] for name in names), strict=True
    ):
        args = dict(zip(names, map(int, values), strict=True))
        name = f"{args['tokens']} tokens" if each == 1 else f"{each} steps"
        span = {"ts": begin * _US, "dur": (end - begin) * _US}
        events.append({"ph": "X", "pid": pid, "tid": tid, "name": name, **span, "args": args})
    return events


def _counters(pid: str, rows: dict[str, Array], start: Array, blocks: int) -> Events:
    """Return what holds from the end of each step on, and the tokens of steps from their start."""
    events: Events = []
    last: dict[str, float] = {}

    def add(name: str, seconds: float, value: float) -> None:
        if last.get(name) == value:
            return
        last[name] = value
        place = {"pid": pid, "tid": name, "ts": seconds * _US}
        events.append({"ph": "C", **place, "name": name, "args": {name: int(value)}})

    ends = rows["end_s"].tolist()
    for column, name in _COUNTERS.items():
        add(name, float(start[0]), blocks if column == "free" else 0)
        for end, value in zip(ends, rows[column], strict=True):
            add(name, end, value)
    following = [*start.tolist()[1:], np.inf]
    for begin, end, then, tokens in zip(
        start.tolist(), ends, following, rows["tokens"], strict=True
    ):
        add("tokens of a step", begin, tokens)
        if then > end:
            add("tokens of a step", end, 0)
    return events


def _requests(served: pd.DataFrame) -> Events:
    """Return each request with its phases, as events that may overlap those of others.

    Of several engines, each phase is where it was computed.
    """
    stride = -(-len(served) // MOST_REQUESTS)
    drawn = served.iloc[::stride]
    pid = "requests" if stride == 1 else f"requests, one of {stride} of {len(served):,}"
    sizes = ("input_tokens", "output_tokens", "preempted")
    events: Events = []
    moments = ("arrival_s", "scheduled_s", "first_token_s", "last_token_s")
    of_sizes = drawn[list(sizes)].to_numpy(int).tolist()
    of_moments = (_US * drawn[list(moments)].to_numpy(float)).tolist()
    at = _engines(drawn)
    for i, row in enumerate(drawn.index.tolist()):
        args = {"row": row, **dict(zip(sizes, of_sizes[i], strict=True))}
        phases = list(zip(_PHASES, of_moments[i][:-1], of_moments[i][1:], strict=True))
        parts = [slice(0, 3)] if not at or at[i][0] == at[i][1] else [slice(0, 2), slice(2, 3)]
        for part, number in zip(parts, at[i] if at else [None], strict=False):
            place = {"pid": pid, "tid": "requests", "cat": "request", "id": str(row)}
            if number is not None:
                place |= {"tid": f"requests of engine {number}", "id": f"{row} at {number}"}
            events += _whole(place, phases[part], args)
    return events


def _engines(drawn: pd.DataFrame) -> list[tuple[int, int]]:
    """Return who read the prompt and who gave the answer, of each request of several engines."""
    if "replica" not in drawn:
        return []
    read = drawn["prefill_replica" if "prefill_replica" in drawn else "replica"]
    return list(zip(read.tolist(), drawn["replica"].tolist(), strict=True))


def _whole(place: dict[str, str], phases: list[tuple[str, float, float]], args: Any) -> Events:
    """Return phases at one place inside of an event that begins first and ends last."""
    whole = {**place, "name": "request"}
    events = [{"ph": "b", **whole, "ts": phases[0][1], "args": args}]
    for name, begin, end in phases:
        if end > begin:
            events.append({"ph": "b", **place, "name": name, "ts": begin})
            events.append({"ph": "e", **place, "name": name, "ts": end})
    return [*events, {"ph": "e", **whole, "ts": phases[-1][2]}]
