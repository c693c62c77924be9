"""A Composition of Experts as it happens: batches, LRU residency, copies and runs in SimPy."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import simpy

from opbyte.core.ops import Array
from opbyte.sim.copies import Stretch, copy_stretch, stretch_of
from opbyte.sim.engine import FairShared
from opbyte.sim.place import Placer
from opbyte.sim.residency import LruSet
from opbyte.sim.result import PhaseRun

if TYPE_CHECKING:
    from opbyte.sim.coe import Tiers
    from opbyte.workloads.coe import CompositionOfExperts

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Played:
    """What happened.

    Attributes:
        rows: One per batch: start, router end, end, misses, distinct experts, latency.
        trace: Events for a timeline.
    """

    mean_s: float
    mean_misses: float
    hit_rate: float
    rows: list[dict[str, float]]
    trace: list[dict[str, Any]]


def play(
    placer: Placer,
    work: CompositionOfExperts,
    router: list[PhaseRun],
    expert: list[PhaseRun],
    tiers: Tiers,
    seed: int,
) -> Played:
    """Play `work.requests` batches, one after the other, and return what happened.

    The cache starts as LRU leaves it in the long run: experts drawn by popularity without
    repetition, the first one drawn used last (Hendricks, J. Appl. Prob. 9, 1972).
    """
    rng = np.random.default_rng(seed)
    count, batch = int(work.count), int(work.batch)
    popularity = work.popularity(count)
    cache = LruSet(int(tiers.resident[0]))
    for name in reversed(_warm(rng, popularity, cache.capacity)):
        cache.touch(name)
    run, route = stretch_of(expert), stretch_of(router)
    copy = copy_stretch(tiers.copy)
    env = simpy.Environment()
    shared = FairShared(env)
    overlap = placer.mapping.overlap == "copy"
    rows: list[dict[str, float]] = []
    trace: list[dict[str, Any]] = []

    def span(track: str, name: str, start: float) -> None:
        trace.append(
            {"ph": "X", "pid": "Composition of Experts", "tid": track, "name": name,
             "ts": start * 1e6, "dur": (env.now - start) * 1e6, "args": {}}
        )  # fmt: skip

    def stream(track: str, name: str, what: Stretch) -> Process:
        start = env.now
        yield shared.stream(what.seconds, what.shares)
        span(track, name, start)

    def copies(wanted: list[int], arrived: dict[int, simpy.Event]) -> Process:
        for name in wanted:
            yield from stream("copy", f"copy {name}", copy)
            arrived[name].succeed()

    def serve() -> Process:
        for _ in range(int(work.requests)):
            start = env.now
            yield from stream("unit", "router", route)
            routed = env.now
            chosen = [int(e) for e in rng.choice(count, size=batch, p=popularity)]
            wanted = [n for n in dict.fromkeys(chosen) if not cache.touch(n)]
            arrived = {n: env.event() for n in wanted}
            copying = env.process(copies(wanted, arrived))
            if not overlap:
                yield copying
            for name in _resident_first(chosen, wanted) if overlap else chosen:
                if name in arrived and not arrived[name].processed:
                    yield arrived[name]
                yield from stream("unit", f"expert {name}", run)
            rows.append(
                {"start_s": start, "routed_s": routed, "end_s": env.now,
                 "misses": len(wanted), "distinct": len(set(chosen)),
                 "latency_s": env.now - start}
            )  # fmt: skip

    env.process(serve())
    env.run()
    latency, missed, distinct = (
        np.array([row[name] for row in rows]) for name in ("latency_s", "misses", "distinct")
    )
    hits = 1.0 - missed.sum() / distinct.sum()
    return Played(float(latency.mean()), float(missed.mean()), float(hits), rows, trace)


def _resident_first(chosen: list[int], wanted: list[int]) -> list[int]:
    """Return the order of runs when copies go on beside: what is there runs first."""
    late = {n: i + 1 for i, n in enumerate(wanted)}
    return sorted(chosen, key=lambda n: late.get(n, 0))


def _warm(rng: np.random.Generator, popularity: Array, capacity: int) -> list[int]:
    size = min(capacity, len(popularity))
    if size <= 0:
        return []
    return [int(i) for i in rng.choice(len(popularity), size=size, replace=False, p=popularity)]
