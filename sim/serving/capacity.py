"""The largest rate of requests that keeps a goal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.registry import nearest
from opbyte.core.units import parse
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.serving.fleet.server import AnyServer, server_of
from opbyte.sim.serving.metrics import metrics
from opbyte.sim.simulate import resolve_mapping
from opbyte.workloads.serve import TIMES, Serve
from opbyte.workloads.traces import RequestTrace

#: Metrics that a goal can limit.
GOALS = (*TIMES, "itl_max")
#: Halvings of the interval in which the rate lies, on a logarithmic scale.
_MOST_STEPS = 60
#: Requests/s at which a trace arrives at once.
_AT_ONCE = 1e9


@dataclass(frozen=True)
class Capacity:
    """What an engine can take.

    Attributes:
        rate: Largest rate found that keeps the goal, requests/s; 0 if none does, infinite where
            the whole trace at once does: it is too short to break a limit.
        metrics: Of the trace at that rate; of the slowest rate that was tried if none keeps it.
        limited_by: The limit that the next higher rate breaks first, relative to its value.
        tried: (rate, kept) in the order in which rates were tried.
    """

    rate: float
    metrics: dict[str, float]
    limited_by: str
    tried: tuple[tuple[float, bool], ...]

    @property
    def answer(self) -> str:
        """Return the rate in words."""
        if self.rate == np.inf:
            served = self.metrics["requests_per_s"]
            return f"more than {served:.4g} requests/s: the trace is too short to break a limit"
        return f"{self.rate:.4g} requests/s" if self.rate else "no rate keeps the limits"


def capacity(
    machine: str | Path | Mapping[str, Any] | Machine,
    work: Serve,
    slo: Mapping[str, str | float],
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
    *,
    seed: int = 0,
    accuracy: float = 0.01,
    progress: Callable[[float, bool], None] | None = None,
) -> Capacity:
    """Return the largest rate at which the requests of a trace keep every limit.

    Arrivals are stretched or squeezed; the requests and their order stay. More load is taken to
    be no easier, so the rate is found by halving. Requests that can never be served are left out.

    Args:
        slo: Metric -> limit: `{"ttft_p99": "2 s", "tpot_p99": "50 ms"}`; bare numbers are seconds.
        seed: Of what is drawn: whether guesses hold.
        accuracy: Relative width of the interval at which the search ends.
        progress: Called with each rate that was tried and whether it keeps the limits.
    Raises:
        ConfigError: For a metric that is not known, or a limit that is no time.
        UncoveredError: If engines or devices fail: their times do not stretch with the trace.
        WorkloadError: If the trace has no arrivals to stretch, or no request has what is limited.
    """
    _check_steady(work)
    limits = _limits(slo)
    loaded = load_machine(machine)
    server = server_of(loaded, work, resolve_mapping(loaded, mapping, work.kind), seed=seed)
    trace = _stretchable(work.trace, server)
    tried: list[tuple[float, bool]] = []
    broken = ""

    def keeps(rate: float) -> tuple[bool, dict[str, float]]:
        nonlocal broken
        found = metrics(server, server.serve(trace.scaled(rate)), work.slo)
        over = _over(limits, found)
        worst = max(over, key=lambda name: over[name])
        kept = bool(over[worst] <= 1.0)
        if not kept:
            broken = worst
        tried.append((rate, kept))
        if progress is not None:
            progress(rate, kept)
        return kept, found

    # All at once: no rate is served faster than that.
    kept, best = keeps(_AT_ONCE)
    if kept:
        return Capacity(np.inf, best, "", tuple(tried))
    high = 2.0 * best["requests_per_s"]
    kept, best = keeps(high)
    while kept:
        high *= 8.0
        kept, best = keeps(high)
    low = high
    while not kept and low > 1e-6 * high:
        low /= 8.0
        kept, best = keeps(low)
    if not kept:
        return Capacity(0.0, best, broken, tuple(tried))
    high = min(rate for rate, good in tried if not good)
    for _ in range(_MOST_STEPS):
        if high <= low * (1.0 + accuracy):
            break
        middle = float(np.sqrt(low * high))
        kept, found = keeps(middle)
        if kept:
            low, best = middle, found
        else:
            high = middle
    return Capacity(low, best, broken, tuple(tried))


def _check_steady(work: Serve) -> None:
    """Refuse works whose engines or devices fail.

    Raises:
        UncoveredError: If they do: their times do not stretch with the trace.
    """
    if work.fleet.failures:
        raise UncoveredError(
            "capacity: failures happen at given times, whatever the rate. leave out fleet.failures "
            "and give the fleet the engines that are left"
        )
    if work.faults is not None and work.faults.some:
        raise UncoveredError(
            "capacity: devices are lost at given times, whatever the rate. leave out faults, and "
            "give the mapping the devices that are left (attention_decode.heads)"
        )


def _stretchable(trace: RequestTrace, server: AnyServer) -> RequestTrace:
    """Return the requests that can be served.

    Raises:
        WorkloadError: If there is none, or they have no arrivals that could be stretched.
    """
    if trace.client is not None or not trace.timed or trace.duration_s <= 0.0:
        raise WorkloadError(
            f"capacity: {trace.name} has no arrivals that could be stretched. give it some, for "
            "example by a synthetic definition with its lengths"
        )
    refused = server.refused(trace)
    if len(refused) == len(trace):
        why = next(iter(refused.values()))
        raise WorkloadError(f"capacity: none of {len(trace)} requests can be served: {why}")
    good = np.ones(len(trace), bool)
    good[list(refused)] = False
    return trace.take(np.flatnonzero(good)) if refused else trace


def _over(limits: dict[str, float], found: dict[str, float]) -> dict[str, float]:
    """Return each limit's metric over its value.

    Raises:
        WorkloadError: If no metric has a value: all answers have one token.
    """
    over = {name: found[name] / limit for name, limit in limits.items()}
    if all(np.isnan(value) for value in over.values()):
        raise WorkloadError(
            f"capacity: no request has a later token, so {', '.join(over)} limits nothing. limit "
            "ttft"
        )
    # Beside other limits, what no request has breaks none.
    return {name: float(np.nan_to_num(value)) for name, value in over.items()}


def _limits(slo: Mapping[str, str | float]) -> dict[str, float]:
    if not slo or not isinstance(slo, Mapping):
        raise ConfigError.one("", "slo", "needs one limit at least", "", f"Known: {_KNOWN}.")
    limits = {}
    for name, limit in slo.items():
        if name not in GOALS:
            near = nearest(name, GOALS)
            guess = f"Did you mean {near!r}? " if near else ""
            raise ConfigError.one(
                "", "slo", "names no time of requests", name, f"{guess}Known: {_KNOWN}."
            )
        if isinstance(limit, bool) or not isinstance(limit, str | int | float):
            raise ConfigError.one("", f"slo.{name}", "must be a time", limit, "Write 2 s.")
        value = parse(limit, "seconds") if isinstance(limit, str) else float(limit)
        if not 0.0 < value < np.inf:
            raise ConfigError.one("", f"slo.{name}", "must be above 0 and finite", limit, "")
        limits[name] = value
    return limits


_KNOWN = ", ".join(GOALS)
