"""Waits for bytes under way: cores with a cache in front of all tiers, engines that fill links.

Both keep a number of bytes in flight: what has a latency T takes at least bytes * T / in flight
(Little's law). A tensor that lies in several tiers waits for each of them by its share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps, written_name
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.misses import hit_share

__all__ = [
    "behind_caches", "cache_hits", "cache_port", "engine_waits", "first_access", "line_seconds",
    "miss_seconds", "with_engines",
]  # fmt: skip


def behind_caches(
    placed: PlacedOps, views: list[UnitView], totals: Array, crossing: Array, *, ideal: bool
) -> tuple[Array, dict[int, Array]]:
    """Return what crosses ports when caches have answered their part, and the shares that miss.

    Args:
        totals: Bytes that each operator moves, (ops, MOVED, points).
        crossing: Bytes on each resource without caches, (ops, resources, points).
    Returns:
        Bytes, (ops, resources, points); by unit the share of its bytes that misses, (points,).
    """
    missing: dict[int, Array] = {}
    for u, view in enumerate(views):
        if view.machine.unit(view.path).config.misses is None:
            continue
        ops = placed.unit_of == u
        missing[u] = np.ones(1)
        own = cache_port(view)
        if own is None or not ops.any():
            continue
        moved = totals[ops].sum(axis=1)
        hits = cache_hits(view, (moved * placed.executions[ops]).sum(axis=0), ideal=ideal)
        missing[u] = 1.0 - hits
        port = placed.resources.index(own)
        points = np.broadcast_shapes(crossing.shape[2:], hits.shape)
        crossing = np.broadcast_to(crossing, (*crossing.shape[:2], *points)).copy()
        crossing[ops] *= missing[u]
        crossing[ops, port] = moved
    return crossing, missing


def miss_seconds(
    placed: PlacedOps, views: list[UnitView], totals: Array, missing: dict[int, Array]
) -> Array:
    """Return the least time in which cores with so many lines under way move bytes, (ops, points).

    Args:
        missing: Share of each unit's bytes that misses its cache, (points,).
    """
    least: Any = np.zeros((len(placed), 1))
    for u, share in missing.items():
        view = views[u]
        waits = _byte_seconds(placed, view.machine, u, totals)
        seconds = share * line_seconds(view, totals.sum(axis=1), waits)
        least = least + np.where((placed.unit_of == u)[:, None], seconds, 0.0)
    found: Array = least
    return found


def with_engines(placed: PlacedOps, machine: Machine, totals: Array, busy: Array) -> Array:
    """Return busy seconds of links whose engines keep so many bytes under way.

    Args:
        busy: Busy seconds of each resource, (ops, resources, points).
    """
    for r, resource in enumerate(placed.resources):
        if not _has_engine(machine, resource):
            continue
        flying = _in_flight(machine, resource, placed.instances[r])
        for u in range(len(placed.units)):
            seconds = _byte_seconds(placed, machine, u, totals, through=r) / flying
            mine = np.where((placed.unit_of == u)[:, None], seconds, 0.0)
            points = np.broadcast_shapes(busy.shape[2:], mine.shape[1:])
            busy = np.broadcast_to(busy, (*busy.shape[:2], *points)).copy()
            busy[:, r] = np.maximum(busy[:, r], mine)
    return busy


def engine_waits(
    machine: Machine, way: Iterable[str], read: Any, instances: Callable[[str], float]
) -> dict[str, Any]:
    """Return the least seconds in which engines of a way read bytes, as `LINK.in_flight`.

    Args:
        way: Ports and links that the bytes cross.
        read: Bytes; those that are written hold no tags.
        instances: Returns how many instances of a link they take.
    """
    way = tuple(way)
    waits = read * first_access(machine, way)
    return {
        f"{resource}.in_flight": waits / _in_flight(machine, resource, instances(resource))
        for resource in way
        if _has_engine(machine, resource)
    }


def _has_engine(machine: Machine, resource: str) -> bool:
    """Return whether the engine of a link limits its bytes under way."""
    return f"{written_name(resource)}.in_flight" in machine.values


def _in_flight(machine: Machine, resource: str, instances: float) -> Array:
    """Return the bytes that the engines of so many instances of a link keep under way."""
    return np.atleast_1d(machine.values[f"{written_name(resource)}.in_flight"]) * instances


def cache_port(view: UnitView) -> str | None:
    """Return the port of the cache in front of a unit: its first, where that is an SRAM's."""
    own = view.machine.unit_ports(view.path)[0]
    return own if view.machine.memory(own.rpartition(".")[0]).config.kind == "sram" else None


def cache_hits(view: UnitView, working: Any, *, ideal: bool) -> Array:
    """Return the share of a step's bytes that the cache of cores answers, (points,).

    Args:
        working: Bytes that the unit moves in one run, which the next one moves again.
    """
    misses, port = view.machine.unit(view.path).config.misses, cache_port(view)
    if misses is None or port is None:
        return np.zeros(1)
    capacity = view.machine.values[f"{port.rpartition('.')[0]}.capacity"]
    policy = "best" if ideal else misses.replacement
    return np.atleast_1d(hit_share(working, capacity, policy))


def line_seconds(view: UnitView, moved: Any, byte_seconds: Any) -> Any:
    """Return the least time in which cores with so many lines under way move bytes.

    Args:
        moved: Bytes.
        byte_seconds: Sum of bytes times the latency of their ports and links.
    """
    cores = int(view.machine.unit(view.path).config.instances)
    flying = cores * view.get("misses.outstanding") * view.get("misses.line")
    return (byte_seconds + moved * view.get("misses.path")) / flying


def _byte_seconds(
    placed: PlacedOps, machine: Machine, unit: int, totals: Array, through: int | None = None
) -> Array:
    """Return bytes times the latency of their way, summed over tensor classes, (ops, points).

    Args:
        through: Only ways that cross this resource.
    """
    total: Any = np.zeros((len(placed), 1))
    for (u, c), ways in placed.ways.items():
        if u != unit:
            continue
        for share, crossed in ways:
            if through is None or through in crossed:
                names = [written_name(placed.resources[r]) for r in crossed]
                total = total + totals[:, c] * share * np.atleast_1d(first_access(machine, names))
    found: Array = total
    return found


def first_access(machine: Machine, resources: Iterable[str]) -> Any:
    """Return the latency of a way: the slowest of its ports and every link, seconds."""
    ports: Any = 0.0
    links: Any = 0.0
    for resource in resources:
        latency = machine.values.get(f"{resource}.latency", 0.0)
        if resource in machine.config.links:
            links = links + latency
        else:
            ports = np.maximum(ports, latency)
    return ports + links
